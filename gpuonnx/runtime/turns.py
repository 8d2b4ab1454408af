"""The turns of a Loop: where it stands, what its scan outputs have given, and its body linked so that native code does the turns."""
from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import ShapeError
from gpuonnx.importer.procedure import InputInfo
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.kernels.cpu import control
from gpuonnx.runtime.address import address
from gpuonnx.runtime.deadline import current_deadline
from gpuonnx.runtime.frame import room
from gpuonnx.runtime.link import FOREVER, Linker
from gpuonnx.runtime.parts import Shape
from gpuonnx.runtime.unit import Unit

if TYPE_CHECKING:
    from gpuonnx.runtime.variants import Context, Variant

FEWEST_TURNS, FIRST_ROWS, FIRST_BYTES, FIRST = 3, 64, 1 << 20, 2


class Stack:
    """The rows that a scan output has given so far, with room for more."""

    def __init__(self, info: InputInfo) -> None:
        self.info, self.rows = info, 0
        self.array: np.ndarray | None = None

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype, most: int) -> int:
        """Room for more rows, up to `most`; how many now fit. Raises ShapeError where the rows so far are of another shape."""
        if self.array is not None and self.array.shape[1:] != shape:
            raise ShapeError(f"scan output {self.info.name}: its shape differs between iterations, {self.array.shape[1:]} and {shape}")
        if self.array is None or self.rows == len(self.array):
            more = min(most, max(self.rows, FIRST_ROWS, FIRST_BYTES // max(prod(shape) * dtype.itemsize, 1)))
            grown = room((self.rows + more, *shape), dtype, f"scan output {self.info.name!r}")
            if self.array is not None:
                grown[:self.rows] = self.array
            self.array = grown
        return len(self.array) - self.rows

    def append(self, value: np.ndarray, most: int) -> None:
        self.reserve(value.shape, value.dtype, most)
        assert self.array is not None
        self.array[self.rows] = value
        self.rows += 1

    def result(self, dtype: str, sizes: Sequence[int | None]) -> np.ndarray:
        """All rows. sizes: of the other axes, as far as they are known; they count where there is no row."""
        if self.array is None:
            said = self.info.dims if self.info.dims is not None and not sizes else sizes
            return np.empty((0, *(d if isinstance(d, int) else 0 for d in said)), numpy_dtype(dtype))
        return self.array[:self.rows] if self.rows < len(self.array) else self.array


@dataclass
class State:
    """Where a Loop stands: the next turn, its condition, the carried values, the scan outputs; `limit` is its trip count."""

    turn: int
    limit: int
    going: bool
    carried: list[Any]
    scans: list[Stack]

    @property
    def more(self) -> bool:
        return self.going and self.turn < self.limit


class Turns(Unit):
    """A Loop whose body is linked at one set of shapes; it serves one run at a time."""

    def __init__(self, context: Context, variant: Variant, values: Sequence[np.ndarray], carried: int, held: int) -> None:
        """values: as the body takes them. Raises Unlinkable."""
        self.shapes: list[Shape] = [(v.shape, v.dtype) for v in values]
        self.known: Mapping[int, np.ndarray] = {k: values[k].copy() for k in variant.read_inputs if k >= FIRST + carried}
        linker = Linker(context, held)
        self.turning = linker.loop(variant, self.shapes, carried, FOREVER, self.known, values)
        self.trip, self.true = np.zeros(1, np.int64), np.ones(1, np.bool_)
        super().__init__(linker)

    @property
    def bytes(self) -> int:
        return self.linker.bytes

    def serves(self, values: Sequence[np.ndarray]) -> bool:
        """Whether it was linked for such values: their shapes but for those that grow, and what its sizes hang on."""
        for number, (value, (shape, dtype)) in enumerate(zip(values, self.shapes, strict=True)):
            growing = self.turning.growing.get(number - FIRST)
            if value.dtype != dtype or value.ndim != len(shape) or (shape if growing is None else growing.within(shape, value.shape)) != value.shape:
                return False
        return all(np.array_equal(values[k], known) for k, known in self.known.items())

    def run(self, at: State, captures: Sequence[np.ndarray]) -> None:
        """Turns until the limit, the condition, the most turns that are allowed, or what cannot be done natively, which leaves `at`
        before the turn that met it."""
        if not self.pool.started:
            self.pool.start()
        limit, deadline = min(at.limit, self.linker.context.loop_limit), current_deadline.get()
        with deadline.watching(self.context) if deadline is not None else nullcontext():
            going = True
            while going and at.going and at.turn < limit:
                going = self._stretch(at, limit, captures)

    def _stretch(self, at: State, limit: int, captures: Sequence[np.ndarray]) -> bool:
        """Turns for which the scan outputs have room; false where a turn could not be done."""
        turning, block, count = self.turning, self.turning.block, len(at.carried)
        scans = turning.outputs[count:]
        free = [stack.reserve(port.shape or (), port.dtype, limit - at.turn) for stack, port in zip(at.scans, scans, strict=True)]
        self.trip[0] = min([limit, *(at.turn + n for n in free)])
        block[control.START] = first = at.turn
        finals = [np.empty(() if k in turning.growing else port.shape or (), port.dtype) for k, port in enumerate(turning.outputs[:count])]
        for port, array in zip(turning.inputs, (self.trip, self.true, *at.carried, *captures), strict=True):
            port.fix(address(array))
        for port, array in zip(turning.outputs, finals, strict=False):
            port.fix(address(array))
        for port, stack in zip(scans, at.scans, strict=True):
            assert stack.array is not None
            port.fix(address(stack.array) + stack.rows * stack.array.strides[0])
        for k, growing in turning.growing.items():
            growing.begin(at.carried[k])
        block[control.TURN] = first
        done = self.steps()
        at.turn = int(block[control.TURN])
        for stack in at.scans:
            stack.rows += at.turn - first
        if done:
            at.going = bool(block[control.CONDITION] & 0xFF)
        if at.turn > first:
            at.carried = [finals[k] if done and k not in turning.growing else self._copied(k, value) for k, value in enumerate(at.carried)]
        return done or self.grow()

    def _copied(self, k: int, value: np.ndarray) -> np.ndarray:
        """A carried value as the turn that was not done would read it."""
        word = self.turning.current[k]
        if word < 0:
            return value
        growing = self.turning.growing.get(k)
        out = np.empty(value.shape if growing is None else growing.shape(value.shape), value.dtype)
        ctypes.memmove(address(out), int(self.turning.block[word]), out.nbytes)
        return out
