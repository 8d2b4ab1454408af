"""Calls like the one before take a short way (runtime/quick.py): it must give what the long way gives."""
from __future__ import annotations

from typing import Any

import numpy as np
from onnx import parser

import gpuonnx

BRANCHES = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3] x) => (float[N,3] y) <int64 one = {1}, int64 zero = {0}, float two = {2.0}, float three = {3.0}> {
  s = Shape(x)
  n = Gather(s, zero)
  c = Equal(n, one)
  y = If(c) <then_branch = t () => (float[N,3] a) { a = Mul(x, two) }, else_branch = e () => (float[N,3] b) { b = Mul(x, three) }>
}"""
SUMS = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,M] x, int64[1] axes) => (float[K] y) { s = ReduceSum <keepdims = 0> (x, axes) y = Exp(s) }"""
PART = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N] y, float[N,4] z) <int64 two = {2}> { e = Exp(x) y = Gather <axis = 1> (e, two) z = Neg(e) }"""


def session(text: str) -> Any:
    return gpuonnx.load(parser.parse_model(text), device="cpu")


def test_the_variant_of_this_shape_runs_again() -> None:
    run = session(BRANCHES).run
    for n in (1, 2, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1):
        assert run({"x": np.ones((n, 3), np.float32)})["y"].tolist() == [[2.0 if n == 1 else 3.0] * 3] * n


def test_values_that_sizes_hang_on_are_read_again() -> None:
    s = session(SUMS)
    x = np.arange(6, dtype=np.float32).reshape(2, 3) / 8
    for axis in (0, 0, 0, 1, 0, 1, 1, 1, 0):
        np.testing.assert_allclose(s.run({"x": x, "axes": np.array([axis])})["y"], np.exp(x.sum(axis)), rtol=1e-6)


def test_an_output_that_is_part_of_another_value_is_a_copy() -> None:
    s = session(PART)
    results = []
    for k in range(5):
        x = np.full((3, 4), k, np.float32)
        results.append(s.run({"x": x}))
    for k, got in enumerate(results):
        np.testing.assert_allclose(got["y"], np.exp(np.full(3, k)), rtol=1e-6)
        np.testing.assert_allclose(got["z"], -np.exp(np.full((3, 4), k)), rtol=1e-6)
        assert list(got) == ["y", "z"]
