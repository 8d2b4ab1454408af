"""Loops on a device: what the turns make and read there stays there. The copies are counted on the emulated device."""
from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import onnx.parser
import pytest

import gpuonnx

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'
CELL = """net (int64 m, float[1, N] h0, float[N, N] w, float[N] c) => (float[1, N] last) {
  go = Constant <value: tensor = bool {1}> ()
  last, same = Loop (m, go, h0, c) <body = cell (int64 i, bool k, float[1, A] h, float[B] e) => (bool d, float[1, C] h_out, float[B] e_out) {
    d = Identity (k)
    a = MatMul (h, w)
    b = Add (a, e)
    h_out = Tanh (b)
    e_out = Identity (e)
  }>
}"""
UNTIL = CELL.replace("d = Identity (k)", "d = Less (s, limit)  limit = Constant <value: tensor = float {1e30}> ()").replace(
    "h_out = Tanh (b)", "h_out = Tanh (b)  s = ReduceSum <keepdims = 0> (h_out)").replace(
    "d = Less (s, limit)  limit = Constant <value: tensor = float {1e30}> ()", "limit = Constant <value: tensor = float {1e30}> ()").replace(
    "e_out = Identity (e)", "e_out = Identity (e)  d = Less (s, limit)")
SWAPS = """net (int64 m, float[N] x, float[N] z) => (float[N] a, float[N] b, float[T, N] all) {
  go = Constant <value: tensor = bool {1}> ()
  a, b, all = Loop (m, go, x, z) <body = turn (int64 i, bool g, float[K] p, float[L] q) => (bool h, float[K] r, float[L] s, float[K] t) {
    h = Identity (g)
    r = Identity (q)
    s = Neg (p)
    t = Add (p, q)
  }>
}"""
TURNS = """net (int64 m, float[2, 3] x, float[2, 3] z) => (float[2, 3] a, float[2, 3] b) {
  go = Constant <value: tensor = bool {1}> ()
  a, b = Loop (m, go, x, z) <body = turn (int64 i, bool g, float[2, 3] p, float[2, 3] q) => (bool h, float[2, 3] r, float[2, 3] s) {
    h = Identity (g)
    back = Constant <value: tensor = int64[2] {2, 3}> ()
    t = Transpose <perm = [1, 0]> (p)
    r = Reshape (q, back)
    u = Reshape (t, back)
    s = Neg (u)
  }>
}"""
GROWS = """net (int64 m, float[P, 4] x, float[1, 4] z) => (float[N, 4] y, float[1, 4] u) {
  go = Constant <value: tensor = bool {1}> ()
  y, u = Loop (m, go, x, z) <body = step (int64 i, bool c, float[A, 4] past, float[1, 4] t) => (bool d, float[B, 4] now, float[1, 4] v) {
    d = Identity (c)
    now = Concat <axis = 0> (past, t)
    axis = Constant <value: tensor = int64[1] {0}> ()
    v = ReduceMean <keepdims = 1> (now, axis)
  }>
}"""


def counted(session: gpuonnx.Session, feed: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[int], list[int]]:
    """The outputs, and the bytes of each copy in and out but for the kernels' arguments and error records."""
    device: Any = session.accelerator
    sizes: tuple[list[int], list[int]] = ([], [])
    for name, into in zip(("copy_in", "copy_out"), sizes, strict=True):
        real = getattr(device, name)

        def copy(buffer: Any, offset: int, array: np.ndarray, real: Any = real, into: list[int] = into) -> None:
            if buffer is not device._context and not any(buffer is f.device_words for f in frames(session)):
                into.append(array.nbytes)
            real(buffer, offset, array)
        monkeypatch.setattr(device, name, copy)
    return session.run(feed), *sizes


def frames(session: gpuonnx.Session) -> list[Any]:
    import gc

    from gpuonnx.runtime.frame import Frame
    return [f for f in gc.get_objects() if type(f) is Frame]


def load(text: str, device: str) -> gpuonnx.Session:
    return gpuonnx.load(onnx.parser.parse_model(HEADER + text), device=device)


@pytest.mark.parametrize("text, read_back", [(CELL, 0), (UNTIL, 1)])
def test_what_a_turn_copies(text: str, read_back: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    feed = {"h0": random.standard_normal((1, 24)), "w": random.standard_normal((24, 24)) * 0.2, "c": random.standard_normal(24)}
    feed = {k: v.astype(np.float32) for k, v in feed.items()}
    session, host = load(text, "emulated-cuda"), load(text, "cpu")
    session.run({"m": np.array(1), **feed})
    for turns in (1, 2, 9):
        with monkeypatch.context() as patch:
            got, into, out = counted(session, {"m": np.array(turns), **feed}, patch)
        np.testing.assert_allclose(got["last"], host.run({"m": np.array(turns), **feed})["last"], rtol=1e-5, atol=1e-6)
        assert sorted(into) == sorted(a.nbytes for a in feed.values())
        assert sorted(out) == sorted([got["last"].nbytes, *[1] * read_back * turns])
    assert "what the device makes stays there" in session.explain("plan")


@pytest.mark.parametrize("text", [SWAPS, GROWS])
def test_values_that_change_places_and_sizes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    session, host = load(text, "emulated-cuda"), load(text, "cpu")
    for turns in (0, 1, 2, 5, 12):
        x = random.standard_normal((3, 4) if text is GROWS else 6).astype(np.float32)
        feed = {"m": np.array(turns), "x": x, "z": random.standard_normal((1, 4) if text is GROWS else 6).astype(np.float32)}
        with monkeypatch.context() as patch:
            got, into, out = counted(session, feed, patch)
        for name, want in host.run(feed).items():
            assert got[name].shape == want.shape
            np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-6)
        rows = turns * x.nbytes if text is SWAPS else 0
        assert sum(into) <= sum(a.nbytes for a in feed.values()) and sum(out) <= sum(a.nbytes for a in got.values()) + rows


def test_views_of_what_is_handed_on() -> None:
    session, host = load(TURNS, "emulated-cuda"), load(TURNS, "cpu")
    for turns in (0, 1, 2, 7):
        feed = {"m": np.array(turns), "x": np.arange(6, dtype=np.float32).reshape(2, 3), "z": np.ones((2, 3), np.float32)}
        for name, want in host.run(feed).items():
            np.testing.assert_array_equal(session.run(feed)[name], want)
