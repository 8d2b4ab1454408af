"""Casts of reals that are held within an integer type already (quantisation): the bounds and the cast are one, not twice the same,
and what was rounded before is rounded by the conversion."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpuonnx.ir.expr import Expr
from gpuonnx.ir.types import kind, size

NARROW = 4
BEYOND = float(1 << 30)


@dataclass(frozen=True)
class Bounded:
    """cast(min(max(x, low), high)) to a narrow integer type that holds both."""

    x: Expr
    low: int
    high: int

    def rounded(self) -> tuple[Expr, Expr | None] | None:
        """(y, z) where x is rint(y) or rint(y) + z with an integer z of a narrow type; in 32 bits."""
        x, zero = self.x, None
        if x.op == "add":
            x, zero = x.args if x.args[0].op == "rint" else x.args[::-1]
            if not _whole(zero):
                return None
        return (x.args[0], zero) if x.op == "rint" and x.dtype == "f32" else None


def _whole(e: Expr) -> bool:
    if e.op == "const":
        return abs(float(e.value)) < 1 << 16 and float(e.value).is_integer()
    return e.op == "cast" and e.args[0].dtype in ("u8", "i8", "u16", "i16")


def bounded(e: Expr) -> Bounded | None:
    """The parts of a cast of min(max(x, low), high), where it is one."""
    if e.op != "cast" or kind(e.dtype) not in "iu" or e.dtype == "ix" or size(e.dtype) >= NARROW or kind(e.args[0].dtype) != "f":
        return None
    upper = _constant(e.args[0], "min")
    lower = _constant(upper[0], "max") if upper is not None else None
    if upper is None or lower is None or not upper[1].is_integer() or not lower[1].is_integer():
        return None
    bits = 8 * size(e.dtype)
    least, most = (0, (1 << bits) - 1) if kind(e.dtype) == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)
    return Bounded(lower[0], int(lower[1]), int(upper[1])) if least <= lower[1] <= upper[1] <= most else None


def _constant(e: Expr, op: str) -> tuple[Expr, float] | None:
    if e.op != op:
        return None
    for x, other in (e.args, e.args[::-1]):
        if other.op == "const":
            return x, float(other.value)
    return None


def emit(b: Any, held: Bounded, value: Callable[[Expr], Any], target: str) -> Any:
    """As the cast of the bounded value: towards zero, NaN as 0."""
    return b.held_within(words(b, held, value), held.low, held.high, b.element(target))


def words(b: Any, held: Bounded, value: Callable[[Expr], Any]) -> Any:
    """The same as i32, which the bounds may still cut; `value` gives the vector of an expression."""
    from gpuonnx.kernels.cpu.lanes import I32
    from gpuonnx.kernels.cpu.scalars import number
    rounded = held.rounded()
    if rounded is None:
        x = value(held.x)
        if held.low != 0:
            x = b.select(b.fcmp_ordered("ord", x, x), x, number(b, 0, x))
        return b.fptosi(b.pick("<", b.pick(">", x, number(b, held.low, x)), number(b, held.high, x)), b.vector(I32))
    real, zero = rounded
    y = value(real)
    x = b.pick("<", number(b, BEYOND, y), y)
    if held.low != 0:
        x = b.pick(">", number(b, -BEYOND, y), x)
    whole = b.intrinsic(f"llvm.lrint.v{b.width}i32.v{b.width}f32", x, result=b.vector(I32), overload=False)
    if zero is not None:
        inner = zero if zero.op == "const" else zero.args[0]
        whole = b.add(whole, b.const(zero.value, "i32") if inner is zero else b.convert(value(inner), inner.dtype, "i32"))
    # x86 converts NaN to the least integer, which the bounds make 0 where they begin there
    if held.low == 0 and b.features.get("sse2"):
        return whole
    return b.select(b.fcmp_ordered("ord", y, y), whole, b.const(0, "i32"))
