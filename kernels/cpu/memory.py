"""Steps that only move bytes: strided copies and fills (zero halos, padding)."""
from __future__ import annotations

from typing import Any

from gpuonnx.ir.dims import Dim
from gpuonnx.kernels.contract import Kernel, Ref, Step

COPY = Kernel("copy", (), "llvm", lambda symbol: _copy(symbol))
FILL = Kernel("fill", (), "llvm", lambda symbol: _fill(symbol))


def copy(target: Ref, source: Ref, size: Dim, runs: Dim = 1, steps: tuple[Dim, Dim] = (0, 0), tasks: Dim = 1,
         leaps: tuple[Dim, Dim] = (0, 0)) -> Step:
    """For each task and run, `size` bytes; `steps` and `leaps` are the (target, source) byte strides of runs and tasks."""
    return Step(COPY, (target, source, size, runs, *steps, *leaps), tasks)


def fill(target: Ref, size: Dim, runs: Dim = 1, step: Dim = 0, tasks: Dim = 1, leap: Dim = 0, byte: int = 0) -> Step:
    """For each task and run, set `size` bytes to `byte`; `step` and `leap` are the byte strides of runs and tasks."""
    return Step(FILL, (target, byte, size, runs, step, leap), tasks)


def _copy(symbol: str) -> str:
    import llvmlite.ir as ir

    from gpuonnx.kernels.cpu.flow import I1, I64, PTR, VOID, Flow
    module = ir.Module("copy")
    move = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, I64, I1]), "llvm.memmove.p0.p0.i64")
    b = Flow.define(module, symbol, [PTR, PTR, I64])
    _, args, task = b.args
    size, runs, steps, leaps = b.get(args, 2), b.get(args, 3), (b.get(args, 4), b.get(args, 5)), (b.get(args, 6), b.get(args, 7))
    with b.count(0, runs) as run:
        ends = [_place(b, b.pointer(args, k), run, steps[k], task, leaps[k]) for k in (0, 1)]
        b.call(move, [*ends, size, I1(0)])
    b.ret_void()
    return str(module)


def _fill(symbol: str) -> str:
    import llvmlite.ir as ir

    from gpuonnx.kernels.cpu.flow import I1, I8, I64, PTR, VOID, Flow
    module = ir.Module("fill")
    fill_bytes = ir.Function(module, ir.FunctionType(VOID, [PTR, I8, I64, I1]), "llvm.memset.p0.i64")
    b = Flow.define(module, symbol, [PTR, PTR, I64])
    _, args, task = b.args
    byte, size, runs, step, leap = (b.get(args, k) for k in range(1, 6))
    with b.count(0, runs) as run:
        b.call(fill_bytes, [_place(b, b.pointer(args, 0), run, step, task, leap), b.trunc(byte, I8), size, I1(0)])
    b.ret_void()
    return str(module)


def _place(b: Any, base: Any, run: Any, step: Any, task: Any, leap: Any) -> Any:
    from gpuonnx.kernels.cpu.flow import I8
    return b.at(base, b.sum(b.product(run, step), b.product(task, leap)), I8)
