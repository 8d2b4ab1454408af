"""Matrix products and convolutions as nests: for any layout and type, where no kernel of their own serves."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.expr import Expr, apply, cast, const, dim, folded, guard, index, load, substitute
from gpuonnx.ir.types import compute, kind
from gpuonnx.kernels.contract import Layout, Spec

NAMES = ("gemm", "conv", "gemm_integer", "conv_integer")
Plan = tuple[tuple[Dim, ...], int, Sequence[tuple[Expr, ...]], Sequence[Expr], Expr | None]


def nest(name: str, call: Spec, guarded: bool) -> g.Nest:
    """inputs: those of the Call that are present, then the epilogue's operands. `guarded`: padding is not in memory."""
    ranges, taps, places, zeros, inside = (_gemm if name.startswith("gemm") else _conv)(call, guarded)
    given = [k for k, v in enumerate(call.inputs) if v is not None]
    inputs = [v for v in call.inputs if v is not None]
    number = {k: n for n, k in enumerate(given)}
    first = call.inputs[0]
    assert first is not None
    dtype = compute(first.dtype) if kind(first.dtype) == "f" else "i32"

    def element(position: int) -> Expr:
        layout = call.inputs[position]
        assert layout is not None
        value = cast(load(number[position], layout.dtype, places[position]), dtype)
        zero = call.inputs[2 + position] if len(call.inputs) > 2 + position else None
        if zero is None:
            return value
        at = () if not zero.shape else (zeros[position],)
        return value - cast(load(number[2 + position], zero.dtype, at), dtype)
    product = element(0) * element(1)
    if inside is not None:
        product = guard(inside, product, const(0, dtype))
    total = folded(0, 0, dtype)
    stored, operands = total, []
    if call.epilogue is not None:
        stored, operands = substitute(call.epilogue.expr, _operand(total, len(inputs))), list(call.epilogue.operands)
    rank = len(ranges) - taps
    values = tuple(g.Value(v.dtype, v.shape) for v in (*inputs, *operands))
    out = g.Value(call.outputs[0].dtype, call.outputs[0].shape)
    return g.Nest(values, (out,), ranges=ranges, over=frozenset(range(rank, len(ranges))),
                  stages=((g.Fold("sum", product),), (g.Store(0, tuple(map(index, range(rank))), stored),)))


def _operand(total: Expr, count: int) -> Callable[[Expr], Expr | None]:
    def change(e: Expr) -> Expr | None:
        if e.op != "load":
            return None
        return total if e.value == 0 else Expr("load", e.args, e.dtype, e.value - 1 + count)
    return change


def _gemm(call: Spec, guarded: bool) -> Plan:
    a, b, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert a is not None and b is not None
    rank = len(out.shape)
    axes = tuple(map(index, range(rank + 1)))

    def lead(layout: Layout) -> tuple[Expr, ...]:
        count = len(layout.shape) - 2
        return axes[rank - 2 - count:rank - 2]
    places = ((*lead(a), axes[rank - 2], axes[rank]), (*lead(b), axes[rank], axes[rank - 1]))
    return (*out.shape, a.shape[-1]), 1, places, (axes[rank - 2], axes[rank - 1]), None


def _conv(call: Spec, guarded: bool) -> Plan:
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    kernel, strides, dilations, pads, group = (call.attrs[k] for k in ("kernel", "strides", "dilations", "pads", "group"))
    rank = len(kernel)
    each = floordiv(w.shape[0], group)
    channel, taps = index(2 + rank), [index(3 + rank + k) for k in range(rank)]
    read = channel if group == 1 else index(1) // dim(each) * dim(w.shape[1]) + channel
    at = [index(2 + k) * dim(strides[k]) + taps[k] * dim(dilations[k]) - dim(pads[k]) for k in range(rank)]
    inside: Expr | None = None
    for k in range(rank if guarded else 0):
        if pads[k] or pads[rank + k]:
            here = apply("and", apply("less_equal", dim(0), at[k]), apply("less", at[k], dim(x.shape[2 + k])))
            inside = here if inside is None else apply("and", inside, here)
    ranges = (*out.shape, w.shape[1], *kernel)
    return ranges, 1 + rank, ((index(0), read, *at), (index(1), channel, *taps)), (const(0, "ix"), index(1)), inside
