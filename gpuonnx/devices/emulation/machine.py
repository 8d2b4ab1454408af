"""The emulated machine: memory known to the checker, kernels loaded from shared objects, launches run at once on the calling thread."""
from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpuonnx.devices.emulation.toolchain import Flavour, build, runtime
from gpuonnx.devices.emulation.translate import is_cooperative
from gpuonnx.errors import DeviceError

PLAIN, BOUNDS, RACES = 0, 1, 2
FORWARD, REVERSE, SHUFFLED, UNFAIR = 0, 1, 2, 3
POISON = 0xCB
ALIGNMENT = 256


class EmulationError(DeviceError):
    """A kernel did what the emulator forbids: the message says thread, place and cause."""


@dataclass(frozen=True)
class Function:
    """A loaded kernel."""

    symbol: str
    address: int
    cooperative: bool
    library: Path


class Memory:
    """One allocation of exactly `nbytes`, filled with POISON and known to the checker."""

    def __init__(self, machine: Machine, nbytes: int) -> None:
        self.size = nbytes
        raw = np.full(nbytes + 2 * ALIGNMENT, POISON, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self.bytes = raw[start:start + nbytes]
        self.address = raw.ctypes.data + start
        self._machine = machine
        machine.register(self.address, nbytes)

    def __del__(self) -> None:
        if hasattr(self, "_machine"):
            self._machine.unregister(self.address, self.size)


class Machine:
    """`level` PLAIN, BOUNDS or RACES; `order` is the schedule of threads, `seed` its random numbers."""

    def __init__(self, level: int = PLAIN, order: int = FORWARD, seed: int = 0) -> None:
        self.level, self.order, self.seed = level, order, seed
        self._runtime = _runtime()
        self._bases: dict[Path, int] = {}

    def register(self, address: int, nbytes: int) -> None:
        if nbytes and self.level:
            self._runtime.emu_register(address, nbytes)

    def unregister(self, address: int, nbytes: int) -> None:
        if nbytes and self.level:
            self._runtime.emu_unregister(address)

    def load(self, texts: Mapping[str, str]) -> dict[str, Function]:
        """Compile kernel texts (symbol -> text) together and load them."""
        places = build(texts, Flavour(self.level > PLAIN))
        out = {}
        for symbol, text in texts.items():
            library = _library(places[symbol])
            if self.level and places[symbol] not in self._bases:
                self._bases[places[symbol]] = _announce(self._runtime, places[symbol])
            address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
            out[symbol] = Function(symbol, address or 0, is_cooperative(text), places[symbol])
        return out

    def launch(self, function: Function, grid: int, threads: int, shared: int, ctx: int, args: int) -> None:
        """Run to the end; `ctx` and `args` are addresses."""
        with _LOCK:
            failed = self._runtime.emu_launch(function.address, ctx, args, grid, threads, shared, int(function.cooperative), self.level,
                                              self.order, self.seed)
            message = ctypes.string_at(ctypes.addressof(_error(self._runtime))).decode() if failed else ""
        if failed:
            raise EmulationError(f"{function.symbol}: {message}{self._place(function, message)}")

    def _place(self, function: Function, message: str) -> str:
        found = re.search(r"pc (0x[0-9a-f]+)", message)
        base = self._bases.get(function.library)
        if not found or base is None:
            return ""
        offset = hex(int(found[1], 16) - base - 1)
        done = subprocess.run(["addr2line", "-e", str(function.library), offset], capture_output=True, text=True)
        return f" at {done.stdout.strip()}"


_LOCK = threading.Lock()
_libraries: dict[Path, ctypes.CDLL] = {}
_loaded: list[ctypes.CDLL] = []


def _runtime() -> ctypes.CDLL:
    if not _loaded:
        library = ctypes.CDLL(str(runtime()), mode=ctypes.RTLD_GLOBAL)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        library.emu_register.argtypes, library.emu_register.restype = [pointer, size], None
        library.emu_unregister.argtypes, library.emu_unregister.restype = [pointer], None
        library.emu_image.argtypes, library.emu_image.restype = [pointer, pointer], None
        library.emu_launch.argtypes = [pointer, pointer, pointer, ctypes.c_uint, ctypes.c_int, size, *[ctypes.c_int] * 3, ctypes.c_uint]
        _loaded.append(library)
    return _loaded[0]


def _error(library: ctypes.CDLL) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * 2048).in_dll(library, "emu_error")


def _library(path: Path) -> ctypes.CDLL:
    if path not in _libraries:
        _libraries[path] = ctypes.CDLL(str(path))
    return _libraries[path]


def _announce(library: ctypes.CDLL, path: Path) -> int:
    """Tell the checker where a kernel image lies (its constants may be read); returns its base address."""
    spans = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    low, high = min(int(a, 16) for a, _ in spans), max(int(b, 16) for _, b in spans)
    library.emu_image(low, high)
    return low
