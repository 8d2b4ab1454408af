"""Calls that go the short way give what the usual way gives: changed values, other shapes, outputs that are views of working memory."""
from __future__ import annotations

import numpy as np
import onnx.parser

import gpuonnx

MODEL = """<ir_version: 9, opset_import: ["" : 18]>
quick (float[N, 4] x, int64 s) => (float[M] y, float[N, 4] z) {
  one = Constant <value = int64 {1}> ()
  axes = Constant <value = int64[1] {1}> ()
  c = Equal (s, one)
  h = If (c) <then_branch = a () => (float[N, 4] p) { p = Relu (x) }, else_branch = b () => (float[N, 4] q) { q = Neg (x) }>
  m = ReduceMean <keepdims = 1> (h, axes)
  y = Squeeze (m, axes)
  f = Cast <to = 1> (s)
  z = Add (h, f)
}"""


def test_what_hangs_on_values_is_looked_at() -> None:
    session = gpuonnx.load(onnx.parser.parse_model(MODEL), device="cpu")
    rng, kept = np.random.default_rng(0), []
    for turn in range(60):
        s = (1, 2, 1, 3)[turn % 4] if turn > 20 else 1
        x = rng.standard_normal((1 + turn % 3, 4), dtype=np.float32)
        found = session.run({"x": x, "s": np.array(s)})
        h = np.maximum(x, 0) if s == 1 else -x
        kept.append((found, h.mean(1), h + np.float32(s)))
    for found, y, z in kept:
        assert list(found) == ["y", "z"]
        np.testing.assert_allclose(found["y"], y, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(found["z"], z)


def test_the_short_way_is_taken() -> None:
    session = gpuonnx.load(onnx.parser.parse_model(MODEL), device="cpu")
    x = np.ones((3, 4), np.float32)
    for s in (1, 1, 2, 2):
        session.run({"x": x, "s": np.array(s)})
    bound = session.stats.bindings
    for s in (1, 2) * 3:
        session.run({"x": x, "s": np.array(s)})
    assert session.stats.bindings == bound
