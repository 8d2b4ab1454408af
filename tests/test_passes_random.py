"""Every pass leaves what a graph computes as it was, and leaves a legal graph: random graphs at several sizes."""
from __future__ import annotations

import numpy as np
import pytest
from passes_oracle import apply, random_feeds, random_graph, run

from gpuonnx import passes
from gpuonnx.ir import graph as g
from gpuonnx.ir.verify import verify

SIZES = ((2, 4, 3), (3, 5, 2), (1, 1, 1), (4, 2, 5))


def assert_same(before: g.Graph, after: g.Graph, seed: int) -> None:
    for sizes in SIZES:
        feeds = random_feeds(seed, *sizes)
        for want, got in zip(run(before, feeds), run(after, feeds), strict=True):
            assert want.shape == got.shape and want.dtype == got.dtype
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0))))


@pytest.mark.parametrize("seed", range(30))
def test_each_pass_keeps_the_meaning(seed: int) -> None:
    graph = random_graph(seed)
    verify(graph)
    for name in (*passes.DEVICE_FREE, *passes.PER_DEVICE):
        after = apply(name, graph)
        verify(after)
        assert_same(graph, after, seed)
        graph = after


@pytest.mark.parametrize("seed", range(60, 68))
def test_a_stop_after_any_number_of_rewrites_is_a_legal_graph_with_the_same_meaning(seed: int) -> None:
    first, names = random_graph(seed), (*passes.DEVICE_FREE, *passes.PER_DEVICE)
    trace = passes.Trace()
    graph = first
    for name in names:
        graph = apply(name, graph, trace)
    for stop in {1, len(trace.events) // 3, len(trace.events) // 2, max(len(trace.events) - 1, 0)}:
        limited, graph = passes.Trace(limit=stop), first
        for name in passes.DEVICE_FREE:
            limited.current = name
            if not limited.stopped:
                graph = passes.function(name)(graph, limited)
        verify(graph)
        if not limited.stopped:
            from passes_oracle import placed
            graph = placed(graph, passes.PER_DEVICE, limited, stop).graph
        verify(graph)
        assert len(limited.events) <= stop
        assert_same(first, graph, seed)
