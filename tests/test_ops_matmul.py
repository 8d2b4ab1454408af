"""Products whose sizes are all free: what belongs together is checked, nothing beside an operand is read."""
from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import gpuonnx


def integer_model(rank_of_zero: int = 1) -> bytes:
    kinds = {"a": (TensorProto.UINT8, ["m", "k"]), "b": (TensorProto.UINT8, ["l", "n"]),
             "az": (TensorProto.UINT8, ["p"] * rank_of_zero), "bz": (TensorProto.UINT8, ["q"] * rank_of_zero)}
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in kinds.items()]
    node = helper.make_node("MatMulInteger", list(kinds), ["y"], name="product")
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.INT32, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def operands() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.integers(0, 255, (4, 3)).astype(np.uint8), "b": rng.integers(0, 255, (3, 5)).astype(np.uint8)}


def test_one_zero_point_is_not_read_as_one_a_column() -> None:
    """The elements after the only one are another's."""
    beside = np.array([7, 99, 98, 97, 96, 95], np.uint8)
    feed = {**operands(), "az": beside[:1], "bz": beside[:1]}
    got = gpuonnx.load(integer_model(), device="cpu").run(feed)["y"]
    np.testing.assert_array_equal(got, (feed["a"].astype(np.int32) - 7) @ (feed["b"].astype(np.int32) - 7))


def test_zero_points_a_row_and_a_column() -> None:
    feed = {**operands(), "az": np.array([1, 2, 3, 4], np.uint8), "bz": np.array([5, 6, 7, 8, 9], np.uint8)}
    got = gpuonnx.load(integer_model(), device="cpu").run(feed)["y"]
    left, right = feed["a"].astype(np.int32) - feed["az"][:, None].astype(np.int32), feed["b"].astype(np.int32) - feed["bz"].astype(np.int32)
    np.testing.assert_array_equal(got, left @ right)


def test_zero_points_that_do_not_fit_are_refused() -> None:
    feed = {**operands(), "az": np.array([1], np.uint8), "bz": np.array([5, 6], np.uint8)}
    with pytest.raises(gpuonnx.ShapeError, match="product"):
        gpuonnx.load(integer_model(), device="cpu").run(feed)
