"""Normalisations. Statistics are computed in float32 (float64 for doubles), variances as the mean of squared distances."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Tensor, dim, product, tensor_reduce
from gpuonnx.ir.expr import const, guard
from gpuonnx.ir.formula import absolute, both, equal, less, less_equal, power, rsqrt, select, sqrt
from gpuonnx.ir.types import BY_ONNX, compute
from gpuonnx.ops.registry import op

Axes = Sequence[int]


def moments(x: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    """Mean and population variance over `axes`, kept with size 1."""
    mean = x.mean(axes, keepdims=True)
    centred = x - mean
    return mean, (centred * centred).mean(axes, keepdims=True)


def standardized(x: Tensor, axes: Axes, epsilon: float) -> Tensor:
    mean, variance = moments(x, axes)
    return (x - mean) * rsqrt(variance + epsilon)


def per_channel(t: Tensor, x: Tensor) -> Tensor:
    """A vector of channels, to broadcast with x[N, C, ...]."""
    return t if x.rank < 2 else t.unsqueeze(range(1, x.rank - 1))


@op("BatchNormalization", since=14)
def batch_normalization(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
                        momentum: float = 0.9, training_mode: int = 0) -> tuple[Tensor, ...]:
    if not training_mode:
        return (batch_applied(x, scale, bias, mean, variance, epsilon),)
    current = batch_moments(x, [a for a in range(x.rank) if a != 1])
    running = [(old.wide() * momentum + new * (1 - momentum)).cast(old.dtype) for old, new in zip((mean, variance), current, strict=True)]
    return batch_applied(x, scale, bias, *current, epsilon), *running


def batch_moments(x: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    mean, variance = moments(x.wide(), axes)
    return mean.squeeze(axes), variance.squeeze(axes)


def batch_applied(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    """x * factor + offset, so that constant statistics leave one multiplication and addition."""
    wide = compute(x.dtype)
    scale, bias, mean, variance = (t.cast(wide) for t in (scale, bias, mean, variance))
    factor = scale / sqrt(variance + epsilon)
    return (x.wide() * per_channel(factor, x) + per_channel(bias - mean * factor, x)).cast(x.dtype)


@op("BatchNormalization", since=9)
def batch_normalization_9(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
                          momentum: float = 0.9, outputs: int) -> tuple[Tensor, ...]:
    """Training is asked for by naming more outputs than Y: running and saved mean and variance."""
    if outputs == 1:
        return (batch_applied(x, scale, bias, mean, variance, epsilon),)
    y, *running = batch_normalization(x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, training_mode=1)
    saved = batch_moments(x, [a for a in range(x.rank) if a != 1])
    return y, *running, *(s.cast(x.dtype) for s in saved)


@op("BatchNormalization", since=1)
def batch_normalization_1(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
                          is_test: int = 0, momentum: float = 0.9, spatial: int = 1, outputs: int) -> tuple[Tensor, ...]:
    """With spatial=0 every activation has statistics of its own: the axes after the batch are one."""
    if spatial:
        return batch_normalization_9(x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, outputs=1 if is_test else outputs)
    shape, vector = x.shape, product(x.shape[1:])
    flat = [t.reshape(vector) for t in (scale, bias, mean, variance)]
    y, *rest = batch_normalization_9(x.flatten(1), *flat, epsilon=epsilon, momentum=momentum, outputs=1 if is_test else outputs)
    return y.reshape(shape), *(t.reshape(shape[1:]) for t in rest)


@op("InstanceNormalization", since=1)
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    y = standardized(x.wide(), range(2, x.rank), epsilon)
    return (y * per_channel(scale.wide(), x) + per_channel(bias.wide(), x)).cast(x.dtype)


def stashed(x: Tensor, stash_type: int) -> Tensor:
    """In the precision asked for, and never in less than float32."""
    return x.cast(compute(BY_ONNX[stash_type]))


@op("LayerNormalization", since=17)
def layer_normalization(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5,
                        stash_type: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Over the axes from `axis` on; also gives the mean and the inverse standard deviation, in the stash type."""
    v = stashed(x, stash_type)
    mean, variance = moments(v, range(x.axis(axis), x.rank))
    inverse = rsqrt(variance + epsilon)
    y = (v - mean) * inverse * scale.cast(v.dtype)
    y = y if bias is None else y + bias.cast(v.dtype)
    stash = BY_ONNX[stash_type]
    return y.cast(x.dtype), mean.cast(stash), inverse.cast(stash)


@op("RMSNormalization", since=23)
def rms_normalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    v = stashed(x, stash_type)
    square = (v * v).mean(range(x.axis(axis), x.rank), keepdims=True)
    return (v * rsqrt(square + epsilon) * scale.cast(v.dtype)).cast(scale.dtype)


def grouped(x: Tensor, groups: int) -> Tensor:
    """x[N, C, ...] as [N, groups, C / groups * ...]"""
    return x.reshape(x.shape[0], groups, d.floordiv(x.shape[1], groups) * product(x.shape[2:]))


@op("GroupNormalization", since=21)
def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int, stash_type: int = 1) -> Tensor:
    v = stashed(x, stash_type)
    y = standardized(grouped(v, num_groups), [2], epsilon).reshape(x.shape)
    return (y * per_channel(scale.cast(v.dtype), x) + per_channel(bias.cast(v.dtype), x)).cast(x.dtype)


@op("GroupNormalization", since=18)
def group_normalization_18(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int) -> Tensor:
    """At first scale and bias belonged to the groups."""
    y = standardized(grouped(x.wide(), num_groups), [2], epsilon)
    return (y * scale.wide().unsqueeze([1]) + bias.wide().unsqueeze([1])).reshape(x.shape).cast(x.dtype)


@op("LRN", since=1)
def lrn(x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int) -> Tensor:
    """x / (bias + alpha / size * the sum of squares over `size` neighbouring channels) ** beta"""
    before, channels = (size - 1) // 2, x.shape[1]

    def square(*i: Expr) -> Expr:
        *at, k = i
        channel = at[1] + k - before
        element = x.at(at[0], channel, *at[2:])
        inside = both(less_equal(dim(0), channel), less(channel, dim(channels)))
        return guard(inside, element * element, const(0, element.dtype))
    total = tensor_reduce([*x.shape, size], [x.rank], "sum", compute(x.dtype), square)
    return (x.wide() / power(total * (alpha / size) + bias, beta)).cast(x.dtype)


@op("LpNormalization", since=1)
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """x / its norm along `axis`; 0 where the norm is 0."""
    if p not in (1, 2):
        raise ModelError(f"LpNormalization knows p=1 and p=2, here {p}")
    v = x.wide()
    norm = absolute(v).sum(axis, keepdims=True) if p == 1 else sqrt((v * v).sum(axis, keepdims=True))
    return select(equal(norm, 0), 0.0, v / norm).cast(x.dtype)


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    v = x.wide()
    mean, variance = moments(v, list(axes))
    return ((v - mean) / (sqrt(variance) + 1e-9)).cast(x.dtype)
