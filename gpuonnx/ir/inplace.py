"""Which inputs a loop nest may write an output over: all that it reads of an element it has read when it writes that element."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, postorder


def only_at(roots: Sequence[Expr], operand: int, indices: tuple[Expr, ...]) -> bool:
    """Whether every load of the operand is at these indices."""
    return all(e.args == indices for e in postorder(tuple(roots)) if e.op == "load" and e.value == operand)


def whole(nest: g.Nest, store: g.Store) -> bool:
    """Whether there is one element of the output for each index of all ranges."""
    axes = [i.value for i in store.indices if i.op == "index"]
    return len(axes) == len(store.indices) and sorted(axes) == list(range(len(nest.ranges)))


def overwritable(nest: g.Nest, in_turn: bool = True) -> tuple[tuple[int, int], ...]:
    """(input, output) pairs that may be one memory if both lie alike in it. An output is stored once in all, one element for
    each index of all ranges; the input is read at that element's index only, by earlier stages, by folds of the same one or by
    the store itself. Instances and lanes never read each other's elements then, in whatever order they run. in_turn: whether the
    stages of an instance run one after another; where threads share it, each at its own pace, only the store may read."""
    stores = [(s, a) for s, stage in enumerate(nest.stages) for a in stage if isinstance(a, g.Store)]
    found = []
    for stage, store in stores:
        if not whole(nest, store) or sum(a.output == store.output for _, a in stores) > 1:
            continue
        for k in range(len(nest.inputs)):
            if all(_before(k, s, a, stage, store, in_turn) for s, actions in enumerate(nest.stages) for a in actions):
                found.append((k, store.output))
    return tuple(found)


def _before(operand: int, s: int, action: g.Fold | g.Store, stage: int, store: g.Store, in_turn: bool) -> bool:
    """Whether this action of stage s has read what it reads of the operand before the store, of `stage`, writes there."""
    if not _reads(action, operand):
        return True
    early = action is store or in_turn and (s < stage or s == stage and isinstance(action, g.Fold))
    return early and only_at(action.roots, operand, store.indices)


def _reads(action: g.Fold | g.Store, operand: int) -> bool:
    return any(e.op == "load" and e.value == operand for e in postorder(action.roots))
