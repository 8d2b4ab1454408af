"""The planner's stages in order: placement, kernels, layouts, places, memory, program."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gpuonnx.devices.device import Device
from gpuonnx.ir import graph as g
from gpuonnx.planner.assemble import Assembler
from gpuonnx.planner.emit import Emitter
from gpuonnx.planner.layout import choose
from gpuonnx.planner.place import Placement, place
from gpuonnx.planner.program import DEVICE, HOST, Program


def select(placement: Placement, devices: Mapping[str, Device]) -> Placement:
    """Let each device choose the kernel of its Calls (direct, depthwise, Winograd...)."""
    graph = placement.graph
    nodes: list[g.Node] = []
    for node in graph.nodes:
        if not isinstance(node, g.Call) or node in placement.interpreted:
            nodes.append(node)
            continue
        constants: dict[int, np.ndarray] = {k: graph.constants[v] for k, v in enumerate(node.inputs) if v in graph.constants}
        chosen = devices[placement.side[node]].choose(node, constants)
        placement.side[chosen], placement.why[chosen] = placement.side[node], placement.why[node]
        nodes.append(chosen)
    placement.graph = g.Graph(graph.inputs, graph.outputs, nodes, graph.constants, graph.symbols, graph.requirements)
    return placement


def plan(placement: Placement, cpu: Device, accelerator: Device | None, binding: Mapping[str, int | float]) -> Program:
    """A placed and fused graph as a Program."""
    devices: dict[str, Device] = {HOST: cpu, DEVICE: accelerator or cpu}
    placement = select(placement, devices)
    layouts = choose(placement, devices)
    assembler = Assembler(layouts, placement, devices, binding)
    assembler.run()
    return Emitter(assembler).program()


__all__ = ["place", "plan"]
