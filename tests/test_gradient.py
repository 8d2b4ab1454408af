"""Gradient against central differences in float64, operator by operator."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from gradient_runner import TRAINING, check, doubles, model, one
from onnx import helper

import gpuonnx

pytestmark = pytest.mark.usefixtures("same_numbers")

UNARY = """Abs Neg Reciprocal Sqrt Exp Log Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Atanh Erf Sigmoid Relu Elu Selu Celu LeakyRelu
           HardSigmoid HardSwish Softplus Softsign Mish ThresholdedRelu Shrink Gelu Softmax LogSoftmax Identity Floor Sign Round""".split()


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one(name: str) -> None:
    one(name, doubles(2, 5, low=0.1, high=0.9) if name in ("Reciprocal", "Sqrt", "Log") else doubles(2, 5, low=-0.9, high=0.9))


@pytest.mark.parametrize("name", "Softplus Celu Mish Softsign Gelu Swish Tanh Sigmoid Softmax LogSoftmax ReduceLogSumExp".split())
def test_smooth_functions_at_0(name: str) -> None:
    """Their formulas have corners there that cancel."""
    one(name, np.array([[0.0, 0.5, 0.0]]), opset=24)


def test_acosh() -> None:
    one("Acosh", doubles(6, low=1.2, high=3.0))


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
def test_functions_of_two_broadcast(name: str) -> None:
    one(name, doubles(2, 1, 3), doubles(4, 1, low=0.5))


def test_power_and_remainder() -> None:
    one("Pow", doubles(2, 3, low=0.3), doubles(3))
    one("Pow", doubles(5), constants={1: np.array(3.0)})
    one("Mod", doubles(5, low=1, high=1.9), doubles(5, low=0.4, high=0.45), fmod=1)


def test_choice() -> None:
    one("Where", np.array([[True], [False]]), doubles(2, 3), doubles(3))
    one("Clip", doubles(9), constants={1: np.array(-1.0), 2: np.array(1.0)})


@pytest.mark.parametrize("name", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
                                  "ReduceLogSumExp", "ReduceSumSquare"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(name: str, keepdims: int) -> None:
    one(name, doubles(2, 3, 4, low=0.2), constants={1: np.array([0, 2])}, keepdims=keepdims)


def test_a_product_with_zeros() -> None:
    x = doubles(3, 4)
    x[0, 1] = x[1, 2] = x[1, 3] = 0
    one("ReduceProd", x, constants={1: np.array([1])})


def test_an_extreme_goes_to_the_first_of_equals() -> None:
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    nodes = [helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0, axes=[1]),
             helper.make_node("Gradient", ["x"], ["d"], domain=TRAINING, xs=["x"], y="y")]
    proto = model(nodes, {"x": x}, ["d"], {})
    proto.opset_import[0].version = 13
    assert gpuonnx.run(proto, {"x": x})["d"].tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_cumulated_sums(attributes: dict[str, int]) -> None:
    one("CumSum", doubles(2, 4), constants={1: np.array(1)}, **attributes)


def test_shapes() -> None:
    x = doubles(2, 3, 4)
    one("Transpose", x, perm=[2, 0, 1])
    one("Reshape", x, constants={1: np.array([4, -1])})
    one("Expand", doubles(3, 1), constants={1: np.array([2, 3, 4])})
    one("Slice", x, constants={1: np.array([3, 0]), 2: np.array([-9, 2]), 3: np.array([2, 0]), 4: np.array([-2, 1])})
    one("Concat", x, doubles(2, 1, 4), x + 1, axis=1)
    one("Tile", doubles(2, 3), constants={1: np.array([2, 2])})
    one("Flatten", x)
    one("Split", x, outputs=2, axis=2, num_outputs=2)
    one("DepthToSpace", doubles(1, 4, 2, 3), blocksize=2)
    one("Trilu", doubles(4, 4))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    one("Pad", doubles(3, 4), constants={1: np.array([1, 2, 0, 1])}, mode=mode)


def test_gathers_and_scatters() -> None:
    one("Gather", doubles(4, 3), np.array([[0, 2], [2, -1]]), axis=0)
    one("GatherElements", doubles(3, 3), np.array([[0, 2, 1], [2, 2, 2]]), axis=0)
    one("GatherND", doubles(3, 4), np.array([[0, 1], [2, 3], [0, 1]]))
    one("ScatterElements", doubles(3, 3), np.array([[1, 0, 2]]), doubles(1, 3), axis=0)
    one("ScatterElements", doubles(5), np.array([1, 1, 3]), doubles(3), axis=0, reduction="add")
    one("ScatterND", doubles(4, 2), np.array([[1], [3]]), doubles(2, 2))


def test_products() -> None:
    one("MatMul", doubles(2, 3, 4), doubles(4, 5))
    one("MatMul", doubles(3, 4), doubles(2, 4, 2))
    one("MatMul", doubles(2, 1, 3, 4), doubles(3, 4, 2))
    one("MatMul", doubles(4), doubles(4, 2))
    one("Gemm", doubles(4, 3), doubles(5, 4), doubles(5), alpha=0.7, beta=1.3, transA=1, transB=1)
    one("Einsum", doubles(2, 3, 4), doubles(4, 3), equation="bij,ji->b")


@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, {"group": 2, "dilations": [2, 1]},
                                        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}])
def test_convolutions(attributes: dict[str, Any]) -> None:
    one("Conv", doubles(2, 4, 5, 6), doubles(4, 4 // attributes.get("group", 1), 2, 3), doubles(4), **attributes)


def test_other_convolutions() -> None:
    one("Conv", doubles(1, 2, 7), doubles(3, 2, 3), strides=[2], pads=[1, 1])
    one("ConvTranspose", doubles(1, 2, 3, 3), doubles(2, 2, 3, 2), strides=[2, 1], pads=[1, 0, 0, 0])


def test_pools() -> None:
    one("MaxPool", doubles(1, 2, 5, 5), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    one("AveragePool", doubles(1, 2, 5, 5), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    one("LpPool", doubles(1, 1, 4, 4, low=0.5), kernel_shape=[2, 2])
    one("GlobalAveragePool", doubles(1, 2, 3, 3))
    one("GlobalMaxPool", doubles(1, 2, 3, 3))


def test_normalisations() -> None:
    one("LayerNormalization", doubles(2, 6), doubles(6), doubles(6), stash_type=11)
    one("InstanceNormalization", doubles(2, 3, 4), doubles(3), doubles(3))
    one("GroupNormalization", doubles(1, 4, 3), doubles(4), doubles(4), num_groups=2, stash_type=11)
    one("BatchNormalization", doubles(2, 3, 2), doubles(3), doubles(3), doubles(3), doubles(3, low=0.5))
    one("LpNormalization", doubles(2, 4))
    one("LRN", doubles(1, 4, 2, 2), size=3)


def test_images_and_choices() -> None:
    one("Resize", doubles(1, 1, 3, 4), constants={2: np.array([1, 1, 2, 1.5], np.float32)}, mode="linear")
    one("GridSample", doubles(1, 1, 4, 4), doubles(1, 2, 3, 2, low=-0.8, high=0.8))
    one("TopK", doubles(2, 5), constants={1: np.array([2])}, outputs=2)
    one("SoftmaxCrossEntropyLoss", doubles(3, 4), np.array([0, 3, 1]))


def test_fourier_transforms() -> None:
    one("DFT", doubles(2, 6, 2), constants={2: np.array(1)})
    one("DFT", doubles(2, 5, 2), constants={2: np.array(1)}, inverse=1)
    one("DFT", doubles(2, 5, 1), constants={1: np.array(8), 2: np.array(1)}, onesided=1)
    one("DFT", doubles(1, 4, 2), constants={1: np.array(6), 2: np.array(1)}, onesided=1, inverse=1)
    one("DFT", doubles(1, 6, 2), constants={1: np.array(5), 2: np.array(1)}, onesided=1, inverse=1)


def test_a_network_and_the_second_derivative() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["t"]),
             helper.make_node("ReduceSumSquare", ["t"], ["o"], keepdims=0),
             helper.make_node("Gradient", ["x", "w"], ["dx", "y"], domain=TRAINING, xs=["x", "w"], y="o")]
    check(nodes, {"x": doubles(2, 3), "w": doubles(3, 2)}, tolerance=1e-4)


def test_y_is_computed_again_for_other_values() -> None:
    """And for an intermediate tensor; the nodes are not sorted."""
    nodes = [helper.make_node("Gradient", ["h1", "z"], ["dh", "dz"], domain=TRAINING, xs=["h", "z"], y="y"),
             helper.make_node("Exp", ["x"], ["h"]), helper.make_node("Mul", ["h", "z"], ["m"]), helper.make_node("Mul", ["m", "h"], ["y"])]
    inputs = {"x": doubles(3), "z": doubles(3), "h1": doubles(3)}
    got = gpuonnx.run(model(nodes, inputs, ["dh", "dz"], {}), inputs)
    np.testing.assert_allclose(got["dh"], 2 * inputs["h1"] * inputs["z"])
    np.testing.assert_allclose(got["dz"], inputs["h1"] ** 2)


def test_half_precision_is_summed_in_float32() -> None:
    x = np.full(4096, 1.0, np.float16)
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"]), helper.make_node("Gradient", ["s", "x"], ["d"], domain=TRAINING, xs=["s"], zs=["x"], y="y")]
    inputs = {"x": x, "s": np.array(2, np.float16)}
    assert gpuonnx.run(model(nodes, inputs, ["d"], {}), inputs)["d"] == 4096


def refused(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], outputs: list[str], **attributes: Any) -> str:
    """The error of a Gradient of y by x whose graph has `nodes`."""
    names = [*attributes["xs"], *attributes.get("zs", [])]
    last = helper.make_node("Gradient", names, outputs, name="G", domain=TRAINING, y="y", **attributes)
    with pytest.raises(gpuonnx.GpuOnnxError) as error:
        gpuonnx.run(model([*nodes, last], inputs, outputs, {}), inputs)
    return str(error.value)


def test_what_stands_behind_a_value_that_the_run_has_to_know_is_refused() -> None:
    body = helper.make_graph([helper.make_node("SequenceInsert", ["s", "x"], ["s2"])], "b",
                             [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, []),
                              helper.make_tensor_sequence_value_info("s", 11, None)],
                             [helper.make_tensor_value_info("c", 9, []), helper.make_tensor_sequence_value_info("s2", 11, None)])
    nodes = [helper.make_node("SequenceEmpty", [], ["s0"], dtype=11), helper.make_node("Loop", ["n", "", "s0"], ["list"], name="L", body=body),
             helper.make_node("ConcatFromSequence", ["list"], ["y"], name="C", axis=0)]
    message = refused(nodes, {"x": doubles(2), "n": np.array(3)}, ["d"], xs=["x"], zs=["n"])
    assert "Gradient G" in message and "'y'" in message and "before the rest" in message


def test_y_hangs_on_xs_and_zs_alone() -> None:
    node, inputs = helper.make_node("Mul", ["x", "other"], ["y"]), {"x": doubles(2), "other": doubles(2)}
    assert "other" in refused([node], inputs, ["d"], xs=["x"])
    assert "nowhere" in refused([node], inputs, ["d"], xs=["x"], zs=["nowhere"])
