"""Shapes, views and indices: the official cases, old versions, and that sizes stay symbolic."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from op_runner import Execution, cases_of, check_case, compare, lowered, node_model, procedure, run, run_node

from gpuonnx.errors import DeviceError, GpuOnnxError
from gpuonnx.ir import graph as g

RNG = np.random.default_rng(2)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", cases_of("shape", "index"), ids=lambda c: c.name)
def test_official(case: Any) -> None:
    check_case(case, free=False)
    check_case(case, free=True)


def with_constants(op_type: str, inputs: dict[int, np.ndarray], constants: dict[int, np.ndarray], opset: int = 21, outputs: int = 1,
                   **attributes: Any) -> onnx.ModelProto:
    """A node whose inputs `constants` are initializers."""
    both = inputs | constants
    model = node_model(op_type, [both.get(k) for k in range(max(both) + 1)], opset, outputs, **attributes)
    for k, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, f"x{k}"))
    return model


@pytest.mark.parametrize(("name", "constants", "attributes", "reference"), [
    ("Reshape", {1: np.int64([0, -1])}, {}, lambda x: x.reshape(x.shape[0], -1)),
    ("Slice", {1: np.int64([1]), 2: np.int64([2**31]), 3: np.int64([1])}, {}, lambda x: x[:, 1:]),
    ("Slice", {1: np.int64([-1]), 2: np.int64([-2**63]), 3: np.int64([2]), 4: np.int64([-2])}, {}, lambda x: x[:, :, ::-2]),
    ("Slice", {1: np.int64([-3]), 2: np.int64([-1]), 3: np.int64([2])}, {}, lambda x: x[:, :, -3:-1]),
    ("Pad", {1: np.int64([0, 1, 2, 0, 0, 1])}, {}, lambda x: np.pad(x, [(0, 0), (1, 0), (2, 1)])),
    ("Pad", {1: np.int64([0, 1, 2, 0, 0, 1])}, {"mode": "reflect"}, lambda x: np.pad(x, [(0, 0), (1, 0), (2, 1)], "reflect")),
    ("Pad", {1: np.int64([0, -1, 0, 0, 0, -2])}, {}, lambda x: x[:, 1:, :-2]),
    ("Tile", {1: np.int64([1, 2, 3])}, {}, lambda x: np.tile(x, (1, 2, 3))),
    ("Expand", {1: np.int64([2, 1, 1, 1])}, {}, lambda x: np.broadcast_to(x, (2, *x.shape))),
    ("Unsqueeze", {1: np.int64([-1, 0])}, {}, lambda x: x[None, ..., None]),
    ("Gather", {1: np.array(-1)}, {"axis": 1}, lambda x: x[:, -1]),
    ("Gather", {1: np.int64([[0, -1]])}, {"axis": 2}, lambda x: x[:, :, [[0, -1]]]),
    ("Split", {}, {"axis": 1, "num_outputs": 2}, None),
])
def test_one_variant_serves_every_size(name: str, constants: dict[int, np.ndarray], attributes: dict[str, Any], reference: Any) -> None:
    """Lowered for one shape, right for others."""
    model = with_constants(name, {0: floats(2, 4, 6)}, constants, outputs=2 if reference is None else 1, **attributes)
    work = procedure(model)
    variant = lowered(work, [floats(2, 4, 6)])
    assert not variant.key
    for shape in [(2, 4, 6), (1, 5, 7), (3, 8, 5)]:
        x = floats(*shape)
        ours = Execution(variant.graph, [x]).run()
        if reference is None:
            compare(ours[0], x[:, :-(-shape[1] // 2)])
            compare(ours[1], x[:, -(-shape[1] // 2):])
        else:
            compare(ours[0], reference(x))


@pytest.mark.parametrize(("name", "constants"), [
    ("Reshape", {1: np.int64([-1, 2])}), ("Transpose", {}), ("Slice", {1: np.int64([1]), 2: np.int64([3])}), ("Squeeze", {1: np.int64([0])}),
    ("Unsqueeze", {1: np.int64([0])}), ("Expand", {1: np.int64([3, 4, 1])}), ("Gather", {1: np.array(0)}), ("Flatten", {}),
    ("Identity", {}), ("Split", {}), ("DepthToSpace", {})])
def test_nothing_runs(name: str, constants: dict[int, np.ndarray]) -> None:
    """Operators that only look at their input another way make views."""
    x = floats(1, 4, 2, 2) if name == "DepthToSpace" else floats(1, 4, 6)
    x = x.reshape(4, 6) if name == "Expand" else x
    if name == "Expand":
        constants = {1: np.int64([3, 4, 6])}
    attributes: dict[str, Any] = {"Split": {"axis": 2, "num_outputs": 2}, "DepthToSpace": {"blocksize": 2}}.get(name, {})
    work = procedure(with_constants(name, {0: x}, constants, outputs=2 if name == "Split" else 1, **attributes))
    assert all(isinstance(n, g.View) for n in lowered(work, [x]).graph.nodes)


@pytest.mark.parametrize("opset", [1, 11])
def test_shape_operators_of_old_versions(opset: int) -> None:
    x = floats(1, 4, 6)
    compare(run_node("Squeeze", [x], opset, axes=[0])[0], x[0])
    compare(run_node("Unsqueeze", [x], opset, axes=[0, 4])[0], x[None, ..., None])
    if opset == 1:
        compare(run_node("Slice", [x], 1, axes=[1, 2], starts=[1, -3], ends=[3, 100])[0], x[:, 1:3, -3:])
        compare(run_node("Reshape", [x], 1, shape=[0, -1])[0], x.reshape(1, 24))
        compare(run_node("Tile", [x, np.int64(2), np.int64(1)], 1)[0], np.tile(x, (1, 2, 1)))
        compare(run_node("Concat", [x, x], 1)[0], np.concatenate([x, x], 1))
        compare(run_node("Pad", [x], 1, paddings=[0, 1, 0, 0, 0, 2], value=3.0)[0], np.pad(x, [(0, 0), (1, 0), (0, 2)], constant_values=3))
        for ours, theirs in zip(run_node("Split", [x], 2, outputs=2, axis=2, split=[2, 4]), np.split(x, [2], 2), strict=True):
            compare(ours, theirs)


def test_squeeze_without_axes_asks_which_sizes_are_1() -> None:
    work = procedure(node_model("Squeeze", [floats(1, 4)], 13))
    variant = lowered(work, [floats(1, 4)])
    assert [answer for _, answer in variant.key] == [1, 0]


def test_pads_sizes_and_repeats_fed_at_run_time() -> None:
    x = floats(2, 3)
    for shape in ([3, 2], [-1], [2, 1, 0]):
        compare(run_node("Reshape", [x, np.int64(shape)], 14)[0], x.reshape([x.shape[i] if s == 0 else s for i, s in enumerate(shape)])
                if 0 not in shape else x.reshape(2, 1, 3)) if 0 not in shape else None
    compare(run_node("Tile", [x, np.int64([2, 1])], 13)[0], np.tile(x, (2, 1)))
    compare(run_node("Pad", [x, np.int64([1, 0, 0, 2])], 13)[0], np.pad(x, [(1, 0), (0, 2)]))
    compare(run_node("Range", [np.int64(2), np.int64(11), np.int64(3)], 11)[0], np.arange(2, 11, 3))
    compare(run_node("Range", [np.float32(1), np.float32(0), np.float32(-0.25)], 11)[0], np.arange(1, 0, -0.25, np.float32))
    compare(run_node("ConstantOfShape", [np.int64([2, 0, 3])], 9)[0], np.zeros((2, 0, 3), np.float32))


def test_shape_arithmetic_of_an_exported_model_folds_into_sizes() -> None:
    """Reshape(x, Concat(Shape(x)[0], 2, -1)): no node but the reshape remains of use, and nothing enters the key."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"]),
             helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]), helper.make_node("Concat", ["n1", "rest"], ["t"], axis=0),
             helper.make_node("Reshape", ["x", "t"], ["y"])]
    constants = [numpy_helper.from_array(np.array(v), k) for k, v in {"zero": 0, "axes": [0], "rest": [2, -1]}.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 6])], [onnx.ValueInfoProto(name="y")], constants)
    work = procedure(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    variant = lowered(work, [floats(3, 6)])
    assert not variant.key and not variant.graph.requirements
    assert [str(s) for s in variant.graph.outputs[0].dims] == ["(n)", "2", "3"]


def test_an_index_out_of_range_is_an_error() -> None:
    x = floats(3, 2)
    for index in (3, -4):
        with pytest.raises(DeviceError, match="out of range"):
            run_node("Gather", [x, np.int64([0, index])], 13)
        with pytest.raises(DeviceError, match="out of range"):
            run_node("ScatterElements", [x, np.int64([[0, index]]), floats(1, 2)], 18)
    with pytest.raises(GpuOnnxError):
        run(with_constants("Gather", {0: x}, {1: np.array(5)}), [x])


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scatter_combines_repeated_indices(reduction: str) -> None:
    x, i, u = floats(4), np.int64([1, 1, -1, 0]), floats(4)
    expected = x.copy()
    {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction].at(expected, i, u)
    compare(run_node("ScatterElements", [x, i, u], 18, reduction=reduction)[0], expected)
    compare(run_node("ScatterND", [x, i[:, None], u], 18, reduction=reduction)[0], expected)


def test_compress_counts_during_the_run() -> None:
    x, keep = floats(3, 5), np.array([True, False, True, True])
    compare(run_node("Compress", [x, keep], 11, axis=1)[0], x[:, :4][:, keep])
    compare(run_node("Compress", [x, keep], 11)[0], x.ravel()[:4][keep])
    compare(run_node("Compress", [x, keep & False], 11, axis=1)[0], x[:, :0])
    compare(run(with_constants("Compress", {0: x}, {1: keep}, 11, axis=1), [x])[0], x[:, :4][:, keep])


@pytest.mark.parametrize("dtype", [np.complex64, np.int8, np.float16, bool, object])
def test_moving_elements_takes_every_type(dtype: Any) -> None:
    x = (floats(2, 3) * 3).astype(np.int8).astype(dtype) if dtype is not object else np.array([list("abc"), list("def")], object)
    compare(run_node("Transpose", [x], 21)[0], x.T)
    compare(run_node("Gather", [x, np.int64([1])], 21, axis=1)[0], x[:, [1]])
    compare(run_node("Concat", [x, x], 21, axis=0)[0], np.concatenate([x, x]))
    compare(run_node("Pad", [x, np.int64([0, 1, 0, 0])], 21, mode="edge")[0], np.pad(x, [(0, 0), (1, 0)], "edge"))
