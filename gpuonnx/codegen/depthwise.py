"""Calls "conv_depthwise", and "conv_integer" of one channel a group, as a nest: lanes along the channels, taps folded, weights laid
channels-last."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gpuonnx.codegen import cpu
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.expr import Expr, cast, const, dim, folded, index, load, substitute
from gpuonnx.ir.types import compute, kind, numpy_dtype
from gpuonnx.kernels.contract import Build, Epilogue, Layout, Packed, Ref, Spec


def serves(call: Spec) -> bool:
    """Whether every group of an integer convolution is one channel, and what is subtracted from the weights is known."""
    w = call.inputs[1]
    return w is not None and isinstance(w.shape[1], int) and w.shape[1] == 1 and 1 in call.constants and (
        len(call.inputs) < 4 or call.inputs[3] is None or 3 in call.constants)


def build(call: Spec) -> Build:
    """x channels-last with a readable halo; group = channels, any multiplier."""
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    kernel, strides, dilations, pads = (call.attrs[k] for k in ("kernel", "strides", "dilations", "pads"))
    rank, dtype = len(kernel), compute(x.dtype) if kind(x.dtype) == "f" else "i32"
    multiplier = floordiv(w.shape[0], x.shape[1])
    taps = [index(2 + rank + k) for k in range(rank)]
    channel = index(1) if isinstance(multiplier, int) and multiplier == 1 else index(1) // dim(multiplier)
    places = [index(2 + k) * dim(strides[k]) + taps[k] * dim(dilations[k]) - dim(pads[k]) for k in range(rank)]
    layout, packed = _weights(w, call.constants.get(1), call.constants.get(3))
    zero = call.inputs[2] if len(call.inputs) > 2 else None
    element = cast(load(0, x.dtype, (index(0), channel, *places)), dtype)
    if zero is not None:
        element = element - cast(load(2, zero.dtype, tuple(const(0, "ix") for _ in zero.shape)), dtype)
    product = element * cast(load(1, layout.dtype, (index(1), const(0, "ix"), *taps)), dtype)
    ranges = (out.shape[0], out.shape[1], *out.shape[2:], *kernel)
    total = folded(0, 0, dtype)
    epilogue = call.epilogue or Epilogue(cast(load(0, dtype, tuple(map(index, range(2 + rank)))), dtype))
    inputs = (x, layout) if zero is None else (x, layout, zero)

    def operand(e: Expr) -> Expr | None:
        if e.op != "load":
            return None
        return total if e.value == 0 else Expr("load", e.args, e.dtype, e.value - 1 + len(inputs))
    stored = substitute(epilogue.expr, operand)
    values = [g.Value(v.dtype, v.shape) for v in (*inputs, *epilogue.operands)]
    result = g.Value(out.dtype, out.shape)
    axes = tuple(map(index, range(2 + rank)))
    nest = g.Nest(tuple(values), (result,), ranges=ranges, over=frozenset(range(2 + rank, 2 + 2 * rank)),
                  stages=((g.Fold("sum", product),), (g.Store(0, axes, stored),)))
    made = cpu.build(nest, (*inputs, *epilogue.operands), (out,))

    def placed(arg: Any) -> Any:
        if not isinstance(arg, Ref) or arg.space != "in":
            return arg
        if arg.number == 1 and packed:
            return replace(arg, space="packed", number=0)
        return replace(arg, space="extra", number=arg.number - len(inputs)) if arg.number >= len(inputs) else arg
    return replace(made, steps=tuple(replace(s, args=tuple(map(placed, s.args))) for s in made.steps), packed=packed)


def _weights(w: Layout, array: np.ndarray | None, zero: np.ndarray | None) -> tuple[Layout, tuple[Packed, ...]]:
    """Constant weights with the channels innermost; integers as int16, less their zero point."""
    if array is None:
        return w, ()
    channels, _, *taps = w.shape
    strides: list[Dim] = []
    step: Dim = channels
    for size in reversed(taps):
        strides.insert(0, step)
        step = step * size
    dtype = w.dtype if kind(w.dtype) == "f" else "i16"

    def laid() -> np.ndarray:
        wide = array.astype(numpy_dtype(dtype))
        if zero is not None:
            wide = wide - zero.astype(wide.dtype).reshape(-1, *(1,) * (wide.ndim - 1))
        return np.ascontiguousarray(np.moveaxis(wide[:, 0], 0, -1))
    return Layout(dtype, w.shape, (1, 0, *strides)), (Packed(("channels last", dtype), laid),)
