"""Call "conv": x[N, C, ...] with w[O, C / group, ...], as a contraction over taps and channels.

x lies channels-last with a readable zero halo as wide as the pads (the planner sees to it), so no tap is ever out of bounds:
a row of the contraction is a run of output positions, a lane an output channel, k runs along the channels of one tap.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.types import compute, numpy_dtype, size
from gpuonnx.kernels.contract import Build, Layout, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu import pack
from gpuonnx.kernels.cpu.emit import Affine, analyse
from gpuonnx.kernels.cpu.gemm import (
    FLOATS,
    Axis,
    Problem,
    Workspace,
    ceildiv,
    contraction,
    epilogue_reason,
    pack_constant,
    product,
    same,
    vectors_for,
)


def supports(call: Spec) -> str | None:
    x, w = call.inputs[0], call.inputs[1]
    if x is None or w is None:
        return "conv takes an input and weights"
    if x.dtype not in FLOATS or w.dtype != x.dtype:
        return f"conv of {x.dtype} and {w.dtype}"
    if not 3 <= len(x.shape) <= 5:
        return f"conv over {len(x.shape) - 2} spatial axes"
    return epilogue_reason(call, compute(x.dtype), output_axes(len(x.shape), call.attrs["group"], call.outputs[0].shape[1]))


def output_axes(rank: int, group: int, channels: Dim) -> list[Affine]:
    """Output axes over the kernel's: batch, group (if there are several), spatial axes, output channels of one group."""
    lead = 2 if group > 1 else 1
    axes = lead + rank - 1

    def only(axis: int) -> Affine:
        return tuple(int(k == axis) for k in range(axes)), 0
    steps: list[Dim] = [0] * axes
    steps[-1] = 1
    if group > 1:
        steps[1] = floordiv(channels, group)
    return [only(0), (tuple(steps), 0), *(only(lead + k) for k in range(rank - 2))]


def weight_matrix(w: np.ndarray, group: int) -> np.ndarray:
    """[O, C / group, taps...] -> [group, taps * C / group, O / group]"""
    each, inner = w.shape[0] // group, w.shape[1]
    by_group = w.reshape(group, each, inner, math.prod(w.shape[2:]))
    return by_group.transpose(0, 3, 2, 1).reshape(group, -1, each)


def build(call: Spec) -> Build:
    from gpuonnx.kernels.cpu.micro import lanes_of
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    group, kernel, strides, dilations, pads = (call.attrs[k] for k in ("group", "kernel", "strides", "dilations", "pads"))
    rank, dtype, unit = len(kernel), compute(x.dtype), size(compute(x.dtype))
    work = Workspace([], [])
    left = x
    source = Ref("in", 0)
    if x.dtype != dtype:
        source, left = widened(x, pads, dtype, work)
    channels = w.shape[1]
    corner: Dim = 0
    for k in range(rank):
        corner = corner - pads[k] * left.strides[2 + k]
    joined = 1 if group == 1 and dilations[-1] == 1 and same(left.strides[-1], channels) else 0
    run = channels * kernel[-1] if joined else channels
    taps = [(kernel[k], dilations[k] * left.strides[2 + k] * unit) for k in range(rank - joined)]
    taps = [t for t in taps if t[0] != 1]
    each = floordiv(w.shape[0], group)
    right, group_step, packed = weights(call, dtype, work)
    axes = [Axis(x.shape[0], left.strides[0] * unit, 0)]
    if group > 1:
        axes.append(Axis(group, channels * left.strides[1] * unit, group_step))
    axes += [Axis(n, s * left.strides[2 + k] * unit, 0) for k, (n, s) in enumerate(zip(out.shape[2:], strides, strict=True))]
    plan = analyse(out, call.epilogue, dtype, output_axes(len(x.shape), group, w.shape[0]))
    a = Ref(source.space, source.number, source.offset + corner * unit)
    step = contraction(Problem(dtype, a, right, tuple(axes), each, tuple(taps), run, plan, vectors_for(each, lanes_of(dtype), 1 in call.constants)))
    return Build((*work.steps, step), tuple(work.bytes), packed, call.in_place())


def weights(call: Spec, dtype: str, work: Workspace) -> tuple[Ref, Dim, tuple[Packed, ...]]:
    """Panels of the weights: where they are, bytes from group to group, and the constant if it is one."""
    from gpuonnx.kernels.cpu.micro import lanes_of
    w, group = call.inputs[1], call.attrs["group"]
    assert w is not None
    taps, unit = product(w.shape[2:]), size(dtype)
    depth, columns = taps * w.shape[1], floordiv(w.shape[0], group)
    nr = vectors_for(columns, lanes_of(dtype), 1 in call.constants) * lanes_of(dtype)
    matrix = ceildiv(columns, nr) * depth * nr * unit
    if 1 in call.constants:
        array = call.constants[1]
        return Ref("packed", 0), matrix, (Packed(("conv panels", dtype, nr, group), lambda: pack_constant(weight_matrix(
            array.astype(numpy_dtype(dtype)), group), dtype, nr)),)
    room = work.take(matrix * group)
    tap_axes = [(n, s) for n, s in zip(w.shape[2:], w.strides[2:], strict=True)]
    layout = Layout(w.dtype, (group, *(n for n, _ in tap_axes), w.shape[1], columns),
                    (columns * w.strides[0], *(s for _, s in tap_axes), w.strides[1], w.strides[0]))
    work.steps += packing(layout, room, dtype, nr, unit, depth, matrix)
    return room, matrix, ()


def packing(layout: Layout, room: Ref, dtype: str, nr: int, unit: int, depth: Dim, matrix: Dim) -> list[Step]:
    """One packing step for each tap: a tap's rows lie one after another inside each panel."""
    group, *taps, inner, columns = layout.shape
    steps = []
    for number in range(math.prod(int(str(t)) for t in taps)):
        at, rest = list[int](), number
        for t in reversed(taps):
            at.insert(0, rest % int(str(t)))
            rest //= int(str(t))
        offset: Dim = 0
        for place, stride in zip(at, layout.strides[1:-2], strict=True):
            offset = offset + stride * place
        part = Layout(layout.dtype, (group, inner, columns), (layout.strides[0], layout.strides[-2], layout.strides[-1]))
        source = Ref("in", 1, offset * size(layout.dtype))
        into = Ref(room.space, room.number, inner * (number * nr * unit))
        steps.append(pack.step(source, part, (-2, -1), into, dtype, nr * unit, depth * nr * unit, matrix))
    return steps


def widened(x: Layout, pads: Sequence[int], dtype: str, work: Workspace) -> tuple[Ref, Layout]:
    """A copy of x with its halo in the compute type, dense and channels-last."""
    unit, rank = size(dtype), len(x.shape) - 2
    wide = [n + pads[k] + pads[rank + k] for k, n in enumerate(x.shape[2:])]
    channels = x.shape[1]
    line = ceildiv(channels, pack.block(dtype)) * pack.block(dtype)
    strides: list[Dim] = [0] * len(x.shape)
    step: Dim = line
    for k in range(rank - 1, -1, -1):
        strides[2 + k] = step
        step = step * wide[k]
    strides[0], strides[1] = step, 1
    room = work.take(x.shape[0] * step * unit)
    offset: Dim = 0
    corner: Dim = 0
    for k in range(rank):
        offset = offset - pads[k] * x.strides[2 + k]
        corner = corner + pads[k] * strides[2 + k]
    lead = (x.shape[0], *wide[:-1])
    source = Layout(x.dtype, (*lead, wide[-1], channels), (x.strides[0], *x.strides[2:], x.strides[1]))
    work.steps.append(pack.step(Ref("in", 0, offset * size(x.dtype)), source, (-2, -1), room, dtype, line * unit,
                                pack.block(dtype) * unit, wide[-1] * line * unit))
    return Ref(room.space, room.number, corner * unit), Layout(dtype, x.shape, tuple(strides))
