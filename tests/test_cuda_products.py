"""Products and convolutions on the emulated device, with every check on: sizes around tile edges, layouts, types, epilogues."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cuda_runner import run, run_node

from gpuonnx.codegen import products
from gpuonnx.codegen.cuda import spec_of
from gpuonnx.devices import cuda_text
from gpuonnx.devices.emulated import EmulatedCuda
from gpuonnx.devices.emulation.machine import RACES, UNFAIR, EmulationError
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Space
from gpuonnx.ir.evaluate import evaluate
from gpuonnx.ir.expr import Expr, apply, cast, index, load
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.kernels.contract import Layout

TOLERANCE = {"f32": 2e-6, "f64": 1e-14, "f16": 1e-3, "bf16": 8e-3}


@pytest.fixture(scope="module")
def device() -> EmulatedCuda:
    return EmulatedCuda(level=RACES)


def numbers(dtype: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(numpy_dtype(dtype))


def turned(dtype: str, shape: Sequence[int]) -> Layout:
    """The last two axes exchanged in memory."""
    *lead, rows, columns = shape
    strides = list(Layout.dense(dtype, (*lead, columns, rows)).strides)
    return Layout(dtype, tuple(shape), (*strides[:-2], strides[-1], strides[-2]))


def apart(dtype: str, shape: Sequence[int]) -> Layout:
    """Neither axis dense."""
    return Layout(dtype, tuple(shape), tuple(3 * s for s in Layout.dense(dtype, tuple(shape)).strides))


def close(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    assert got.shape == want.shape
    if want.size:
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=TOLERANCE[dtype] * scale)


def gemm(device: EmulatedCuda, dtype: str, a_shape: Sequence[int], b_shape: Sequence[int], layouts: Any = (Layout.dense, Layout.dense)) -> None:
    a, b = numbers(dtype, a_shape), numbers(dtype, b_shape, 1)
    want = a.astype(np.float64) @ b.astype(np.float64)
    node = g.Call((g.Value(dtype, a.shape), g.Value(dtype, b.shape)), (g.Value(dtype, want.shape),), kernel="gemm")
    assert device.supports(node) is None
    made = [f(dtype, v.shape) for f, v in zip(layouts, (a, b), strict=True)]
    close(run_node(device, node, [a, b], inputs=made)[0], want, dtype)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
@pytest.mark.parametrize("sizes", [(64, 64, 64), (63, 65, 17), (65, 127, 31), (9, 1, 1), (130, 3, 40), (20, 20, 1030)])
def test_sizes_around_the_edges_of_tiles(device: EmulatedCuda, dtype: str, sizes: tuple[int, int, int]) -> None:
    rows, columns, depth = sizes
    gemm(device, dtype, (rows, depth), (depth, columns))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("rows", [1, 4, 5, 8])
def test_few_rows(device: EmulatedCuda, dtype: str, rows: int) -> None:
    gemm(device, dtype, (rows, 37), (37, 70))
    gemm(device, dtype, (rows, 1200), (1200, 33))
    gemm(device, dtype, (rows, 1200), (1200, 33), (Layout.dense, turned))


@pytest.mark.parametrize("dtype", ["f32", "f16", "f64"])
@pytest.mark.parametrize("left", [Layout.dense, turned, apart])
@pytest.mark.parametrize("right", [Layout.dense, turned, apart])
def test_every_layout(device: EmulatedCuda, dtype: str, left: Any, right: Any) -> None:
    gemm(device, dtype, (40, 48), (48, 72), (left, right))
    gemm(device, dtype, (41, 47), (47, 71), (left, right))


@pytest.mark.parametrize(("a", "b"), [((3, 20, 24), (24, 33)), ((2, 3, 20, 24), (2, 3, 24, 16)), ((20, 24), (4, 24, 16)), ((5, 1, 24), (24, 40))])
def test_batches(device: EmulatedCuda, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    gemm(device, "f32", a, b)
    gemm(device, "f16", a, b)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(0, 5, 6), (20, 0, 6), (20, 5, 0), (2, 5, 0)])
def test_size_0(device: EmulatedCuda, dtype: str, rows: int, columns: int, depth: int) -> None:
    gemm(device, dtype, (rows, depth), (depth, columns))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_one_build_serves_every_size(dtype: str) -> None:
    device = EmulatedCuda(level=1)
    space = Space()
    m, k, n = (space.sym(name) for name in "mkn")
    node = g.Call((g.Value(dtype, (m, k)), g.Value(dtype, (k, n))), (g.Value(dtype, (m, n)),), kernel="gemm")
    layouts = [Layout.dense(v.dtype, v.dims) for v in (*node.inputs, *node.outputs)]
    build = device.build(node, tuple(layouts[:2]), tuple(layouts[2:]), {})
    compiled = 0
    for sizes in ((1, 5, 30), (20, 9, 30), (7, 1100, 40), (1480, 20, 1530), (0, 3, 3), (70, 2000, 65)):
        a, b = numbers(dtype, sizes[:2]), numbers(dtype, sizes[1:], 1)
        got = run(device, build, [(layouts[0], a), (layouts[1], b)], layouts[2:], dict(zip("mkn", sizes, strict=True)))[0]
        close(got, a.astype(np.float64) @ b.astype(np.float64), dtype)
        compiled = compiled or device.compiled
        assert device.compiled == compiled


def epilogue(dtype: str, rank: int, channel: int, out: str) -> Expr:
    """relu(product + bias[channel]) + residual, rounded to what is stored."""
    axes = tuple(map(index, range(rank)))
    wide = apply("relu", load(0, dtype, axes) + load(1, dtype, (index(channel),))) + load(2, dtype, axes)
    return cast(wide, out)


@pytest.mark.parametrize(("dtype", "out"), [("f32", "f32"), ("f16", "f16"), ("f32", "i8"), ("bf16", "f32"), ("f64", "f64")])
@pytest.mark.parametrize("depth", [24, 1500])
def test_epilogues(device: EmulatedCuda, dtype: str, out: str, depth: int) -> None:
    shapes = ((2, 20, depth), (depth, 40), (40,), (2, 20, 40))
    arrays = [numbers(dtype, s, k) for k, s in enumerate(shapes)]
    values = tuple(g.Value(dtype, s) for s in shapes)
    node = g.Call(values, (g.Value(out, (2, 20, 40)),), kernel="gemm", epilogue=epilogue(dtype, 3, 2, out), operands=2)
    got = run_node(device, node, arrays)[0]
    a, b, bias, residual = (x.astype(np.float64) for x in arrays)
    want = np.maximum(a @ b + bias, 0) + residual
    if out == "i8":
        np.testing.assert_allclose(got, np.clip(np.trunc(want), -128, 127), atol=1)
    else:
        close(got, want, dtype)


def test_an_epilogue_that_names_its_axes(device: EmulatedCuda) -> None:
    axes = tuple(map(index, range(3)))
    expr = load(0, "f32", axes) + cast(index(1), "f32") * 100.0 + cast(index(0), "f32") * 1000.0 + cast(index(2), "f32")
    a, b = numbers("f32", (2, 20, 8)), numbers("f32", (8, 12), 1)
    node = g.Call((g.Value("f32", a.shape), g.Value("f32", b.shape)), (g.Value("f32", (2, 20, 12)),), kernel="gemm", epilogue=expr)
    n, i, j = np.indices((2, 20, 12))
    close(run_node(device, node, [a, b])[0], a.astype(np.float64) @ b + n * 1000 + i * 100 + j, "f32")


CONVOLUTIONS = {
    "strided": ((2, 8, 17, 19), (16, 8, 3, 3), (2, 1), (1, 1), (1, 1, 1, 1), 1),
    "dilated": ((2, 8, 9, 10), (16, 8, 3, 2), (1, 2), (2, 1), (2, 0, 1, 1), 1),
    "pointwise": ((1, 16, 8, 9), (70, 16, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1),
    "1-d, groups": ((2, 6, 40), (32, 3, 5), (2,), (1,), (2, 2), 2),
    "3-d": ((1, 3, 5, 6, 7), (9, 3, 2, 3, 2), (1, 1, 2), (1, 1, 1), (1, 0, 0, 0, 1, 1), 1),
    "depthwise": ((2, 8, 6, 6), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 8),
    "deep": ((1, 200, 5, 5), (12, 200, 3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    "no image": ((0, 4, 6, 6), (12, 4, 3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(device: EmulatedCuda, dtype: str, name: str) -> None:
    x_shape, w_shape, strides, dilations, pads, group = CONVOLUTIONS[name]
    kernel, rank = w_shape[2:], len(w_shape) - 2
    out = tuple((x_shape[2 + k] + pads[k] + pads[rank + k] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1 for k in range(rank))
    attrs = {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads, "group": group}
    shapes = (x_shape, w_shape, (w_shape[0],), (x_shape[0], w_shape[0], *out))
    arrays = [numbers(dtype, s, k) for k, s in enumerate(shapes)]
    node = g.Call(tuple(g.Value(dtype, s) for s in shapes), (g.Value(dtype, shapes[3]),), kernel="conv", attrs=attrs,
                  epilogue=epilogue(dtype, 2 + rank, 1, dtype), operands=2)
    assert device.supports(node) is None
    layouts = [Layout.dense(v.dtype, v.dims) for v in (*node.inputs, *node.outputs)]
    nest = products.nest("conv", spec_of(node, layouts[:4], layouts[4:], {}), True)
    for constants in ({}, {1: arrays[1]}):
        close(run_node(device, node, arrays, constants=constants)[0], evaluate(nest, arrays, {})[0].astype(np.float64), dtype)


def bytes_of(dtype: str, shape: Sequence[int], seed: int) -> np.ndarray:
    info = np.iinfo(numpy_dtype(dtype))
    return np.random.default_rng(seed).integers(info.min, info.max + 1, tuple(shape)).astype(numpy_dtype(dtype))


def zeros_of(left: tuple[str, Any], right: tuple[str, Any]) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """Zero points of shape () or (n,), or None; and the numbers of those that are absent."""
    given = [(2 + k, bytes_of(dtype, shape, 7 + k)) for k, (dtype, shape) in enumerate((left, right)) if shape is not None]
    return [a for _, a in given], tuple(k for k in (2, 3) if k not in [n for n, _ in given])


@pytest.mark.parametrize(("left", "right"), [("u8", "i8"), ("i8", "i8"), ("u8", "u8"), ("i8", "u8")])
@pytest.mark.parametrize("zeros", [(None, None), ((), ()), ("rows", "columns"), ((), None)])
@pytest.mark.parametrize("turn", [False, True])
def test_products_of_bytes(device: EmulatedCuda, left: str, right: str, zeros: tuple[Any, Any], turn: bool) -> None:
    rows, columns, depth = (64, 48, 80) if turn else (67, 45, 1100)
    a, b = bytes_of(left, (rows, depth), 0), bytes_of(right, (depth, columns), 1)
    shapes = [{"rows": (rows,), "columns": (columns,)}.get(z, z) if isinstance(z, str) else z for z in zeros]
    points, absent = zeros_of((left, shapes[0]), (right, shapes[1]))
    arrays = [a, b, *points]
    node = g.Call(tuple(g.Value(d, v.shape) for d, v in zip((left, right, *((left, right)[k - 2] for k in (2, 3) if k not in absent)), arrays, strict=True)),
                  (g.Value("i32", (rows, columns)),), kernel="gemm_integer", attrs={"absent": absent} if absent else {})
    za, zb = (next((p for k, p in zip([k for k in (2, 3) if k not in absent], points, strict=True) if k == n), np.zeros((), np.int8)) for n in (2, 3))
    want = (a.astype(np.int64) - za.astype(np.int64).reshape(-1, 1)) @ (b.astype(np.int64) - zb.astype(np.int64))
    layouts = [Layout.dense(v.dtype, v.dims) for v in node.inputs]
    if turn:
        layouts[1] = turned(right, b.shape)
    assert device.supports(node) is None
    for constants in ({}, {1: b}):
        np.testing.assert_array_equal(run_node(device, node, arrays, inputs=layouts, constants=constants)[0], want)


@pytest.mark.parametrize("zeros", [(None, None), ((), ()), ((), "channels")])
@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_of_bytes(device: EmulatedCuda, zeros: tuple[Any, Any], group: int) -> None:
    x, w = bytes_of("u8", (2, 6, 9, 10), 0), bytes_of("i8", (32, 6 // group, 3, 3), 1)
    points, absent = zeros_of(("u8", zeros[0]), ("i8", (32,) if zeros[1] == "channels" else zeros[1]))
    attrs = {"kernel": (3, 3), "strides": (2, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": group} | ({"absent": absent} if absent else {})
    arrays = [x, w, *points]
    node = g.Call(tuple(g.Value(d, v.shape) for d, v in zip(("u8", "i8", "u8", "i8"), arrays, strict=False)), (g.Value("i32", (2, 32, 5, 10)),),
                  kernel="conv_integer", attrs=attrs)
    zx = points[0].astype(np.int64) if points else 0
    zw = points[1].astype(np.int64).reshape(-1, 1, 1, 1) if points else 0
    padded = np.pad(x.astype(np.int64) - zx, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2]
    weights = (w.astype(np.int64) - zw).reshape(group, 32 // group, 6 // group, 3, 3)
    want = np.einsum("ngchwij,gocij->ngohw", windows.reshape(2, group, 6 // group, *windows.shape[2:]), weights).reshape(2, 32, 5, 10)
    for constants in ({}, {1: w}):
        np.testing.assert_array_equal(run_node(device, node, arrays, constants=constants)[0], want)


@pytest.mark.parametrize("rows", [3, 70])
def test_constant_halves_with_ragged_lines(device: EmulatedCuda, rows: int) -> None:
    a, b = numbers("f16", (rows, 37)), numbers("f16", (37, 45), 1)
    node = g.Call((g.Value("f16", a.shape), g.Value("f16", b.shape)), (g.Value("f16", (rows, 45)),), kernel="gemm")
    close(run_node(device, node, [a, b], constants={1: b})[0], a.astype(np.float64) @ b.astype(np.float64), "f16")


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_any_order_of_threads_gives_the_same(dtype: str) -> None:
    a, b = numbers(dtype, (70, 200)), numbers(dtype, (200, 66), 1)
    node = g.Call((g.Value(dtype, a.shape), g.Value(dtype, b.shape)), (g.Value(dtype, (70, 66)),), kernel="gemm")
    plain, unfair = (run_node(d, node, [a, b])[0] for d in (EmulatedCuda(), EmulatedCuda(level=RACES, order=UNFAIR, seed=5)))
    np.testing.assert_array_equal(plain.view(f"u{plain.itemsize}"), unfair.view(f"u{plain.itemsize}"))


@pytest.mark.parametrize(("dtype", "file", "gone", "says"), [
    ("f32", "product.cuh", "      async_wait<0>();\n      __syncthreads();", "race|uninitialised|never waited"),
    ("f32", "product.cuh", "      async_wait<0>();\n", "uninitialised|never waited"),
    ("f16", "product.cuh", "      async_wait<STAGES - 2>();\n", "uninitialised|never waited"),
    ("f16", "product.cuh", "__syncthreads();\n      const int ahead", "race|uninitialised"),
    ("f16", "product.cuh", "      __syncwarp();\n", "race|uninitialised"),
    ("f32", "gemm.cu", "t % BK < this->left && ", "out of bounds"),
])
def test_what_the_kernels_must_not_forget(monkeypatch: pytest.MonkeyPatch, dtype: str, file: str, gone: str, says: str) -> None:
    """Each of these, taken out of the sources, is caught."""
    original = cuda_text.source(file)
    assert gone in original
    rest = "const int ahead" if gone.endswith("const int ahead") else ""
    monkeypatch.setattr(cuda_text, "source", lambda name, read=cuda_text.source: read(name).replace(gone, rest) if name == file else read(name))
    with pytest.raises(EmulationError, match=says):
        gemm(EmulatedCuda(level=RACES), dtype, (72, 344), (344, 72))
