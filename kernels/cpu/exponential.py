"""exp and its kin in float32 vectors: x = n ln 2 + r, exp(r) = 1 + p(r), then a power of two.

Where a vector has no instruction that scales by a power, n is added to the exponent: results that would be subnormal are 0.
"""
from __future__ import annotations

import math
from typing import Any

from gpuonnx.kernels.cpu.lanes import I32, Splat
from gpuonnx.kernels.cpu.scalars import LN2_HIGH, LN2_LOW, clamp, number, polynomial

EXP = (0.0013836794532835484, 0.008374856784939766, 0.041668228805065155, 0.16666419804096222, 0.49999991059303284, 1, 1)
LARGE, LEAST, MOST = 20.0, -87.33654, 88.72283
# Added to a float32 it rounds to an integer, which then stands in the lowest bits.
ROUND = 1.5 * 2.0**23


def exp(b: Any, x: Any) -> Any:
    """exp of any x."""
    if b.features.get("avx512f") and b.width == 16:
        n, r = reduced(b, clamp(b, x, -104.0, 89.0))
        return b.scale_by_power(polynomial(b, r, EXP), n)
    moved = b.fma(x, number(b, math.log2(math.e), x), number(b, ROUND, x))
    n = b.fsub(moved, number(b, ROUND, x))
    r = b.fma(n, number(b, -LN2_LOW, x), b.fma(n, number(b, -LN2_HIGH, x), x))
    whole = b.vector(I32)
    bits = b.shl(b.bitcast(moved, whole), Splat(whole, 23))
    result = b.bitcast(b.add(b.bitcast(polynomial(b, r, EXP), whole), bits), x.type)
    result = b.select(b.fcmp_ordered("<", x, number(b, LEAST, x)), number(b, 0, x), result)
    return b.select(b.fcmp_ordered(">", x, number(b, MOST, x)), number(b, math.inf, x), result)


def reduced(b: Any, x: Any) -> tuple[Any, Any]:
    """x = n ln 2 + r"""
    n = b.intrinsic("llvm.rint", b.fmul(x, number(b, math.log2(math.e), x)))
    return n, b.fma(n, number(b, -LN2_LOW, x), b.fma(n, number(b, -LN2_HIGH, x), x))


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
