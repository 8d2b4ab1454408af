"""attention: a product, folds along its rows (softmax, with whatever is before and after it) and a second product run as one kernel, where the
device has one for them."""
from __future__ import annotations

from typing import TYPE_CHECKING

from gpuonnx.ir import graph as g
from gpuonnx.ir.affine import affine
from gpuonnx.ir.expr import Expr, cast, index, load, postorder
from gpuonnx.ir.scalar import FOLDS
from gpuonnx.ir.types import compute
from gpuonnx.passes.halves import in_halves
from gpuonnx.passes.rewrite import Trace, change_leaves, kept, merged, readers
from gpuonnx.passes.views import is_identity, same_shape

if TYPE_CHECKING:
    from gpuonnx.devices.device import Device
    from gpuonnx.planner.place import Placement

MOST_OPERANDS = 8


def run(placement: Placement, trace: Trace) -> Placement:
    """Every second product whose left operand nobody else reads, and that comes of the first one through one Nest."""
    graph = placement.graph
    makers, count, outside = graph.producers(), readers(graph), kept(graph)
    fused: dict[g.Node, list[g.Node]] = {}
    gone: set[g.Node] = set()
    for node in graph.nodes:
        nest = makers.get(node.inputs[0]) if _is_product(node) else None
        first = _scores(nest, makers) if isinstance(nest, g.Nest) else None
        if not isinstance(node, g.Call) or not isinstance(nest, g.Nest) or not isinstance(first, g.Call):
            continue
        between = (first.out, nest.outputs[0])
        if any(count.get(v, 0) != 1 or v in outside for v in between) or not _fits(first, nest, node, placement):
            continue
        made = chosen(joined(first, nest, node), makers, placement.devices[placement.side[node]])
        if made is not None and trace.allow("one kernel", made[-1].origins, "product, rows, product"):
            for new in made:
                placement.side[new], placement.why[new] = placement.side[node], placement.why[node]
            fused[node] = made
            gone |= {first, nest}
    if fused:
        nodes = read([new for n in graph.nodes if n not in gone for new in fused.get(n, [n])], outside)
        placement.graph = g.Graph(graph.inputs, graph.outputs, nodes, graph.constants, graph.symbols, graph.requirements)
    return placement


def chosen(call: g.Call, makers: dict[g.Value, g.Node], device: Device) -> list[g.Node] | None:
    """What takes the place of an attention on a device: of halves if it can, as it stands if it can; None where neither."""
    narrow = in_halves(call, makers)
    if narrow is not None and device.supports(narrow[1]) is None:
        return [*narrow[0], narrow[1]]
    return [call] if device.supports(call) is None else None


def read(nodes: list[g.Node], outside: set[g.Value]) -> list[g.Node]:
    """Without the Maps and Views that nobody reads."""
    wanted, out = set(outside), []
    for node in reversed(nodes):
        if not isinstance(node, (g.Map, g.View)) or not wanted.isdisjoint(node.outputs):
            wanted.update(node.inputs)
            out.append(node)
    return out[::-1]


def _is_product(node: g.Node | None) -> bool:
    return isinstance(node, g.Call) and node.kernel == "gemm"


def _scores(nest: g.Nest, makers: dict[g.Value, g.Node]) -> g.Node | None:
    """The product over the nest's own ranges that it reads; None if there is none, or several."""
    found = [makers[v] for v in nest.inputs if _is_product(makers.get(v)) and same_shape(v.dims, nest.ranges)]
    return found[0] if len(found) == 1 else None


def _fits(first: g.Call, nest: g.Nest, second: g.Call, placement: Placement) -> bool:
    side = placement.side[second]
    if any(placement.side[n] != side or n in placement.interpreted for n in (first, nest, second)):
        return False
    *stages, last = nest.stages
    axis = len(nest.ranges) - 1
    plain = tuple(map(index, range(axis + 1)))
    if nest.over != {axis} or len(nest.outputs) != 1 or len(last) != 1 or any(isinstance(a, g.Store) for stage in stages for a in stage):
        return False
    (store,) = last
    if not isinstance(store, g.Store) or store.indices != plain or nest.outputs[0].dtype != first.out.dtype:
        return False
    number = nest.inputs.index(first.out)
    exprs = [a.expr for a in (*(f for stage in stages for f in stage), store)]
    if any(isinstance(a, g.Fold) and (a.op not in FOLDS or a.op.startswith("arg")) for stage in stages for a in stage):
        return False
    if len(nest.inputs) + first.operands > MOST_OPERANDS or first.inputs[0].rank != second.out.rank or second.inputs[1].rank != second.out.rank:
        return False
    return not any(e.op == "load" and (e.value == number and not is_identity(e.args, nest.ranges) or any(affine(i) is None for i in e.args))
                   for e in postorder(tuple(exprs)))


def joined(first: g.Call, nest: g.Nest, second: g.Call) -> g.Call:
    """The three as one Call."""
    own = len(first.inputs) - first.operands
    operands = list(first.inputs[own:])
    number = nest.inputs.index(first.out)

    def leaf(e: Expr) -> Expr | None:
        if e.op != "load":
            return None
        if e.value == number:
            return Expr("load", e.args, e.dtype, 0)
        value = nest.inputs[e.value]
        if value not in operands:
            operands.append(value)
        return Expr("load", e.args, e.dtype, 1 + operands.index(value))
    done: dict[Expr, Expr] = {}
    *stages, (store,) = nest.stages
    folds = tuple(tuple(g.Fold(a.op, change_leaves(a.expr, leaf, done)) for a in stage if isinstance(a, g.Fold)) for stage in stages)
    rows = g.Rows(_score(first), folds, _stored(change_leaves(store.expr, leaf, done), nest.outputs[0].dtype))
    mine = len(second.inputs) - second.operands
    inputs = (*first.inputs[:2], second.inputs[1], *operands, *second.inputs[mine:])
    return g.Call(inputs, second.outputs, kernel="attention", attrs={"rows": rows}, epilogue=second.epilogue, operands=second.operands,
                  origins=merged(first.origins, nest.origins, second.origins))


def _score(first: g.Call) -> Expr | None:
    """What becomes of an element of the first product, rounded where it was stored in a narrow type."""
    stored = first.out.dtype
    if stored == compute(stored):
        return first.epilogue
    return _stored(first.epilogue if first.epilogue is not None else load(0, stored, tuple(map(index, range(first.out.rank)))), stored)


def _stored(e: Expr, dtype: str) -> Expr:
    """Rounded as a store in that type does, unless it is already."""
    return e if e.op == "round" and e.value == dtype else cast(e, dtype)
