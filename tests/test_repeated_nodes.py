"""Nodes whose sizes the data decide, asked twice for the same."""
from __future__ import annotations

import numpy as np
import on_devices
import onnx
import pytest
from onnx import parser

import gpuonnx

SELECTED = """<ir_version: 10, opset_import: ["": 20]>
g (float[N] x, float[N] y, float limit) => (float[K] a, float[K] b, int64[1, K] first, int64[1, K] second, float[K] total) {
    keep = Greater (x, limit)
    <FIRST>
    at = Transpose <perm = [1, 0]> (first)
    here = Transpose <perm = [1, 0]> (second)
    a = GatherND (x, at)
    b = GatherND (y, here)
    total = Add (a, b)
}"""


def selected(second: str) -> onnx.ModelProto:
    return parser.parse_model(SELECTED.replace("<FIRST>", f"[one] first = NonZero (keep)\n    [two] second = {second}"))


@pytest.mark.usefixtures("every_device")
@pytest.mark.parametrize("size", [0, 1, 40])
def test_equal_selections_share_their_nodes_not_their_memory(size: int) -> None:
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal((2, size)).astype(np.float32)
    got = on_devices.run(selected("NonZero (keep)"), {"x": x, "y": y, "limit": np.float32(0.2)})
    at = np.flatnonzero(x > 0.2)
    for name, wanted in {"a": x[at], "b": y[at], "first": at[None], "second": at[None], "total": x[at] + y[at]}.items():
        np.testing.assert_array_equal(got[name], wanted, err_msg=name)
    assert not np.shares_memory(got["first"], got["second"])


def test_equal_selections_are_made_once_and_keep_both_names() -> None:
    session = gpuonnx.load(selected("NonZero (keep)"), device="cpu")
    session.run({"x": np.zeros(3, np.float32), "y": np.zeros(3, np.float32), "limit": np.float32(0)})
    plan = session.explain("plan")
    assert plan.count("Scatter") == 1
    assert "NonZero one, NonZero two" in plan


def test_what_a_seed_decides_is_asked_each_time() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[N] x) => (float[K] a, float[K] b) {
        p = RandomUniformLike (x)
        q = RandomUniformLike (x)
        half = Constant <value_float = 0.5> ()
        left = Greater (p, half)
        right = Greater (q, half)
        a = Compress (x, left)
        b = Compress (x, right)
    }"""
    x = np.arange(200, dtype=np.float32)
    got = gpuonnx.load(parser.parse_model(text), device="cpu").run(x)
    assert got["a"].tolist() != got["b"].tolist()
