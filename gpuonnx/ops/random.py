"""Random numbers: Maps over Philox, a counter-based generator, so that every element is computed by itself.

A `seed` gives the same numbers in every run; without one each run draws a key. Dropout with a seed draws what the standard's
reference implementation draws, NumPy's Mersenne twister.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import (
    Dim,
    Expr,
    Spec,
    Tensor,
    apply,
    builder,
    call,
    cast,
    const,
    constant,
    dim,
    full,
    host,
    pointwise,
    product,
    tensor_map,
    tensor_prefix,
    tensor_reduce,
)
from gpuonnx.ir.formula import cos, exp, greater_equal, less, less_equal, log, minimum, select, sqrt
from gpuonnx.ir.types import BY_ONNX, compute
from gpuonnx.ops.registry import Const, op


def key_of(seed: float | None) -> Tensor:
    """The generator's key, an i64 scalar: the bits of the seed, or drawn anew in every run."""
    if seed is not None:
        return constant(int(np.float32(seed).view(np.uint32)), "i64")
    key: Tensor = host("random_key", out=Spec("i64", ()), why="each run draws its own key")
    return key


def flat(indices: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """The row-major number of an element."""
    number = dim(0)
    for i, size in zip(indices, shape, strict=True):
        number = number * dim(size) + i
    return number


def uniform_at(key: Tensor, number: Expr, dtype: str, stream: int = 0) -> Expr:
    """Element `number` of a stream of numbers in [0, 1), with 24 bits (float64: 53)."""
    def word(k: int) -> Expr:
        return apply("philox", key.at(), const(k, "i64"), cast(number, "i64"))
    if compute(dtype) != "f64":
        return cast(apply("shr", word(2 * stream), 8), "f32") * 2.0**-24
    high, low = (cast(apply("shr", word(2 * stream + k), 5 + k), "f64") for k in (0, 1))
    return (high * 2.0**26 + low) * 2.0**-53


def uniform(shape: Sequence[Dim], dtype: str, seed: float | None) -> Tensor:
    """In [0, 1), in the compute type of `dtype`."""
    key = key_of(seed)
    return tensor_map(shape, compute(dtype), lambda *i: uniform_at(key, flat(i, shape), dtype))


def normal(shape: Sequence[Dim], dtype: str, seed: float | None) -> Tensor:
    """Mean 0 and deviation 1, in the compute type of `dtype` (Box and Muller, 1958)."""
    key = key_of(seed)

    def one(*i: Expr) -> Expr:
        first, second = (uniform_at(key, flat(i, shape), dtype, k) for k in (0, 1))
        return sqrt(log(1 - first) * -2) * cos(second * (2 * math.pi))
    return tensor_map(shape, compute(dtype), one)


def float_type(number: int | None, like: str = "f32") -> str:
    dtype = like if number is None else BY_ONNX[number]
    if dtype not in ("f16", "bf16", "f32", "f64"):
        raise ModelError(f"random numbers of type {dtype}: a float type was expected")
    return dtype


@op("RandomUniform", since=1)
def random_uniform(*, dtype: int = 1, high: float = 1.0, low: float = 0.0, seed: float | None = None, shape: list[int]) -> Tensor:
    kind = float_type(dtype)
    return (uniform(shape, kind, seed) * (high - low) + low).cast(kind)


@op("RandomNormal", since=1)
def random_normal(*, dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None, shape: list[int]) -> Tensor:
    kind = float_type(dtype)
    return (normal(shape, kind, seed) * scale + mean).cast(kind)


@op("RandomUniformLike", since=1)
def random_uniform_like(x: Tensor, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None) -> Tensor:
    kind = float_type(dtype, x.dtype)
    return (uniform(x.shape, kind, seed) * (high - low) + low).cast(kind)


@op("RandomNormalLike", since=1)
def random_normal_like(x: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None) -> Tensor:
    kind = float_type(dtype, x.dtype)
    return (normal(x.shape, kind, seed) * scale + mean).cast(kind)


@op("Bernoulli", since=15)
def bernoulli(x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """1 with the probability that x gives."""
    drawn = uniform(x.shape, x.dtype, seed)
    return less(drawn, x.wide()).cast(x.dtype if dtype is None else BY_ONNX[dtype])


@op("Multinomial", since=7)
def multinomial(x: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Tensor:
    """Classes drawn by unnormalised log probabilities x[batch, class]."""
    return drawn_classes(x, sample_size, key_of(seed), lambda *i: flat(i, (x.shape[0], sample_size))).cast(BY_ONNX[dtype])


def drawn_classes(x: Tensor, samples: Dim, key: Tensor, number: Callable[[Expr, Expr], Expr]) -> Tensor:
    """i64[batch, samples]: how many cumulated weights exp(x)[batch, class] lie at or below the draw number(row, sample)."""
    batch, classes = x.shape
    v = x.wide()
    cumulated = tensor_prefix(exp(v - v.max(1, keepdims=True)), 1)

    def beyond(row: Expr, sample: Expr, k: Expr) -> Expr:
        draw = uniform_at(key, number(row, sample), x.dtype) * cumulated.at(row, dim(classes - 1))
        return cast(less_equal(cumulated.at(row, k), draw), "i64")
    place = tensor_reduce((batch, samples, classes), [2], "sum", "i64", beyond)
    return pointwise(lambda p: minimum(p, cast(dim(classes - 1), "i64")), place)


def twister(shape: Sequence[Dim], seed: int) -> Tensor:
    """The numbers in [0, 1) of NumPy's RandomState(seed), in float64."""
    drawn: Tensor = call("mersenne", constant(seed & 0xFFFFFFFF, "i64"), out=Spec("f64", (product(shape),)))
    return drawn.reshape(*shape)


def dropped(x: Tensor, ratio: Tensor | float, seed: int | None) -> tuple[Tensor, Tensor]:
    """What stays is scaled up by 1 / (1 - ratio)."""
    v = x.wide()
    share = ratio.cast(v.dtype).reshape() if isinstance(ratio, Tensor) else constant(ratio, v.dtype)
    drawn = uniform(x.shape, x.dtype, None) if seed is None else twister(x.shape, seed)
    kept = greater_equal(drawn, share.cast(drawn.dtype))
    return select(kept, v / (1 - share), 0.0).cast(x.dtype), kept


def everything(x: Tensor) -> Tensor:
    return full(x.shape, True, "bool")


@op("Dropout", since=12)
def dropout(x: Tensor, ratio: Tensor | None = None, training_mode: Const | None = None, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
    known = None if ratio is None else builder().constants.get(ratio.value)
    if training_mode is None or not training_mode.reshape(-1)[0] or known is not None and not known.any():
        return x, everything(x)
    return dropped(x, 0.5 if ratio is None else ratio, seed)


@op("Dropout", since=10)
def dropout_10(x: Tensor, *, ratio: float = 0.5) -> tuple[Tensor, Tensor]:
    return x, everything(x)


@op("Dropout", since=7)
def dropout_7(x: Tensor, *, ratio: float = 0.5) -> tuple[Tensor, Tensor]:
    """The mask had the type of x."""
    return x, everything(x).cast(x.dtype)


@op("Dropout", since=1)
def dropout_1(x: Tensor, *, is_test: int = 0, ratio: float = 0.5) -> tuple[Tensor, Tensor]:
    """Drops unless it is told that this is a test."""
    if is_test:
        return dropout_7(x, ratio=ratio)
    y, kept = dropped(x, ratio, None)
    return y, kept.cast(x.dtype)
