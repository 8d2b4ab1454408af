"""PIPELINE: the only place that knows the order of the passes. A pass is a function from a graph to a graph."""
from __future__ import annotations

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
    "weights": ("fold", "weights"),
    "dead": ("dead", "run"),
    "inline": ("inline", "run"),
    "epilogue": ("epilogue", "run"),
    "nests": ("nests", "run"),
}
DEVICE_FREE = ("fold", "simplify", "cse", "weights", "simplify", "dead")
PER_DEVICE = ("inline", "epilogue", "nests")


def function(name: str) -> Pass:
    """The pass of that name."""
    module, attribute = PIPELINE[name]
    return getattr(import_module(f"gpuonnx.passes.{module}"), attribute)  # type: ignore[no-any-return]


def run_pipeline(graph: Graph, names: Sequence[str], off: Collection[str], stop_after: int | None, trace: Trace) -> Graph:
    """Run passes in order, leaving out those in `off`; after `stop_after` rewrites the rest changes nothing."""
    trace.limit = stop_after
    for name in names:
        if name not in off and not trace.stopped:
            trace.current = name
            graph = function(name)(graph, trace)
    return graph


def run_placed(placement: Placement, names: Sequence[str], off: Collection[str], stop_after: int | None, trace: Trace) -> Placement:
    """The passes that come after placement; each keeps sides and reasons for the nodes it makes."""
    trace.limit = stop_after
    for name in names:
        if name not in off and not trace.stopped:
            trace.current = name
            module, attribute = PIPELINE[name]
            placement = getattr(import_module(f"gpuonnx.passes.{module}"), attribute)(placement, trace)
    return placement


__all__ = ["DEVICE_FREE", "PER_DEVICE", "PIPELINE", "Event", "Trace", "run_pipeline", "run_placed"]
