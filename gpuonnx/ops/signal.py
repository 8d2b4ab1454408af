"""Fourier transforms as products with a matrix of cosines and sines, windows, mel filters."""
from __future__ import annotations

import math

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Tensor, builder, cast, const, constant, dim, tensor_map
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import apply, guard
from gpuonnx.ir.formula import equal, less, select
from gpuonnx.ir.types import BY_ONNX, compute
from gpuonnx.ops.matmul import matrix_product
from gpuonnx.ops.registry import Const, Dims, op


def fourier_matrix(length: Dim, bins: Dim, sign: float, dtype: str) -> Tensor:
    """[length, 2 * bins]: cos and sign * sin of 2 pi n k / length, side by side for each bin."""
    def element(n: Expr, j: Expr) -> Expr:
        k = j // dim(2)
        angle = cast((n * k) % dim(length), "f64") * (const(2 * math.pi, "f64") / cast(dim(length), "f64"))
        return cast(select(equal(j % dim(2), dim(0)), apply("cos", angle), apply("sin", angle) * sign), compute(dtype))
    return tensor_map((length, bins * 2), dtype, element)


def transform(real: Tensor, imaginary: Tensor | None, bins: Dim, inverse: bool) -> Tensor:
    """[..., N] -> [..., bins, 2]"""
    sign = 1.0 if inverse else -1.0
    length = real.shape[-1]
    matrix = fourier_matrix(length, bins, sign, real.dtype)
    shape = (*real.shape[:-1], bins, 2)
    y = matrix_product(real, matrix).reshape(*shape)
    if imaginary is not None:
        z = matrix_product(imaginary, matrix).reshape(*shape)
        y = tensor_map(shape, y.dtype, lambda *i: select(equal(i[-1], dim(0)), y.at(*i) - z.at(*i[:-1], dim(1)), y.at(*i) + z.at(*i[:-1], dim(0))))
    if inverse:
        y = y / tensor_map((), y.dtype, lambda: cast(dim(length), compute(y.dtype)))
    return y


def parts(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The last axis is 1 (real) or 2 (real, imaginary)."""
    last = builder().ask(x.shape[-1])
    if last not in (1, 2):
        raise ModelError(f"{builder().origin}: the last axis has {last} elements; it must be 1 (real) or 2 (complex)")
    real = x.slice(-1, 0, 1).squeeze([x.rank - 1])
    return real, x.slice(-1, 1, 1).squeeze([x.rank - 1]) if last == 2 else None


def resized(t: Tensor, length: Dim) -> Tensor:
    """The last axis cut or filled with zeros."""
    size = t.shape[-1]
    if size is length or size == length:
        return t
    shape = (*t.shape[:-1], length)
    return tensor_map(shape, t.dtype, lambda *i: guard(less(i[-1], dim(size)), t.at(*i), const(0, compute(t.dtype))))


def dft(x: Tensor, dft_length: Dims | None, axis: int, inverse: int, onesided: int) -> Tensor:
    axis = axis % x.rank
    if axis == x.rank - 1:
        raise ModelError(f"{builder().origin}: axis {axis} holds real and imaginary parts")
    order = [a for a in range(x.rank) if a not in (axis, x.rank - 1)] + [axis, x.rank - 1]
    real, imaginary = parts(x.transpose(order))
    length = dft_length[0] if dft_length else real.shape[-1]
    if inverse and onesided:
        y = real_inverse(real, imaginary, dft_length[0] if dft_length else (real.shape[-1] - 1) * 2)
    else:
        real = resized(real, length)
        imaginary = None if imaginary is None else resized(imaginary, length)
        y = transform(real, imaginary, d.floordiv(length, 2) + 1 if onesided else length, bool(inverse))
    return y.transpose([order.index(a) for a in range(x.rank)])


def real_inverse(real: Tensor, imaginary: Tensor | None, length: Dim) -> Tensor:
    """The real signal of a one-sided spectrum: the missing half is the conjugate of the other."""
    shape = (*real.shape[:-1], length)
    half = d.floordiv(length, 2) + 1

    def whole(t: Tensor, sign: float) -> Tensor:
        def element(*i: Expr) -> Expr:
            first = less(i[-1], dim(half))
            value = t.at(*i[:-1], select(first, i[-1], dim(length) - i[-1]))
            return select(first, value, value * sign)
        return tensor_map(shape, t.dtype, element)
    y = transform(whole(real, 1.0), None if imaginary is None else whole(imaginary, -1.0), length, True)
    return y.slice(-1, 0, 1)


@op("DFT", since=20)
def dft_20(x: Tensor, dft_length: Dims | None = None, axis: Const | None = None, *, inverse: int = 0, onesided: int = 0) -> Tensor:
    return dft(x, dft_length, int(axis.ravel()[0]) if axis is not None else -2, inverse, onesided)


@op("DFT", since=17)
def dft_17(x: Tensor, dft_length: Dims | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    return dft(x, dft_length, axis, inverse, onesided)


@op("STFT", since=17)
def stft(signal: Tensor, frame_step: Dims, window: Tensor | None = None, frame_length: Dims | None = None, *, onesided: int = 1) -> Tensor:
    """Frames every `frame_step` samples, weighted by the window, each transformed."""
    x = signal if signal.rank == 3 else signal.unsqueeze([signal.rank])
    step = frame_step[0]
    length: Dim = frame_length[0] if frame_length else window.shape[0] if window is not None else x.shape[1]
    frames = d.floordiv(x.shape[1] - length, step) + 1
    real, imaginary = parts(x)

    def framed(t: Tensor) -> Tensor:
        cut = tensor_map((t.shape[0], frames, length), t.dtype, lambda b, f, n: t.at(b, f * dim(step) + n))
        return cut if window is None else cut * window.cast(t.dtype)
    bins = d.floordiv(length, 2) + 1 if onesided else length
    return transform(framed(real), None if imaginary is None else framed(imaginary), bins, False)


def cosine_window(size: Dims, output_datatype: int, periodic: int, terms: tuple[float, ...]) -> Tensor:
    """Sum of (-1)**k * terms[k] * cos(2 pi k n / N), N = size if periodic, else size - 1."""
    dtype = BY_ONNX[output_datatype]
    count: Dim = size[0] if periodic else size[0] - 1

    def element(n: Expr) -> Expr:
        angle = cast(n, "f64") * (const(2 * math.pi, "f64") / cast(dim(count), "f64"))
        total: Expr = const(terms[0], "f64")
        for k, term in enumerate(terms[1:], 1):
            total = total + apply("cos", angle * float(k)) * (term * (-1) ** k)
        return cast(total, compute(dtype))
    return tensor_map((size[0],), dtype, element)


@op("HannWindow", since=17)
def hann_window(size: Dims, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return cosine_window(size, output_datatype, periodic, (0.5, 0.5))


@op("HammingWindow", since=17)
def hamming_window(size: Dims, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return cosine_window(size, output_datatype, periodic, (25 / 46, 21 / 46))


@op("BlackmanWindow", since=17)
def blackman_window(size: Dims, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return cosine_window(size, output_datatype, periodic, (0.42, 0.5, 0.08))


@op("MelWeightMatrix", since=17)
def mel_weight_matrix(num_mel_bins: Const, dft_length: Const, sample_rate: Const, lower_edge_hertz: Const, upper_edge_hertz: Const, *,
                      output_datatype: int = 1) -> Tensor:
    """Triangles between the bins of mel-spaced frequencies; known while lowering, since every input must be."""
    bins, length, rate = (int(v.ravel()[0]) for v in (num_mel_bins, dft_length, sample_rate))
    low, high = (float(v.ravel()[0]) for v in (lower_edge_hertz, upper_edge_hertz))
    mel = [2595 * math.log10(1 + f / 700) for f in (low, high)]
    points = mel[0] + np.arange(bins + 2) * (mel[1] - mel[0]) / (bins + 2)
    hertz = 700 * (np.power(10, points / 2595) - 1)
    places = ((length + 1) * hertz // rate).astype(int)
    out = np.zeros((length // 2 + 1, bins))
    for k in range(bins):
        lower, centre, upper = places[k:k + 3]
        if centre == lower:
            out[centre, k] = 1
        else:
            out[lower:centre + 1, k] = (np.arange(lower, centre + 1) - lower) / (centre - lower)
        if upper > centre:
            out[centre:upper, k] = (upper - np.arange(centre, upper)) / (upper - centre)
    return constant(out, BY_ONNX[output_datatype])


