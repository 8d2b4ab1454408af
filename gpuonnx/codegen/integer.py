"""Calls "gemm_integer" and "conv_integer" as nests: exact int32 sums with zero points, for any layout."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gpuonnx.codegen import plain
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.expr import Expr, cast, const, dim, folded, index, load, substitute
from gpuonnx.kernels.contract import Build, Layout, Ref, Spec


def build(name: str, call: Spec) -> Build:
    """`name` is the Call's kernel; the epilogue becomes the store of the nest."""
    ranges, taps, places, zeros = (_gemm if name == "gemm_integer" else _conv)(call)
    given = [(k, v) for k, v in enumerate(call.inputs) if v is not None]
    number = {k: n for n, (k, _) in enumerate(given)}
    inputs = [v for _, v in given]

    def element(position: int) -> Expr:
        layout = call.inputs[position]
        assert layout is not None
        value = cast(load(number[position], layout.dtype, places[position]), "i32")
        zero = call.inputs[2 + position] if len(call.inputs) > 2 + position else None
        if zero is None:
            return value
        at = () if not zero.shape else (zeros[position],)
        return value - cast(load(number[2 + position], zero.dtype, at), "i32")
    total = folded(0, 0, "i32")
    epilogue, operands = total, []
    if call.epilogue is not None:
        epilogue, operands = substitute(call.epilogue.expr, _operand(total, len(inputs))), list(call.epilogue.operands)
    rank = len(ranges) - taps
    values = tuple(g.Value(v.dtype, v.shape) for v in (*inputs, *operands))
    out = g.Value(call.outputs[0].dtype, call.outputs[0].shape)
    nest = g.Nest(values, (out,), ranges=ranges, over=frozenset(range(rank, len(ranges))),
                  stages=((g.Fold("sum", element(0) * element(1)),), (g.Store(0, tuple(map(index, range(rank))), epilogue),)))
    made = plain.build(nest, (*inputs, *operands), call.outputs)

    def placed(arg: Any) -> Any:
        if not isinstance(arg, Ref) or arg.space != "in":
            return arg
        if arg.number >= len(inputs):
            return replace(arg, space="extra", number=arg.number - len(inputs))
        return replace(arg, number=given[arg.number][0])
    return replace(made, steps=tuple(replace(s, args=tuple(map(placed, s.args))) for s in made.steps))


def _operand(total: Expr, count: int) -> Callable[[Expr], Expr | None]:
    def change(e: Expr) -> Expr | None:
        if e.op != "load":
            return None
        return total if e.value == 0 else Expr("load", e.args, e.dtype, e.value - 1 + count)
    return change


Plan = tuple[tuple[Dim, ...], int, Sequence[tuple[Expr, ...]], Sequence[Expr]]


def _gemm(call: Spec) -> Plan:
    a, b, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert a is not None and b is not None
    rank = len(out.shape)
    axes = tuple(map(index, range(rank + 1)))

    def lead(layout: Layout) -> tuple[Expr, ...]:
        count = len(layout.shape) - 2
        return axes[rank - 2 - count:rank - 2]
    places = ((*lead(a), axes[rank - 2], axes[rank]), (*lead(b), axes[rank], axes[rank - 1]))
    return (*out.shape, a.shape[-1]), 1, places, (axes[rank - 2], axes[rank - 1])


def _conv(call: Spec) -> Plan:
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    kernel, strides, dilations, pads, group = (call.attrs[k] for k in ("kernel", "strides", "dilations", "pads", "group"))
    rank = len(kernel)
    each = floordiv(w.shape[0], group)
    channel, taps = index(2 + rank), [index(3 + rank + k) for k in range(rank)]
    read = channel if group == 1 else index(1) // dim(each) * dim(w.shape[1]) + channel
    at = [index(2 + k) * dim(strides[k]) + taps[k] * dim(dilations[k]) - dim(pads[k]) for k in range(rank)]
    ranges = (*out.shape, w.shape[1], *kernel)
    return ranges, 1 + rank, ((index(0), read, *at), (index(1), channel, *taps)), (const(0, "ix"), index(1))
