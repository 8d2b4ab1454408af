"""Small models that several tests use."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Ios = dict[str, tuple[int, Sequence[Any]]]


def model(nodes: Sequence[onnx.NodeProto], inputs: Ios, outputs: Ios, weights: dict[str, np.ndarray] | None = None, opset: int = 20,
          domains: dict[str, int] | None = None) -> onnx.ModelProto:
    """Inputs and outputs by name as (type, shape)."""
    def infos(ios: Ios) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in ios.items()]
    graph = helper.make_graph(list(nodes), "test", infos(inputs), infos(outputs), [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def linear() -> onnx.ModelProto:
    """y = relu(x @ w + b) and z = x @ w for x [N,3], w [3,2]."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"], "product"), helper.make_node("Add", ["z", "b"], ["s"], "bias"),
             helper.make_node("Relu", ["s"], ["y"], "relu")]
    weights = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array([-4, 1], np.float32)}
    return model(nodes, {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["N", 2]), "z": (FLOAT, ["N", 2])}, weights)


def linear_answer(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = x @ np.arange(6, dtype=np.float32).reshape(3, 2)
    return np.maximum(z + np.array([-4, 1], np.float32), 0), z


def add() -> onnx.ModelProto:
    """total = left + right, both [N]."""
    return model([helper.make_node("Add", ["left", "right"], ["total"], "sum")], {"left": (FLOAT, ["N"]), "right": (FLOAT, ["N"])},
                 {"total": (FLOAT, ["N"])})


def gather() -> onnx.ModelProto:
    """rows of table [5,2] by indices [N]."""
    return model([helper.make_node("Gather", ["table", "indices"], ["rows"], "lookup")], {"indices": (INT64, ["N"])}, {"rows": (FLOAT, ["N", 2])},
                 {"table": np.arange(10, dtype=np.float32).reshape(5, 2)})
