"""epilogue: Maps after a product or convolution run in its kernel: bias, residual, activation, requantisation."""
from __future__ import annotations

from typing import TYPE_CHECKING

from gpuonnx.ir import graph as g
from gpuonnx.ir.affine import affine
from gpuonnx.ir.expr import Expr, cast, index, postorder
from gpuonnx.ir.scalar import SCALARS
from gpuonnx.ir.types import compute, kind
from gpuonnx.passes.rewrite import Trace, change_leaves, kept, merged, readers
from gpuonnx.passes.views import is_identity, same_shape

if TYPE_CHECKING:
    from gpuonnx.planner.place import Placement

KERNELS = ("gemm", "conv", "gemm_integer", "conv_integer")
OWN = ("const", "dim", "index", "load", "guard", "cast", "round")
MOST_OPERANDS, MOST_NODES = 12, 80


def run(placement: Placement, trace: Trace) -> Placement:
    """Walk backwards through chains: a Call takes in the single Map that reads it, as often as it can."""
    graph = placement.graph
    count, outside = readers(graph), kept(graph)
    reader: dict[g.Value, g.Node] = {v: n for n in graph.nodes for v in n.inputs}
    nodes: list[g.Node] = []
    gone: set[g.Node] = set()
    waiting: dict[g.Node, g.Call] = {}
    for node in graph.nodes:
        if node in gone:
            if node in waiting:
                nodes.append(waiting.pop(node))
            continue
        if not isinstance(node, g.Call) or node.kernel not in KERNELS or node in placement.interpreted or len(node.outputs) != 1:
            nodes.append(node)
            continue
        call: g.Call = node
        last: g.Node = node
        while True:
            after = reader.get(call.out)
            if count.get(call.out, 0) != 1 or call.out in outside or not isinstance(after, g.Map) or after in gone or not fits(
                    call, after, placement, last):
                break
            if not trace.allow("into the kernel", after.origins, f"{node.kernel} of {', '.join(node.origins)}"):
                break
            placement_side, why = placement.side[node], placement.why[node]
            call, last = joined(call, after), after
            placement.side[call], placement.why[call] = placement_side, why
            gone.add(after)
        if last is node:
            nodes.append(node)
        else:
            waiting[last] = call
    placement.graph = g.Graph(graph.inputs, graph.outputs, nodes, graph.constants, graph.symbols, graph.requirements)
    return placement


def fits(call: g.Call, after: g.Map, placement: Placement, last: g.Node) -> bool:
    """Whether the Map reads the Call's result at its own index only, and everything else at affine ones."""
    if placement.side[after] != placement.side[last] or after in placement.interpreted or not same_shape(call.out.dims, after.out.dims):
        return False
    number = after.inputs.index(call.out)
    nodes = postorder((after.expr,))
    if len(nodes) > MOST_NODES or len(after.inputs) + call.operands > MOST_OPERANDS or kind(after.out.dtype) in "sc":
        return False
    for e in nodes:
        if e.op not in OWN and e.op not in SCALARS or kind(e.dtype) in "sc":
            return False
        if e.op == "load":
            if e.value == number and not is_identity(e.args, call.out.dims):
                return False
            if any(affine(i) is None for i in e.args):
                return False
    return True


def joined(call: g.Call, after: g.Map) -> g.Call:
    """The Call with the Map's expression on top of its own epilogue."""
    rank = call.out.rank
    own = len(call.inputs) - call.operands
    operands = list(call.inputs[own:])
    before = call.epilogue if call.epilogue is not None else Expr("load", tuple(map(index, range(rank))), compute(call.out.dtype), 0)
    if compute(call.out.dtype) != call.out.dtype:
        before = cast(before, call.out.dtype)
    number = after.inputs.index(call.out)

    def leaf(e: Expr) -> Expr | None:
        if e.op != "load":
            return None
        if e.value == number:
            return before
        value = after.inputs[e.value]
        if value not in operands:
            operands.append(value)
        return Expr("load", e.args, e.dtype, 1 + operands.index(value))
    expr = change_leaves(after.expr, leaf)
    return g.Call((*call.inputs[:own], *operands), after.outputs, kernel=call.kernel, attrs=call.attrs, epilogue=expr, operands=len(operands),
                  origins=merged(call.origins, after.origins))
