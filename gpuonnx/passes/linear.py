"""Index arithmetic: offset + sum(coefficient * atom), with bounds from the ranges of the axes.

An atom is an axis or an index expression that is not linear (a quotient, a value read from memory).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuonnx.ir import dims as d
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, dim
from gpuonnx.ir.types import INDEX

Terms = tuple[tuple[Expr, Dim], ...]


@dataclass(frozen=True)
class Linear:
    offset: Dim
    terms: Terms = ()

    def scaled(self, factor: Dim) -> Linear:
        if isinstance(factor, int) and factor == 1:
            return self
        if isinstance(factor, int) and factor == 0:
            return Linear(0)
        return Linear(self.offset * factor, tuple([(a, c * factor) for a, c in self.terms]))

    def plus(self, other: Linear, sign: int = 1) -> Linear:
        if not other.terms:
            return Linear(self.offset + other.offset * sign, self.terms)
        total = dict(self.terms)
        for atom, c in other.terms:
            total[atom] = total.get(atom, 0) + c * sign
        return Linear(self.offset + other.offset * sign, tuple([(a, c) for a, c in total.items() if not (isinstance(c, int) and c == 0)]))

    def expr(self) -> Expr:
        """Canonical: axes in order, then other atoms as they came, then the offset."""
        axes = sorted([t for t in self.terms if t[0].op == "index"], key=lambda t: int(t[0].value))
        total: Expr | None = None
        for atom, c in axes + [t for t in self.terms if t[0].op != "index"]:
            term = atom if isinstance(c, int) and c == 1 else Expr("mul", (atom, dim(c)), INDEX)
            total = term if total is None else Expr("add", (total, term), INDEX)
        if total is None:
            return dim(self.offset)
        return total if isinstance(self.offset, int) and self.offset == 0 else Expr("add", (total, dim(self.offset)), INDEX)


class Ranges:
    """What is known of `index(k)`: it runs from 0 to sizes[k] - 1, and inside the loops no size is 0."""

    def __init__(self, sizes: Sequence[Dim]) -> None:
        self.sizes = tuple(sizes)
        self._positive = {id(s) for s in sizes if isinstance(s, d.Poly)}
        self.forms: dict[Expr, Linear] = {}

    def form(self, e: Expr) -> Linear:
        """`e` (simplified) as a sum; anything that is not linear is an atom."""
        found = self.forms.get(e)
        if found is None:
            found = self.forms[e] = self._form(e)
        return found

    def _form(self, e: Expr) -> Linear:
        match e.op:
            case "const" | "dim": return Linear(e.value)
            case "add": return self.form(e.args[0]).plus(self.form(e.args[1]))
            case "sub": return self.form(e.args[0]).plus(self.form(e.args[1]), -1)
            case "neg": return self.form(e.args[0]).scaled(-1)
            case "mul":
                left, right = self.form(e.args[0]), self.form(e.args[1])
                if not right.terms:
                    return left.scaled(right.offset)
                if not left.terms:
                    return right.scaled(left.offset)
        return Linear(0, ((e, 1),))

    def positive(self, size: Dim) -> bool:
        return d.bounds(size)[0] >= 1 or id(size) in self._positive

    def not_negative(self, size: Dim) -> bool:
        """size >= 0, given that the ranges are not empty."""
        if d.bounds(size)[0] >= 0:
            return True
        return isinstance(size, d.Poly) and self.positive(size + 1)

    def least(self, f: Linear, sign: int = 1) -> Dim | None:
        """The least value of sign * f as a Dim, or None."""
        total = f.offset * sign
        for atom, c in f.terms:
            ends = self._ends(atom)
            lo, hi = d.bounds(c * sign)
            end = ends[0] if lo >= 0 else ends[1] if hi <= 0 else None
            if end is None:
                return None
            total = total + c * sign * end
        return total

    def _ends(self, atom: Expr) -> tuple[Dim | None, Dim | None]:
        if atom.op == "index":
            if atom.value < len(self.sizes):
                return 0, self.sizes[atom.value] - 1
            return 0, None
        if atom.op == "floormod" and atom.args[1].op in ("const", "dim") and self.positive(atom.args[1].value):
            return 0, atom.args[1].value - 1
        if atom.op == "floordiv" and atom.args[1].op in ("const", "dim") and self.positive(atom.args[1].value):
            low = self.least(self.form(atom.args[0]))
            high = self.least(self.form(atom.args[0]), -1)
            return (None if low is None else d.floordiv(low, atom.args[1].value),
                    None if high is None else d.floordiv(-high, atom.args[1].value))
        if atom.op == "cast" and atom.args[0].dtype == "bool":
            return 0, 1
        if atom.op == "cast" and atom.args[0].dtype in ("u8", "u16"):
            return 0, 255 if atom.args[0].dtype == "u8" else 65535
        return None, None

    def proved(self, f: Linear) -> bool:
        """f >= 0 at every index."""
        low = self.least(f)
        return low is not None and self.not_negative(low)

    def divided(self, f: Linear, by: Dim) -> tuple[Linear, Linear] | None:
        """(q, r) with f == q * by + r and 0 <= r < by where r is not empty and that can be proved; r shrinks at least."""
        if not self.positive(by):
            return None
        whole: list[tuple[Expr, Dim]] = []
        rest: list[tuple[Expr, Dim]] = []
        for atom, c in f.terms:
            q = d.divide_exactly(c, by)
            (rest if q is None else whole).append((atom, c if q is None else q))
        base = _split_offset(f.offset, by)
        return Linear(base[0], tuple(whole)), Linear(base[1], tuple(rest))

    def within(self, r: Linear, by: Dim) -> bool:
        """0 <= r < by."""
        return self.proved(r) and self.proved(r.scaled(-1).plus(Linear(by - 1)))


def _split_offset(offset: Dim, by: Dim) -> tuple[Dim, Dim]:
    if isinstance(offset, int) and isinstance(by, int):
        return offset // by, offset % by
    q = d.divide_exactly(offset, by)
    return (0, offset) if q is None else (q, 0)
