"""Arithmetic, comparison, logic and bits, element by element."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, elementwise, full, where
from gpuonnx.ir.formula import Scalar, equal, erf, isinf, maximum, minimum, power
from gpuonnx.ops.registry import op

Definition = Callable[..., Tensor]

UNARY = """
    Abs 1 abs          Neg 1 neg          Reciprocal 1 reciprocal   Sqrt 1 sqrt      Exp 1 exp        Log 1 log
    Floor 1 floor      Ceil 1 ceil        Round 11 rint             Sign 9 sign      IsNaN 9 isnan
    Sin 7 sin          Cos 7 cos          Tan 7 tan                 Asin 7 asin      Acos 7 acos      Atan 7 atan
    Sinh 9 sinh        Cosh 9 cosh        Asinh 9 asinh             Acosh 9 acosh    Atanh 9 atanh
    Sigmoid 1 sigmoid  Tanh 1 tanh        Not 1 not                 BitwiseNot 18 bit_not
""".split()

BINARY = """
    Add 7 add          Sub 7 sub          Mul 7 mul                 Div 7 div        And 7 and        Or 7 or     Xor 7 xor
    Equal 7 equal      Less 7 less        Greater 7 greater         LessOrEqual 12 less_equal
    GreaterOrEqual 12 greater_equal       BitwiseAnd 18 bit_and     BitwiseOr 18 bit_or               BitwiseXor 18 bit_xor
""".split()


def rows(table: list[str]) -> list[tuple[str, int, Definition]]:
    return [(table[i], int(table[i + 1]), Scalar(table[i + 2])) for i in range(0, len(table), 3)]


def unary(function: Definition) -> Definition:
    def definition(x: Tensor) -> Tensor:
        return function(x)
    return definition


def binary(function: Definition) -> Definition:
    def definition(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)
    return definition


def aligned(a: Tensor, b: Tensor, axis: int | None, broadcast: int) -> Tensor:
    """Opsets 1 to 6: `b` may stretch, if `broadcast`; it then lies in `a` from `axis` on, or at the end."""
    if not broadcast:
        for x, y in zip(a.shape, b.shape, strict=True):
            a.builder.meet(x, y)
    if not broadcast or axis is None:
        return b
    first = a.axis(axis) + b.rank
    return b.unsqueeze(range(b.rank, b.rank + a.rank - first))


def binary_1(function: Definition) -> Definition:
    def definition(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
        return function(a, aligned(a, b, axis, broadcast))
    return definition


for _name, _since, _function in rows(UNARY):
    op(_name, _since)(unary(_function))
for _name, _since, _function in rows(BINARY):
    op(_name, _since)(binary(_function))
    if _since == 7:
        op(_name, 1)(binary_1(_function))


@op("Erf", since=9)
def erf_of(x: Tensor) -> Tensor:
    """Of integers: in float64, cut."""
    return erf(x) if x.kind == "f" else erf(x.cast("f64")).cast(x.dtype)


@op("Pow", since=7)
def power_of(x: Tensor, y: Tensor) -> Tensor:
    """The result has the type of the base; an integer base with a float exponent is raised as a float."""
    if x.dtype == y.dtype:
        return power(x, y)
    if x.kind == "f" or y.kind in "iu":
        return power(x, y.cast(x.dtype))
    return power(x.cast("f64"), y.cast("f64")).cast(x.dtype)


op("Pow", since=1)(binary_1(power_of))


@op("Mod", since=10)
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return elementwise("truncmod" if fmod else "floormod", a, b)


@op("Max", since=1)
def max_of(*xs: Tensor) -> Tensor:
    return reduce(maximum, xs)


@op("Min", since=1)
def min_of(*xs: Tensor) -> Tensor:
    return reduce(minimum, xs)


@op("Sum", since=1)
def sum_of(*xs: Tensor) -> Tensor:
    return reduce(lambda a, b: a + b, xs)


@op("Mean", since=1)
def mean_of(*xs: Tensor) -> Tensor:
    return sum_of(*xs) / len(xs)


@op("Clip", since=11)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """min(max(x, low), high): where low > high everything is high."""
    x = x if low is None else maximum(x, low.reshape())
    return x if high is None else minimum(x, high.reshape())


@op("Clip", since=6)
def clip_6(x: Tensor, *, max: float = 3.4028234663852886e38, min: float = -3.4028234663852886e38) -> Tensor:
    return minimum(maximum(x, min), max)


@op("Clip", since=1)
def clip_1(x: Tensor, *, max: float | None = None, min: float | None = None) -> Tensor:
    x = x if min is None else maximum(x, min)
    return x if max is None else minimum(x, max)


@op("IsInf", since=10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return isinf(x)
    wanted = math.inf if detect_positive else -math.inf
    return equal(x, wanted) if detect_positive or detect_negative else full(x.shape, False, "bool")


@op("Where", since=9)
def where_9(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return where(condition, x, y)


@op("BitShift", since=11)
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    if direction not in ("LEFT", "RIGHT"):
        raise ModelError(f"the direction is LEFT or RIGHT, here {direction!r}")
    return elementwise("shl" if direction == "LEFT" else "shr", x, y)
