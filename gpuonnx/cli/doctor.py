"""Say what this machine has for running models, what is missing, and the mend."""
from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gpuonnx

PACKAGES = ("numpy", "onnx", "ml_dtypes", "llvmlite", "numba", "rich", "platformdirs")
CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
NVRTC = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc-cu13")
WATCHED = ("avx2", "fma", "f16c", "avx512f", "avx512vnni", "avx512bf16", "avx512fp16", "amx-int8", "neon", "dotprod", "sve")


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def execute(args: argparse.Namespace) -> int:
    """Exit code 0: a missing GPU is no fault."""
    found = findings()
    if args.json:
        print(json.dumps(found))
    else:
        _print(found)
    return 0


def findings() -> dict[str, Any]:
    from gpuonnx.codegen.cache import KernelCache
    cache = KernelCache()
    return {
        "gpuonnx": gpuonnx.__version__, "python": sys.version.split()[0], "platform": platform.platform(),
        "packages": {name: installed(name) for name in PACKAGES}, "cpu": cpu(),
        "gpu": gpu(), "cache": {"folder": str(cache.folder), "writable": writable(str(cache.folder)), **cache.sizes()},
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    from gpuonnx.codegen.native import host
    from gpuonnx.config import cgroup_quota, default_threads
    features = host().features.split(",")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": host().cpu, "features": [name for name in WATCHED if f"+{name}" in features], "usable_cpus": usable,
            "quota": cgroup_quota(), "threads": default_threads()}


def gpu() -> dict[str, Any]:
    """Driver, packages, and what `device="cuda"` says."""
    driver = driver_version()
    found: dict[str, Any] = {
        "driver_cuda": None if driver is None else f"{driver // 1000}.{driver % 1000 // 10}",
        "cupy": {name: v for name in CUPY if (v := installed(name))},
        "nvrtc": any(installed(name) for name in NVRTC),
        "works": False, "says": "",
    }
    from gpuonnx.devices.choose import accelerator_for
    from gpuonnx.errors import GpuOnnxError
    try:
        accelerator_for("cuda")
        found["works"] = True
    except (GpuOnnxError, ImportError) as error:
        found["says"] = str(error)
    found["mend"] = mend(driver, found)
    return found


def driver_version() -> int | None:
    """CUDA version that the NVIDIA driver knows, as 1000 * major + 10 * minor; None without a driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        number = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
            return number.value
    return None


def mend(driver: int | None, found: dict[str, Any]) -> str:
    """What to do to get the GPU to work."""
    if found["works"]:
        return ""
    if driver is None:
        return "no NVIDIA driver was found: install one if this machine has an NVIDIA GPU, or start the container with --gpus all"
    if driver < 12000:
        return "the NVIDIA driver is older than CUDA 12: update it"
    if not found["cupy"]:
        return f"pip install 'gpuonnx[cuda{13 if driver >= 13000 else 12}]'"
    if len(found["cupy"]) > 1:
        return f"several CuPy packages get in each other's way: pip uninstall {' '.join(found['cupy'])}, then install one"
    return ""


def writable(folder: str) -> bool:
    """Whether the folder, or the nearest that is there above it, can be written."""
    place = os.path.abspath(folder)
    while not os.path.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    return os.access(place, os.W_OK)


def _print(found: dict[str, Any]) -> None:
    from gpuonnx.cli.cache import size_of
    about, card, cache = found["cpu"], found["gpu"], found["cache"]
    lines = [f"gpuonnx {found['gpuonnx']}, Python {found['python']}, {found['platform']}",
             "packages  " + ", ".join(f"{name} {v or 'MISSING'}" for name, v in found["packages"].items()),
             f"CPU       {about['name']} ({', '.join(about['features']) or 'no vector features known'}); {about['usable_cpus']} usable"
             + (f", quota {about['quota']:g}" if about["quota"] else "") + f"; {about['threads']} threads by default",
             f"cache     {cache['folder']} ({'writable' if cache['writable'] else 'NOT writable: set GPUONNX_CACHE_DIR'}), "
             f"{cache['kernels'][0]} kernels, {size_of(cache['kernels'][1] + cache['blobs'][1])}",
             f"GPU       {'works' if card['works'] else 'is not used'}; driver for CUDA {card['driver_cuda'] or '-'}; "
             f"CuPy {', '.join(f'{n} {v}' for n, v in card['cupy'].items()) or '-'}; NVRTC from a wheel: {'yes' if card['nvrtc'] else 'no'}"]
    lines += [f"          {text}" for text in (*card["says"].splitlines(), card["mend"]) if text]
    missing = [name for name, v in found["packages"].items() if v is None]
    if missing:
        lines.append(f"mend      pip install {' '.join(missing)}")
    print("\n".join(lines))
