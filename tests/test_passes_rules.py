"""What single passes do: rules by name, switches, and what must not happen."""
from __future__ import annotations

from typing import Any

import numpy as np
from passes_oracle import apply, built, placed, run

from gpuonnx import passes
from gpuonnx.ir import build as b
from gpuonnx.ir import graph as g
from gpuonnx.ir.verify import verify

X: dict[str, Any] = {"x": ("f32", ("N", 3))}
CUBE: dict[str, Any] = {"x": ("f32", ("N", 5, "M"))}


def kinds(graph: g.Graph) -> list[str]:
    return [type(n).__name__ for n in graph.nodes]


def everything(graph: g.Graph, *off: str, trace: passes.Trace | None = None) -> g.Graph:
    """All passes but some, the result legal."""
    trace = trace or passes.Trace()
    graph = passes.run_pipeline(graph, passes.DEVICE_FREE, off, None, trace)
    graph = placed(graph, [n for n in passes.PER_DEVICE if n not in off], trace).graph
    verify(graph)
    return graph


def softmax(x: b.Tensor, axis: int) -> b.Tensor:
    e = b.elementwise("exp", x - x.max([axis], True))
    return e / e.sum([axis], True)


def gelu(x: b.Tensor) -> b.Tensor:
    return x * 0.5 * (b.elementwise("erf", x / 1.4142135) + 1.0)


def test_softmax_is_one_nest_of_three_stages() -> None:
    graph = built(CUBE, lambda x: [softmax(x, 1)])
    (nest,) = [n for n in everything(graph).nodes if isinstance(n, g.Nest)]
    assert len(everything(graph).nodes) == 1
    assert [[getattr(a, "op", "store") for a in stage] for stage in nest.stages] == [["max"], ["sum"], ["store"]]


def test_layer_norm_is_one_nest() -> None:
    def normal(x: b.Tensor) -> list[b.Tensor]:
        centred = x - x.mean([2], True)
        return [centred / b.elementwise("sqrt", (centred * centred).mean([2], True) + 1e-5)]
    assert kinds(everything(built(CUBE, normal))) == ["Nest"]


def test_an_activation_spelled_out_is_one_map() -> None:
    assert kinds(everything(built(CUBE, lambda x: [gelu(x)]))) == ["Map"]


def test_views_run_nothing_and_compose() -> None:
    def turned(x: b.Tensor) -> list[b.Tensor]:
        return [x.transpose([2, 0, 1]).transpose([1, 2, 0]) + 1.0]
    assert kinds(everything(built(CUBE, turned))) == ["Map"]


def test_the_first_part_of_an_axis_is_no_reshape() -> None:
    graph = built({"x": ("f32", ("N", 3, 8))}, lambda x: [x.slice(2, 0, 4).reshape(x.shape[0], 6, 2)])
    x = np.arange(48, dtype=np.float32).reshape(2, 3, 8)
    np.testing.assert_array_equal(run(everything(graph), [x])[0], x[:, :, :4].reshape(2, 6, 2))


def test_what_costs_much_is_not_computed_again_in_a_broadcast() -> None:
    def spread(x: b.Tensor) -> list[b.Tensor]:
        return [b.elementwise("exp", x.slice(0, 0, 1)) + x]
    assert kinds(everything(built(CUBE, spread))).count("Map") == 2


def test_bias_and_activation_run_in_the_product() -> None:
    def dense(x: b.Tensor) -> list[b.Tensor]:
        y = b.call("gemm", x, b.constant(np.ones((3, 4), np.float32)), out=x.like(x.shape[0], 4))
        return [b.elementwise("relu", y + b.constant(np.float32([0, 1, 2, 3])))]
    graph = built(X, dense)
    after = everything(graph)
    (call,) = after.nodes
    assert isinstance(call, g.Call) and call.operands == 1
    feed = [np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)]
    np.testing.assert_allclose(run(after, feed)[0], run(graph, feed)[0], rtol=1e-6)


def test_a_product_that_two_read_keeps_its_result() -> None:
    def twice(x: b.Tensor) -> list[b.Tensor]:
        y = b.call("gemm", x, b.constant(np.ones((3, 4), np.float32)), out=x.like(x.shape[0], 4))
        return [y, y + 1.0]
    assert all(n.epilogue is None for n in everything(built(X, twice)).nodes if isinstance(n, g.Call))


def test_a_value_whose_size_is_read_during_the_run_keeps_its_place() -> None:
    def counted(x: b.Tensor) -> list[b.Tensor]:
        flags = b.elementwise("greater", x.sum([1]), 0.0)
        return [b.positions(flags), softmax(x, 1)]
    graph = built(X, counted)
    after = everything(graph)
    feed = [np.float32([[1, 2, 3], [-1, -2, 0], [0, 1, 0], [4, -5, 0]])]
    for want, got in zip(run(graph, feed), run(after, feed), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_equal_nodes_become_one() -> None:
    trace = passes.Trace()
    graph = apply("cse", built(X, lambda x: [b.elementwise("exp", x) + 1.0, b.elementwise("exp", x) + 2.0]), trace)
    assert len(graph.nodes) == 3 and [e.rule for e in trace.events] == ["equal nodes"] and trace.events[0].origins == ("made",)


def test_a_pass_can_be_switched_off_by_name() -> None:
    graph, trace = built(CUBE, lambda x: [softmax(x, 1)]), passes.Trace()
    assert "Nest" not in kinds(everything(graph, "nests", trace=trace))
    assert {e.pass_name for e in trace.events} & {"nests"} == set()
    assert set(kinds(everything(graph, *passes.DEVICE_FREE, *passes.PER_DEVICE))) == {"Map", "Reduce", "View"}


def test_stop_after_counts_rewrites() -> None:
    graph, trace = built(CUBE, lambda x: [softmax(x, 1)]), passes.Trace()
    passes.run_pipeline(graph, passes.DEVICE_FREE, (), 2, trace)
    assert len(trace.events) == 2 and trace.stopped
    assert "simplify" in str(trace) or "fold" in str(trace)


def test_two_folds_of_one_tensor_share_a_pass_over_it() -> None:
    (nest,) = everything(built(CUBE, lambda x: [x.max() - x.min()]), "parts").nodes
    assert isinstance(nest, g.Nest) and [[getattr(a, "op", "store") for a in stage] for stage in nest.stages] == [["max", "min"], ["store"]]


def test_a_fold_does_not_join_over_the_head_of_a_reader() -> None:
    def ordered(x: b.Tensor) -> list[b.Tensor]:
        high = x.max([2])
        y = b.call("gemm", high, b.constant(np.ones((5, 4), np.float32)), out=x.like(x.shape[0], 4))
        return [y, x.min([2])]
    graph = built(CUBE, ordered)
    after = everything(graph)
    feed = [np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)]
    for want, got in zip(run(graph, feed), run(after, feed), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_fold_of_everything_is_done_in_parts() -> None:
    def make(x: b.Tensor) -> list[b.Tensor]:
        return [x.sum([0, 1, 2]), x.max([0, 1, 2])]
    graph = built({"x": ("f32", ("N", "M", 600))}, make)
    after = apply("parts", graph)
    verify(after)
    assert [n.over for n in after.nodes if isinstance(n, g.Reduce)] == [(1, 2), (1, 2), (0,), (0,)]
    x = np.random.default_rng(0).standard_normal((5, 4, 600)).astype(np.float32)
    for before, now in zip(run(graph, [x]), run(after, [x]), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-5)
    assert any(isinstance(n, g.Nest) and len(n.outputs) == 2 for n in everything(graph).nodes)


def test_a_small_fold_stays_whole() -> None:
    graph = built({"x": ("f32", (8, 9, 600))}, lambda x: [x.sum([0, 1, 2])])
    assert kinds(apply("parts", graph)) == ["Reduce"]
