"""The thread pool: tasks are claimed one by one and completion is counted by tasks, so a worker that wakes late costs nothing.

Every thread has a share of the tasks, always the same part, so that what it wrote in one step it finds in its cache in the next;
who has done its share takes from the others'. A share's first word holds generation << 32 | next task, its second the end; a claim
succeeds only while its generation lasts. Workers spin for a while, then sleep on a futex. The caller takes part, and waits by
spinning, then yielding. A caller that finds the pool busy runs its tasks itself.
"""
from __future__ import annotations

import atexit
import ctypes
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpuonnx.kernels.contract import CTX_CANCEL, CTX_CODE

THREADS, DONE, FUNCTION, CTX, ARGS = 0, 8, 16, 17, 18
STOP, EPOCH, SLEEPERS, WORKERS, SPINS, BUSY, SHARES = 24, 32, 40, 48, 49, 56, 64
CLAIM, END, SHARE_WORDS = 0, 1, 8
CLOSED = (1 << 31) - 1
SPIN_NS = 400_000
NAMES = ("worker", "wake", "spin")
_FUTEX = {"x86_64": 202, "AMD64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "loongarch64": 98}
_WAIT, _WAKE, _ALL = 128, 129, 1 << 30


def parallel() -> bool:
    """Whether this system has the futex that workers sleep on; elsewhere every run is serial."""
    return sys.platform == "linux" and platform.machine() in _FUTEX


def define(module: Any) -> dict[str, Any]:
    """Add the native functions of the pool; {name: function}, `run(pool, function, ctx, args, tasks)` among them."""
    functions = {"drain": _drain(module), "spin": _spin(module), "wake": _wake(module)}
    functions["run"] = _run(module, functions)
    functions["worker"] = _worker(module, functions)
    return functions


def _pause(b: Any) -> None:
    from gpuonnx.kernels.cpu.flow import I32, VOID
    machine = platform.machine()
    if machine in ("x86_64", "AMD64"):
        b.call(b.external("llvm.x86.sse2.pause", VOID, []), [])
    elif machine in ("aarch64", "arm64"):
        b.call(b.external("llvm.aarch64.hint", VOID, [I32]), [I32(1)])
    else:
        b.fence("seq_cst")


def _futex(b: Any, pool: Any, operation: int, value: Any) -> None:
    from gpuonnx.kernels.cpu.flow import I64, PTR
    if parallel():
        function = b.external("syscall", I64, [I64], variadic=True)
        null = PTR(None)
        b.call(function, [I64(_FUTEX[platform.machine()]), b.at(pool, EPOCH), I64(operation), value, null, null, I64(0)])


def _share(b: Any, pool: Any, number: Any) -> Any:
    return b.at(pool, b.sum(b.product(number, SHARE_WORDS), SHARES))


def _drain(module: Any) -> Any:
    """drain(pool, thread): run tasks until none is left to claim, from its own share first; those after an error or a cancellation
    are only counted."""
    from gpuonnx.kernels.cpu.flow import I64, PTR, Flow
    b = Flow.define(module, "drain", [PTR, I64])
    pool, thread = b.args
    threads, done = b.get(pool, THREADS), b.variable(I64, 0)
    with b.count(0, threads) as turn:
        number = b.sum(thread, turn)
        share = _share(b, pool, b.select(b.compare(">=", number, threads), b.sub(number, threads), number))
        with b.loop() as after:
            claim = b.peek(share, CLAIM)
            task = b.and_(claim, b.number(0xFFFFFFFF))
            b.leave(after, b.compare(">=", task, b.peek(share, END)))
            function, ctx, args = (b.peek(pool, word, PTR) for word in (FUNCTION, CTX, ARGS))
            with b.when(b.swap_if(share, CLAIM, claim, b.sum(claim, 1))):
                with b.when(b.compare("==", b.or_(b.peek(ctx, CTX_CODE), b.peek(ctx, CTX_CANCEL)), 0)):
                    b.invoke(function, ctx, args, task)
                done.set(b.sum(done.get(), 1))
    with b.when(b.compare(">", done.get(), 0)):
        b.atomic_rmw("add", b.at(pool, DONE), done.get(), "seq_cst")
    b.ret_void()
    return b.function


def _open(b: Any, pool: Any, function: Any, ctx: Any, args: Any, tasks: Any) -> None:
    """A new generation: all shares closed, what is to be done written, all shares opened."""
    from gpuonnx.kernels.cpu.flow import I64
    threads = b.get(pool, THREADS)
    generation = b.shl(b.sum(b.lshr(b.peek(pool, SHARES + CLAIM), I64(32)), 1), I64(32))
    with b.count(0, threads) as number:
        b.publish(b.or_(generation, I64(CLOSED)), _share(b, pool, number), CLAIM)
    b.publish(0, pool, DONE)
    for value, word in ((function, FUNCTION), (ctx, CTX), (args, ARGS)):
        b.publish(value, pool, word)
    first = b.variable(I64, 0)
    with b.count(0, threads) as number:
        share, end = _share(b, pool, number), b.udiv(b.product(tasks, b.sum(number, 1)), threads)
        b.publish(end, share, END)
        b.publish(b.or_(generation, first.get()), share, CLAIM)
        first.set(end)


def _run(module: Any, functions: Mapping[str, Any]) -> Any:
    """run(pool, function, ctx, args, tasks): all tasks, here and on the workers."""
    from gpuonnx.kernels.cpu.flow import I1, I64, PTR, VOID, Flow
    b = Flow.define(module, "run", [PTR, PTR, PTR, PTR, I64])
    pool, function, ctx, args, tasks = b.args
    alone = b.or_(b.compare("==", b.peek(pool, WORKERS), 0), b.compare(">", tasks, CLOSED))
    mine = b.variable(I1, I1(0))
    with b.if_then(b.not_(alone)):
        mine.set(b.swap_if(pool, BUSY, 0, 1))
    with b.if_else(mine.get()) as (together, serial):
        with serial:
            with b.count(0, tasks) as task:
                with b.when(b.compare("==", b.or_(b.peek(ctx, CTX_CODE), b.peek(ctx, CTX_CANCEL)), 0)):
                    b.invoke(function, ctx, args, task)
        with together:
            _open(b, pool, function, ctx, args, tasks)
            b.call(functions["wake"], [pool, tasks])
            b.call(functions["drain"], [pool, I64(0)])
            waited, limit = b.variable(I64, 0), b.get(pool, SPINS)
            with b.loop(lambda: b.compare("<", b.peek(pool, DONE), tasks)):
                waited.set(b.sum(waited.get(), 1))
                with b.if_else(b.compare("<", waited.get(), limit)) as (soon, late):
                    with soon:
                        _pause(b)
                    with late:
                        b.call(b.external("sched_yield", VOID, []), []) if parallel() else _pause(b)
            b.poke(0, pool, BUSY)
    b.ret_void()
    return b.function


def _wake(module: Any) -> Any:
    """wake(pool, tasks): tell the workers that something has changed; at most one sleeper a task is woken."""
    from gpuonnx.kernels.cpu.flow import I32, I64, PTR, Flow
    b = Flow.define(module, "wake", [PTR, I64])
    pool, tasks = b.args
    b.bump(pool, EPOCH, kind=I32)
    with b.when(b.compare("!=", b.peek(pool, SLEEPERS), 0)):
        _futex(b, pool, _WAKE, tasks)
    b.ret_void()
    return b.function


def _worker(module: Any, functions: Mapping[str, Any]) -> Any:
    """worker(pool, thread): what a thread of the pool does until STOP is set."""
    from gpuonnx.kernels.cpu.flow import I32, I64, PTR, Flow
    b = Flow.define(module, "worker", [PTR, I64])
    pool, thread = b.args
    with b.loop(lambda: b.compare("==", b.peek(pool, STOP), 0)):
        epoch = b.peek(pool, EPOCH, I32)
        b.call(functions["drain"], [pool, thread])
        spun = b.variable(I64)
        spun.set(0)
        with b.loop(lambda: b.icmp_signed("==", b.peek(pool, EPOCH, I32), epoch)) as after:
            b.leave(after, b.compare(">=", spun.get(), b.get(pool, SPINS)))
            spun.set(b.sum(spun.get(), 1))
            _pause(b)
        with b.when(b.icmp_signed("==", b.peek(pool, EPOCH, I32), epoch)):
            b.bump(pool, SLEEPERS)
            _futex(b, pool, _WAIT, epoch)
            b.bump(pool, SLEEPERS, -1)
    b.ret_void()
    return b.function


def _spin(module: Any) -> Any:
    """spin(n): n pauses, to learn how long one is."""
    from gpuonnx.kernels.cpu.flow import I64, Flow
    b = Flow.define(module, "spin", [I64])
    with b.count(0, b.args[0]):
        _pause(b)
    b.ret_void()
    return b.function


class Pool:
    """`threads` threads counting the caller; workers start with the first run. `address` is what the executor takes."""

    def __init__(self, addresses: Mapping[str, int], threads: int) -> None:
        self.threads = threads if parallel() else 1
        self._worker, self._wake, self._spin = (ctypes.CFUNCTYPE(None, *kinds)(addresses[name]) for name, kinds in (
            ("worker", (ctypes.c_void_p, ctypes.c_int64)), ("wake", (ctypes.c_void_p, ctypes.c_int64)), ("spin", (ctypes.c_int64,))))
        words = SHARES + SHARE_WORDS * self.threads
        memory = np.zeros(words + 8, np.int64)
        self._words = memory[-memory.ctypes.data % 64 // 8:][:words]
        self._words[THREADS] = self.threads
        self.address: int = self._words.ctypes.data
        self._lock = threading.Lock()
        self._workers: list[threading.Thread] = []
        self.started = self.threads < 2

    def start(self) -> None:
        """Start the workers, once."""
        with self._lock:
            if self.started:
                return
            self._words[SPINS] = self._spins()
            for number in range(self.threads - 1):
                thread = threading.Thread(target=self._worker, args=(self.address, number + 1), name=f"gpuonnx-{number + 1}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    break
                self._workers.append(thread)
            self._words[WORKERS] = len(self._workers)
            self.started = True

    def stop(self) -> None:
        """End the workers; later runs are serial."""
        with self._lock:
            workers, self._workers, self.started = self._workers, [], True
            self._words[WORKERS] = 0
            self._words[STOP] = 1
            self._wake(self.address, _ALL)
            for thread in workers:
                thread.join(1.0)

    def reset(self) -> None:
        """In a forked child: the workers stayed with the parent."""
        self._lock = threading.Lock()
        self._workers = []
        self._words[:] = 0
        self._words[THREADS] = self.threads
        self.started = self.threads < 2

    def _spins(self) -> int:
        pauses = 2000
        begun = time.perf_counter_ns()
        self._spin(pauses)
        return max(100, pauses * SPIN_NS // max(1, time.perf_counter_ns() - begun))


_pools: dict[int, Pool] = {}
_lock = threading.Lock()


def shared(addresses: Mapping[str, int], threads: int) -> Pool:
    """The process's pool of that many threads."""
    with _lock:
        if threads not in _pools:
            _pools[threads] = Pool(addresses, threads)
        return _pools[threads]


def _forked() -> None:
    global _lock
    _lock = threading.Lock()
    for pool in _pools.values():
        pool.reset()


def _exit() -> None:
    for pool in _pools.values():
        pool.stop()


atexit.register(_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
