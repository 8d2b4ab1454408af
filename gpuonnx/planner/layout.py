"""How every buffer lies in memory: the layouts that kernels wish for, halos, parts of an Assemble written in place."""
from __future__ import annotations

from dataclasses import dataclass, field

from gpuonnx.devices.device import Device, Wish, Wishes
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim, dmax
from gpuonnx.planner.place import Placement
from gpuonnx.planner.program import HOST

Halo = tuple[tuple[Dim, Dim], ...]


@dataclass(frozen=True)
class Physical:
    """Axes from outermost to innermost, and the halo of each logical axis; `fill` is a scalar value or None for zeros."""

    order: tuple[int, ...]
    halo: Halo
    fill: g.Value | None = None

    @property
    def dense(self) -> bool:
        return self.order == tuple(range(len(self.order))) and not self.has_halo

    @property
    def has_halo(self) -> bool:
        return any(not (isinstance(side, int) and side == 0) for pair in self.halo for side in pair)


def plain(rank: int) -> Physical:
    return Physical(tuple(range(rank)), ((0, 0),) * rank)


@dataclass
class Layouts:
    """`physical` of every value that owns memory; `inside[part] = (whole, axis, offset)` for parts written in place."""

    graph: g.Graph
    physical: dict[g.Value, Physical] = field(default_factory=dict)
    inside: dict[g.Value, tuple[g.Value, int, Dim]] = field(default_factory=dict)


def choose(placement: Placement, devices: dict[str, Device]) -> Layouts:
    """Give every value a layout; insert Copy nodes where a wish cannot be met by the producer."""
    graph = placement.graph
    wishes = {n: devices[placement.side[n]].wishes(n) if n not in placement.interpreted else Wishes() for n in graph.nodes}
    graph, wishes = _copies_for_wishes(graph, placement, wishes)
    layouts = Layouts(graph)
    wished = _wished(graph, wishes)
    outputs = set(graph.outputs)
    makers = graph.producers()
    for node in graph.nodes:
        for k, value in enumerate(node.outputs):
            if value.shape is None or isinstance(node, g.View):
                continue
            layouts.physical[value] = _physical(node, k, value, wishes[node], wished.get(value), layouts, outputs, makers, placement)
    for value in (*graph.inputs, *graph.constants):
        if value.shape is not None:
            layouts.physical[value] = plain(value.rank)
    _parts(layouts, placement, outputs)
    return layouts


def _copies_for_wishes(graph: g.Graph, placement: Placement, wishes: dict[g.Node, Wishes]) -> tuple[g.Graph, dict[g.Node, Wishes]]:
    """A wished input that no node of ours makes (an input, constant, view) or that is an output gets a Copy of its own."""
    makers, outputs = graph.producers(), set(graph.outputs)
    nodes: list[g.Node] = []
    out_wishes: dict[g.Node, Wishes] = {}
    moved: dict[tuple[g.Value, Wish], g.Value] = {}
    renamed: dict[g.Value, g.Value] = {}
    fills: dict[g.Value, g.Value | None] = {}
    for node in graph.nodes:
        wish = wishes[node]
        changes: dict[g.Value, g.Value] = {}
        for k, w in wish.inputs.items():
            value, fill = node.inputs[k], None if w.fill is None else node.inputs[w.fill]
            maker = makers.get(value)
            own = maker is not None and not isinstance(maker, (g.View, g.Host, g.If, g.Loop)) and maker not in placement.interpreted
            if own and value not in outputs and fills.setdefault(value, fill) is fill:
                continue
            if (value, w) not in moved:
                fresh = g.Value(value.dtype, value.shape, value.name)
                copy = g.Copy((value,), (fresh,), why="layout that the kernel reads", origins=node.origins)
                placement.side[copy], placement.why[copy] = placement.side[node], "layout that the kernel reads"
                nodes.append(copy)
                out_wishes[copy] = Wishes()
                moved[value, w] = fresh
            changes[value] = moved[value, w]
        fresh_node = node.moved(changes)
        _renew(placement, node, fresh_node)
        nodes.append(fresh_node)
        out_wishes[fresh_node] = wish
        for k in wish.outputs:
            value = node.outputs[k]
            if value in outputs:
                dense = g.Value(value.dtype, value.shape, value.name)
                copy = g.Copy((value,), (dense,), why="an output is dense", origins=node.origins)
                placement.side[copy], placement.why[copy] = placement.side[node], "an output is dense"
                nodes.append(copy)
                out_wishes[copy] = Wishes()
                renamed[value] = dense
    final = tuple(renamed.get(v, v) for v in graph.outputs)
    return g.Graph(graph.inputs, final, nodes, graph.constants, graph.symbols, graph.requirements), out_wishes


def _renew(placement: Placement, old: g.Node, new: g.Node) -> None:
    if new is not old:
        placement.side[new], placement.why[new] = placement.side[old], placement.why[old]
        if old in placement.interpreted:
            placement.interpreted.add(new)


def _wished(graph: g.Graph, wishes: dict[g.Node, Wishes]) -> dict[g.Value, tuple[Wish, g.Value | None]]:
    """The wish of all readers of a value together: one order, the largest halo."""
    found: dict[g.Value, tuple[Wish, g.Value | None]] = {}
    for node in graph.nodes:
        for k, w in wishes[node].inputs.items():
            value, fill = node.inputs[k], None if w.fill is None else node.inputs[w.fill]
            if value in found:
                old = found[value][0]
                halo = tuple((dmax(a[0], b[0]), dmax(a[1], b[1])) for a, b in zip(old.halo, w.halo, strict=True))
                w = Wish(w.order, halo, w.fill)
            found[value] = (w, fill)
    return found


def _physical(node: g.Node, k: int, value: g.Value, own: Wishes, wished: tuple[Wish, g.Value | None] | None, layouts: Layouts,
              outputs: set[g.Value], makers: dict[g.Value, g.Node], placement: Placement) -> Physical:
    base = plain(value.rank)
    if value in outputs or isinstance(node, (g.Host, g.If, g.Loop)) or node in placement.interpreted:
        return base
    if wished is not None:
        return Physical(wished[0].order, wished[0].halo, wished[1])
    if k in own.outputs:
        return Physical(own.outputs[k].order, base.halo)
    if isinstance(node, (g.Map, g.Reduce, g.Nest, g.Assemble, g.Call)) and placement.side[node] == HOST and value.rank > 2:
        return Physical(_inherited(node, value, layouts), base.halo)
    return base


def _inherited(node: g.Node, value: g.Value, layouts: Layouts) -> tuple[int, ...]:
    """The order of the input, not row-major, that has most sizes in common with `value`, the innermost among them (or joined): then
    reads and writes run along the same axis."""
    best, most = plain(value.rank).order, 0
    for source in node.inputs:
        known = layouts.physical.get(source)
        if known is None or source.shape is None or len(source.shape) != value.rank or known.order == plain(value.rank).order:
            continue
        alike = [a is b or a == b for a, b in zip(source.dims, value.dims, strict=True)]
        if (alike[known.order[-1]] or isinstance(node, g.Assemble)) and sum(alike) > most:
            best, most = known.order, sum(alike)
    return best


def _parts(layouts: Layouts, placement: Placement, outputs: set[g.Value]) -> None:
    """Producers of an Assemble's inputs write straight into the whole where nothing forbids it."""
    graph = layouts.graph
    makers = graph.producers()
    for node in reversed(graph.nodes):
        if not isinstance(node, g.Assemble) or node in placement.interpreted:
            continue
        offset: Dim = 0
        for part in node.inputs:
            maker = makers.get(part)
            if _may_lie_inside(part, node, maker, layouts, placement, outputs):
                layouts.inside[part] = (node.out, node.axis, offset)
            offset = offset + part.dims[node.axis]


def _may_lie_inside(part: g.Value, whole: g.Assemble, maker: g.Node | None, layouts: Layouts, placement: Placement,
                    outputs: set[g.Value]) -> bool:
    if maker is None or part in outputs or part in layouts.inside or whole.inputs.count(part) > 1:
        return False
    if isinstance(maker, (g.View, g.Host, g.If, g.Loop, g.Scatter)) or maker in placement.interpreted:
        return False
    if isinstance(maker, g.Call) and maker.kernel not in ("gemm", "gemm_int8") and not maker.kernel.startswith("conv"):
        return False
    here, there = layouts.physical[part], layouts.physical[whole.out]
    if here.has_halo or here.order != there.order or placement.side[maker] != placement.side[whole]:
        return False
    return not isinstance(maker, g.Copy)
