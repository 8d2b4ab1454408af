"""A Program made ready to run: native tables, kernels compiled, constants in the memories that read them."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.ir import types
from gpuonnx.ir.sizes import SizeProgram
from gpuonnx.kernels.cpu.executor import Executor, encode_sizes
from gpuonnx.planner.program import DEVICE, HOST, Program, Side

if TYPE_CHECKING:
    from gpuonnx.devices.device import Accelerator


class LoadedSide:
    """The tables of one memory as arrays, with kernels compiled."""

    def __init__(self, side: Side, handles: Sequence[Any]) -> None:
        self.side, self.handles = side, [handles[k] for k in side.step_kernels]
        self.word_bases = np.array(side.word_bases, np.int32)
        self.word_registers = np.array(side.word_registers, np.int32)
        self.tasks = np.array(side.step_tasks, np.int64)
        self.words_at = np.array(side.step_words, np.int64) * 8
        self.constants = side.constants
        self.word_count = len(side.word_bases)
        self.bases_address, self.registers_address = int(self.word_bases.ctypes.data), int(self.word_registers.ctypes.data)
        self.by_kind: dict[str, list[tuple[int, int]]] = {}
        for number, (kind, which) in enumerate(side.bases):
            self.by_kind.setdefault(kind, []).append((number, which))
        self.inputs = self.by_kind.get("input", [])


class LoadedProgram:
    """A Program made ready to run: size operations by epoch, native tables, constants in the memories that read them."""

    def __init__(self, program: Program, executor: Executor, compile_host: Callable[[Any], list[Any]], accelerator: Accelerator | None,
                 memory_limit: int | None = None) -> None:
        self.program, self.executor, self.accelerator, self.memory_limit = program, executor, accelerator, memory_limit
        self.ops, self.registers, self.symbol_registers = encode_sizes(_sizes(program.slots))
        epoch_of = np.array([program.epochs[int(row[1])] for row in self.ops], np.int64)
        count = 1 + max(program.epochs, default=0)
        self.ops_of_epoch = [np.ascontiguousarray(self.ops[epoch_of == e]) for e in range(count)]
        self.ops_addresses = [int(ops.ctypes.data) for ops in self.ops_of_epoch]
        self.host = LoadedSide(program.sides[HOST], compile_host(program.sides[HOST].kernels))
        device = program.sides[DEVICE]
        self.device = LoadedSide(device, accelerator.compile(device.kernels)) if accelerator is not None else None
        self.device_constants = [self._upload(a) for a in device.constants] if accelerator is not None else []
        outputs = self.host.by_kind.get("output", []) + (self.device.by_kind.get("output", []) if self.device is not None else [])
        epochs = [max((program.epochs[r] for r in (*t.shape, t.offset)), default=0) for t in program.outputs]
        direct = [(k, number, program.outputs[k], types.numpy_dtype(program.outputs[k].dtype)) for number, k in outputs]
        self.outputs_of_epoch = [[row for row in direct if epochs[row[0]] == e] for e in range(count)]
        same = {t.memory: (k, True) for k, t in enumerate(program.inputs) if t.object < 0}
        same |= {program.outputs[k].memory: (k, False) for k, *_ in direct}
        self.twins = [same.get(t.memory) if t.object < 0 else None for t in program.outputs]
        self.arena_bases = [[number for number, which in self.host.by_kind.get("arena", []) if which == e] for e in range(count)]
        self.checks = [[c for c in program.checks if c.epoch == e] for e in range(count)]
        self.function_rows = np.array(self.host.handles, np.int64)

    def _upload(self, array: np.ndarray) -> Any:
        assert self.accelerator is not None
        buffer = self.accelerator.empty(max(array.nbytes, 1))
        self.accelerator.copy_in(buffer, 0, array)
        return buffer


def _sizes(slots: list[tuple[str, Any]]) -> SizeProgram:
    program = SizeProgram()
    program.slots = slots
    return program
