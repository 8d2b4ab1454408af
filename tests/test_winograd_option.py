"""The option `winograd` of a session: which kernel runs a 3x3 layer, and that all of them agree on images of any size."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpuonnx
from gpuonnx.codegen.cache import KernelCache
from gpuonnx.devices.cpu import Cpu
from gpuonnx.ir.graph import Call, Value

RANDOM = np.random.default_rng(3)


def residual_block(image: list[Any]) -> bytes:
    """y = relu(conv(relu(conv(x))) + x), 40 channels."""
    weights = [numpy_helper.from_array((RANDOM.standard_normal((40, 40, 3, 3)) / 19).astype(np.float32), n) for n in ("w1", "w2")]
    nodes = [helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4), helper.make_node("Add", ["c", "x"], ["d"]),
             helper.make_node("Relu", ["d"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, image) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "block", ends[:1], ends[1:], weights)
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("image", [["n", 40, "h", "w"], [2, 40, 21, 30]])
def test_all_agree(image: list[Any]) -> None:
    model = residual_block(image)
    direct, quick, two = (gpuonnx.load(model, device="cpu", winograd=w) for w in ("off", "auto", "f2"))
    for shape in [(2, 40, 21, 30)] + ([(1, 40, 5, 7), (1, 40, 1, 1), (3, 40, 16, 16)] if image[0] == "n" else []):
        x = RANDOM.standard_normal(shape).astype(np.float32)
        want, *others = (np.asarray(s.run({"x": x})["y"]) for s in (direct, quick, two))
        for got in others:
            np.testing.assert_allclose(got, want, rtol=0, atol=3e-5)


@pytest.mark.parametrize("option, tile", [("auto", 4), ("f2", 2), ("off", None)])
def test_choice(option: str, tile: int | None, tmp_path: Path) -> None:
    weights = np.zeros((64, 64, 3, 3), np.float32)
    values = (Value("f32", (1, 64, 56, 56)), Value("f32", weights.shape))
    window = {"kernel": (3, 3), "strides": (1, 1), "dilations": (1, 1), "pads": (1,) * 4, "group": 1}
    node = Call(values, (Value("f32", (1, 64, 56, 56)),), kernel="conv", attrs=window)
    device = Cpu(KernelCache(tmp_path), option)
    chosen = device.choose(node, {1: weights})
    assert isinstance(chosen, Call)
    assert chosen.attrs.get("tile") == tile
    assert chosen.kernel == ("conv" if tile is None else "conv_winograd")
    assert device.wishes(chosen).inputs[0].halo[2] == (1, 1 + (tile - 1 if tile else 0))
    assert device.choose(node, {}).attrs == window  # type: ignore[attr-defined]
