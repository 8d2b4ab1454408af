"""From contract.Kernel to CUDA C++ text: the symbol, and common.cuh in the place of its #include."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from gpuonnx.kernels.contract import Kernel

COMMON = Path(__file__).parents[1] / "kernels" / "cuda" / "common.cuh"
INCLUDE_COMMON = '#include "common.cuh"\n'


@cache
def common() -> str:
    return COMMON.read_text().replace("#pragma once\n", "")


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
            out[symbol] = INCLUDE_COMMON + kernel.make(symbol)
    return out


def whole(text: str) -> str:
    """The text with common.cuh written out: what NVRTC compiles."""
    return text.replace(INCLUDE_COMMON, common() + '#line 1 "kernel.cu"\n')
