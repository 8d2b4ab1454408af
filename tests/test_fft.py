"""Fourier transforms against NumPy's in float64."""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from op_runner import node_model

import gpuonnx

RNG = np.random.default_rng(8)
LENGTHS = [*range(1, 34), 49, 64, 77, 100, 121, 125, 127, 128, 169, 210, 243, 256, 300, 343, 1000, 1021, 1024, 2042, 4096, 44100]


@cache
def session(dtype: str, parts: int, lengths: bool, **attributes: int) -> Any:
    """A DFT along axis 1 of a tensor of rank 4, with or without an input for its length."""
    inputs = [np.zeros((1, 4, 1, parts), dtype), np.array(4) if lengths else None, np.array(1)]
    return gpuonnx.load(node_model("DFT", inputs, 20, **attributes), device="cpu", threads=1)


def transformed(x: np.ndarray, length: int | None = None, **attributes: int) -> np.ndarray:
    """As complex numbers, or real ones where the result is real."""
    feeds = {"x0": x, "x2": np.array(1), **({} if length is None else {"x1": np.array(length)})}
    y: np.ndarray = session(x.dtype.name, x.shape[-1], length is not None, **attributes).run(feeds)["y0"]
    assert y.dtype == x.dtype
    return y[..., 0] if y.shape[-1] == 1 else y[..., 0] + 1j * y[..., 1]


def signal(dtype: str, *shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def complex_of(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide[..., 0] + 1j * wide[..., 1] if x.shape[-1] == 2 else wide[..., 0]


def close(ours: np.ndarray, exact: np.ndarray, dtype: str) -> None:
    assert ours.shape == exact.shape
    error = np.abs(ours - exact).max(initial=0) / max(np.abs(exact).max(initial=0), 1e-30)
    assert error < {"float32": 6e-7, "float64": 2e-15, "float16": 1e-3}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kind_of_length(dtype: str) -> None:
    """Factors with a pass of their own, other primes, those that become a convolution (127, 1021, 2042); no length compiles anything."""

    transformed(signal(dtype, 2, 4, 1, 2))
    variants = session(dtype, 2, False).stats.variants
    for n in LENGTHS:
        x = signal(dtype, 2, n, 1, 2)
        close(transformed(x), np.fft.fft(complex_of(x), axis=1), dtype)
        close(transformed(x, inverse=1), np.fft.ifft(complex_of(x), axis=1), dtype)
    assert session(dtype, 2, False).stats.variants == variants


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_does_not_depend_on_those_beside_it(dtype: str, inverse: int) -> None:
    """Alone a row is cut into vectors, among others it is a lane; beyond some length it is always alone."""
    for n in (1, 3, 8, 30, 64, 243, 400, 1021, 4000, 4100, 9261):
        x = signal(dtype, 11, n, 1, 2)
        together = transformed(x, inverse=inverse)
        for k in (0, 7, 8, 10):
            np.testing.assert_array_equal(together[k:k + 1], transformed(x[k:k + 1], inverse=inverse))


@pytest.mark.parametrize("parts", [1, 2])
def test_rows_that_lie_in_any_way(parts: int) -> None:
    """Rows whose points, whose numbers, or neither stand side by side, in groups that are not whole."""
    for shape in ((13, 50, 1), (1, 50, 13), (3, 50, 5), (5, 37, 2)):
        x = signal("float64", *shape, parts)
        close(transformed(x), np.fft.fft(complex_of(x), axis=1), "float64")
        close(transformed(x, onesided=1), np.fft.fft(complex_of(x), axis=1)[:, :shape[1] // 2 + 1], "float64")
        if parts == 2:
            close(transformed(x, 72, onesided=1, inverse=1), np.fft.irfft(complex_of(x), 72, axis=1), "float64")


def test_nothing_to_transform() -> None:
    assert transformed(signal("float64", 2, 6, 3, 2), 0).shape == (2, 0, 3)
    assert transformed(signal("float64", 2, 6, 0, 2)).shape == (2, 6, 0)


@pytest.mark.parametrize("n", [1, 12, 97, 1021])
def test_lengths_that_the_file_says(n: int) -> None:
    x = signal("float64", 3, n, 2)
    model = node_model("DFT", [x], 17)
    for declared, size in zip(model.graph.input[0].type.tensor_type.shape.dim, x.shape, strict=True):
        declared.dim_value = size
    y = gpuonnx.load(model, device="cpu", threads=1).run(x)["y0"]
    close(y[..., 0] + 1j * y[..., 1], np.fft.fft(complex_of(x), axis=1), "float64")


def test_float32_rounds_as_numpy_does() -> None:
    x = signal("float32", 3, 1000, 1, 2)
    forward = np.fft.fft(complex_of(x), axis=1).astype(np.complex64)
    assert (transformed(x) == forward).mean() > 0.99
    theirs = np.fft.ifft((x[..., 0] + np.complex64(1j) * x[..., 1]), axis=1)
    assert theirs.dtype == np.complex64
    assert np.abs(transformed(x, inverse=1) - theirs).max() <= 4 * np.finfo(np.float32).eps * np.abs(theirs).max()


@pytest.mark.parametrize("n", [1, 2, 7, 10, 30, 101])
@pytest.mark.parametrize("length", [1, 2, 9, 16, 64])
def test_lengths_that_cut_or_fill(n: int, length: int) -> None:
    x, real = signal("float64", 2, n, 3, 2), signal("float64", 2, n, 3, 1)
    close(transformed(x, length), np.fft.fft(complex_of(x), length, axis=1), "float64")
    close(transformed(x, length, inverse=1), np.fft.ifft(complex_of(x), length, axis=1), "float64")
    close(transformed(real, length), np.fft.fft(complex_of(real), length, axis=1), "float64")
    close(transformed(real, length, onesided=1), np.fft.rfft(complex_of(real), length, axis=1), "float64")
    close(transformed(x, length, onesided=1, inverse=1), np.fft.irfft(complex_of(x), length, axis=1), "float64")


def test_narrow_floats_and_empty_batches() -> None:
    x = signal("float16", 2, 12, 2, 1)
    close(transformed(x, onesided=1), np.fft.rfft(complex_of(x), axis=1), "float16")
    assert transformed(signal("float32", 0, 8, 2, 2)).shape == (0, 8, 2)


@pytest.mark.parametrize("axis", [0, 1, 2, -2, -3])
@pytest.mark.parametrize("opset", [17, 20])
def test_axes(axis: int, opset: int) -> None:
    x = signal("float64", 4, 5, 6, 2)
    given, attributes = ([x], {"axis": axis}) if opset == 17 else ([x, None, np.array(axis)], {})
    y = gpuonnx.run(node_model("DFT", given, opset, **attributes), [v for v in given if v is not None])["y0"]
    close(y[..., 0] + 1j * y[..., 1], np.fft.fft(complex_of(x), axis=axis % 4), "float64")


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("windowed", [False, True])
def test_short_time_transforms(onesided: int, windowed: bool) -> None:
    x, step, length = signal("float32", 2, 50, 1), 7, 12
    window = np.hanning(length).astype(np.float32) if windowed else None
    given = [x, np.array(step), window, np.array(length)]
    y = gpuonnx.run(node_model("STFT", given, 17, onesided=onesided), [v for v in given if v is not None])["y0"]
    frames = np.stack([x[:, k:k + length, 0] for k in range(0, 50 - length + 1, step)], 1) * (window if windowed else 1)
    close(y[..., 0] + 1j * y[..., 1], (np.fft.rfft if onesided else np.fft.fft)(frames.astype(np.float64)), "float32")


def test_a_wrong_last_axis_is_refused() -> None:
    x = signal("float32", 2, 8, 3)
    with pytest.raises(gpuonnx.GpuOnnxError, match=r"last axis has 3"):
        gpuonnx.run(node_model("DFT", [x], 17), [x])
