"""Quantisation: scales and zero points for a tensor, an axis or blocks of an axis; integer products with requantisation."""
from __future__ import annotations

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, broadcast_at, builder, cast, const, dim, tensor_map
from gpuonnx.ir.expr import Expr, apply
from gpuonnx.ir.formula import equal, maximum, minimum, select
from gpuonnx.ir.types import BITS, BY_ONNX, compute, kind, size
from gpuonnx.ops.cast import converted
from gpuonnx.ops.conv import integer_convolution, kernel_of
from gpuonnx.ops.matmul import integer_product, one_or_many
from gpuonnx.ops.registry import op
from gpuonnx.ops.window import Ints, Window, spatial


def spread(t: Tensor, x: Tensor, axis: int, block_size: int = 0) -> Tensor:
    """A scale or zero point to broadcast with x: one value, one for each index of `axis`, or one a block of it."""
    if t.rank == 0 or t.rank == 1 and t.shape[0] == 1:
        return t.reshape()
    if t.rank == 1 and not -x.rank <= axis < x.rank:
        builder().meet(t.shape[0], 1)
        return t.reshape()
    if not block_size:
        at = x.axis(axis)
        return t.unsqueeze([a for a in range(x.rank) if a != at]) if t.rank == 1 else t
    at = x.axis(axis)
    if t.rank != x.rank or block_size < 0:
        raise ModelError(f"{builder().origin}: blocks of {block_size} need scales of rank {x.rank}, not {t.rank}")
    for a, (count, given) in enumerate(zip(x.shape, t.shape, strict=True)):
        if a == at:
            builder().require(given * block_size - count, f"{given} blocks of {block_size} do not cover axis {a} of size {count}")
        else:
            builder().meet(count, given)
    return tensor_map(x.shape, t.dtype, lambda *i: t.at(*(e // dim(block_size) if a == at else e for a, e in enumerate(i))))


def ends(dtype: str) -> tuple[float, float]:
    """Smallest and largest value of an integer type."""
    bits = BITS.get(dtype, 8 * size(dtype))
    return (0.0, 2.0**bits - 1) if kind(dtype) == "u" else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def clamped(value: Expr, dtype: str) -> Expr:
    """A float within the ends of an integer type."""
    low, high = ends(dtype)
    return minimum(maximum(value, low), high)


def quantized(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: str, saturate: int = 1) -> Tensor:
    """saturate(round(x / scale) + zero), half to even; into float8 and float4 the cast rounds."""
    shape = builder().broadcast(x.shape, scale.shape, *(() if zero is None else (zero.shape,)))
    wide = "f64" if compute(x.dtype) == "f64" else "f32"

    def divided(*_: Expr) -> Expr:
        return cast(broadcast_at(x, shape), wide) / cast(broadcast_at(scale, shape), wide)
    if kind(dtype) == "f":
        return converted(tensor_map(shape, wide, divided), dtype, saturate)

    def element(*i: Expr) -> Expr:
        rounded = apply("rint", divided(*i))
        if zero is not None:
            rounded = rounded + cast(broadcast_at(zero, shape), wide)
        return cast(clamped(rounded, dtype), compute(dtype))
    return tensor_map(shape, dtype, element)


@op("QuantizeLinear", since=10)
def quantize_linear(x: Tensor, y_scale: Tensor, y_zero_point: Tensor | None = None, *, axis: int = 1, saturate: int = 1, block_size: int = 0,
                    output_dtype: int = 0, precision: int = 0) -> Tensor:
    dtype = y_zero_point.dtype if y_zero_point is not None else BY_ONNX.get(output_dtype, "u8")
    scale, zero = (None if t is None else spread(t, x, axis, block_size) for t in (y_scale, y_zero_point))
    assert scale is not None
    return quantized(x, scale, zero, dtype, saturate)


@op("DequantizeLinear", since=10)
def dequantize_linear(x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
                      output_dtype: int = 0) -> Tensor:
    dtype = BY_ONNX.get(output_dtype, x_scale.dtype)
    scale, zero = (None if t is None else spread(t, x, axis, block_size) for t in (x_scale, x_zero_point))
    assert scale is not None
    return dequantized(x, scale, zero, dtype)


def dequantized(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: str) -> Tensor:
    """(x - zero) * scale, the difference exact."""
    shape = builder().broadcast(x.shape, scale.shape, *(() if zero is None else (zero.shape,)))
    wide, whole = compute(dtype), compute(x.dtype) if kind(x.dtype) == "f" else "i32"

    def element(*_: Expr) -> Expr:
        value = cast(broadcast_at(x, shape), whole)
        if zero is not None:
            value = value - cast(broadcast_at(zero, shape), whole)
        return cast(value, wide) * cast(broadcast_at(scale, shape), wide)
    return tensor_map(shape, dtype, element)


def dynamic_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (u8) that cover x and 0; a tensor of zeros has scale 1."""
    low, high = minimum(x.min(), 0.0), maximum(x.max(), 0.0)
    span = high - low
    scale = select(equal(span, 0.0), tensor_map((), x.dtype, lambda: const(1.0, x.dtype)), span / 255.0)
    zero = tensor_map((), "u8", lambda: cast(clamped(apply("rint", -low.at() / scale.at()), "u8"), "u8"))
    return scale, zero


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero = dynamic_range(x)
    return quantized(x, scale, zero, "u8"), scale, zero


def requantized(total: Tensor, factor: Tensor, zero: Tensor | None, dtype: str) -> Tensor:
    """int32 sums times a real factor, rounded half to even, as an integer type."""
    shape = builder().broadcast(total.shape, factor.shape)

    def element(*_: Expr) -> Expr:
        value = apply("rint", cast(broadcast_at(total, shape), "f32") * cast(broadcast_at(factor, shape), "f32"))
        if zero is not None:
            value = value + cast(broadcast_at(zero, shape), "f32")
        return cast(clamped(value, dtype), compute(dtype))
    return tensor_map(shape, dtype, element)


def along_rows(t: Tensor) -> Tensor:
    """One value a row: [M] -> [M, 1]."""
    return t.unsqueeze([1]) if t.rank == 1 and t.shape[0] != 1 else t


@op("QLinearMatMul", since=10)
def qlinear_matmul(a: Tensor, a_scale: Tensor, a_zero_point: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor, y_scale: Tensor,
                   y_zero_point: Tensor) -> Tensor:
    total = integer_product(a, b, one_or_many(a_zero_point), one_or_many(b_zero_point))
    a_scale, b_scale, y_scale = (t.cast("f32") for t in (a_scale, b_scale, y_scale))
    return requantized(total, along_rows(a_scale) * b_scale / along_rows(y_scale), along_rows(y_zero_point), y_zero_point.dtype)


@op("QLinearConv", since=10)
def qlinear_conv(x: Tensor, x_scale: Tensor, x_zero_point: Tensor, w: Tensor, w_scale: Tensor, w_zero_point: Tensor, y_scale: Tensor,
                 y_zero_point: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
                 kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    window = Window.of(spatial(x), kernel_of(w, kernel_shape), auto_pad, dilations, pads, strides)
    total = integer_convolution(x, w, one_or_many(x_zero_point), one_or_many(w_zero_point), window, group)
    if b is not None:
        total = total + spread(b, total, 1)
    factor = x_scale.reshape() * spread(w_scale, total, 1) / y_scale.reshape()
    return requantized(total, factor, y_zero_point.reshape(), y_zero_point.dtype)


