"""Bad data met while running: a clear error that names the node, never a crash, and the session works afterwards."""
from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import gpuonnx
from gpuonnx import errors

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'


def session(text: str) -> gpuonnx.Session:
    return gpuonnx.load(onnx.parser.parse_model(HEADER + text), device="cpu")


GATHER = """gather (float[V, D] table, int64[N] ids) => (float[N, D] y) { y = Gather (table, ids) }"""
ELEMENTS = """elements (float[V, D] x, int64[V, K] ids) => (float[V, K] y) { y = GatherElements <axis: int = 1> (x, ids) }"""
SCATTER = """put (float[V, D] x, int64[V, K] ids, float[V, K] u) => (float[V, D] y) { y = ScatterElements <axis: int = 1> (x, ids, u) }"""
SCATTER_ND = """put (float[V, D] x, int64[K, 2] ids, float[K] u) => (float[V, D] y) { y = ScatterND (x, ids, u) }"""
GATHER_ND = """take (float[V, D] x, int64[K, 2] ids) => (float[K] y) { y = GatherND (x, ids) }"""
SUMMED = """summed (float[V, 1] table, int64[N, K] ids, float[N, 1] z) => (float[N, 1] y) {
    axes = Constant <value_ints: ints = [1]> ()
    i = ReduceSum <keepdims: int = 0> (ids, axes)
    g = Gather (table, i)
    y = Add (g, z) }"""
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def ids(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


INDICES: dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray], str]] = {
    "Gather": (GATHER, {"table": X, "ids": ids(0, 3)}, {"table": X, "ids": ids(-3, 2)}, "3 is out of range.* 3"),
    "Gather below": (GATHER, {"table": X, "ids": ids(0, -4)}, {"table": X, "ids": ids(2)}, "out of range"),
    "Gather far": (GATHER, {"table": X, "ids": ids(2**62, 0)}, {"table": X, "ids": ids(0)}, "4611686018427387904 is out of range"),
    "Gather of sums": (SUMMED, {"table": X[:, :1], "ids": ids([1, 1], [2, 1]), "z": X[:2, :1]},
                       {"table": X[:, :1], "ids": ids([1, 1], [2, -1]), "z": X[:2, :1]}, "3 is out of range.* 3"),
    "GatherElements": (ELEMENTS, {"x": X, "ids": ids([0], [1], [9])}, {"x": X, "ids": ids([0], [1], [3])}, "9 is out of range"),
    "GatherND": (GATHER_ND, {"x": X, "ids": ids([0, 0], [2, 4])}, {"x": X, "ids": ids([2, -1])}, "4 is out of range"),
    "ScatterElements": (SCATTER, {"x": X, "ids": ids([0], [4], [1]), "u": X[:, :1]}, {"x": X, "ids": ids([0], [-1], [1]), "u": X[:, :1]}, "out of range"),
    "ScatterND": (SCATTER_ND, {"x": X, "ids": ids([0, 0], [3, 0]), "u": X[0, :2]}, {"x": X, "ids": ids([0, 0], [2, 0]), "u": X[0, :2]}, "out of range"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_out_of_range_names_the_node(case: str) -> None:
    text, bad, good, words = INDICES[case]
    made = session(text)
    for _ in range(2):
        with pytest.raises(errors.ShapeError, match=case.split()[0]) as raised:
            made.run(bad)
        assert raised.match(words)
        assert np.isfinite(made.run(good)["y"]).all()


@pytest.mark.parametrize("op", ["Div (a, b)", "Mod (a, b)"])
@pytest.mark.parametrize("kind", ["int32", "int64", "uint8", "int8"])
def test_integer_division_by_zero_names_the_node(op: str, kind: str) -> None:
    made = session(f"divide ({kind}[N] a, {kind}[M] b) => ({kind}[K] y) {{ y = {op} }}")
    a, b = np.arange(1, 38).astype(kind), np.full(37, 3).astype(kind)
    name = op.split()[0]
    expected = a // b if name == "Div" else a % b
    np.testing.assert_array_equal(made.run([a, b])["y"], expected)
    for place in (0, 16, 36):
        wrong = b.copy()
        wrong[place] = 0
        with pytest.raises(errors.ShapeError, match=f"{name}.*division by zero"):
            made.run([a, wrong])
    np.testing.assert_array_equal(made.run([a, b])["y"], expected)
    with pytest.raises(errors.ShapeError, match="division by zero"):
        made.run([a, b[:1] * 0])
    assert made.run([a[:0], b[:1] * 0])["y"].shape == (0,)


def test_the_least_integer_by_minus_one_wraps() -> None:
    made = session("divide (int32[N] a, int32[N] b) => (int32[N] y) { y = Div (a, b) }")
    got = made.run([np.array([-2**31, 7], np.int32), np.array([-1, -1], np.int32)])["y"]
    assert got.tolist() == [-2**31, -7]


def test_a_reshape_that_does_not_fit() -> None:
    made = session("reshape (float[N, M] x, int64[2] shape) => (float[A, B] y) { y = Reshape (x, shape) }")
    assert made.run([X, ids(6, 2)])["y"].shape == (6, 2)
    for shape in ((5, 2), (-1, 5), (-1, -1), (7, -1)):
        with pytest.raises(errors.GpuOnnxError, match="Reshape"):
            made.run([X, ids(*shape)])
    assert made.run([X, ids(-1, 3)])["y"].shape == (4, 3)


def test_a_computed_reshape_that_does_not_fit() -> None:
    made = session("""reshape (float[N, M] x, float[2] f) => (float[A, B] y) {
      doubled = Add (f, f)
      shape = Cast <to: int = 7> (doubled)
      y = Reshape (x, shape)
    }""")
    assert made.run([X, np.array([3, 1], np.float32)])["y"].shape == (6, 2)
    for shape in ((2.5, 1), (-2, 2.5), (1e30, 1), (np.nan, 1), (-0.5, 3.5)):
        with pytest.raises(errors.GpuOnnxError, match="Reshape"):
            made.run([X, np.array(shape, np.float32)])
    assert made.run([X, np.array([1, 3], np.float32)])["y"].shape == (2, 6)


NEGATIVE: dict[str, tuple[str, list[np.ndarray], list[np.ndarray]]] = {
    "ConstantOfShape": ("fill (int64[2] s) => (float[A, B] y) { y = ConstantOfShape (s) }", [ids(2, -3)], [ids(2, 3)]),
    "Expand": ("expand (float[N, M] x, int64[2] s) => (float[A, B] y) { y = Expand (x, s) }", [X, ids(5, 4)], [X, ids(3, 4)]),
    "Tile": ("tile (float[N, M] x, int64[2] r) => (float[A, B] y) { y = Tile (x, r) }", [X, ids(-1, 2)], [X, ids(1, 2)]),
    "Pad": ("pad (float[N, M] x, int64[4] p) => (float[A, B] y) { y = Pad (x, p) }", [X, ids(-2, 0, -2, 0)], [X, ids(-1, 0, 1, 2)]),
    "OneHot": ("hot (int64[N] i, int64 d, float[2] v) => (float[N, D] y) { y = OneHot (i, d, v) }",
               [ids(1), np.array(-2), X[0, :2]], [ids(1), np.array(4), X[0, :2]]),
    "Split": ("split (float[N, M] x, int64[2] s) => (float[A, M] y, float[B, M] z) { y, z = Split (x, s) }", [X, ids(5, -2)], [X, ids(1, 2)]),
    "TopK": ("top (float[N, M] x, int64[1] k) => (float[N, K] y, int64[N, K] i) { y, i = TopK (x, k) }", [X, ids(5)], [X, ids(3)]),
    "Concat": ("join (float[N, M] x, float[P, Q] z) => (float[A, B] y) { y = Concat <axis: int = 0> (x, z) }", [X, X[:, :3]], [X, X[:1]]),
    "MatMul": ("multiply (float[N, M] x, float[P, Q] z) => (float[A, B] y) { y = MatMul (x, z) }", [X, X], [X, X.T]),
    "Squeeze": ("narrow (float[N, M] x) => (float[N] y) { a = Constant <value_ints: ints = [1]> () y = Squeeze (x, a) }", [X], [X[:, :1]]),
}


@pytest.mark.parametrize("case", NEGATIVE)
def test_sizes_that_cannot_be(case: str) -> None:
    text, bad, good = NEGATIVE[case]
    for order in ((bad, good, bad), (good, bad, good)):
        made = session(text)
        for feed in order:
            if feed is bad:
                with pytest.raises(errors.GpuOnnxError, match=case):
                    made.run(feed)
            else:
                made.run(feed)


def test_sizes_computed_by_the_model_that_cannot_be() -> None:
    made = session("""fill (float[2] f) => (float[A, B] y) {
      doubled = Add (f, f)
      shape = Cast <to: int = 7> (doubled)
      y = ConstantOfShape (shape)
    }""")
    assert made.run(np.array([1, 2], np.float32))["y"].shape == (2, 4)
    with pytest.raises(errors.GpuOnnxError, match="ConstantOfShape"):
        made.run(np.array([1, -2], np.float32))
    with pytest.raises(errors.GpuOnnxError):
        made.run(np.array([1e15, 1e15], np.float32))
    assert made.run(np.array([0, 2], np.float32))["y"].shape == (0, 4)


def test_more_memory_than_there_is() -> None:
    made = session("fill (int64[2] s) => (float[A, B] y) { z = ConstantOfShape (s) y = Exp (z) }")
    with pytest.raises(errors.MemoryLimitError):
        made.run(ids(2**30, 2**20))
    with pytest.raises(errors.GpuOnnxError):
        made.run(ids(2**40, 2**40))
    assert made.run(ids(2, 2))["y"].tolist() == [[1, 1], [1, 1]]


ENDLESS = """until (float[N] x) => (float[N] y) {
  yes = Constant <value: tensor = bool {1}> ()
  y = Loop (, yes, x) <body = step (int64 i, bool going, float[N] a) => (bool go_on, float[N] b) {
    b = Cos (a)
    go_on = Identity (going)
  }>
}"""


def test_a_loop_without_end_stops_at_the_timeout() -> None:
    made = session(ENDLESS)
    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(errors.Cancelled, match="timeout of 0.2 s"):
            made.run(np.zeros(3, np.float32), timeout=0.2)
    assert time.monotonic() - begun < 5


def test_a_loop_stops_at_its_iteration_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = session(ENDLESS)
    monkeypatch.setattr(made.context, "loop_limit", 50)
    with pytest.raises(errors.ShapeError, match="Loop.*more than 50 iterations"):
        made.run(np.zeros(3, np.float32))


def test_a_bad_body_names_its_node() -> None:
    made = session("""walk (int64 n, float[V] table) => (float y) {
      yes = Constant <value: tensor = bool {1}> ()
      zero = Constant <value: tensor = float {0.0}> ()
      y = Loop (n, yes, zero) <body = step (int64 i, bool going, float sum) => (bool go_on, float total) {
        item = Gather (table, i)
        total = Add (sum, item)
        go_on = Identity (going)
      }>
    }""")
    table = np.ones(4, np.float32)
    assert made.run([np.array(4), table])["y"] == 4
    with pytest.raises(errors.ShapeError, match="Gather item.*index 4 is out of range"):
        made.run([np.array(6), table])
    assert made.run([np.array(3), table])["y"] == 3


def test_a_sequence_position_that_does_not_exist() -> None:
    made = session("""pick (float[N] x, int64 at) => (float[N] y) {
      parts = SequenceConstruct (x, x)
      y = SequenceAt (parts, at)
    }""")
    assert made.run([X[0], np.array(-1)])["y"].tolist() == [0, 1, 2, 3]
    with pytest.raises(errors.GpuOnnxError, match="SequenceAt"):
        made.run([X[0], np.array(5)])


def test_a_condition_of_several_elements() -> None:
    made = session("""choose (bool[N] c, float[M] x) => (float[M] y) {
      y = If (c) <then_branch = a () => (float[M] p) { p = Relu (x) }, else_branch = b () => (float[M] q) { q = Neg (x) }>
    }""")
    assert made.run([np.array([False]), X[0]])["y"].tolist() == [0, -1, -2, -3]
    with pytest.raises(errors.GpuOnnxError, match="If.*condition"):
        made.run([np.array([True, False]), X[0]])


HUGE = {
    "Expand": ("grow (float[N, M] x, int64[2] s) => (float[A, B] y) { y = Expand (x, s) }", [X[:1, :1], ids(2**62, 2**62)]),
    "Reshape": ("shape (float[N, M] x, int64[3] s) => (float[A, B, C] y) { y = Reshape (x, s) }", [X[:0], ids(0, 2**62, 2**62)]),
    "Tile": ("tile (float[N, M] x, int64[2] r) => (float[A, B] y) { y = Tile (x, r) }", [X, ids(2**62, 2**62)]),
    "Range": ("range (int64 a, int64 b, int64 c) => (int64[N] y) { y = Range (a, b, c) }", [np.array(-2**63), np.array(2**63 - 1), np.array(1)]),
    "Pad": ("pad (float[N, M] x, int64[4] p) => (float[A, B] y) { y = Pad (x, p) }", [X, ids(2**62, 2**62, 2**62, 2**62)]),
    "Upsample": ("resize (float[N, M] x, float[2] s) => (float[A, B] y) { y = Resize (x, , s) }", [X, np.array([1e30, np.inf], np.float32)]),
}


@pytest.mark.parametrize("case", HUGE)
def test_sizes_beyond_any_machine(case: str) -> None:
    text, feed = HUGE[case]
    made = session(text)
    for _ in range(2):
        with pytest.raises(errors.GpuOnnxError):
            made.run(feed)


def test_steps_beyond_any_size() -> None:
    made = session("part (float[N, M] x, int64[2] s, int64[2] e, int64[2] a, int64[2] t) => (float[P, Q] y) { y = Slice (x, s, e, a, t) }")
    top, low = 2**63 - 1, -2**63
    for starts, ends, steps in (((-1, top), (5, 100), (2**62, top)), ((0, 0), (top, top), (top, 2**40)), ((top, top), (low, low), (low, -1)),
                                ((low, 1), (top, 3), (1, top))):
        where = tuple(slice(s, None if e == low else e, t) for s, e, t in zip(starts, ends, steps, strict=True))
        got = made.run([X, ids(*starts), ids(*ends), ids(0, 1), ids(*steps)])["y"]
        np.testing.assert_array_equal(got, X[where])


def test_a_constant_index_into_what_a_slice_leaves_is_checked() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
    net (float[N, 4] x, int64[1] a) => (float[1, 4] y) {
      one = Constant <value: tensor = int64[1] {1}> ()
      zero = Constant <value: tensor = int64[1] {0}> ()
      b = Add (a, one)
      p = Slice (x, a, b, zero)
      q = Gather (p, zero)
      y = Neg (q)
    }"""
    session, x = gpuonnx.load(onnx.parser.parse_model(text), device="cpu"), np.arange(20, dtype=np.float32).reshape(5, 4)
    np.testing.assert_array_equal(session.run({"x": x, "a": np.array([4])})["y"], -x[4:])
    with pytest.raises(gpuonnx.ShapeError, match="Gather q: index 0 into an axis"):
        session.run({"x": x, "a": np.array([5])})
