"""inline: a Map becomes part of the Map or Reduce that reads it, where that costs no more than its memory traffic did."""
from __future__ import annotations

from typing import TYPE_CHECKING

from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, postorder
from gpuonnx.ir.scalar import SCALARS
from gpuonnx.ir.types import kind
from gpuonnx.passes.epilogue import KERNELS
from gpuonnx.passes.rewrite import Trace, at_indices, change_leaves, kept, loads, merged, readers

if TYPE_CHECKING:
    from gpuonnx.planner.place import Placement

LARGEST, CHEAP = 80, 2


def cost(e: Expr) -> int:
    """About how many vector instructions an element takes, loads aside."""
    return sum(SCALARS[x.op].cost if x.op in SCALARS else x.op in ("cast", "round", "guard") for x in postorder((e,)))


def count(sizes: tuple[Dim, ...]) -> Dim:
    total: Dim = 1
    for s in sizes:
        total = total * s
    return total


def ranges_of(node: g.Node) -> tuple[Dim, ...]:
    return node.ranges if isinstance(node, g.Reduce) else node.outputs[0].dims


def run(placement: Placement, trace: Trace) -> Placement:
    return Inline(placement, trace).run()


class Inline:
    """`inlined` holds the Maps that are no nodes any more, with what they read already written out."""

    def __init__(self, placement: Placement, trace: Trace) -> None:
        self.placement, self.graph, self.trace = placement, placement.graph, trace
        self.users = self.graph.users()
        self.readers, self.kept = readers(self.graph), kept(self.graph)
        self.makers = self.graph.producers()
        self.inlined: dict[g.Value, g.Map] = {}

    def run(self) -> Placement:
        graph, nodes = self.graph, []
        for old in graph.nodes:
            node = self.expanded(old) if isinstance(old, (g.Map, g.Reduce)) and old not in self.placement.interpreted else old
            if node is not old:
                self.placement.side[node], self.placement.why[node] = self.placement.side[old], self.placement.why[old]
            if isinstance(node, g.Map) and isinstance(old, g.Map) and self.goes(node, old) and self.trace.allow("into its reader", node.origins):
                self.inlined[node.out] = node
                continue
            nodes.append(node)
        self.placement.graph = g.Graph(graph.inputs, graph.outputs, nodes, graph.constants, graph.symbols, graph.requirements)
        return self.placement

    def goes(self, node: g.Map, old: g.Map) -> bool:
        """Whether every reader can do the Map's work itself."""
        value = node.out
        users = list(dict.fromkeys(self.users.get(value, ())))
        if value in self.kept or not users or old in self.placement.interpreted or kind(value.dtype) in "sc":
            return False
        if any(x.op == "philox" for x in postorder((node.expr,))):
            return False
        side, size, work = self.placement.side[old], len(postorder((node.expr,))), cost(node.expr)
        several = len(users) > 1 or sum(len({x for x in loads(u.expr) if u.inputs[x.value] is value}) for u in users
                                        if isinstance(u, (g.Map, g.Reduce))) > 1
        if size > LARGEST or several and (work > CHEAP or len(node.inputs) > 1):
            return False
        after_kernel = any(isinstance(m := self.makers.get(v), g.Call) and m.kernel in KERNELS and self.readers[v] == 1 for v in node.inputs)
        return all(self.reads_once(u, value, side, work, after_kernel, len(node.inputs)) for u in users)

    def reads_once(self, user: g.Node, value: g.Value, side: str, work: int, after_kernel: bool, inputs: int) -> bool:
        if not isinstance(user, (g.Map, g.Reduce)) or user in self.placement.interpreted or self.placement.side[user] != side:
            return False
        here, there = count(ranges_of(user)), count(value.dims)
        same = here is there or here == there
        if after_kernel:
            return same and isinstance(user, g.Map)
        return same or work <= CHEAP and inputs <= 1

    def expanded(self, node: g.Map | g.Reduce) -> g.Map | g.Reduce:
        """With the inlined Maps it reads written out."""
        if not any(v in self.inlined for v in node.inputs):
            return node
        inputs = list(node.inputs)
        origins = node.origins

        def number(value: g.Value) -> int:
            if value not in inputs:
                inputs.append(value)
            return inputs.index(value)

        def leaf(e: Expr) -> Expr | None:
            nonlocal origins
            if e.op != "load" or node.inputs[e.value] not in self.inlined:
                return None
            part = self.inlined[node.inputs[e.value]]
            origins = merged(part.origins, origins)
            body = change_leaves(part.expr, lambda x: Expr("load", x.args, x.dtype, number(part.inputs[x.value])) if x.op == "load" else None)
            return cast(at_indices(body, e.args), part.out.dtype)
        expr = self.replaced(node.expr, leaf)
        used = sorted({x.value for x in postorder((expr,)) if x.op == "load"})
        place = {old: new for new, old in enumerate(used)}
        expr = self.replaced(expr, lambda x: Expr("load", x.args, x.dtype, place[x.value]) if x.op == "load" else None)
        values = tuple(inputs[k] for k in used)
        if isinstance(node, g.Map):
            return g.Map(values, node.outputs, expr=expr, origins=origins)
        return g.Reduce(values, node.outputs, ranges=node.ranges, over=node.over, fold=node.fold, expr=expr, origins=origins)

    @staticmethod
    def replaced(e: Expr, leaf: object) -> Expr:
        return change_leaves(e, leaf)  # type: ignore[arg-type]
