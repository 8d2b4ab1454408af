"""Runs a CPU kernel's Build on NumPy arrays, one task after another: what the executor does, in Python."""
from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as binding
import numpy as np

from gpuonnx.ir.sizes import evaluate
from gpuonnx.kernels.contract import CTX_WORDS, Build, Kernel, Ref

PASSES = ("sroa", "instruction_combine", "simplify_cfg", "loop_rotate", "new_gvn", "instruction_combine", "simplify_cfg")
WALK = """
define void @walk(ptr %kernel, ptr %ctx, ptr %args, i64 %first, i64 %step, i64 %tasks) {
entry:
  %none = icmp sle i64 %tasks, 0
  br i1 %none, label %done, label %next
next:
  %count = phi i64 [0, %entry], [%following, %next]
  %task = phi i64 [%first, %entry], [%later, %next]
  call void %kernel(ptr %ctx, ptr %args, i64 %task)
  %following = add i64 %count, 1
  %later = add i64 %task, %step
  %more = icmp slt i64 %following, %tasks
  br i1 %more, label %next, label %done
done:
  ret void
}
"""
WALKER = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3)

_compiled: dict[tuple[Any, ...], int] = {}
_engines: list[Any] = []
seconds: list[tuple[str, float]] = []


def machine() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=2, reloc="default", codemodel="jitdefault", jit=True)


def optimised(kernel: Kernel, host: Any) -> Any:
    module = binding.parse_assembly(kernel.make("kernel"))
    module.triple = binding.get_process_triple()
    module.verify()
    passes = binding.create_new_module_pass_manager()
    for name in PASSES:
        getattr(passes, f"add_{name}_pass")()
    passes.run(module, binding.create_pass_builder(host, binding.create_pipeline_tuning_options(speed_level=1)))
    return module


def assembly(kernel: Kernel) -> str:
    host = machine()
    return str(host.emit_assembly(optimised(kernel, host)))


def loaded(module: Any, host: Any, symbol: str) -> int:
    engine = binding.create_mcjit_compiler(module, host)
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(symbol))


@cache
def walker() -> Any:
    return WALKER(loaded(binding.parse_assembly(WALK), machine(), "walk"))


def compiled(kernel: Kernel) -> int:
    """The address of a kernel's entry; a kernel with the same key is compiled once."""
    key = (kernel.name, kernel.key)
    if key not in _compiled:
        host = machine()
        start = time.perf_counter()
        _compiled[key] = loaded(optimised(kernel, host), host, "kernel")
        seconds.append((kernel.name, time.perf_counter() - start))
    return _compiled[key]


def aligned(count: int, slack: int = 64) -> np.ndarray:
    """Bytes at an address that is a multiple of 64, poisoned."""
    raw = np.full(count + slack, 0xAB, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + count]


class Bound:
    """A Build with its arrays: `run` executes every step's tasks in order, or backwards."""

    def __init__(self, build: Build, inputs: Sequence[Any], outputs: Sequence[np.ndarray], extras: Sequence[np.ndarray] = (),
                 binding_of: Mapping[str, int] | None = None) -> None:
        sizes = binding_of or {}
        self.work = [aligned(int(n) + 64) for n in evaluate(build.work, sizes)]
        self.packed = [self.placed(p.make()) for p in build.packed]
        self.spaces = {"in": inputs, "out": outputs, "extra": extras, "work": self.work, "packed": self.packed}
        self.steps = []
        for step in build.steps:
            values = [a.offset if isinstance(a, Ref) else a for a in step.args]
            *numbers, tasks = evaluate([*values, step.tasks], sizes)
            words = [n + (self.spaces[a.space][a.number].ctypes.data if isinstance(a, Ref) else 0)
                     for n, a in zip(numbers, step.args, strict=True)]
            self.steps.append((compiled(step.kernel), np.array(words, np.int64), int(tasks)))
        self.ctx = np.zeros(CTX_WORDS, np.int64)

    def placed(self, array: np.ndarray) -> np.ndarray:
        out = aligned(array.nbytes).view(array.dtype).reshape(array.shape)
        out[...] = array
        return out

    def run(self, reverse: bool = False) -> None:
        for function, words, tasks in self.steps:
            first, step = (tasks - 1, -1) if reverse else (0, 1)
            walker()(function, self.ctx.ctypes.data, words.ctypes.data, first, step, tasks)
