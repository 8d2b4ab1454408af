"""kernels/cpu/{executor,pool,memory}.py: sizes, argument words, steps, threads, errors, cancellation."""
from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gpuonnx.codegen.cache import KernelCache
from gpuonnx.ir import dims
from gpuonnx.ir.dims import Space
from gpuonnx.ir.sizes import SizeProgram
from gpuonnx.kernels.contract import CTX_CANCEL, CTX_CODE, CTX_STEP, CTX_VALUE, CTX_WORDS, ERROR_CANCELLED, ERROR_INDEX, Kernel, Ref
from gpuonnx.kernels.cpu import memory
from gpuonnx.kernels.cpu.executor import Executor, encode_sizes, real_word, word_real

COUNT = """
define void @SYMBOL(ptr %ctx, ptr %args, i64 %task) {
  %base = load ptr, ptr %args
  %p = getelementptr i64, ptr %base, i64 %task
  %x = atomicrmw add ptr %p, i64 1 seq_cst
  ret void
}"""
FAIL = """
define void @SYMBOL(ptr %ctx, ptr %args, i64 %task) {
  %v = getelementptr i64, ptr %ctx, i64 2
  store i64 77, ptr %v
  store i64 1, ptr %ctx
  ret void
}"""
SLOW = """
define void @SYMBOL(ptr %ctx, ptr %args, i64 %task) {
entry:
  %n = load i64, ptr %args
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%j, %loop]
  %j = add i64 %i, 1
  call void asm sideeffect "", ""()
  %more = icmp slt i64 %j, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> KernelCache:
    return KernelCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def executor(cache) -> Executor:
    return Executor(cache.addresses)


def kernel(cache: KernelCache, text: str) -> int:
    return cache.addresses([Kernel("test", (text,), "llvm", lambda symbol: text.replace("SYMBOL", symbol))])[0]


def program(rows: list[tuple[int, np.ndarray, int]]) -> np.ndarray:
    return np.array([[function, args.ctypes.data, tasks, n] for n, (function, args, tasks) in enumerate(rows)], np.int64)


def context() -> np.ndarray:
    return np.zeros(CTX_WORDS, np.int64)


def native_sizes(executor: Executor, sizes: SizeProgram, binding: dict[str, int | float]) -> tuple[int, np.ndarray]:
    ops, registers, names = encode_sizes(sizes)
    for name, register in names.items():
        value = binding[name]
        registers[register] = real_word(value) if isinstance(value, float) else value
    return executor.run_sizes(ops.ctypes.data, len(ops), registers.ctypes.data), registers


def test_sizes_agree_with_python(executor) -> None:
    space = Space()
    n, m, k = (space.sym(x, lo=-dims.INF) for x in "nmk")
    x, y = space.real("x"), space.real("y")
    formulas = [n + m * 3 - k, n * m * k + 5, dims.floordiv(n, m), dims.mod(n, m), dims.dmin(n, m, k), dims.dmax(n + 1, m, k, 7),
                dims.eq(n, m), dims.lt(n, m), dims.select(dims.lt(n, k), n * m, k - 1), dims.truncdiv(n, m),
                dims.rounded("floor", dims.real_op("mul", dims.real(n), x)), dims.rounded("ceil", dims.real_op("div", x, y)),
                dims.rounded("trunc", dims.real_op("add", dims.real_op("sub", x, y), dims.real_op("div", dims.real(n), 7.0))),
                dims.real_op("mul", x, 0.1), dims.select(dims.lt(n, m), x, y)]
    sizes = SizeProgram()
    registers = [sizes.register(f) for f in formulas]
    rng = np.random.default_rng(0)
    for _ in range(300):
        binding: dict[str, int | float] = {name: int(rng.integers(-50, 50)) for name in "nmk"}
        binding |= {name: float(np.float32(rng.normal() * 10)) or 1.0 for name in "xy"}
        expected = sizes.run(binding)
        status, found = native_sizes(executor, sizes, binding)
        assert status == -1
        for formula, r in zip(formulas, registers, strict=True):
            want = expected[r]
            if isinstance(want, int):
                assert int(found[r]) == want, (formula, binding)
            else:
                assert np.float32(word_real(int(found[r]))) == np.float32(want), (formula, binding)


def test_sizes_that_do_not_broadcast_name_the_op(executor) -> None:
    space = Space()
    n, m = space.sym("n"), space.sym("m")
    sizes = SizeProgram()
    first, second = sizes.register(n + 1), sizes.register(dims.bcast(n, m))
    for a, b, answer in ((4, 1, 4), (1, 6, 6), (3, 3, 3), (1, 1, 1), (0, 1, 0)):
        status, registers = native_sizes(executor, sizes, {"n": a, "m": b})
        assert status == -1 and registers[second] == answer and registers[first] == a + 1
    ops, _, _ = encode_sizes(sizes)
    status, _ = native_sizes(executor, sizes, {"n": 3, "m": 4})
    assert ops[status][1] == second


def test_extreme_sizes_do_not_trap(executor) -> None:
    space = Space()
    n, m, x = space.sym("n", lo=-dims.INF), space.sym("m", lo=-dims.INF), space.real("x")
    sizes = SizeProgram()
    quotient, whole = sizes.register(dims.floordiv(n, m)), sizes.register(dims.rounded("floor", x))
    for a, b, answer in ((-(1 << 63), -1, -(1 << 63)), (5, 0, 0), (-7, 2, -4), (7, -2, -4), (-8, -2, 4)):
        _, registers = native_sizes(executor, sizes, {"n": a, "m": b, "x": float("inf")})
        assert registers[quotient] == answer and registers[whole] == (1 << 63) - 1


def test_fill(executor) -> None:
    rng = np.random.default_rng(1)
    bases, registers = rng.integers(0, 1 << 40, 9), rng.integers(-100, 100, 7)
    b, r = rng.integers(0, 9, 50).astype(np.int32), rng.integers(0, 7, 50).astype(np.int32)
    words = np.zeros(150, np.int64)
    addresses = [a.ctypes.data for a in (words, bases, registers, b, r)]
    executor.fill(*addresses, 50)
    assert np.array_equal(words[:50], bases[b] + registers[r]) and not words[50:].any()
    executor.fill(*addresses, 50, 3)
    assert np.array_equal(words[::3], bases[b] + registers[r])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_runs_once(executor, cache, threads: int) -> None:
    count, pool = kernel(cache, COUNT), executor.pool(threads)
    sizes = [0, 1, 2, 3, 16, 1000, 1, 0, 7, -4] * 20
    counts = [np.zeros(max(n, 1), np.int64) for n in sizes]
    args = [np.array([c.ctypes.data]) for c in counts]
    steps, ctx = program([(count, a, n) for a, n in zip(args, sizes, strict=True)]), context()
    for turn in range(1, 6):
        assert executor.run(pool, ctx.ctypes.data, steps.ctypes.data, 0, len(steps)) == len(steps)
        assert all((c == (turn if n > 0 else 0)).all() for c, n in zip(counts, sizes, strict=True))
    assert not ctx[[CTX_CODE, CTX_VALUE]].any()
    time.sleep(0.001)
    assert executor.run(pool, ctx.ctypes.data, steps.ctypes.data, 5, 6) == 6 and (counts[5] == 6).all()


def test_threads_share_a_pool(executor, cache) -> None:
    count, pool = kernel(cache, COUNT), executor.pool(3)
    counts = np.zeros((4, 64), np.int64)
    failures = []

    def work(row: int) -> None:
        args = np.array([counts[row].ctypes.data])
        steps, ctx = program([(count, args, 64)] * 50), context()
        for _ in range(20):
            if executor.run(pool, ctx.ctypes.data, steps.ctypes.data, 0, 50) != 50:
                failures.append(row)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures and (counts == 1000).all()


@pytest.mark.parametrize("tasks", [1, 64])
def test_an_error_stops_the_run(executor, cache, tasks: int) -> None:
    counts = np.zeros(64, np.int64)
    args = np.array([counts.ctypes.data])
    steps, ctx = program([(kernel(cache, COUNT), args, 4), (kernel(cache, FAIL), args, tasks), (kernel(cache, COUNT), args, 64)]), context()
    assert executor.run(executor.pool(2), ctx.ctypes.data, steps.ctypes.data, 0, 3) == -2
    assert ctx[CTX_CODE] == ERROR_INDEX and ctx[CTX_STEP] == 1 and ctx[CTX_VALUE] == 77
    assert counts.sum() == 4


def test_cancelling_stops_between_tasks(executor, cache) -> None:
    args, ctx = np.array([1_000_000]), context()
    steps = program([(kernel(cache, SLOW), args, 1_000_000)])
    timer = threading.Timer(0.02, lambda: ctx.__setitem__(CTX_CANCEL, 1))
    timer.start()
    begun = time.perf_counter()
    assert executor.run(executor.pool(2), ctx.ctypes.data, steps.ctypes.data, 0, 1) == -1
    assert ctx[CTX_CODE] == ERROR_CANCELLED and time.perf_counter() - begun < 5


def test_a_budget_returns_early_and_the_run_resumes(executor, cache) -> None:
    args, ctx = np.array([300_000]), context()
    counts = np.zeros(1, np.int64)
    steps = program([(kernel(cache, SLOW), args, 2), (kernel(cache, COUNT), np.array([counts.ctypes.data]), 1)] * 30)
    pool, at, turns = executor.pool(1), 0, 0
    counter = np.array([counts.ctypes.data])
    steps[1::2, 1] = counter.ctypes.data
    while at < len(steps):
        at = executor.run_steps(pool.address, ctx.ctypes.data, steps.ctypes.data, at, len(steps), 200_000)
        assert at > 0
        turns += 1
    assert turns > 3 and counts[0] == 30


def test_the_deadline_is_asked_and_may_raise(executor, cache) -> None:
    args, ctx = np.array([5_000_000]), context()
    steps = program([(kernel(cache, SLOW), args, 2)] * 2000)

    def late() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        executor.run(executor.pool(2), ctx.ctypes.data, steps.ctypes.data, 0, len(steps), late)


SCRIPT = """
import os, signal, sys, threading, time
import numpy as np
from gpuonnx.codegen.cache import KernelCache
from gpuonnx.kernels.contract import Kernel
from gpuonnx.kernels.cpu.executor import Executor
cache = KernelCache(sys.argv[1])
executor = Executor(cache.addresses)
text = {text!r}
slow = cache.addresses([Kernel("test", (text,), "llvm", lambda symbol: text.replace("SYMBOL", symbol))])[0]
args, ctx = np.array([3_000_000]), np.zeros(8, np.int64)
steps = np.array([[slow, args.ctypes.data, 4, 0]] * 100_000)
pool = executor.pool(2)
def run(n=len(steps)):
    return executor.run(pool, ctx.ctypes.data, steps.ctypes.data, 0, n)
"""


def script(folder, body: str) -> subprocess.CompletedProcess:
    code = SCRIPT.format(text=SLOW) + body
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)


def test_ctrl_c_interrupts_a_long_run(cache) -> None:
    done = script(cache.folder, """
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
begun = time.perf_counter()
try:
    run()
except KeyboardInterrupt:
    print("interrupted", time.perf_counter() - begun < 5)
""")
    assert done.stdout.strip() == "interrupted True", done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX only")
def test_a_forked_child_has_a_pool_of_its_own(cache) -> None:
    done = script(cache.folder, """
run(3)
child = os.fork()
if child == 0:
    assert not pool.started
    os._exit(0 if run(3) == 3 and pool.started and len(pool._workers) == 1 else 1)
print(os.waitpid(child, 0)[1], run(3))
""")
    assert done.stdout.strip() == "0 3", done


def test_idle_workers_sleep_and_exit_is_clean(cache) -> None:
    done = script(cache.folder, """
run(2)
time.sleep(0.05)
before = time.process_time()
time.sleep(0.3)
print(time.process_time() - before < 0.05)
""")
    assert done.returncode == 0 and done.stdout.strip() == "True" and not done.stderr, done


def test_a_warm_executor_imports_no_compiler(cache, executor) -> None:
    done = script(cache.folder, """
print(cache.compiled, "numba" in sys.modules, "llvmlite.ir" in sys.modules)
""")
    assert done.stdout.split()[1] == "False", done


def step_words(step, pointers: dict[Ref, int]) -> np.ndarray:
    return np.array([pointers[a] if isinstance(a, Ref) else a for a in step.args], np.int64)


def test_copy_and_fill_steps(executor, cache) -> None:
    a, b = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8), np.full((4, 8, 12), 9, np.uint8)
    pointers = {Ref("in", 0): a.ctypes.data, Ref("out", 0): b.ctypes.data, Ref("out", 0, 14): b.ctypes.data + 14}
    steps = [memory.fill(Ref("out", 0), 3, runs=8, step=12, tasks=4, leap=96, byte=5),
             memory.copy(Ref("out", 0, 14), Ref("in", 0), 8, runs=6, steps=(12, 8), tasks=4, leaps=(96, 48))]
    words = [step_words(s, pointers) for s in steps]
    rows = program([(cache.addresses([s.kernel])[0], w, s.tasks) for s, w in zip(steps, words, strict=True)])
    ctx = context()
    assert executor.run(executor.pool(2), ctx.ctypes.data, rows.ctypes.data, 0, 2) == 2
    expected = np.full((4, 8, 12), 9, np.uint8)
    expected[:, :, :3] = 5
    expected[:, 1:7, 2:10] = a
    assert np.array_equal(b, expected)


def test_addresses_are_plain_integers(executor) -> None:
    pool = executor.pool(2)
    assert pool is executor.pool(2) and pool.address % 64 == 0 and isinstance(pool.address, int)
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
