"""com.microsoft: arithmetic on quantised tensors, in float32 between a dequantisation and a quantisation; packed weights."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, builder, concat, constant, dim, from_end, tensor_map, where
from gpuonnx.ir.expr import Expr, apply, cast, const, guard
from gpuonnx.ir.formula import bit_and, both, less, less_equal, sigmoid
from gpuonnx.ir.types import BITS, compute
from gpuonnx.ops import quantize as q
from gpuonnx.ops.activation import leaky_relu, softmax, softmax_1
from gpuonnx.ops.matmul import integer_product, matrix_product, one_or_many, transposed
from gpuonnx.ops.microsoft import microsoft
from gpuonnx.ops.pool import average_pool
from gpuonnx.ops.window import Ints


def real(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """(x - zero) * scale in float32, one scale for all."""
    return q.dequantized(x, scale.reshape(), zero if zero is None else zero.reshape(), "f32")


def whole(y: Tensor, scale: Tensor, zero: Tensor | None, dtype: str) -> Tensor:
    return q.quantized(y, scale.reshape(), zero if zero is None else zero.reshape(), dtype)


def binary(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def definition(A: Tensor, A_scale: Tensor, A_zero_point: Tensor | None, B: Tensor, B_scale: Tensor, B_zero_point: Tensor | None,
                   C_scale: Tensor, C_zero_point: Tensor | None = None) -> Tensor:
        return whole(f(real(A, A_scale, A_zero_point), real(B, B_scale, B_zero_point)), C_scale, C_zero_point, A.dtype)
    return definition


microsoft("QLinearAdd")(binary(lambda a, b: a + b))
microsoft("QLinearMul")(binary(lambda a, b: a * b))


@microsoft("QLinearSigmoid")
def qlinear_sigmoid(x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None) -> Tensor:
    return whole(sigmoid(real(x, x_scale, x_zero)), y_scale, y_zero, x.dtype)


@microsoft("QLinearLeakyRelu")
def qlinear_leaky_relu(x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None, *,
                       alpha: float = 0.01) -> Tensor:
    return whole(leaky_relu(real(x, x_scale, x_zero), alpha=alpha), y_scale, y_zero, x.dtype)


@microsoft("QLinearSoftmax")
def qlinear_softmax(x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor, *, axis: int = -1, opset_: int) -> Tensor:
    """`opset` below 13: the axes from `axis` on are one."""
    kind = softmax if opset_ >= 13 else softmax_1
    return whole(kind(real(x, x_scale, x_zero), axis=axis), y_scale, y_zero, x.dtype)


@microsoft("QLinearWhere")
def qlinear_where(condition: Tensor, x: Tensor, x_scale: Tensor, x_zero: Tensor, y: Tensor, y_scale: Tensor, y_zero: Tensor, z_scale: Tensor,
                  z_zero: Tensor) -> Tensor:
    """Both sides are brought to the result's scale before the choice."""
    return where(condition, whole(real(x, x_scale, x_zero), z_scale, z_zero, x.dtype), whole(real(y, y_scale, y_zero), z_scale, z_zero, x.dtype))


@microsoft("QLinearConcat")
def qlinear_concat(y_scale: Tensor, y_zero: Tensor, *inputs: Tensor, axis: int) -> Tensor:
    """`inputs` are triples of tensor, scale, zero point."""
    parts = [whole(real(*inputs[k:k + 3]), y_scale, y_zero, y_zero.dtype) for k in range(0, len(inputs), 3)]
    return concat(parts, axis)


@microsoft("QLinearAveragePool")
def qlinear_average_pool(x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None, *,
                         auto_pad: str = "NOTSET", ceil_mode: int = 0, channels_last: int = 0, count_include_pad: int = 0,
                         kernel_shape: list[int], pads: Ints = None, strides: Ints = None) -> Tensor:
    v = real(channels_first(x) if channels_last else x, x_scale, x_zero)
    y = average_pool(v, auto_pad=auto_pad, ceil_mode=ceil_mode, count_include_pad=count_include_pad, kernel_shape=kernel_shape, pads=pads,
                     strides=strides)
    return whole(channels_behind(y) if channels_last else y, y_scale, y_zero, x.dtype)


@microsoft("QLinearGlobalAveragePool")
def qlinear_global_average_pool(x: Tensor, x_scale: Tensor, x_zero: Tensor, y_scale: Tensor, y_zero: Tensor, *, channels_last: int = 0) -> Tensor:
    axes = range(1, x.rank - 1) if channels_last else range(2, x.rank)
    return whole(real(x, x_scale, x_zero).mean(axes, keepdims=True), y_scale, y_zero, x.dtype)


@microsoft("QLinearReduceMean")
def qlinear_reduce_mean(x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None, *,
                        axes: list[int] | None = None, keepdims: int) -> Tensor:
    return whole(real(x, x_scale, x_zero).mean(axes, keepdims=bool(keepdims)), y_scale, y_zero, x.dtype)


def channels_first(x: Tensor) -> Tensor:
    """[N, ..., C] as [N, C, ...]"""
    return x.transpose([0, x.rank - 1, *range(1, x.rank - 1)])


def channels_behind(x: Tensor) -> Tensor:
    return x.transpose([0, *range(2, x.rank), 1])


@microsoft("QLinearConv")
def qlinear_conv(x: Tensor, x_scale: Tensor, x_zero_point: Tensor, w: Tensor, w_scale: Tensor, w_zero_point: Tensor, y_scale: Tensor,
                 y_zero_point: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", channels_last: int = 0, dilations: Ints = None,
                 group: int = 1, kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    y = q.qlinear_conv(channels_first(x) if channels_last else x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, b,
                       auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides)
    return channels_behind(y) if channels_last else y


@microsoft("QGemm")
def qgemm(a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, c: Tensor | None = None,
          y_scale: Tensor | None = None, y_zero: Tensor | None = None, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    """alpha * a @ b + c, with c in int32 at scale alpha * a_scale * b_scale; float32 where no scale of the result is given."""
    total = integer_product(transposed(a) if transA else a, transposed(b) if transB else b, one_or_many(a_zero), one_or_many(b_zero))
    total = total if c is None else total + c
    factor = (a_scale.reshape() * one_or_none(b_scale)) * alpha
    if y_scale is None:
        return total.cast("f32") * factor
    zero = None if y_zero is None else y_zero.reshape()
    return q.requantized(total, factor / y_scale.reshape(), zero, a.dtype if y_zero is None else y_zero.dtype)


def one_or_none(t: Tensor) -> Tensor:
    """A scale as a scalar, or one a column."""
    found = one_or_many(t)
    assert found is not None
    return found


def bits_of(packed: Tensor, bits: int, row: tuple[Expr, ...], place: Expr) -> Expr:
    """Value number `place` of `bits` bits each in packed[row] (u8, lowest bits first); it may lie in two bytes."""
    if bits == 8:
        return packed.at(*row, place)
    if 8 % bits:
        first, shift = place * dim(bits) // dim(8), cast(place * dim(bits) % dim(8), "i32")
        after = guard(less(first + 1, dim(packed.shape[-1])), cast(packed.at(*row, first + 1), "i32"), const(0, "i32"))
        both = cast(packed.at(*row, first), "i32") + after * 256
        return bit_and(apply("shr", both, shift), const(2**bits - 1, "i32"))
    each = 8 // bits
    byte = packed.at(*row, place // dim(each))
    shift = cast(place % dim(each) * dim(bits), "u8")
    return bit_and(apply("shr", byte, shift), const(2**bits - 1, "u8"))


@microsoft("MatMulNBits")
def matmul_nbits(a: Tensor, b: Tensor, scales: Tensor, zero_points: Tensor | None = None, g_idx: Tensor | None = None, bias: Tensor | None = None,
                 *, K: int, N: int, accuracy_level: int = 0, bits: int = 4, block_size: int, weight_prepacked: int = 0) -> Tensor:
    """a[..., K] @ w with w[n, k] = (b - zero) * scale; b: u8[N, blocks, block_size * bits / 8], a scale and zero point a block.

    `g_idx`[K]: the block of each k. Zero points are packed as b is, or have the type of the scales."""
    if bits not in (2, 4, 8) or weight_prepacked:
        what = f"{bits} bits{', prepacked' if weight_prepacked else ''}"
        raise ModelError(f"{builder().origin}: weights of {what}; plain ones of 2, 4 or 8 bits are expected")
    blocks = -(-K // block_size)
    codes, factors = b.reshape(N, blocks * (block_size * bits // 8)), scales.reshape(N, blocks)
    wide = compute(a.dtype)
    zeros = None if zero_points is None else zero_points.reshape(N, -(-blocks * bits // 8) if zero_points.dtype == "u8" else blocks)

    def weight(n: Expr, k: Expr) -> Expr:
        block = k // dim(block_size) if g_idx is None else from_end(g_idx.at(k), blocks)
        if zeros is None:
            zero = const(2.0 ** (bits - 1), wide)
        elif zeros.dtype == "u8":
            zero = cast(bits_of(zeros, bits, (n,), block), wide)
        else:
            zero = cast(zeros.at(n, block), wide)
        return (cast(bits_of(codes, bits, (n,), k), wide) - zero) * cast(factors.at(n, block), wide)
    y = matrix_product(a, transposed(tensor_map((N, K), a.dtype, weight)))
    return y if bias is None else y + bias


NORMAL_FLOAT = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
FLOAT_4 = (0.0, 0.00520833333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
           -0.0, -0.00520833333, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25)


@microsoft("MatMulBnb4")
def matmul_bnb4(a: Tensor, b: Tensor, absmax: Tensor, *, K: int, N: int, block_size: int, quant_type: int, training_mode: int = 0,
                transB: int = 1) -> Tensor:
    """As bitsandbytes: 4-bit codes of FP4 (quant_type 0) or NF4 (1), the high half of a byte first, a scale a block of the flat weights."""
    table = constant(np.array(NORMAL_FLOAT if quant_type else FLOAT_4, np.float32))
    codes = b.reshape(-(-N * K // 2))

    def weight(n: Expr, k: Expr) -> Expr:
        flat = n * dim(K) + k
        shift = cast((dim(1) - flat % dim(2)) * dim(4), "u8")
        code = bit_and(apply("shr", codes.at(flat // dim(2)), shift), const(15, "u8"))
        return cast(table.at(cast(code, "ix")), compute(a.dtype)) * cast(absmax.at(flat // dim(block_size)), compute(a.dtype))
    return matrix_product(a, transposed(tensor_map((N, K), a.dtype, weight)))


@microsoft("GatherBlockQuantized")
def gather_block_quantized(data: Tensor, indices: Tensor, scales: Tensor, zero_points: Tensor | None = None, *, bits: int = 4,
                           block_size: int = 128, gather_axis: int = 0, quantize_axis: int = 1) -> Tensor:
    """Rows of data along `gather_axis`, dequantised by blocks of `quantize_axis`; u8 data hold 8 / bits values a byte of the last axis.

    An index out of range gives zeros."""
    axis, blocked = data.axis(gather_axis), data.axis(quantize_axis)
    bits = BITS.get(data.dtype, bits)
    each = 8 // bits if data.dtype == "u8" else 1
    sizes = [s * each if a == data.rank - 1 else s for a, s in enumerate(data.shape)]
    shape = (*sizes[:axis], *indices.shape, *sizes[axis + 1:])
    wide = compute(scales.dtype)

    def code(t: Tensor, i: tuple[Expr, ...]) -> Expr:
        return cast(bits_of(t, bits, i[:-1], i[-1]) if each > 1 else t.at(*i), wide)

    def element(*i: Expr) -> Expr:
        row = from_end(indices.at(*i[axis:axis + indices.rank]), sizes[axis])
        inside = both(less_equal(dim(0), row), less(row, dim(sizes[axis])))
        at = (*i[:axis], row, *i[axis + indices.rank:])
        block = tuple(e // dim(block_size) if k == blocked else e for k, e in enumerate(at))
        middle = 2.0 ** (bits - 1) if data.dtype == "u8" else 0.0
        zero = code(zero_points, block) if zero_points is not None else const(middle, wide)
        return guard(inside, (code(data, at) - zero) * cast(scales.at(*block), wide), const(0, wide))
    return tensor_map(shape, scales.dtype, element)
