"""PIPELINE: the only place that knows the order of the passes. A pass is a function from a graph to a graph.

With GPUONNX_VERIFY=1 in the environment the legal forms (`ir/verify.py`) are checked before the first pass and after each."""
from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from gpuonnx.ir.graph import Graph
from gpuonnx.passes.rewrite import Event, Trace

if TYPE_CHECKING:
    from gpuonnx.planner.place import Placement

Pass = Callable[[Graph, Trace], Graph]

PIPELINE: dict[str, tuple[str, str]] = {
    "fold": ("fold", "run"),
    "simplify": ("simplify", "run"),
    "cse": ("dead", "cse"),
    "recognise": ("recognise", "run"),
    "weights": ("fold", "weights"),
    "dead": ("dead", "run"),
    "inline": ("inline", "run"),
    "requantise": ("requantise", "run"),
    "parts": ("parts", "run"),
    "epilogue": ("epilogue", "run"),
    "nests": ("nests", "run"),
    "attention": ("attention", "run"),
}
DEVICE_FREE = ("fold", "simplify", "cse", "recognise", "weights", "simplify", "dead")
HOST_ONLY = frozenset({"recognise"})
PER_DEVICE = ("inline", "requantise", "parts", "epilogue", "nests", "attention")


def function(name: str) -> Pass:
    """The pass of that name."""
    module, attribute = PIPELINE[name]
    return getattr(import_module(f"gpuonnx.passes.{module}"), attribute)  # type: ignore[no-any-return]


VERIFY_VARIABLE = "GPUONNX_VERIFY"


def check(graph: Graph, after: str) -> None:
    """Raises IllegalGraph, where checking is switched on."""
    if os.environ.get(VERIFY_VARIABLE) not in (None, "", "0"):
        from gpuonnx.ir.verify import IllegalGraph, verify
        try:
            verify(graph)
        except IllegalGraph as error:
            raise IllegalGraph(f"after {after}: {error}") from None


def run_pipeline(graph: Graph, names: Sequence[str], off: Collection[str], stop_after: int | None, trace: Trace) -> Graph:
    """Run passes in order, leaving out those in `off`; after `stop_after` rewrites the rest changes nothing."""
    trace.limit = stop_after
    check(graph, "lowering")
    for name in names:
        if name not in off and not trace.stopped:
            trace.current = name
            graph = function(name)(graph, trace)
            check(graph, name)
    return graph


def run_placed(placement: Placement, names: Sequence[str], off: Collection[str], stop_after: int | None, trace: Trace) -> Placement:
    """The passes that come after placement; each keeps sides and reasons for the nodes it makes."""
    trace.limit = stop_after
    check(placement.graph, "placement")
    for name in names:
        if name not in off and not trace.stopped:
            trace.current = name
            module, attribute = PIPELINE[name]
            placement = getattr(import_module(f"gpuonnx.passes.{module}"), attribute)(placement, trace)
            check(placement.graph, name)
    return placement


__all__ = ["DEVICE_FREE", "HOST_ONLY", "PER_DEVICE", "PIPELINE", "Event", "Trace", "run_pipeline", "run_placed"]
