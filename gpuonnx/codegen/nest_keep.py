"""Expensive values that a fold and a later store both need are kept in the output's memory between the two (softmax's exp)."""
from __future__ import annotations

from dataclasses import replace

from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, load, postorder, rewrite
from gpuonnx.ir.inplace import whole
from gpuonnx.ir.scalar import SCALARS
from gpuonnx.ir.types import compute

DEAR = 10


def keep(nest: g.Nest) -> tuple[g.Nest, int]:
    """(the nest, number of the output that it keeps a value in, or -1). The nest reads that output as its last input; no
    input may lie in the same memory. That output is stored last, when nobody needs the value any more."""
    last = len(nest.stages) - 1
    stores = [a for a in nest.stages[last] if isinstance(a, g.Store)]
    for store in stores if len(stores) == len(nest.stages[last]) else ():
        out = nest.outputs[store.output].dtype
        found = _shared(nest, last, store) if whole(nest, store) and compute(out) == out else None
        if found is not None:
            return _kept(nest, store, *found), store.output
    return nest, -1


def _shared(nest: g.Nest, stage: int, store: g.Store) -> tuple[int, Expr] | None:
    """(an earlier stage, the dearest value of one of its folds that the store needs too)."""
    mine = set(postorder((store.expr,)))
    best: tuple[int, int, Expr] | None = None
    for s in range(stage):
        for fold in nest.stages[s]:
            if not isinstance(fold, g.Fold):
                continue
            for e in postorder((fold.expr,)):
                dear = sum(SCALARS[x.op].cost for x in e.walk() if x.op in SCALARS)
                if e in mine and e.dtype == nest.outputs[store.output].dtype and dear >= DEAR and (best is None or dear >= best[0]):
                    best = dear, s, e
    return None if best is None else best[1:]


def _kept(nest: g.Nest, store: g.Store, stage: int, e: Expr) -> g.Nest:
    out = nest.outputs[store.output]
    again = load(len(nest.inputs), out.dtype, store.indices)

    def change(root: Expr) -> Expr:
        return rewrite((root,), lambda x: again if x is e else x)[0]
    stages, overwritten = [], False
    for s, actions in enumerate(nest.stages):
        if s == stage:
            actions = (*actions, g.Store(store.output, store.indices, e))
        elif s > stage and not overwritten:
            overwritten = store in actions
            last = actions.index(store) if overwritten else len(actions)
            actions = tuple(replace(a, expr=change(a.expr)) if k <= last else a for k, a in enumerate(actions))
        stages.append(actions)
    return g.Nest((*nest.inputs, out), nest.outputs, ranges=nest.ranges, over=nest.over, stages=tuple(stages), origins=nest.origins)
