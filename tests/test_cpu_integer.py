"""Products and convolutions of 8-bit integers on the CPU: exact, with zero points, by vpdpbusd, by pairs and by plain nests."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_runner import Bound, seconds
from test_cpu_conv import last, layout, reference, window

from gpuonnx.codegen import depthwise, integer, integer_dot, integer_pairs
from gpuonnx.ir.dims import Space
from gpuonnx.ir.expr import Expr, apply, cast, index, load
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.kernels.contract import Build, Epilogue, Layout, Spec
from gpuonnx.kernels.cpu import depthwise as written_out
from gpuonnx.kernels.cpu import dot8

RANDOM = np.random.default_rng(5)
PATHS = [pytest.param(integer_dot, id="dot", marks=pytest.mark.skipif(not dot8.available(), reason="no vpdpbusd")),
         pytest.param(integer_pairs, id="pairs"), pytest.param(integer, id="nest")]
PAIRS = [("u8", "i8"), ("u8", "u8"), ("i8", "i8"), ("i8", "u8")]


def random(shape: tuple[int, ...], dtype: str, extreme: bool = False) -> np.ndarray:
    info = np.iinfo(numpy_dtype(dtype))
    values = RANDOM.integers(info.min, info.max + 1, shape) if not extreme else RANDOM.choice([info.min, info.max], shape)
    return values.astype(info.dtype)


def made(name: str, call: Spec, way: Any) -> Build:
    build: Build = way.build(name, call) or integer.build(name, call)
    return build


def run(name: str, way: Any, arrays: list[Any], out: np.ndarray, attrs: dict[str, Any] | None = None, epilogue: Epilogue | None = None,
        extras: tuple[np.ndarray, ...] = (), constant: bool = True) -> np.ndarray:
    known = {k: a for k, a in enumerate(arrays) if k and a is not None} if constant else {}
    call = Spec(tuple(None if a is None else layout(a) for a in arrays), (layout(out),), attrs or {}, known, epilogue)
    Bound(made(name, call, way), arrays, [out], extras).run()
    return out


def product(a: np.ndarray, b: np.ndarray, za: Any = None, zb: Any = None) -> np.ndarray:
    """int64"""
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    if za is not None:
        wide_a = wide_a - (za.astype(np.int64)[:, None] if za.ndim else int(za))
    return np.matmul(wide_a, wide_b if zb is None else wide_b - zb.astype(np.int64))


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("left, right", PAIRS)
@pytest.mark.parametrize("shape", [(1, 4, 1), (3, 64, 33), (30, 61, 40), (17, 130, 100), (5, 1, 7)])
@pytest.mark.parametrize("zeros", ["none", "scalars", "columns"])
def test_gemm(way: Any, left: str, right: str, shape: tuple[int, int, int], zeros: str) -> None:
    m, k, n = shape
    a, b = random((m, k), left), random((k, n), right)
    za = None if zeros == "none" else random((), left)
    zb = None if zeros == "none" else random((n,) if zeros == "columns" else (), right)
    got = run("gemm_integer", way, [a, b, za, zb], np.full((m, n), 9, np.int32))
    np.testing.assert_array_equal(got, product(a, b, za, zb))


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("left, right", PAIRS)
def test_gemm_at_the_ends_of_the_types(way: Any, left: str, right: str) -> None:
    a, b = random((9, 256), left, True), random((256, 40), right, True)
    a[0], b[:, 0] = a.max(), b.max()
    a[1], b[:, 1] = a.min(), b.min()
    za, zb = np.array(a.min()), np.array(b.max())
    for zeros in ((None, None), (za, zb), (za, None), (None, zb)):
        got = run("gemm_integer", way, [a, b, *zeros], np.zeros((9, 40), np.int32))
        np.testing.assert_array_equal(got, product(a, b, *zeros))


@pytest.mark.parametrize("way", PATHS)
def test_gemm_batches_strides_rows(way: Any) -> None:
    base = random((2, 3, 40, 24), "u8")
    b, zb = random((24, 50), "i8"), random((50,), "i8")
    for a in (base, base[:, :, ::2], base.transpose(1, 0, 2, 3), np.ascontiguousarray(base.swapaxes(2, 3)).swapaxes(2, 3)):
        out = np.zeros((*a.shape[:-1], 50), np.int32)
        za = random((), "u8")
        np.testing.assert_array_equal(run("gemm_integer", way, [a, b, za, zb], out), product(a, b, za, zb))
    a, za = base[0, 0], random((40,), "u8")
    np.testing.assert_array_equal(run("gemm_integer", way, [a, b, za, zb], np.zeros((40, 50), np.int32)), product(a, b, za, zb))


@pytest.mark.parametrize("way", PATHS)
def test_gemm_of_operands_that_are_not_known(way: Any) -> None:
    a, b, za, zb = random((7, 30), "u8"), random((30, 20), "i8"), random((), "u8"), random((20,), "i8")
    got = run("gemm_integer", way, [a, b, za, zb], np.zeros((7, 20), np.int32), constant=False)
    np.testing.assert_array_equal(got, product(a, b, za, zb))


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("left, right", PAIRS)
def test_dequantised_by_the_epilogue(way: Any, left: str, right: str) -> None:
    a, b, za, zb = random((20, 48), left), random((48, 37), right), random((), left), random((37,), right)
    scale, more = RANDOM.random(37).astype(np.float32), RANDOM.random((20, 37)).astype(np.float32)
    e: Expr = cast(load(0, "i32", (index(0), index(1))), "f32") * load(1, "f32", (index(1),)) + load(2, "f32", (index(0), index(1)))
    e = apply("max", e, 0.0)
    got = run("gemm_integer", way, [a, b, za, zb], np.zeros((20, 37), np.float32), None,
              Epilogue(e, (layout(scale), layout(more))), (scale, more))
    want = np.maximum(product(a, b, za, zb).astype(np.float32) * scale + more, 0)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-2)


CONVOLUTIONS = [
    ((2, 1, 9, 30), (40, 1, 3, 5), window((3, 5), (2, 1), 1, (1, 2, 1, 2))), ((1, 2, 20), (5, 2, 3), window((3,), 1, 2, (2, 2))),
    ((2, 16, 9, 8), (20, 16, 3, 3), window((3, 3), pads=1)), ((1, 3, 12, 12), (8, 3, 5, 5), window((5, 5), 2, pads=2)),
    ((1, 10, 9, 9), (33, 10, 3, 2), window((3, 2), (1, 2), (2, 1), (1, 0, 2, 1))), ((2, 8, 6, 6), (5, 8, 1, 1), window((1, 1), 2)),
    ((1, 7, 30), (6, 7, 4), window((4,), 3, 2, (3, 1))), ((1, 8, 9, 9), (12, 2, 3, 3), window((3, 3), pads=1, group=4)),
    ((1, 6, 8, 8), (6, 1, 3, 3), window((3, 3), pads=1, group=6))]


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("left, right", PAIRS)
@pytest.mark.parametrize("x, w, a", CONVOLUTIONS)
@pytest.mark.parametrize("zeros", ["none", "scalars", "channels"])
def test_conv(way: Any, left: str, right: str, x: tuple[int, ...], w: tuple[int, ...], a: dict[str, Any], zeros: str) -> None:
    image, weights = random(x, left), random(w, right)
    zx = None if zeros == "none" else random((), left)
    zw = None if zeros == "none" else random((w[0],) if zeros == "channels" else (), right)
    moved = image.astype(np.int64) - (0 if zx is None else int(zx))
    offset = 0 if zw is None else zw.astype(np.int64).reshape(-1, *(1,) * (len(w) - 1))
    want = reference(moved, weights.astype(np.int64) - offset, a)
    placed = last(x, a["pads"], image.dtype, 0)
    room = placed.base
    assert room is not None
    room[...] = 0 if zx is None else int(zx)
    placed[...] = image
    out = last((x[0], w[0], *want.shape[2:]), (0,) * len(a["pads"]), np.int32, 9)
    run("conv_integer", way, [placed, weights, zx, zw], out, a)
    np.testing.assert_array_equal(out, want.astype(np.int64))


@pytest.mark.parametrize("left, right", PAIRS)
@pytest.mark.parametrize("zeros", ["none", "scalars", "channels"])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_one_channel_a_group(left: str, right: str, zeros: str, multiplier: int) -> None:
    class Way:
        @staticmethod
        def build(name: str, call: Spec) -> Build:
            assert depthwise.serves(call)
            return depthwise.build(call)
    test_conv(Way, left, right, (2, 21, 7, 9), (21 * multiplier, 1, 3, 2), window((3, 2), (1, 2), (2, 1), (1, 0, 2, 1), group=21), zeros)


@pytest.mark.parametrize("left, right", PAIRS)
@pytest.mark.parametrize("zeros", ["none", "scalars", "channels"])
@pytest.mark.parametrize("channels", [5, 24, 77])
def test_one_channel_a_group_with_all_taps_written_out(left: str, right: str, zeros: str, channels: int) -> None:
    class Way:
        @staticmethod
        def build(name: str, call: Spec) -> Build:
            assert written_out.supports(call) is None
            return written_out.build(call)
    for kernel in ((3, 3), (5, 4)):
        test_conv(Way, left, right, (2, channels, 7, 11), (channels, 1, *kernel), window(kernel, (1, 2), (2, 1), (1, 0, 2, 1), group=channels), zeros)


@pytest.mark.skipif(not dot8.available(), reason="no vpdpbusd")
def test_a_new_size_compiles_nothing() -> None:
    m = Space().sym("m")
    b, zb = random((64, 40), "i8"), np.array(3, np.int8)
    call = Spec((Layout.dense("u8", (m, 64)), layout(b), Layout("u8", (), ()), layout(zb)), (Layout.dense("i32", (m, 40)),), {}, {1: b, 3: zb})
    build = integer_dot.build("gemm_integer", call)
    assert build is not None
    for number, rows in enumerate((3, 0, 1, 100)):
        a, za, out = random((rows, 64), "u8"), random((), "u8"), np.zeros((rows, 40), np.int32)
        before = len(seconds)
        Bound(build, [a, b, za, zb], [out], binding_of={"m": rows}).run()
        np.testing.assert_array_equal(out, product(a, b, za, zb))
        assert number == 0 or len(seconds) == before
