"""NVRTC from its wheel, through ctypes: compiles CUDA texts for any architecture without a GPU and reads what ptxas says."""
from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

FLAGS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")
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


def compiled(text: str, options: tuple[str, ...]) -> tuple[str, str]:
    """(log, PTX); raises RuntimeError with NVRTC's log. The PTX is empty where the options name a real architecture."""
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    encoded = [o.encode() for o in (*FLAGS, includes(), *options)]
    failed = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
    log = _text(program, "ProgramLog")
    ptx = "" if failed else _text(program, "PTX")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(log)
    return log, ptx


def _text(program: ctypes.c_void_p, what: str) -> str:
    length = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(length))
    text = ctypes.create_string_buffer(length.value + 1)
    getattr(library(), f"nvrtcGet{what}")(program, text)
    return text.value.decode()


def resources(text: str, architecture: int) -> list[Resources]:
    """Compile; raises RuntimeError with NVRTC's log."""
    log, _ = compiled(text, ("--ptxas-options=-v", f"-arch=sm_{architecture}"))
    found = []
    for m in RESOURCES.finditer(log):
        shared = re.search(r"(\d+) bytes smem", m[6])
        found.append(Resources(m[1], int(m[2]), int(m[3]) + int(m[4]), int(m[5]), int(shared[1]) if shared else 0))
    return found
