"""The scalar functions: one row each. `numpy` is the meaning (and folds constants, and is the oracle of tests), `dim` the
meaning on symbolic sizes where there is one, `cuda` the text; the CPU emission of a row is the function of the same name
in `kernels/cpu/scalars.py`. `dtype` is the result's type where it is not the last argument's.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuonnx.ir import dims as d


@dataclass(frozen=True)
class Scalar:
    """`ulp`: error bound in float32; `cost`: about how many simple vector instructions it takes."""

    numpy: Callable[..., Any]
    dim: Callable[..., Any] | None = None
    cuda: str | None = None
    dtype: str | None = None
    ulp: float = 0.5
    cost: int = 1


def _is_real(*args: Any) -> bool:
    return any(isinstance(a, (float, d.Real)) for a in args)


def _plain(a: Any) -> float:
    if isinstance(a, d.Real):
        raise TypeError(f"{a} depends on its binding")
    return float(a)


def _exact(op: str, whole: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A Dim function of two; reals go through `real_op`, rounded as float32."""
    return lambda a, b: d.real_op(op, d.real(a), d.real(b)) if _is_real(a, b) else whole(a, b)


def _ordered(whole: Callable[[Any, Any], Any], real: Callable[[float, float], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: real(_plain(a), _plain(b)) if _is_real(a, b) else whole(a, b)


def _divided(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(a: Any, b: Any) -> Any:
        if isinstance(b, int) and b == 0:
            raise ZeroDivisionError
        return f(a, b)
    return checked


def _single(f: Callable[[np.float32], Any]) -> Callable[[Any], Any]:
    """A Dim function of one known float32."""
    return lambda a: float(np.float32(f(np.float32(_plain(a)))))


def trunc_divide(a: Any, b: Any) -> Any:
    """True division of floats; integers round towards zero (0 for a zero divisor, which kernels report)."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "iu":
        return np.divide(a, b)
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(0), quotient)


def trunc_modulo(a: Any, b: Any) -> Any:
    """C's fmod and %: the result has the sign of `a`."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "iu":
        return np.fmod(a, b)
    return np.where(b == 0, a.dtype.type(0), np.fmod(a, np.where(b == 0, b.dtype.type(1), b)))


def _guarded(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def divided(a: Any, b: Any) -> Any:
        a, b = np.asarray(a), np.asarray(b)
        if b.dtype.kind not in "iu":
            return f(a, b)
        return np.where(b == 0, a.dtype.type(0), f(a, np.where(b == 0, b.dtype.type(1), b)))
    return divided


def power(a: Any, b: Any) -> Any:
    """Real power; of integers by repeated squaring, wrapping; a negative exponent truncates 1 / a**-b towards zero."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "iu":
        return np.power(a, b)
    positive = np.power(a, np.where(b < 0, 0, b).astype(a.dtype))
    inverse = np.where(a == 1, 1, np.where(a.astype(np.int64) == -1, np.where(b % 2 == 0, 1, -1), 0)).astype(a.dtype)
    return np.where(b < 0, inverse, positive)


def erf(x: Any) -> Any:
    x = np.asarray(x)
    return np.vectorize(math.erf, otypes=[x.dtype])(x) if x.size else x


def lgamma(x: Any) -> Any:
    x = np.asarray(x)
    return np.vectorize(math.lgamma, otypes=[x.dtype])(x) if x.size else x


def sigmoid(x: Any) -> Any:
    x = np.asarray(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def shift_left(a: Any, b: Any) -> Any:
    a, b = np.asarray(a), np.asarray(b)
    width = a.dtype.itemsize * 8
    inside = (b >= 0) & (b < width)
    return np.where(inside, np.left_shift(a, np.where(inside, b, 0).astype(a.dtype)), 0).astype(a.dtype)


def shift_right(a: Any, b: Any) -> Any:
    a, b = np.asarray(a), np.asarray(b)
    width = a.dtype.itemsize * 8
    inside = (b >= 0) & (b < width)
    outside = np.where(a < 0, -1, 0) if a.dtype.kind == "i" else 0
    return np.where(inside, np.right_shift(a, np.where(inside, b, 0).astype(a.dtype)), outside).astype(a.dtype)


def philox(seed: Any, counter: Any, index: Any) -> Any:
    """One 32-bit word of Philox4x32-10 (Salmon et al., 2011): key `seed`, counter (index, counter), all 64 bits."""
    seed, counter, index = np.broadcast_arrays(*(np.asarray(x).astype(np.int64).view(np.uint64) for x in (seed, counter, index)))
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = index & low, index >> shift, counter & low, counter >> shift
    k0, k1 = seed & low, seed >> shift
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0.astype(np.uint32)


def not_or(a: Any, b: Any) -> Any:
    return a + b - a * b


SCALARS: dict[str, Scalar] = {
    "add": Scalar(np.add, _exact("add", lambda a, b: a + b), "({0} + {1})"),
    "sub": Scalar(np.subtract, _exact("sub", lambda a, b: a - b), "({0} - {1})"),
    "mul": Scalar(np.multiply, _exact("mul", lambda a, b: a * b), "({0} * {1})"),
    "div": Scalar(trunc_divide, _exact("div", _divided(d.truncdiv)), cost=6),
    "floordiv": Scalar(_guarded(np.floor_divide), _ordered(_divided(d.floordiv), lambda a, b: math.floor(a / b)),
                       "g_floordiv({0}, {1})", cost=10),
    "floormod": Scalar(_guarded(np.mod), _ordered(_divided(d.mod), lambda a, b: a % b), "g_floormod({0}, {1})", cost=10),
    "truncmod": Scalar(trunc_modulo, _ordered(_divided(lambda a, b: a - b * d.truncdiv(a, b)), math.fmod), cost=10),
    "pow": Scalar(power, lambda a, b: float(np.float32(_plain(a)) ** np.float32(_plain(b))) if _is_real(a, b) else int(a) ** int(b),
                  ulp=1, cost=40),
    "max": Scalar(np.maximum, _ordered(d.dmax, max)),
    "min": Scalar(np.minimum, _ordered(d.dmin, min)),
    "fmax": Scalar(np.fmax),
    "fmin": Scalar(np.fmin),
    "neg": Scalar(np.negative, lambda a: d.real_op("mul", a, -1.0) if _is_real(a) else -a, "(-{0})"),
    "abs": Scalar(np.abs, lambda a: abs(_plain(a)) if _is_real(a) else d.select(d.lt(a, 0), -a, a)),
    "sign": Scalar(np.sign, lambda a: float(np.sign(_plain(a))) if _is_real(a) else d.select(d.lt(a, 0), -1, 1 - d.eq(a, 0)), cost=3),
    "relu": Scalar(lambda x: np.maximum(x, np.asarray(x).dtype.type(0)), lambda a: max(_plain(a), 0.0) if _is_real(a) else d.dmax(a, 0)),
    "reciprocal": Scalar(lambda x: 1 / np.asarray(x), lambda a: d.real_op("div", 1.0, d.real(a)), ulp=1, cost=6),
    "sqrt": Scalar(np.sqrt, _single(np.sqrt), cost=8),
    "rsqrt": Scalar(lambda x: 1 / np.sqrt(x), ulp=2, cost=12),
    "floor": Scalar(np.floor, lambda a: d.real(d.rounded("floor", a))),
    "ceil": Scalar(np.ceil, lambda a: d.real(d.rounded("ceil", a))),
    "trunc": Scalar(np.trunc, lambda a: d.real(d.rounded("trunc", a))),
    "rint": Scalar(np.rint, _single(np.rint)),
    "exp": Scalar(np.exp, _single(np.exp), ulp=1.1, cost=14),
    "exp2": Scalar(np.exp2, _single(np.exp2), ulp=1.1, cost=14),
    "expm1": Scalar(np.expm1, ulp=2, cost=40),
    "log": Scalar(np.log, _single(np.log), ulp=1.5, cost=16),
    "log2": Scalar(np.log2, _single(np.log2), ulp=2, cost=17),
    "log10": Scalar(np.log10, _single(np.log10), ulp=2, cost=17),
    "log1p": Scalar(np.log1p, ulp=2, cost=22),
    "sin": Scalar(np.sin, ulp=2, cost=20),
    "cos": Scalar(np.cos, ulp=2, cost=20),
    "tan": Scalar(np.tan, ulp=1, cost=100),
    "asin": Scalar(np.arcsin, ulp=1, cost=100),
    "acos": Scalar(np.arccos, ulp=1, cost=100),
    "atan": Scalar(np.arctan, ulp=3, cost=20),
    "sinh": Scalar(np.sinh, ulp=1, cost=100),
    "cosh": Scalar(np.cosh, ulp=1, cost=100),
    "tanh": Scalar(np.tanh, ulp=6, cost=20),
    "asinh": Scalar(np.arcsinh, ulp=1, cost=100),
    "acosh": Scalar(np.arccosh, ulp=1, cost=100),
    "atanh": Scalar(np.arctanh, ulp=1, cost=100),
    "erf": Scalar(erf, ulp=6, cost=20),
    "lgamma": Scalar(lgamma, ulp=4, cost=100),
    "sigmoid": Scalar(sigmoid, ulp=4, cost=18),
    "equal": Scalar(np.equal, _ordered(d.eq, lambda a, b: int(a == b)), "({0} == {1})", "bool"),
    "not_equal": Scalar(np.not_equal, _ordered(lambda a, b: 1 - d.eq(a, b), lambda a, b: int(a != b)), "({0} != {1})", "bool"),
    "less": Scalar(np.less, _ordered(d.lt, lambda a, b: int(a < b)), "({0} < {1})", "bool"),
    "less_equal": Scalar(np.less_equal, _ordered(lambda a, b: 1 - d.lt(b, a), lambda a, b: int(a <= b)), "({0} <= {1})", "bool"),
    "greater": Scalar(np.greater, _ordered(lambda a, b: d.lt(b, a), lambda a, b: int(a > b)), "({0} > {1})", "bool"),
    "greater_equal": Scalar(np.greater_equal, _ordered(lambda a, b: 1 - d.lt(a, b), lambda a, b: int(a >= b)), "({0} >= {1})", "bool"),
    "and": Scalar(np.logical_and, lambda a, b: a * b, "({0} && {1})", "bool"),
    "or": Scalar(np.logical_or, not_or, "({0} || {1})", "bool"),
    "xor": Scalar(np.logical_xor, lambda a, b: a + b - a * b * 2, "({0} != {1})", "bool"),
    "not": Scalar(np.logical_not, lambda a: 1 - a, "(!{0})", "bool"),
    "where": Scalar(np.where, d.select, "({0} ? {1} : {2})"),
    "isnan": Scalar(np.isnan, lambda a: int(math.isnan(_plain(a))), dtype="bool"),
    "isinf": Scalar(np.isinf, lambda a: int(math.isinf(_plain(a))), dtype="bool"),
    "bit_and": Scalar(np.bitwise_and, None, "({0} & {1})"),
    "bit_or": Scalar(np.bitwise_or, None, "({0} | {1})"),
    "bit_xor": Scalar(np.bitwise_xor, None, "({0} ^ {1})"),
    "bit_not": Scalar(np.bitwise_not, None, "(~{0})"),
    "shl": Scalar(shift_left, cost=2),
    "shr": Scalar(shift_right, cost=2),
    "popcount": Scalar(lambda x: np.bitwise_count(x).astype(np.asarray(x).dtype), cost=4),
    "philox": Scalar(philox, dtype="u32", cost=200),
}


def _with_cuda_names() -> None:
    """A row without a text of its own calls `g_<name>`, overloaded in kernels/cuda/common.cuh."""
    from dataclasses import replace
    three, two = {"philox"}, {"div", "truncmod", "pow", "max", "min", "fmax", "fmin", "shl", "shr"}
    for name, row in SCALARS.items():
        if row.cuda is None:
            count = 3 if name in three else 2 if name in two else 1
            SCALARS[name] = replace(row, cuda=f"g_{name}({', '.join('{%d}' % k for k in range(count))})")


_with_cuda_names()


@dataclass(frozen=True)
class Fold:
    """How a Reduce combines. `combine` is a scalar function; `identity` by dtype kind (None: the type's end)."""

    combine: str
    numpy: Callable[..., Any]

    def identity(self, dtype: str) -> Any:
        """What an empty fold gives."""
        from gpuonnx.ir.types import kind, numpy_dtype
        if self.combine in ("add", "or"):
            return 0
        if self.combine in ("mul", "and"):
            return 1
        if kind(dtype) == "b":
            return int(self.combine == "min")
        if kind(dtype) in "fc":
            return -math.inf if self.combine == "max" else math.inf
        info = np.iinfo(numpy_dtype(dtype))
        return int(info.min if self.combine == "max" else info.max)


FOLDS: dict[str, Fold] = {
    "sum": Fold("add", np.add.reduce),
    "prod": Fold("mul", np.multiply.reduce),
    "max": Fold("max", np.maximum.reduce),
    "min": Fold("min", np.minimum.reduce),
    "any": Fold("or", np.logical_or.reduce),
    "all": Fold("and", np.logical_and.reduce),
    "argmax": Fold("max", np.argmax),
    "argmin": Fold("min", np.argmin),
}
