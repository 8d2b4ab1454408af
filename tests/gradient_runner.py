"""Gradient against central differences in float64."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import gpuonnx

RNG = np.random.default_rng(5)
START = RNG.bit_generator.state
TRAINING = "ai.onnx.preview.training"
OWN = ("own.gradient", "ai.onnx.ml", "com.microsoft")


def doubles(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return RNG.uniform(low, high, shape)


def info(name: str, x: np.ndarray | None = None) -> onnx.ValueInfoProto:
    kind = TensorProto.DOUBLE if x is None else helper.np_dtype_to_tensor_dtype(x.dtype)
    return helper.make_tensor_value_info(name, kind, None if x is None else [None] * x.ndim)


def model(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], outputs: list[str], constants: dict[str, np.ndarray],
          opset: int = 23) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [info(k, x) for k, x in inputs.items()], [onnx.ValueInfoProto(name=o) for o in outputs],
                              [numpy_helper.from_array(np.asarray(x), k) for k, x in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in (TRAINING, *OWN))])


def check(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray] | None = None, step: float = 1e-5,
          tolerance: float = 2e-5, device: str = "cpu", opset: int = 23) -> None:
    """The derivatives of sum(y * weights) by every float input, as Gradient has them and by central differences."""
    constants = dict(constants or {})
    y = gpuonnx.load(model(nodes, inputs, ["y"], constants, opset), device="cpu", threads=1).run(inputs)["y"]
    constants["weights"] = doubles(*y.shape, low=0.5, high=1.5)
    nodes = [*nodes, helper.make_node("Mul", ["y", "weights"], ["loss"])]
    forward = gpuonnx.load(model(nodes, inputs, ["loss"], constants, opset), device="cpu", threads=1)
    xs = [k for k, x in inputs.items() if x.dtype == np.float64]
    zs = [k for k in inputs if k not in xs]
    nodes = [*nodes, helper.make_node("Gradient", [*xs, *zs], [f"d_{k}" for k in xs], domain=TRAINING, xs=xs, y="loss",
                                      **({"zs": zs} if zs else {}))]
    found = gpuonnx.load(model(nodes, inputs, [f"d_{k}" for k in xs], constants, opset), device=device, threads=1).run(inputs)
    for k in xs:
        assert found[f"d_{k}"].shape == inputs[k].shape and found[f"d_{k}"].dtype == np.float64
        expected = np.empty_like(inputs[k])
        for place in np.ndindex(inputs[k].shape):
            ends = []
            for sign in (1, -1):
                moved = {n: x.copy() for n, x in inputs.items()}
                moved[k][place] += sign * step
                ends.append(forward.run(moved)["loss"].sum())
            expected[place] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(found[f"d_{k}"], expected, rtol=tolerance, atol=tolerance)


def one(op_type: str, *inputs: np.ndarray | None, outputs: int = 1, constants: dict[int, Any] | None = None, device: str = "cpu",
        opset: int = 23, **attributes: Any) -> None:
    """One node; `constants` are further inputs by position."""
    fixed = {f"c{k}": np.asarray(v) for k, v in (constants or {}).items()}
    names = ["" if x is None else f"x{k}" for k, x in enumerate(inputs)]
    for k in sorted(constants or {}):
        names += [""] * (k - len(names)) + [f"c{k}"]
    node = helper.make_node(op_type, names, ["y", *[f"y{k}" for k in range(1, outputs)]], **attributes)
    check([node], {f"x{k}": x for k, x in enumerate(inputs) if x is not None}, fixed, device=device, opset=opset)
