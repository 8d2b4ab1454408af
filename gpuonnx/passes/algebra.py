"""Simpler expressions with the same value: constants fold, casts join, index arithmetic becomes canonical.

Floating point changes only where IEEE 754 gives the very same result, with one exception: x**2 and x**3 become products.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from gpuonnx.ir import dims as d
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, const, dim
from gpuonnx.ir.types import INDEX, kind, numpy_dtype, size
from gpuonnx.passes.linear import Linear, Ranges
from gpuonnx.passes.rewrite import pending
from gpuonnx.passes.views import one

Rule = Callable[["Algebra", Expr], "Expr | None"]
RULES: dict[str, list[Rule]] = {}
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(f: Rule) -> Rule:
        for name in names:
            RULES.setdefault(name, []).append(f)
        return f
    return add


class Algebra:
    """Simplifies expressions over axes of these sizes; remembers what it has done."""

    def __init__(self, sizes: Sequence[Dim] = ()) -> None:
        self.ranges = Ranges(sizes)
        self.done: dict[Expr, Expr] = {}

    def simplify(self, e: Expr) -> Expr:
        done = self.done
        for x in pending(e, done):
            args = tuple([done[a] for a in x.args])
            y = self.step(x if args == x.args else Expr(x.op, args, x.dtype, x.value))
            done[x] = y
            done[y] = y
        return done[e]

    def step(self, x: Expr) -> Expr:
        for _ in range(8):
            y = self._once(x)
            if y is None or y is x:
                return x
            x = y
        return x

    def _once(self, x: Expr) -> Expr | None:
        if x.dtype == INDEX and x.op in ("add", "sub", "mul", "neg"):
            return self.ranges.form(x).expr()
        if x.args and all([a.op == "const" for a in x.args]) and x.op != "load":
            folded = constant_result(x)
            if folded is not None:
                return folded
        for f in RULES.get(x.op, ()):
            y = f(self, x)
            if y is not None and y is not x:
                return y
        return None


class Algebras:
    """One Algebra for each tuple of ranges."""

    def __init__(self) -> None:
        self._by_sizes: dict[tuple[Any, ...], Algebra] = {}

    def over(self, sizes: Sequence[Dim]) -> Algebra:
        key = tuple([s if isinstance(s, int) else id(s) for s in sizes])
        found = self._by_sizes.get(key)
        if found is None:
            found = self._by_sizes[key] = Algebra(sizes)
        return found


@cache
def _scalars() -> Any:
    from gpuonnx.ir.scalar import SCALARS
    return SCALARS


def constant_result(x: Expr) -> Expr | None:
    """A scalar function of constants, by the NumPy column of the table."""
    if kind(x.dtype) in "sc" or any(kind(a.dtype) in "sc" for a in x.args):
        return None
    values = [np.asarray(a.value, numpy_dtype(a.dtype)) for a in x.args]
    with np.errstate(all="ignore"):
        if x.op == "cast":
            return const(_plain(cast_array(values[0], x.dtype)), x.dtype)
        row = _scalars().get(x.op)
        if row is None or row.numpy is None or "philox" in x.op or x.op == "round" and x.value is not None:
            return None
        if x.dtype == INDEX and x.op in ("floordiv", "floormod") and values[1] == 0:
            return None
        try:
            return const(_plain(np.asarray(row.numpy(*values)).astype(numpy_dtype(x.dtype))), x.dtype)
        except (TypeError, ValueError, OverflowError):
            return None


def cast_array(array: np.ndarray, dtype: str) -> np.ndarray:
    """NumPy's cast, but floats saturate at the ends of an integer type and NaN gives 0."""
    to = numpy_dtype(dtype)
    if array.dtype.kind == "f" and to.kind in "iu":
        info = np.iinfo(to)
        clean = np.nan_to_num(np.trunc(array.astype(np.float64)), nan=0.0, posinf=math.inf, neginf=-math.inf)
        high = clean >= float(info.max)
        low = clean <= float(info.min)
        middle = np.where(high | low, 0.0, clean).astype(to)
        return np.where(high, to.type(info.max), np.where(low, to.type(info.min), middle)).astype(to)
    return array.astype(to)


def _plain(array: np.ndarray) -> Any:
    return array.item()


def is_const(e: Expr, *values: float) -> bool:
    return e.op == "const" and not isinstance(e.value, str) and e.value in values


def exact(e: Expr) -> bool:
    """Whether arithmetic in the type of `e` is exact modulo its width (integers)."""
    return kind(e.dtype) in "iu"


@rule("index")
def _single(self: Algebra, x: Expr) -> Expr | None:
    sizes = self.ranges.sizes
    return dim(0) if x.value < len(sizes) and one(sizes[x.value]) else None


@rule("dim")
def _number(self: Algebra, x: Expr) -> Expr | None:
    return dim(x.value) if isinstance(x.value, int) else None


@rule("where", "guard")
def _select(self: Algebra, x: Expr) -> Expr | None:
    condition, a, b = x.args
    if condition.op == "const":
        return a if condition.value else b
    if a is b:
        return a
    if condition.op == "not" and x.op == "where":
        return Expr("where", (condition.args[0], b, a), x.dtype)
    return None


@rule("and", "or")
def _logic(self: Algebra, x: Expr) -> Expr | None:
    absorbing = x.op == "or"
    for a, b in (x.args, x.args[::-1]):
        if a.op == "const":
            return a if bool(a.value) == absorbing else b
    return x.args[0] if x.args[0] is x.args[1] else None


@rule("not", "neg")
def _twice(self: Algebra, x: Expr) -> Expr | None:
    return x.args[0].args[0] if x.args[0].op == x.op else None


@rule("add")
def _add(self: Algebra, x: Expr) -> Expr | None:
    for a, b in (x.args, x.args[::-1]):
        if b.op == "const" and (exact(x) and b.value == 0 or kind(x.dtype) == "f" and _minus_zero(b.value)):
            return a
    return None


def _minus_zero(value: float) -> bool:
    return value == 0 and math.copysign(1, value) < 0


@rule("sub")
def _sub(self: Algebra, x: Expr) -> Expr | None:
    a, b = x.args
    if is_const(b, 0) and (exact(x) or not _minus_zero(b.value)):
        return a
    return const(0, x.dtype) if a is b and exact(x) else None


@rule("mul")
def _mul(self: Algebra, x: Expr) -> Expr | None:
    for a, b in (x.args, x.args[::-1]):
        if is_const(b, 1) and x.dtype != "bool":
            return a
        if is_const(b, 0) and exact(x):
            return b
        if is_const(b, -1) and kind(x.dtype) in "fi":
            return Expr("neg", (a,), x.dtype)
    return None


@rule("div", "truncdiv")
def _div(self: Algebra, x: Expr) -> Expr | None:
    a, b = x.args
    if is_const(b, 1):
        return a
    if b.op == "const" and kind(x.dtype) == "f" and b.value and math.isfinite(b.value):
        fraction, exponent = math.frexp(b.value)
        if abs(fraction) == 0.5 and abs(exponent) < 100:
            return Expr("mul", (a, const(1 / b.value, x.dtype)), x.dtype)
    return None


@rule("pow")
def _pow(self: Algebra, x: Expr) -> Expr | None:
    a, b = x.args
    if kind(x.dtype) != "f" or a.dtype != x.dtype or b.op != "const":
        return None
    if b.value == 1:
        return a
    square = Expr("mul", (a, a), x.dtype)
    return square if b.value == 2 else Expr("mul", (square, a), x.dtype) if b.value == 3 else None


@rule("min", "max", "minimum", "maximum")
def _extreme(self: Algebra, x: Expr) -> Expr | None:
    a, b = x.args
    if a is b:
        return a
    if x.dtype != INDEX:
        return None
    gap = self.ranges.form(a).plus(self.ranges.form(b), -1)
    bigger = x.op.startswith("max")
    if self.ranges.proved(gap):
        return a if bigger else b
    if self.ranges.proved(gap.scaled(-1)):
        return b if bigger else a
    return None


@rule(*COMPARISONS)
def _compare(self: Algebra, x: Expr) -> Expr | None:
    a, b = x.args
    if a.dtype != INDEX:
        return None
    ranges = self.ranges
    gap = ranges.form(b).plus(ranges.form(a), -1)
    if x.op in ("greater", "greater_equal"):
        gap = gap.scaled(-1)
    match x.op:
        case "less" | "greater": yes, no = _minus_one(gap), gap.scaled(-1)
        case "less_equal" | "greater_equal": yes, no = gap, _minus_one(gap.scaled(-1))
        case _: return _equal(ranges, gap, x.op == "equal")
    return const(True, "bool") if ranges.proved(yes) else const(False, "bool") if ranges.proved(no) else None


def _minus_one(f: Linear) -> Linear:
    return f.plus(Linear(-1))


def _equal(ranges: Ranges, gap: Linear, wanted: bool) -> Expr | None:
    if not gap.terms and isinstance(gap.offset, int):
        return const((gap.offset == 0) == wanted, "bool")
    if ranges.proved(_minus_one(gap)) or ranges.proved(_minus_one(gap.scaled(-1))):
        return const(not wanted, "bool")
    return None


@rule("floordiv", "floormod")
def _quotient(self: Algebra, x: Expr) -> Expr | None:
    if x.dtype != INDEX or x.args[1].op not in ("const", "dim"):
        return None
    by: Dim = x.args[1].value
    form = self.ranges.form(x.args[0])
    parts = self.ranges.divided(form, by)
    if parts is None:
        return None
    q, r = parts
    inside = self.ranges.within(r, by)
    if x.op == "floormod":
        if inside:
            return r.expr()
        return Expr("floormod", (r.expr(), x.args[1]), INDEX) if q != Linear(0) else None
    if inside:
        return q.expr()
    if q != Linear(0):
        return q.plus(Linear(0, ((Expr("floordiv", (r.expr(), x.args[1]), INDEX), 1),))).expr()
    return _nested(self, x.args[0], by)


def _nested(self: Algebra, inner: Expr, by: Dim) -> Expr | None:
    """(x // a) // b == x // (a * b) for positive a and b."""
    if inner.op == "floordiv" and inner.args[1].op in ("const", "dim") and self.ranges.positive(inner.args[1].value):
        return Expr("floordiv", (inner.args[0], dim(inner.args[1].value * by)), INDEX)
    return None


@rule("cast")
def _cast(self: Algebra, x: Expr) -> Expr | None:
    inner = x.args[0]
    if inner.dtype == x.dtype:
        return inner
    if inner.op != "cast":
        return None
    source = inner.args[0]
    if not holds(inner.dtype, source.dtype):
        return None
    return source if source.dtype == x.dtype else Expr("cast", (source,), x.dtype)


@cache
def holds(wide: str, narrow: str) -> bool:
    """Whether every value of a compute type `narrow` is one of `wide`."""
    a, b = kind(wide), kind(narrow)
    if wide == narrow or b == "b" and a in "iuf":
        return True
    bits = 8 * size(narrow)
    match a + b:
        case "ii" | "uu": return 8 * size(wide) >= bits
        case "iu": return 8 * size(wide) > bits
        case "ff": return size(wide) >= size(narrow)
        case "fi" | "fu": return bits <= {"f32": 24, "f64": 53}.get(wide, 0)
    return False


@rule("round")
def _round(self: Algebra, x: Expr) -> Expr | None:
    if x.value is None:
        return None
    inner = x.args[0]
    return inner if inner.op == "round" and inner.value == x.value else None


def depends_on_sizes(e: Expr) -> bool:
    """Whether a Dim that is not a number stands in `e`."""
    return any(x.op == "dim" and not d.known(x.value) for x in e.walk())
