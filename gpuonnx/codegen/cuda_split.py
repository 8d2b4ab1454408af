"""Folds of few long rows in two steps: pieces of the longest folded axis go to different blocks, then the pieces are folded."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpuonnx.codegen.cuda_nest import COMBINE, Operand, identity, nest_step
from gpuonnx.ir.dims import Dim, dmin, floordiv
from gpuonnx.ir.expr import Expr, apply, const, dim, folded, guard, index, load, postorder, substitute
from gpuonnx.ir.graph import Fold, Nest, Store
from gpuonnx.ir.types import INDEX, size
from gpuonnx.kernels.contract import Build, Layout, Ref
from gpuonnx.kernels.cuda.loops import product

PIECES, LONG = 256, 1 << 15


def split_steps(nest: Nest, reads: Sequence[Operand], writes: Sequence[Operand]) -> Build | None:
    """Two launches, or None where one is as good."""
    if not _splittable(nest):
        return None
    kept = [a for a in range(len(nest.ranges)) if a not in nest.over]
    rows = product(nest.ranges[a] for a in kept)
    extent = product(nest.ranges[a] for a in nest.over)
    if not isinstance(rows, int) or rows < 1 or rows > PIECES // 8 or isinstance(extent, int) and extent < LONG * rows:
        return None
    if not isinstance(extent, int) and rows > 1:
        return None
    axis = max(nest.over, key=lambda a: s if isinstance(s := nest.ranges[a], int) else LONG)
    pieces = dmin(nest.ranges[axis], PIECES // rows)
    partial = [Operand(Ref("work", k), Layout.dense(a.expr.dtype, (*(nest.ranges[a_] for a_ in kept), pieces)))
               for k, a in enumerate(nest.stages[0])]
    first = nest_step(_pieces(nest, kept, axis, pieces), reads, partial)
    second = nest_step(_together(nest, kept, pieces, len(reads)), [*reads, *partial], writes)
    return Build((first, second), tuple(rows * pieces * size(p.layout.dtype) for p in partial))


def _splittable(nest: Nest) -> bool:
    """One stage of folds, then stores that happen once a row and read no folded axis."""
    if not nest.over or not nest.stages or not all(isinstance(a, Fold) and a.op in COMBINE for a in nest.stages[0]):
        return False
    rest = [a for stage in nest.stages[1:] for a in stage]
    if any(e.dtype == INDEX for a in nest.stages[0] for e in (a.expr,)):
        return False
    return all(isinstance(a, Store) and not _mentions(a, nest.over) for a in rest)


def _mentions(a: Store, over: frozenset[int]) -> bool:
    return any(e.op == "index" and e.value in over for e in postorder((*a.indices, a.expr)))


def _pieces(nest: Nest, kept: list[int], axis: int, pieces: Dim) -> Nest:
    """Axis `axis` becomes the position within a piece; a new last axis, kept, is the piece."""
    length = nest.ranges[axis]
    step = floordiv(length + pieces - 1, pieces) if not isinstance(pieces, int) or pieces else 0
    piece = len(nest.ranges)
    position = index(piece) * dim(step) + index(axis)
    inside = apply("less", position, dim(length))
    stages = []
    for action in nest.stages[0]:
        assert isinstance(action, Fold)
        expr = substitute(action.expr, lambda e: position if e is index(axis) else None)
        nothing = const(identity(action.op, expr.dtype), expr.dtype)
        stages.append(Fold(action.op, guard(inside, expr, nothing)))
    place = (*(index(a) for a in kept), index(piece))
    stores = tuple(Store(k, place, folded(0, k, a.expr.dtype)) for k, a in enumerate(stages))
    ranges = (*(step if a == axis else s for a, s in enumerate(nest.ranges)), pieces)
    return replace(nest, ranges=ranges, stages=(tuple(stages), stores))


def _together(nest: Nest, kept: list[int], pieces: Dim, first: int) -> Nest:
    """Folds the pieces; the kept axes are numbered anew, the piece is the last axis."""
    numbers = {a: k for k, a in enumerate(kept)}
    piece = len(kept)
    place = (*map(index, range(len(kept))), index(piece))

    def moved(e: Expr) -> Expr | None:
        return index(numbers[e.value]) if e.op == "index" and e.value in numbers else None

    folds = tuple(Fold(a.op, load(first + k, a.expr.dtype, place)) for k, a in enumerate(nest.stages[0]) if isinstance(a, Fold))
    rest = [tuple(Store(a.output, tuple(substitute(i, moved) for i in a.indices), substitute(a.expr, moved)) for a in stage if isinstance(a, Store))
            for stage in nest.stages[1:]]
    ranges = (*(nest.ranges[a] for a in kept), pieces)
    return replace(nest, ranges=ranges, over=frozenset((piece,)), stages=(folds, *rest))
