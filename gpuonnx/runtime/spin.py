"""The turns of a Loop whose body is one native stretch and whose carried values keep their shapes: buffers that change places and
addresses written ahead, so that a turn costs Python a few words and one call."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuonnx.runtime.address import address
from gpuonnx.runtime.quick import Quick

FEWEST_TURNS, FIRST_ROWS = 3, 64
FIRST = 2


@dataclass
class Turns:
    """Where a Loop stands: the next turn, its condition, the carried values, and what each scan output has given so far."""

    turn: int
    going: bool
    state: list[Any]
    scans: list[Any]

    def more(self, limit: int | None) -> bool:
        return self.going and (limit is None or self.turn < limit)


class Spin:
    """A body at one set of shapes; its Quick serves one run at a time."""

    def __init__(self, quick: Quick, carried: int) -> None:
        self.quick, self.carried = quick, carried
        self.handed_on = [self._is_handed_on(k) for k in range(carried)]
        self.copied = [n for n, output in enumerate(quick.outputs)
                       if output[3] is not None and not (0 < n <= carried and self.handed_on[n - 1])]

    def _is_handed_on(self, k: int) -> bool:
        place = self.quick.outputs[1 + k][3]
        return place is not None and place.given == FIRST + k and place.offset == 0 and place.view.flags.c_contiguous

    @staticmethod
    def of(quick: Quick | None, carried: int) -> Spin | None:
        """None where carried values change shape or type, or more than addresses changes from turn to turn."""
        if quick is None or any(i[3] is not None for i in quick.inputs) or quick.outputs[0][0] != ():
            return None
        same = all(quick.outputs[1 + k][:2] == quick.inputs[FIRST + k][:2] for k in range(carried))
        return Spin(quick, carried) if same else None

    def run(self, at: Turns, limit: int | None, captures: Sequence[np.ndarray], each: Callable[[int], None]) -> None:
        """Turns until `limit`, the condition, or an error, which leaves `at` before the turn that met it. `each(turn)` is called before
        every turn and may raise."""
        if self.quick.lock.acquire(False):
            try:
                _Run(self, at, captures, limit).turns(limit, each)
            finally:
                self.quick.lock.release()


class _Run:
    """The buffers of one run: two for each carried value, which change places, and stacks for the scan outputs."""

    def __init__(self, spin: Spin, at: Turns, captures: Sequence[np.ndarray], limit: int | None) -> None:
        self.spin, self.quick, self.at, self.words = spin, spin.quick, at, spin.quick.words
        self.turn, self.condition = np.zeros(1, np.int64), np.zeros(1, np.bool_)
        self.given: list[np.ndarray] = [self.turn.reshape(()), np.ones((), np.bool_), *at.state, *captures]
        for number, array in enumerate(self.given):
            self._put(self.quick.inputs[number][2], address(array))
        self._put(self.quick.outputs[0][2], address(self.condition))
        buffers = [(k, self._like(1 + k), self._like(1 + k)) for k in range(spin.carried) if not spin.handed_on[k]]
        self.pairs = [(k, pair, tuple(map(address, pair))) for k, *pair in buffers]
        self.rows = len(at.scans[0]) if at.scans else 0
        room = self.rows + (FIRST_ROWS if limit is None else min(FIRST_ROWS, limit - at.turn))
        self.stacks = [self._like(1 + spin.carried + s, room) for s in range(len(at.scans))]
        for stack, column in zip(self.stacks, at.scans, strict=True):
            for row, value in enumerate(column):
                stack[row] = value
        self.starts = [address(stack) for stack in self.stacks]

    def _like(self, number: int, *rows: int) -> np.ndarray:
        shape, dtype, *_ = self.quick.outputs[number]
        return np.empty((*rows, *shape), dtype)

    def _put(self, slots: Sequence[tuple[int, int]], start: int) -> None:
        for slot, more in slots:
            self.words[slot] = start + more

    def turns(self, limit: int | None, each: Callable[[int], None]) -> None:
        at, outputs, first_scan = self.at, self.quick.outputs, 1 + self.spin.carried
        while at.more(limit):
            each(at.turn)
            self.turn[0] = at.turn
            now = at.turn & 1
            for k, _, places in self.pairs:
                self._put(outputs[1 + k][2], places[now])
            self._grow(limit)
            for s, stack in enumerate(self.stacks):
                self._put(outputs[first_scan + s][2], self.starts[s] + self.rows * stack.strides[0])
            if not self.quick.steps():
                break
            if self.spin.copied:
                self._copy()
            for k, pair, places in self.pairs:
                at.state[k] = self.given[FIRST + k] = pair[now]
                self._put(self.quick.inputs[FIRST + k][2], places[now])
            at.going, at.turn, self.rows = bool(self.condition[0]), at.turn + 1, self.rows + 1
        at.scans = [list(stack[:self.rows]) for stack in self.stacks] if at.more(limit) else [stack[:self.rows] for stack in self.stacks]

    def _copy(self) -> None:
        """Outputs that no kernel writes, to where they belong."""
        state = list(self.at.state)
        for k, pair, _ in self.pairs:
            state[k] = pair[self.at.turn & 1]
        made = [self.condition.reshape(()), *state, *(stack[self.rows, ...] for stack in self.stacks)]
        for number in self.spin.copied:
            place = self.quick.outputs[number][3]
            assert place is not None
            made[number][...] = place.of(self.given, made)

    def _grow(self, limit: int | None) -> None:
        for s, stack in enumerate(self.stacks):
            if self.rows == len(stack):
                more = len(stack) if limit is None else min(len(stack), limit - self.at.turn)
                self.stacks[s] = grown = np.concatenate([stack, np.empty((more, *stack.shape[1:]), stack.dtype)])
                self.starts[s] = address(grown)
