"""requantise: what quantises sums of scaled integers has the new scale in their factors: rint((i * a + b) / s) is rint(i * (a / s) + b / s).

The factors are constants and divided once, in double precision. A quotient that lies within a rounding error of half way between two
integers may go to the other one: this reassociates, as integer kernels everywhere do, and the trace says so."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, const, postorder, rewrite
from gpuonnx.ir.types import kind
from gpuonnx.passes.rewrite import Trace, named, numbered

if TYPE_CHECKING:
    from gpuonnx.planner.place import Placement

RULE = "into the factors (reassociates)"


def run(placement: Placement, trace: Trace) -> Placement:
    graph = placement.graph
    constants = dict(graph.constants)
    divided: dict[tuple[g.Value, float], g.Value] = {}
    nodes: list[g.Node] = []
    for node in graph.nodes:
        new = Requantise(node, constants, divided).run(trace) if isinstance(node, g.Map) and node not in placement.interpreted else node
        if new is not node:
            placement.side[new], placement.why[new] = placement.side[node], placement.why[node]
        nodes.append(new)
    placement.graph = g.Graph(graph.inputs, graph.outputs, nodes, constants, graph.symbols, graph.requirements)
    return placement


class Requantise:
    """One Map; loads of the expression at work hold the value they read."""

    def __init__(self, node: g.Map, constants: dict[g.Value, np.ndarray], divided: dict[tuple[g.Value, float], g.Value]) -> None:
        self.node, self.constants, self.divided = node, constants, divided

    def run(self, trace: Trace) -> g.Map:
        node = self.node
        if not any(e.op == "rint" and e.args[0].op == "div" for e in postorder((node.expr,))):
            return node
        expr = named(node.expr, node.inputs)
        (changed,) = rewrite((expr,), self._rounded)
        if changed == expr or not trace.allow(RULE, node.origins):
            return node
        inputs, (numbers,) = numbered([changed], ())
        return g.Map(inputs, node.outputs, expr=numbers, origins=node.origins)

    def _rounded(self, e: Expr) -> Expr:
        if e.op != "rint" or e.args[0].op != "div" or e.dtype != "f32":
            return e
        quotient = e.args[0]
        scale = self._scalar(quotient.args[1])
        inner = self._over(quotient.args[0], scale) if scale else None
        return e if inner is None else Expr("rint", (inner,), e.dtype)

    def _scalar(self, e: Expr) -> float | None:
        """A positive number that is known."""
        if e.op == "const":
            number = float(e.value)
        elif e.op == "load" and e.value in self.constants and self.constants[e.value].size == 1:
            number = float(self.constants[e.value].reshape(()))
        else:
            return None
        return number if number > 0 and np.isfinite(number) else None

    def _over(self, e: Expr, scale: float) -> Expr | None:
        """`e` / scale, where every term of `e` has a constant factor and the other one is an integer."""
        if e.op in ("add", "sub", "max", "min"):
            parts = [self._over(a, scale) for a in e.args]
            return None if any(p is None for p in parts) else Expr(e.op, tuple(p for p in parts if p is not None), e.dtype)
        if e.op == "mul":
            for number, factor in (e.args, e.args[::-1]):
                if number.op == "cast" and kind(number.args[0].dtype) in "iu":
                    part = self._constant(factor, scale)
                    return None if part is None else Expr("mul", (number, part), e.dtype)
            return None
        return self._constant(e, scale)

    def _constant(self, e: Expr, scale: float) -> Expr | None:
        if e.op == "const":
            return const(float(np.float32(float(e.value) / scale)), e.dtype)
        if e.op != "load" or e.value not in self.constants or e.dtype != "f32":
            return None
        key: Any = e.value, scale
        if key not in self.divided:
            array = (self.constants[e.value].astype(np.float64) / scale).astype(np.float32)
            made = g.Value("f32", array.shape)
            self.constants[made] = array
            self.divided[key] = made
        return Expr("load", e.args, e.dtype, self.divided[key])
