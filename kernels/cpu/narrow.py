"""Floats of one byte and less as vectors: widened to float32, rounded to nearest even, saturating (OCP 8-bit, MX formats)."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

I8, I32 = ir.IntType(8), ir.IntType(32)


@dataclass(frozen=True)
class Small:
    """exponent bits, mantissa bits, exponent bias; kind: ieee (has infinities), fn (NaN is all ones), uz (NaN is 0x80, no -0),
    finite (no NaN)."""

    exponent: int
    mantissa: int
    bias: int
    kind: str

    @property
    def bits(self) -> int:
        return self.exponent + self.mantissa

    @property
    def largest(self) -> int:
        """The code of the largest finite value."""
        if self.kind == "fn":
            return (1 << self.bits) - 2
        return ((1 << self.exponent) - 1 << self.mantissa) - 1 if self.kind == "ieee" else (1 << self.bits) - 1


SMALL = {"f8e4m3fn": Small(4, 3, 7, "fn"), "f8e4m3fnuz": Small(4, 3, 8, "uz"), "f8e5m2": Small(5, 2, 15, "ieee"),
         "f8e5m2fnuz": Small(5, 2, 16, "uz"), "f4e2m1": Small(2, 1, 1, "finite"), "f6e2m3": Small(2, 3, 1, "finite"),
         "f6e3m2": Small(3, 2, 3, "finite")}


class Words:
    """i32 vector arithmetic with Python constants."""

    def __init__(self, b: Any, count: int) -> None:
        self.b, self.count, self.kind = b, count, ir.VectorType(I32, count)
        self.real = ir.VectorType(ir.FloatType(), count)

    def __call__(self, value: int) -> Any:
        return ir.Constant(self.kind, [value] * self.count)

    def float(self, value: float) -> Any:
        return ir.Constant(self.real, [value] * self.count)


def widen(b: Any, raw: Any, name: str) -> Any:
    """i8 codes as float32."""
    w = Words(b, raw.type.count)
    x = b.zext(raw, w.kind)
    if name == "f8e8m0":
        scale = b.select(b.icmp_signed("==", x, w(0)), w(0x00400000), b.shl(x, w(23)))
        return b.select(b.icmp_signed("==", x, w(255)), w.float(math.nan), b.bitcast(scale, w.real))
    f = SMALL[name]
    sign = b.shl(b.and_(b.lshr(x, w(f.bits)), w(1)), w(31))
    e, m = b.and_(b.lshr(x, w(f.mantissa)), w((1 << f.exponent) - 1)), b.and_(x, w((1 << f.mantissa) - 1))
    normal = b.or_(b.shl(b.add(e, w(127 - f.bias)), w(23)), b.shl(m, w(23 - f.mantissa)))
    tiny = b.bitcast(b.fmul(b.uitofp(m, w.real), w.float(2.0 ** (1 - f.bias - f.mantissa))), w.kind)
    bits = b.or_(sign, b.select(b.icmp_signed("==", e, w(0)), tiny, normal))
    magnitude = b.and_(x, w((1 << f.bits) - 1))
    if f.kind == "ieee":
        special = b.or_(sign, b.select(b.icmp_signed("==", m, w(0)), w(0x7F800000), w(0x7FC00000)))
        bits = b.select(b.icmp_signed("==", e, w((1 << f.exponent) - 1)), special, bits)
    elif f.kind == "fn":
        bits = b.select(b.icmp_signed("==", magnitude, w((1 << f.bits) - 1)), w(0x7FC00000), bits)
    elif f.kind == "uz":
        bits = b.select(b.icmp_signed("==", x, w(0x80)), w(0x7FC00000), bits)
    return b.bitcast(bits, w.real)


def narrow(b: Any, value: Any, name: str) -> Any:
    """float32 as i8 codes."""
    w = Words(b, value.type.count)
    bits = b.bitcast(value, w.kind)
    magnitude = b.and_(bits, w(0x7FFFFFFF))
    nan = b.icmp_signed(">", magnitude, w(0x7F800000))
    if name == "f8e8m0":
        exponent = b.add(b.lshr(magnitude, w(23)), b.and_(b.lshr(magnitude, w(22)), w(1)))
        code = b.select(b.icmp_signed(">", exponent, w(254)), w(254), exponent)
        return b.trunc(b.select(nan, w(255), code), ir.VectorType(I8, w.count))
    f = SMALL[name]
    sign = b.shl(b.lshr(bits, w(31)), w(f.bits))
    scaled = b.fmul(b.bitcast(magnitude, w.real), w.float(2.0 ** (f.bias + f.mantissa - 1)))
    below = b.icmp_signed("<", magnitude, w(127 - f.bias + 1 << 23))
    safe = b.select(below, scaled, w.float(0.0))
    tiny = b.fptosi(b.intrinsic("llvm.rint", safe), w.kind)
    odd = b.and_(b.lshr(magnitude, w(23 - f.mantissa)), w(1))
    rounded = b.lshr(b.add(b.add(magnitude, w((1 << (22 - f.mantissa)) - 1)), odd), w(23 - f.mantissa))
    code = b.select(below, tiny, b.sub(rounded, w(127 - f.bias << f.mantissa)))
    code = b.select(b.icmp_signed(">", code, w(f.largest)), w(f.largest), code)
    infinite = b.icmp_signed("==", magnitude, w(0x7F800000))
    if f.kind == "ieee":
        code = b.select(infinite, w(f.largest + 1), code)
        code = b.select(nan, w(f.largest + 1 | 1 << (f.mantissa - 1)), code)
    elif f.kind == "fn":
        code = b.select(nan, w((1 << f.bits) - 1), code)
    out = b.or_(sign, code)
    if f.kind == "finite":
        out = b.select(nan, b.xor(sign, w(1 << f.bits)), out)
    if f.kind == "uz":
        out = b.select(nan, w(0x80), b.select(b.icmp_signed("==", code, w(0)), w(0), out))
    return b.trunc(out, ir.VectorType(I8, w.count))
