"""Casts of reals that are held within an integer type already (quantisation): the bounds and the cast are one, not twice the same."""
from __future__ import annotations

from typing import Any

from gpuonnx.ir.expr import Expr
from gpuonnx.ir.types import kind, size

NARROW = 4


def bounded(e: Expr) -> tuple[Expr, float, float] | None:
    """(x, low, high) of a cast of min(max(x, low), high) to a narrow integer type that holds both."""
    if e.op != "cast" or kind(e.dtype) not in "iu" or e.dtype == "ix" or size(e.dtype) >= NARROW or kind(e.args[0].dtype) != "f":
        return None
    upper = _constant(e.args[0], "min")
    lower = _constant(upper[0], "max") if upper is not None else None
    if upper is None or lower is None:
        return None
    bits = 8 * size(e.dtype)
    least, most = (0, (1 << bits) - 1) if kind(e.dtype) == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)
    return (lower[0], lower[1], upper[1]) if least <= lower[1] <= upper[1] <= most else None


def _constant(e: Expr, op: str) -> tuple[Expr, float] | None:
    if e.op != op:
        return None
    for x, other in (e.args, e.args[::-1]):
        if other.op == "const":
            return x, float(other.value)
    return None


def emit(b: Any, x: Any, low: float, high: float, target: str) -> Any:
    """As the cast of the bounded value: towards zero, NaN as 0."""
    from gpuonnx.kernels.cpu.lanes import I32
    from gpuonnx.kernels.cpu.scalars import number
    if low != 0:
        x = b.select(b.fcmp_ordered("ord", x, x), x, number(b, 0, x))
    x = b.pick("<", b.pick(">", x, number(b, low, x)), number(b, high, x))
    return b.trunc(b.fptosi(x, b.vector(I32)), b.vector(b.element(target)))
