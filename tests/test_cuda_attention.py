"""Attention as one CUDA kernel: what tests/test_cpu_attention.py asks on the emulated device, then tiles, layouts and types with every check on."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_runner import run, run_node
from onnx import TensorProto, helper
from test_cpu_attention import BETWEEN, RNG, expected, feeds, model, softmax

import gpuonnx
from gpuonnx.devices.emulated import EmulatedCuda
from gpuonnx.devices.emulation.machine import RACES, UNFAIR, EmulationError
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Space
from gpuonnx.ir.expr import Expr, apply, cast, const, folded, index, load
from gpuonnx.ir.types import compute, numpy_dtype
from gpuonnx.kernels.contract import Layout

TOLERANCE = {"f32": 2e-5, "f64": 1e-12, "f16": 2e-3, "bf16": 1e-2}
UNFUSED = ("quantised", "no softmax")


@pytest.fixture(scope="module")
def device() -> EmulatedCuda:
    return EmulatedCuda(level=RACES)


def check(between: str, sizes: list[int], lead: list[int], dtype: type = np.float32, swapped: bool = True, named: bool = True) -> None:
    session = gpuonnx.load(model(between, dtype, list(lead), sizes, swapped, named), device="emulated-cuda")
    feed = feeds(between, dtype, lead, sizes, swapped)
    got, wanted = session.run(feed)["y"], expected(between, feed, swapped)
    assert ("attention" in session.explain("kernels")) == (between not in UNFUSED)
    tolerance = 2 / 255 if between == "quantised" else {np.float32: 2e-5, np.float64: 1e-12, np.float16: 1e-2}[dtype]
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("sizes", [[1, 33, 16, 24], [50, 17, 32, 32]], ids=str)
def test_what_stands_between_the_products(between: str, sizes: list[int]) -> None:
    check(between, sizes, [2, 3])


@pytest.mark.parametrize("between", ["plain", "masked", "guarded"])
def test_halves(between: str) -> None:
    check(between, [50, 70, 32, 32], [2, 3], np.float16)


@pytest.mark.parametrize("lead", [[], [3], [2, 1, 3]], ids=str)
def test_any_rank(lead: list[int]) -> None:
    check("masked", [9, 21, 16, 16], lead)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("swapped", [False, True])
def test_operands_as_they_lie(dtype: type, swapped: bool) -> None:
    check("scaled", [70, 37, 16, 16], [2], dtype, swapped)
    check("scaled", [4, 37, 10, 11], [2], dtype, swapped, named=False)


@pytest.mark.parametrize("sizes", [[0, 5, 8, 8], [3, 1, 8, 8], [4, 6, 1, 1]], ids=str)
def test_small_sizes(sizes: list[int]) -> None:
    check("plain", sizes, [2])


def test_new_sizes_compile_nothing() -> None:
    session = gpuonnx.load(model("masked", np.float32, [2], [0, 0, 16, 16], True, True), device="emulated-cuda")
    compiled = 0
    for high, wide in ((6, 9), (1, 30), (4, 600), (100, 3)):
        feed = feeds("masked", np.float32, [2], [high, wide, 16, 16], True)
        np.testing.assert_allclose(session.run(feed)["y"], expected("masked", feed, True), rtol=2e-5, atol=2e-5)
        compiled = compiled or session.stats.compiled
    assert session.stats.compiled == compiled and session.stats.variants == 1


def test_the_pass_can_be_switched_off() -> None:
    made = model("masked", np.float32, [2], [9, 9, 16, 16], True, False)
    session = gpuonnx.load(made, device="emulated-cuda", passes={"attention": False})
    feed = feeds("masked", np.float32, [2], [9, 9, 16, 16], True)
    np.testing.assert_allclose(session.run(feed)["y"], expected("masked", feed, True), rtol=2e-5, atol=2e-5)
    assert "attention" not in session.explain("kernels")


def test_the_attention_operator_is_one_kernel_with_shared_heads() -> None:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", h, t, 16]) for n, h, t in (("q", 6, "S"), ("k", 2, "T"), ("v", 2, "T"))]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString()
    session = gpuonnx.load(made, device="emulated-cuda")
    feed = {n: RNG.standard_normal((2, h, 11, 16)).astype(np.float32) for n, h in (("q", 6), ("k", 2), ("v", 2))}
    wide = {n: np.repeat(v.astype(np.float64), 6 // v.shape[1], 1) for n, v in feed.items()}
    scores = np.where(np.tril(np.ones((11, 11), bool)), wide["q"] @ wide["k"].swapaxes(-1, -2) / 4, -np.inf)
    np.testing.assert_allclose(session.run(feed)["y"], softmax(scores) @ wide["v"], rtol=2e-5, atol=2e-5)
    assert "attention" in session.explain("kernels")


# the kernel alone
def attention(dtype: str, *shapes: tuple[Any, ...], rounded: bool = False) -> g.Call:
    """softmax(q @ k * 0.25 + mask) @ v * 2, where the mask is shapes[3]; `rounded`: the softmax is stored."""
    real, rank = compute(dtype), len(shapes[0])
    here = tuple(map(index, range(rank)))
    score: Expr = load(0, real, here)
    weight = apply("exp", score - folded(0, 0, real))
    scaled = load(0, real, here) * const(0.25, real) + load(1, dtype, (index(rank - 2), index(rank - 1)))
    rows = g.Rows(scaled, ((g.Fold("max", score),), (g.Fold("sum", weight),)), cast(weight / folded(1, 0, real), dtype if rounded else real))
    return g.Call(tuple(g.Value(dtype, s) for s in shapes), (g.Value(dtype, (*shapes[0][:-1], shapes[2][-1])),), kernel="attention", attrs={"rows": rows},
                  epilogue=load(0, real, here) * const(2.0, real))


def numbers(dtype: str, shapes: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(s).astype(numpy_dtype(dtype)) for s in shapes]


def wanted(arrays: list[np.ndarray]) -> np.ndarray:
    q, k, v, mask = (a.astype(np.float64) for a in arrays)
    return np.asarray(softmax(q @ k * 0.25 + mask) @ v * 2) if k.shape[-1] else np.zeros((*q.shape[:-1], v.shape[-1]))


def shapes_of(high: int, wide: int, depth: int, out: int, lead: tuple[int, ...] = ()) -> tuple[tuple[int, ...], ...]:
    return (*lead, high, depth), (*lead, depth, wide), (*lead, wide, out), (high, wide)


def close(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=TOLERANCE[dtype] * max(1.0, float(np.abs(want).max(initial=0))))


@pytest.mark.parametrize(("dtype", "rounded"), [*((t, False) for t in TOLERANCE), ("f16", True), ("bf16", True)])
@pytest.mark.parametrize("sizes", [(64, 64, 64, 64), (65, 129, 33, 65), (1, 63, 130, 7), (20, 600, 32, 72), (3, 5, 600, 1), (5, 0, 8, 8), (5, 8, 0, 8)], ids=str)
def test_sizes_around_the_edges_of_tiles(device: EmulatedCuda, dtype: str, rounded: bool, sizes: tuple[int, int, int, int]) -> None:
    shapes = shapes_of(*sizes, (2,))
    node, arrays = attention(dtype, *shapes, rounded=rounded), numbers(dtype, shapes)
    assert device.supports(node) is None
    close(run_node(device, node, arrays)[0], wanted(arrays), dtype)


def turned(dtype: str, shape: tuple[int, ...]) -> Layout:
    """The last two axes exchanged in memory."""
    *lead, rows, columns = shape
    strides = Layout.dense(dtype, (*lead, columns, rows)).strides
    return Layout(dtype, shape, (*strides[:-2], strides[-1], strides[-2]))


def apart(dtype: str, shape: tuple[int, ...]) -> Layout:
    """Neither axis dense."""
    return Layout(dtype, shape, tuple(3 * s for s in Layout.dense(dtype, shape).strides))


@pytest.mark.parametrize("dtype", ["f32", "f16", "f64"])
@pytest.mark.parametrize("layouts", [(turned, Layout.dense, Layout.dense), (Layout.dense, turned, turned), (apart, apart, apart)],
                         ids=["queries turned", "keys and values turned", "apart"])
def test_every_layout(device: EmulatedCuda, dtype: str, layouts: tuple[Any, ...]) -> None:
    shapes = shapes_of(40, 72, 48, 24, (2,))
    arrays = numbers(dtype, shapes)
    made = [f(dtype, s) for f, s in zip((*layouts, Layout.dense), shapes, strict=True)]
    close(run_node(device, attention(dtype, *shapes), arrays, inputs=made)[0], wanted(arrays), dtype)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_one_build_serves_every_size(dtype: str) -> None:
    device, space = EmulatedCuda(level=1), Space()
    m, k, d, n = (space.sym(name) for name in "mkdn")
    node = attention(dtype, (m, d), (d, k), (k, n), (m, k))
    layouts = [Layout.dense(v.dtype, v.dims) for v in (*node.inputs, *node.outputs)]
    build = device.build(node, tuple(layouts[:4]), tuple(layouts[4:]), {})
    compiled = 0
    for sizes in ((1, 5, 30, 9), (70, 90, 300, 30), (7, 1100, 40, 130), (0, 3, 3, 3)):
        arrays = numbers(dtype, shapes_of(*sizes))
        got = run(device, build, list(zip(layouts[:4], arrays, strict=True)), layouts[4:], dict(zip("mkdn", sizes, strict=True)))[0]
        close(got, wanted(arrays), dtype)
        compiled = compiled or device.compiled
        assert device.compiled == compiled


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_any_order_of_threads_gives_the_same(dtype: str) -> None:
    shapes = shapes_of(70, 130, 40, 20)
    node, arrays = attention(dtype, *shapes), numbers(dtype, shapes)
    plain, unfair = (run_node(d, node, arrays)[0] for d in (EmulatedCuda(), EmulatedCuda(level=RACES, order=UNFAIR, seed=5)))
    np.testing.assert_array_equal(plain.view(f"u{plain.itemsize}"), unfair.view(f"u{plain.itemsize}"))


def test_scores_far_apart_between_tiles(device: EmulatedCuda) -> None:
    shapes = shapes_of(3, 200, 4, 5)
    arrays = numbers("f32", shapes)
    arrays[3][:, :] = np.where(np.arange(200) < 70, -np.inf, np.where(np.arange(200) < 140, -900.0, 900.0))
    close(run_node(device, attention("f32", *shapes), arrays)[0], wanted(arrays), "f32")


@pytest.mark.parametrize(("value", "places"), [(-np.inf, slice(None)), (np.nan, slice(3, 4)), (np.inf, slice(100, 101))], ids=["all hidden", "NaN", "inf"])
def test_a_row_without_a_softmax_is_nan(device: EmulatedCuda, value: float, places: slice) -> None:
    shapes = shapes_of(3, 130, 4, 5)
    arrays = numbers("f32", shapes)
    arrays[3][1, places] = value
    got = run_node(device, attention("f32", *shapes), arrays)[0]
    assert np.isnan(got[1]).all() and np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize("gone", ["    __syncthreads();\n    feed", "    async_wait<Tile::STAGES - 2>();\n"], ids=["no barrier", "no wait"])
def test_what_is_needed_is_missed(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuonnx.devices import cuda_text
    real = cuda_text.source

    def broken(name: str) -> str:
        text: str = real(name)
        if name == "attention.cu":
            assert gone in text
            text = text.replace(gone, "feed" if gone.endswith("feed") else "")
        return text
    monkeypatch.setattr(cuda_text, "source", broken)
    shapes = shapes_of(64, 130, 40, 20)
    with pytest.raises(EmulationError):
        run_node(EmulatedCuda(level=RACES), attention("f32", *shapes), numbers("f32", shapes))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_the_attention_operator_takes_halves_as_they_are(kind: int) -> None:
    """The standard widens them first; the factor of the queries goes to the scores."""
    inputs = [helper.make_tensor_value_info(n, kind, ["B", h, t, 16]) for n, h, t in (("q", 6, "S"), ("k", 2, "T"), ("v", 2, "T"))]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1, softcap=2.0)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", kind, None)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString()
    session = gpuonnx.load(made, device="emulated-cuda")
    stored = helper.tensor_dtype_to_np_dtype(kind)
    feed = {n: RNG.standard_normal((2, h, 11, 16)).astype(stored) for n, h in (("q", 6), ("k", 2), ("v", 2))}
    wide = {n: np.repeat(v.astype(np.float64), 6 // v.shape[1], 1) for n, v in feed.items()}
    scores = np.where(np.tril(np.ones((11, 11), bool)), np.tanh(wide["q"] @ wide["k"].swapaxes(-1, -2) / 8) * 2, -np.inf)
    tolerance = 2e-3 if kind == TensorProto.FLOAT16 else 2e-2
    np.testing.assert_allclose(session.run(feed)["y"].astype(np.float64), softmax(scores) @ wide["v"], rtol=0, atol=tolerance)
    assert f"attention_{'f16' if kind == TensorProto.FLOAT16 else 'bf16'}" in session.explain("kernels")
    assert "Map" not in session.explain("plan")


@pytest.mark.parametrize(("rule", "first", "last"), [("causal", None, 3), ("window", -40, 5), ("strict", None, 2)])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_keys_out_of_reach_are_not_read(device: EmulatedCuda, dtype: str, rule: str, first: int | None, last: int) -> None:
    """Values that no row of a block of 64 may see are NaN here: 0 times them would be too."""
    shapes = shapes_of(192, 300, 16, 8)
    i, j = index(0), index(1)
    seen = apply("less", j, i + 3) if rule == "strict" else apply("less_equal", j, i + last)
    if first is not None:
        seen = apply("and", seen, apply("less_equal", i + first, j))
    whole = attention(dtype, *shapes)
    rows: g.Rows = whole.attrs["rows"]
    assert rows.score is not None
    masked = g.Rows(apply("where", seen, rows.score, const(-np.inf, compute(dtype))), rows.stages, rows.result)
    node = g.Call(whole.inputs, whole.outputs, kernel="attention", attrs={"rows": masked}, epilogue=whole.epilogue)
    at = np.arange(300) - np.arange(192)[:, None]
    for block, unseen in ((slice(0, 64), slice(128, 300)), (slice(128, 192), slice(0, 0 if first is None else 64))):
        arrays = numbers(dtype, shapes)
        hidden = [a.copy() for a in arrays]
        hidden[3][(at > last) | (at < (-999 if first is None else first))] = -np.inf
        arrays[2][unseen] = np.nan
        close(run_node(device, node, arrays)[0][block], wanted(hidden)[block], dtype)
