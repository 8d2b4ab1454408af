"""NVRTC from its wheel, through ctypes: compiles CUDA texts for any architecture without a GPU and reads what ptxas says."""
from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

FLAGS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v")
RESOURCES = re.compile(r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
                       r".*?Used (\d+) registers([^\n]*)", re.S)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture; bytes, except `registers`."""

    name: str
    stack: int
    spilled: int
    registers: int
    shared: int


@cache
def library() -> Any:
    from cuda.pathfinder import load_nvidia_dynamic_lib
    return ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)


@cache
def includes() -> str:
    from cuda.pathfinder import find_nvidia_header_directory
    return f"-I{find_nvidia_header_directory('cudart')}"


def resources(text: str, architecture: int) -> list[Resources]:
    """Compile; raises RuntimeError with NVRTC's log."""
    nvrtc, program, length = library(), ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    options = [o.encode() for o in (*FLAGS, includes(), f"-arch=sm_{architecture}")]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(length))
    log = ctypes.create_string_buffer(length.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(log.value.decode())
    found = []
    for m in RESOURCES.finditer(log.value.decode()):
        shared = re.search(r"(\d+) bytes smem", m[6])
        found.append(Resources(m[1], int(m[2]), int(m[3]) + int(m[4]), int(m[5]), int(shared[1]) if shared else 0))
    return found
