"""The state of one run: registers, argument words, arenas, Python values. Frames are leased, one per concurrent run."""
from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from gpuonnx.devices.device import Accelerator
from gpuonnx.errors import MemoryLimitError, ShapeError
from gpuonnx.ir import types
from gpuonnx.ir.sizes import SizeProgram
from gpuonnx.kernels.contract import CTX_WORDS
from gpuonnx.kernels.cpu.executor import Executor, encode_sizes, real_word, word_real
from gpuonnx.planner.place import DEVICE, HOST
from gpuonnx.planner.program import Program, Side, SymbolRef, TensorRef

ALIGNMENT = 64
NOTHING = np.empty(0, np.uint8)


@cache
def physical_memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


def room(shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    """A new array. Raises MemoryLimitError where this machine cannot hold it."""
    count = math.prod(shape) * dtype.itemsize
    try:
        if count <= physical_memory():
            return np.empty(shape, dtype)
    except MemoryError:
        pass
    raise MemoryLimitError(f"{what}: {count:,} bytes are more than this machine can give; use smaller inputs")


class LoadedSide:
    """The tables of one memory as arrays, with kernels compiled."""

    def __init__(self, side: Side, handles: Sequence[Any]) -> None:
        self.side, self.handles = side, [handles[k] for k in side.step_kernels]
        self.word_bases = np.array(side.word_bases, np.int32)
        self.word_registers = np.array(side.word_registers, np.int32)
        self.tasks = np.array(side.step_tasks, np.int64)
        self.words_at = np.array(side.step_words, np.int64) * 8
        self.constants = side.constants
        self.by_kind: dict[str, list[tuple[int, int]]] = {}
        for number, (kind, which) in enumerate(side.bases):
            self.by_kind.setdefault(kind, []).append((number, which))


class LoadedProgram:
    """A Program made ready to run: size operations by epoch, native tables, constants in the memories that read them."""

    def __init__(self, program: Program, executor: Executor, compile_host: Callable[[Any], list[Any]], accelerator: Accelerator | None,
                 memory_limit: int | None = None) -> None:
        self.program, self.executor, self.accelerator, self.memory_limit = program, executor, accelerator, memory_limit
        self.ops, self.registers, self.symbol_registers = encode_sizes(_sizes(program.slots))
        epoch_of = np.array([program.epochs[int(row[1])] for row in self.ops], np.int64)
        count = 1 + max(program.epochs, default=0)
        self.ops_of_epoch = [np.ascontiguousarray(self.ops[epoch_of == e]) for e in range(count)]
        self.host = LoadedSide(program.sides[HOST], compile_host(program.sides[HOST].kernels))
        device = program.sides[DEVICE]
        self.device = LoadedSide(device, accelerator.compile(device.kernels)) if accelerator is not None else None
        self.device_constants = [self._upload(a) for a in device.constants] if accelerator is not None else []
        self.output_epochs = [max((program.epochs[r] for r in (*t.shape, t.offset)), default=0) for t in program.outputs]
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


class Frame:
    """Registers, words and arenas of one run; kept and leased again, so that a repeated size costs almost nothing."""

    def __init__(self, loaded: LoadedProgram) -> None:
        self.loaded, program = loaded, loaded.program
        self.registers = loaded.registers.copy()
        self.context = np.zeros(CTX_WORDS, np.int64)
        self.objects: list[Any] = [None] * program.objects
        self.inputs: list[Any] = []
        self.outputs: list[np.ndarray | None] = [None] * len(program.outputs)
        self.symbols: dict[int, tuple[int, ...]] = {}
        epochs = len(loaded.ops_of_epoch)
        self.arenas: list[np.ndarray] = [NOTHING] * epochs
        side = program.sides[HOST]
        self.bases = np.zeros(len(side.bases), np.int64)
        for number, which in loaded.host.by_kind.get("constant", ()):
            self.bases[number] = loaded.host.constants[which].ctypes.data
        self.words = np.zeros(max(len(side.word_bases), 1), np.int64)
        self.steps = np.zeros((len(side.step_kernels), 4), np.int64)
        self.steps[:, 0] = loaded.function_rows
        self.steps[:, 1] = loaded.host.words_at + self.words.ctypes.data
        self.steps[:, 3] = side.step_nodes
        self.context_address, self.steps_address = int(self.context.ctypes.data), int(self.steps.ctypes.data)
        self.device_arenas: list[Any] = [None] * epochs
        self.device_sizes = [0] * epochs
        self.device_bases = np.zeros(len(program.sides[DEVICE].bases), np.int64)
        self.device_words: Any = None

    def release(self) -> None:
        """Forget the values of a run; arenas and sizes stay for the next one."""
        self.inputs, self.outputs, self.out_buffers = [], [None] * len(self.outputs), {}
        self.objects = [None] * len(self.objects)

    # binding
    def bind(self, epoch: int, symbols: Sequence[SymbolRef], given: Sequence[np.ndarray | None] | None) -> None:
        """Read the symbols of an epoch, compute what follows from them, check, and make room."""
        values = tuple(self._symbol(s, given) for s in symbols)
        if self.symbols.pop(epoch, None) != values or epoch:
            for s, value in zip(symbols, values, strict=True):
                self.registers[s.register] = value
            ops = self.loaded.ops_of_epoch[epoch]
            bad = self.loaded.executor.run_sizes(ops.ctypes.data, len(ops), self.registers.ctypes.data)
            if bad >= 0:
                _, _, x, y, _ = ops[bad]
                raise ShapeError(f"sizes {self.registers[x]} and {self.registers[y]} do not broadcast")
            self._check(epoch)
            self._room(epoch)
        self.symbols[epoch] = values
        self._outputs(epoch)
        self._fill()

    def _symbol(self, s: SymbolRef, given: Sequence[np.ndarray | None] | None) -> int:
        array: Any = given[s.input] if given is not None and s.input >= 0 else self.array(s.tensor)
        if s.axis is not None:
            return int(array.shape[s.axis])
        item = array.ravel()[s.element] if array.ndim else array[()]
        return real_word(float(item)) if s.real else int(item)

    def _check(self, epoch: int) -> None:
        for check in self.loaded.checks[epoch]:
            value = int(self.registers[check.register])
            if value < 0 or (check.equal and value):
                raise ShapeError(f"{check.message}; off by {value}, where {self._told(check.message)}")

    def _told(self, message: str) -> str:
        """The values of the symbols that a message is about (of all, where it names none)."""
        binding = self.binding()
        named = [n for n in binding if f"({n}" in message or f"{n})" in message] or list(binding)
        return ", ".join(f"{n} = {binding[n]}" for n in named[:8])

    def _room(self, epoch: int) -> None:
        loaded = self.loaded
        host, device = (loaded.program.sides[s].arena_registers for s in (HOST, DEVICE))
        need = int(self.registers[host[epoch]])
        total = need + sum(a.nbytes for e, a in enumerate(self.arenas) if e != epoch)
        if loaded.memory_limit is not None and total > loaded.memory_limit:
            raise MemoryLimitError(f"this run needs {total:,} bytes of working memory, memory_limit is {loaded.memory_limit:,}; "
                                   "use smaller inputs or raise memory_limit")
        if need > self.arenas[epoch].size - ALIGNMENT or need * 4 < self.arenas[epoch].size - (1 << 20):
            self.arenas[epoch] = NOTHING
            self.arenas[epoch] = room((need + ALIGNMENT,), np.dtype(np.uint8), "working memory")
        for number, which in loaded.host.by_kind.get("arena", ()):
            if which == epoch:
                self.bases[number] = aligned(self.arenas[epoch])
        if loaded.accelerator is not None and loaded.device is not None:
            need = int(self.registers[device[epoch]])
            if self.device_arenas[epoch] is None or need > self.device_sizes[epoch]:
                self.device_arenas[epoch], self.device_sizes[epoch] = loaded.accelerator.empty(max(need, 1)), need
            for number, which in loaded.device.by_kind.get("arena", ()):
                if which == epoch:
                    self.device_bases[number] = self.device_arenas[epoch].address

    def _outputs(self, epoch: int) -> None:
        by_number = {which: number for number, which in self.loaded.host.by_kind.get("output", ())}
        for k, number in by_number.items():
            if self.loaded.output_epochs[k] == epoch:
                ref = self.loaded.program.outputs[k]
                out = self.given_out(k, ref)
                self.outputs[k] = out
                self.bases[number] = out.ctypes.data

    def given_out(self, k: int, ref: TensorRef) -> np.ndarray:
        """The buffer of output `k`: the caller's where `out=` gave one, else a new one."""
        shape = self.shape(ref)
        given = self.out_buffers.get(k)
        if given is None:
            return room(shape, types.numpy_dtype(ref.dtype), f"output {ref.name!r}")
        return given

    out_buffers: Mapping[int, np.ndarray] = {}

    def _fill(self) -> None:
        side = self.loaded.host
        for number, which in side.by_kind.get("input", ()):
            self.bases[number] = self.inputs[which].ctypes.data
        self.loaded.executor.fill(self.words.ctypes.data, self.bases.ctypes.data, self.registers.ctypes.data,
                                  side.word_bases.ctypes.data, side.word_registers.ctypes.data, len(side.word_bases))
        if len(side.tasks):
            self.steps[:, 2] = self.registers[side.tasks]
        if self.loaded.device is not None and len(self.loaded.device.word_bases):
            self._fill_device(self.loaded.device)

    def _fill_device(self, side: LoadedSide) -> None:
        accelerator = self.loaded.accelerator
        assert accelerator is not None
        for number, which in side.by_kind.get("constant", ()):
            self.device_bases[number] = self.loaded.device_constants[which].address
        words = self.device_bases[side.word_bases] + self.registers[side.word_registers]
        if self.device_words is None:
            self.device_words = accelerator.empty(words.nbytes)
        accelerator.copy_in(self.device_words, 0, words)

    def rebase(self, number: int) -> None:
        """A Python value has become known: steps that read it get its address."""
        value = self.objects[number]
        for base, which in self.loaded.host.by_kind.get("object", ()):
            if which == number:
                self.bases[base] = value.ctypes.data
                self._fill()

    # tensors
    def shape(self, ref: TensorRef) -> tuple[int, ...]:
        return tuple(int(self.registers[r]) for r in ref.shape)

    def value(self, ref: TensorRef) -> Any:
        """A tensor or Python value as Python sees it; tensors are views of live memory."""
        return self.objects[ref.object] if ref.object >= 0 else self.array(ref)

    def array(self, ref: TensorRef | None) -> Any:
        assert ref is not None
        if ref.object >= 0:
            return self.objects[ref.object]
        kind, which = self.loaded.program.sides[ref.side].bases[ref.base]
        owner = self._owner(kind, which)
        if not isinstance(owner, np.ndarray):
            return owner
        dtype = types.numpy_dtype(ref.dtype)
        start = int(self.registers[ref.offset])
        if kind == "arena":
            start += aligned(owner) - owner.ctypes.data
        strides = tuple(int(self.registers[r]) for r in ref.strides)
        shape = self.shape(ref)
        if dtype.hasobject:
            return owner.reshape(shape)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, buffer=_bytes(owner), offset=start, strides=strides)

    def _owner(self, kind: str, which: int) -> Any:
        match kind:
            case "arena": return self.arenas[which]
            case "constant": return self.loaded.host.constants[which]
            case "input": return self.inputs[which]
            case "output": return self.outputs[which]
        return self.objects[which]

    def device_address(self, ref: TensorRef) -> tuple[Any, int]:
        """(buffer, byte offset) of a dense tensor on the accelerator."""
        kind, which = self.loaded.program.sides[DEVICE].bases[ref.base]
        buffer = self.device_arenas[which] if kind == "arena" else self.loaded.device_constants[which]
        return buffer, int(self.registers[ref.offset])

    def binding(self) -> dict[str, int | float]:
        """Symbols by name, for nodes that NumPy interprets."""
        program = self.loaded.program
        reals = {s.name for s in program.symbols if s.real}
        found: dict[str, int | float] = {}
        for name, register in self.loaded.symbol_registers.items():
            word = int(self.registers[register])
            found[name] = word_real(word) if name in reals else word
        return found


def aligned(array: np.ndarray) -> int:
    """The first aligned address of an arena."""
    return -(-array.ctypes.data // ALIGNMENT) * ALIGNMENT


def _bytes(array: np.ndarray) -> Any:
    return array if array.dtype == np.uint8 and array.ndim == 1 else array.reshape(-1).view(np.uint8)
