"""Ifs and Loops inside one another run as one native table: what they give, what they hand on, and what makes them stop is what Python
would have done, segment by segment."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

import gpuonnx
from gpuonnx.runtime.variants import Executable

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'
THIRDS = """net (int64 m, float[N] x) => (float[N] y, float[T] sums) {
  go = Constant <value: tensor = bool {1}> ()
  y, sums = Loop (m, go, x) <body = turn (int64 i, bool c, float[K] a) => (bool d, float[K] b, float s) {
    d = Identity (c)
    three = Constant <value: tensor = int64 {3}> ()
    zero = Constant <value: tensor = int64 {0}> ()
    k = Mod (i, three)
    third = Equal (k, zero)
    b, part = If (third) <then_branch = yes () => (float[P] p, float[P] p2) { p = Neg (a)  p2 = Identity (a) },
      else_branch = no () => (float[Q] q, float[Q] q2) { q = Add (a, x)  q2 = Identity (x) }>
    s = ReduceSum <keepdims = 0> (part)
  }>
}"""
TABLE = """net (int64 m, float[R, C] x) => (float[T, S] y) {
  go = Constant <value: tensor = bool {1}> ()
  columns = Transpose <perm = [1, 0]> (x)
  none = Constant <value: tensor = float {0}> ()
  last, y = Loop (m, go, none) <body = outer (int64 i, bool c, float t) => (bool d, float u, float[W] row) {
    d = Identity (c)
    size = Shape <start = 1, end = 2> (x)
    s = Squeeze (size)
    u, row = Loop (s, c, t) <body = inner (int64 j, bool e, float v) => (bool f, float w, float cell) {
      f = Identity (e)
      column = Gather (columns, j)
      total = ReduceSum <keepdims = 0> (column)
      w = Add (v, total)
      cell = Identity (w)
    }>
  }>
}"""
SWAPS = """net (int64 m, float[2, 3] x, float[2, 3] z) => (float[2, 3] a, float[2, 3] b, float[3, 2] c) {
  go = Constant <value: tensor = bool {1}> ()
  a, b = Loop (m, go, x, z) <body = turn (int64 i, bool g, float[2, 3] p, float[2, 3] q) => (bool h, float[2, 3] r, float[2, 3] s) {
    h = Identity (g)
    r = Identity (q)
    flat = Constant <value: tensor = int64[2] {3, 2}> ()
    back = Constant <value: tensor = int64[2] {2, 3}> ()
    t = Transpose <perm = [1, 0]> (p)
    s = Reshape (t, back)
  }>
  c = Transpose <perm = [1, 0]> (a)
}"""
UNTIL = """net (float x, int64 n) => (float y, int64 most) {
  go = Constant <value: tensor = bool {1}> ()
  zero = Constant <value: tensor = int64 {0}> ()
  y, most = Loop (n, go, x, zero) <body = turn (int64 i, bool c, float a, int64 k) => (bool d, float b, int64 l) {
    half = Constant <value: tensor = float {0.5}> ()
    one = Constant <value: tensor = float {1.0}> ()
    big = Greater (a, one)
    ten = Constant <value: tensor = int64 {10}> ()
    b = If (big) <then_branch = yes () => (float p) {
      p = Loop (ten, big, a) <body = inner (int64 j, bool e, float v) => (bool f, float w) { w = Mul (v, half)  f = Greater (w, one) }>
    }, else_branch = no () => (float q) { q = Add (a, one) }>
    l = Identity (i)
    four = Constant <value: tensor = int64 {400}> ()
    d = Less (i, four)
  }>
}"""
HOSTED = """net (int64 m, float[4] x) => (float[4] y) {
  go = Constant <value: tensor = bool {1}> ()
  y = Loop (m, go, x) <body = turn (int64 i, bool c, float[4] a) => (bool d, float[4] b) {
    d = Identity (c)
    ten = Constant <value: tensor = int64 {10}> ()
    k = Mod (i, ten)
    nine = Constant <value: tensor = int64 {9}> ()
    rare = Equal (k, nine)
    b = If (rare) <then_branch = yes () => (float[4] p) {
s = Cast <to = 8> (a)  p = Cast <to = 1> (s) }, else_branch = no () => (float[4] q) { q = Add (a, x) }>
  }>
}"""


def loaded(text: str, **options: Any) -> gpuonnx.Session:
    return gpuonnx.load(onnx.parser.parse_model(HEADER + text), device="cpu", **options)


def hows(session: gpuonnx.Session) -> dict[str, str]:
    """How every body was run last, by its path without the variants."""
    found: dict[str, str] = {}

    def walk(executable: Executable, path: str) -> None:
        for variant in executable.variants:
            for body in variant.bodies:
                found[f"{path}/{body.procedure.name}"] = body.how
                walk(body, f"{path}/{body.procedure.name}")
    walk(session._main, "")
    return found


def thirds(m: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    a, sums = x, []
    for i in range(int(m)):
        sums.append((x if i % 3 else a).sum(dtype=np.float32))
        a = a + x if i % 3 else -a
    return [a, np.array(sums, np.float32)]


def table(m: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    return [np.cumsum(np.tile(x.sum(0), int(m)), dtype=np.float32).reshape(int(m), x.shape[1])]


def agree(text: str, *feeds: Mapping[str, Any], truth: Callable[..., list[np.ndarray]] | None = None) -> gpuonnx.Session:
    """The reference evaluator cannot stack scalars: `truth` stands in."""
    session, reference = loaded(text), ReferenceEvaluator(onnx.parser.parse_model(HEADER + text))
    for feed in feeds:
        arrays = {k: np.asarray(v) for k, v in feed.items()}
        expected = reference.run(None, arrays) if truth is None else truth(**arrays)
        for _ in range(4):
            for want, got in zip(expected, session.run(arrays).values(), strict=True):
                assert got.dtype == np.asarray(want).dtype and got.shape == np.shape(want)
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
                assert not any(np.may_share_memory(got, a) for a in arrays.values())
    return session


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_if_inside_a_loop() -> None:
    session = agree(THIRDS, *({"m": m, "x": normal(n, seed=m)} for m, n in ((0, 3), (1, 3), (2, 3), (7, 3), (100, 3), (50, 5), (3, 5))), truth=thirds)
    assert hows(session) and set(hows(session).values()) == {"natively"}
    assert "again (Loop y) natively" in session.explain("plan")


def test_a_loop_inside_a_loop_stacks_rows_of_rows() -> None:
    session = agree(TABLE, *({"m": m, "x": normal(r, c)} for m, r, c in ((4, 3, 5), (1, 3, 5), (30, 2, 4), (5, 1, 1), (0, 2, 2))), truth=table)
    assert set(hows(session).values()) == {"natively"}


def test_carried_values_that_change_places_and_views() -> None:
    session = agree(SWAPS, *({"m": m, "x": normal(2, 3), "z": normal(2, 3, seed=1)} for m in (0, 1, 2, 3, 8, 41)))
    assert set(hows(session).values()) == {"natively"}


def test_conditions_at_every_depth() -> None:
    session = agree(UNTIL, *({"x": np.float32(x), "n": n} for x, n in ((1000, 5), (1000, 1000), (0.3, 7), (2.0**60, 30), (5, 0))))
    assert set(hows(session).values()) == {"natively"}


def test_a_branch_that_needs_python_is_run_by_python() -> None:
    session = agree(HOSTED, *({"m": m, "x": normal(4)} for m in (5, 9, 10, 11, 25, 64)))
    assert "runs in Python" in hows(session)["/Loop y/body"]
    assert "turn by turn: " in session.explain("plan")


def test_a_branch_never_taken_is_never_compiled() -> None:
    session = loaded(THIRDS.replace("Mod (i, three)", "Add (i, three)"))
    x = normal(4)
    for m in (3, 10, 40):
        np.testing.assert_allclose(session.run({"m": np.array(m), "x": x})["y"], x * (m + 1), rtol=1e-5)
    assert hows(session) == {"/Loop y/body": "natively", "/Loop y/body/If b/then": "", "/Loop y/body/If b/else": "natively"}


def test_an_error_deep_inside_names_the_node() -> None:
    text = TABLE.replace("Gather (columns, j)", "Gather (columns, k)").replace("f = Identity (e)", "f = Identity (e)  k = Add (i, j)")
    session, x = loaded(text), normal(3, 5)
    session.run({"m": np.array(1), "x": x})
    for _ in range(4):
        with pytest.raises(gpuonnx.ShapeError, match="Gather.*index 5 is out of range"):
            session.run({"m": np.array(2), "x": x})
        assert session.run({"m": np.array(1), "x": x})["y"].shape == (1, 5)


def test_out_buffers_and_threads() -> None:
    session = loaded(THIRDS)
    feeds = [{"m": np.array(20 + k), "x": normal(6, seed=k)} for k in range(5)]
    alone = [session.run(feed) for feed in feeds]
    room = {"y": np.empty(6, np.float32)}
    assert session.run(feeds[0], out=room)["y"] is room["y"] and np.array_equal(room["y"], alone[0]["y"])
    with ThreadPoolExecutor(4) as pool:
        for k, got in enumerate(pool.map(lambda k: session.run(feeds[k % 5]), range(100))):
            assert all(np.array_equal(got[name], alone[k % 5][name]) for name in got)


def test_timeouts_limits_and_memory() -> None:
    endless = UNTIL.replace("Less (i, four)", "Less (zero, four)")
    session = loaded(endless)
    forever = {"x": np.float32(3), "n": np.array(1 << 60)}
    with pytest.raises(gpuonnx.Cancelled, match="timeout"):
        session.run(forever, timeout=0.2)
    session.context.loop_limit = 1000
    with pytest.raises(gpuonnx.ShapeError, match="more than 1000 iterations"):
        session.run(forever)
    assert session.run({"x": np.float32(3), "n": np.array(999)})["most"] == 998
    inner = loaded(UNTIL.replace("Loop (ten, big, a)", "Loop (, big, a)").replace("f = Greater (w, one)", "f = Greater (w, w0)").replace(
        "w = Mul (v, half)", "w = Identity (v)  w0 = Sub (w, one)"))
    inner.context.loop_limit = 1000
    with pytest.raises(gpuonnx.ShapeError, match="more than 1000 iterations"):
        inner.run({"x": np.float32(3), "n": np.array(20)})
    x = normal(1 << 14)
    little = loaded(THIRDS, memory_limit=1 << 16)
    assert np.array_equal(little.run({"m": np.array(50), "x": x})["y"], loaded(THIRDS).run({"m": np.array(50), "x": x})["y"])
    assert "memory_limit" in hows(little)["/Loop y/body"]


def test_ctrl_c_ends_a_loop(tmp_path: Any) -> None:
    model = tmp_path / "endless.onnx"
    onnx.save(onnx.parser.parse_model(HEADER + UNTIL.replace("Less (i, four)", "Less (zero, four)")), model)
    code = f"""
import os, signal, threading, numpy as np, gpuonnx
session = gpuonnx.load({str(model)!r}, device="cpu")
session.run({{"x": np.float32(3), "n": np.array(10)}})
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    session.run({{"x": np.float32(3), "n": np.array(1 << 60)}})
except KeyboardInterrupt:
    print("interrupted", int(session.run({{"x": np.float32(3), "n": np.array(10)}})["most"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.stdout.strip() == "interrupted 9", done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
