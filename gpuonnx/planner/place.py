"""Host or device for every node, with the reason; Copy nodes where a value is needed on the other side."""
from __future__ import annotations

from dataclasses import dataclass, field

from gpuonnx.devices.device import Device
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.planner.program import DEVICE, HOST

SMALL = 64
SIZES = "later sizes are read from it"


@dataclass
class Placement:
    """`side` and `why` by node; `resident`, the inputs that lie on the device (constants and views follow their use); `devices` by side."""

    graph: g.Graph
    side: dict[g.Node, str] = field(default_factory=dict)
    why: dict[g.Node, str] = field(default_factory=dict)
    interpreted: set[g.Node] = field(default_factory=set)
    resident: set[g.Value] = field(default_factory=set)
    devices: dict[str, Device] = field(default_factory=dict)


def place(graph: g.Graph, cpu: Device, accelerator: Device | None, carried: int = -1) -> Placement:
    """Decide for every node. A node that no kernel of the CPU can run is interpreted (NumPy), and says why. carried: of the Loop whose body
    this is; what its turns hand on, and what they all read, then lies where it is read and made."""
    placement = Placement(graph, devices={HOST: cpu} | ({} if accelerator is None else {DEVICE: accelerator}))
    for node in graph.nodes:
        side, why = _side(node, placement, accelerator)
        placement.side[node], placement.why[node] = side, why
        if side == HOST and not isinstance(node, (g.View, g.Host, g.If, g.Loop)):
            reason = cpu.supports(g.Copy((node.out,), (node.out,)) if isinstance(node, g.Assemble) else node)
            if reason is not None:
                placement.interpreted.add(node)
                placement.why[node] = f"interpreted: {reason}"
    if accelerator is not None:
        if carried >= 0:
            placement.resident = _read_there(placement)
        _copies(placement, carried)
    return placement


def _read_there(placement: Placement) -> set[g.Value]:
    """The inputs of a Loop's body that nodes on the device read, but for the number of the turn and what sizes are read from."""
    graph, read = placement.graph, {s.value for s in placement.graph.symbols.values() if s.element is not None}
    views: dict[g.Value, g.Value] = {}
    found: set[g.Value] = set()
    for node in graph.nodes:
        if isinstance(node, g.View):
            views[node.out] = views.get(node.inputs[0], node.inputs[0])
        elif placement.side[node] == DEVICE:
            found |= {views.get(v, v) for v in node.inputs}
    return {v for v in graph.inputs[2:] if v in found and v not in read}


def _side(node: g.Node, placement: Placement, accelerator: Device | None) -> tuple[str, str]:
    if isinstance(node, (g.Host, g.If, g.Loop)):
        return HOST, node.why if isinstance(node, g.Host) else "control flow runs on the host"
    if accelerator is None:
        return HOST, "the session's device is the CPU"
    if isinstance(node, g.View):
        return HOST, "lies where its input lies"
    if _is_shape_work(node):
        return HOST, "small integer work"
    reason = accelerator.supports(node)
    return (DEVICE, f"runs on {accelerator.name}") if reason is None else (HOST, reason)


def _is_shape_work(node: g.Node) -> bool:
    """A few integers: shapes and indices that the host will read."""
    def small(v: g.Value) -> bool:
        if v.shape is None or types.kind(v.dtype) not in "iub" or not all(isinstance(s, int) for s in v.shape):
            return False
        count = 1
        for s in v.shape:
            count *= int(s)  # type: ignore[arg-type]
        return count <= SMALL
    return all(small(v) for v in (*node.inputs, *node.outputs)) and not isinstance(node, g.Call)


def _copies(placement: Placement, carried: int) -> None:
    """Rewrite the graph with Copy nodes; a View lies where its input lies, a carried value of a Loop's body where it is made."""
    graph = placement.graph
    home: dict[g.Value, str] = {v: DEVICE if v in placement.resident else HOST for v in graph.inputs}
    copied: dict[tuple[g.Value, str], g.Value] = {}
    nodes: list[g.Node] = []
    origins: dict[g.Value, tuple[str, ...]] = {}
    read = {s.value for s in graph.symbols.values()}

    def on(value: g.Value, side: str, why: str, reader: g.Node | None = None) -> g.Value:
        if value in graph.constants or home[value] == side or value.shape is None:
            return value
        if (value, side) not in copied:
            moved = g.Value(value.dtype, value.shape, value.name)
            copy = g.Copy((value,), (moved,), why=why, origins=reader.origins if reader is not None else origins.get(value, ()))
            placement.side[copy], placement.why[copy] = side, why
            nodes.append(copy)
            home[moved] = side
            copied[value, side] = moved
        return copied[value, side]

    for node in graph.nodes:
        side = placement.side[node]
        if isinstance(node, g.View):
            source = node.inputs[0]
            side = HOST if source in graph.constants else home[source]
            placement.side[node] = side
            new: g.Node = node
        else:
            why = f"{_label(node)}, which reads it, {'runs on the host: ' if side == HOST else ''}{placement.why[node]}"
            new = node.moved({v: on(v, side, why, node) for v in node.inputs})
        if new is not node:
            placement.side[new], placement.why[new] = side, placement.why[node]
            if node in placement.interpreted:
                placement.interpreted.add(new)
        home.update(dict.fromkeys(new.outputs, side))
        origins.update(dict.fromkeys(new.outputs, new.origins))
        nodes.append(new)
        for value in new.outputs:
            if value in read:
                on(value, HOST, SIZES)
    outputs = tuple(v if 0 < k <= carried else on(v, HOST, "outputs are handed to the caller") for k, v in enumerate(graph.outputs))
    elsewhere = home.keys() - placement.resident
    sources = {name: g.Source(on(s.value, HOST, SIZES) if s.value in elsewhere else s.value, s.axis, s.element)
               for name, s in graph.symbols.items()}
    placement.graph = g.Graph(graph.inputs, outputs, nodes, graph.constants, sources, graph.requirements)


def _label(node: g.Node) -> str:
    return ", ".join(node.origins) or type(node).__name__
