"""Kin of exp in float32 vectors: x = n ln 2 + r, exp(r) = 1 + p(r), then a power of two."""
from __future__ import annotations

import math
from typing import Any

from gpuonnx.kernels.cpu.scalars import EXP, clamp, number, polynomial, reduced

LARGE = 20.0


def exp_minus_one(b: Any, x: Any) -> Any:
    """expm1: 2**n p + (2**n - 1), which loses nothing near 0; where the 1 no longer counts, exp."""
    x = clamp(b, x, -104.0, 89.0)
    n, r = reduced(b, x)
    p = b.fmul(r, polynomial(b, r, EXP[:-1]))
    one = number(b, 1, x)
    scale = b.scale_by_power(one, b.pick("<", n, number(b, LARGE * 2, x)))
    return b.select(b.fcmp(">", x, number(b, LARGE, x)), b.scale_by_power(b.fadd(one, p), n), b.fma(scale, p, b.fsub(scale, one)))


def exp_of_two(b: Any, x: Any) -> Any:
    """2**x"""
    x = clamp(b, x, -151.0, 129.0)
    n = b.intrinsic("llvm.rint", x)
    return b.scale_by_power(polynomial(b, b.fmul(b.fsub(x, n), number(b, math.log(2), x)), EXP), n)
