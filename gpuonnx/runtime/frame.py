"""The state of one run: registers, argument words, arenas, Python values. Frames are leased, one per concurrent run."""
from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from gpuonnx.errors import InputError, MemoryLimitError, ShapeError
from gpuonnx.ir import types
from gpuonnx.kernels.contract import CTX_WORDS
from gpuonnx.kernels.cpu.executor import real_word, word_real
from gpuonnx.planner.program import DEVICE, HOST, SymbolRef, TensorRef
from gpuonnx.runtime.address import address
from gpuonnx.runtime.loaded import LoadedProgram, LoadedSide
from gpuonnx.runtime.resident import Resident

ALIGNMENT = 64
PATIENCE = 32
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
    except (MemoryError, ValueError):
        pass
    raise MemoryLimitError(f"{what} {list(shape)}: {count:,} bytes are more than this machine can give; use smaller inputs")


def check_out(name: str, given: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise unless the caller's buffer is what the output needs."""
    if given.dtype != dtype:
        raise InputError(f"the buffer for output {name!r} must be {dtype}, not {given.dtype}")
    if given.shape != shape:
        raise ShapeError(f"the buffer for output {name!r} must have the shape {list(shape)}, not {list(given.shape)}")


class Frame:
    """Registers, words and arenas of one run; kept and leased again, so that a repeated size costs almost nothing."""

    def __init__(self, loaded: LoadedProgram) -> None:
        self.loaded, program = loaded, loaded.program
        self.registers = loaded.registers.copy()
        self.context = np.zeros(CTX_WORDS, np.int64)
        self.objects: list[Any] = [None] * program.objects
        self.inputs: list[Any] = []
        self.outputs: list[np.ndarray | Resident | None] = [None] * len(program.outputs)
        self.out_buffers: Mapping[int, np.ndarray] = {}
        self.symbols: dict[int, tuple[int, ...]] = {}
        epochs = len(loaded.ops_of_epoch)
        self.arenas: list[np.ndarray] = [NOTHING] * epochs
        self.idle = [0] * epochs
        self.held = self.used = 0
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
        self.registers_address, self.bases_address = int(self.registers.ctypes.data), int(self.bases.ctypes.data)
        self.words_address = int(self.words.ctypes.data)
        self.device_arenas: list[Any] = [None] * epochs
        self.device_sizes = [0] * epochs
        self.device_bases = np.zeros(len(program.sides[DEVICE].bases), np.int64)
        self.device_words: Any = None

    def release(self) -> None:
        """Forget the values of a run; arenas and sizes stay for the next one."""
        self.inputs, self.outputs, self.out_buffers = [], [None] * len(self.outputs), {}
        self.objects = [None] * len(self.objects)

    # binding
    def bind(self, epoch: int, symbols: Sequence[SymbolRef], given: Sequence[np.ndarray | None] | None) -> bool:
        """Read the symbols of an epoch; where they are new compute what follows from them, check, and make room (true)."""
        values = tuple([self._symbol(s, given) for s in symbols])
        new = self.symbols.pop(epoch, None) != values or epoch > 0
        if new:
            self._compute(epoch, symbols, values)
            self._check(epoch)
            self._room(epoch)
            if len(self.loaded.host.tasks):
                self.steps[:, 2] = self.registers[self.loaded.host.tasks]
        self.symbols[epoch] = values
        for k, number, ref, dtype in self.loaded.outputs_of_epoch[epoch]:
            self.outputs[k] = out = self._out(k, ref, dtype)
            if isinstance(out, Resident):
                self.device_bases[number] = out.buffer().address
            else:
                self.bases[number] = address(out)
        self._fill()
        return new

    def _symbol(self, s: SymbolRef, given: Sequence[np.ndarray | None] | None) -> int:
        array: Any = given[s.input] if given is not None and s.input >= 0 else self.array(s.tensor)
        if s.axis is not None:
            return int(array.shape[s.axis])
        item = array.ravel()[s.element] if array.ndim else array[()]
        return real_word(float(item)) if s.real else int(item)

    def _compute(self, epoch: int, symbols: Sequence[SymbolRef], values: Sequence[int]) -> None:
        for s, value in zip(symbols, values, strict=True):
            self.registers[s.register] = value if value < 1 << 63 else (1 << 63) - 1
        ops = self.loaded.ops_of_epoch[epoch]
        bad = self.loaded.executor.run_sizes(self.loaded.ops_addresses[epoch], len(ops), self.registers_address)
        if bad >= 0:
            _, _, x, y, _ = ops[bad]
            raise ShapeError(f"sizes {self.registers[x]} and {self.registers[y]} do not broadcast, where {self._told('')}")

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
        need, device = (int(self.registers[loaded.program.sides[s].arena_registers[epoch]]) for s in (HOST, DEVICE))
        if loaded.accelerator is None:
            device = 0
        self.used = need + device + sum(a.nbytes + d for e, (a, d) in enumerate(zip(self.arenas, self.device_sizes, strict=True)) if e != epoch)
        if loaded.memory_limit is not None and self.held + self.used > loaded.memory_limit:
            raise MemoryLimitError(f"this run needs {self.held + self.used:,} bytes of working memory, memory_limit is {loaded.memory_limit:,}; "
                                   "use smaller inputs or raise memory_limit")
        have = self.arenas[epoch].size
        self.idle[epoch] = self.idle[epoch] + 1 if need * 4 < have - (1 << 20) else 0
        if need > have - ALIGNMENT or self.idle[epoch] > PATIENCE:
            self.arenas[epoch], self.idle[epoch] = NOTHING, 0
            self.arenas[epoch] = room((need + ALIGNMENT,), np.dtype(np.uint8), "working memory")
            for number in loaded.arena_bases[epoch]:
                self.bases[number] = aligned(self.arenas[epoch])
        if loaded.accelerator is not None:
            self._device_room(epoch, device)

    def _device_room(self, epoch: int, need: int) -> None:
        loaded = self.loaded
        assert loaded.accelerator is not None and loaded.device is not None
        if self.device_arenas[epoch] is None or need > self.device_sizes[epoch]:
            self.device_arenas[epoch], self.device_sizes[epoch] = None, 0
            try:
                self.device_arenas[epoch] = loaded.accelerator.empty(max(need, 1))
            except (MemoryError, ValueError) as error:
                raise MemoryLimitError(f"working memory: {need:,} bytes are more than {loaded.accelerator.name} can give; "
                                       "use smaller inputs") from error
            self.device_sizes[epoch] = need
        for number, which in loaded.device.by_kind.get("arena", ()):
            if which == epoch:
                self.device_bases[number] = self.device_arenas[epoch].address

    def _out(self, k: int, ref: TensorRef, dtype: np.dtype) -> np.ndarray | Resident:
        """The buffer of output `k`: the caller's where `out=` gave one, else a new one."""
        shape = self.shape(ref)
        if ref.side == DEVICE and self.loaded.accelerator is not None:
            return Resident(self.loaded.accelerator, shape, dtype)
        given = self.out_buffers.get(k)
        if given is not None:
            check_out(ref.name, given, shape, dtype)
            return given
        return room(shape, dtype, f"output {ref.name!r}")

    def _fill(self) -> None:
        side = self.loaded.host
        for number, which in side.inputs:
            self.bases[number] = address(self.inputs[which])
        if side.word_count:
            self.loaded.executor.fill(self.words_address, self.bases_address, self.registers_address, side.bases_address,
                                      side.registers_address, side.word_count)
        if self.loaded.device is not None and len(self.loaded.device.word_bases):
            self._fill_device(self.loaded.device)

    def _fill_device(self, side: LoadedSide) -> None:
        accelerator = self.loaded.accelerator
        assert accelerator is not None
        for number, which in side.by_kind.get("constant", ()):
            self.device_bases[number] = self.loaded.device_constants[which].address
        for number, which in side.inputs:
            self.device_bases[number] = self.inputs[which].buffer().address
        words = self.device_bases[side.word_bases] + self.registers[side.word_registers]
        if self.device_words is None:
            self.device_words = accelerator.empty(words.nbytes)
        accelerator.copy_in(self.device_words, 0, words)

    def rebase(self, number: int) -> None:
        """A Python value has become known: steps that read it get its address."""
        value = self.objects[number]
        for base, which in self.loaded.host.by_kind.get("object", ()):
            if which == number:
                self.bases[base] = address(value)
                self._fill()

    # tensors
    def shape(self, ref: TensorRef) -> tuple[int, ...]:
        return self._read(ref.shape)

    def _read(self, registers: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.registers[list(registers)].tolist()) if registers else ()

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
            start += -address(owner) % ALIGNMENT
        shape, strides = self.shape(ref), self._read(ref.strides)
        if dtype.hasobject:
            first = owner.reshape(-1)[start // dtype.itemsize:]
            return np.lib.stride_tricks.as_strided(first, shape, strides) if 0 not in shape else np.empty(shape, object)
        if 0 in shape or math.prod(shape) * dtype.itemsize > sys.maxsize:
            return room(shape, dtype, f"tensor {ref.name!r}")
        return np.ndarray(shape, dtype, buffer=memory(owner), offset=start, strides=strides)

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
        offset = int(self.registers[ref.offset])
        match kind:
            case "arena": return self.device_arenas[which], offset
            case "input": return self.inputs[which].buffer(), offset
            case "output": return self.outputs[which].buffer(), offset  # type: ignore[union-attr]
        return self.loaded.device_constants[which], offset

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
    return -(-address(array) // ALIGNMENT) * ALIGNMENT


def memory(array: np.ndarray) -> Any:
    """A contiguous array as bytes."""
    return array if array.dtype == np.uint8 and array.ndim == 1 else array.reshape(-1).view(np.uint8)
