"""Pooling: Reduces over windows whose elements outside the input do not count."""
from __future__ import annotations

import math
from collections.abc import Callable

from gpuonnx.ir.build import Tensor, dim, product, tensor_map, tensor_reduce, tensor_scatter
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, const, guard
from gpuonnx.ir.formula import absolute, both, less, maximum, minimum, power
from gpuonnx.ir.scalar import FOLDS
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import Dims, op
from gpuonnx.ops.window import Ints, Window, spatial


def pooled(x: Tensor, window: Window, fold: str, f: Callable[[Expr], Expr] = lambda e: e, dtype: str | None = None) -> Tensor:
    """Fold f(element) over every window of x[N, C, ...]."""
    rank = window.rank
    ranges = (*x.shape[:2], *window.out, *window.kernel)

    def element(*i: Expr) -> Expr:
        places = window.places(i[2:2 + rank], i[2 + rank:])
        value = f(x.at(*i[:2], *places))
        return guard(window.inside(places, spatial(x)), value, const(FOLDS[fold].identity(value.dtype), value.dtype))
    return tensor_reduce(ranges, range(2 + rank, len(ranges)), fold, dtype or x.dtype, element)


@op("MaxPool", since=8)
def max_pool(x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints = None, kernel_shape: list[int], pads: Ints = None,
             storage_order: int = 0, strides: Ints = None, outputs: int) -> tuple[Tensor, ...]:
    window = Window.of(spatial(x), kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    y = pooled(x, window, "max")
    return (y, chosen_positions(x, window, storage_order)) if outputs > 1 else (y,)


@op("MaxPool", since=1)
def max_pool_1(x: Tensor, *, auto_pad: str = "NOTSET", kernel_shape: list[int], pads: Ints = None, strides: Ints = None) -> Tensor:
    return pooled(x, Window.of(spatial(x), kernel_shape, auto_pad, None, pads, strides), "max")


def chosen_positions(x: Tensor, window: Window, storage_order: int) -> Tensor:
    """Flat positions in x of the first maximum of each window; storage_order 1 counts spatial axes column by column."""
    rank, taps = window.rank, product(window.kernel)
    ranges = (*x.shape[:2], *window.out, taps)

    def tap(flat: Expr) -> list[Expr]:
        out: list[Expr] = []
        for size in reversed(window.kernel):
            out.insert(0, flat % dim(size))
            flat = flat // dim(size)
        return out

    def element(*i: Expr) -> Expr:
        places = window.places(i[2:2 + rank], tap(i[-1]))
        value = x.at(*i[:2], *places)
        return guard(window.inside(places, spatial(x)), value, const(FOLDS["max"].identity(value.dtype), value.dtype))
    best = tensor_reduce(ranges, [len(ranges) - 1], "argmax", "i64", element)

    def position(*i: Expr) -> Expr:
        places = window.places(i[2:], tap(cast(best.at(*i), "ix")))
        order = range(rank) if not storage_order else range(rank - 1, -1, -1)
        flat: Expr = i[0] * dim(x.shape[1]) + i[1]
        for a in order:
            flat = flat * dim(x.shape[2 + a]) + places[a]
        return cast(flat, "i64")
    return tensor_map(best.shape, "i64", position)


@op("AveragePool", since=7)
def average_pool(x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0, dilations: Ints = None,
                 kernel_shape: list[int], pads: Ints = None, strides: Ints = None) -> Tensor:
    window = Window.of(spatial(x), kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    wide = compute(x.dtype)
    total = pooled(x, window, "sum", dtype=wide)
    return tensor_map(total.shape, x.dtype, lambda *i: total.at(*i) / counted(i[2:], x, window, bool(count_include_pad), wide))


@op("AveragePool", since=1)
def average_pool_1(x: Tensor, *, auto_pad: str = "NOTSET", kernel_shape: list[int], pads: Ints = None, strides: Ints = None) -> Tensor:
    return average_pool(x, auto_pad=auto_pad, kernel_shape=kernel_shape, pads=pads, strides=strides)


def counted(at: tuple[Expr, ...], x: Tensor, window: Window, padded: bool, dtype: str) -> Expr:
    """How many elements of the window at `at` count: those of the input, or (padded) of the padded input."""
    whole = True
    total: Expr = const(1, "ix")
    for a, size in enumerate(spatial(x)):
        low: Dim = -window.before[a] if padded else 0
        high: Dim = size + window.after[a] if padded else size
        step = window.dilations[a]
        start = at[a] * dim(window.strides[a]) - dim(window.before[a])
        first = maximum(-((start - dim(low)) // dim(step)), dim(0)) if not padded else dim(0)
        last = minimum((dim(high) - start + dim(step - 1)) // dim(step), dim(window.kernel[a]))
        if window._never_outside(a, size):
            total = total * dim(window.kernel[a])
            continue
        whole = False
        total = total * (last - first)
    if whole:
        return const(float(math.prod(window.kernel)), dtype)
    return cast(total, dtype)


@op("LpPool", since=2)
def lp_pool(x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints = None, kernel_shape: list[int], p: int = 2,
            pads: Ints = None, strides: Ints = None) -> Tensor:
    window = Window.of(spatial(x), kernel_shape, auto_pad, dilations, pads, strides, ceil_mode)
    return rooted(pooled(x, window, "sum", lambda e: powered(e, p), compute(x.dtype)), p).cast(x.dtype)


@op("LpPool", since=1)
def lp_pool_1(x: Tensor, *, auto_pad: str = "NOTSET", kernel_shape: Ints = None, p: float = 2.0, pads: Ints = None, strides: Ints = None) -> Tensor:
    window = Window.of(spatial(x), kernel_shape or (), auto_pad, None, pads, strides)
    return rooted(pooled(x, window, "sum", lambda e: powered(e, p), compute(x.dtype)), p).cast(x.dtype)


def powered(e: Expr, p: float) -> Expr:
    return e * e if p == 2 else absolute(e) if p == 1 else power(absolute(e), const(p, e.dtype))


def rooted(t: Tensor, p: float) -> Tensor:
    return t if p == 1 else power(t, 1 / p)


def images(x: Tensor) -> range:
    """The axes after batch and channels."""
    return range(2, 2 + len(spatial(x)))


@op("GlobalAveragePool", since=1)
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(images(x), keepdims=True)


@op("GlobalMaxPool", since=1)
def global_max_pool(x: Tensor) -> Tensor:
    return x.max(images(x), keepdims=True)


@op("GlobalLpPool", since=2)
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    axes = images(x)
    powers = tensor_map(x.shape, compute(x.dtype), lambda *i: powered(x.at(*i), p))
    return rooted(powers.sum(axes, keepdims=True), p).cast(x.dtype)


@op("GlobalLpPool", since=1)
def global_lp_pool_1(x: Tensor, *, p: float = 2.0) -> Tensor:
    return global_lp_pool(x, p=p)  # type: ignore[arg-type]


@op("MaxUnpool", since=9)
def max_unpool(x: Tensor, i: Tensor, output_shape: Dims | None = None, *, kernel_shape: list[int], pads: Ints = None, strides: Ints = None) -> Tensor:
    """Elements go back to the flat positions `i`, which count in the tensor that the kernel and strides imply."""
    steps, margins = strides or [1] * len(kernel_shape), pads or [0] * 2 * len(kernel_shape)
    rank = len(kernel_shape)
    implied = [(s - 1) * t + k - margins[a] - margins[rank + a]
               for a, (s, t, k) in enumerate(zip(spatial(x), steps, kernel_shape, strict=True))]
    inner = (*x.shape[:2], *implied)
    zeros = tensor_map((product(inner),), x.dtype, lambda *_: const(0, compute(x.dtype)))
    flat, places = x.reshape(product(x.shape)), i.reshape(product(x.shape))
    y = tensor_scatter(zeros, flat.shape, lambda k: [cast(places.at(k), "ix")], lambda k: flat.at(k)).reshape(*inner)
    if output_shape is None:
        return y
    wanted = tuple(output_shape)

    def padded(*at: Expr) -> Expr:
        inside: Expr = const(True, "bool")
        for place, size in zip(at, y.shape, strict=True):
            inside = both(inside, less(place, dim(size)))
        return guard(inside, y.at(*at), const(0, compute(x.dtype)))
    return tensor_map(wanted, x.dtype, padded)


