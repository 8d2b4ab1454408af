"""The default domain beyond the standard: what ONNX Runtime's optimiser writes there, and what was experimental before opset 10."""
from __future__ import annotations

import numpy as np

from gpuonnx.ir.build import Tensor, constant
from gpuonnx.ir.formula import rsqrt, tanh
from gpuonnx.ops.activation import softplus
from gpuonnx.ops.normalize import per_channel, rms_normalization, stashed
from gpuonnx.ops.registry import Const, Dims, op
from gpuonnx.ops.shape import slice_10


@op("SimplifiedLayerNormalization")
def simplified_layer_normalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,
                                   outputs: int) -> tuple[Tensor, ...]:
    """RMSNormalization; also gives the inverse root of the mean square."""
    y = rms_normalization(x, scale, axis=axis, epsilon=epsilon, stash_type=stash_type)
    v = stashed(x, stash_type)
    return (y, rsqrt((v * v).mean(range(x.axis(axis), x.rank), keepdims=True) + epsilon))[:outputs]


@op("Affine")
def affine(x: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    return x * alpha + beta


@op("Scale")
def scale(x: Tensor, *, scale: float = 1.0) -> Tensor:
    return x * scale


@op("ImageScaler")
def image_scaler(x: Tensor, *, scale: float = 1.0, bias: list[float]) -> Tensor:
    """x[N, C, H, W] * scale + bias[C]"""
    return x * scale + per_channel(constant(np.array(bias, np.float32)).cast(x.dtype), x)


@op("ParametricSoftplus")
def parametric_softplus(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return softplus(x * beta) * alpha


@op("ScaledTanh")
def scaled_tanh(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return tanh(x * beta) * alpha


@op("Crop")
def crop(x: Tensor, *, border: list[int], scale: list[int] | None = None) -> Tensor:
    """x[N, C, H, W] without border (left, top, right, bottom), or `scale` rows and columns from its left upper corner on."""
    left, top, right, bottom = border
    high, wide = scale or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return x.slice(2, top, high).slice(3, left, wide)


@op("DynamicSlice")
def dynamic_slice(x: Tensor, starts: Dims, ends: Dims, axes: Const | None = None) -> Tensor:
    return slice_10(x, starts, ends, axes)
