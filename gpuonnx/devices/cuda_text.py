"""From contract.Kernel to CUDA C++ text: the symbol, and the files of kernels/cuda in the place of their #include."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from gpuonnx.kernels.contract import Kernel

SOURCES = Path(__file__).parents[1] / "kernels" / "cuda"
INCLUDE_COMMON = '#include "common.cuh"\n'
INCLUDE = re.compile(r'^#include "(\w+\.cuh?)"\n', re.M)


@cache
def source(name: str) -> str:
    return (SOURCES / name).read_text().replace("#pragma once\n", "\n")


def expanded(text: str, name: str, seen: set[str]) -> str:
    """The text of file `name` with every other file written out where it is first included; #line keeps names and numbers."""
    def one(found: re.Match[str]) -> str:
        wanted, line = found[1], text.count("\n", 0, found.start()) + 2
        if wanted in seen:
            return "\n"
        seen.add(wanted)
        return f'#line 1 "{wanted}"\n{expanded(source(wanted), wanted, seen)}#line {line} "{name}"\n'
    return INCLUDE.sub(one, text)


def symbol_of(kernel: Kernel) -> str:
    """A C identifier that names the kernel and its key; the same in every process."""
    name = re.sub(r"\W", "_", kernel.name)
    return f"{name}_{hashlib.sha256(repr((kernel.name, kernel.key)).encode()).hexdigest()[:16]}"


def texts(kernels: Iterable[Kernel]) -> dict[str, str]:
    """symbol -> text, which starts with the line that includes common.cuh."""
    out = {}
    for kernel in kernels:
        symbol = symbol_of(kernel)
        if symbol not in out:
            out[symbol] = INCLUDE_COMMON + expanded(kernel.make(symbol), f"{symbol}.cu", {"common.cuh"})
    return out


def whole(text: str) -> str:
    """The text with common.cuh written out: what NVRTC compiles."""
    return text.replace(INCLUDE_COMMON, source("common.cuh") + '#line 1 "kernel.cu"\n')
