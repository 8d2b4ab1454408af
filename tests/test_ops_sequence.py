"""Sequences and optionals."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from op_runner import cases_of, check_case, compare, lowered, procedure, run

from gpuonnx.errors import GpuOnnxError
from gpuonnx.ir import graph as g
from gpuonnx.runtime.host import HOST_FUNCTIONS

RNG = np.random.default_rng(5)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", cases_of("sequence", also=["SequenceMap"]), ids=lambda c: c.name)
def test_official(case: Any) -> None:
    check_case(case, free=False)


def model(nodes: list[Any], inputs: dict[str, int], outputs: list[str], ranks: dict[str, int]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, t, [None] * ranks.get(n, 0)) for n, t in inputs.items()]
    graph = helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name=o) for o in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def constant(name: str, value: Any) -> Any:
    return helper.make_node("Constant", [], [name], value_int=value)


def test_a_sequence_of_known_elements_leaves_no_python() -> None:
    nodes = [helper.make_node("SplitToSequence", ["x", "two"], ["s"], axis=0), constant("two", 2), constant("last", -1),
             helper.make_node("SequenceInsert", ["s", "y"], ["t"]), helper.make_node("SequenceAt", ["t", "last"], ["z"]),
             helper.make_node("SequenceLength", ["t"], ["n"])]
    nodes.insert(0, nodes.pop(1))
    nodes.insert(0, nodes.pop(2))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(n, 1, [6, 2]) for n in "xy"],
                              [onnx.ValueInfoProto(name=o) for o in "zn"])
    work = procedure(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    x, y = floats(6, 2), floats(6, 2)
    variant = lowered(work, [x, y])
    assert variant.rest is None
    used = {v for n in variant.graph.nodes if not isinstance(n, g.Host) for v in n.inputs} | set(variant.graph.outputs)
    assert not any(isinstance(n, g.Host) and used & set(n.outputs) for n in variant.graph.nodes)
    ours = run(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), [x, y])
    compare(ours[0], y)
    assert ours[1] == 4


def test_a_position_known_during_the_run() -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x", "y"], ["s"]), helper.make_node("Abs", ["p"], ["q"]),
             helper.make_node("SequenceAt", ["s", "q"], ["z"]), helper.make_node("Neg", ["z"], ["out"])]
    work = model(nodes, {"x": 1, "y": 1, "p": 7}, ["out"], {"x": 2, "y": 1})
    x, y = floats(2, 2), floats(3)
    compare(run(work, [x, y, np.int64(-1)])[0], -y)
    compare(run(work, [x, y, np.int64(0)])[0], -x)


def test_positions_are_checked() -> None:
    for name, arrays in (("sequence_at", [[np.zeros(1)], np.int64(1)]), ("sequence_erase", [[], np.int64(0)]),
                         ("sequence_insert", [[np.zeros(1)], np.zeros(1), np.int64(-2)])):
        with pytest.raises(IndexError, match="position"):
            HOST_FUNCTIONS[name](arrays, {})
    nodes = [constant("five", 5), helper.make_node("SequenceConstruct", ["x"], ["s"]), helper.make_node("SequenceAt", ["s", "five"], ["z"])]
    with pytest.raises(GpuOnnxError, match="position 5"):
        run(model(nodes, {"x": 1}, ["z"], {"x": 1}), [floats(2)])


def test_elements_are_copies() -> None:
    """A sequence outlives the memory that its elements were computed in."""
    x = floats(4)
    (made,) = HOST_FUNCTIONS["sequence_construct"]([x], {})
    before = x.copy()
    x[:] = 0
    compare(made[0], before)


def test_splits_fed_at_run_time() -> None:
    nodes = [helper.make_node("Abs", ["parts"], ["p"]), helper.make_node("SplitToSequence", ["x", "p"], ["s"], axis=1),
             helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)]
    work = model(nodes, {"x": 1, "parts": TensorProto.INT64}, ["s", "y"], {"x": 2, "parts": 1})
    x = floats(2, 6)
    parts, y = run(work, [x, np.int64([3, 3])])
    compare(parts, [x[:, :3], x[:, 3:]])
    compare(y, np.concatenate([x[:, :3], x[:, 3:]]))
    parts, _ = run(model(nodes[:2] + [nodes[2]], {"x": 1, "parts": TensorProto.INT64}, ["s", "y"], {"x": 2, "parts": 0}), [x, np.int64(3)])
    compare(parts, [x[:, :3], x[:, 3:]])
