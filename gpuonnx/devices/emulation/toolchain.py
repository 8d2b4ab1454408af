"""Kernel texts to shared objects by the host's C++ compiler: many texts in one translation unit, a precompiled header, a cache by hash."""
from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpuonnx.devices.emulation.translate import translate
from gpuonnx.errors import CompileError, DeviceError

HERE = Path(__file__).parent
COMMON = Path(__file__).parents[2] / "kernels" / "cuda" / "common.cuh"
RUNTIME = ("emu_rt.cpp", "emu_check.cpp")
BATCH = 48


@cache
def compiler() -> tuple[str, ...]:
    """The command of a C++ compiler: $CXX, g++, c++, or the one in the ziglang wheel."""
    named = os.environ.get("CXX")
    if named:
        return tuple(named.split())
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return (name,)
    try:
        import ziglang  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise DeviceError("emulated-cuda compiles kernels with a C++ compiler and found none; install g++ or run: pip install ziglang") from None
    return (sys.executable, "-m", "ziglang", "c++")


@cache
def _is_gcc() -> bool:
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout
    return "clang" not in version.lower()


@cache
def root() -> Path:
    """The folder of the emulator's cache; one that is private to this process where the usual one cannot be written."""
    from platformdirs import user_cache_dir
    folder = Path(os.environ.get("GPUONNX_CACHE_DIR") or user_cache_dir("gpuonnx")) / "emulated"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        folder = Path()
    return Path(tempfile.mkdtemp(prefix="gpuonnx-emulated-"))


@dataclass(frozen=True)
class Flavour:
    """How kernels are compiled: instrumented for the memory checks or not."""

    checked: bool

    def flags(self) -> list[str]:
        flags = ["-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off", "-fno-math-errno",
                 f"-I{HERE}", f"-I{COMMON.parent}"]
        if platform.machine() in ("x86_64", "AMD64"):
            flags += ["-mf16c", "-mfma"]
        if not self.checked:
            return [*flags, "-O1"]
        if not _is_gcc():
            raise DeviceError("the emulator's memory checks need g++; install it or set CXX=g++")
        return [*flags, "-O1", "-g", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(_explain(done.stderr))


def _explain(stderr: str) -> str:
    """The first errors of the compiler, which name the kernel as `<symbol>.cu:line`."""
    errors = [line for line in stderr.splitlines() if re.search(r"\berror\b", line)]
    return "\n".join(errors[:8]) or stderr[-2000:]


@cache
def _sources() -> str:
    names = [HERE / "cuda_emu.h", HERE / "emu_rt.h", *(HERE / n for n in RUNTIME), COMMON]
    digest = hashlib.sha256(" ".join(compiler()).encode() + platform.machine().encode())
    for path in names:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join((_sources(), *parts)).encode()).hexdigest()[:32]


def _install(built: Path, target: Path) -> Path:
    os.replace(built, target)
    return target


@cache
def runtime() -> Path:
    """The shared object of fibers and checks, built once."""
    target = root() / f"runtime-{_hash('runtime')}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=root()) as folder:
            built = Path(folder) / "runtime.so"
            extra = [] if platform.machine() in ("x86_64", "AMD64") else ["-DEMU_UCONTEXT"]
            _run([*compiler(), "-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-w", *extra, *(str(HERE / n) for n in RUNTIME), "-o", str(built)])
            _install(built, target)
    return target


@cache
def _header(flavour: Flavour) -> Path:
    """A header of both preludes, precompiled where the compiler is g++."""
    folder = root() / f"prelude-{_hash(*flavour.flags())}"
    header = folder / "prelude.h"
    if header.exists():
        return header
    with tempfile.TemporaryDirectory(dir=root()) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        (made / "prelude.h").write_text('#include "cuda_emu.h"\n#include "common.cuh"\n')
        if _is_gcc():
            _run([*compiler(), *flavour.flags(), "-x", "c++-header", str(made / "prelude.h"), "-o", str(made / "prelude.h.gch")])
        try:
            os.rename(made, folder)
        except OSError:
            if not header.exists():
                raise
    return header


def _compile(texts: Mapping[str, str], flavour: Flavour) -> Path:
    """One shared object that defines all symbols."""
    source = "".join(translate(symbol, text) for symbol, text in texts.items())
    target = root() / f"{_hash(source, *flavour.flags())}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=root()) as folder:
        cpp, obj, built = (Path(folder) / name for name in ("kernels.cpp", "kernels.o", "kernels.so"))
        cpp.write_text(source)
        _run([*compiler(), *flavour.flags(), "-include", str(_header(flavour)), "-c", str(cpp), "-o", str(obj)])
        _run([*compiler(), "-shared", str(obj), "-o", str(built)])
        return _install(built, target)


def build(texts: Mapping[str, str], flavour: Flavour) -> dict[str, Path]:
    """symbol -> the shared object that defines it; texts that are not in the cache are compiled together."""
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    notes: dict[str, Path] = {}
    for symbol, text in texts.items():
        note = notes[symbol] = root() / f"{_hash(symbol, text, *flavour.flags())}.at"
        try:
            path = root() / note.read_text()
        except OSError:
            path = root() / "none"
        if path.exists():
            found[symbol] = path
        else:
            missing[symbol] = text
    symbols = list(missing)
    for at in range(0, len(symbols), BATCH):
        part = {s: missing[s] for s in symbols[at:at + BATCH]}
        path = _compile(part, flavour)
        for symbol in part:
            found[symbol] = path
            with tempfile.NamedTemporaryFile("w", dir=root(), delete=False) as file:
                file.write(path.name)
            os.replace(file.name, notes[symbol])
    return found
