"""What a linked table is made of: tensors whose addresses are open, and procedures and Loops between them."""
from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpuonnx.ir.types import numpy_dtype
from gpuonnx.planner import program as p
from gpuonnx.planner.program import HOST
from gpuonnx.runtime.frame import Frame
from gpuonnx.runtime.moving import Axis, Growing, Moving

if TYPE_CHECKING:
    from gpuonnx.runtime.variants import Variant

Shape = tuple[tuple[int, ...], np.dtype]
_word = ctypes.c_int64.from_address


@dataclass
class Port:
    """A dense tensor: where it starts (0: not known yet), and the words that hold its address and some bytes more. One that
    begins elsewhere every turn `wanders`: the words with its memory's address and with the bytes from there; it can be copied from."""

    shape: tuple[int, ...] | None
    dtype: np.dtype
    slots: list[tuple[int, int]] = field(default_factory=list)
    start: int = 0
    wanders: tuple[int, int] | None = None

    def lead(self, slots: Sequence[tuple[int, int]], more: int = 0) -> None:
        """These words too hold its address."""
        self.slots += [(word, offset + more) for word, offset in slots]
        if self.start:
            self.fix(self.start)

    def fix(self, start: int) -> None:
        self.start = start
        for word, more in self.slots:
            _word(word).value = start + more


@dataclass
class Part:
    """A variant in the table. `loose` are outputs that no kernel writes: their number and where they lie; `waiting`, the words for the
    addresses of what Ifs and Loops give; `changing`, axes whose sizes change from turn to turn; `limits`, the checks on the bytes of outputs;
    `steps`, rows of the table with the registers of their tasks."""

    variant: Variant
    frame: Frame
    inputs: list[Port]
    outputs: list[Port]
    loose: list[tuple[int, p.TensorRef]]
    waiting: dict[int, list[tuple[int, int]]]
    objects: dict[int, Port] = field(default_factory=dict)
    changing: set[Axis] = field(default_factory=set)
    limits: dict[int, int] = field(default_factory=dict)
    moving: Moving | None = None
    steps: list[tuple[int, int]] = field(default_factory=list)
    arena: Port = field(default_factory=lambda: Port(None, np.dtype(np.uint8)))

    @property
    def program(self) -> p.Program:
        return self.variant.loaded.program

    def locate(self, ref: p.TensorRef) -> tuple[Port, int]:
        """The port that holds a tensor, and how many bytes further it begins (0 where that changes, see `wanders`)."""
        if ref.object >= 0:
            return self.objects[ref.object], 0
        kind, which = self.program.sides[HOST].bases[ref.base]
        offset = 0 if self.wanders(ref) else int(self.frame.registers[ref.offset])
        if kind == "arena" and self.moving is not None:
            return self.arena, offset
        known = {"input": self.inputs, "output": self.outputs, "object": self.objects}.get(kind)
        if known is not None:
            return known[which], offset  # type: ignore[index]
        return Port(None, numpy_dtype(ref.dtype), start=int(self.frame.bases[ref.base])), offset

    def wanders(self, ref: p.TensorRef) -> bool:
        """Whether it begins elsewhere in its memory every turn."""
        return ref.object < 0 and self.moving is not None and self.moving.moved[ref.offset]

    def _stays(self, registers: Sequence[int]) -> None:
        if self.moving is not None:
            self.moving.stays(registers)

    def shape(self, ref: p.TensorRef) -> tuple[int, ...]:
        self._stays(ref.shape)
        found = self.objects[ref.object].shape if ref.object >= 0 else self.frame.shape(ref)
        assert found is not None
        return found

    def strides(self, ref: p.TensorRef) -> tuple[int, ...]:
        if ref.object >= 0:
            return dense(self.shape(ref), numpy_dtype(ref.dtype).itemsize)
        self._stays(ref.strides)
        return tuple(int(self.frame.registers[r]) for r in ref.strides)

    def hands_on(self, k: int) -> bool:
        """Whether carried value `k` of a Loop's body comes out as it went in."""
        ref = dict(self.loose).get(1 + k)
        if ref is None or ref.object >= 0 or self.wanders(ref):
            return False
        port, more = self.locate(ref)
        return port is self.inputs[2 + k] and more == 0 and lies_dense(self.shape(ref), self.strides(ref), port.dtype.itemsize)


@dataclass
class Turning:
    """A Loop in the table. inputs: trip count, condition, carried values, captures; outputs: carried values, scan outputs (row by row).
    `block`: the words that the native steps count with; `current`: for each carried value, the word with the address of what the turn
    reads, or -1 where it is handed on unchanged; `growing`, those that change their sizes, which no step copies to an output."""

    inputs: list[Port]
    outputs: list[Port]
    block: np.ndarray
    current: list[int]
    growing: dict[int, Growing]


def dense(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Byte strides of row-major order."""
    out: list[int] = []
    for size in reversed(shape):
        out.insert(0, itemsize)
        itemsize *= size
    return tuple(out)


def lies_dense(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    return all(size == 1 or a == b for size, a, b in zip(shape, strides, dense(shape, itemsize), strict=True))
