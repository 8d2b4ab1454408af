"""Integer products by pairs of 16-bit factors (pmaddwd): a step of the contraction of `micro.py` is two k, summed exactly in i32.

Both operands come less their zero points, so no sum needs a correction; every 8-bit type and any zero points fit in 16 bits.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from gpuonnx.kernels.cpu.gemm import pack_constant

PAIR = 2
INSTRUCTIONS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def available() -> bool:
    """Whether this machine has the instruction."""
    from gpuonnx.kernels.cpu.micro import target
    return target().name != "neon"


class Words:
    """What integer products have in common: one k is 32 bits of A beside 32 bits of B, sums are i32."""

    dtype, unit, unroll = "i32", 4, 4

    def __init__(self) -> None:
        from gpuonnx.kernels.cpu.lanes import I32
        self.scalar = I32

    def tile(self, vectors: int) -> int:
        """Rows of the largest tile of `vectors` vectors a row."""
        from gpuonnx.kernels.cpu.micro import target
        return target().tile(vectors)

    def zero(self, b: Any) -> Any:
        return b.const(0, "i32")

    def panel(self, b: Any, pointer: Any) -> Any:
        return b.load(pointer, typ=b.vector(self.scalar), align=4)

    def join(self, b: Any, x: Any, y: Any) -> Any:
        return b.add(x, y)


class Pairs(Words):
    """The arithmetic: one k is two int16 of A beside two int16 of B. Products need a register before they are added."""

    key, unroll = "pairs", 2

    def tile(self, vectors: int) -> int:
        """As many rows as leave registers for a line of B, a value of A and a product."""
        from gpuonnx.kernels.cpu.micro import target
        return min(super().tile(vectors), (target().registers - 2 - vectors) // vectors)

    def dot(self, b: Any, a: Any, column: Any, total: Any) -> Any:
        return b.add(total, self.madd(b, a, column) if available() else self.spelled(b, a, column))

    def madd(self, b: Any, a: Any, column: Any) -> Any:
        import llvmlite.ir as ir
        kind = ir.VectorType(ir.IntType(16), PAIR * b.width)
        x, y = b.bitcast(a, kind), b.bitcast(column, kind)
        return b.intrinsic(INSTRUCTIONS[b.width], x, y, result=b.vector(self.scalar), overload=False)

    def spelled(self, b: Any, a: Any, column: Any) -> Any:
        """Where there is no such instruction: both halves of every word, sign extended."""
        half = b.const(16, "i32")
        low = b.mul(b.ashr(b.shl(a, half), half), b.ashr(b.shl(column, half), half))
        return b.add(low, b.mul(b.ashr(a, half), b.ashr(column, half)))


def panels(matrix: np.ndarray, zero: np.ndarray | None, columns: int) -> np.ndarray:
    """[..., K, N] in 8 bits less `zero` (a number, or one a column) -> int16 [..., N / columns, K / 2, columns, 2], zero padded."""
    wide = matrix.astype(np.int16) - (np.int16(0) if zero is None else zero.astype(np.int16))
    *lead, k, n = wide.shape
    even = np.zeros((*lead, k + k % PAIR, n), np.int16)
    even[..., :k, :] = wide
    words = np.ascontiguousarray(np.moveaxis(even.reshape(*lead, -1, PAIR, n), -2, -1)).view(np.int32)[..., 0]
    return pack_constant(words, "i32", columns).view(np.int16)
