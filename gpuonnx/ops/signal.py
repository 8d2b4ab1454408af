"""Fourier transforms, windows, mel filters."""
from __future__ import annotations

import math

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Tensor, builder, call, cast, const, constant, dim, product, tensor_map
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import apply, guard
from gpuonnx.ir.formula import less
from gpuonnx.ir.types import BY_ONNX, compute
from gpuonnx.ops.registry import Const, Dims, op


def fourier(x: Tensor, bins: Dim, inverse: bool, parts: Dim = 2, hermitian: bool = False) -> Tensor:
    """x[A, M, C, 1 or 2] -> [A, bins, C, parts] (kernels/cpu/fft.py)."""
    v = x.wide()
    y: Tensor = call("fft", v, out=v.like(x.shape[0], bins, x.shape[2], parts), inverse=int(inverse), hermitian=int(hermitian))
    return y.cast(x.dtype)


def checked(x: Tensor) -> Tensor:
    """The last axis is 1 (real) or 2 (real, imaginary), which it has as a number then."""
    last = builder().ask(x.shape[-1])
    if last not in (1, 2):
        raise ModelError(f"{builder().origin}: the last axis has {last} elements; it must be 1 (real) or 2 (complex)")
    return x.slice(-1, 0, last)


def resized(t: Tensor, length: Dim) -> Tensor:
    """The second axis cut or filled with zeros."""
    size = t.shape[1]
    if size is length or size == length:
        return t
    shape = (t.shape[0], length, *t.shape[2:])
    return tensor_map(shape, t.dtype, lambda *i: guard(less(i[1], dim(size)), t.at(*i), const(0, compute(t.dtype))))


def dft(x: Tensor, dft_length: Dims | None, axis: int, inverse: int, onesided: int) -> Tensor:
    x = checked(x)
    axis = x.axis(axis)
    if axis == x.rank - 1:
        raise ModelError(f"{builder().origin}: axis {axis} holds real and imaginary parts")
    before, after = tuple(x.shape[:axis]), tuple(x.shape[axis + 1:-1])
    rows = x.reshape(product(before), x.shape[axis], product(after), x.shape[-1])
    if inverse and onesided:
        length = dft_length[0] if dft_length else (x.shape[axis] - 1) * 2
        return fourier(rows, length, True, 1, hermitian=True).reshape(*before, length, *after, 1)
    length = dft_length[0] if dft_length else x.shape[axis]
    bins = d.floordiv(length, 2) + 1 if onesided else length
    return fourier(resized(rows, length), bins, bool(inverse)).reshape(*before, bins, *after, 2)


@op("DFT", since=20)
def dft_20(x: Tensor, dft_length: Dims | None = None, axis: Const | None = None, *, inverse: int = 0, onesided: int = 0) -> Tensor:
    return dft(x, dft_length, int(axis.ravel()[0]) if axis is not None else -2, inverse, onesided)


@op("DFT", since=17)
def dft_17(x: Tensor, dft_length: Dims | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    return dft(x, dft_length, axis, inverse, onesided)


@op("STFT", since=17)
def stft(signal: Tensor, frame_step: Dims, window: Tensor | None = None, frame_length: Dims | None = None, *, onesided: int = 1) -> Tensor:
    """Frames every `frame_step` samples, weighted by the window, each transformed."""
    x = checked(signal if signal.rank == 3 else signal.unsqueeze([signal.rank]))
    step = frame_step[0]
    length: Dim = frame_length[0] if frame_length else window.shape[0] if window is not None else x.shape[1]
    frames = d.floordiv(x.shape[1] - length, step) + 1

    def element(b: Expr, f: Expr, n: Expr, part: Expr) -> Expr:
        value = x.at(b, f * dim(step) + n, part)
        return value if window is None else value * cast(window.at(n), value.dtype)
    cut = tensor_map((x.shape[0], frames, length, x.shape[2]), x.dtype, element)
    bins = d.floordiv(length, 2) + 1 if onesided else length
    y = fourier(cut.reshape(x.shape[0] * frames, length, 1, x.shape[2]), bins, False)
    return y.reshape(x.shape[0], frames, bins, 2)


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


