"""The scalar functions of `ir/scalar.py` as vector LLVM IR: `emit(b, e, args)` calls the function of the row's name.

`b` is a `Lanes` builder, `args` are vectors of the arguments' own element types. float32 has polynomials of its own (no
call); float64 and the rare functions call libm lane by lane. Nothing here reaches poison or a trap, whatever the data.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import llvmlite.ir as ir
import numpy as np

from gpuonnx.ir.expr import Expr
from gpuonnx.ir.types import kind
from gpuonnx.kernels.contract import ERROR_DIVIDE
from gpuonnx.kernels.cpu.lanes import Splat

Emitter = Callable[..., Any]
EMITTERS: dict[str, Emitter] = {}

LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
# Rational tanh and erf: the forms of Eigen's generic packet math.
TANH = ((-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
         1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
        (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03))
ERF = ((0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084),
       (-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667,
        0.11098505178285362, 0.49746925110067538, 1.0))
# Cephes, single precision: log on [sqrt(1/2), sqrt(2)], sin and cos on [-pi/4, pi/4], atan on [-tan(pi/8), tan(pi/8)].
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)


def emit(b: Any, e: Expr, args: list[Any]) -> Any:
    """One node of a row of the table; `args` are its emitted arguments."""
    return EMITTERS[e.op](b, e.args[0].dtype if e.dtype == "bool" else e.dtype, *args)


def has(op: str) -> bool:
    return op in EMITTERS


def row(*names: str) -> Callable[[Emitter], Emitter]:
    def declare(f: Emitter) -> Emitter:
        for name in names:
            EMITTERS[name] = f
        return f
    return declare


def real(dtype: str) -> bool:
    return kind(dtype) == "f"


def unsigned(dtype: str) -> bool:
    return kind(dtype) in "ub"


def flip(b: Any, x: Any, dtype: str) -> Any:
    """Logical not of a mask, bitwise not of integers."""
    return b.xor(x, all_ones(x.type))


def all_ones(vector: Any) -> Any:
    return Splat(vector, -1)


def number(b: Any, value: float, like: Any) -> Any:
    """A constant of the vector type of `like`."""
    element = like.type.element
    if isinstance(element, ir.IntType):
        return Splat(like.type, int(value))
    value = float(np.float32(value)) if isinstance(element, ir.FloatType) else float(value)
    return Splat(like.type, value)


# arithmetic
def _binary(name: str, whole: str) -> None:
    def emitted(b: Any, dtype: str, x: Any, y: Any) -> Any:
        return getattr(b, "f" + whole if real(dtype) else whole)(x, y)
    EMITTERS[name] = emitted


for _name in ("add", "sub", "mul"):
    _binary(_name, _name)


@row("neg")
def neg(b: Any, dtype: str, x: Any) -> Any:
    return b.fneg(x) if real(dtype) else b.sub(number(b, 0, x), x)


def _safe_divisor(b: Any, dtype: str, x: Any, y: Any, report: bool = True) -> tuple[Any, Any]:
    """(divisor that cannot trap, mask of zero divisors, which are reported); INT_MIN / -1 wraps."""
    zero = b.icmp_signed("==", y, number(b, 0, y))
    if report and dtype != "ix" and hasattr(b, "fail"):
        b.fail(zero, ERROR_DIVIDE)
    bad = zero
    if not unsigned(dtype):
        bad = b.or_(bad, b.icmp_signed("==", y, number(b, -1, y)))
    return b.select(bad, number(b, 1, y), y), zero


@row("div")
def div(b: Any, dtype: str, x: Any, y: Any) -> Any:
    if real(dtype):
        return b.fdiv(x, y)
    safe, zero = _safe_divisor(b, dtype, x, y)
    if unsigned(dtype):
        return b.select(zero, number(b, 0, x), b.udiv(x, safe))
    negated = b.icmp_signed("==", y, number(b, -1, y))
    quotient = b.select(negated, neg(b, dtype, x), b.sdiv(x, safe))
    return b.select(zero, number(b, 0, x), quotient)


@row("truncmod")
def truncmod(b: Any, dtype: str, x: Any, y: Any) -> Any:
    if real(dtype):
        return libm(b, "fmod", x, y)
    safe, _ = _safe_divisor(b, dtype, x, y)
    return (b.urem if unsigned(dtype) else b.srem)(x, safe)


@row("floormod")
def floormod(b: Any, dtype: str, x: Any, y: Any) -> Any:
    if real(dtype):
        remainder = libm(b, "fmod", x, y)
        zero = number(b, 0, x)
        differ = b.and_(b.fcmp_unordered("!=", remainder, zero), b.xor(b.fcmp_ordered("<", remainder, zero), b.fcmp_ordered("<", y, zero)))
        return b.select(differ, b.fadd(remainder, y), remainder)
    safe, zero_divisor = _safe_divisor(b, dtype, x, y)
    if unsigned(dtype):
        return b.urem(x, safe)
    remainder, zero = b.srem(x, safe), number(b, 0, x)
    differ = b.and_(b.icmp_signed("!=", remainder, zero), b.xor(b.icmp_signed("<", remainder, zero), b.icmp_signed("<", y, zero)))
    return b.select(zero_divisor, zero, b.select(differ, b.add(remainder, y), remainder))


@row("floordiv")
def floordiv(b: Any, dtype: str, x: Any, y: Any) -> Any:
    if real(dtype):
        return b.intrinsic("llvm.floor", b.fdiv(x, y))
    if unsigned(dtype):
        return div(b, dtype, x, y)
    safe, zero_divisor = _safe_divisor(b, dtype, x, y)
    quotient, zero = b.sdiv(x, safe), number(b, 0, x)
    remainder = b.sub(x, b.mul(quotient, safe))
    below = b.and_(b.icmp_signed("!=", remainder, zero), b.xor(b.icmp_signed("<", x, zero), b.icmp_signed("<", y, zero)))
    floored = b.select(below, b.sub(quotient, number(b, 1, x)), quotient)
    floored = b.select(b.icmp_signed("==", y, number(b, -1, y)), neg(b, dtype, x), floored)
    return b.select(zero_divisor, zero, floored)


def _extreme(name: str, operator: str, quiet: bool) -> None:
    """max and min let a NaN through (either side); fmax and fmin prefer the number."""
    def emitted(b: Any, dtype: str, x: Any, y: Any) -> Any:
        if not real(dtype):
            if dtype == "bool":
                return (b.or_ if operator == ">" else b.and_)(x, y)
            compare = b.icmp_unsigned if unsigned(dtype) else b.icmp_signed
            return b.select(compare(operator, x, y), x, y)
        picked = b.select(b.fcmp_ordered(operator, x, y), x, y)
        if quiet:
            return b.select(b.fcmp_unordered("uno", y, y), x, picked)
        return picked if is_number(x) else b.select(b.fcmp_unordered("uno", x, x), x, picked)
    EMITTERS[name] = emitted


def is_number(x: Any) -> bool:
    """A constant vector that is no NaN."""
    return isinstance(x, Splat) and x.number == x.number


for _name, _operator, _quiet in (("max", ">", False), ("min", "<", False), ("fmax", ">", True), ("fmin", "<", True)):
    _extreme(_name, _operator, _quiet)


@row("relu")
def relu(b: Any, dtype: str, x: Any) -> Any:
    return EMITTERS["max"](b, dtype, number(b, 0, x), x)


@row("abs")
def absolute(b: Any, dtype: str, x: Any) -> Any:
    if real(dtype):
        return b.intrinsic("llvm.fabs", x)
    return x if unsigned(dtype) else b.select(b.icmp_signed("<", x, number(b, 0, x)), neg(b, dtype, x), x)


@row("sign")
def sign(b: Any, dtype: str, x: Any) -> Any:
    zero = number(b, 0, x)
    if real(dtype):
        below = b.select(b.fcmp_ordered("<", x, zero), number(b, -1, x), x)
        return b.select(b.fcmp_ordered(">", x, zero), number(b, 1, x), below)
    above = (b.icmp_unsigned if unsigned(dtype) else b.icmp_signed)(">", x, zero)
    rest = zero if unsigned(dtype) else b.select(b.icmp_signed("<", x, zero), number(b, -1, x), zero)
    return b.select(above, number(b, 1, x), rest)


@row("reciprocal")
def reciprocal(b: Any, dtype: str, x: Any) -> Any:
    return b.fdiv(number(b, 1, x), x)


# rounding and roots
for _name, _intrinsic in (("sqrt", "sqrt"), ("floor", "floor"), ("ceil", "ceil"), ("trunc", "trunc"), ("rint", "rint")):
    EMITTERS[_name] = lambda b, dtype, x, _f=f"llvm.{_intrinsic}": b.intrinsic(_f, x) if real(dtype) else x


@row("rsqrt")
def rsqrt(b: Any, dtype: str, x: Any) -> Any:
    return b.fdiv(number(b, 1, x), b.intrinsic("llvm.sqrt", x))


# comparison and logic
def _comparison(name: str, operator: str) -> None:
    def emitted(b: Any, dtype: str, x: Any, y: Any) -> Any:
        if real(dtype):
            return (b.fcmp_unordered if operator == "!=" else b.fcmp_ordered)(operator, x, y)
        return (b.icmp_unsigned if unsigned(dtype) else b.icmp_signed)(operator, x, y)
    EMITTERS[name] = emitted


COMPARISONS = {"equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">="}
for _name, _operator in COMPARISONS.items():
    _comparison(_name, _operator)

for _name, _whole in (("and", "and_"), ("or", "or_"), ("xor", "xor"), ("bit_and", "and_"), ("bit_or", "or_"), ("bit_xor", "xor")):
    EMITTERS[_name] = lambda b, dtype, x, y, _f=_whole: getattr(b, _f)(x, y)

EMITTERS["not"] = EMITTERS["bit_not"] = lambda b, dtype, x: flip(b, x, dtype)
EMITTERS["where"] = lambda b, dtype, c, x, y: b.select(c, x, y)
EMITTERS["isnan"] = lambda b, dtype, x: b.fcmp_unordered("uno", x, x)


@row("isinf")
def isinf(b: Any, dtype: str, x: Any) -> Any:
    return b.fcmp_ordered("==", b.intrinsic("llvm.fabs", x), number(b, math.inf, x))


@row("shl")
def shl(b: Any, dtype: str, x: Any, y: Any) -> Any:
    return _shifted(b, dtype, x, y, b.shl, number(b, 0, x))


@row("shr")
def shr(b: Any, dtype: str, x: Any, y: Any) -> Any:
    zero = number(b, 0, x)
    outside = zero if unsigned(dtype) else b.select(b.icmp_signed("<", x, zero), number(b, -1, x), zero)
    return _shifted(b, dtype, x, y, b.lshr if unsigned(dtype) else b.ashr, outside)


def _shifted(b: Any, dtype: str, x: Any, y: Any, shift: Any, outside: Any) -> Any:
    width = x.type.element.width
    inside = b.icmp_unsigned("<", y, number(b, width, y))
    return b.select(inside, shift(x, b.and_(y, number(b, width - 1, y))), outside)


@row("popcount")
def popcount(b: Any, dtype: str, x: Any) -> Any:
    return b.intrinsic("llvm.ctpop", x)


# transcendental functions
def libm(b: Any, name: str, *args: Any) -> Any:
    """`name` of libm in double precision, lane by lane."""
    double = ir.DoubleType()
    single = isinstance(args[0].type.element, ir.FloatType)
    known = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(double, [double] * len(args)), name)
    out = ir.Constant(args[0].type, ir.Undefined)
    for lane in range(args[0].type.count):
        scalars = [b.extract_element(a, ir.IntType(32)(lane)) for a in args]
        result = b.call(known, [b.fpext(s, double) if single else s for s in scalars])
        out = b.insert_element(out, b.fptrunc(result, ir.FloatType()) if single else result, ir.IntType(32)(lane))
    return out


def _by_libm(name: str, function: str) -> None:
    EMITTERS[name] = lambda b, dtype, *args: libm(b, function, *args)


for _name in ("tan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "lgamma"):
    _by_libm(_name, _name)


@row("pow")
def power(b: Any, dtype: str, x: Any, y: Any) -> Any:
    if real(dtype):
        from gpuonnx.kernels.cpu.power import power as single
        return libm(b, "pow", x, y) if dtype == "f64" else single(b, x, y)
    return _integer_power(b, dtype, x, y)


def _integer_power(b: Any, dtype: str, x: Any, y: Any) -> Any:
    """Square and multiply over the bits of the exponent; a negative exponent leaves 1, -1 or 0."""
    one, zero = number(b, 1, x), number(b, 0, x)
    out, square = one, x
    for bit in range(min(x.type.element.width, 64)):
        chosen = b.icmp_signed("!=", b.and_(b.lshr(y, number(b, bit, y)), number(b, 1, y)), zero)
        out = b.select(chosen, b.mul(out, square), out)
        square = b.mul(square, square)
    if unsigned(dtype):
        return out
    odd = b.icmp_signed("!=", b.and_(y, one), zero)
    minus = b.select(odd, number(b, -1, x), one)
    inverse = b.select(b.icmp_signed("==", x, one), one, b.select(b.icmp_signed("==", x, number(b, -1, x)), minus, zero))
    return b.select(b.icmp_signed("<", y, zero), inverse, out)


def polynomial(b: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    total = number(b, coefficients[0], x)
    for c in coefficients[1:]:
        total = b.fma(total, x, number(b, c, x))
    return total


def clamp(b: Any, x: Any, low: float, high: float) -> Any:
    """Within [low, high]; a NaN stays."""
    above = b.select(b.fcmp_ordered("<", x, number(b, low, x)), number(b, low, x), x)
    return b.select(b.fcmp_ordered(">", above, number(b, high, x)), number(b, high, x), above)


def _kin_of_exp(name: str, function: str, b: Any, dtype: str, x: Any) -> Any:
    from gpuonnx.kernels.cpu import exponential
    return libm(b, name, x) if dtype == "f64" else getattr(exponential, function)(b, x)


EMITTERS |= {n: partial(_kin_of_exp, n, f) for n, f in (("exp", "exp"), ("expm1", "exp_minus_one"), ("exp2", "exp_of_two"))}


@row("sigmoid")
def sigmoid(b: Any, dtype: str, x: Any) -> Any:
    one = number(b, 1, x)
    return b.fdiv(one, b.fadd(one, EMITTERS["exp"](b, dtype, b.fneg(x))))


def rational(b: Any, x: Any, limit: float, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    x = clamp(b, x, -limit, limit)
    square = b.fmul(x, x)
    top, bottom = (polynomial(b, square, c) for c in coefficients)
    return b.fdiv(b.fmul(x, top), bottom)


@row("tanh")
def tanh(b: Any, dtype: str, x: Any) -> Any:
    return libm(b, "tanh", x) if dtype == "f64" else rational(b, x, 9.0, TANH)


@row("erf")
def erf(b: Any, dtype: str, x: Any) -> Any:
    return libm(b, "erf", x) if dtype == "f64" else rational(b, x, 3.832506856900711, ERF)


def _log_parts(b: Any, x: Any) -> tuple[Any, Any, Any]:
    """(exponent, m - 1 with m in [sqrt(1/2), sqrt(2)), log1p(m - 1) - (m - 1)) of a positive x, subnormals included."""
    i32 = ir.VectorType(ir.IntType(32), x.type.count)
    tiny = b.fcmp_ordered("<", x, number(b, 1.17549435e-38, x))
    scaled = b.select(tiny, b.fmul(x, number(b, 2.0**25, x)), x)
    bits = b.bitcast(scaled, i32)
    shifted = b.sub(bits, Splat(i32, 0x3F3504F3))
    n = b.sitofp(b.ashr(shifted, Splat(i32, 23)), x.type)
    n = b.select(tiny, b.fsub(n, number(b, 25, x)), n)
    mantissa = b.add(b.and_(shifted, Splat(i32, 0x007FFFFF)), Splat(i32, 0x3F3504F3))
    f = b.fsub(b.bitcast(mantissa, x.type), number(b, 1, x))
    square = b.fmul(f, f)
    return n, f, b.fma(b.fmul(square, f), polynomial(b, f, LOG), b.fmul(square, number(b, -0.5, x)))


def _log_edges(b: Any, x: Any, result: Any) -> Any:
    """-inf at 0, inf at inf, NaN below 0 and for NaN."""
    zero = number(b, 0, x)
    result = b.select(b.fcmp_ordered("==", x, zero), number(b, -math.inf, x), result)
    result = b.select(b.fcmp_ordered("==", x, number(b, math.inf, x)), x, result)
    return b.select(b.fcmp_unordered("<", x, zero), number(b, math.nan, x), result)


def _logarithm(name: str, high: float, low: float, scale: float) -> None:
    """log to some base = n * (high + low) + scale * log(m)."""
    def emitted(b: Any, dtype: str, x: Any) -> Any:
        if dtype == "f64":
            return libm(b, name, x)
        n, f, rest = _log_parts(b, x)
        if scale == 1:
            return _log_edges(b, x, b.fma(n, number(b, high, x), b.fadd(f, b.fma(n, number(b, low, x), rest))))
        total = b.fmul(b.fadd(f, rest), number(b, scale, x))
        return _log_edges(b, x, b.fma(n, number(b, high, x), b.fma(n, number(b, low, x), total) if low else total))
    EMITTERS[name] = emitted


_logarithm("log", LN2_HIGH, LN2_LOW, 1)
_logarithm("log2", 1.0, 0.0, math.log2(math.e))
_logarithm("log10", 0.30103, math.log10(2) - float(np.float32(0.30103)), math.log10(math.e))


@row("log1p")
def log1p(b: Any, dtype: str, x: Any) -> Any:
    """log(u) + (x - (u - 1)) / u with u = 1 + x (Goldberg, 1991)."""
    if dtype == "f64":
        return libm(b, "log1p", x)
    one = number(b, 1, x)
    u = b.fadd(one, x)
    lost = b.fdiv(b.fsub(x, b.fsub(u, one)), u)
    finite = b.fcmp_ordered("<", b.intrinsic("llvm.fabs", u), number(b, math.inf, x))
    whole = EMITTERS["log"](b, dtype, u)
    usable = b.and_(finite, b.fcmp_ordered(">", u, number(b, 0, x)))
    return b.select(usable, b.fadd(whole, b.select(usable, lost, number(b, 0, x))), whole)


def _reduced_angle(b: Any, x: Any) -> tuple[Any, Any, Any]:
    """(quadrant as i32, angle in [-pi/4, pi/4], lanes too large for that); the subtraction is done in double precision."""
    count = x.type.count
    double, i32 = ir.VectorType(ir.DoubleType(), count), ir.VectorType(ir.IntType(32), count)
    wide = b.fpext(x, double)
    n = b.intrinsic("llvm.rint", b.fmul(wide, number(b, 2 / math.pi, wide)))
    r = b.fma(n, number(b, -1.5707963267948966, wide), wide)
    r = b.fma(n, number(b, -6.123233995736766e-17, wide), r)
    inside = b.fcmp_unordered("<", b.intrinsic("llvm.fabs", n), number(b, 2.0**31, wide))
    counted = b.fcmp_ordered("<", b.intrinsic("llvm.fabs", n), number(b, 2.0**31, wide))
    return b.fptosi(b.select(counted, n, number(b, 0, wide)), i32), b.fptrunc(r, x.type), b.not_(inside)


def _unless_any(b: Any, rare: Any, value: Any, otherwise: Any) -> Any:
    """`value`, or in the vectors where a lane is `rare`, what `otherwise()` computes."""
    found = b.icmp_unsigned("!=", b.bitcast(rare, ir.IntType(rare.type.count)), ir.IntType(rare.type.count)(0))
    before = b.block
    with b.if_then(found, likely=False):
        slow = otherwise()
        inside = b.block
    chosen = b.phi(value.type)
    chosen.add_incoming(value, before)
    chosen.add_incoming(slow, inside)
    return chosen


def _circular(name: str, quarter: int) -> None:
    def emitted(b: Any, dtype: str, x: Any) -> Any:
        if dtype == "f64":
            return libm(b, name, x)
        quadrant, r, large = _reduced_angle(b, x)
        if quarter:
            quadrant = b.add(quadrant, number(b, quarter, quadrant))
        square = b.fmul(r, r)
        sine = b.fma(b.fmul(square, r), polynomial(b, square, SIN), r)
        cosine = b.fma(b.fmul(square, square), polynomial(b, square, COS), b.fma(square, number(b, -0.5, x), number(b, 1, x)))
        zero = number(b, 0, quadrant)
        swap = b.icmp_signed("!=", b.and_(quadrant, number(b, 1, quadrant)), zero)
        minus = b.icmp_signed("!=", b.and_(quadrant, number(b, 2, quadrant)), zero)
        value = b.select(swap, cosine, sine)
        return _unless_any(b, large, b.select(minus, b.fneg(value), value), lambda: libm(b, name, x))
    EMITTERS[name] = emitted


_circular("sin", 0)
_circular("cos", 1)


@row("atan")
def atan(b: Any, dtype: str, x: Any) -> Any:
    if dtype == "f64":
        return libm(b, "atan", x)
    magnitude, one = b.intrinsic("llvm.fabs", x), number(b, 1, x)
    large = b.fcmp_ordered(">", magnitude, number(b, 2.414213562373095, x))
    middle = b.fcmp_ordered(">", magnitude, number(b, 0.4142135623730950, x))
    top = b.select(large, number(b, -1, x), b.select(middle, b.fsub(magnitude, one), magnitude))
    bottom = b.select(large, magnitude, b.select(middle, b.fadd(magnitude, one), one))
    r = b.select(b.fcmp_ordered("==", magnitude, number(b, math.inf, x)), number(b, 0, x), b.fdiv(top, bottom))
    offset = b.select(large, number(b, math.pi / 2, x), b.select(middle, number(b, math.pi / 4, x), number(b, 0, x)))
    square = b.fmul(r, r)
    value = b.fadd(offset, b.fma(b.fmul(square, r), polynomial(b, square, ATAN), r))
    return b.intrinsic("llvm.copysign", value, x)


@row("philox")
def philox(b: Any, dtype: str, seed: Any, counter: Any, index: Any) -> Any:
    """One word of Philox4x32-10, in 64-bit lanes."""
    wide = ir.VectorType(ir.IntType(64), seed.type.count)
    seed, counter, index = (v if v.type == wide else b.sext(v, wide) for v in (seed, counter, index))
    low, shift = number(b, 0xFFFFFFFF, seed), number(b, 32, seed)
    c0, c1, c2, c3 = b.and_(index, low), b.lshr(index, shift), b.and_(counter, low), b.lshr(counter, shift)
    k0, k1 = b.and_(seed, low), b.lshr(seed, shift)
    for _ in range(10):
        p0, p1 = b.mul(number(b, 0xD2511F53, seed), c0), b.mul(number(b, 0xCD9E8D57, seed), c2)
        left, right = b.xor(b.xor(b.lshr(p1, shift), c1), k0), b.xor(b.xor(b.lshr(p0, shift), c3), k1)
        c0, c1, c2, c3 = left, b.and_(p1, low), right, b.and_(p0, low)
        k0, k1 = b.and_(b.add(k0, number(b, 0x9E3779B9, seed)), low), b.and_(b.add(k1, number(b, 0xBB67AE85, seed)), low)
    return b.trunc(c0, ir.VectorType(ir.IntType(32), seed.type.count))
