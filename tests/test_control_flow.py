"""Control flow models of our own, against the reference evaluator: growing caches, scans, sequences, changing shapes."""
from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import gpuonnx

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'


def agree(text: str, *feeds: dict[str, np.ndarray], rtol: float = 1e-5, device: str = "cpu") -> gpuonnx.Session:
    """One session, several inputs: every answer is the reference's."""
    model = onnx.parser.parse_model(HEADER + text)
    session = gpuonnx.load(model, device=device)
    reference = ReferenceEvaluator(model)
    for feed in feeds:
        expected = reference.run(None, feed)
        for want, got in zip(expected, session.run(feed).values(), strict=True):
            if isinstance(want, list):
                assert len(want) == len(got)
                for w, g in zip(want, got, strict=True):
                    np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-6)
            else:
                assert got.dtype == want.dtype and got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-6)
    return session


def test_greedy_decoding_with_a_growing_cache() -> None:
    rng = np.random.default_rng(0)
    text = """
    decode (int64[1] first, float[V, D] table, int64 steps) => (int64[T] tokens, float[T, D] cache) {
      yes = Constant <value: tensor = bool {1}> ()
      empty = Constant <value: tensor = float[0, 8] {}> ()
      minus = Constant <value_ints: ints = [-1]> ()
      last, cache, tokens_out = Loop (steps, yes, first, empty) <body = step (int64 i, bool going, int64[1] token, float[N, 8] past)
        => (bool go_on, int64[1] next, float[M, 8] present, int64[1] emitted) {
          embedded = Gather (table, token)
          present = Concat <axis: int = 0> (past, embedded)
          turned = Transpose <perm: ints = [1, 0]> (present)
          scores = MatMul (embedded, turned)
          weights = Softmax <axis: int = -1> (scores)
          mixed = MatMul (weights, present)
          across = Transpose <perm: ints = [1, 0]> (table)
          logits = MatMul (mixed, across)
          next0 = ArgMax <axis: int = -1, keepdims: int = 0> (logits)
          one = Constant <value_ints: ints = [3]> ()
          size0 = Shape <start: int = 0, end: int = 1> (table)
          moved = Add (next0, one)
          next = Mod (moved, size0)
          emitted = Identity (next)
          go_on = Identity (going)
      }>
      tokens = Reshape (tokens_out, minus)
    }"""
    table = rng.standard_normal((11, 8)).astype(np.float32)
    session = agree(text, {"first": np.array([2]), "table": table, "steps": np.array(5)},
                    {"first": np.array([7]), "table": table, "steps": np.array(9)})
    nothing = session.run({"first": np.array([1]), "table": table, "steps": np.array(0)})
    assert nothing["tokens"].shape == (0,) and nothing["cache"].shape == (0, 8)
    compiled = session.stats.compiled
    session.run({"first": np.array([4]), "table": table, "steps": np.array(13)})
    assert session.stats.compiled == compiled


def test_scan_over_a_recurrent_cell() -> None:
    rng = np.random.default_rng(1)
    text = """
    scan (float[S, B, 4] x, float[B, 6] h0, float[4, 6] w, float[6, 6] r) => (float[B, 6] last, float[S, B, 6] all) {
      last, all = Scan (h0, x) <num_scan_inputs: int = 1, body = cell (float[B, 6] h, float[B, 4] e) => (float[B, 6] h_out, float[B, 6] y) {
        a = MatMul (e, w)
        b = MatMul (h, r)
        c = Add (a, b)
        h_out = Tanh (c)
        y = Identity (h_out)
      }>
    }"""
    def feed(s: int, b: int) -> dict[str, np.ndarray]:
        shapes = {"x": (s, b, 4), "h0": (b, 6), "w": (4, 6), "r": (6, 6)}
        return {k: rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()}
    agree(text, feed(5, 2), feed(3, 7))


def test_scan_backwards_along_another_axis() -> None:
    text = """
    scan (float[B, S] x, float[B] total) => (float[B] last, float[B, S] sums) {
      last, sums = Scan (total, x) <num_scan_inputs: int = 1, scan_input_axes: ints = [1], scan_input_directions: ints = [1],
        scan_output_axes: ints = [1], scan_output_directions: ints = [1], body = cell (float[B] t, float[B] e) => (float[B] t_out, float[B] y) {
        t_out = Add (t, e)
        y = Identity (t_out)
      }>
    }"""
    rng = np.random.default_rng(2)
    session = gpuonnx.load(onnx.parser.parse_model(HEADER + text), device="cpu")
    for shape in ((3, 5), (1, 9), (4, 1)):
        x = rng.standard_normal(shape).astype(np.float32)
        got = session.run({"x": x, "total": np.zeros(shape[0], np.float32)})
        np.testing.assert_allclose(got["sums"], np.cumsum(x[:, ::-1], 1)[:, ::-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["last"], x.sum(1), rtol=1e-5, atol=1e-6)


def test_a_loop_that_appends_tensors_of_differing_shapes_to_a_sequence() -> None:
    text = """
    build (int64 count, float[2, 3] x) => (seq(float) parts) {
      yes = Constant <value: tensor = bool {1}> ()
      none = SequenceEmpty <dtype: int = 1> ()
      parts = Loop (count, yes, none) <body = step (int64 i, bool going, seq(float) sofar) => (bool go_on, seq(float) longer) {
        one = Constant <value_ints: ints = [1]> ()
        flat = Reshape (i, one)
        n = Add (flat, one)
        repeats = Concat <axis: int = 0> (n, one)
        part = Tile (x, repeats)
        longer = SequenceInsert (sofar, part)
        go_on = Identity (going)
      }>
    }"""
    agree(text, {"count": np.array(3), "x": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_a_carried_value_whose_shape_changes_each_turn() -> None:
    text = """
    grow (int64 count, float[N] x) => (float[M] y) {
      yes = Constant <value: tensor = bool {1}> ()
      y = Loop (count, yes, x) <body = step (int64 i, bool going, float[K] a) => (bool go_on, float[L] b) {
        b = Concat <axis: int = 0> (a, a)
        go_on = Identity (going)
      }>
    }"""
    x = np.arange(3, dtype=np.float32)
    agree(text, {"count": np.array(0), "x": x}, {"count": np.array(4), "x": x}, {"count": np.array(2), "x": x[:1]})


DEVICES = ["cpu", pytest.param("emulated-cuda", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler"))]


@pytest.mark.parametrize("device", DEVICES)
def test_nonzero_inside_a_loop(device: str) -> None:
    text = """
    pick (int64 count, float[N] x) => (float[K] kept) {
      yes = Constant <value: tensor = bool {1}> ()
      kept = Loop (count, yes, x) <body = step (int64 i, bool going, float[A] a) => (bool go_on, float[B] b) {
        half = Constant <value: tensor = float {0.5}> ()
        less = Mul (a, half)
        zero = Constant <value: tensor = float {0.25}> ()
        large = Greater (less, zero)
        where = NonZero (large)
        first = Constant <value_ints: ints = [0]> ()
        flat = Squeeze (where, first)
        b = Gather (less, flat)
        go_on = Identity (going)
      }>
    }"""
    rng = np.random.default_rng(3)
    agree(text, {"count": np.array(3), "x": rng.random(40).astype(np.float32) * 8}, {"count": np.array(1), "x": np.zeros(4, np.float32)},
          device=device)


def test_a_host_operator_inside_a_loop() -> None:
    text = """
    words (int64 count, string[N] x) => (string[N] y) {
      yes = Constant <value: tensor = bool {1}> ()
      y = Loop (count, yes, x) <body = step (int64 i, bool going, string[N] a) => (bool go_on, string[N] b) {
        b = StringConcat (a, x)
        go_on = Identity (going)
      }>
    }"""
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 20]>\n' + text)
    got = gpuonnx.load(model, device="cpu").run({"count": np.array(2), "x": np.array(["a", "bc"], object)})
    assert got["y"].tolist() == ["aaa", "bcbcbc"]


def test_branches_of_different_ranks() -> None:
    text = """
    branch (bool c, float[N] x) => (y) {
      y = If (c) <then_branch = one () => (a) { a = Identity (x) }, else_branch = two () => (b) {
        axes = Constant <value_ints: ints = [0]> ()
        b = Unsqueeze (x, axes)
      }>
    }"""
    x = np.arange(3, dtype=np.float32)
    agree(text, {"c": np.array(True), "x": x}, {"c": np.array(False), "x": x})


def test_a_loop_ends_by_its_condition_and_by_its_limit() -> None:
    text = """
    until (float x) => (float y) {
      yes = Constant <value: tensor = bool {1}> ()
      y = Loop (, yes, x) <body = step (int64 i, bool going, float a) => (bool go_on, float b) {
        two = Constant <value: tensor = float {2.0}> ()
        b = Mul (a, two)
        limit = Constant <value: tensor = float {100.0}> ()
        go_on = Less (b, limit)
      }>
    }"""
    session = agree(text, {"x": np.array(1.5, np.float32)})
    with pytest.raises(gpuonnx.Cancelled, match="timeout"):
        session.run({"x": np.array(0.0, np.float32)}, timeout=0.05)


FUNCTIONS = '<ir_version: 9, opset_import: ["" : 18, "own" : 1]>\n'


def test_a_function_with_branches_of_different_ranks() -> None:
    """What follows the branch inside the function, and the function's caller, are lowered once the rank is known."""
    model = onnx.parser.parse_model(FUNCTIONS + """
    g (float[N] x) => (float[M] y) { twice = own.Outer (x)  y = Neg (twice) }
    <domain: "own", opset_import: ["" : 18, "own" : 1]>
    Outer (a) => (c) { b = own.Inner (a)  c = Add (b, b) }
    <domain: "own", opset_import: ["" : 18]>
    Inner (a) => (b) {
      zero = Constant <value: tensor = float {0}> ()
      total = ReduceSum <keepdims: int = 0> (a)
      positive = Greater (total, zero)
      minus = Constant <value: tensor = int64[2] {-1, 1}> ()
      one = Constant <value: tensor = float {1}> ()
      z = If (positive) <then_branch = t () => (float[P] p) { p = Identity (a) }, else_branch = e () => (float[Q, 1] q) { q = Reshape (a, minus) }>
      b = Add (z, one)
    }""")
    session = gpuonnx.load(model)
    for x in (np.float32([1, 2]), np.float32([-1, -2, -3]), np.float32([4])):
        want = -2 * ((x if x.sum() > 0 else x.reshape(-1, 1)) + 1)
        np.testing.assert_array_equal(session.run(x)["y"], want)


def test_an_attribute_of_a_function_read_in_a_branch() -> None:
    model = onnx.parser.parse_model(FUNCTIONS + """
    g (float[N] x) => (float[N] y) { y = own.Leaky <slope: float = 0.5> (x) }
    <domain: "own", opset_import: ["" : 18]>
    Leaky <slope> (a) => (b) {
      zero = Constant <value: tensor = float {0}> ()
      total = ReduceSum <keepdims: int = 0> (a)
      positive = Greater (total, zero)
      b = If (positive) <then_branch = t () => (float[P] p) { p = LeakyRelu <alpha: float = @slope> (a) }, else_branch = e () => (float[Q] q) { q = Neg (a) }>
    }""")
    session = gpuonnx.load(model)
    np.testing.assert_array_equal(session.run(np.float32([-1, 4]))["y"], np.float32([-0.5, 4]))
    np.testing.assert_array_equal(session.run(np.float32([-6, 4]))["y"], np.float32([6, -4]))


def test_no_turn_of_a_loop_whose_scan_is_not_declared() -> None:
    """Its rank and its sizes are those of the body's lowering."""
    model = onnx.parser.parse_model(HEADER + """
    agraph (float[a, b] x, int64 trip) => (int64[3] y) {
      scan = Loop (trip, ) <body = b (int64 i, bool c) => (bool d, s) { d = Identity (c) s = Add (x, x) }>
      y = Shape (scan)
    }""")
    session = gpuonnx.load(model, device="cpu")
    x = np.ones((2, 3), np.float32)
    assert session.run({"x": x, "trip": np.array(0)})["y"].tolist() == [0, 2, 3]
    assert session.run({"x": x, "trip": np.array(2)})["y"].tolist() == [2, 2, 3]


def test_a_carried_value_whose_rank_nobody_declares() -> None:
    """What a branch gives has a rank that only the run tells, so nothing is known of the body's results; the carried value is reshaped."""
    def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs.split(), outputs.split(), **attributes)

    def graph(name: str, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
        made = helper.make_graph(nodes, name, [helper.make_empty_tensor_value_info(i) for i in inputs], [])
        made.output.extend(helper.make_empty_tensor_value_info(o) for o in outputs)
        return made
    last = graph("last", [node("Unsqueeze", "rows one", "r1")], [], ["r1"])
    other = graph("other", [node("ReduceSum", "rows one", "r2", keepdims=0)], [], ["r2"])
    body = graph("body", [
        node("Reshape", "i minus", "s"), node("Add", "s one", "t"), node("Slice", "w s t", "rows"), node("Equal", "i top", "c"),
        node("If", "c", "row", then_branch=last, else_branch=other), node("SequenceInsert", "q row", "q2"), node("Add", "i unit", "i2"),
        node("Less", "i2 n", "go2")], ["it", "go", "i", "q"], ["go2", "i2", "q2"])
    nodes = [node("SequenceEmpty", "", "q0"), node("Less", "nought n", "go0"), helper.make_node("Loop", ["", "go0", "nought", "q0"], ["last_i", "q1"], body=body),
             node("SequenceAt", "q1 nought", "first"), node("SequenceLength", "q1", "count")]
    constants = {"minus": np.array([-1]), "one": np.array([1]), "unit": np.array(1), "nought": np.array(0), "top": np.array(2)}
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("w", 1, ["R", 3]), helper.make_tensor_value_info("n", 7, [])],
                             [helper.make_tensor_value_info("first", 1, None), helper.make_tensor_value_info("count", 7, [])],
                             [numpy_helper.from_array(v, k) for k, v in constants.items()])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    w = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = gpuonnx.load(model, device="cpu").run({"w": w, "n": np.array(3)})
    np.testing.assert_allclose(found["first"], [3.0])
    assert found["count"] == 3
