"""The derivatives of operators that are made of much, over their attributes, against central differences."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradient_runner import doubles, one

pytestmark = pytest.mark.usefixtures("same_numbers")


@pytest.mark.parametrize("attributes", [
    {}, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, {"group": 2, "dilations": [2, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID", "strides": [1, 3]}, {"group": 4}, {"strides": [3, 2], "dilations": [1, 2], "pads": [0, 2, 0, 0]}])
def test_convolutions(attributes: dict[str, Any]) -> None:
    one("Conv", doubles(2, 4, 5, 6), doubles(4, 4 // attributes.get("group", 1), 2, 3), doubles(4), **attributes)


@pytest.mark.parametrize("attributes", [
    {}, {"strides": [2, 1], "pads": [1, 0, 0, 0]}, {"group": 2, "dilations": [2, 1]}, {"strides": [2, 3], "output_padding": [1, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"output_shape": [7, 6], "strides": [2, 2]}])
def test_transposed_convolutions(attributes: dict[str, Any]) -> None:
    one("ConvTranspose", doubles(1, 4, 3, 3), doubles(4, 2, 3, 2), doubles(2 * attributes.get("group", 1)), **attributes)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int) -> None:
    one("Conv", doubles(2, 2, *[4] * rank), doubles(3, 2, *[2] * rank), strides=[2] * rank, pads=[1] * rank * 2)
    one("ConvTranspose", doubles(1, 2, *[2] * rank), doubles(2, 1, *[2] * rank), strides=[2] * rank)
    one("DeformConv", doubles(1, 2, 4, 4), doubles(2, 2, 2, 2), doubles(1, 8, 3, 3, low=0.1, high=0.4), doubles(2), doubles(1, 4, 3, 3))


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("attributes", [{"strides": [2, 1], "pads": [1, 0, 1, 1]}, {"ceil_mode": 1, "strides": [2, 2]}, {"dilations": [2, 1]},
                                        {"auto_pad": "SAME_LOWER", "strides": [2, 2]}])
def test_pools(name: str, attributes: dict[str, Any]) -> None:
    one(name, doubles(1, 2, 5, 5, low=0.5), kernel_shape=[2, 2], **attributes)


def test_more_pools() -> None:
    one("AveragePool", doubles(1, 2, 5, 5), kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1)
    one("LpPool", doubles(1, 1, 4, 4, low=0.5), kernel_shape=[2, 2], p=3)
    one("MaxPool", doubles(2, 1, 6), kernel_shape=[3], strides=[2], outputs=2)
    one("MaxUnpool", doubles(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]]), kernel_shape=[2, 2], strides=[2, 2])
    one("GlobalLpPool", doubles(1, 2, 3, 3, low=0.5), p=3)
    one("MaxRoiPool", doubles(1, 1, 6, 6), constants={1: np.array([[0, 1, 1, 4, 4.0]])}, pooled_shape=[2, 2])
    one("RoiAlign", doubles(1, 1, 6, 6), np.array([[1.2, 1.1, 4.3, 4.4]]), np.array([0]), output_height=2, output_width=2, sampling_ratio=2)
    one("RoiAlign", doubles(1, 1, 6, 6), np.array([[1.2, 1.1, 4.3, 4.4]]), np.array([0]), output_height=2, output_width=2, sampling_ratio=2, mode="max")


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmaxes(axis: int) -> None:
    for name in ("Softmax", "LogSoftmax"):
        one(name, doubles(2, 3, 4), axis=axis)
    one("RMSNormalization", doubles(2, 3, 4), doubles(*(2, 3, 4)[axis:]), axis=axis, stash_type=11)
    one("LayerNormalization", doubles(2, 3, 4), doubles(*(2, 3, 4)[axis:]), doubles(*(2, 3, 4)[axis:]), axis=axis, stash_type=11)


def test_normalisations() -> None:
    one("BatchNormalization", doubles(2, 3, 2, 2), doubles(3), doubles(3), doubles(3), doubles(3, low=0.5), epsilon=1e-2)
    one("BatchNormalization", doubles(3, 2, 4), doubles(2), doubles(2), doubles(2), doubles(2, low=0.5), training_mode=1, outputs=3)
    one("MeanVarianceNormalization", doubles(2, 2, 3, 3))
    one("LpNormalization", doubles(2, 4, low=0.3), p=1, axis=0)
    one("LRN", doubles(1, 5, 2, 2), size=4, alpha=0.1, beta=0.6, bias=1.5)
    one("GroupNormalization", doubles(2, 4, 3, 2), doubles(4), doubles(4), num_groups=4, stash_type=11)


MASK = np.array([[True, True, False, True], [True, False, True, True], [True] * 4])


def test_attention() -> None:
    q, k, v = doubles(1, 2, 3, 4), doubles(1, 2, 4, 4), doubles(1, 2, 4, 2)
    one("Attention", q, k, v)
    one("Attention", q, k, v, MASK)
    one("Attention", q, k, v, doubles(3, 4), scale=0.3, softcap=2.0)
    one("Attention", q, k, v, is_causal=1)
    one("Attention", doubles(1, 4, 3, 2), doubles(1, 2, 3, 2), doubles(1, 2, 3, 2))
    one("Attention", doubles(2, 3, 8), doubles(2, 3, 8), doubles(2, 3, 8), q_num_heads=2, kv_num_heads=2)
    one("Attention", q, k, v, None, doubles(1, 2, 2, 4), doubles(1, 2, 2, 2), outputs=3)


def test_gathers() -> None:
    for axis in (0, 1, -1):
        one("Gather", doubles(3, 4, 2), np.array([[0, -1], [1, 1]]), axis=axis)
        one("GatherElements", doubles(3, 4, 2), np.array([[[0, 1], [-1, 0]], [[1, 1], [0, 0]]]), axis=axis)
    one("GatherND", doubles(2, 3, 4), np.array([[[1]], [[-1]]]), batch_dims=1)
    one("ScatterElements", doubles(3, 4), np.array([[1, -1], [0, 2]]), doubles(2, 2), axis=1)
    one("ScatterND", doubles(3, 2, 2), np.array([[0, 1], [2, 0]]), doubles(2, 2), reduction="add")
    one("TensorScatter", doubles(1, 4, 2), doubles(1, 2, 2), np.array([1]), axis=1, opset=24)
    one("Compress", doubles(4, 2), np.array([True, False, True, True]), axis=0)
    one("ReverseSequence", doubles(4, 2), np.array([3, 2]), batch_axis=1, time_axis=0)
    one("OneHot", np.array([1, 0, 2]), np.array(3), doubles(2), axis=0)
    one("Upsample", doubles(1, 1, 2, 2), constants={1: np.array([1, 1, 2, 3], np.float32)}, opset=9)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
def test_resize(mode: str, coordinates: str) -> None:
    one("Resize", doubles(1, 1, 3, 4), constants={2: np.array([1, 1, 2, 1.5], np.float32)}, mode=mode, coordinate_transformation_mode=coordinates)
    one("Resize", doubles(1, 1, 4, 5), constants={3: np.array([1, 1, 2, 3])}, mode=mode, coordinate_transformation_mode=coordinates)


def test_more_of_resize() -> None:
    one("Resize", doubles(1, 1, 4, 5), constants={3: np.array([1, 1, 2, 3])}, mode="cubic", antialias=1)
    one("Resize", doubles(1, 1, 4, 5), constants={3: np.array([1, 1, 2, 3])}, mode="linear", antialias=1)
    one("Resize", doubles(1, 1, 4, 4), constants={1: np.array([0, 0, 0.2, 0.3, 1, 1, 0.9, 1.2], np.float32), 3: np.array([1, 1, 3, 3])}, mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=1.5)
    one("Resize", doubles(1, 1, 4, 4), constants={2: np.array([1, 1, 0.6, 0.6], np.float32)}, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5)


@pytest.mark.parametrize("equation,shapes", [
    ("ij,jk->ik", [(2, 3), (3, 2)]), ("bij,bjk,kl->bl", [(2, 2, 3), (2, 3, 2), (2, 2)]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]), ("ij->ji", [(2, 3)]),
    ("...ij,...j->...i", [(2, 2, 3), (2, 3)]), ("i,j->ij", [(2,), (3,)]), ("ijk->j", [(2, 3, 2)])])
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    one("Einsum", *(doubles(*s) for s in shapes), equation=equation)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    one("GridSample", doubles(1, 2, 4, 5), doubles(1, 2, 3, 2, low=-1.3, high=1.3), mode=mode, padding_mode=padding, align_corners=corners)


def test_grids() -> None:
    one("GridSample", doubles(1, 1, 3, 3, 3), doubles(1, 2, 2, 2, 3, low=-0.8, high=0.8))
    one("AffineGrid", doubles(2, 2, 3), constants={1: np.array([2, 1, 2, 3])}, align_corners=1)
    one("AffineGrid", doubles(2, 2, 3), constants={1: np.array([2, 1, 2, 3])})
    one("Col2Im", doubles(1, 4, 4), constants={1: np.array([3, 3]), 2: np.array([2, 2])})
    one("CenterCropPad", doubles(3, 4), constants={1: np.array([5, 2])})


@pytest.mark.parametrize("axis,largest", [(0, 1), (1, 0), (-1, 1)])
def test_sorting(axis: int, largest: int) -> None:
    one("TopK", doubles(4, 3, 5), constants={1: np.array([3])}, outputs=2, axis=axis, largest=largest)
    one("Unique", doubles(5), outputs=1)
    one("Unique", np.array([[1.0, 2], [1, 2], [0, 3]]) + 0 * doubles(3, 2), outputs=1, axis=1)


def test_losses() -> None:
    labels = np.array([[0, 3], [1, 1], [2, 0]])
    for reduction in ("none", "sum", "mean"):
        one("SoftmaxCrossEntropyLoss", doubles(3, 4, 2), labels, doubles(4, low=0.3), reduction=reduction, ignore_index=1)
        one("NegativeLogLikelihoodLoss", doubles(3, 4, 2), labels, doubles(4, low=0.3), reduction=reduction)


def test_signals() -> None:
    one("STFT", doubles(1, 10, 1), np.array(3), doubles(4), onesided=1)
    one("Dropout", doubles(3, 4), constants={1: np.array(0.4), 2: np.array(True)}, seed=7)
    one("Clip", doubles(4), np.array(-0.6), np.array(0.9))
    one("PRelu", doubles(2, 3), doubles(3))
    one("Gelu", doubles(4), approximate="tanh")
    one("Swish", doubles(4), alpha=1.3, opset=24)


def test_operators_of_microsoft() -> None:
    def own(name: str, *inputs: np.ndarray | None, **more: Any) -> None:
        one(name, *inputs, domain="com.microsoft", **more)
    own("FusedMatMul", doubles(2, 4, 3), doubles(5, 4), transA=1, transB=1, alpha=0.5)
    own("QuickGelu", doubles(5))
    own("BiasGelu", doubles(2, 3), doubles(3))
    own("FastGelu", doubles(2, 3), doubles(3))
    own("MultiHeadAttention", doubles(1, 3, 4), doubles(1, 3, 4), doubles(1, 3, 4), num_heads=2)
