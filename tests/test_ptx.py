"""What NVRTC really emits, run by the interpreter of PTX, for a kernel of each family; against NumPy."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_runner import run_node
from nvrtc import compiled
from ptx import Memory, PtxError, launch
from ptx_device import PtxDevice
from ptx_text import parse
from test_cuda_attention import attention

from gpuonnx.ir import graph as g
from gpuonnx.ir.evaluate import evaluate
from gpuonnx.ir.expr import apply, folded, index, load
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.kernels.contract import Layout

AT = (index(0), index(1))


@pytest.fixture(scope="module")
def device() -> PtxDevice:
    return PtxDevice(90)


def value(dtype: str, *shape: int) -> g.Value:
    return g.Value(dtype, shape)


def numbers(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(dtype))


def forms(device: PtxDevice) -> set[str]:
    return {i.name for entry in device.entries.values() for i in entry.code}


def agree(device: PtxDevice, node: g.Node, arrays: list[np.ndarray], tolerance: float, inputs: Any = None) -> None:
    want, got = evaluate(node, arrays, {})[0], run_node(device, node, arrays, inputs=inputs)[0]
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=tolerance)


def test_a_nest_without_folds(device: PtxDevice) -> None:
    x, y = load(0, "f16", AT), load(1, "f32", (index(1),))
    node = g.Map((value("f16", 5, 33), value("f32", 33)), (value("f32", 5, 33),), expr=apply("exp", x) * y + apply("sigmoid", x))
    agree(device, node, [numbers("f16", 5, 33), numbers("f32", 33)], 1e-5)


def test_a_reduction_by_shuffles(device: PtxDevice) -> None:
    x = load(0, "f32", AT)
    shifted = apply("exp", x - folded(0, 0, "f32"))
    stages = ((g.Fold("max", x),), (g.Fold("sum", shifted),), (g.Store(0, AT, shifted / folded(1, 0, "f32")),))
    for columns in (65, 1500):
        agree(device, g.Nest((value("f32", 3, columns),), (value("f32", 3, columns),), ranges=(3, columns), over=frozenset({1}), stages=stages),
              [numbers("f32", 3, columns)], 1e-6)
    assert "shfl" in forms(device)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-5), ("f16", 2e-2), ("bf16", 2e-1)])
@pytest.mark.parametrize("sizes", [(40, 72, 48), (65, 19, 37), (3, 40, 33)])
def test_products(device: PtxDevice, dtype: str, tolerance: float, sizes: tuple[int, int, int]) -> None:
    rows, columns, depth = sizes
    a, b = numbers(dtype, rows, depth), numbers(dtype, depth, columns, seed=1)
    node = g.Call((value(dtype, rows, depth), value(dtype, depth, columns)), (value(dtype, rows, columns),), kernel="gemm")
    want = a.astype(np.float64) @ b.astype(np.float64)
    turned = Layout(dtype, (depth, columns), (1, depth))
    for right in (Layout.dense(dtype, (depth, columns)), turned):
        got = run_node(device, node, [a, b], inputs=[Layout.dense(dtype, (rows, depth)), right])[0]
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=tolerance)


def test_products_took_tensor_cores(device: PtxDevice) -> None:
    assert {"mma", "ldmatrix", "cp"} <= forms(device)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-5), ("f16", 2e-2)])
def test_convolutions(device: PtxDevice, dtype: str, tolerance: float) -> None:
    attrs = {"kernel": (3, 3), "strides": (2, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}
    axes = tuple(map(index, range(4)))
    shapes = ((2, 6, 9, 10), (16, 6, 3, 3), (16,))
    node = g.Call(tuple(g.Value(dtype, s) for s in shapes), (value(dtype, 2, 16, 5, 10),), kernel="conv", attrs=attrs,
                  epilogue=apply("relu", load(0, dtype, axes) + load(1, dtype, (index(1),))), operands=1)
    x, w, bias = (numbers(dtype, *s, seed=k) for k, s in enumerate(shapes))
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2]
    want = np.maximum(np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float64)) + bias[:, None, None], 0)
    np.testing.assert_allclose(run_node(device, node, [x, w, bias])[0].astype(np.float64), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-5), ("f16", 2e-2)])
def test_attention(device: PtxDevice, dtype: str, tolerance: float) -> None:
    shapes = ((2, 20, 40), (2, 40, 70), (2, 70, 24), (20, 70))
    arrays = [numbers(dtype, *s, seed=k) for k, s in enumerate(shapes)]
    q, k, v, mask = (a.astype(np.float64) for a in arrays)
    scores = q @ k * 0.25 + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    layouts = [Layout.dense(dtype, s) for s in shapes]
    layouts[1] = Layout(dtype, shapes[1], (40 * 70, 1, 40))
    got = run_node(device, attention(dtype, *shapes), arrays, inputs=layouts)[0]
    np.testing.assert_allclose(got.astype(np.float64), weights @ v / weights.sum(-1, keepdims=True) * 2, rtol=0, atol=tolerance)


def ran(body: str, arch: int = 80) -> np.ndarray:
    """64 threads of a kernel k(float* x, int n) on 64 floats."""
    text = f'extern "C" __global__ void k(float* x, int n) {{ int t = threadIdx.x; {body} }}'
    memory = Memory()
    address = memory.empty(256)
    memory.bytes[address:address + 256] = np.arange(64, dtype=np.float32).view(np.uint8)
    launch(parse(compiled(text, (f"-arch=compute_{arch}",))[1]), memory, 1, 64, 0, [address, 64])
    return memory.bytes[address:address + 256].view(np.float32).copy()


def test_divergent_branches_meet_again() -> None:
    got = ran("float v = 0; if (t & 1) { for (int i = 0; i < t; ++i) v += x[i % n]; } else v = -1; __syncthreads(); x[t] = v;")
    want = [float(sum(range(t))) if t & 1 else -1.0 for t in range(64)]
    np.testing.assert_array_equal(got, np.array(want, np.float32))


def test_an_access_outside_is_an_error() -> None:
    with pytest.raises(PtxError, match="out of bounds"):
        ran("x[t + 1] = 1.f;")


def test_a_barrier_that_some_threads_miss_is_an_error() -> None:
    with pytest.raises(PtxError, match="barrier"):
        ran("if (x[t] < 40.f) { __syncthreads(); x[t] = 2.f; }")
