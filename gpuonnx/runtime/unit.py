"""A linked table, ready to run."""
from __future__ import annotations

from functools import partial

import numpy as np

from gpuonnx.kernels.contract import CTX_CODE, CTX_WORDS
from gpuonnx.kernels.cpu.executor import SLICE_NS
from gpuonnx.runtime.address import address
from gpuonnx.runtime.deadline import current_deadline
from gpuonnx.runtime.link import Linker


class Unit:
    """One run at a time."""

    def __init__(self, linker: Linker) -> None:
        self.table, self.context = np.array(linker.rows, np.int64).reshape(-1, 4), np.zeros(CTX_WORDS, np.int64)
        self.linker, self.keep, self.missing, self.pool = linker, linker.keep, linker.missing, linker.context.pool
        executor = linker.context.executor
        self.native = partial(executor.run_steps, self.pool.address, address(self.context), address(self.table))
        self.last, self.moving = len(self.table), linker.moving
        for block, place in linker.tables:
            block[place] = address(self.table)

    def steps(self, first: int = 0) -> bool:
        """Run; false where a step reports an error or cannot go on natively, which the usual way then meets again and explains."""
        at, last = self.native(first, self.last, SLICE_NS), self.last
        while 0 <= at < last:
            deadline = current_deadline.get()
            if deadline is not None:
                deadline.check()
            at = self.native(at, last, SLICE_NS)
        if at < 0:
            self.context[CTX_CODE] = 0
        return at >= 0

    def grow(self) -> bool:
        """Whether memory was what was missing, and is there now."""
        try:
            return any([moving.grow() for moving in self.moving])
        except MemoryError:
            return False

    @property
    def stale(self) -> bool:
        """Whether a body that was missing has run by now."""
        return any(body.at_shapes(shapes) is not None for body, shapes in self.missing)
