"""Convolutions: one kernel for all of them; bias, scales and activations are Maps around it."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """The gradient of Conv. Where the stride is s, the outputs i with the same i % s are a convolution of x of their own: all of them
    are one convolution with more channels, whose results are dealt out."""
    rank = x.rank - 2
    kernel = kernel_of(w, kernel_shape)
    step, gap = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    extra = tuple(output_padding or (0,) * rank)
    if not rank == len(step) == len(gap) == len(extra):
        raise ModelError(f"{builder().origin}: kernel {list(kernel)}, strides {list(step)}, dilations {list(gap)} and output_padding "
                         f"{list(extra)} do not fit {rank} spatial axes")
    if min((*kernel, *step, *gap)) < 1:
        raise ModelError(f"{builder().origin}: kernel {list(kernel)}, strides {list(step)} and dilations {list(gap)} must be positive")
    extents = [(k - 1) * g + 1 for k, g in zip(kernel, gap, strict=True)]
    lows, highs = transpose_pads(spatial(x), extents, step, extra, auto_pad, output_shape, pads)
    sizes = [(n - 1) * s + e + o - low - high
             for n, s, e, o, low, high in zip(spatial(x), step, extents, extra, lows, highs, strict=True)]
    y = transposed_convolution(x, w, Phases(kernel, step, gap), group, lows, sizes)
    return y if b is None else y + channelwise(b, x.rank)


def transposed_convolution(x: Tensor, w: Tensor, phases: Phases, group: int, lows: Sequence[Dim], sizes: Sequence[Dim]) -> Tensor:
    """`sizes` elements of the full result from `lows` on."""
    window = Window.of(spatial(x), phases.taps, "NOTSET", phases.gaps, [*phases.reach, *phases.reach])
    return phases.dealt(convolution(x, phases.weights(w, group), window, group), w.shape[1], group, lows, sizes)


@dataclass(frozen=True)
class Phases:
    """A transposed convolution as an ordinary one, by axis: an axis of stride 1 keeps its taps, turned around; of stride s, phase r of s
    has the taps t with t * dilation % s == r, as a dense kernel of ceil(extent / s)."""

    kernel: tuple[int, ...]
    step: tuple[int, ...]
    gap: tuple[int, ...]

    @property
    def taps(self) -> list[int]:
        return [k if s == 1 else ((k - 1) * g + s) // s for k, s, g in zip(self.kernel, self.step, self.gap, strict=True)]

    @property
    def gaps(self) -> list[int]:
        return [g if s == 1 else 1 for s, g in zip(self.step, self.gap, strict=True)]

    @property
    def reach(self) -> list[int]:
        return [(t - 1) * g for t, g in zip(self.taps, self.gaps, strict=True)]

    def weights(self, w: Tensor, group: int) -> Tensor:
        """w[C, O / group, taps...] -> [group, phase, O / group] rows by C / group channels by the taps of a phase."""
        each, outs, count = d.floordiv(w.shape[0], group), w.shape[1], math.prod(self.step)

        def element(*i: Expr) -> Expr:
            o, c, taps = i[0], i[1], i[2:]
            row = o // dim(outs)
            channel, phase = (c, row) if group == 1 else (row // dim(count) * dim(each) + c, row % dim(count))
            places, condition = [], const(True, "bool")
            for last, tap, (k, s, g), r in zip(self.taps, taps, self.axes, self.split(phase), strict=True):
                place = dim(last - 1) - tap
                if s > 1:
                    dense = place * dim(s) + r
                    place = dense if g == 1 else dense // dim(g)
                    if g > 1:
                        condition = both(condition, equal(place * dim(g), dense))
                    if last * s > (k - 1) * g + 1:
                        condition = both(condition, less(dense, dim((k - 1) * g + 1)))
                places.append(place)
            return guard(condition, w.at(channel, o % dim(outs), *places), const(0, compute(w.dtype)))
        return tensor_map((outs * group * count, each, *self.taps), w.dtype, element)

    @property
    def axes(self) -> list[tuple[int, int, int]]:
        return list(zip(self.kernel, self.step, self.gap, strict=True))

    def split(self, phase: Expr) -> list[Expr]:
        """A phase's number on each axis."""
        out: list[Expr] = []
        for k, s in reversed(list(enumerate(self.step))):
            out.insert(0, dim(0) if s == 1 else phase % dim(s) if any(n > 1 for n in self.step[:k]) else phase)
            phase = phase if s == 1 else phase // dim(s)
        return out

    def dealt(self, y: Tensor, outs: Dim, group: int, lows: Sequence[Dim], sizes: Sequence[Dim]) -> Tensor:
        """Output `i` of an axis is result (i + low) // s of phase (i + low) % s; 0 past the ends."""
        count = math.prod(self.step)
        whole = [q * s for q, s in zip(spatial(y), self.step, strict=True)]
        if count == 1 and all(map(d.prove_equal, whole, sizes)) and all(isinstance(n, int) and n == 0 for n in lows):
            return y

        def element(*i: Expr) -> Expr:
            o, places, condition = i[1], [], const(True, "bool")
            phase = dim(0)
            for at, s, low, size, full in zip(i[2:], self.step, lows, sizes, whole, strict=True):
                moved = at + dim(low)
                if not isinstance(low, int) or low < 0:
                    condition = both(condition, less_equal(dim(0), moved))
                if not d.at_most(low + size, full):
                    condition = both(condition, less(moved, dim(full)))
                places.append(moved if s == 1 else moved // dim(s))
                phase = phase * dim(s) + (dim(0) if s == 1 else moved % dim(s))
            channel = phase * dim(outs) + o if group == 1 else (o // dim(outs) * dim(count) + phase) * dim(outs) + o % dim(outs)
            return guard(condition, y.at(i[0], channel, *places), const(0, compute(y.dtype)))
        return tensor_map((y.shape[0], outs * group, *sizes), y.dtype, element)


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
