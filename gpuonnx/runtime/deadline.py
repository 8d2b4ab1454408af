"""When a run must end: asked between steps and iterations, and set on what runs by a timer."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from gpuonnx.errors import Cancelled, InputError
from gpuonnx.kernels.contract import CTX_CANCEL

LONGEST = 1e6


class Deadline:
    """The end of a run: native code asks it between steps, and a timer stops what runs when it has come."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.expired = seconds, False
        self._lock = threading.Lock()
        self._running: list[np.ndarray] = []
        self._timer = threading.Timer(min(max(seconds, 0), LONGEST), self._expire)
        self._timer.daemon = True

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            for record in self._running:
                record[CTX_CANCEL] = 1

    def check(self) -> None:
        """Raise Cancelled if the end has come."""
        if self.expired:
            raise Cancelled(f"the run took longer than its timeout of {self.seconds:g} s")

    @contextmanager
    def watching(self, record: np.ndarray) -> Iterator[None]:
        """Steps that use this ctx are cancelled between their tasks."""
        with self._lock:
            self._running.append(record)
            record[CTX_CANCEL] = int(self.expired)
        try:
            yield
        finally:
            with self._lock:
                self._running = [r for r in self._running if r is not record]
                record[CTX_CANCEL] = 0

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


current_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Runs inside raise Cancelled once `seconds` have passed (None: never)."""
    if seconds is None:
        yield
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds != seconds:
        raise InputError(f"timeout is a number of seconds or None, not {seconds!r}")
    with Deadline(seconds) as deadline:
        token = current_deadline.set(deadline)
        try:
            yield
        finally:
            current_deadline.reset(token)
