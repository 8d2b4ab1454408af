"""Symbolic sizes: Dim = int | Poly, a polynomial with integer coefficients over atoms.

An atom is a symbol or an opaque function of Dims (//, %, min, max, bcast, select, comparisons, rounded reals).
Everything is interned in the Space of its model, so structural equality is identity and a polynomial identity is proved by
building both sides.
A truth value is a Dim in {0, 1}: not x = 1 - x, and = x * y, or = x + y - x * y.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

INF = math.inf


class Space:
    """The interning tables of one model: facts about a symbol of one model say nothing about another's."""

    def __init__(self) -> None:
        self.atoms: dict[tuple[Any, ...], Atom] = {}
        self.polys: dict[tuple[Any, ...], Poly] = {}
        self.reals: dict[tuple[Any, ...], Real] = {}

    def sym(self, name: str, lo: float = 0, hi: float = INF) -> Any:
        """The symbol of that name; the bounds count at its first mention."""
        return _atom(self, "sym", (name,), lo, hi)

    def real(self, name: str) -> Any:
        """A float32 scalar that is read from a tensor at run time."""
        return Real.of("sym", name, space=self)


class Atom:
    """op(args), with the interval it lies in; a symbol is Atom("sym", (name,))."""
    __slots__ = ("op", "args", "lo", "hi", "id", "space")
    op: str
    args: tuple[Any, ...]
    lo: float
    hi: float
    id: int
    space: Space

    def __repr__(self) -> str:
        return self.args[0] if self.op == "sym" else f"{self.op}({', '.join(map(str, self.args))})"


class Poly:
    """Sum of coefficient * product of atoms; never a constant (that is an int)."""
    __slots__ = ("terms", "lo", "hi", "space")
    terms: tuple[Any, ...]
    lo: float
    hi: float
    space: Space

    def __add__(self, other: Any) -> Any: return _sum(self, other, 1)
    def __sub__(self, other: Any) -> Any: return _sum(self, other, -1)
    def __rsub__(self, other: Any) -> Any: return _sum(other, self, -1)
    def __neg__(self) -> Any: return self * -1
    def __floordiv__(self, other: Any) -> Any: return floordiv(self, other)
    def __rfloordiv__(self, other: Any) -> Any: return floordiv(other, self)
    def __mod__(self, other: Any) -> Any: return mod(self, other)
    def __bool__(self) -> bool: raise TypeError(f"the truth of {self} depends on its binding")

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int):
            return _poly(self.space, {m: c * other for m, c in self.terms}) if other else 0
        out: dict[Any, int] = {}
        for m, c in self.terms:
            for n, d in other.terms:
                key = _product(m, n)
                out[key] = out.get(key, 0) + c * d
        return _poly(self.space, out)

    __radd__, __rmul__ = __add__, __mul__

    def __repr__(self) -> str:
        def term(m: Any, c: Any) -> Any:
            return "*".join(([str(c)] if c != 1 or not m else []) + list(map(str, m)))
        return "(" + " + ".join(term(m, c) for m, c in self.terms) + ")"


Dim = int | Poly


def symbols(d: Any) -> set[str]:
    """The names of the symbols that `d` depends on."""
    out: set[str] = set()
    stack: list[Any] = [d]
    while stack:
        x = stack.pop()
        if isinstance(x, Poly):
            stack.extend(a for m, _ in x.terms for a in m)
        elif isinstance(x, (Atom, Real)):
            if x.op == "sym":
                out.add(x.args[0])
            else:
                stack.extend(x.args)
    return out


def _is_truth(atom: Any) -> Any:
    return atom.op in ("eq0", "lt0")


def _product(m: Any, n: Any) -> Any:
    atoms = sorted(m + n, key=lambda a: a.id)
    return tuple(a for i, a in enumerate(atoms) if not (i and a is atoms[i - 1] and _is_truth(a)))


def _poly_of(a: Any, terms: Any) -> Any:
    return _poly(a.space, terms) if isinstance(a, Poly) else sum(terms.values())


def _terms(d: Any) -> Any:
    return d.terms if isinstance(d, Poly) else (((), int(d)),) if d else ()


def _sum(a: Any, b: Any, sign: Any) -> Any:
    out = dict(_terms(a))
    for m, c in _terms(b):
        out[m] = out.get(m, 0) + sign * c
    return _poly(_space(a, b), out)


def _times(a: Any, b: Any) -> Any:
    """Interval product; 0 * inf is 0."""
    ends = [0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def interval(p: Any) -> Any:
    """Bounds from those of the atoms."""
    spans = [reduce(_times, [(a.lo, a.hi) for a in m], (c, c)) for m, c in p.terms]
    return sum(s[0] for s in spans), sum(s[1] for s in spans)


def _space(*args: Any) -> Space:
    return next(a.space for a in args if isinstance(a, (Poly, Real, Atom)))


def _poly(space: Any, terms: Any) -> Any:
    terms = tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda t: [a.id for a in t[0]]))
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    if terms not in space.polys:
        p = Poly()
        p.space, p.terms = space, terms
        p.lo, p.hi = interval(p)
        space.polys[terms] = p
    return space.polys[terms]


def _atom(space: Any, op: Any, args: Any, lo: Any, hi: Any) -> Any:
    key = (op, *args)
    if key not in space.atoms:
        a = Atom()
        a.space, a.op, a.args, a.lo, a.hi, a.id = space, op, args, lo, hi, len(space.atoms)
        space.atoms[key] = a
    atom = space.atoms[key]
    return atom.lo if atom.lo == atom.hi else _poly(space, {(atom,): 1})


def least_atom(d: Any) -> tuple[Atom, int] | None:
    """The atom and the least value that `d >= 0` says of it, where it is about one atom alone."""
    *constant, (m, c) = d.terms
    if len(m) != 1 or c < 0 or any(n for n, _ in constant):
        return None
    return m[0], -(sum(k for _, k in constant) // c)


def assume_not_negative(d: Any) -> Any:
    """A fact that the binder checks. One about a single symbol also raises that symbol's lower bound."""
    d.lo = max(d.lo, 0)
    bound = least_atom(d)
    if bound is None:
        return
    atom, least = bound
    alone = _poly(d.space, {(atom,): 1})
    atom.lo, alone.lo = max(atom.lo, least), max(alone.lo, least)
    if atom.op == "//" and known(atom.args[1]):  # x // n >= least
        inner = atom.args[0] - least * atom.args[1]
        if bounds(inner)[0] < 0:
            assume_not_negative(inner)


def bounds(d: Any) -> Any:
    return (d.lo, d.hi) if isinstance(d, (Poly, Real)) else (d, d)


def known(*dims: Any) -> Any:
    return all(isinstance(d, (int, float)) for d in dims)


def prove_equal(a: Any, b: Any) -> Any:
    """True, False, or None when it depends on the binding."""
    d = a - b
    return d == 0 if known(d) else False if d.lo > 0 or d.hi < 0 else None


def divide_exactly(a: Any, b: Any) -> Any:
    """The polynomial q with q * b == a, or None. Multivariate long division, leading term last."""
    if not isinstance(b, Poly):
        return _poly_of(a, {m: c // b for m, c in _terms(a)}) if b and all(c % b == 0 for _, c in _terms(a)) else None
    (lead, k), q = b.terms[-1], 0
    while not (known(a) and a == 0):
        m, c = _terms(a)[-1]
        rest = list(m)
        for atom in lead:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % k:
            return None
        step = _poly(b.space, {tuple(rest): c // k})
        q, a = q + step, a - step * b
    return q


def _quotient(b: int) -> Callable[[int], int]:
    return lambda c: c // b


def _remainder(b: int) -> Callable[[int], int]:
    return lambda c: c % b


def floordiv(a: Any, b: Any) -> Any:
    if known(a, b) and b:
        return a // b
    exact = divide_exactly(a, b)
    if exact is not None:
        return exact
    if known(b) and b > 0:  # n*q + r with 0 <= r.coefficients < n
        q, r = (_poly(a.space, {m: f(c) for m, c in a.terms}) for f in (_quotient(b), _remainder(b)))
        if known(r):
            return q + r // b
        g = math.gcd(b, *(c for m, c in r.terms if m))  # (g*x + c) // (g*y) == (x + c//g) // y
        if g > 1:
            return q + floordiv(_poly(a.space, {m: c // g for m, c in r.terms}), b // g)
        if 0 <= r.lo and r.hi < b:
            return q
        m, c = r.terms[0]
        inner = r.terms[-1][0][0]
        if len(r.terms) - (not m) == 1 and len(r.terms[-1][0]) == 1 and r.terms[-1][1] == 1 and inner.op == "//" and known(inner.args[1]):
            shift = c if not m else 0  # (x//n + s)//b == (x + n*s)//(n*b)
            return q + floordiv(inner.args[0] + inner.args[1] * shift, inner.args[1] * b)
        ends = [e // b if abs(e) != INF else e for e in bounds(r)]
        return q + _atom(a.space, "//", (r, b), *ends)
    lo, hi = bounds(a)
    return _atom(_space(a, b), "//", (a, b), 0 if lo >= 0 and bounds(b)[0] >= 0 else -INF, hi if bounds(b)[0] >= 0 and lo >= 0 else INF)


def mod(a: Any, b: Any) -> Any:
    return a % b if known(a, b) else a - b * floordiv(a, b)


def truncdiv(a: Any, b: Any) -> Any:
    """ONNX Div of integers rounds towards zero."""
    if known(a, b):
        return int(math.copysign(abs(a) // abs(b), a * b)) if a else 0
    if bounds(a)[0] >= 0 and bounds(b)[0] >= 0 or known(b) and divide_exactly(a, b) is not None:
        return floordiv(a, b)
    return select(lt(a * b, 0), -floordiv(-a, b), floordiv(a, b))


def _alone(d: Any, op: Any) -> Any:
    """The arguments of d when it is just op(...), else ()."""
    atoms: Any = d.terms[0][0] if isinstance(d, Poly) and len(d.terms) == 1 and d.terms[0][1] == 1 else ()
    return atoms[0].args if len(atoms) == 1 and atoms[0].op == op else ()


def at_most(a: Any, b: Any) -> Any:
    """Whether a <= b for every binding; False when it is not known."""
    if bounds(b - a)[0] >= 0:
        return True
    return (any(at_most(x, b) for x in _alone(a, "min")) or any(at_most(a, x) for x in _alone(b, "max"))
            or bool(_alone(a, "max")) and all(at_most(x, b) for x in _alone(a, "max"))
            or bool(_alone(b, "min")) and all(at_most(a, x) for x in _alone(b, "min")))


def _extreme(op: Any, pick: Any, args: Any) -> Any:
    """An n-ary min or max: flattened, deduplicated, dominated arguments dropped."""
    flat: list[Any] = []
    for a in args:
        flat += _alone(a, op) or [a]
    below = at_most if op == "max" else lambda a, b: at_most(b, a)
    kept: list[Any] = []
    for a in flat:
        if not any(below(a, b) for b in kept):
            kept = [b for b in kept if not below(b, a)] + [a]
    if len(kept) == 1:
        return kept[0]
    return _atom(_space(*kept), op, tuple(sorted(kept, key=str)), pick(bounds(a)[0] for a in kept), pick(bounds(a)[1] for a in kept))


def dmin(*args: Any) -> Any: return _extreme("min", min, args)
def dmax(*args: Any) -> Any: return _extreme("max", max, args)


def bcast(a: Any, b: Any) -> Any:
    """The size two sizes broadcast to: the one that is not 1. Idempotent, so it does not grow."""
    parts: list[Any] = []
    for x in (a, b):
        parts += _alone(x, "bcast") or [x]
    parts = sorted({p for p in parts if not (known(p) and p == 1)}, key=str)
    sure = [p for p in parts if bounds(p)[0] >= 2]
    if sure or len(parts) < 2:
        return (sorted(sure, key=lambda p: not known(p)) + parts + [1])[0]
    return _atom(_space(*parts), "bcast", tuple(parts), min(bounds(p)[0] for p in parts), max(bounds(p)[1] for p in parts))


def eq(a: Any, b: Any) -> Any:
    answer = prove_equal(a, b)
    return int(answer) if answer is not None else _atom(_space(a, b), "eq0", (_signed(a - b),), 0, 1)


def _signed(d: Any) -> Any:
    return d if d.terms[-1][1] > 0 else -d


def lt(a: Any, b: Any) -> Any:
    d = a - b
    lo, hi = bounds(d)
    return int(hi < 0) if hi < 0 or lo >= 0 else _atom(d.space, "lt0", (d,), 0, 1)


def select(c: Any, a: Any, b: Any) -> Any:
    if known(c):
        return a if c else b
    if a is b or known(a, b) and a == b:
        return a
    if isinstance(a, (float, Real)) or isinstance(b, (float, Real)):
        return Real.of("select", c, a, b)
    return _atom(c.space, "select", (c, a, b), min(bounds(a)[0], bounds(b)[0]), max(bounds(a)[1], bounds(b)[1]))


class Real:
    """A real scalar: ("ratio", Dim, int) is exact, ("sym", name) is read from a tensor, everything else is a
    float32 operation, rounded as at run time."""
    __slots__ = ("op", "args", "lo", "hi", "space")
    op: str
    args: tuple[Any, ...]
    lo: float
    hi: float
    space: Space

    @classmethod
    def of(cls, op: Any, *args: Any, space: Any = None) -> Any:
        if op == "ratio" and known(args[0]):
            return float(args[0]) / args[1]
        if op != "sym" and known(*args):
            return float(float32_op(op, *args))
        space = space or _space(*args)
        if (op, args) not in space.reals:
            r = cls()
            space.reals[op, args] = r
            r.space, r.op, r.args = space, op, args
            if op == "sym":
                r.lo, r.hi = -INF, INF
                return r
            (lo, hi), n = bounds(args[0]), args[1] if op == "ratio" else 1
            r.lo, r.hi = (lo / n, hi / n) if op == "ratio" else (-INF, INF)
            if op in ("mul", "div", "add") and all(bounds(a)[0] >= 0 for a in args):
                r.lo = 0
        return space.reals[op, args]

    def __repr__(self) -> str: return f"{self.op}({', '.join(map(str, self.args))})"


def _ratio(x: Any) -> Any:
    """(Dim, int) when x is exactly that quotient and small enough to be exact in float32, else None."""
    if isinstance(x, Real):
        return x.args if x.op == "ratio" else None
    p, q = x.as_integer_ratio() if isinstance(x, float) and math.isfinite(x) else (x, 1)
    return (p, q) if not isinstance(x, float) or math.isfinite(x) and q <= 1024 and abs(p) < 2**24 else None


def real(x: Any) -> Any:
    return x if isinstance(x, (float, Real)) else Real.of("ratio", x, 1)


def real_op(op: Any, a: Any, b: Any) -> Any:
    p, q = _ratio(a), _ratio(b)
    if p and q:
        if op in ("add", "sub"):
            n = math.lcm(p[1], q[1])
            x, y = p[0] * (n // p[1]), q[0] * (n // q[1])
            return Real.of("ratio", x + y if op == "add" else x - y, n)
        if op == "mul" and known(p[0], q[0]) or op == "mul" and (known(p[0]) or known(q[0])):
            return _reduced(p[0] * q[0], p[1] * q[1])
        if op == "div" and known(q[0]) and q[0] > 0:
            return _reduced(p[0] * q[1], p[1] * q[0])
    return Real.of(op, a, b)


def _reduced(p: Any, q: Any) -> Any:
    g = math.gcd(q, *(c for _, c in _terms(p)))
    return Real.of("ratio", divide_exactly(p, g), q // g)


def rounded(op: Any, x: Any) -> Any:
    """floor, ceil or trunc of a real as a Dim."""
    if isinstance(x, float):
        whole: dict[str, Callable[[float], int]] = {"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc}
        return whole[op](x)
    ratio = _ratio(x)
    if ratio and (op != "trunc" or x.lo >= 0):
        return -floordiv(-ratio[0], ratio[1]) if op == "ceil" else floordiv(*ratio)
    return _atom(x.space, op, (x,), 0 if x.lo >= 0 else -INF, INF)


def float32_op(op: Any, a: Any, b: Any, c: Any = None) -> Any:
    """A float32 operation of the language, rounded as at run time. float32 results of double operands round once."""
    import numpy as np
    f = np.float32
    match op:
        case "ratio": return f(a) / f(b)
        case "add": return f(a) + f(b)
        case "sub": return f(a) - f(b)
        case "mul": return f(a) * f(b)
        case "div": return f(a) / f(b)
    return b if a else c
