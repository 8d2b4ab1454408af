"""Call "conv_depthwise" as a nest: lanes along the channels, taps folded, weights laid channels-last."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gpuonnx.codegen import cpu
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.expr import Expr, cast, const, dim, folded, index, load, substitute
from gpuonnx.ir.types import compute
from gpuonnx.kernels.contract import Build, Epilogue, Layout, Packed, Ref, Spec


def build(call: Spec) -> Build:
    """x channels-last with a readable halo; group = channels, any multiplier."""
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    kernel, strides, dilations, pads = (call.attrs[k] for k in ("kernel", "strides", "dilations", "pads"))
    rank, dtype = len(kernel), compute(x.dtype)
    multiplier = floordiv(w.shape[0], x.shape[1])
    taps = [index(2 + rank + k) for k in range(rank)]
    channel = index(1) if isinstance(multiplier, int) and multiplier == 1 else index(1) // dim(multiplier)
    places = [index(2 + k) * dim(strides[k]) + taps[k] * dim(dilations[k]) - dim(pads[k]) for k in range(rank)]
    product = load(0, x.dtype, (index(0), channel, *places)) * load(1, w.dtype, (index(1), const(0, "ix"), *taps))
    ranges = (out.shape[0], out.shape[1], *out.shape[2:], *kernel)
    total = folded(0, 0, dtype)
    epilogue = call.epilogue or Epilogue(cast(load(0, dtype, tuple(map(index, range(2 + rank)))), dtype))

    def operand(e: Expr) -> Expr | None:
        if e.op != "load":
            return None
        return total if e.value == 0 else Expr("load", e.args, e.dtype, e.value + 1)
    stored = substitute(epilogue.expr, operand)
    values = [g.Value(v.dtype, v.shape) for v in (x, w, *epilogue.operands)]
    result = g.Value(out.dtype, out.shape)
    axes = tuple(map(index, range(2 + rank)))
    nest = g.Nest(tuple(values), (result,), ranges=ranges, over=frozenset(range(2 + rank, 2 + 2 * rank)),
                  stages=((g.Fold("sum", product),), (g.Store(0, axes, stored),)))
    layout, packed = _weights(w, call.constants.get(1))
    made = cpu.build(nest, (x, layout, *epilogue.operands), (out,))

    def placed(arg: Any) -> Any:
        if not isinstance(arg, Ref) or arg.space != "in":
            return arg
        if arg.number == 1 and packed:
            return replace(arg, space="packed", number=0)
        return replace(arg, space="extra", number=arg.number - 2) if arg.number > 1 else arg
    return replace(made, steps=tuple(replace(s, args=tuple(map(placed, s.args))) for s in made.steps), packed=packed)


def _weights(w: Layout, array: np.ndarray | None) -> tuple[Layout, tuple[Packed, ...]]:
    """Constant weights with the channels innermost."""
    if array is None:
        return w, ()
    channels, _, *taps = w.shape
    strides: list[Dim] = []
    step: Dim = channels
    for size in reversed(taps):
        strides.insert(0, step)
        step = step * size
    layout = Layout(w.dtype, w.shape, (1, 0, *strides))
    return layout, (Packed(("channels last",), lambda: np.ascontiguousarray(np.moveaxis(array[:, 0], 0, -1))),)
