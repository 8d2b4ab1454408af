"""Activations: each one Map, computed in the compute type of its input."""
from __future__ import annotations

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, pointwise, tensor_map
from gpuonnx.ir.expr import Expr, cast, const
from gpuonnx.ir.formula import absolute, equal, erf, exp, expm1, greater, less, log1p, maximum, minimum, select, sigmoid, tanh
from gpuonnx.ir.formula import log as logarithm
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import op


@op("Relu", since=1)
def relu(x: Tensor) -> Tensor:
    return pointwise(lambda v: maximum(v, 0), x)


@op("LeakyRelu", since=1)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return pointwise(lambda v: select(less(v, 0), v * alpha, v), x)


@op("PRelu", since=7)
def p_relu(x: Tensor, slope: Tensor) -> Tensor:
    return pointwise(lambda v, s: select(less(v, 0), s * v, v), x, slope).kept_to(x.shape)


@op("PRelu", since=1)
def p_relu_1(x: Tensor, slope: Tensor) -> Tensor:
    """Before opset 7 a slope of one axis belongs to the channels."""
    if slope.rank == 1 and x.rank > 2 and slope.shape[0] != 1:
        slope = slope.unsqueeze(range(1, x.rank - 1))
    return p_relu(x, slope)


@op("Elu", since=1)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return pointwise(lambda v: select(less(v, 0), expm1(v) * alpha, v), x)


@op("Selu", since=6)
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return pointwise(lambda v: select(greater(v, 0), v, expm1(v) * alpha) * gamma, x)


@op("Selu", since=1)
def selu_1(x: Tensor, *, alpha: float = 1.6732, gamma: float = 1.0507) -> Tensor:
    return selu(x, alpha=alpha, gamma=gamma)


@op("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return pointwise(lambda v: maximum(v, 0) + minimum(const(0, v.dtype), expm1(v / alpha) * alpha), x)


@op("HardSigmoid", since=1)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return pointwise(lambda v: maximum(minimum(v * alpha + beta, 1), 0), x)


@op("HardSwish", since=14)
def hard_swish(x: Tensor) -> Tensor:
    return pointwise(lambda v: v * maximum(minimum(v * (1 / 6) + 0.5, 1), 0), x)


def softplus_of(v: Expr) -> Expr:
    """log(exp(v) + 1) without overflow; the corners at 0 are written so that the slopes taken there add up to 1 / 2."""
    return maximum(v, 0) + log1p(exp(minimum(-v, v)))


@op("Softplus", since=1)
def softplus(x: Tensor) -> Tensor:
    return pointwise(softplus_of, x)


@op("Softsign", since=1)
def softsign(x: Tensor) -> Tensor:
    return pointwise(lambda v: v / (absolute(v) + 1), x)


@op("ThresholdedRelu", since=10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return pointwise(lambda v: select(greater(v, alpha), v, 0), x)


@op("Mish", since=18)
def mish(x: Tensor) -> Tensor:
    return pointwise(lambda v: v * tanh(softplus_of(v)), x)


@op("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate not in ("none", "tanh"):
        raise ModelError(f"Gelu knows the approximations none and tanh, here {approximate!r}")
    if approximate == "tanh":
        return pointwise(lambda v: v * 0.5 * (tanh((v + v * v * v * 0.044715) * 0.7978845608028654) + 1), x)
    return pointwise(lambda v: v * 0.5 * (erf(v * 0.7071067811865476) + 1), x)


@op("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return pointwise(lambda v: v * sigmoid(v * alpha), x)


@op("SwiGLU", since=28)
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return pointwise(lambda v, w: v * sigmoid(v * alpha) * w, a, b)


@op("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Of integers: in float64, cut."""
    wide = x if x.kind == "f" else x.cast("f64")
    return pointwise(lambda v: select(less(v, -lambd), v + bias, select(greater(v, lambd), v - bias, 0)), wide).cast(x.dtype)


@op("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """In the type of x, as the standard's function has it: exponentials and their sum are rounded to it."""
    e = exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@op("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    v = x.wide()
    shifted = v - v.max(axis, keepdims=True)
    return (shifted - logarithm(exp(shifted).sum(axis, keepdims=True))).cast(x.dtype)


@op("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first maximum along `axis`, 0 elsewhere."""
    axis = x.axis(axis)
    first = x.fold("argmax", axis)
    return tensor_map(x.shape, x.dtype, lambda *i: one_where(equal(cast(first.at(*i[:axis], *i[axis + 1:]), "ix"), i[axis]), x.dtype))


def one_where(condition: Expr, dtype: str) -> Expr:
    return select(condition, const(1, compute(dtype)), const(0, compute(dtype)))


@op("Softmax", since=1)
def softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13 the input is read as a matrix split at `axis`."""
    return softmax(x.flatten(axis), axis=1).reshape(x.shape)


@op("LogSoftmax", since=1)
def log_softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return log_softmax(x.flatten(axis), axis=1).reshape(x.shape)


@op("Hardmax", since=1)
def hardmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return hardmax(x.flatten(axis), axis=1).reshape(x.shape)
