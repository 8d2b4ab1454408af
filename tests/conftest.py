"""Tests keep compiled kernels in a directory of their own, unless GPUONNX_CACHE_DIR names one; Ctrl-C works in them,
in a shell's background too."""
from __future__ import annotations

import os
import shutil
import signal
import tempfile
from functools import partial

import numpy as np
import on_devices
import pytest

from gpuonnx.config import CACHE_VARIABLE

_made = ""


def pytest_configure(config: pytest.Config) -> None:
    global _made
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not os.environ.get(CACHE_VARIABLE):
        _made = os.environ[CACHE_VARIABLE] = tempfile.mkdtemp(prefix="gpuonnx-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _made and os.environ.get(CACHE_VARIABLE) == _made:
        del os.environ[CACHE_VARIABLE]
        shutil.rmtree(_made, ignore_errors=True)


@pytest.fixture(autouse=True)
def unwritten_memory_holds_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working memory of the CPU begins full of ones, which are NaN as floats: who reads what nobody wrote is found out."""
    from gpuonnx.runtime import frame
    room = frame.room

    def poisoned(shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
        made = room(shape, dtype, what)
        made.reshape(-1).view(np.uint8).fill(255)
        return made
    monkeypatch.setattr(frame, "room", poisoned)


@pytest.fixture(params=on_devices.DEVICES)
def every_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes `on_devices.run` run the test's models on each device."""
    from gpuonnx.devices import emulated
    from gpuonnx.devices.emulation.machine import RACES
    monkeypatch.setattr(emulated, "EmulatedCuda", partial(emulated.EmulatedCuda, RACES))
    monkeypatch.setattr(on_devices, "current", request.param)
    return str(request.param)


@pytest.fixture
def same_numbers() -> None:
    """Tests of gradients draw the same numbers, whatever ran before: a difference must not cross a corner by chance."""
    import gradient_runner
    gradient_runner.RNG.bit_generator.state = gradient_runner.START
