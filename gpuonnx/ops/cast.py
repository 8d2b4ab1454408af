"""Conversions between element types."""
from __future__ import annotations

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Expr, Spec, Tensor, cast, const, host, pointwise
from gpuonnx.ir.formula import absolute, either, greater, greater_equal, isinf, maximum, minimum, select
from gpuonnx.ir.types import BITS, BY_ONNX, size
from gpuonnx.ops.registry import op

LARGEST = {"f8e4m3fn": 448.0, "f8e4m3fnuz": 240.0, "f8e5m2": 57344.0, "f8e5m2fnuz": 57344.0}
OVERFLOW = {"f8e4m3fn": 464.0, "f8e4m3fnuz": 248.0, "f8e5m2": 61440.0, "f8e5m2fnuz": 61440.0}
NAN, INFINITY = float("nan"), float("inf")
TOWARDS = {"up": 1.4999998807907104, "down": 0.75, "nearest": 1.0}


def converted(x: Tensor, dtype: str, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Numbers round to nearest even and, into float8, saturate or become infinite or NaN; integers narrower than a byte wrap;
    text is read and written."""
    if dtype == x.dtype:
        return x
    if "str" in (dtype, x.dtype):
        made: Tensor = host("cast_text", x, out=Spec(dtype, x.shape), why="text is handled in Python", to=dtype)
        return made
    if dtype[:2] in ("f8", "f6", "f4") and x.kind != "f":
        x = x.cast("f32")
    if dtype == "f8e8m0":
        return to_exponent(x, saturate, round_mode)
    if dtype in LARGEST:
        return pointwise(lambda v: limited(v, dtype, saturate), x, dtype=dtype)
    if BITS.get(dtype, 8) < 8 and x.kind == "f" and dtype[0] != "f":
        return pointwise(lambda v: cast(cast(v, "i32"), dtype), x, dtype=dtype)
    return x.cast(dtype)


def limited(v: Expr, dtype: str, saturate: int) -> Expr:
    """A float on its way to float8: beyond the largest value (after rounding) it is clamped, or leaves the numbers."""
    if saturate:
        return maximum(minimum(v, LARGEST[dtype]), -LARGEST[dtype])
    outside = (greater if dtype == "f8e4m3fn" else greater_equal)(absolute(v), OVERFLOW[dtype])
    infinite = select(greater(v, 0), const(INFINITY, v.dtype), const(-INFINITY, v.dtype))
    return select(outside, infinite if dtype == "f8e5m2" else const(NAN, v.dtype), v)


def to_exponent(x: Tensor, saturate: int, round_mode: str) -> Tensor:
    """Into f8e8m0, powers of two from 2**-127: storing rounds mantissas from a half on up, the factor shifts that point."""
    if round_mode not in TOWARDS:
        raise ModelError(f"round_mode is one of {', '.join(TOWARDS)}, here {round_mode!r}")

    def exponent(v: Expr) -> Expr:
        single = absolute(cast(v, "f32"))
        moved = maximum(single * TOWARDS[round_mode], 2.0**-127)
        gone = isinf(single) if saturate else either(isinf(single), greater(moved, 1.4999999 * 2.0**127))
        return select(gone, const(NAN), moved)
    return pointwise(exponent, x, dtype="f8e8m0")


@op("Cast", since=6)
def cast_6(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    if to not in BY_ONNX:
        raise ModelError(f"no element type has the number {to}")
    return converted(x, BY_ONNX[to], saturate, round_mode)


@op("Cast", since=1)
def cast_1(x: Tensor, *, to: str) -> Tensor:
    """At first the type was given by name."""
    from onnx import TensorProto
    return converted(x, BY_ONNX[TensorProto.DataType.Value(to.upper())])


@op("CastLike", since=15)
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return converted(x, like.dtype, saturate, round_mode)


@op("BitCast", since=26)
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    """The same bits as another type of the same width."""
    dtype = BY_ONNX[to]
    if bits(dtype) != bits(x.dtype) or "str" in (dtype, x.dtype):
        raise ModelError(f"BitCast from {x.dtype} to {dtype}: the widths differ")
    made: Tensor = host("bit_cast", x, out=Spec(dtype, x.shape), why="nothing is computed: the bytes get another name", to=dtype)
    return made


def bits(dtype: str) -> int:
    return BITS.get(dtype, size(dtype) * 8)
