"""Piecewise index expressions as they are in the interior of the lanes' axis, where clamps, reflections and paddings do nothing."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuonnx.ir.affine import Affine, affine
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, apply, guard, postorder, rewrite

LEAST_PERIOD = 32


def settle(roots: Sequence[Expr], lane: int, over: frozenset[int]) -> tuple[tuple[Expr, ...], tuple[Affine, ...]]:
    """(roots as they are there, what is not negative there). Of two bounds the one that grows fastest along the lanes is taken,
    a remainder is what is divided, or that less the divisor, whichever begins nearer to 0; a guard holds."""
    settler = Settler(lane, over)
    out = rewrite(tuple(roots), settler.change)
    return out, tuple(settler.bounds.values())


class Settler:
    """`bounds`: what is relied on so far."""

    def __init__(self, lane: int, over: frozenset[int]) -> None:
        self.lane, self.over = lane, over
        self.bounds: dict[tuple[object, ...], Affine] = {}

    def form(self, e: Expr) -> Affine | None:
        return affine(e, lambda x: is_uniform(x, self.lane) and not any(_mentions(x, a) for a in self.over))

    def holds(self, bound: Affine | None) -> bool:
        """Whether `bound` tells lanes apart, and is known to hold from now on."""
        if bound is None or not _slope(bound, self.lane):
            return False
        key = _identity(bound.offset), *sorted((id(a) if isinstance(a, Expr) else a, _identity(c)) for a, c in bound.terms.items())
        self.bounds[key] = bound
        return True

    def change(self, x: Expr) -> Expr:
        if x.op == "guard":
            conditions = conjuncts(x.args[0])
            rest = [c for c in conditions if not self.holds(not_negative(c, self.form))]
            return x if len(rest) == len(conditions) else guarded(rest, x)
        if x.dtype != "ix" or x.op not in ("min", "max", "floormod"):
            return x
        left, right = map(self.form, x.args)
        if left is None or right is None:
            return x
        return self.remainder(x, left, right) if x.op == "floormod" else self.extreme(x, left, right)

    def remainder(self, x: Expr, left: Affine, right: Affine) -> Expr:
        small = not right.terms and isinstance(right.offset, int) and right.offset < LEAST_PERIOD
        if small or self.lane in right.terms or not _slope(left, self.lane):
            return x
        one_less = left.plus(right, -1)
        turned = isinstance(one_less.offset, int) and not (isinstance(left.offset, int) and abs(left.offset) <= abs(one_less.offset))
        rest = one_less if turned else left
        self.holds(rest)
        self.holds(right.plus(rest, -1).plus(Affine(-1)))
        return x.args[0] - x.args[1] if turned else x.args[0]

    def extreme(self, x: Expr, left: Affine, right: Affine) -> Expr:
        a, b = left.terms.get(self.lane, 0), right.terms.get(self.lane, 0)
        if not isinstance(a, int) or not isinstance(b, int) or a == b:
            return x
        taken, other = (left, right) if a > b else (right, left)
        self.holds(taken.plus(other, -1) if x.op == "max" else other.plus(taken, -1))
        return x.args[0 if a > b else 1]


def is_uniform(e: Expr, lane: int) -> bool:
    """Whether an index is made from sizes and other axes than that of the lanes."""
    return e.dtype == "ix" and not any(x.op in ("load", "folded", "guard") or x.op == "index" and x.value == lane for x in e.walk())


def _identity(d: Dim) -> int:
    return d if isinstance(d, int) else -id(d)


def _slope(bound: Affine, lane: int) -> int:
    slope = bound.terms.get(lane, 0)
    return slope if isinstance(slope, int) else 0


def conjuncts(e: Expr) -> list[Expr]:
    """What must hold, all of it, for `e` to."""
    return conjuncts(e.args[0]) + conjuncts(e.args[1]) if e.op == "and" else [e]


def guarded(conditions: Sequence[Expr], x: Expr) -> Expr:
    """The guard `x` under these conditions instead."""
    if not conditions:
        return x.args[1]
    condition = conditions[0]
    for c in conditions[1:]:
        condition = apply("and", condition, c)
    return guard(condition, x.args[1], x.args[2])


def not_negative(c: Expr, form: Callable[[Expr], Affine | None] = affine) -> Affine | None:
    """g such that the comparison of indices `c` is g >= 0."""
    if c.op not in ("less", "less_equal", "greater", "greater_equal"):
        return None
    low, high = map(form, c.args if c.op.startswith("less") else c.args[::-1])
    if low is None or high is None:
        return None
    return high.plus(low, -1).plus(Affine(0 if c.op.endswith("equal") else -1))


def clips(e: Expr, over: frozenset[int], beside: set[int], identity: float) -> tuple[Expr, list[tuple[int, Affine]]]:
    """(`e`, a folded value, without those conditions that only keep a loop over one folded axis short, (axis, what is not negative))."""
    if e.op != "guard" or e.args[2].op != "const" or e.args[2].value != identity:
        return e, []
    loads = [x for x in postorder(e.args[1:2]) if x.op == "load"]
    rest, found = [], []
    for c in conjuncts(e.args[0]):
        bound = not_negative(c)
        axes = over & set(bound.terms) if bound is not None and not beside & set(bound.terms) else set()
        axis = next(iter(axes), -1)
        if bound is None or len(axes) != 1 or not _slope(bound, axis) or not all(_mentions(x, axis) for x in loads):
            rest.append(c)
        else:
            found.append((axis, bound))
    return (guarded(rest, e), found) if found else (e, [])


def _mentions(e: Expr, axis: int) -> bool:
    return any(x.op == "index" and x.value == axis for x in e.walk())
