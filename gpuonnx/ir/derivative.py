"""Derivatives of the scalar functions, one row each beside their table, and of whole expressions in reverse.

A rule gets the adjoint g of the result, the result y and the arguments, and gives the adjoint of each argument (None: 0).
Where a function has a corner one of its slopes is taken: `max(v, 0)` has slope 0 at 0.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from gpuonnx.errors import UnsupportedOp
from gpuonnx.ir.expr import Expr, apply, cast, const, guard, postorder
from gpuonnx.ir.types import kind

Adjoints = tuple[Expr | None, ...]


def _where(condition: Expr, g: Expr) -> Expr:
    return apply("where", condition, g, const(0, g.dtype))


def _chosen(g: Expr, first: Expr) -> Adjoints:
    return _where(first, g), _where(apply("not", first), g)


def _power(g: Expr, y: Expr, a: Expr, b: Expr) -> Adjoints:
    base = _where(apply("not_equal", b, 0), g * b * apply("pow", a, b - 1))
    exponent = _where(apply("not_equal", a, 0), g * y * apply("log", a))
    return base, exponent


ASYMPTOTIC = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760, -1 / 12)
"""Of digamma, behind log x - 1 / 2x, by 1 / x**2 (Abramowitz and Stegun 6.3.18)."""


def _digamma(x: Expr) -> Expr:
    """The slope of lgamma: from the asymptotic series at x + 10, below 0 by reflection (6.3.5, 6.3.7)."""
    positive = apply("greater", x, 0)
    base = apply("where", positive, x, 1 - x)
    shifted = base + 10
    square = 1 / (shifted * shifted)
    series = const(0, x.dtype)
    for factor in reversed(ASYMPTOTIC):
        series = (series + factor) * square
    value = apply("log", shifted) - 0.5 / shifted + series
    for step in range(10):
        value = value - 1 / (base + step)
    inside = apply("where", positive, const(0.25, x.dtype), x)
    return apply("where", positive, value, value - math.pi / apply("tan", inside * math.pi))


RULES: dict[str, Callable[..., Adjoints]] = {
    "add": lambda g, y, a, b: (g, g),
    "sub": lambda g, y, a, b: (g, -g),
    "mul": lambda g, y, a, b: (g * b, g * a),
    "div": lambda g, y, a, b: (g / b, -g * y / b),
    "floormod": lambda g, y, a, b: (g, -g * apply("floor", a / b)),
    "truncmod": lambda g, y, a, b: (g, -g * apply("trunc", a / b)),
    "pow": _power,
    "max": lambda g, y, a, b: _chosen(g, apply("greater", a, b)),
    "min": lambda g, y, a, b: _chosen(g, apply("less", a, b)),
    "fmax": lambda g, y, a, b: _chosen(g, apply("greater", a, b)),
    "fmin": lambda g, y, a, b: _chosen(g, apply("less", a, b)),
    "where": lambda g, y, c, a, b: (None, *_chosen(g, c)),
    "guard": lambda g, y, c, a, b: (None, *_chosen(g, c)),
    "cast": lambda g, y, a: (cast(g, a.dtype),),
    "round": lambda g, y, a: (g,),
    "neg": lambda g, y, a: (-g,),
    "abs": lambda g, y, a: (g * apply("sign", a),),
    "relu": lambda g, y, a: (_where(apply("greater", a, 0), g),),
    "reciprocal": lambda g, y, a: (-g * y * y,),
    "sqrt": lambda g, y, a: (g * 0.5 / y,),
    "rsqrt": lambda g, y, a: (g * -0.5 * y * y * y,),
    "exp": lambda g, y, a: (g * y,),
    "exp2": lambda g, y, a: (g * y * math.log(2),),
    "expm1": lambda g, y, a: (g * (y + 1),),
    "log": lambda g, y, a: (g / a,),
    "log2": lambda g, y, a: (g / (a * math.log(2)),),
    "log10": lambda g, y, a: (g / (a * math.log(10)),),
    "log1p": lambda g, y, a: (g / (a + 1),),
    "sin": lambda g, y, a: (g * apply("cos", a),),
    "cos": lambda g, y, a: (-g * apply("sin", a),),
    "tan": lambda g, y, a: (g * (y * y + 1),),
    "asin": lambda g, y, a: (g / apply("sqrt", 1 - a * a),),
    "acos": lambda g, y, a: (-g / apply("sqrt", 1 - a * a),),
    "atan": lambda g, y, a: (g / (a * a + 1),),
    "sinh": lambda g, y, a: (g * apply("cosh", a),),
    "cosh": lambda g, y, a: (g * apply("sinh", a),),
    "tanh": lambda g, y, a: (g * (1 - y * y),),
    "asinh": lambda g, y, a: (g / apply("sqrt", a * a + 1),),
    "acosh": lambda g, y, a: (g / apply("sqrt", a * a - 1),),
    "atanh": lambda g, y, a: (g / (1 - a * a),),
    "erf": lambda g, y, a: (g * apply("exp", -(a * a)) * (2 / math.sqrt(math.pi)),),
    "lgamma": lambda g, y, a: (g * _digamma(a),),
    "sigmoid": lambda g, y, a: (g * y * (1 - y),),
}
FLAT = frozenset(("floordiv", "sign", "floor", "ceil", "trunc", "rint"))
"""Slope 0 wherever there is one."""
UNBOUNDED = frozenset(("mul", "div", "pow", "reciprocal", "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "asin", "acos",
                       "acosh", "atanh", "tan", "sinh", "cosh", "lgamma"))
"""Slopes that may be infinite, or that no number is, where the value of the function counts for nothing."""


def differentiable(e: Expr) -> bool:
    return kind(e.dtype) == "f" and e.op not in FLAT


def adjoints(root: Expr, seed: Expr, active: Callable[[Expr], bool]) -> Iterator[tuple[Expr, Expr, Expr | None]]:
    """For each load of `root` for which `active` holds: (load, its adjoint, the condition under which it is read; None: always).

    seed: the adjoint of `root`. Raises UnsupportedOp where an active value goes through a function without a rule."""
    order = postorder((root,))
    alive: set[Expr] = set()
    for e in order:
        if differentiable(e) and (active(e) if e.op == "load" else any(a in alive for a in e.args)):
            alive.add(e)
    reached = _conditions(root, order)
    totals: dict[Expr, Expr] = {root: seed} if root in alive else {}
    for e in reversed(order):
        g = totals.get(e)
        if g is None:
            continue
        if e.op == "load":
            yield e, g, reached[e]
            continue
        for a, part in zip(e.args, _parts(e, g), strict=True):
            if a in alive and part is not None:
                inside = reached[e]
                part = part if inside is None else guard(inside, part, const(0, part.dtype))
                totals[a] = totals[a] + part if a in totals else part


def _parts(e: Expr, g: Expr) -> Adjoints:
    rule = RULES.get(e.op)
    if rule is None:
        raise UnsupportedOp(f"there is no derivative of {e.op}")
    parts = rule(g, e, *e.args)
    if e.op not in UNBOUNDED or e.op in ("mul", "div") and e.args[1].op == "const":
        return parts
    return tuple(None if part is None else _nothing_stays_nothing(g, part) for part in parts)


def _nothing_stays_nothing(g: Expr, part: Expr) -> Expr:
    """0 instead of 0 * infinity: what a choice left out has no part in the slope."""
    lost = apply("and", apply("equal", g, 0), apply("isnan", part))
    return apply("where", lost, const(0, part.dtype), part)


def _conditions(root: Expr, order: list[Expr]) -> dict[Expr, Any]:
    """Under which condition of guards each sub-expression is computed; None: always."""
    found: dict[Expr, Expr | None] = {root: None}
    for e in reversed(order):
        here = found[e]
        for k, a in enumerate(e.args):
            inside = here
            if e.op == "guard" and k:
                own = e.args[0] if k == 1 else apply("not", e.args[0])
                inside = own if here is None else guard(here, own, const(False, "bool"))
            known = found.get(a, a)
            if known is a:
                found[a] = inside
            else:
                found[a] = None if known is None or inside is None else apply("or", known, inside)
    return found
