"""Inputs of every kind, buffers for outputs, pruning, counters, memory."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

import gpuonnx
from gpuonnx import errors

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'
NETWORK = """net (float[N, K] x, float[K, M] w) => (float[N, M] y, float[N] s) {
  h = MatMul (x, w)
  y = Tanh (h)
  axes = Constant <value_ints: ints = [1]> ()
  s = ReduceSum <keepdims: int = 0> (y, axes)
}"""
R = np.random.default_rng(0)
X, W = R.standard_normal((6, 4)).astype(np.float32), R.standard_normal((4, 3)).astype(np.float32)
Y = np.tanh(X @ W)


def session(text: str, **options: Any) -> gpuonnx.Session:
    return gpuonnx.load(onnx.parser.parse_model(HEADER + text), device="cpu", **options)


def unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + 1, np.uint8)
    made = raw[1:].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


KINDS: dict[str, Any] = {
    "Fortran": np.asfortranarray(X), "steps": np.repeat(np.repeat(X, 2, 0), 3, 1)[::2, ::3], "backwards": X[::-1, ::-1].copy()[::-1, ::-1],
    "swapped bytes": X.astype(">f4"), "swapped and strided": np.repeat(X, 2, 0).astype(">f4")[::2], "read only": X.copy(), "unaligned": unaligned(X),
    "lists": X.tolist(), "broadcast": np.broadcast_to(X[:1], (6, 4)), "memory map": X.view(np.memmap),
}
KINDS["read only"].flags.writeable = False


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_every_kind(kind: str) -> None:
    given = KINDS[kind]
    before = np.array(given)
    got = session(NETWORK).run({"x": given, "w": W})["y"]
    np.testing.assert_allclose(got, np.tanh(np.asarray(before, np.float32) @ W), rtol=1e-5, atol=1e-6)
    assert type(got) is np.ndarray and np.array_equal(before, np.array(given))


def test_scalars_and_empty_tensors() -> None:
    made = session("scale (float[N] x, float k, bool b) => (float[N] y, float z) { y = Mul (x, k) c = Cast <to: int = 1> (b) z = Add (k, c) }")
    for k in (np.float32(2), np.array(2, np.float32), 2.0, 2, np.array(2, ">f4"), np.array([2.0, 3], np.float32)[0]):
        got = made.run({"x": X[0], "k": k, "b": True})
        np.testing.assert_array_equal(got["y"], X[0] * 2)
        assert got["z"].shape == () and got["z"] == 3
    for empty in (X[0, :0], np.empty((0,), ">f4"), [], np.empty((4, 0), np.float32)[0]):
        assert made.run({"x": empty, "k": 1.0, "b": False})["y"].shape == (0,)
    network = session(NETWORK)
    for n, k, m in ((0, 4, 3), (6, 0, 3), (6, 4, 0), (0, 0, 0)):
        got = network.run([np.zeros((n, k), np.float32), np.zeros((k, m), np.float32)])
        assert got["y"].shape == (n, m) and got["s"].shape == (n,) and not got["y"].any() and not got["s"].any()


WRONG: dict[str, Any] = {
    "text": [["a", "b"]], "complex": X.astype(np.complex64), "ragged": [[1.0, 2.0], [3.0]], "integers": X.astype(np.int32),
    "double": X.astype(np.float64), "objects": np.array([[None]]), "times": np.array([["2020-01-01"]], "datetime64[D]"),
    "records": np.zeros((2, 2), [("a", "f4")]), "set": {1, 2},
}


@pytest.mark.parametrize("kind", WRONG)
def test_inputs_that_cannot_be(kind: str) -> None:
    with pytest.raises(errors.InputError, match="input 'x'"):
        session(NETWORK).run({"x": WRONG[kind], "w": W})


def test_numbers_that_do_not_fit() -> None:
    made = session("narrow (int8[N] x) => (int8[N] y) { y = Neg (x) }")
    assert made.run([[1, -127]])["y"].tolist() == [-1, 127]
    for wrong in ([1, 200], [1.5], [2**70], ["1"]):
        with pytest.raises(errors.InputError, match="input 'x' must be int8"):
            made.run([wrong])


def test_names() -> None:
    made = session(NETWORK)
    for given, words in (({"X": X, "w": W}, "no input 'X'; did you mean 'x'"), ({"x": X}, "input 'w' is missing"),
                         ({"x": X, "w": W, 3: X}, "no input 3"), ({"x": X, "w": None}, "input 'w' is None"),
                         ([X, W, X], "3 inputs were given, the model has 2"), (X, "one array was given")):
        with pytest.raises(errors.InputError, match=words):
            made.run(given)


def test_buffers_for_outputs() -> None:
    made = session(NETWORK)
    y, s = np.full((6, 3), np.nan, np.float32), np.full(6, np.nan, np.float32)
    for _ in range(2):
        got = made.run([X, W], out={"y": y, "s": s})
        assert got["y"] is y and got["s"] is s
        np.testing.assert_allclose(y, Y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(s, Y.sum(1), rtol=1e-4, atol=1e-5)
    alone = made.run([X, W])["y"]
    assert not np.shares_memory(alone, y)
    y[:] = 0
    assert made.run([X, W], out={"s": s})["y"].any() and not y.any()


BUFFERS: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": (np.empty((3, 6), np.float32), errors.ShapeError, r"output 'y' must have the shape \[6, 3\], not \[3, 6\]"),
    "smaller": (np.empty((5, 3), np.float32), errors.ShapeError, "output 'y'"),
    "rank": (np.empty(18, np.float32), errors.ShapeError, "output 'y'"),
    "type": (np.empty((6, 3), np.float64), errors.InputError, "must be float32, not float64"),
    "bytes": (np.empty((6, 3), ">f4"), errors.InputError, "output 'y' must be float32"),
    "order": (np.empty((6, 3), np.float32, order="F"), errors.InputError, "C-contiguous"),
    "read only": (np.frombuffer(bytes(72), np.float32).reshape(6, 3), errors.InputError, "writeable"),
    "unaligned": (unaligned(Y), errors.InputError, "aligned"),
    "list": (Y.tolist(), errors.InputError, "NumPy array"),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_that_cannot_be(kind: str) -> None:
    given, error, words = BUFFERS[kind]
    made = session(NETWORK)
    for _ in range(2):
        with pytest.raises(error, match=words):
            made.run([X, W], out={"y": given})
    np.testing.assert_allclose(made.run([X, W])["y"], Y, rtol=1e-5, atol=1e-6)


def test_buffers_that_overlap() -> None:
    made = session("both (float[N] x) => (float[N] y, float[N] z) { y = Neg (x) z = Abs (x) }")
    x, room = np.arange(4, dtype=np.float32), np.empty(6, np.float32)
    with pytest.raises(errors.InputError, match="overlaps input 'x'"):
        made.run([x], out={"y": x})
    with pytest.raises(errors.InputError, match="'y' and 'z' overlap"):
        made.run([x], out={"y": room[:4], "z": room[2:]})


ALIASES = {
    "the input": "same (float[N] x) => (float[N] y) { y = Identity (x) }",
    "a view of the input": "same (float[N] x) => (float[N, A] y) { a = Constant <value_ints: ints = [-1, 1]> () y = Reshape (x, a) }",
    "twice": "same (float[N] x) => (float[N] y, float[N] z) { y = Neg (x) z = Identity (y) }",
    "a constant": "same (float[N] x) => (float[2] y, float[N] z) { y = Constant <value: tensor = float[2] {1.0, 2.0}> () z = Neg (x) }",
    "a part": """same (float[N] x) => (float[N] y, float[M] z) {
        y = Exp (x) a = Constant <value_ints: ints = [1]> () b = Constant <value_ints: ints = [3]> () z = Slice (y, a, b) }""",
    "a sequence": "same (float[N] x) => (seq(float[N]) y) { h = Neg (x) y = SequenceConstruct (x, h, x) }",
    "a branch": """same (float[N] x) => (float[N] y) { s = ReduceSum <keepdims: int = 0> (x) t = Cast <to: int = 9> (s)
        y = If (t) <then_branch = a () => (float[N] p) { p = Identity (x) }, else_branch = b () => (float[N] q) { q = Identity (x) }> }""",
    "no turns": """same (float[N] x) => (float[N] y) { n = Constant <value: tensor = int64 {0}> () c = Constant <value: tensor = bool {1}> ()
        h = Neg (x) y = Loop (n, c, h) <body = s (int64 i, bool g, float[N] a) => (bool o, float[N] b) { b = Neg (a) o = Identity (g) }> }""",
}


@pytest.mark.parametrize("kind", ALIASES)
def test_outputs_alias_nothing(kind: str) -> None:
    made = session(ALIASES[kind])
    x = np.array([3, 1, 2, 5], np.float32)
    first, kept = made.run([x]), x.copy()
    arrays = [a for v in first.values() for a in (v if isinstance(v, list) else [v])]
    copies = [a.copy() for a in arrays]
    for k, a in enumerate(arrays):
        assert a.flags.writeable and not np.shares_memory(a, x)
        assert not any(np.shares_memory(a, b) for b in arrays[:k])
    made.run([x * 2 + 1])
    assert all(np.array_equal(a, c) for a, c in zip(arrays, copies, strict=True))
    for a in arrays:
        a[...] = -77
    again = [a for v in made.run([x]).values() for a in (v if isinstance(v, list) else [v])]
    assert all(np.array_equal(a, c) for a, c in zip(again, copies, strict=True)) and np.array_equal(x, kept)


def test_a_sequence_input_is_neither_kept_nor_changed() -> None:
    made = session("more (seq(float[N]) s, float[N] x) => (seq(float[N]) t) { t = SequenceInsert (s, x) }")
    given = [np.ones(2, np.float32), np.zeros(3, np.float32)]
    got = made.run({"s": given, "x": X[0]})["t"]
    assert len(given) == 2 and [len(a) for a in got] == [2, 3, 4] and not any(np.shares_memory(a, b) for a in got for b in given)


def test_pruning() -> None:
    made = session(NETWORK)
    assert list(made.run([X, W], outputs=["s"])) == ["s"] and list(made.run([X, W], outputs="y")) == ["y"]
    swapped = made.run([X, W], outputs=["s", "y"])
    assert list(swapped) == ["s", "y"]
    np.testing.assert_allclose(swapped["y"], Y, rtol=1e-5, atol=1e-6)
    assert made.run([X, W], outputs=[]) == {}
    with pytest.raises(errors.InputError, match="no output 'q'; outputs are y, s"):
        made.run([X, W], outputs=["q"])
    only = session("two (float[N] x, int64[M] i) => (float[N] y, float[M] z) { y = Neg (x) z = Gather (x, i) }")
    bad = [X[0], np.array([77])]
    assert only.run(bad, outputs=["y"])["y"].tolist() == (-X[0]).tolist()
    with pytest.raises(errors.ShapeError):
        only.run(bad)


def test_counters(tmp_path: Any) -> None:
    made = session(NETWORK, cache_dir=str(tmp_path))
    assert (made.stats.runs, made.stats.variants, made.stats.bindings) == (0, 0, 0)
    for x in (X, X, X[:3], X[:3], X):
        made.run([x, W])
    stats = made.stats
    assert (stats.runs, stats.variants, stats.bindings) == (5, 1, 2) and stats.compiled + stats.cache_hits > 0
    compiled = stats.compiled
    made.run([np.ones((40, 30), np.float32), np.ones((30, 20), np.float32)])
    assert (stats.compiled, stats.variants, stats.bindings) == (compiled, 1, 3)
    again = session(NETWORK, cache_dir=str(tmp_path))
    again.run([X, W])
    assert (again.stats.compiled, again.stats.variants) == (0, 1) and again.stats.cache_hits > 0


CHAIN = """chain (float[N, K] x) => (float[N, K] y) {
  t = Transpose <perm: ints = [1, 0]> (x)
  a = MatMul (x, t)
  b = MatMul (a, x)
  c = MatMul (b, t)
  y = MatMul (c, x)
}"""


def test_peak_and_limit_of_memory() -> None:
    made = session(CHAIN)
    x = np.ones((100, 50), np.float32)
    made.run([x])
    small = made.stats.peak_bytes
    assert 100 * 100 * 4 <= small < 2_000_000
    made.run([np.ones((400, 50), np.float32)])
    large = made.stats.peak_bytes
    assert large >= 400 * 400 * 4
    limited = session(CHAIN, memory_limit=small + 64)
    limited.run([x])
    with pytest.raises(errors.MemoryLimitError, match="memory_limit is"):
        limited.run([np.ones((400, 50), np.float32)])
    np.testing.assert_array_equal(limited.run([x])["y"], made.run([x])["y"])
    assert limited.stats.peak_bytes <= small + 64


def test_memory_of_bodies_counts() -> None:
    text = """walk (int64 n, float[K, K] x) => (float[K, K] y) {
      c = Constant <value: tensor = bool {1}> ()
      y = Loop (n, c, x) <body = s (int64 i, bool g, float[K, K] a) => (bool o, float[K, K] b) {
        p = MatMul (a, a)
        q = MatMul (p, a)
        b = MatMul (q, p)
        o = Identity (g) }>
    }"""
    feed = [np.array(2), np.zeros((300, 300), np.float32)]
    made = session(text)
    made.run(feed)
    assert made.stats.peak_bytes >= 2 * 300 * 300 * 4
    with pytest.raises(errors.MemoryLimitError):
        session(text, memory_limit=300 * 300 * 4).run(feed)


def test_memory_is_given_back_after_a_large_run() -> None:
    made = session(CHAIN)
    made.run([np.ones((1500, 20), np.float32)])
    variant = made._main.variants[0]
    assert sum(a.nbytes for frame in variant.frames for a in frame.arenas) > 9_000_000
    for n in range(100):
        made.run([np.ones((3 + n % 2, 2), np.float32)])
    assert sum(a.nbytes for frame in variant.frames for a in frame.arenas) < 2_000_000


@pytest.mark.parametrize("warm", [False, True])
def test_inputs_that_have_a_default(warm: bool, tmp_path: Any) -> None:
    floats = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", ["N"]), ("w", [3]), ("y", ["N"]))]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "w"], ["y"])], "g", floats[:2], floats[2:],
                                   [onnx.numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    x, w = np.ones(3, np.float32), np.array([5, 6, 7], np.float32)
    if warm:
        gpuonnx.load(model, device="cpu", cache_dir=str(tmp_path)).run(x)
    made = gpuonnx.load(model, device="cpu", cache_dir=str(tmp_path))
    assert [i.name for i in made.inputs] == ["x"]
    for _ in range(2):
        assert made.run(x)["y"].tolist() == [1, 2, 3]
        assert made.run({"x": x, "w": w})["y"].tolist() == [5, 6, 7]
        assert made.run({"x": x, "w": w * 2}, outputs=["y"])["y"].tolist() == [10, 12, 14]
    with pytest.raises(errors.InputError, match="input 'w' must be float32"):
        made.run({"x": x, "w": w.astype(np.float64)})
    with pytest.raises(errors.ShapeError, match="input 'w', axis 0"):
        made.run({"x": x, "w": w[:2]})
