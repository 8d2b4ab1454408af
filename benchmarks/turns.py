"""Microseconds a turn and a call of control flow: small Loops, Ifs and what lies inside one another; the best of several blocks."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser

import gpuonnx

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'
CELL = """net (float[S, 1, 16] x, float[1, 32] h0, float[16, 32] w, float[32, 32] r) => (float[1, 32] last, float[S, 1, 32] all) {
  last, all = Scan (h0, x) <num_scan_inputs: int = 1, body = cell (float[1, 32] h, float[1, 16] e) => (float[1, 32] h_out, float[1, 32] y) {
    a = MatMul (e, w)
    b = MatMul (h, r)
    c = Add (a, b)
    h_out = Tanh (c)
    y = Identity (h_out)
  }>
}"""
BRANCHED = """net (int64 m, float[8] x) => (float[8] y) {
  go = Constant <value: tensor = bool {1}> ()
  y = Loop (m, go, x) <body = turn (int64 i, bool c, float[8] a) => (bool d, float[8] b) {
    d = Identity (c)
    three = Constant <value: tensor = int64 {3}> ()
    zero = Constant <value: tensor = int64 {0}> ()
    k = Mod (i, three)
    third = Equal (k, zero)
    b = If (third) <then_branch = yes () => (float[8] p) { p = Neg (a) }, else_branch = no () => (float[8] q) { q = Add (a, x) }>
  }>
}"""
NESTED = """net (int64 m, float[8] x) => (float[8] y) {
  go = Constant <value: tensor = bool {1}> ()
  y = Loop (m, go, x) <body = outer (int64 i, bool c, float[8] a) => (bool d, float[8] b) {
    d = Identity (c)
    ten = Constant <value: tensor = int64 {10}> ()
    b = Loop (ten, c, a) <body = inner (int64 j, bool e, float[8] v) => (bool f, float[8] w) {
      f = Identity (e)
      half = Constant <value: tensor = float {0.5}> ()
      u = Mul (v, half)
      w = Add (u, x)
    }>
  }>
}"""
CACHE = """net (int64 m, float[1, 64] x) => (float[N, 64] y, float[1, 64] z) {
  go = Constant <value: tensor = bool {1}> ()
  empty = Constant <value: tensor = float[0, 64] {}> ()
  y, z = Loop (m, go, empty, x) <body = step (int64 i, bool c, float[P, 64] past, float[1, 64] t) => (bool d, float[Q, 64] now, float[1, 64] u) {
    d = Identity (c)
    now = Concat <axis = 0> (past, t)
    turned = Transpose <perm = [1, 0]> (now)
    scores = MatMul (t, turned)
    weights = Softmax <axis = -1> (scores)
    mixed = MatMul (weights, now)
    u = Tanh (mixed)
  }>
}"""
IFS = """net (float[16] x) => (float[16] y) {
  a0 = Relu (x)
  total = ReduceSum <keepdims = 0> (x)
  zero = Constant <value: tensor = float {0.0}> ()
  c = Greater (total, zero)
""" + "".join(f"""  a{k + 1} = If (c) <then_branch = yes{k} () => (float[16] p) {{ p = Add (a{k}, x) }},
    else_branch = no{k} () => (float[16] q) {{ q = Neg (a{k}) }}>
""" for k in range(10)) + "  y = Neg (a10)\n}"


def best(call: Callable[[], Any], count: int, blocks: int = 9) -> float:
    """Microseconds a call."""
    for _ in range(6):
        call()
    times = []
    for _ in range(blocks):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - begun) / count * 1e6)
    return min(times)


def cases(turns: int) -> list[tuple[str, str, dict[str, np.ndarray], int]]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) * 0.1
    m = np.array(turns)
    return [("Scan over an RNN cell", CELL, {"x": normal(turns, 1, 16), "h0": normal(1, 32), "w": normal(16, 32), "r": normal(32, 32)}, turns),
            ("Loop with an If", BRANCHED, {"m": m, "x": normal(8)}, turns),
            ("Loop in a Loop, 10 turns each", NESTED, {"m": np.array(turns // 10), "x": normal(8)}, turns),
            ("growing cache", CACHE, {"m": m, "x": normal(1, 64)}, turns),
            ("ten Ifs in a row", IFS, {"x": normal(16)}, 10),
            ("one turn of the cell", CELL, {"x": normal(1, 1, 16), "h0": normal(1, 32), "w": normal(16, 32), "r": normal(32, 32)}, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name, text, feed, turns in cases(options.turns):
        session = gpuonnx.load(onnx.parser.parse_model(HEADER + text), device=options.device)
        took = best(lambda s=session, f=feed: s.run(f), max(1, 2000 // turns))  # type: ignore[misc]
        print(f"{name:32} {took:10.1f} us a call {took / turns:8.2f} us a turn")


if __name__ == "__main__":
    main()
