"""What a user is told: the name, what was expected, what came, the mend."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models import FLOAT, add, gather, linear, model
from onnx import helper

import gpuonnx
from gpuonnx import errors


def session(proto: Any) -> gpuonnx.Session:
    return gpuonnx.load(proto, device="cpu")


X = np.ones((2, 3), np.float32)


def test_every_unsupported_operator_at_once() -> None:
    body = helper.make_graph([helper.make_node("Wobble", ["x"], ["r"], "inside")], "b", [], [helper.make_tensor_value_info("r", FLOAT, ["N"])])
    nodes = [helper.make_node("Frobnicate", ["x"], ["a"], "first"), helper.make_node("Frobnicate", ["a"], ["b"], "second"),
             helper.make_node("Twist", ["b"], ["d"], "third", domain="com.example"), helper.make_node("Cast", ["b"], ["c"], to=9),
             helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    proto = model(nodes, {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, domains={"com.example": 3})
    with pytest.raises(errors.UnsupportedOp) as raised:
        session(proto)
    text = str(raised.value)
    for words in ("3 operators", "ai.onnx.Frobnicate (opset 20): first, second", "com.example.Twist (opset 3): third", "Wobble", "@gpuonnx.op"):
        assert words in text


WRONG_INPUTS = {
    "name": ({"X": X}, errors.InputError, "there is no input 'X'; did you mean 'x'\\? Inputs are x: f32"),
    "far name": ({"banana": X}, errors.InputError, "there is no input 'banana'. Inputs are x: f32"),
    "missing": ({}, errors.InputError, "input 'x' is missing"),
    "dtype": ({"x": X.astype(np.float64)}, errors.InputError, r"input 'x' must be float32, not float64; pass x\.astype\('float32'\)"),
    "rank": ({"x": X[0]}, errors.ShapeError, r"input 'x' must have 2 axes .*not 1"),
    "size": ({"x": np.ones((2, 5), np.float32)}, errors.ShapeError, "input 'x', axis 1: size 5, the model says 3"),
    "too many": ([X, X], errors.InputError, "2 inputs were given, the model has 1"),
    "none": ({"x": None}, errors.InputError, "input 'x' is None"),
    "object": ({"x": object()}, errors.InputError, "input 'x'"),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs(case: str) -> None:
    given, kind, words = WRONG_INPUTS[case]
    with pytest.raises(kind, match=words):
        session(linear()).run(given)


def test_one_array_for_two_inputs() -> None:
    with pytest.raises(errors.InputError, match="one array was given, the model has 2 inputs: left: f32.*give a mapping by name"):
        session(add()).run(np.ones(3, np.float32))


def test_sizes_that_do_not_go_together_name_the_node() -> None:
    with pytest.raises(errors.ShapeError, match="sum"):
        session(add()).run({"left": np.ones(3, np.float32), "right": np.ones(4, np.float32)})


def test_an_index_out_of_range_names_the_node() -> None:
    loaded = session(gather())
    with pytest.raises(errors.ShapeError, match="lookup.*index 7 is out of range for an axis of size 5"):
        loaded.run(np.array([0, 7]))
    np.testing.assert_array_equal(loaded.run(np.array([1]))["rows"], [[2, 3]])


def test_wrong_outputs() -> None:
    loaded = session(linear())
    with pytest.raises(errors.InputError, match="there is no output 'q'; outputs are y, z"):
        loaded.run(X, outputs=["q"])
    with pytest.raises(errors.InputError, match="out names 'q', which is not an output"):
        loaded.run(X, out={"q": np.empty((2, 2), np.float32)})
    with pytest.raises(errors.InputError, match="C-contiguous"):
        loaded.run(X, out={"y": np.empty((2, 4), np.float32)[:, ::2]})


@pytest.mark.parametrize(("options", "kind", "words"), [
    ({"device": "tpu"}, errors.DeviceError, "'tpu' is none of auto, cpu, cuda"),
    ({"device": "cuda:x"}, errors.DeviceError, "device"),
    ({"threads": 0}, errors.InputError, "threads must be at least 1"),
    ({"winograd": "maybe"}, errors.InputError, "none of auto, f2, off"),
    ({"precision": "low"}, errors.InputError, "precision"),
])
def test_wrong_options(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        gpuonnx.load(linear(), **{"device": "cpu", **options})


def test_all_errors_have_one_base() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) > 8 and all(issubclass(kind, errors.GpuOnnxError) for kind in kinds)
    assert all(getattr(gpuonnx, kind.__name__) is kind for kind in kinds)


def test_memory_limit() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("ReduceSum", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"]),
             helper.make_node("CumSum", ["b", "axis"], ["y"])]
    proto = model(nodes, {"x": (FLOAT, ["N"])}, {"y": (FLOAT, ["N"])}, {"axis": np.array(0)})
    with pytest.raises(errors.MemoryLimitError, match="memory_limit|limit"):
        gpuonnx.load(proto, device="cpu", memory_limit=64).run(np.ones(100_000, np.float32))
