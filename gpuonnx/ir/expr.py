"""One expression language for values and for indices: an interned DAG, so that equality is identity.

Leaves: `load` (value = input number, args = one index each axis), `index` (value = axis), `const`, `dim` (value = Dim),
`folded` (value = (stage, action), inside a Nest only). `guard(c, a, b)` reads memory for `a` only where `c` holds.
`cast` converts to `dtype`; `round` (value = stored type) rounds a float to a narrower stored type and widens it again.
Every other op is a row of `ir/scalar.py`.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from gpuonnx.ir.types import INDEX, compute

_interned: WeakValueDictionary[tuple[Any, ...], Expr] = WeakValueDictionary()
_interning = Lock()


class Expr:
    """op, args, dtype (a compute type or `ix`), value (of a leaf)."""

    __slots__ = ("op", "args", "dtype", "value", "__weakref__")
    op: str
    args: tuple[Expr, ...]
    dtype: str
    value: Any

    def __new__(cls, op: str, args: tuple[Expr, ...] = (), dtype: str = "f32", value: Hashable = None) -> Expr:
        key = (op, args, dtype, _identity(value))
        found = _interned.get(key)
        if found is None:
            found = object.__new__(cls)
            found.op, found.args, found.dtype, found.value = op, args, dtype, value
            with _interning:
                found = _interned.setdefault(key, found)
        return found

    def __reduce__(self) -> Any:
        return Expr, (self.op, self.args, self.dtype, self.value)

    def __repr__(self) -> str:
        from gpuonnx.ir.show import expression
        return expression(self)

    def __add__(self, other: Any) -> Expr: return apply("add", self, other)
    def __radd__(self, other: Any) -> Expr: return apply("add", other, self)
    def __sub__(self, other: Any) -> Expr: return apply("sub", self, other)
    def __rsub__(self, other: Any) -> Expr: return apply("sub", other, self)
    def __mul__(self, other: Any) -> Expr: return apply("mul", self, other)
    def __rmul__(self, other: Any) -> Expr: return apply("mul", other, self)
    def __truediv__(self, other: Any) -> Expr: return apply("div", self, other)
    def __rtruediv__(self, other: Any) -> Expr: return apply("div", other, self)
    def __floordiv__(self, other: Any) -> Expr: return apply("floordiv", self, other)
    def __mod__(self, other: Any) -> Expr: return apply("floormod", self, other)
    def __neg__(self) -> Expr: return apply("neg", self)

    def walk(self) -> Iterator[Expr]:
        """Every distinct sub-expression once, arguments before their users."""
        return iter(postorder((self,)))


def _identity(value: Hashable) -> tuple[Any, ...]:
    """0.0, -0.0, 0, False are equal in Python and differ here; a NaN equals itself."""
    if isinstance(value, float):
        return ("float", value.hex() if not math.isnan(value) else "nan")
    return (type(value).__name__, value)


def postorder(roots: tuple[Expr, ...]) -> list[Expr]:
    seen: set[Expr] = set()
    out: list[Expr] = []
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        e, ready = stack.pop()
        if ready:
            out.append(e)
        elif e not in seen:
            seen.add(e)
            stack.append((e, True))
            stack.extend((a, False) for a in reversed(e.args) if a not in seen)
    return out


def reached(roots: Iterable[Expr], below: Callable[[Expr], Iterable[Expr]]) -> Iterator[Expr]:
    """Every expression, once, that `below` leads to from the roots."""
    seen: set[Expr] = set()
    stack = list(roots)
    while stack:
        e = stack.pop()
        if e not in seen:
            seen.add(e)
            yield e
            stack.extend(below(e))


def sure(e: Expr) -> tuple[Expr, ...]:
    """Arguments that are computed whenever `e` is."""
    return e.args[:1] if e.op == "guard" else e.args


def rewrite(roots: tuple[Expr, ...], change: Callable[[Expr], Expr]) -> tuple[Expr, ...]:
    """Rebuild bottom-up; `change` sees each node once its arguments are rewritten."""
    done: dict[Expr, Expr] = {}
    for e in postorder(roots):
        args = tuple(done[a] for a in e.args)
        done[e] = change(e if args == e.args else Expr(e.op, args, e.dtype, e.value))
    return tuple(done[r] for r in roots)


def const(value: bool | int | float | complex | str, dtype: str = "f32") -> Expr:
    if dtype[0] == "f":
        value = float(value)  # type: ignore[arg-type]
    elif dtype[0] in "iu":
        value = int(value)  # type: ignore[arg-type]
    elif dtype == "bool":
        value = bool(value)
    return Expr("const", (), dtype, value)


def dim(value: Any) -> Expr:
    """A Dim as an index expression."""
    return const(value, INDEX) if isinstance(value, int) else Expr("dim", (), INDEX, value)


def index(axis: int) -> Expr:
    return Expr("index", (), INDEX, axis)


def folded(stage: int, action: int, dtype: str) -> Expr:
    return Expr("folded", (), dtype, (stage, action))


def load(number: int, stored: str, indices: tuple[Expr | int, ...]) -> Expr:
    """Read input `number`; a narrow stored type is widened to its compute type."""
    return Expr("load", tuple(i if isinstance(i, Expr) else dim(i) for i in indices), compute(stored), number)


def guard(condition: Expr, inside: Expr, outside: Expr) -> Expr:
    return Expr("guard", (condition, inside, outside), inside.dtype)


def cast(arg: Expr, dtype: str) -> Expr:
    """Convert; `dtype` may be a narrow stored type, whose rounding is then kept."""
    target = dtype if dtype == INDEX else compute(dtype)
    out = arg if arg.dtype == target else Expr("cast", (arg,), target)
    return out if target == dtype else Expr("round", (out,), target, dtype)


def apply(name: str, *args: Expr | int | float | bool) -> Expr:
    """A scalar function; Python numbers take the type of the last expression among the arguments."""
    from gpuonnx.ir.scalar import SCALARS
    like = next(a.dtype for a in args[::-1] if isinstance(a, Expr))
    full = tuple(a if isinstance(a, Expr) else const(a, like) for a in args)
    return Expr(name, full, SCALARS[name].dtype or full[-1].dtype)


def substitute(e: Expr, leaf: Callable[[Expr], Expr | None]) -> Expr:
    """Replace leaves: `leaf` gets each rewritten node and answers with its replacement or None."""
    return rewrite((e,), lambda x: leaf(x) or x)[0]
