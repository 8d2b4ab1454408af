"""Calls "gemm_integer" and "conv_integer" by kernels.cpu.pairs: A is copied as int16 less its zero point, then one contraction."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpuonnx.codegen import cpu
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, apply, cast, const, dim, guard, index, load
from gpuonnx.kernels.contract import Arg, Build, Layout, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu import conv
from gpuonnx.kernels.cpu.emit import analyse, identity
from gpuonnx.kernels.cpu.gemm import Axis, Problem, broadcast, ceildiv, contraction, dense_batch, product, same, vectors_for
from gpuonnx.kernels.cpu.pairs import PAIR, Pairs, panels

HALF, WORD = "i16", 4
FEWEST_COLUMNS = 4


def build(name: str, call: Spec) -> Build | None:
    """None where the plain nests have to do."""
    return _gemm(call) if name == "gemm_integer" else _conv(call)


class Copies:
    """Steps that copy operands, and the work memory they fill."""

    def __init__(self, call: Spec) -> None:
        self.call, self.steps, self.work = call, list[Step](), list[Dim]()

    def run(self, number: int, zero_at: Sequence[Expr], shape: tuple[Dim, ...], places: Sequence[Expr], inside: Expr | None, room: Dim,
            strides: tuple[Dim, ...], start: Dim = 0) -> Ref:
        """int16 out[i] = input `number` at `places` less its zero point at `zero_at`, 0 where not `inside`; `room` elements."""
        source, zero = self.call.inputs[number], self.zero(number)
        assert source is not None
        value = cast(load(0, source.dtype, tuple(places)), HALF)
        layouts, numbers = [source], [number]
        if zero is not None:
            value = value - cast(load(1, zero.dtype, tuple(zero_at) if zero.shape else ()), HALF)
            layouts.append(zero)
            numbers.append(2 + number)
        if inside is not None:
            value = guard(inside, value, const(0, HALF))
        node = g.Map(tuple(g.Value(v.dtype, v.shape) for v in layouts), (g.Value(HALF, shape),), expr=value)
        made = cpu.build(node, tuple(layouts), (Layout(HALF, shape, strides),))
        there = Ref("work", len(self.work))
        self.work.append(room * 2)

        def placed(arg: Arg) -> Arg:
            if not isinstance(arg, Ref):
                return arg
            if arg.space == "in":
                return replace(arg, number=numbers[arg.number])
            return replace(arg, space=there.space, number=there.number, offset=arg.offset + start * 2)
        self.steps += [replace(s, args=tuple(map(placed, s.args))) for s in made.steps]
        return there

    def zero(self, number: int) -> Layout | None:
        return self.call.inputs[2 + number] if len(self.call.inputs) > 2 + number else None


def even(n: Dim) -> Dim:
    rounded: Dim = ceildiv(n, PAIR) * PAIR
    return rounded


def _line(depth: Dim) -> Dim:
    """Elements from row to row: whole pairs, and no multiple of 4096 bytes, which would fall into one set of the cache."""
    wide = even(depth)
    return wide + 32 if isinstance(wide, int) and wide % 2048 == 0 and wide else wide


def _filled(axis: int, depth: Dim) -> Expr | None:
    """Whether index(axis) is more than filling, where there is any."""
    return None if isinstance(depth, int) and depth % PAIR == 0 else apply("less", index(axis), dim(depth))


def _gemm(call: Spec) -> Build | None:
    from gpuonnx.kernels.cpu.micro import lanes_of
    a, b, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert a is not None and b is not None
    copies, depth, columns = Copies(call), a.shape[-1], b.shape[-1]
    if isinstance(columns, int) and columns < FEWEST_COLUMNS:
        return None
    known = _constant(call)
    nr = lanes_of("i32") * vectors_for(columns, lanes_of("i32"), known is not None)
    rank, line = len(a.shape), _line(depth)
    wide, strides = (*a.shape[:-1], even(depth)), Layout.dense(HALF, (*a.shape[:-1], line)).strides
    source = copies.run(0, (index(rank - 2),), wide, tuple(map(index, range(rank))), _filled(rank - 1, depth), product(a.shape[:-1]) * line, strides)
    left = broadcast(Layout(HALF, wide, strides), out.shape[:-2])
    matrix = ceildiv(columns, nr) * ceildiv(depth, PAIR) * nr
    right = dense_batch(b, matrix * WORD, out.shape[:-2])
    packed: tuple[Packed, ...] = ()
    if known is not None:
        array, zero = known
        packed, where = (Packed(("pairs", nr), lambda: panels(array, zero, nr)),), Ref("packed", 0)
    else:
        where = _panels(copies, b, nr, matrix)
    axes = [Axis(n, x * 2, y) for n, x, y in zip((*out.shape[:-2], out.shape[-2]), (*left, strides[-2]), (*right, 0), strict=True)]
    plan = analyse(out, call.epilogue, "i32", identity(len(out.shape)))
    problem = Problem("i32", source, where, tuple(axes), columns, (), ceildiv(depth, PAIR), plan, nr // lanes_of("i32"))
    return Build((*copies.steps, contraction(problem, Pairs())), tuple(copies.work), packed, call.in_place())


def _constant(call: Spec) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The second operand and its zero point (a number, or one a column), where both are known."""
    zero = call.inputs[3] if len(call.inputs) > 3 else None
    if 1 not in call.constants or zero is not None and 3 not in call.constants:
        return None
    return call.constants[1], None if zero is None else call.constants[3]


def _panels(copies: Copies, b: Layout, nr: int, matrix: Dim) -> Ref:
    """A step that packs a B that is not known: axes batch..., panel, pair, column of the panel, half."""
    *lead, depth, columns = b.shape
    rank = len(lead)
    shape = (*lead, ceildiv(columns, nr), ceildiv(depth, PAIR), nr, PAIR)
    panel, pair, column, half = (index(rank + k) for k in range(4))
    k, n = pair * dim(PAIR) + half, panel * dim(nr) + column
    inside: Expr | None = None
    for at, size, whole in ((k, depth, PAIR), (n, columns, nr)):
        if not isinstance(size, int) or size % whole:
            test = apply("less", at, dim(size))
            inside = test if inside is None else apply("and", inside, test)
    return copies.run(1, (n,), shape, (*map(index, range(rank)), k, n), inside, product(lead) * matrix * PAIR, Layout.dense(HALF, shape).strides)


def _conv(call: Spec) -> Build | None:
    from gpuonnx.kernels.cpu.micro import lanes_of
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    group, kernel, strides, dilations, pads = (call.attrs[k] for k in ("group", "kernel", "strides", "dilations", "pads"))
    channels, rank, known = w.shape[1], len(kernel), _constant(call)
    if known is None or not isinstance(channels, int) or not isinstance(w.shape[0], int):
        return None
    each = w.shape[0] // group
    if group > 1 and (channels % PAIR or each < FEWEST_COLUMNS):
        return None
    inner = group * channels if group > 1 else int(str(even(channels)))
    copies = Copies(call)
    source, left = _channels_last(copies, x, inner, pads)
    corner: Dim = 0
    for k in range(rank):
        corner = corner - pads[k] * left.strides[2 + k]
    joined = 1 if group == 1 and dilations[-1] == 1 and same(left.strides[-1], inner) else 0
    run = (inner if group == 1 else channels) * (kernel[-1] if joined else 1) // PAIR
    taps = [(kernel[k], dilations[k] * left.strides[2 + k] * 2) for k in range(rank - joined)]
    nr = lanes_of("i32") * vectors_for(each, lanes_of("i32"), True)
    depth = math.prod(kernel) * (inner if group == 1 else channels)
    axes = [Axis(x.shape[0], left.strides[0] * 2, 0)]
    if group > 1:
        axes.append(Axis(group, channels * 2, ceildiv(each, nr) * (depth // PAIR) * nr * WORD))
    axes += [Axis(n, s * left.strides[2 + k] * 2, 0) for k, (n, s) in enumerate(zip(out.shape[2:], strides, strict=True))]
    array, zero = known
    plan = analyse(out, call.epilogue, "i32", conv.output_axes(len(x.shape), group, w.shape[0]))
    ref = replace(source, offset=source.offset + corner * 2)
    problem = Problem("i32", ref, Ref("packed", 0), tuple(axes), each, tuple(t for t in taps if t[0] != 1), run, plan, nr // lanes_of("i32"))
    packed = Packed(("pairs", nr, group), lambda: _weights(array, zero, group, inner if group == 1 else channels, nr))
    return Build((*copies.steps, contraction(problem, Pairs())), tuple(copies.work), (packed,), call.in_place())


def _weights(array: np.ndarray, zero: np.ndarray | None, group: int, inner: int, nr: int) -> np.ndarray:
    """Panels of the weights less their zero point; channels that are filling are 0 in the copy of x."""
    wide = array.astype(np.int16)
    if zero is not None:
        wide = wide - zero.astype(np.int16).reshape(-1, *(1,) * (wide.ndim - 1))
    wide = np.pad(wide, ((0, 0), (0, inner - wide.shape[1]), *((0, 0),) * (wide.ndim - 2)))
    return panels(conv.weight_matrix(wide, group), None, nr)


def _channels_last(copies: Copies, x: Layout, inner: int, pads: Any) -> tuple[Ref, Layout]:
    """Where a copy of x begins behind its halo, which is readable in the source; the channels are innermost, filled up to `inner`."""
    rank = len(x.shape)
    halo = [(0, 0), (0, 0), *((pads[k], pads[rank - 2 + k]) for k in range(rank - 2))]
    wide = [n + before + after for n, (before, after) in zip(x.shape, halo, strict=True)]
    wide[1] = inner
    strides: list[Dim] = [0] * rank
    step: Dim = 1
    for a in (1, *range(rank - 1, 1, -1), 0):
        strides[a] = step
        step = step * wide[a]
    places = [index(a) - dim(halo[a][0]) if halo[a][0] else index(a) for a in range(rank)]
    inside = None if same(x.shape[1], inner) else apply("less", index(1), dim(x.shape[1]))
    room = copies.run(0, (), tuple(wide), places, inside, step, tuple(strides))
    corner: Dim = 0
    for s, (before, _) in zip(strides, halo, strict=True):
        corner = corner + s * before
    return replace(room, offset=corner * 2), Layout(HALF, x.shape, tuple(strides))
