"""Loops whose sizes change from turn to turn, bound natively: growing caches, slices by the turn's number, what no longer fits."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_linked import agree, hows, loaded, normal

import gpuonnx

CACHE = """net (int64 m, float[P, 8] start, float[1, 8] x) => (float[N, 8] y, float[1, 8] z, float[T, 1, 8] all) {
  go = Constant <value: tensor = bool {1}> ()
  y, z, all = Loop (m, go, start, x) <body = step (int64 i, bool c, float[A, 8] past, float[1, 8] t)
      => (bool d, float[B, 8] now, float[1, 8] u, float[1, 8] row) {
    d = Identity (c)
    now = Concat <axis = 0> (past, t)
    turned = Transpose <perm = [1, 0]> (now)
    scores = MatMul (t, turned)
    weights = Softmax <axis = -1> (scores)
    mixed = MatMul (weights, now)
    u = Tanh (mixed)
    row = Identity (t)
  }>
}"""
WINDOWS = """net (int64 m, float[N, 4] x) => (float[4] y, float[T, 2, 4] all) {
  go = Constant <value: tensor = bool {1}> ()
  zero = Constant <value: tensor = float[4] {0, 0, 0, 0}> ()
  y, all = Loop (m, go, zero) <body = step (int64 i, bool c, float[4] a) => (bool d, float[4] b, float[2, 4] part) {
    d = Identity (c)
    one = Constant <value: tensor = int64[1] {1}> ()
    two = Constant <value: tensor = int64[1] {2}> ()
    axis = Constant <value: tensor = int64[1] {0}> ()
    first = Reshape (i, one)
    last = Add (first, two)
    part = Slice (x, first, last, axis)
    upto = Slice (x, axis, last, axis)
    sums = ReduceSum <keepdims = 0> (upto, axis)
    b = Add (a, sums)
  }>
}"""
CHOOSES = """net (int64 m, float[4] x) => (float[N, 4] y, float[4] z, float[T] sums) {
  go = Constant <value: tensor = bool {1}> ()
  empty = Constant <value: tensor = float[0, 4] {}> ()
  y, z, sums = Loop (m, go, empty, x) <body = step (int64 i, bool c, float[A, 4] past, float[4] t) => (bool d, float[B, 4] now, float[4] u, float s) {
    d = Identity (c)
    axis = Constant <value: tensor = int64[1] {0}> ()
    row = Unsqueeze (t, axis)
    now = Concat <axis = 0> (past, row)
    squares = Mul (now, now)
    rows = ReduceSum <keepdims = 0> (squares, axis)
    s = ReduceSum <keepdims = 0> (now)
    zero = Constant <value: tensor = float {0}> ()
    positive = Greater (s, zero)
    u = If (positive) <then_branch = yes () => (float[4] p) { n = Neg (t)  p = Sub (n, x) }, else_branch = no () => (float[4] q) { q = Add (t, x) }>
  }>
}"""
DOUBLES = """net (int64 m, float[N] x) => (float[M] y, float[T] sums) {
  go = Constant <value: tensor = bool {1}> ()
  y, sums = Loop (m, go, x) <body = turn (int64 i, bool c, float[K] a) => (bool d, float[L] b, float s) {
    d = Identity (c)
    h = Neg (a)
    b = Concat <axis = 0> (a, h)
    s = ReduceMax <keepdims = 0> (b)
  }>
}"""


def windows(m: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    parts = [x[i:i + 2] for i in range(int(m))]
    total = sum((x[:i + 2].sum(0) for i in range(int(m))), np.zeros(4, np.float32))
    return [total, np.stack(parts) if parts else np.empty((0, 2, 4), np.float32)]


def doubles(m: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    sums = []
    for _ in range(int(m)):
        x = np.concatenate([x, -x])
        sums.append(x.max())
    return [x, np.array(sums, np.float32)]


def chooses(m: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    past, t, sums = np.empty((0, 4), np.float32), x, []
    for _ in range(int(m)):
        past = np.concatenate([past, t[None]])
        sums.append(past.sum())
        t = -t - x if sums[-1] > 0 else t + x
    return [past, t, np.array(sums, np.float32)]


def cache(m: np.ndarray, start: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    past, rows = start, []
    for _ in range(int(m)):
        rows.append(x)
        past = np.concatenate([past, x])
        scores = np.exp(x @ past.T - (x @ past.T).max())
        x = np.tanh(scores / scores.sum() @ past)
    return [past, x, np.stack(rows) if rows else np.empty((0, 1, 8), np.float32)]


def test_a_growing_cache() -> None:
    session = agree(CACHE, *({"m": m, "start": normal(p, 8), "x": normal(1, 8, seed=1)} for m, p in (
        (0, 0), (1, 0), (2, 3), (5, 0), (40, 7), (300, 1), (700, 0), (3, 0), (1, 1))), truth=cache)
    assert hows(session) == {"/Loop y/body": "natively"}


def test_an_if_inside_a_loop_that_grows() -> None:
    x = np.array([1, -2, 4, 8], np.float32)
    session = agree(CHOOSES, *({"m": m, "x": x} for m in (1, 5, 40, 2, 700)), truth=chooses)
    assert set(hows(session).values()) == {"natively"}


def test_slices_by_the_number_of_the_turn() -> None:
    session = agree(WINDOWS, *({"m": m, "x": normal(n, 4)} for m, n in ((1, 9), (3, 9), (8, 9), (60, 61), (8, 9))), truth=windows)
    assert hows(session) == {"/Loop y/body": "natively"}


def test_sizes_that_double() -> None:
    session = agree(DOUBLES, *({"m": m, "x": normal(n)} for m, n in ((0, 3), (3, 1), (4, 3), (15, 3), (5, 1))), truth=doubles)
    assert hows(session) == {"/Loop y/body": "natively"}


def test_a_size_that_does_not_fit_names_the_node() -> None:
    """The row that a turn takes lies behind the last one."""
    text = WINDOWS.replace("float[T, 2, 4] all", "float[T, 1, 4] all").replace("float[2, 4] part", "float[1, 4] row")
    session = loaded(text.replace("b = Add (a, sums)", "row = Gather (part, axis)  b = Add (a, sums)").replace("int64[1] {2}", "int64[1] {1}"))
    x = normal(5, 4)
    assert session.run({"m": np.array(5), "x": x})["all"].shape == (5, 1, 4)
    for _ in range(3):
        with pytest.raises(gpuonnx.ShapeError, match="Gather row: index 0 into an axis"):
            session.run({"m": np.array(9), "x": x})
        np.testing.assert_array_equal(session.run({"m": np.array(4), "x": x})["all"], x[:4, None])


def test_memory_limit_holds_while_it_grows() -> None:
    session = loaded(DOUBLES, memory_limit=1 << 16)
    feed = {"m": np.array(3), "x": normal(3)}
    np.testing.assert_array_equal(session.run(feed)["y"], doubles(**feed)[0])
    feed["m"] = np.array(16)
    np.testing.assert_array_equal(session.run(feed)["y"], doubles(**feed)[0])


def test_many_threads_grow_at_once() -> None:
    session = loaded(CACHE)
    feeds = [{"m": np.array(30 + 40 * k), "start": normal(k, 8), "x": normal(1, 8, seed=k)} for k in range(5)]
    alone = [session.run(feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        for k, got in enumerate(pool.map(lambda k: session.run(feeds[k % 5]), range(60))):
            assert all(np.array_equal(got[name], alone[k % 5][name]) for name in got)
