"""Many threads in one session, any number of worker threads, deadlines, Ctrl-C, fork."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx.parser
import pytest

import gpuonnx
from gpuonnx import errors

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'
NETWORK = """net (float[N, K] x, float[K, M] w) => (float[N, M] y, float[N] s, int64[N] best) {
  h = MatMul (x, w)
  g = Tanh (h)
  c = Clip (g)
  y = Softmax (c)
  axes = Constant <value_ints: ints = [1]> ()
  s = ReduceSum <keepdims: int = 0> (g, axes)
  best = ArgMax <axis: int = 1, keepdims: int = 0> (y)
}"""
LOOP = """walk (int64 n, float[N] x) => (float[N] y, float[A, N] all) {
  yes = Constant <value: tensor = bool {1}> ()
  y, all = Loop (n, yes, x) <body = step (int64 i, bool going, float[N] a) => (bool go_on, float[N] b, float[N] c) {
    half = Constant <value: tensor = float {0.5}> ()
    b = Mul (a, half)
    c = Identity (b)
    go_on = Identity (going)
  }>
}"""
CHOICE = """choose (bool c, float[N] x) => (float[M] y) {
  y = If (c) <then_branch = a () => (float[M] p) { p = Concat <axis: int = 0> (x, x) }, else_branch = b () => (float[M] q) { q = Neg (x) }>
}"""


def session(text: str, threads: int | None = None) -> gpuonnx.Session:
    return gpuonnx.load(onnx.parser.parse_model(HEADER + text), device="cpu", threads=threads)


def network_feed(n: int, k: int, m: int, seed: int = 0) -> dict[str, np.ndarray]:
    r = np.random.default_rng(seed)
    return {"x": r.standard_normal((n, k), np.float32), "w": r.standard_normal((k, m), np.float32)}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a.values(), b.values(), strict=True))


def test_many_threads_and_shapes_in_one_session() -> None:
    made = session(NETWORK, threads=2)
    feeds = [network_feed(n, k, 33, n) for n, k in ((1, 8), (7, 40), (64, 64), (200, 17))]
    expected = [session(NETWORK, threads=1).run(f) for f in feeds]
    with ThreadPoolExecutor(8) as pool:
        jobs = [(k % 4, pool.submit(made.run, feeds[k % 4])) for k in range(200)]
        assert all(same(expected[k], job.result()) for k, job in jobs)
    assert made.stats.runs == 200 and made.stats.variants == 1


def test_threads_that_start_together_compile_once() -> None:
    made, gate = session(NETWORK), threading.Barrier(6)

    def work(k: int) -> dict[str, Any]:
        gate.wait()
        return made.run(network_feed(5 + k, 6, 7))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert made.stats.variants == 1


@pytest.mark.parametrize("text", [LOOP, CHOICE])
def test_control_flow_from_many_threads(text: str) -> None:
    made = session(text)

    def work(k: int) -> bool:
        x = np.full(3 + k % 5, k, np.float32)
        if text is CHOICE:
            got = made.run([np.array(k % 2 == 0), x])["y"]
            return np.array_equal(got, np.concatenate([x, x]) if k % 2 == 0 else -x)
        got = made.run([np.array(k % 4), x])
        return np.array_equal(got["y"], x * 0.5 ** (k % 4)) and len(got["all"]) == k % 4
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(120)))


def test_errors_in_one_thread_leave_the_others_alone() -> None:
    made = session("take (float[V, D] t, int64[N] i) => (float[N, D] y) { y = Gather (t, i) }")
    table = np.arange(12, dtype=np.float32).reshape(6, 2)

    def work(k: int) -> bool:
        index = np.full(4, 9 if k % 3 == 0 else k % 6)
        try:
            return bool(np.array_equal(made.run([table, index])["y"], table[index])) and k % 3 != 0
        except errors.ShapeError:
            return k % 3 == 0
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(150)))


def test_the_same_bits_for_any_number_of_threads() -> None:
    feed = network_feed(301, 130, 257)
    answers = [session(NETWORK, threads).run(feed) for threads in (1, 2, 3, 5)]
    assert all(same(answers[0], other) for other in answers[1:])
    big = {"x": np.random.default_rng(1).standard_normal((3, 300_001), np.float32), "w": np.zeros((300_001, 1), np.float32)}
    text = "fold (float[N, K] x, float[K, M] w) => (float[N] s) { a = Constant <value_ints: ints = [1]> () s = ReduceSum <keepdims: int = 0> (x, a) }"
    answers = [session(text, threads).run(big) for threads in (1, 2, 4)]
    assert all(same(answers[0], other) for other in answers[1:])


def test_a_session_inside_another_thread_pool_of_its_own_size() -> None:
    first, second = session(NETWORK, 2), session(NETWORK, 3)
    feed = network_feed(90, 50, 60)
    expected = first.run(feed)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(expected, r) for r in pool.map(lambda k: (first, second)[k % 2].run(feed), range(40)))


LONG = """long (float[N, N] x) => (float[N, N] y) {
""" + "\n".join(f"  a{k + 1} = MatMul (a{k}, x)" for k in range(40)).replace("a0,", "x,") + """
  y = Identity (a40)
}"""


def test_a_timeout_inside_one_native_stretch() -> None:
    made = session(LONG)
    made.run(np.zeros((4, 4), np.float32))
    x = np.zeros((1024, 1024), np.float32)
    begun = time.monotonic()
    with pytest.raises(errors.Cancelled, match="timeout of 0.1 s"):
        made.run(x, timeout=0.1)
    assert time.monotonic() - begun < 1.5
    small = np.eye(5, dtype=np.float32)
    np.testing.assert_array_equal(made.run(small, timeout=30)["y"], small)


def test_a_timeout_that_is_over_before_the_run() -> None:
    made = session(LONG)
    with pytest.raises(errors.Cancelled):
        made.run(np.zeros((300, 300), np.float32), timeout=0)


@pytest.mark.parametrize("timeout", ["1", float("nan"), True])
def test_a_timeout_that_is_no_number(timeout: Any) -> None:
    with pytest.raises(errors.InputError, match="timeout is a number of seconds"):
        session(LONG).run(np.zeros((4, 4), np.float32), timeout=timeout)


def test_an_endless_timeout() -> None:
    assert session(LONG).run(np.zeros((4, 4), np.float32), timeout=float("inf"))["y"].shape == (4, 4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_an_accelerator_from_many_threads() -> None:
    made = gpuonnx.load(onnx.parser.parse_model(HEADER + NETWORK), device="emulated-cuda")
    feeds = [network_feed(n, 5, 6, n) for n in (1, 4, 7)]
    expected = [made.run(f) for f in feeds]
    with ThreadPoolExecutor(4) as pool:
        assert all(same(expected[k % 3], r) for k, r in enumerate(pool.map(lambda k: made.run(feeds[k % 3]), range(30))))


def test_timeouts_of_other_threads_do_not_cancel_this_one() -> None:
    made = session(LONG)
    small = np.eye(64, dtype=np.float32)

    def work(k: int) -> bool:
        if k % 4 == 0:
            with pytest.raises(errors.Cancelled):
                made.run(np.zeros((700, 700), np.float32), timeout=0.02)
            return True
        return bool(np.array_equal(made.run(small)["y"], small))
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(16)))


INTERRUPTED = f"""
import numpy as np, onnx.parser, gpuonnx, sys, time
made = gpuonnx.load(onnx.parser.parse_model({HEADER + LONG!r}), device="cpu")
made.run(np.zeros((4, 4), np.float32))
print("ready", flush=True)
try:
    for _ in range(100):
        made.run(np.zeros((900, 900), np.float32))
except KeyboardInterrupt:
    x = np.eye(3, dtype=np.float32)
    assert np.array_equal(made.run(x)["y"], x)
    print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_long_run_and_the_session_goes_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == "interrupted\n" and process.returncode == 0 and time.monotonic() - begun < 5


FORKED = f"""
import numpy as np, onnx.parser, gpuonnx, os, sys
made = gpuonnx.load(onnx.parser.parse_model({HEADER + NETWORK!r}), device="cpu", threads=2)
feed = {{"x": np.ones((300, 200), np.float32), "w": np.ones((200, 100), np.float32)}}
expected = made.run(feed)["y"]
children = []
for k in range(3):
    child = os.fork()
    if child == 0:
        ok = np.array_equal(made.run(feed)["y"], expected) and made.run({{"x": feed["x"][:k + 1], "w": feed["w"]}})["y"].shape == (k + 1, 100)
        os._exit(0 if ok else 1)
    children.append(child)
assert np.array_equal(made.run(feed)["y"], expected)
print([os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_forked_children_run_the_session() -> None:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert run.stdout == "[0, 0, 0]\n", run.stderr
