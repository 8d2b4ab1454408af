"""com.microsoft: the fused operators that ONNX Runtime's optimiser and exporters leave in files."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor
from gpuonnx.ir.formula import erf, rsqrt, sigmoid, tanh
from gpuonnx.ops import activation as act
from gpuonnx.ops import conv as standard_conv
from gpuonnx.ops import normalize
from gpuonnx.ops import quantize as q
from gpuonnx.ops.beyond import simplified_layer_normalization
from gpuonnx.ops.math import clip_6
from gpuonnx.ops.matmul import gemm, integer_product, matrix_product, one_or_many, scaled, transposed
from gpuonnx.ops.registry import F, op
from gpuonnx.ops.window import Ints

DOMAIN = "com.microsoft"


def microsoft(name: str) -> Callable[[F], F]:
    return op(name, since=1, domain=DOMAIN)


def gelu_exact(x: Tensor) -> Tensor:
    return x * 0.5 * (erf(x * (1 / math.sqrt(2))) + 1.0)


@microsoft("Gelu")
def gelu(x: Tensor) -> Tensor:
    return gelu_exact(x.wide()).cast(x.dtype)


@microsoft("BiasGelu")
def bias_gelu(a: Tensor, b: Tensor) -> Tensor:
    return gelu_exact((a + b).wide()).cast(a.dtype)


@microsoft("FastGelu")
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    v = (x if bias is None else x + bias).wide()
    return (v * 0.5 * (tanh(v * (v * v * 0.035677408136300125 + 0.7978845608028654)) + 1.0)).cast(x.dtype)


@microsoft("QuickGelu")
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    v = x.wide()
    return (v * sigmoid(v * alpha)).cast(x.dtype)


@microsoft("GemmFastGelu")
def gemm_fast_gelu(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    return fast_gelu(matrix_product(x, w), bias)


@microsoft("BiasSoftmax")
def bias_softmax(data: Tensor, bias: Tensor, *, axis: int = 1, is_inner_broadcast: int) -> Tensor:
    """Over all axes from `axis` on."""
    return act.softmax_1((data + bias).wide(), axis=axis).cast(data.dtype)


@microsoft("FusedMatMul")
def fused_matmul(a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0,
                 transBatchB: int = 0) -> Tensor:
    """transBatch*: the first axis goes after the other batch axes and before the rows."""
    a, b = moved_batch(a) if transBatchA else a, moved_batch(b) if transBatchB else b
    a, b = transposed(a) if transA and a.rank > 1 else a, transposed(b) if transB and b.rank > 1 else b
    return scaled(matrix_product(a, b), alpha)


def moved_batch(t: Tensor) -> Tensor:
    return t.transpose([*range(1, t.rank - 1), 0, t.rank - 1])


@microsoft("TransposeMatMul")
def transpose_matmul(a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    return fused_matmul(a, b, alpha=alpha, transA=transA, transB=transB)


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "Relu": (act.relu, ()), "Tanh": (tanh, ()), "Sigmoid": (sigmoid, ()), "LeakyRelu": (act.leaky_relu, ("alpha",)), "Elu": (act.elu, ("alpha",)),
    "HardSigmoid": (act.hard_sigmoid, ("alpha", "beta")), "Selu": (act.selu, ("alpha", "gamma")), "Celu": (act.celu, ("alpha",)),
    "Softplus": (act.softplus, ()), "Softsign": (act.softsign, ()), "ThresholdedRelu": (act.thresholded_relu, ("alpha",)),
    "HardSwish": (act.hard_swish, ()), "Gelu": (act.gelu, ()), "Clip": (clip_6, ("min", "max"))}


def activated(x: Tensor, name: str, parameters: Sequence[float] = ()) -> Tensor:
    """`parameters`: as many as are given, in the order of the activation's attributes."""
    if not name:
        return x
    if name not in ACTIVATIONS:
        raise ModelError(f"{x.builder.origin}: activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    function, names = ACTIVATIONS[name]
    return function(x, **dict(zip(names, parameters, strict=False)))


@microsoft("FusedConv")
def fused_conv(x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None, *, activation: str = "",
               activation_params: list[float] | None = None, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
               kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    y = standard_conv.conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides)
    return activated(y if z is None else y + z, activation, activation_params or ())


@microsoft("FusedGemm")
def fused_gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, activation: str = "", activation_alpha: float | None = None,
               activation_beta: float | None = None, activation_gamma: float | None = None, alpha: float = 1.0, beta: float = 1.0,
               transA: int = 0, transB: int = 0) -> Tensor:
    parameters = [p for p in (activation_alpha, activation_beta, activation_gamma) if p is not None]
    return activated(gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB), activation, parameters)


def skip_sum(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    total = x + skip
    return total if bias is None else total + bias


@microsoft("SkipLayerNormalization")
def skip_layer_normalization(x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None, *,
                             epsilon: float = 1e-12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gives the mean, the inverse standard deviation and the sum that was normalised as well."""
    total = skip_sum(x, skip, bias)
    y, mean, inverse = normalize.layer_normalization(total, gamma, beta, axis=-1, epsilon=epsilon)
    return y, mean, inverse, total


microsoft("SimplifiedLayerNormalization")(simplified_layer_normalization)


@microsoft("SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, *,
                                        epsilon: float = 1e-12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = skip_sum(x, skip, bias)
    v = total.wide()
    inverse = rsqrt((v * v).mean([-1], keepdims=True) + epsilon)
    return (v * inverse * gamma.wide()).cast(x.dtype), inverse, inverse, total


@microsoft("MatMulIntegerToFloat")
def matmul_integer_to_float(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero_point: Tensor | None = None,
                            b_zero_point: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    total = integer_product(a, b, a_zero_point and one_or_many(a_zero_point), b_zero_point and one_or_many(b_zero_point))
    y = total.cast("f32") * (q.along_rows(a_scale) * b_scale)
    return y if bias is None else y + bias


@microsoft("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(a: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    scale, zero = q.dynamic_range(a)
    return matmul_integer_to_float(q.quantized(a, scale, zero, "u8"), b, scale, b_scale, zero, b_zero_point, bias)


@microsoft("QuantizeLinear")
def quantize_linear(x: Tensor, y_scale: Tensor, y_zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0) -> Tensor:
    return q.quantize_linear(x, y_scale, y_zero_point, axis=axis, block_size=block_size)


@microsoft("DequantizeLinear")
def dequantize_linear(x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0) -> Tensor:
    return q.dequantize_linear(x, x_scale, x_zero_point, axis=axis, block_size=block_size)


@microsoft("BiasSplitGelu")
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    v = x + bias
    half = v.shape[-1] // 2
    return v.slice(-1, 0, half) * gelu_exact(v.slice(-1, half, half))


@microsoft("BiasAdd")
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip

