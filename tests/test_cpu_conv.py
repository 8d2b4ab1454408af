"""Convolutions on the CPU against NumPy in float64: direct, depthwise, Winograd; channels-last inputs with a halo."""
from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from kernel_runner import Bound, seconds

from gpuonnx.codegen import depthwise as depthwise_nest
from gpuonnx.ir.dims import Space
from gpuonnx.ir.expr import apply, index, load
from gpuonnx.ir.types import numpy_dtype, of_numpy
from gpuonnx.kernels.contract import Epilogue, Layout, Spec
from gpuonnx.kernels.cpu import conv, depthwise, winograd

RANDOM = np.random.default_rng(11)
Window = dict[str, Any]


def random(shape: tuple[int, ...], dtype: str = "f32") -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(numpy_dtype(dtype))


def window(kernel: tuple[int, ...], strides: Any = 1, dilations: Any = 1, pads: Any = 0, group: int = 1) -> Window:
    rank = len(kernel)

    def whole(v: Any, n: int) -> tuple[int, ...]:
        return (v,) * n if isinstance(v, int) else tuple(v)
    return {"kernel": kernel, "strides": whole(strides, rank), "dilations": whole(dilations, rank), "pads": whole(pads, 2 * rank),
            "group": group}


def reference(x: np.ndarray, w: np.ndarray, a: Window) -> np.ndarray:
    """float64 [N, O, ...]"""
    rank, group = len(a["kernel"]), a["group"]
    sides = list(zip(a["pads"][:rank], a["pads"][rank:], strict=True))
    x, w = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *sides]), w.astype(np.float64)
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], a["kernel"], a["strides"], a["dilations"], strict=True)]
    out = np.zeros((x.shape[0], w.shape[0], *sizes))
    each, inner = w.shape[0] // group, w.shape[1]
    for tap in product(*map(range, a["kernel"])):
        part = x[(..., *(slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(tap, a["dilations"], a["strides"], sizes, strict=True)))]
        for g in range(group):
            out[:, g * each:(g + 1) * each] += np.einsum("nc...,oc->no...", part[:, g * inner:(g + 1) * inner], w[(slice(g * each, (g + 1) * each), slice(None), *tap)])
    return out


def last(shape: tuple[int, ...], halo: Any, dtype: Any, fill: float) -> np.ndarray:
    """An array of logical shape [N, C, ...] that lies channels-last with zeros around it; nothing lies past the halo."""
    rank = len(shape) - 2
    sides = list(zip(halo[:rank], halo[rank:], strict=True))
    room = np.zeros((shape[0], *(n + b + e for n, (b, e) in zip(shape[2:], sides, strict=True)), shape[1]), dtype)
    inner = np.moveaxis(room, -1, 1)[(..., *(slice(b, b + n) for n, (b, _) in zip(shape[2:], sides, strict=True)))]
    inner[...] = fill
    return inner


def layout(array: np.ndarray) -> Layout:
    return Layout(of_numpy(array.dtype), array.shape, tuple(s // array.itemsize for s in array.strides))


def run(module: Any, x: np.ndarray, w: np.ndarray, a: Window, constant: bool = True, epilogue: Epilogue | None = None,
        extras: tuple[np.ndarray, ...] = (), out_halo: int = 0) -> np.ndarray:
    rank, tile = len(a["kernel"]), a.get("tile", 1)
    placed = last(x.shape, [p + (tile - 1 if k >= rank else 0) for k, p in enumerate(a["pads"])], x.dtype, 0)
    placed[...] = x
    shape = reference(x[:1, :, ...], w, a).shape[1:]
    out = last((x.shape[0], *shape), (out_halo,) * 2 * rank, x.dtype, 77)
    call = Spec((layout(placed), layout(w)), (layout(out),), a, {1: w} if constant else {}, epilogue)
    if module is not depthwise_nest:
        assert module.supports(call) is None
    Bound(module.build(call), [placed, w], [out], extras).run()
    if out_halo:
        whole = out.base
        assert whole is not None and np.count_nonzero(whole) <= out.size
    return out


def close(got: np.ndarray, want: np.ndarray, relative: float = 2e-6) -> None:
    assert got.shape == want.shape
    if want.size:
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=relative * max(1.0, float(np.abs(want).max())))


CASES = [
    ((1, 3, 13, 17), (20, 3, 7, 7), window((7, 7), 2, pads=3)), ((2, 16, 9, 9), (33, 16, 1, 1), window((1, 1))),
    ((1, 16, 9, 11), (40, 16, 1, 1), window((1, 1), 2)), ((2, 5, 10, 8), (7, 5, 3, 2), window((3, 2), (1, 2), (2, 1), (1, 0, 2, 1))),
    ((1, 1, 12, 12), (4, 1, 5, 5), window((5, 5), pads=2)), ((2, 8, 30), (6, 8, 4), window((4,), 3, 2, (3, 1))),
    ((1, 4, 5, 6, 7), (9, 4, 2, 3, 3), window((2, 3, 3), (1, 2, 1), pads=1)), ((1, 12, 9, 9), (18, 4, 3, 3), window((3, 3), pads=1, group=3)),
    ((2, 64, 6, 6), (128, 32, 3, 3), window((3, 3), 2, pads=1, group=2)), ((1, 6, 7), (6, 1, 3), window((3,), pads=1, group=6)),
    ((0, 3, 5, 5), (4, 3, 3, 3), window((3, 3)))]


@pytest.mark.parametrize("x, w, a", CASES)
def test_direct(x: tuple[int, ...], w: tuple[int, ...], a: Window) -> None:
    image, weights = random(x), random(w)
    want = reference(image, weights, a)
    close(run(conv, image, weights, a), want)
    close(run(conv, image, weights, a, constant=False, out_halo=2), want)


@pytest.mark.parametrize("dtype, error", [("f64", 1e-14), ("f16", 1e-3), ("bf16", 8e-3)])
def test_direct_types(dtype: str, error: float) -> None:
    image, weights, a = random((2, 10, 9, 8), dtype), random((12, 10, 3, 3), dtype), window((3, 3), pads=1)
    close(run(conv, image, weights, a), reference(image, weights, a), error)
    close(run(conv, image, weights, a, constant=False), reference(image, weights, a), error)


DEPTHWISE = [
    ((2, 32, 9, 11), 1, window((3, 3), pads=1)), ((1, 7, 12, 12), 1, window((5, 5), 2, pads=2)), ((1, 10, 9, 9), 3, window((3, 3), pads=1)),
    ((1, 40, 20), 1, window((3,), 2, 2, (1, 2))), ((1, 6, 5, 6, 7), 2, window((2, 3, 3), pads=1)), ((0, 4, 5, 5), 1, window((3, 3))),
    ((1, 130, 6, 19), 1, window((3, 3), pads=1)), ((1, 33, 8, 40), 1, window((1, 3), (1, 2), (1, 2), (0, 1, 0, 3))),
    ((2, 5, 7, 7), 1, window((7, 7), pads=3))]


@pytest.mark.parametrize("x, multiplier, a", DEPTHWISE)
def test_depthwise(x: tuple[int, ...], multiplier: int, a: Window) -> None:
    image, weights = random(x), random((x[1] * multiplier, 1, *a["kernel"]))
    a = a | {"group": x[1]}
    want = reference(image, weights, a)
    close(run(depthwise_nest, image, weights, a), want)
    close(run(depthwise_nest, image, weights, a, constant=False, out_halo=1), want)
    if multiplier == 1 and image.size:
        close(run(depthwise, image, weights, a, out_halo=1), want)
        close(run(depthwise, image.astype(np.float64), weights.astype(np.float64), a), want)


IMAGES = [((1, 32, 8, 8), 32, 1), ((2, 17, 7, 9), 35, 1), ((1, 3, 5, 4), 100, (0, 1, 2, 0)), ((1, 130, 14, 14), 16, 1), ((3, 256, 3, 3), 8, 0),
          ((0, 8, 6, 6), 8, 1), ((1, 1, 11, 2), 1, 1)]


@pytest.mark.parametrize("tile, error", [(2, 5e-6), (4, 3e-5)])
@pytest.mark.parametrize("x, channels, pads", IMAGES)
def test_winograd(x: tuple[int, ...], channels: int, pads: Any, tile: int, error: float) -> None:
    image, weights = random(x), random((channels, x[1], 3, 3))
    a = window((3, 3), pads=pads) | {"tile": tile}
    want = reference(image, weights, a)
    close(run(winograd, image, weights, a), want, error)
    close(run(winograd, image, weights, a, out_halo=1), want, error)


def four() -> tuple[Any, ...]:
    return tuple(index(k) for k in range(4))


@pytest.mark.parametrize("module, tile", [(conv, 1), (winograd, 2), (winograd, 4), (depthwise, 1), (depthwise_nest, 1)])
def test_epilogue(module: Any, tile: int) -> None:
    deep = module in (depthwise, depthwise_nest)
    a = window((3, 3), pads=1, group=40 if deep else 1) | ({"tile": tile} if tile > 1 else {})
    image, weights, bias = random((2, 40, 7, 9)), random((40, 1 if deep else 40, 3, 3)), random((40,))
    more = last((2, 40, 7, 9), (1,) * 4, np.float32, 0)
    more[...] = random(more.shape)
    table = random((7, 9))
    e = load(0, "f32", four()) + load(1, "f32", (index(1),)) + load(2, "f32", four())
    e = apply("max", e, 0.0) * load(3, "f32", (index(2), index(3)))
    extras = (bias, more, table)
    got = run(module, image, weights, a, epilogue=Epilogue(e, tuple(map(layout, extras))), extras=extras)
    close(got, np.maximum(reference(image, weights, a) + bias[:, None, None] + more, 0) * table, 3e-5)


@pytest.mark.parametrize("module, tile", [(conv, 1), (winograd, 4)])
def test_a_new_size_compiles_nothing(module: Any, tile: int) -> None:
    space = Space()
    n, h, w = space.sym("n"), space.sym("h", 1), space.sym("w", 1)
    weights, a = random((19, 33, 3, 3)), window((3, 3), pads=1) | ({"tile": tile} if tile > 1 else {})
    end = tile - 1

    def wide(channels: int, halo: int, end: int) -> Layout:
        line = (w + 2 * halo + end) * channels
        return Layout("f32", (n, channels, h, w), (line * (h + 2 * halo + end), 1, line, channels))
    build = module.build(Spec((wide(33, 1, end), layout(weights)), (wide(19, 0, 0),), a, {1: weights}))
    for number, (batch, high, across) in enumerate(((1, 6, 5), (2, 9, 4), (1, 1, 30))):
        image = random((batch, 33, high, across))
        x, out = last(image.shape, (1, 1, 1 + end, 1 + end), np.float32, 0), last((batch, 19, high, across), (0,) * 4, np.float32, 0)
        x[...] = image
        before = len(seconds)
        Bound(build, [x, weights], [out], binding_of={"n": batch, "h": high, "w": across}).run()
        close(out, reference(image, weights, a), 3e-5)
        assert number == 0 or len(seconds) == before


@pytest.mark.parametrize("module, tile", [(conv, 1), (winograd, 2), (depthwise, 1)])
def test_heavy_epilogue(module: Any, tile: int) -> None:
    deep = module is depthwise
    a = window((3, 3), pads=1, group=37 if deep else 1) | ({"tile": tile} if tile > 1 else {})
    image, weights = random((1, 37, 6, 21)), random((37, 1 if deep else 37, 3, 3)) / 9
    e = apply("tanh", load(0, "f32", four())) + apply("exp", load(0, "f32", four()) * 0.1)
    want = reference(image, weights, a)
    close(run(module, image, weights, a, epilogue=Epilogue(e)), np.tanh(want) + np.exp(0.1 * want), 3e-5)


def test_tiles_by_channels() -> None:
    assert [winograd.preferred_tile(*c) for c in ((3, 64), (64, 64), (256, 256), (512, 512))] == [0, 4, 4, 2]


def test_tiles_by_size() -> None:
    def best(channels: int, side: int) -> int:
        return winograd.preferred_tile(channels, channels, lambda m: (-(-side // m)) ** 2)
    assert [best(*c) for c in ((64, 56), (128, 28), (256, 14), (512, 7), (64, 1), (512, 2), (8, 56), (64, 2000))] == [4, 4, 4, 2, 0, 0, 0, 0]
