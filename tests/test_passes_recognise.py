"""Products of dequantised values become products of bytes; what does not fit stays."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from passes_oracle import apply, built, placed, run

from gpuonnx import passes
from gpuonnx.ir import build as b
from gpuonnx.ir import graph as g
from gpuonnx.ir.verify import verify
from gpuonnx.ops.conv import convolution
from gpuonnx.ops.quantize import dequantized, quantized
from gpuonnx.ops.window import Window
from gpuonnx.passes.recognise import RULE

MATRIX: dict[str, Any] = {"x": ("f32", ("N", 4, 8))}
IMAGE: dict[str, Any] = {"x": ("f32", ("N", 8, "H", 6))}


def scalar(x: float, dtype: str = "f32") -> b.Tensor:
    return b.constant(x, dtype)


def coded(x: b.Tensor, scale: float = 0.02, zero: int = 117) -> b.Tensor:
    """Quantised and back, as QDQ models have it."""
    return dequantized(quantized(x, scalar(scale), scalar(zero, "u8"), "u8"), scalar(scale), scalar(zero, "u8"), "f32")


def weights(*shape: int, axis: int | None = None, zero: int = 0, seed: int = 0) -> b.Tensor:
    r = np.random.default_rng(seed)
    array = b.constant(r.integers(-127, 128, shape).astype(np.int8))
    if axis is None:
        return dequantized(array, scalar(0.013), scalar(zero, "i8") if zero else None, "f32")
    sizes = [s if k == axis else 1 for k, s in enumerate(shape)]
    return dequantized(array, b.constant(r.uniform(0.01, 0.02, sizes).astype(np.float32)),
                       b.constant(r.integers(-3, 4, sizes).astype(np.int8)) if zero else None, "f32")


def flattened(x: b.Tensor, dtype: str) -> b.Tensor:
    """Means of x[N, C, H, W], quantised, then flattened, then dequantised: a Map that reads four axes and gives two."""
    codes = quantized(x.mean([2, 3], keepdims=True), scalar(0.02), scalar(117, dtype), dtype).reshape(x.shape[0], x.shape[1])
    return dequantized(codes, scalar(0.02), scalar(117, dtype), "f32")


def product(x: b.Tensor, w: b.Tensor) -> b.Tensor:
    made: b.Tensor = b.call("gemm", x, w, out=x.like(*x.shape[:-1], w.shape[-1]))
    return made


def conv(x: b.Tensor, w: b.Tensor, group: int = 1) -> b.Tensor:
    return convolution(x, w, Window.of(tuple(x.shape[2:]), (3, 3), "NOTSET", None, (1, 1, 1, 1), (2, 1)), group)


def recognised(graph: g.Graph, monkeypatch: pytest.MonkeyPatch) -> tuple[g.Graph, passes.Trace]:
    """All passes, as on a machine with the instruction."""
    monkeypatch.setattr("gpuonnx.kernels.cpu.dot8.available", lambda: True)
    trace = passes.Trace()
    after = passes.run_pipeline(graph, passes.DEVICE_FREE, (), None, trace)
    verify(after)
    after = placed(after, passes.PER_DEVICE, trace).graph
    verify(after)
    return after, trace


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "one scale": (MATRIX, lambda x: [product(coded(x), weights(8, 5))]),
    "a scale a column": (MATRIX, lambda x: [product(coded(x), weights(8, 5, axis=1))]),
    "zero points of weights": (MATRIX, lambda x: [product(coded(x), weights(8, 5, zero=3)), product(coded(x), weights(8, 5, axis=1, zero=1))]),
    "transposed weights": (MATRIX, lambda x: [product(coded(x), weights(5, 8, axis=0).transpose([1, 0]))]),
    "a view of the input": (MATRIX, lambda x: [product(coded(x).reshape(x.shape[0] * 4, 8), weights(8, 5))]),
    "bias, activation, requantised": (MATRIX, lambda x: [quantized(
        b.elementwise("relu", product(coded(x), weights(8, 5)) + b.constant(np.float32([1, -1, 0.5, 0, 2]))), scalar(0.05), scalar(3, "u8"), "u8")]),
    "convolution": (IMAGE, lambda x: [conv(coded(x), weights(6, 8, 3, 3, axis=0)), conv(coded(x, 0.03, 0), weights(6, 8, 3, 3, zero=5))]),
}
OTHERS: dict[str, tuple[dict[str, Any], Any]] = {
    "scales along the sum": (MATRIX, lambda x: [product(coded(x), weights(8, 5, axis=0))]),
    "groups": (IMAGE, lambda x: [conv(coded(x), weights(6, 4, 3, 3), 2)]),
    "flattened codes": (IMAGE, lambda x: [product(flattened(x, "u8"), weights(8, 5)), product(flattened(x, "u16"), weights(8, 5))]),
    "float weights": (MATRIX, lambda x: [product(coded(x), b.constant(np.ones((8, 5), np.float32)))]),
    "float input": (MATRIX, lambda x: [product(x, weights(8, 5))]),
    "no constant": ({"x": ("f32", ("N", 4, 8)), "w": ("f32", (8, 5))}, lambda x, w: [product(coded(x), coded(w))]),
}


def feeds(inputs: dict[str, Any]) -> list[np.ndarray]:
    r = np.random.default_rng(1)
    return [r.standard_normal([s if isinstance(s, int) else 5 for s in shape]).astype(np.float32) for _, shape in inputs.values()]


@pytest.mark.parametrize("name", CASES)
def test_products_of_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, make = CASES[name]
    graph = built(inputs, make, {"N": 5, "H": 5})
    after, trace = recognised(graph, monkeypatch)
    assert all(n.kernel.endswith("_integer") for n in after.nodes if isinstance(n, g.Call))
    assert sum(e.rule == RULE for e in trace.events) == len(graph.outputs)
    for want, got in zip(run(graph, feeds(inputs)), run(after, feeds(inputs)), strict=True):
        assert want.dtype == got.dtype
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-5, atol=1e-5 if want.dtype.kind == "f" else 1)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, make = OTHERS[name]
    graph = built(inputs, make, {"N": 5, "H": 5})
    after, trace = recognised(graph, monkeypatch)
    assert not any(e.rule == RULE for e in trace.events)
    for want, got in zip(run(graph, feeds(inputs)), run(after, feeds(inputs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_requantising_epilogue_is_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, make = CASES["bias, activation, requantised"]
    after, _ = recognised(built(inputs, make, {"N": 5}), monkeypatch)
    (call,) = [n for n in after.nodes if isinstance(n, g.Call)]
    assert call.out.dtype == "u8" and call.epilogue is not None


def test_no_instruction_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("dot8", "pairs"):
        monkeypatch.setattr(f"gpuonnx.kernels.cpu.{kind}.available", lambda: False)
    inputs, make = CASES["one scale"]
    graph = built(inputs, make, {"N": 5})
    assert apply("recognise", graph) is graph


@pytest.mark.parametrize("channels,stride,integers", [(64, 1, False), (64, 2, True), (16, 1, True)])
def test_where_winograd_is_faster_than_pairs_floats_stay(channels: int, stride: int, integers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuonnx.kernels.cpu.dot8.available", lambda: False)
    monkeypatch.setattr("gpuonnx.kernels.cpu.pairs.available", lambda: True)

    def make(x: b.Tensor) -> list[b.Tensor]:
        shape = Window.of(tuple(x.shape[2:]), (3, 3), "NOTSET", None, (1, 1, 1, 1), (stride, stride))
        return [convolution(coded(x), weights(channels, channels, 3, 3), shape, 1)]
    graph = passes.run_pipeline(built({"x": ("f32", ("N", channels, 12, 12))}, make), passes.DEVICE_FREE, (), None, passes.Trace())
    kernels = {n.kernel for n in graph.nodes if isinstance(n, g.Call)}
    assert kernels == ({"conv_integer"} if integers else {"conv"})
