"""Lifetimes to places in an arena. Buffers that live at once lie apart; which of two lies below is decided by their expected sizes,
where each begins by the sizes of a run: behind the last that lies below it."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpuonnx.ir.dims import Dim, floordiv

ALIGNMENT = 64


@dataclass(eq=False)
class Buffer:
    """Memory that places refer to. kind: input output constant object arena; `number` says which of its kind. `over`: buffers of
    the same size that the step which first writes this one reads in place."""

    side: str
    kind: str
    number: int
    size: Dim
    epoch: int = 0
    first: int = -1
    last: int = -1
    over: list[Buffer] = field(default_factory=list)
    slot: Slot | None = None

    def touch(self, position: int) -> None:
        """The buffer is in use at this step of the order."""
        self.first = position if self.first < 0 else min(self.first, position)
        self.last = max(self.last, position)


@dataclass(eq=False)
class Slot:
    """A stretch of an arena that one buffer holds, or several, each written over the one before; `holder` is the last. `hint`: its
    expected bytes; `offset`: where it is expected to begin; `below`: the slots behind whose ends it begins, whatever the sizes."""

    holder: Buffer
    size: Dim
    hint: int
    first: int
    last: int
    offset: int = 0
    below: list[Slot] = field(default_factory=list)

    @property
    def arena(self) -> tuple[str, int]:
        return self.holder.side, self.holder.epoch


def aligned(size: Dim) -> Dim:
    total: Dim = floordiv(size + (ALIGNMENT - 1), ALIGNMENT) * ALIGNMENT
    return total


def assign(buffers: list[Buffer], hint: Callable[[Dim], int]) -> list[Slot]:
    """The slots of all arenas, each behind those below it."""
    slots: list[Slot] = []
    for buffer in sorted((b for b in buffers if b.kind == "arena" and b.first >= 0), key=lambda b: b.first):
        slot = next((b.slot for b in buffer.over if b.slot is not None and b.slot.holder is b and b.first < b.last == buffer.first), None)
        if slot is None:
            size = aligned(buffer.size)
            slot = Slot(buffer, size, max(hint(size), ALIGNMENT), buffer.first, buffer.last)
            slots.append(slot)
        slot.holder, slot.last, buffer.slot = buffer, buffer.last, slot
    arenas: dict[tuple[str, int], list[Slot]] = {}
    for slot in slots:
        arenas.setdefault(slot.arena, []).append(slot)
    return [slot for arena in arenas.values() for slot in _packed(arena)]


def used(slots: Sequence[Slot]) -> int:
    """The expected bytes of all arenas."""
    tops: dict[tuple[str, int], int] = {}
    for slot in slots:
        tops[slot.arena] = max(tops.get(slot.arena, 0), slot.offset + slot.hint)
    return sum(tops.values())


def _packed(slots: list[Slot]) -> list[Slot]:
    """Largest first, each into the tightest gap between those that it meets; the slots by offset, with what is below each."""
    order = sorted(slots, key=lambda s: (-s.hint, s.first))
    for slot, met in _meeting(order):
        slot.offset = _gap(sorted((order[n].offset, order[n].offset + order[n].hint) for n in met), slot.hint)
    order.sort(key=lambda s: s.offset)
    under: list[int] = []
    for slot, met in _meeting(order):
        covered = 0
        for n in reversed(met):
            if not covered >> n & 1:
                slot.below.append(order[n])
                covered |= under[n] | 1 << n
        under.append(covered)
    return order


def _meeting(order: list[Slot]) -> Iterator[tuple[Slot, list[int]]]:
    """Each slot, with which of those before it are in use at some step when it is."""
    first, last = (np.array([getattr(s, name) for s in order], np.int64) for name in ("first", "last"))
    for k, slot in enumerate(order):
        yield slot, np.flatnonzero((first[:k] <= slot.last) & (last[:k] >= slot.first)).tolist()


def _gap(taken: list[tuple[int, int]], size: int) -> int:
    """Where the tightest gap begins that holds `size` bytes, or the end of all."""
    best, least, end = -1, 0, 0
    for start, stop in taken:
        if start - end >= size and (best < 0 or start - end < least):
            best, least = end, start - end
        end = max(end, stop)
    return best if best >= 0 else end
