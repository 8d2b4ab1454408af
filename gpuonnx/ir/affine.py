"""Index expressions of the form offset + sum(coefficient * axis), with Dims as offset and coefficients."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, postorder


@dataclass(frozen=True)
class Affine:
    """`terms`: factors by axis, or by an expression that is taken as it is."""

    offset: Dim = 0
    terms: dict[Any, Dim] = field(default_factory=dict)

    def scaled(self, factor: Dim) -> Affine:
        return Affine(self.offset * factor, {a: c * factor for a, c in self.terms.items()})

    def plus(self, other: Affine, sign: int = 1) -> Affine:
        terms = dict(self.terms)
        for axis, c in other.terms.items():
            total = terms.get(axis, 0) + c * sign
            terms[axis] = total
        return Affine(self.offset + other.offset * sign, {a: c for a, c in terms.items() if not (isinstance(c, int) and c == 0)})


def affine(e: Expr, atom: Callable[[Expr], bool] | None = None) -> Affine | None:
    """`e` in affine form, or None; `atom`: what else may be a term."""
    done: dict[Expr, Affine | None] = {}
    for x in postorder((e,)):
        done[x] = _one(x, [done[a] for a in x.args])
        if done[x] is None and atom is not None and atom(x):
            done[x] = Affine(0, {x: 1})
    return done[e]


def _one(x: Expr, args: list[Affine | None]) -> Affine | None:
    match x.op:
        case "const": return Affine(int(x.value)) if x.dtype == "ix" else None
        case "dim": return Affine(x.value)
        case "index": return Affine(0, {x.value: 1})
    if x.op not in ("add", "sub", "mul", "neg") or x.dtype != "ix" or any(a is None for a in args):
        return None
    left = args[0]
    assert left is not None
    if x.op == "neg":
        return left.scaled(-1)
    right = args[1]
    assert right is not None
    if x.op == "mul":
        if left.terms and right.terms:
            return None
        return right.scaled(left.offset) if right.terms else left.scaled(right.offset)
    return left.plus(right, 1 if x.op == "add" else -1)


def strides_of(index: Sequence[Expr], strides: Sequence[Dim], rank: int) -> tuple[Dim, tuple[Dim, ...]] | None:
    """Where index expressions over `rank` axes point in a strided tensor: (offset, stride each axis), or None."""
    total = Affine()
    for e, stride in zip(index, strides, strict=True):
        form = affine(e)
        if form is None:
            return None
        total = total.plus(form.scaled(stride))
    return total.offset, tuple(total.terms.get(axis, 0) for axis in range(rank))


def reshaped(shape: Sequence[Dim], strides: Sequence[Dim], wanted: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """Strides of the row-major re-interpretation of a strided tensor, or None where it needs a copy."""
    old = [(s, t) for s, t in zip(shape, strides, strict=True) if not (isinstance(s, int) and s == 1)]
    new = [s for s in wanted if not (isinstance(s, int) and s == 1)]
    out: list[Dim] = []
    i = j = 0
    while i < len(old) or j < len(new):
        group = _group(old, new, i, j)
        if group is None:
            return None
        next_i, next_j = group
        if any(not _same(old[k][1], old[k + 1][1] * old[k + 1][0]) for k in range(i, next_i - 1)):
            return None
        inner: list[Dim] = []
        step = old[next_i - 1][1] if next_i > i else 0
        for size in reversed(new[j:next_j]):
            inner.insert(0, step)
            step = step * size
        out += inner
        i, j = next_i, next_j
    values = iter(out)
    return tuple(0 if isinstance(s, int) and s == 1 else next(values) for s in wanted)


def _same(a: Dim, b: Dim) -> bool:
    return a is b or bool(isinstance(a, int) and isinstance(b, int) and a == b)


def _group(old: list[tuple[Dim, Dim]], new: list[Dim], i: int, j: int) -> tuple[int, int] | None:
    """The shortest runs of axes from i and from j that hold the same number of elements."""
    for a in range(i + 1, len(old) + 1):
        left: Dim = 1
        for s, _ in old[i:a]:
            left = left * s
        right: Dim = 1
        for b in range(j + 1, len(new) + 1):
            right = right * new[b - 1]
            if _same(left, right):
                return a, b
    return None
