"""Hand-written CUDA kernels by their Calls, with races, bounds and unwritten memory checked, against NumPy."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_runner import dense, run

from gpuonnx.devices.emulated import EmulatedCuda
from gpuonnx.devices.emulation.machine import RACES
from gpuonnx.ir import graph as g
from gpuonnx.ir.types import of_numpy

RNG = np.random.default_rng(5)
DEVICE = EmulatedCuda(RACES)


def called(kernel: str, inputs: list[np.ndarray], outputs: list[tuple[str, tuple[int, ...]]], constants: dict[int, np.ndarray] | None = None,
           **attrs: Any) -> list[np.ndarray]:
    node = g.Call(tuple(g.Value(of_numpy(x.dtype), x.shape) for x in inputs), tuple(g.Value(t, s) for t, s in outputs), kernel=kernel, attrs=attrs)
    assert DEVICE.supports(node) is None
    reads, writes = list(map(dense, node.inputs)), list(map(dense, node.outputs))
    build = DEVICE.build(node, tuple(reads), tuple(writes), constants or {})
    return run(DEVICE, build, list(zip(reads, inputs, strict=True)), writes)


def close(parts: np.ndarray, exact: np.ndarray, limit: float) -> None:
    ours = parts[..., 0] + 1j * parts[..., 1] if parts.shape[-1] == 2 else parts[..., 0]
    assert np.abs(ours - exact).max(initial=0) <= limit * max(np.abs(exact).max(initial=0), 1e-30)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("points", [1, 2, 3, 4, 5, 7, 12, 60, 64, 121, 127, 3000])
def test_fft_of_every_kind_of_length(points: int, dtype: Any) -> None:
    """Factors with a pass of their own and other primes; numbers that shared memory cannot hold."""
    x, name = RNG.standard_normal((2, points, 1, 2)).astype(dtype), of_numpy(np.dtype(dtype))
    z = x.astype(np.float64)[..., 0] + 1j * x[..., 1]
    limit = 6e-7 if dtype == np.float32 else 2e-15
    for inverse, exact in ((0, np.fft.fft(z, axis=1)), (1, np.fft.ifft(z, axis=1))):
        close(called("fft", [x], [(name, x.shape)], inverse=inverse)[0], exact, limit)


def test_fft_of_real_numbers_and_back() -> None:
    x = RNG.standard_normal((2, 30, 3, 1))
    (y,) = called("fft", [x], [("f64", (2, 16, 3, 2))], inverse=0)
    close(y, np.fft.rfft(x[..., 0], axis=1), 2e-15)
    (z,) = called("fft", [y], [("f64", (2, 30, 3, 1))], inverse=1, hermitian=1)
    close(z, x[..., 0], 2e-15)
    (padded,) = called("fft", [y[:, :9]], [("f64", (2, 30, 3, 1))], inverse=1, hermitian=1)
    close(padded, np.fft.irfft(y[:, :9, :, 0] + 1j * y[:, :9, :, 1], 30, axis=1), 2e-15)


@pytest.mark.parametrize("shape", [(0, 4, 1, 2), (2, 0, 1, 2)])
def test_fft_of_nothing(shape: tuple[int, ...]) -> None:
    (y,) = called("fft", [np.zeros(shape)], [("f64", shape)], inverse=0)
    assert y.shape == shape


@pytest.mark.parametrize("count", [0, 1, 311, 312, 313, 2000])
def test_mersenne_twister(count: int) -> None:
    for seed in (0, 1, 123456789, 2**32 - 1):
        (u,) = called("mersenne", [np.array(seed)], [("f64", (count,))])
        np.testing.assert_array_equal(u, np.random.RandomState(seed).random_sample(count))


def stumps(count: int, targets: int) -> list[np.ndarray]:
    """Trees of one question: column k % 3 at most k / count; the false leaf has an entry of each target, the true one of the first."""
    columns = np.array([[0, 0], [1, 1], [2, 0]], np.int32)
    nodes, entries = [], 0
    for k in range(count):
        nodes += [(k % 3, 3 * k + 1, 3 * k + 2), (-1, entries, entries + 1), (-1, entries + 1, entries + 1 + targets)]
        entries += 1 + targets
    thresholds = np.repeat(np.arange(count) / count, 3).astype(np.float32)
    goals = np.array([0, *range(targets)] * count, np.int32)
    return [columns, np.array(nodes, np.int32), thresholds, np.arange(0, 3 * count, 3, dtype=np.int32), goals, RNG.random(len(goals)).astype(np.float32)]


@pytest.mark.parametrize("targets", [1, 2, 40])
@pytest.mark.parametrize(("rows", "trees"), [(1, 1), (3, 70), (300, 9), (8300, 2), (0, 3)])
def test_forests(rows: int, trees: int, targets: int) -> None:
    if rows * targets > 20000:
        rows //= 10
    tables = stumps(trees, targets)
    x = RNG.random((rows, 3)).astype(np.float32)
    x[::7] = np.nan
    columns, _, thresholds, _, _, weights = tables
    way = (x[:, columns[np.arange(trees) % 3, 0]] <= thresholds[::3]) | np.isnan(x[:, :1]) & (columns[np.arange(trees) % 3, 1] == 1)
    each = weights.reshape(trees, 1 + targets).astype(np.float64)
    found = np.where(way[..., None], np.eye(1, targets) * each[:, :1], each[:, 1:])
    there = np.where(way[..., None], np.eye(1, targets), 1.0) > 0
    expected = {0: found.sum(1), 1: found.sum(1) / trees,
                2: np.where(there.any(1), np.where(there, found, np.inf).min(1, initial=np.inf), 0),
                3: np.where(there.any(1), np.where(there, found, -np.inf).max(1, initial=-np.inf), 0)}
    for aggregate, want in expected.items():
        (y,) = called("trees", [x, *tables], [("f32", (rows, targets))], dict(enumerate(tables, 1)), aggregate=aggregate)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
