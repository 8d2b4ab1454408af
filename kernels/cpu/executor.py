"""The native parts of running a program: sizes, argument words, and a table of steps in one call.

They are one LLVM module behind one contract Kernel, `runtime()`: calling it stores the addresses of its functions in `args`.
"""
from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuonnx.ir.sizes import OPCODES, SizeProgram
from gpuonnx.kernels.contract import CTX_CANCEL, CTX_CODE, CTX_POOL, CTX_RUN, CTX_STEP, ERROR_CANCELLED, Kernel
from gpuonnx.kernels.cpu import control
from gpuonnx.kernels.cpu import pool as pools

SLICE_NS = 50_000_000
LOOK = 15
STEP_WORDS, FUNCTION, ARGS, TASKS = 4, 0, 1, 2
BRANCH = 0
NAMES = ("run_sizes", "fill", "run_steps", *control.NAMES, *pools.NAMES)


def encode_sizes(program: SizeProgram) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
    """(op rows [opcode, dst, a, b, c], registers with the constants in place, register of each symbol) of a size program."""
    rows: list[list[int]] = []
    registers = np.zeros(max(1, len(program.slots)), np.int64)
    names: dict[str, int] = {}
    for number, (op, arg) in enumerate(program.slots):
        if op == "sym":
            names[arg] = number
        elif op == "const":
            registers[number] = min(max(arg, -(1 << 63)), (1 << 63) - 1)
        elif op == "f.const":
            registers[number] = real_word(arg)
        else:
            rows.append([OPCODES.index(op), number, *arg, *[0] * (3 - len(arg))])
    return np.array(rows, np.int64).reshape(-1, 5), registers, names


def real_word(value: float) -> int:
    """A float32 as it stands in a register."""
    return int(np.float32(value).view(np.uint32))


def word_real(word: int) -> float:
    """The float32 in a register."""
    return float(struct.unpack("<f", struct.pack("<I", word & 0xFFFFFFFF))[0])


def runtime() -> Kernel:
    """The executor's and the pool's functions; system and processor are in the key because the pool's code depends on them."""
    return Kernel("runtime", (sys.platform, platform.machine()), "llvm", _module)


def _module(symbol: str) -> str:
    import llvmlite.ir as ir

    from gpuonnx.kernels.cpu.flow import I64, PTR, Flow
    module = ir.Module("runtime")
    functions = pools.define(module)
    functions |= {"run_sizes": _run_sizes(module), "fill": _fill(module), "run_steps": _run_steps(module, functions["run"])}
    functions |= control.define(module, functions)
    b = Flow.define(module, symbol, [PTR, PTR, I64])
    for number, name in enumerate(NAMES):
        b.put(functions[name], b.args[1], number, PTR)
    b.ret_void()
    return str(module)


def _real(b: Any, word: Any) -> Any:
    from gpuonnx.kernels.cpu.flow import F32, I32
    return b.bitcast(b.trunc(word, I32), F32)


def _word(b: Any, real: Any) -> Any:
    from gpuonnx.kernels.cpu.flow import I32, I64
    return b.zext(b.bitcast(real, I32), I64)


def _divide(b: Any, x: Any, y: Any) -> Any:
    """Floor division; by zero it is 0, by -1 the wrapped negation."""
    plain = b.and_(b.compare("!=", y, 0), b.compare("!=", y, -1))
    safe = b.select(plain, y, b.number(1))
    quotient, rest = b.sdiv(x, safe), b.srem(x, safe)
    below = b.and_(b.compare("!=", rest, 0), b.compare("<", b.xor(rest, safe), 0))
    floor = b.select(below, b.sum(quotient, -1), quotient)
    return b.select(b.compare("==", y, 0), b.number(0), b.select(b.compare("==", y, -1), b.sub(b.number(0), x), floor))


def _sum(b: Any, x: Any, y: Any) -> Any:
    """A sum that stays at the ends of int64: sizes that overflow must not turn into small ones."""
    from gpuonnx.kernels.cpu.flow import I64
    return b.call(b.external("llvm.sadd.sat.i64", I64, [I64, I64]), [x, y])


def _product(b: Any, x: Any, y: Any) -> Any:
    """A product that stays at the ends of int64."""
    both = b.smul_with_overflow(x, y)
    end = b.select(b.compare("<", b.xor(x, y), 0), b.number(-(1 << 63)), b.number((1 << 63) - 1))
    return b.select(b.extract_value(both, 1), end, b.extract_value(both, 0))


def _to_int(b: Any, name: str, word: Any) -> Any:
    from gpuonnx.kernels.cpu.flow import F32, I64
    whole = b.call(b.external(f"llvm.{name}.f32", F32, [F32]), [_real(b, word)])
    return b.call(b.external("llvm.fptosi.sat.i64.f32", I64, [F32]), [whole])


def _operations(b: Any) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """The value of each opcode from its three register words."""
    from gpuonnx.kernels.cpu.flow import F32, I64

    def reals(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
        return lambda x, y, _: _word(b, operation(_real(b, x), _real(b, y)))

    def bcast(x: Any, y: Any, _: Any) -> Any:
        return b.select(b.compare("==", x, 1), y, x)

    def select(c: Any, x: Any, y: Any) -> Any:
        return b.select(b.compare("!=", c, 0), x, y)

    return {
        "+": lambda x, y, _: _sum(b, x, y), "*": lambda x, y, _: _product(b, x, y), "//": lambda x, y, _: _divide(b, x, y),
        "min": lambda x, y, _: b.select(b.compare("<", x, y), x, y), "max": lambda x, y, _: b.select(b.compare(">", x, y), x, y),
        "bcast": bcast, "select": select, "f.select": select,
        "eq0": lambda x, *_: b.zext(b.compare("==", x, 0), I64), "lt0": lambda x, *_: b.zext(b.compare("<", x, 0), I64),
        "floor": lambda x, *_: _to_int(b, "floor", x), "ceil": lambda x, *_: _to_int(b, "ceil", x),
        "trunc": lambda x, *_: _to_int(b, "trunc", x),
        "f.ratio": lambda x, y, _: _word(b, b.fdiv(b.sitofp(x, F32), b.sitofp(y, F32))),
        "f.add": reals(b.fadd), "f.sub": reals(b.fsub), "f.mul": reals(b.fmul), "f.div": reals(b.fdiv),
    }


def _run_sizes(module: Any) -> Any:
    """run_sizes(ops, n, registers): the number of the op whose sizes do not broadcast, else -1."""
    from gpuonnx.kernels.cpu.flow import I64, PTR, Flow
    b = Flow.define(module, "run_sizes", [PTR, I64, PTR], I64)
    ops, n, registers = b.args
    with b.count(0, n) as i:
        row = b.at(ops, b.product(i, 5))
        x, y, z = (b.get(registers, b.get(row, k)) for k in (2, 3, 4))
        after, other = b.append_basic_block("next"), b.append_basic_block("other")
        switch = b.switch(b.get(row, 0), other)
        for name, operation in _operations(b).items():
            block = b.append_basic_block(name.replace(".", "_"))
            switch.add_case(I64(OPCODES.index(name)), block)
            b.position_at_end(block)
            if name == "bcast":
                agree = b.or_(b.compare("==", x, y), b.or_(b.compare("==", x, 1), b.compare("==", y, 1)))
                with b.if_then(b.not_(agree)):
                    b.ret(i)
            b.put(operation(x, y, z), registers, b.get(row, 1))
            b.branch(after)
        b.position_at_end(other)
        b.branch(after)
        b.position_at_end(after)
    b.ret(b.number(-1))
    return b.function


def _fill(module: Any) -> Any:
    """fill(words, stride, bases, registers, base_numbers, register_numbers, n): words[i * stride] = base + register."""
    from gpuonnx.kernels.cpu.flow import I32, I64, PTR, Flow
    b = Flow.define(module, "fill", [PTR, I64, PTR, PTR, PTR, PTR, I64])
    words, stride, bases, registers, base_numbers, register_numbers, n = b.args
    with b.count(0, n) as i:
        base = b.get(bases, b.sext(b.get(base_numbers, i, I32), I64))
        register = b.get(registers, b.sext(b.get(register_numbers, i, I32), I64))
        b.put(b.add(base, register), words, b.mul(i, stride))
    b.ret_void()
    return b.function


def _now(b: Any) -> Any:
    """Nanoseconds of the monotonic clock."""
    from gpuonnx.kernels.cpu.flow import I32, I64, PTR
    clock = {"linux": 1, "darwin": 6}.get(sys.platform)
    if clock is None:
        return b.number(0)
    with b.goto_entry_block():
        moment = b.alloca(I64, 2)
    b.call(b.external("clock_gettime", I32, [I32, PTR]), [I32(clock), moment])
    return b.sum(b.product(b.get(moment, 0), 1_000_000_000), b.get(moment, 1))


def _run_steps(module: Any, run: Any) -> Any:
    """run_steps(pool, ctx, steps, first, last, budget): see Executor.run. A row [BRANCH, address of a byte, row] goes on at that row
    where the byte is 0."""
    from gpuonnx.kernels.cpu.flow import I8, I64, PTR, Flow
    b = Flow.define(module, "run_steps", [PTR, PTR, PTR, I64, I64, I64], I64)
    pool, ctx, steps, first, last, budget = b.args
    for value, word in ((pool, CTX_POOL), (run, CTX_RUN)):
        b.store(value, b.at(ctx, word))
    limited = b.compare(">", budget, 0)
    begun, place, walked = b.variable(I64, 0), b.variable(I64, first), b.variable(I64, 0)
    with b.when(limited):
        begun.set(_now(b))
    with b.loop(lambda: b.compare("<", place.get(), last)):
        i = place.get()
        row = b.at(steps, b.product(i, STEP_WORDS))
        tasks = b.get(row, TASKS)
        place.set(b.sum(i, 1))
        with b.if_else(b.compare("==", b.get(row, FUNCTION), BRANCH)) as (branch, step):
            with branch, b.when(b.icmp_signed("==", b.get(b.pointer(row, ARGS), 0, I8), I8(0))):
                place.set(tasks)
            with step:
                b.put(i, ctx, CTX_STEP)
                with b.if_else(b.compare(">", tasks, 1)) as (many, few):
                    with many:
                        b.call(run, [pool, b.pointer(row, FUNCTION), ctx, b.pointer(row, ARGS), tasks])
                        walked.set(LOOK)
                    with few, b.when(b.compare("==", tasks, 1)):
                        b.invoke(b.pointer(row, FUNCTION), ctx, b.pointer(row, ARGS), 0)
        cancel = b.compare("!=", b.peek(ctx, CTX_CANCEL), 0)
        with b.when(b.and_(cancel, b.compare("==", b.peek(ctx, CTX_CODE), 0))):
            b.put(ERROR_CANCELLED, ctx, CTX_CODE)
        with b.when(b.compare("!=", b.peek(ctx, CTX_CODE), 0)):
            b.ret(b.sub(b.number(-1), i))
        walked.set(b.sum(walked.get(), 1))
        with b.when(b.and_(limited, b.compare(">", walked.get(), LOOK))):
            walked.set(0)
            with b.when(b.compare(">", b.sub(_now(b), begun.get()), budget)):
                b.ret(place.get())
    b.ret(last)
    return b.function


_shared: list[Executor] = []


def shared(addresses: Callable[[Sequence[Kernel]], list[int]]) -> Executor:
    """The process's Executor."""
    if not _shared:
        _shared.append(Executor(addresses))
    return _shared[0]


class Executor:
    """The native functions as Python callables; every argument is an int, pointers are addresses."""

    def __init__(self, addresses: Callable[[Sequence[Kernel]], list[int]]) -> None:
        """`addresses` gives the entry points of kernels: KernelCache.addresses."""
        word, pointer = ctypes.c_int64, ctypes.c_void_p
        entry = ctypes.CFUNCTYPE(None, pointer, pointer, word)(addresses([runtime()])[0])
        table = np.zeros(len(NAMES), np.int64)
        entry(None, table.ctypes.data, 0)
        self._functions = dict(zip(NAMES, map(int, table), strict=True))
        self.control = {name: self._functions[name] for name in control.NAMES}
        self.run_sizes: Callable[[int, int, int], int] = ctypes.CFUNCTYPE(word, pointer, word, pointer)(self._functions["run_sizes"])
        self._fill = ctypes.CFUNCTYPE(None, pointer, word, *[pointer] * 4, word)(self._functions["fill"])
        self.run_steps: Callable[[int, int, int, int, int, int], int] = ctypes.CFUNCTYPE(
            word, pointer, pointer, pointer, word, word, word)(self._functions["run_steps"])

    def pool(self, threads: int) -> pools.Pool:
        """The process's pool of that many threads."""
        return pools.shared(self._functions, threads)

    def fill(self, words: int, bases: int, registers: int, base_numbers: int, register_numbers: int, n: int, stride: int = 1) -> None:
        """int64 words[i * stride] = bases[base_numbers[i]] + registers[register_numbers[i]]; the numbers are int32."""
        self._fill(words, stride, bases, registers, base_numbers, register_numbers, n)

    def run(self, pool: pools.Pool, ctx: int, steps: int, first: int, last: int, deadline: Callable[[], None] | None = None) -> int:
        """Run steps [first, last) of int64 rows [function, args, tasks, node]; `last`, or -1 - i if step i set CTX_CODE.

        Every 50 ms Python gets a turn: signals are handled, and `deadline`, if given, is called and may raise."""
        if not pool.started:
            pool.start()
        at, run_steps = first, self.run_steps
        while True:
            at = run_steps(pool.address, ctx, steps, at, last, SLICE_NS)
            if at < 0 or at >= last:
                return at
            if deadline is not None:
                deadline()
