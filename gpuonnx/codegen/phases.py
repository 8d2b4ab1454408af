"""Axes whose coordinates are divided by a small number, split into quotient and remainder."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.ir import graph as g
from gpuonnx.ir.affine import affine
from gpuonnx.ir.dims import Dim, divide_exactly
from gpuonnx.ir.expr import Expr, apply, const, index, postorder, rewrite
from gpuonnx.kernels.contract import Layout

LARGEST = 4


def split(nest: g.Nest, outputs: Sequence[Layout]) -> g.Nest:
    """An axis that stores step along by one and that is computed with by way of (axis + a) // k and (axis + a) % k is walked as
    k * quotient + remainder: then those are the quotient, and numbers that the few remainders determine."""
    for axis, size in enumerate(nest.ranges):
        if axis not in nest.over and any(_steps(s, axis, outputs) for stage in nest.stages for s in stage if isinstance(s, g.Store)):
            by = _divisor(nest, axis)
            quotient: Dim | None = divide_exactly(size, by) if by else None
            if quotient is not None:
                return _split(nest, axis, by, quotient)
    return nest


def _steps(store: g.Store, axis: int, outputs: Sequence[Layout]) -> bool:
    return any(i.op == "index" and i.value == axis and isinstance(step, int) and step == 1
               for i, step in zip(store.indices, outputs[store.output].strides, strict=True))


def _divisor(nest: g.Nest, axis: int) -> int:
    """The one small number that coordinates of `axis` are divided by, or 0."""
    found = {x.args[1].value if x.args[1].op == "const" else 0 for x in postorder(nest.roots)
             if x.op in ("floordiv", "floormod") and x.dtype == "ix" and _plain(x.args[0], {axis: 1}) is not None}
    by = found.pop() if len(found) == 1 else 0
    return by if 2 <= by <= LARGEST else 0


def _plain(e: Expr, terms: dict[int, int]) -> int | None:
    """`a` where e is these terms + a."""
    form = affine(e)
    if form is None or not isinstance(form.offset, int) or not all(isinstance(c, int) for c in form.terms.values()):
        return None
    return form.offset if form.terms == terms else None


def _split(nest: g.Nest, axis: int, by: int, quotient: Dim) -> g.Nest:
    rest = len(nest.ranges)
    whole = index(axis) * const(by, "ix") + index(rest)

    def change(x: Expr) -> Expr:
        if x.op == "index" and x.value == axis:
            return whole
        if x.op not in ("floordiv", "floormod") or x.dtype != "ix" or x.args[1] is not const(by, "ix"):
            return x
        offset = _plain(x.args[0], {axis: by, rest: 1})
        if offset is None:
            return x
        if x.op == "floormod":
            return apply("floormod", index(rest) + const(offset, "ix"), x.args[1]) if offset else index(rest)
        return index(axis) + apply("floordiv", index(rest) + const(offset, "ix"), x.args[1]) if offset else index(axis)
    changed = iter(rewrite(nest.roots, change))
    stages = tuple(tuple(g.Fold(a.op, next(changed)) if isinstance(a, g.Fold) else _store(a, next(changed), [next(changed) for _ in a.indices])
                         for a in stage) for stage in nest.stages)
    ranges = (*(quotient if a == axis else s for a, s in enumerate(nest.ranges)), by)
    return g.Nest(nest.inputs, nest.outputs, ranges=ranges, over=nest.over, stages=stages, origins=nest.origins)


def _store(store: g.Store, expr: Expr, indices: list[Expr]) -> g.Store:
    return g.Store(store.output, tuple(indices), expr)
