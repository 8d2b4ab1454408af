"""float32 x ** y as vector code: 2 ** (y * log2 x) in float64, so that rounding to float32 is the only error worth naming."""
from __future__ import annotations

import math
from typing import Any

import llvmlite.ir as ir

from gpuonnx.kernels.cpu.lanes import Splat

ODD_SERIES = tuple(2 / (math.log(2) * k) for k in (15, 13, 11, 9, 7, 5, 3, 1))
EXP2 = tuple(math.log(2) ** k / math.factorial(k) for k in range(9, -1, -1))
ROOT_HALF, MANTISSA, BIAS = 0x3FE6A09E667F3BCD, (1 << 52) - 1, 1023
MOST = 400.0


def _numbers(kind: Any, value: float) -> Any:
    return Splat(kind, value)


def _series(b: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    total = _numbers(x.type, coefficients[0])
    for c in coefficients[1:]:
        total = b.fma(total, x, _numbers(x.type, c))
    return total


def _log2(b: Any, x: Any, kind: Any, word: Any, half: Any) -> Any:
    """log2 of a positive normal float64: exponent + atanh series of (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2))."""
    shifted = b.sub(b.bitcast(x, word), Splat(word, ROOT_HALF))
    exponent = b.sitofp(b.trunc(b.ashr(shifted, Splat(word, 52)), half), kind)
    m = b.bitcast(b.add(b.and_(shifted, Splat(word, MANTISSA)), Splat(word, ROOT_HALF)), kind)
    one = _numbers(kind, 1.0)
    s = b.fdiv(b.fsub(m, one), b.fadd(m, one))
    return b.fma(s, _series(b, b.fmul(s, s), ODD_SERIES), exponent)


def _exp2(b: Any, t: Any, kind: Any, word: Any, half: Any) -> Any:
    """2 ** t for |t| <= MOST."""
    n = b.intrinsic("llvm.rint", t)
    scale = b.shl(b.add(b.sext(b.fptosi(n, half), word), Splat(word, BIAS)), Splat(word, 52))
    return b.fmul(_series(b, b.fsub(t, n), EXP2), b.bitcast(scale, kind))


def power(b: Any, x: Any, y: Any) -> Any:
    """C's pow, its special cases included."""
    count = x.type.count
    kind, word, half = (ir.VectorType(t, count) for t in (ir.DoubleType(), ir.IntType(64), ir.IntType(32)))

    def of(value: float) -> Any:
        return _numbers(x.type, value)
    zero, one, infinite = of(0.0), of(1.0), of(math.inf)
    size, exponent = b.intrinsic("llvm.fabs", x), b.intrinsic("llvm.fabs", y)
    inside = b.and_(b.fcmp_ordered(">", size, zero), b.fcmp_ordered("<", size, infinite))
    log = _log2(b, b.fpext(b.select(inside, size, one), kind), kind, word, half)
    edge = b.select(b.fcmp_ordered("==", size, zero), of(-math.inf), of(math.inf))
    log = b.select(inside, log, b.fpext(edge, kind))
    t = b.fmul(log, b.fpext(y, kind))
    high, low = _numbers(kind, MOST), _numbers(kind, -MOST)
    t = b.select(b.fcmp_ordered("<", t, high), t, high)
    t = b.select(b.fcmp_ordered(">", t, low), t, low)
    value = b.fptrunc(_exp2(b, t, kind, word, half), x.type)
    floor = b.intrinsic("llvm.floor", y)
    whole = b.fcmp_ordered("==", floor, y)
    half_floor = b.intrinsic("llvm.floor", b.fmul(y, of(0.5)))
    odd = b.and_(whole, b.fcmp_ordered("!=", b.fadd(half_floor, half_floor), y))
    negative = b.icmp_signed("<", b.bitcast(x, half), Splat(half, 0))
    value = b.select(b.and_(negative, odd), b.fneg(value), value)
    fraction = b.and_(b.fcmp_ordered("<", x, zero), b.and_(b.fcmp_ordered("<", size, infinite), b.fcmp_ordered("!=", floor, y)))
    lost = b.or_(fraction, b.fcmp_unordered("uno", x, y))
    value = b.select(lost, of(math.nan), value)
    unit = b.and_(b.fcmp_ordered("==", size, one), b.fcmp_ordered("==", exponent, infinite))
    always = b.or_(b.or_(unit, b.fcmp_ordered("==", y, zero)), b.fcmp_ordered("==", x, one))
    return b.select(always, one, value)
