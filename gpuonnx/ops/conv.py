"""Convolutions: one kernel for all of them; bias, scales and activations are Maps around it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Spec, Tensor, builder, call, dim, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, const, guard
from gpuonnx.ir.formula import both, equal, less, less_equal
from gpuonnx.ir.types import compute
from gpuonnx.ops.matmul import BYTES, GEMM_TYPES, one_or_many
from gpuonnx.ops.registry import op
from gpuonnx.ops.window import Ints, Window, spatial

MOST_SPATIAL = 3


def kernel_of(w: Tensor, kernel_shape: Ints) -> tuple[int, ...]:
    """The spatial sizes of the weights, which an attribute may repeat and must not contradict."""
    if not kernel_shape:
        return tuple(int(builder().ask(s)) for s in w.shape[2:])
    if len(kernel_shape) != w.rank - 2:
        raise ModelError(f"{builder().origin}: kernel_shape {list(kernel_shape)} does not fit weights of rank {w.rank}")
    for size, said in zip(w.shape[2:], kernel_shape, strict=True):
        builder().meet(size, said)
    return tuple(kernel_shape)


def agreed(x: Tensor, w: Tensor, window: Window, group: int) -> Tensor:
    """The weights with numbers for spatial sizes, once it is sure that no kernel leaves its operands."""
    if x.rank < 3 or w.rank != x.rank:
        raise ModelError(f"{builder().origin}: input of rank {x.rank} and weights of rank {w.rank}; both must have the same rank, at least 3")
    if group < 1:
        raise ModelError(f"{builder().origin}: group is {group}, at least 1 is expected")
    builder().meet(x.shape[1], w.shape[1] * group)
    builder().require(w.shape[0] % group, f"the number of output channels must be a multiple of group {group}", equal=True)
    return w if tuple(w.shape[2:]) == window.kernel else w.reshape(*w.shape[:2], *window.kernel)


def convolution(x: Tensor, w: Tensor, window: Window, group: int) -> Tensor:
    """x[N, C, ...] with w[O, C / group, ...], without bias."""
    w = agreed(x, w, window, group)
    out = x.like(x.shape[0], w.shape[0], *window.out)
    if x.dtype in GEMM_TYPES and window.rank <= MOST_SPATIAL:
        return call("conv", x, w, out=out, **attributes(window, group))  # type: ignore[no-any-return]
    return summed_windows(x, w, window, group, x.dtype)


def attributes(window: Window, group: int) -> dict[str, Any]:
    return {"kernel": window.kernel, "strides": window.strides, "dilations": window.dilations, "pads": window.pads, "group": group}


def summed_windows(x: Tensor, w: Tensor, window: Window, group: int, dtype: str, zeros: Sequence[Tensor | None] = (None, None)) -> Tensor:
    """The same as a Reduce over (channels of the group, taps), in `dtype`; `zeros` are subtracted from x and w."""
    rank, each, wide = window.rank, d.floordiv(w.shape[0], group), compute(dtype)
    ranges = (x.shape[0], w.shape[0], *window.out, w.shape[1], *window.kernel)

    def term(*i: Expr) -> Expr:
        n, o, at, c, tap = i[0], i[1], i[2:2 + rank], i[2 + rank], i[3 + rank:]
        channel = c if group == 1 else o // dim(each) * dim(w.shape[1]) + c
        places = window.places(at, tap)
        left, right = cast(x.at(n, channel, *places), wide), cast(w.at(o, c, *tap), wide)
        if zeros[0] is not None:
            left = left - cast(zeros[0].at(*[dim(0)] * zeros[0].rank), wide)
        if zeros[1] is not None:
            right = right - cast(zeros[1].at(*[o if zeros[1].shape[0] != 1 else dim(0)] * zeros[1].rank), wide)
        return guard(window.inside(places, spatial(x)), left * right, const(0, wide))
    return tensor_reduce(ranges, range(2 + rank, len(ranges)), "sum", dtype, term)


def channelwise(b: Tensor, rank: int) -> Tensor:
    """b[C] to broadcast with [N, C, ...]."""
    return b.unsqueeze(range(1, rank - 1)) if rank > 2 else b


@op("Conv", since=1)
def conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
         kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    window = Window.of(spatial(x), kernel_of(w, kernel_shape), auto_pad, dilations, pads, strides)
    y = convolution(x, w, window, group)
    return y if b is None else y + channelwise(b, x.rank)


@op("ConvInteger", since=10)
def conv_integer(x: Tensor, w: Tensor, x_zero_point: Tensor | None = None, w_zero_point: Tensor | None = None, *, auto_pad: str = "NOTSET",
                 dilations: Ints = None, group: int = 1, kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    window = Window.of(spatial(x), kernel_of(w, kernel_shape), auto_pad, dilations, pads, strides)
    return integer_convolution(x, w, one_or_many(x_zero_point), one_or_many(w_zero_point), window, group)


def integer_convolution(x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None, window: Window, group: int) -> Tensor:
    """(x - x_zero) * (w - w_zero) in int32; padding counts as x_zero."""
    w = agreed(x, w, window, group)
    if x.dtype in BYTES and w.dtype in BYTES and window.rank <= MOST_SPATIAL:
        x_zero, w_zero = one_or_many(x_zero, 1), one_or_many(w_zero, w.shape[0])
        out = Spec("i32", (x.shape[0], w.shape[0], *window.out))
        return call("conv_integer", x, w, x_zero, w_zero, out=out, **attributes(window, group))  # type: ignore[no-any-return]
    return summed_windows(x, w, window, group, "i32", (x_zero, w_zero))


@op("ConvTranspose", since=1)
def conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
                   kernel_shape: Ints = None, output_padding: Ints = None, output_shape: Ints = None, pads: Ints = None,
                   strides: Ints = None) -> Tensor:
    """The gradient of Conv: x with zeros between its elements, convolved with the weights turned around."""
    rank = x.rank - 2
    kernel = kernel_of(w, kernel_shape)
    step, gap = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    extra = tuple(output_padding or (0,) * rank)
    extents = [(k - 1) * g + 1 for k, g in zip(kernel, gap, strict=True)]
    lows, highs = transpose_pads(spatial(x), extents, step, extra, auto_pad, output_shape, pads)
    spread = stretched(x, step, [e - 1 - p for e, p in zip(extents, lows, strict=True)],
                       [e - 1 - p + o for e, p, o in zip(extents, highs, extra, strict=True)])
    each, outs = d.floordiv(w.shape[0], group), w.shape[1]

    def turned(*i: Expr) -> list[Expr]:
        o, c, tap = i[0], i[1], i[2:]
        flipped = [dim(k - 1) - t for k, t in zip(kernel, tap, strict=True)]
        return [c, o, *flipped] if group == 1 else [o // dim(outs) * dim(each) + c, o % dim(outs), *flipped]
    shape = (outs * group, each, *kernel)
    weights = w.view(shape, turned) if group == 1 else tensor_map(shape, w.dtype, lambda *i: w.at(*turned(*i)))
    window = Window.of(spatial(spread), kernel, "NOTSET", gap)
    y = convolution(spread, weights, window, group)
    return y if b is None else y + channelwise(b, x.rank)


def transpose_pads(sizes: Sequence[Dim], extents: Sequence[int], strides: Sequence[int], extra: Sequence[int], auto_pad: str,
                   output_shape: Ints, pads: Ints) -> tuple[list[Dim], list[Dim]]:
    """What is cut from the full result before and after, each axis."""
    rank = len(sizes)
    if auto_pad == "VALID" or (output_shape is None and not auto_pad.startswith("SAME")):
        given: list[Any] = list(pads or (0,) * 2 * rank) if auto_pad != "VALID" else [0] * 2 * rank
        return given[:rank], given[rank:]
    wanted = list(output_shape)[-rank:] if output_shape is not None else [s * t for s, t in zip(sizes, strides, strict=True)]
    lows, highs = [], []
    for size, extent, stride, more, want in zip(sizes, extents, strides, extra, wanted, strict=True):
        total = (size - 1) * stride + more + extent - want
        half = d.floordiv(total, 2)
        upper = auto_pad == "SAME_UPPER"
        lows.append(half if upper else total - half)
        highs.append(total - half if upper else half)
    return lows, highs


def stretched(x: Tensor, strides: Sequence[int], before: Sequence[Dim], after: Sequence[Dim]) -> Tensor:
    """Zeros between the elements of spatial axes and around them; negative margins cut."""
    if all(s == 1 for s in strides) and all(isinstance(m, int) and m == 0 for m in (*before, *after)):
        return x
    shape = [(s - 1) * t + 1 + b + a for s, t, b, a in zip(spatial(x), strides, before, after, strict=True)]

    def element(*i: Expr) -> Expr:
        condition: Expr = const(True, "bool")
        places = []
        for at, size, stride, margin in zip(i[2:], spatial(x), strides, before, strict=True):
            moved = at - dim(margin)
            place = moved if stride == 1 else moved // dim(stride)
            condition = both(condition, both(less_equal(dim(0), moved), less(place, dim(size))))
            if stride != 1:
                condition = both(condition, equal(place * dim(stride), moved))
            places.append(place)
        return guard(condition, x.at(*i[:2], *places), const(0, compute(x.dtype)))
    return tensor_map((*x.shape[:2], *shape), x.dtype, element)
