"""Calls "gemm_integer" and "conv_integer" on machines with VNNI: a copy of A where k does not come in fours, then kernels.cpu.dot8.py."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gpuonnx.codegen import cpu
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import apply, const, dim, guard, index, load
from gpuonnx.ir.types import compute
from gpuonnx.kernels.contract import Build, Layout, Ref, Spec, Step
from gpuonnx.kernels.cpu import conv
from gpuonnx.kernels.cpu.dot8 import Product, reason
from gpuonnx.kernels.cpu.emit import identity
from gpuonnx.kernels.cpu.gemm import Axis, broadcast, same


def build(name: str, call: Spec) -> Build | None:
    """None where the plain nests have to do."""
    if reason(call) is not None:
        return None
    return _gemm(call) if name == "gemm_integer" else _conv(call)


def fours(n: Dim) -> bool:
    return isinstance(n, int) and n % 4 == 0


def _gemm(call: Spec) -> Build | None:
    a, b, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert a is not None and b is not None
    depth = a.shape[-1]
    if len(call.constants[1].shape) != 2 or not isinstance(depth, int):
        return None
    source, left, steps, work = Ref("in", 0), a, [], []  # type: ignore[var-annotated]
    if not same(a.strides[-1], 1) or not fours(depth):
        source, left, steps, work = _copy(a, tuple(range(len(a.shape))), len(a.shape) - 1)
    shape = out.shape[:-2]
    batch = broadcast(left, shape)
    axes = [Axis(n, s, 0) for n, s in zip((*shape, out.shape[-2]), (*batch, left.strides[-2]), strict=True)]
    run = (depth + 3) // 4
    product = Product(call, call.constants[1][None], source, axes, (), run, identity(len(out.shape)), depth)
    return product.build(steps, work)


def _conv(call: Spec) -> Build | None:
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    group, kernel, strides, dilations, pads = (call.attrs[k] for k in ("group", "kernel", "strides", "dilations", "pads"))
    channels = w.shape[1]
    if group != 1 or not isinstance(channels, int):
        return None
    rank = len(kernel)
    source, left, steps, work = Ref("in", 0), x, [], []  # type: ignore[var-annotated]
    inner = channels
    if not same(x.strides[1], 1) or not fours(channels):
        source, left, steps, work = _copy(x, (0, *range(2, rank + 2), 1), 1, pads)
        inner = -(-channels // 4) * 4
    corner: Dim = 0
    for k in range(rank):
        corner = corner - pads[k] * left.strides[2 + k]
    joined = dilations[-1] == 1 and same(left.strides[-1], inner)
    run = inner * kernel[-1] // 4 if joined else inner // 4
    taps = [(kernel[k], dilations[k] * left.strides[2 + k]) for k in range(rank - (1 if joined else 0))]
    taps = [t for t in taps if t[0] != 1]
    axes = [Axis(n, s * left.strides[2 + k], 0) for k, (n, s) in enumerate(zip(out.shape[2:], strides, strict=True))]
    axes.insert(0, Axis(x.shape[0], left.strides[0], 0))
    forms = conv.output_axes(len(x.shape), 1, w.shape[0])
    array, live = call.constants[1], None
    if inner != channels:
        import numpy as np
        live = np.tile(np.arange(inner) < channels, math.prod(kernel))
        fill = 128 if array.dtype == np.uint8 else 0
        array = np.pad(array, ((0, 0), (0, inner - channels), *((0, 0),) * rank), constant_values=fill)
    a = Ref(source.space, source.number, source.offset + corner)
    return Product(call, conv.weight_matrix(array, 1), a, axes, taps, run, forms, channels * math.prod(kernel), live).build(steps, work)


def _copy(x: Layout, order: tuple[int, ...], axis: int, pads: Any = ()) -> tuple[Ref, Layout, list[Step], list[Dim]]:
    """x with `axis` innermost and filled with zeros to a multiple of 4, halo included, in work memory."""
    rank = len(x.shape)
    halo: list[tuple[int, int]] = [(0, 0)] * rank
    for k in range(len(pads) // 2):
        halo[2 + k] = (pads[k], pads[len(pads) // 2 + k])
    wide = [n + before + after for n, (before, after) in zip(x.shape, halo, strict=True)]
    wide[axis] = (wide[axis] + 3) // 4 * 4
    strides: list[Dim] = [0] * rank
    step: Dim = 1
    for a in reversed(order):
        strides[a] = step
        step = step * wide[a]
    corner: Dim = 0
    for s, (before, _) in zip(strides, halo, strict=True):
        corner = corner + s * before
    source, target = g.Value(x.dtype, x.shape), g.Value(x.dtype, tuple(wide))
    places = [index(a) - dim(halo[a][0]) if halo[a][0] else index(a) for a in range(rank)]
    value = load(0, x.dtype, tuple(places))
    if wide[axis] != x.shape[axis]:
        value = guard(apply("less", index(axis), dim(x.shape[axis])), value, const(0, compute(x.dtype)))
    made = cpu.build(g.Map((source,), (target,), expr=value), (x,), (Layout(x.dtype, tuple(wide), tuple(strides)),))

    def placed(arg: Any) -> Any:
        return replace(arg, space="work", number=0) if isinstance(arg, Ref) and arg.space == "out" else arg
    steps = [replace(s, args=tuple(map(placed, s.args))) for s in made.steps]
    return Ref("work", 0, corner), Layout(x.dtype, x.shape, tuple(strides)), steps, [step]
