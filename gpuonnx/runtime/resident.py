"""A tensor that host and device both may have: a Loop hands its values from turn to turn where they lie, and copies what is asked for."""
from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import MemoryLimitError

if TYPE_CHECKING:
    from gpuonnx.devices.device import Accelerator


class Resident:
    """Dense; copied at most once each way, since nothing writes to it."""

    def __init__(self, accelerator: Accelerator, shape: tuple[int, ...], dtype: np.dtype, host: np.ndarray | None = None) -> None:
        self.accelerator, self.shape, self.dtype, self._host = accelerator, shape, dtype, host
        self._buffer: Any = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def buffer(self) -> Any:
        """Its memory on the device; new if the host has nothing to put there. Raises MemoryLimitError."""
        if self._buffer is None:
            try:
                self._buffer = self.accelerator.empty(max(self.nbytes, 1))
            except (MemoryError, ValueError) as error:
                raise MemoryLimitError(f"a value {list(self.shape)} of a Loop: {self.nbytes:,} bytes are more than {self.accelerator.name} can "
                                       "give; use smaller inputs") from error
            if self._host is not None and self._host.size:
                self.accelerator.copy_in(self._buffer, 0, np.ascontiguousarray(self._host))
        return self._buffer

    def host(self) -> np.ndarray:
        if self._host is None:
            self._host = np.empty(self.shape, self.dtype)
            if self._host.size:
                self.accelerator.copy_out(self._buffer, 0, self._host)
        return self._host


def on_host(value: Any) -> Any:
    return value.host() if isinstance(value, Resident) else value
