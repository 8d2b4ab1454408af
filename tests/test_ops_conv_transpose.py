"""ConvTranspose against its definition: every product goes where the standard says."""
from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import gpuonnx

RANDOM = np.random.default_rng(3)


def reference(x: np.ndarray, w: np.ndarray, strides: Any, dilations: Any, pads: Any, extra: Any, group: int) -> np.ndarray:
    rank, kernel = x.ndim - 2, w.shape[2:]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    full = [(n - 1) * s + e for n, s, e in zip(x.shape[2:], strides, extents, strict=True)]
    outs, each = w.shape[1], w.shape[0] // group
    y = np.zeros((x.shape[0], outs * group, *(n + o for n, o in zip(full, extra, strict=True))), np.float64)
    for g in range(group):
        left, right = x[:, g * each:(g + 1) * each].astype(np.float64), w[g * each:(g + 1) * each].astype(np.float64)
        for at in itertools.product(*map(range, x.shape[2:])):
            for tap in itertools.product(*map(range, kernel)):
                place = tuple(i * s + t * d for i, s, t, d in zip(at, strides, tap, dilations, strict=True))
                y[(slice(None), slice(g * outs, (g + 1) * outs), *place)] += left[(slice(None), slice(None), *at)] @ right[(slice(None), slice(None), *tap)]
    cut = [slice(pads[k], y.shape[2 + k] - pads[rank + k]) for k in range(rank)]
    return y[(slice(None), slice(None), *cut)]


CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 5), (2, 3, 3), {}), ((2, 3, 4), (3, 2, 4), {"strides": [3], "pads": [1, 2], "output_padding": [1]}),
    ((1, 2, 5), (2, 3, 2), {"strides": [3]}), ((1, 4, 5), (4, 2, 3), {"strides": [2], "dilations": [3], "group": 2}),
    ((1, 2, 3), (2, 1, 3), {"strides": [2], "dilations": [2], "pads": [0, 1]}), ((2, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((1, 3, 4, 3), (3, 2, 3, 4), {"strides": [2, 1], "pads": [1, 0, 1, 2], "output_padding": [1, 0]}),
    ((1, 6, 3, 4), (6, 1, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 6}),
    ((1, 4, 3, 4), (4, 3, 5, 3), {"strides": [4, 3], "group": 2, "dilations": [1, 2], "output_padding": [3, 2]}),
    ((1, 2, 2, 3, 2), (2, 2, 2, 3, 2), {"strides": [2, 1, 3], "pads": [0, 1, 0, 1, 0, 0]}),
    ((1, 2, 1, 1), (2, 2, 4, 4), {"strides": [1, 1], "pads": [3, 3, 0, 0]}), ((1, 2, 4), (2, 2, 3), {"output_padding": [0], "pads": [2, 2]})]


@pytest.mark.parametrize("x, w, attributes", CASES)
def test_against_the_definition(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    image, weights, rank = RANDOM.normal(size=x).astype(np.float32), RANDOM.normal(size=w).astype(np.float32), len(x) - 2
    want = reference(image, weights, attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank),
                     attributes.get("pads", [0] * 2 * rank), attributes.get("output_padding", [0] * rank), attributes.get("group", 1))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * (rank + 2))]
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                              [helper.make_tensor("w", TensorProto.FLOAT, w, weights.ravel())])
    session = gpuonnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString(), device="cpu")
    got = session.run(image)["y"]
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
