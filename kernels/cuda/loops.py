"""Which loops a nest has on a GPU: axes ordered by the strides of the stores, merged where every access allows it."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from gpuonnx.ir.affine import affine
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, reached
from gpuonnx.kernels.cuda.words import Pattern


def same(a: Dim, b: Dim) -> bool:
    """Equality by identity of interned polynomials."""
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


def product(sizes: Iterable[Dim]) -> Dim:
    return reduce(lambda a, b: a * b, sizes, 1)


@dataclass(frozen=True)
class Loop:
    """Merged axes, outer first; a coordinate of it times `stride` of a pattern is an offset."""

    axes: tuple[int, ...]
    size: Dim

    def stride(self, pattern: Pattern) -> Dim:
        return pattern.strides.get(self.axes[-1], 0)


def ordered(axes: Sequence[int], sizes: Sequence[Dim], store: Mapping[int, Dim]) -> list[int]:
    """Outer to inner: axes that lie densely in the store come last, innermost the one of stride 1; the others keep their order."""
    rest, tail = list(axes), list[int]()
    wanted: Dim = 1
    while rest:
        found = next((a for a in reversed(rest) if same(store.get(a, 0), wanted)), None)
        if found is None:
            break
        tail.insert(0, found)
        rest.remove(found)
        wanted = wanted * sizes[found]
    return rest + tail


def loops(axes: Sequence[int], sizes: Sequence[Dim], patterns: Sequence[Pattern], named: frozenset[int]) -> list[Loop]:
    """Loops over `axes` (outer to inner). Axes of size 1 vanish; an axis in `named`, whose index is used as a value, stays alone."""
    out: list[Loop] = []
    for axis in axes:
        if isinstance(sizes[axis], int) and sizes[axis] == 1:
            continue
        if out and axis not in named and not named & set(out[-1].axes) and all(_follows(p, out[-1].axes[-1], axis, sizes) for p in patterns):
            out[-1] = Loop((*out[-1].axes, axis), out[-1].size * sizes[axis])
        else:
            out.append(Loop((axis,), sizes[axis]))
    return out


def _follows(p: Pattern, outer: int, inner: int, sizes: Sequence[Dim]) -> bool:
    return same(p.strides.get(outer, 0), p.strides.get(inner, 0) * sizes[inner])


def named_axes(roots: Iterable[Expr]) -> frozenset[int]:
    """Axes whose index is needed as a value: in a value, a condition, or an index that is not affine."""
    def below(e: Expr) -> Iterable[Expr]:
        return e.args if e.op != "load" else [a for a in e.args if affine(a) is None]
    return frozenset(e.value for e in reached(roots, below) if e.op == "index")
