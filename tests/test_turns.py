"""Loops whose turns run natively one after another: what they carry, stack, hand on and report is what turn by turn gives."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx.parser
import pytest

import gpuonnx

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'
SUMS = """net (int64 m, float[N, 3] x, float[3] s) => (float[3] last, float[T, 3] all, float[T] sums, float[N, 3] same) {
  go = Constant <value: tensor = bool {1}> ()
  last, same, all, sums = Loop (m, go, s, x) <body = turn (int64 i, bool c, float[3] a, float[N, 3] w)
      => (bool d, float[3] b, float[N, 3] v, float[3] row, float t) {
    d = Identity (c)
    v = Identity (w)
    axis = Constant <value: tensor = int64[1] {0}> ()
    n = Shape <start: int = 0, end: int = 1> (w)
    k = Mod (i, n)
    r = Gather (w, k)
    row = Squeeze (r, axis)
    b = Add (a, row)
    t = ReduceSum <keepdims: int = 0> (b)
  }>
}"""
HALVES = """net (float x) => (float y, float[T] seen) {
  none = Constant <value: tensor = int64 {9223372036854775807}> ()
  one = Constant <value: tensor = float {1.0}> ()
  half = Constant <value: tensor = float {0.5}> ()
  go = Greater (x, one)
  y, seen = Loop (none, go, x) <body = turn (int64 i, bool c, float a) => (bool d, float b, float a2) {
    b = Mul (a, half)
    a2 = Identity (a)
    d = Greater (b, one)
  }>
}"""
ROWS = """net (int64 m, float[N] x) => (float[T] y) {
  go = Constant <value: tensor = bool {1}> ()
  y = Loop (m, go) <body = turn (int64 i, bool c) => (bool d, float e) {
    d = Identity (c)
    e = Gather (x, i)
  }>
}"""


def loaded(text: str, **options: Any) -> gpuonnx.Session:
    return gpuonnx.load(onnx.parser.parse_model(HEADER + text), device="cpu", **options)


def sums(x: np.ndarray, s: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = np.stack([x[i % len(x)] for i in range(m)]) if m else np.empty((0, 3), np.float32)
    carried = s + np.cumsum(rows, 0, dtype=np.float32)
    return (carried[-1] if m else s), rows, carried.sum(1)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 64, 65, 200])
def test_carried_values_stacks_and_what_is_handed_on(turns: int) -> None:
    session, random = loaded(SUMS), np.random.default_rng(turns)
    for rows in (4, 1, 4):
        x, s = random.integers(-9, 9, (rows, 3)).astype(np.float32), np.ones(3, np.float32)
        last, rows_seen, totals = sums(x, s, turns)
        got = session.run({"m": np.array(turns), "x": x, "s": s})
        np.testing.assert_array_equal(got["last"], last)
        np.testing.assert_array_equal(got["all"], rows_seen)
        np.testing.assert_allclose(got["sums"], totals, rtol=1e-6)
        np.testing.assert_array_equal(got["same"], x)
        assert not any(np.may_share_memory(a, b) for a in got.values() for b in (x, s)) and np.all(s == 1)


def test_a_condition_ends_it() -> None:
    session = loaded(HALVES)
    for start in (1000.0, 3.0, 0.5, 2.0**100, 1000.0):
        seen, value = [], start
        while value > 1:
            seen.append(value)
            value *= 0.5
        got = session.run({"x": np.array(start, np.float32)})
        assert got["y"] == value
        np.testing.assert_array_equal(got["seen"], np.array(seen, np.float32))


def test_an_error_in_a_later_turn_names_the_node() -> None:
    session, x = loaded(ROWS), np.arange(5, dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(session.run({"m": np.array(5), "x": x})["y"], x)
        with pytest.raises(gpuonnx.ShapeError, match="Gather.*index 5 is out of range"):
            session.run({"m": np.array(9), "x": x})


def test_a_deadline_and_a_limit_end_it() -> None:
    endless = HALVES.replace("d = Greater (b, one)", "d = Less (one, a)").replace("{0.5}", "{1.0}")
    with pytest.raises(gpuonnx.Cancelled):
        loaded(endless).run({"x": np.array(2, np.float32)}, timeout=0.2)
    session = loaded(endless)
    session.context.loop_limit = 50
    with pytest.raises(gpuonnx.ShapeError, match="more than 50 iterations"):
        session.run({"x": np.array(2, np.float32)})


def test_many_threads() -> None:
    session, random = loaded(SUMS), np.random.default_rng(1)
    feeds = [{"m": np.array(20 + k), "x": random.normal(size=(4, 3)).astype(np.float32), "s": np.zeros(3, np.float32)} for k in range(6)]
    alone = [session.run(feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        for k, got in enumerate(pool.map(lambda k: session.run(feeds[k % 6]), range(60))):
            assert all(np.array_equal(got[name], alone[k % 6][name]) for name in got)
