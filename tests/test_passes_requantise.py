"""requantise: scales of sums of scaled integers become part of the factors, and nothing else does."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

import gpuonnx

RNG = np.random.default_rng(3)
SCALE, ZERO = np.float32(0.037), np.uint8(121)


def network(after: Callable[[list, str], str], dtype: str = "u8", weights_dtype: type = np.int8) -> bytes:
    """x u8 -> DQ -> Conv 1x1 with DQ weights and bias -> `after` -> Q."""
    w = RNG.integers(-127, 128, (24, 16, 1, 1)).astype(weights_dtype)
    arrays = {"xs": np.float32(0.021), "xz": np.uint8(131), "w": w, "ws": np.float32(0.004), "wz": np.zeros((), weights_dtype),
              "b": RNG.normal(size=24).astype(np.float32), "ys": SCALE, "yz": ZERO if dtype == "u8" else np.int8(-7)}
    constants = [helper.make_tensor(n, helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype), np.asarray(a).shape, np.asarray(a).ravel().tolist())
                 for n, a in arrays.items()]
    nodes = [helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]), helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]),
             helper.make_node("Conv", ["xf", "wf", "b"], ["c"])]
    nodes.append(helper.make_node("QuantizeLinear", [after(nodes, "c"), "ys", "yz"], ["y"]))
    kind = TensorProto.UINT8 if dtype == "u8" else TensorProto.INT8
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 16, 5, 7])],
                              [helper.make_tensor_value_info("y", kind, [1, 24, 5, 7])], constants)
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return made


def straight(_: list, value: str) -> str:
    return value


def relu(nodes: list, value: str) -> str:
    nodes.append(helper.make_node("Relu", [value], ["r"]))
    return "r"


def sigmoid(nodes: list, value: str) -> str:
    nodes.append(helper.make_node("Sigmoid", [value], ["r"]))
    return "r"


@pytest.mark.parametrize(("after", "done"), [(straight, True), (relu, True), (sigmoid, False)])
@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_codes_agree(after: Callable[[list, str], str], done: bool, dtype: str) -> None:
    model = network(after, dtype)
    session, plain = gpuonnx.load(model, device="cpu"), gpuonnx.load(model, device="cpu", passes={"requantise": False})
    x = RNG.integers(0, 256, (1, 16, 5, 7)).astype(np.uint8)
    got, expected = session.run({"x": x})["y"].astype(int), plain.run({"x": x})["y"].astype(int)
    assert np.abs(got - expected).max() <= 1 and (got == expected).mean() > 0.99
    assert ("requantise: into the factors" in session.explain("passes")) == done
