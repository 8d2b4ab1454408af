"""Operators that files hold and the standard does not: ONNX Runtime's in the default domain, its older names of standard ones, experimental ones of old files."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from op_runner import node_model
from test_ops_microsoft import DOMAIN, RNG, codes, floats, scale, zero

import gpuonnx

onnxruntime = pytest.importorskip("onnxruntime", reason="they are compared with ONNX Runtime: pip install gpuonnx[bench]")

HALF, FLOAT, INT = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64


def close(op_type: str, inputs: list[Any], kinds: tuple[int, ...] = (FLOAT,), domain: str = DOMAIN, opset: int = 1, tolerance: float = 2e-5, **attributes: Any) -> None:
    model = node_model(op_type, inputs, opset, len(kinds), domain, **attributes)
    feeds = {f"x{k}": x for k, x in enumerate(inputs) if x is not None}
    ours = list(gpuonnx.load(model, device="cpu", threads=1).run(feeds).values())
    for info in model.graph.input:
        for declared, size in zip(info.type.tensor_type.shape.dim, feeds[info.name].shape, strict=True):
            declared.dim_value = size
    for info, kind in zip(model.graph.output, kinds, strict=True):
        info.type.tensor_type.elem_type = kind
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("axis", [-1, 1])
def test_simplified_normalisation_of_the_default_domain(axis: int) -> None:
    x = floats(2, 3, 8)
    gain = floats(*x.shape[axis:])
    close("SimplifiedLayerNormalization", [x, gain], domain="", opset=17, axis=axis, epsilon=1e-6)
    close("SimplifiedLayerNormalization", [x, gain], (FLOAT, FLOAT), domain="", opset=17, axis=axis)


def test_simplified_normalisation_of_halves() -> None:
    x = floats(2, 3, 8).astype(np.float16)
    close("SimplifiedLayerNormalization", [x, floats(8).astype(np.float16)], (HALF,), domain="", opset=17, tolerance=2e-3)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("group", [1, 2])
def test_quantised_convolution_with_channels_last(last: int, group: int) -> None:
    x, w = codes(2, 4, 7, 6), codes(6, 4 // group, 3, 3)
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
    inputs = [x, scale(0.02), zero(120), w, scale(0.01), zero(130), scale(0.5), zero(100), RNG.integers(-500, 500, 6).astype(np.int32)]
    close("QLinearConv", inputs, (TensorProto.UINT8,), tolerance=1, channels_last=last, group=group, pads=[1, 0, 1, 2], strides=[2, 1], kernel_shape=[3, 3])


@pytest.mark.parametrize("with_segments", [True, False])
def test_quantised_embedding(with_segments: bool) -> None:
    def table(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return codes(*shape), scale(0.01), zero(128)
    word, place, segment, gain, shift = table(9, 8), table(6, 8), table(2, 8), table(8), table(8)
    ids = RNG.integers(0, 9, (2, 4)).astype(np.int32)
    kept = segment if with_segments else (None, None, None)
    inputs = [ids, (ids % 2).astype(np.int32) if with_segments else None, word[0], place[0], kept[0], gain[0], shift[0], np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32),
              word[1], place[1], kept[1], gain[1], shift[1], word[2], place[2], kept[2], gain[2], shift[2]]
    close("QEmbedLayerNormalization", inputs, (FLOAT, TensorProto.INT32), tolerance=1e-4, epsilon=1e-8)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 1])
def test_triangles(upper: int, k: int | None) -> None:
    close("Trilu", [floats(2, 4, 5), None if k is None else np.array(k, np.int64)][:1 + (k is not None)], upper=upper)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5, 5), (2, 2, 4, 4), (1, 1)])
def test_inverse(shape: tuple[int, ...]) -> None:
    close("Inverse", [floats(*shape)], tolerance=1e-3)
    if shape[-1] == 3:
        close("Inverse", [np.array([[0, 2, 1], [1, 0, 0], [3, 1, 0]], np.float32)], tolerance=1e-5)


@pytest.mark.parametrize("numbers", [(0, 5, None), (2, -3, -1), (1.0, 2.0, 0.25)])
def test_ranges(numbers: tuple[Any, ...]) -> None:
    dtype = np.float32 if isinstance(numbers[0], float) else np.int64
    close("Range", [np.array(v, dtype) for v in numbers if v is not None], (FLOAT if dtype is np.float32 else INT,))
    close("Range", [np.array([v], dtype) for v in numbers if v is not None], (FLOAT if dtype is np.float32 else INT,))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pads(mode: str) -> None:
    pads = np.array([1, 0, 2, 1], np.int64)
    close("Pad", [floats(4, 5), pads, np.array([0.5], np.float32)], mode=mode)
    close("Pad", [floats(4, 5), pads[None]], mode=mode)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_an_axis_more(axis: int) -> None:
    close("ExpandDims", [floats(3, 4), np.array(axis, np.int32)])


def test_gathered_by_coordinates() -> None:
    close("GatherND", [floats(3, 4, 2), np.array([[[0, 1]], [[2, -1]]], np.int64)])
    close("GatherND", [floats(3, 4, 2), np.array([[2], [0]], np.int32)])


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_sampled_on_a_grid(mode: str, padding: str) -> None:
    """ONNX Runtime holds a place inside the border before it takes the sixteen pixels round it; PyTorch, whose operator this is, holds the pixels."""
    if (mode, padding) == ("bicubic", "border"):
        x, grid = floats(2, 3, 5, 6), floats(2, 4, 3, 2)
        given = [gpuonnx.run(node_model("GridSample", [x, grid], 16 if not domain else 1, 1, domain, mode=mode, padding_mode=padding), [x, grid])["y0"] for domain in ("", DOMAIN)]
        np.testing.assert_array_equal(*given)
        return
    close("GridSample", [floats(2, 3, 5, 6), floats(2, 4, 3, 2)], mode=mode, padding_mode=padding, align_corners=1, tolerance=1e-4)


def test_distinct_in_order() -> None:
    close("Unique", [np.array([2, 1, 1, 3, 4, 3], np.float32)], (FLOAT, INT, INT))


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_distances(metric: str) -> None:
    close("CDist", [floats(4, 3), floats(6, 3)], metric=metric, tolerance=1e-4)


@pytest.mark.parametrize(("along", "size", "step"), [(1, 3, 2), (-1, 2, 1), (0, 2, 2)])
def test_unfolded(along: int, size: int, step: int) -> None:
    close("UnfoldTensor", [floats(4, 7, 5)], dim=along, size=size, step=step)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_crops_resized(mode: str) -> None:
    boxes = np.array([[0.13, 0.2, 0.7, 0.9], [0.5, 0, 1.2, 1], [0.9, 0.8, 0.1, -0.1]], np.float32)
    close("CropAndResize", [floats(2, 3, 6, 8), boxes, np.array([0, 1, 0], np.int32), np.array([4, 5], np.int32)], mode=mode, extrapolation_value=0.5)
    close("CropAndResize", [floats(2, 3, 6, 8), boxes, np.array([0, 1, 0], np.int32), np.array([1, 1], np.int32)], mode=mode)


def test_transposed_convolution_with_pads_of_the_run() -> None:
    close("ConvTransposeWithDynamicPads", [floats(1, 4, 5, 5), floats(4, 3, 3, 3), np.array([1, 0, 1, 1], np.int64), floats(3)], strides=[2, 2], kernel_shape=[3, 3], tolerance=1e-4)
    close("ConvTransposeWithDynamicPads", [floats(1, 4, 5, 5), floats(4, 3, 3, 3), np.zeros(4, np.int64)], strides=[1, 2], output_padding=[0, 1], tolerance=1e-4)


def test_repeated_words_forbidden() -> None:
    said = np.array([[1, 2, 3, 1, 2], [4, 4, 4, 4, 4], [0, 1, 2, 3, 4]], np.int64)
    close("NGramRepeatBlock", [said, floats(3, 6)], ngram_size=3)
    close("NGramRepeatBlock", [said, floats(3, 6)], ngram_size=1)
    close("NGramRepeatBlock", [said[:, :2], floats(3, 6)], ngram_size=4)


def test_products_of_short_integers() -> None:
    close("MatMulInteger16", [RNG.integers(-300, 300, (2, 3, 4)).astype(np.int16), RNG.integers(-300, 300, (4, 5)).astype(np.int16)], (TensorProto.INT32,))


@pytest.mark.parametrize(("name", "attributes"), [
    ("Affine", {"alpha": 2.0, "beta": 0.5}), ("Affine", {}), ("ImageScaler", {"scale": 2.0, "bias": [0.1, 0.2, 0.3]}), ("ParametricSoftplus", {"alpha": 2.0, "beta": 0.5}),
    ("Scale", {"scale": 3.0}), ("ScaledTanh", {"alpha": 2.0, "beta": 0.5}), ("Crop", {"border": [1, 2, 2, 1]}), ("Crop", {"border": [1, 2, 0, 0], "scale": [3, 2]})])
def test_experimental_operators_of_old_files(name: str, attributes: dict[str, Any]) -> None:
    close(name, [floats(2, 3, 6, 7)], domain="", opset=7, **attributes)


def test_slice_of_old_files() -> None:
    close("DynamicSlice", [floats(5, 6), np.array([1, -3], np.int64), np.array([4, 100], np.int64)], domain="", opset=7)
    close("DynamicSlice", [floats(5, 6), np.array([-3], np.int64), np.array([-1], np.int64), np.array([1], np.int64)], domain="", opset=7)
