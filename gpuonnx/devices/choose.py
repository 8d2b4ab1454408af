"""The device that a name stands for; `auto` says once what it chose and why."""
from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gpuonnx.errors import DeviceError

if TYPE_CHECKING:
    from gpuonnx.devices.device import Accelerator

_said: set[str] = set()


def accelerator_for(name: str) -> tuple[str, Accelerator | None]:
    """(device name, accelerator or None for the CPU). Raises DeviceError with the cause and the mend."""
    if name == "cpu":
        return name, None
    if name == "emulated-cuda":
        from gpuonnx.devices.emulated import EmulatedCuda
        return name, EmulatedCuda()
    if name == "auto":
        return _auto()
    if name == "cuda" or name.startswith("cuda:"):
        number = name.partition(":")[2] or "0"
        if not number.isdecimal():
            raise DeviceError(f"device {name!r}: the part after the colon must be a device number, as in 'cuda:1'")
        return name, _cuda(int(number))
    raise DeviceError(f"device {name!r} is none of auto, cpu, cuda, cuda:N, emulated-cuda")


def _cuda(number: int) -> Accelerator:
    try:
        from gpuonnx.devices.cuda import Cuda
    except ImportError as error:
        raise DeviceError(f"an NVIDIA GPU cannot be used: {error}; `gpuonnx doctor` says what to install") from error
    return Cuda(number)


def _auto() -> tuple[str, Accelerator | None]:
    reason = "CuPy is not installed: pip install 'gpuonnx[cuda13]' (driver 580 or newer) or pip install 'gpuonnx[cuda12]' to use an NVIDIA GPU"
    if "cupy" in sys.modules or find_spec("cupy") is not None:
        try:
            return "cuda", _cuda(0)
        except DeviceError as error:
            reason = str(error).splitlines()[0]
    if reason not in _said:
        _said.add(reason)
        _say(f"running on the CPU: {reason}")
    return "cpu", None


def _say(message: str) -> None:
    """To the logger `gpuonnx`; where `logging` was never imported nobody can have asked to hear it."""
    if "logging" in sys.modules:
        sys.modules["logging"].getLogger("gpuonnx").info(message)
