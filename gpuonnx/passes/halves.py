"""An attention of widened halves as one of the halves themselves, for devices whose products take them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpuonnx.ir import graph as g
from gpuonnx.ir.affine import affine
from gpuonnx.ir.expr import Expr, const, index, load, substitute
from gpuonnx.passes.rewrite import merged

HALVES = ("f16", "bf16")
OPERANDS = 3


@dataclass(frozen=True)
class Widened:
    """A float32 value that is `value`, of halves, times `factor`; `views` make the value."""

    value: g.Value
    factor: float
    views: tuple[g.View, ...]


def in_halves(call: g.Call, makers: Mapping[g.Value, g.Node]) -> tuple[tuple[g.View, ...], g.Call] | None:
    """The views and the Call that take the place of an attention in float32 whose operands were widened from the type that its result is rounded
    to. Factors of the first two go to the scores, which reassociates."""
    stored = call.out.dtype
    if stored not in HALVES or any(v.dtype != "f32" for v in call.inputs[:OPERANDS]):
        return None
    found = [widened(v, stored, makers) for v in call.inputs[:OPERANDS]]
    first, second, third = found
    if first is None or second is None or third is None or third.factor != 1:
        return None
    rows: g.Rows = call.attrs["rows"]
    factor, here = first.factor * second.factor, load(0, "f32", tuple(map(index, range(call.out.rank))))
    if factor != 1:
        scaled = here * const(factor)
        before = rows.score if rows.score is not None else here
        rows = replace(rows, score=substitute(before, lambda e: scaled if e is here else None))
    views = (*first.views, *second.views, *third.views)
    inputs = (first.value, second.value, third.value, *call.inputs[OPERANDS:])
    return views, replace(call, inputs=inputs, attrs={**call.attrs, "rows": rows})


def widened(value: g.Value, stored: str, makers: Mapping[g.Value, g.Node]) -> Widened | None:
    """What `value` is of halves, through the Views that made it; a Map may scale them by a constant."""
    maker = makers.get(value)
    if isinstance(maker, g.View):
        inner = widened(maker.inputs[0], stored, makers)
        if inner is None:
            return None
        made = g.View((inner.value,), (g.Value(stored, value.shape),), maker.index, origins=merged(maker.origins))
        return Widened(made.out, inner.factor, (*inner.views, made))
    if not isinstance(maker, g.Map):
        return None
    source, factor = _scaled(maker.expr)
    if source.op != "load" or maker.inputs[source.value].dtype != stored or any(affine(i) is None for i in source.args):
        return None
    made = g.View((maker.inputs[source.value],), (g.Value(stored, value.shape),), source.args, origins=maker.origins)
    return Widened(made.out, factor, (made,))


def _scaled(e: Expr) -> tuple[Expr, float]:
    """`e` as an expression and the constant that it is multiplied by."""
    if e.op == "mul" and e.dtype == "f32":
        for whole, scale in (e.args, e.args[::-1]):
            if scale.op == "const":
                return whole, float(scale.value)
    return e, 1.0
