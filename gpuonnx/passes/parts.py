"""parts: a fold of a whole tensor into one number is done in parts, one for each index of its outer axes, so that many threads have tasks."""
from __future__ import annotations

from typing import TYPE_CHECKING

from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import index, load
from gpuonnx.passes.inline import count
from gpuonnx.passes.rewrite import Trace
from gpuonnx.passes.views import one

if TYPE_CHECKING:
    from gpuonnx.planner.place import Placement

FOLDS = ("sum", "prod", "min", "max", "any", "all")
LEAST, INNER = 1 << 16, 1 << 10


def run(placement: Placement, trace: Trace) -> Placement:
    """On the host; on a device the kernels of folds see to it themselves. The fold of the parts waits for who reads it, so that folds of one
    tensor stand side by side."""
    graph, nodes, waiting = placement.graph, list[g.Node](), dict[g.Value, g.Node]()
    sources = {s.value for s in graph.symbols.values()}
    for node in graph.nodes:
        nodes += [waiting.pop(v) for v in dict.fromkeys(node.inputs) if v in waiting]
        outer = outer_axes(node) if isinstance(node, g.Reduce) and placement.side[node] == "host" and node not in placement.interpreted else ()
        if not isinstance(node, g.Reduce) or not outer or not trace.allow("in parts", node.origins, f"{node.fold} by {len(outer)} axes"):
            nodes.append(node)
            continue
        parts, whole = split(node, outer)
        for made in (parts, whole):
            placement.side[made], placement.why[made] = placement.side[node], placement.why[node]
        nodes.append(parts)
        if node.out in sources:
            nodes.append(whole)
        else:
            waiting[node.out] = whole
    nodes += waiting.values()
    placement.graph = g.Graph(graph.inputs, graph.outputs, nodes, graph.constants, graph.symbols, graph.requirements)
    return placement


def outer_axes(node: g.Reduce) -> tuple[int, ...]:
    """The folded axes that the parts are for; none where the fold is small, has several results, or runs along one axis."""
    total = count(node.ranges)
    wide = [a for a in node.over if not one(node.ranges[a])]
    if node.fold not in FOLDS or isinstance(total, int) and total < LEAST or any(not one(s) for a, s in enumerate(node.ranges) if a not in node.over):
        return ()
    inner = wide[-1:]
    width = node.ranges[inner[0]] if inner else 1
    if len(wide) > 2 and isinstance(width, int) and width < INNER:
        inner = wide[-2:]
    return tuple(a for a in wide if a not in inner)


def split(node: g.Reduce, outer: tuple[int, ...]) -> tuple[g.Reduce, g.Reduce]:
    """The folds of the parts, and the fold of those."""
    over = tuple(a for a in node.over if a not in outer)
    kept = [a for a in range(len(node.ranges)) if a not in over]
    part = g.Value(node.expr.dtype, tuple(node.ranges[a] for a in kept))
    first = g.Reduce(node.inputs, (part,), ranges=node.ranges, over=over, fold=node.fold, expr=node.expr, origins=node.origins)
    here = load(0, part.dtype, tuple(map(index, range(len(kept)))))
    second = g.Reduce((part,), node.outputs, ranges=part.dims, over=tuple(k for k, a in enumerate(kept) if a in outer), fold=node.fold, expr=here,
                      origins=node.origins)
    return first, second
