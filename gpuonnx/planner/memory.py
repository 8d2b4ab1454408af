"""Lifetimes to arena slots. A slot is reused by later buffers; its size is the largest of theirs, symbolic where they are."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gpuonnx.ir.dims import Dim, dmax, floordiv

ALIGNMENT = 64


@dataclass(eq=False)
class Buffer:
    """Memory that places refer to. kind: input output constant object arena; `number` says which of its kind."""

    side: str
    kind: str
    number: int
    size: Dim
    epoch: int = 0
    first: int = -1
    last: int = -1
    slot: Slot | None = None

    def touch(self, position: int) -> None:
        """The buffer is in use at this step of the order."""
        self.first = position if self.first < 0 else min(self.first, position)
        self.last = max(self.last, position)


@dataclass(eq=False)
class Slot:
    """A stretch of an arena; one buffer at a time lies in it."""

    side: str
    epoch: int
    size: Dim
    hint: int
    free_from: int


@dataclass
class Arenas:
    """Slots in order; `used` is the sum of the hints, the expected peak in bytes."""

    slots: list[Slot] = field(default_factory=list)

    @property
    def used(self) -> int:
        return sum(s.hint for s in self.slots)


def aligned(size: Dim) -> Dim:
    total: Dim = floordiv(size + (ALIGNMENT - 1), ALIGNMENT) * ALIGNMENT
    return total


def assign(buffers: list[Buffer], hint: Callable[[Dim], int]) -> Arenas:
    """Best fit by expected size, in order of first use; equal symbolic sizes are preferred, so that slots do not grow."""
    arenas = Arenas()
    for buffer in sorted((b for b in buffers if b.kind == "arena" and b.first >= 0), key=lambda b: b.first):
        size = aligned(buffer.size)
        want = hint(size)
        free = [s for s in arenas.slots if s.side == buffer.side and s.epoch == buffer.epoch and s.free_from <= buffer.first]
        best = min(free, key=lambda s: (s.size is not size, s.hint < want, abs(s.hint - want)), default=None)
        if best is None or (best.size is not size and best.hint > 8 * max(want, 4096)):
            best = Slot(buffer.side, buffer.epoch, size, want, 0)
            arenas.slots.append(best)
        elif best.size is not size:
            best.size, best.hint = dmax(best.size, size), max(best.hint, want)
        best.free_from = buffer.last + 1
        buffer.slot = best
    return arenas
