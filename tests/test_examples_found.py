"""Examples that made-up inputs (test_every_operator.py) once found wrong, by name."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import on_devices
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from op_runner import node_model

pytestmark = pytest.mark.usefixtures("every_device")
F32 = np.float32


def run(op_type: str, *inputs: Any, opset: int = 28, **attributes: Any) -> np.ndarray:
    model = node_model(op_type, inputs, opset, **attributes)
    return on_devices.run(model, {f"x{k}": x for k, x in enumerate(inputs) if x is not None})["y0"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("op", "function"), [("Sin", np.sin), ("Cos", np.cos)])
def test_circular_functions_of_large_angles(op: str, function: Any) -> None:
    """In vectors where some angles are small, too; infinities give NaN."""
    x = np.array([-0.25, 1e30, 3.0, 6e20, -4e12, np.inf, np.nan, 2.0, 1e5, -1e9], F32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(run(op, x), function(x.astype(np.float64)), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int64"])
def test_erf_of_integers(kind: str) -> None:
    np.testing.assert_array_equal(run("Erf", np.array([0, 1, 3, 9], kind), opset=9), np.array([0, 0, 0, 1], kind))


@pytest.mark.parametrize("kind", ["uint8", "int32"])
def test_shrink_of_integers_by_a_part_of_one(kind: str) -> None:
    np.testing.assert_array_equal(run("Shrink", np.array([0, 3, 9], kind), bias=0.25), np.array([0, 2, 8], kind))


def test_swish_of_minus_infinity() -> None:
    """The sigmoid of -inf is 0, and -inf * 0 is no number."""
    got = run("Swish", np.array([-np.inf, -1000, 0], F32))
    assert np.isnan(got[0]) and got[1:].tolist() == [0, 0]


@pytest.mark.parametrize("c", [(1, 1), (1, 4), (3, 1), (3, 4), (4,), (1,), ()])
def test_gemm_with_a_c_of_free_sizes(c: tuple[int, ...]) -> None:
    a, b = np.ones((3, 2), F32), np.ones((2, 4), F32)
    np.testing.assert_array_equal(run("Gemm", a, b, np.ones(c, F32)), np.full((3, 4), 3, F32))


def test_gemm_of_one_column_with_a_c_of_free_sizes() -> None:
    np.testing.assert_array_equal(run("Gemm", np.ones((3, 2), F32), np.ones((2, 1), F32), np.ones((3, 1), F32)), np.full((3, 1), 3, F32))


def test_affine_grid_without_its_attribute() -> None:
    theta = np.array([[[1, 0, 0], [0, 1, 0]]], F32)
    np.testing.assert_allclose(run("AffineGrid", theta, np.array([1, 1, 1, 2])), [[[[-0.5, 0], [0.5, 0]]]], atol=1e-6)


@pytest.mark.parametrize("kind", ["float64", "float16", "float32"])
def test_mel_frequencies_of_every_type_as_inputs(kind: str) -> None:
    got = run("MelWeightMatrix", np.array(2), np.array(8), np.array(8192), np.array(0, kind), np.array(4096, kind))
    assert got.shape == (5, 2) and got.any()


@pytest.mark.parametrize("kind", ["float6_e2m3fn", "float6_e3m2fn"])
def test_six_bit_floats(kind: str) -> None:
    """Every code becomes the float that it is; numbers round to the nearest, and to the largest beyond it; packed weights are read."""
    dtype = np.dtype(getattr(ml_dtypes, kind))
    codes = np.arange(64, dtype=np.uint8).view(dtype)
    np.testing.assert_array_equal(run("Cast", codes, to=TensorProto.FLOAT), codes.astype(F32))
    x = np.concatenate([np.linspace(-30, 30, 97, dtype=F32), F32([0.0625, 0.03, 1e6, -1e6, -0.0])])
    most = float(ml_dtypes.finfo(dtype).max)
    got = run("Cast", x, to=helper.np_dtype_to_tensor_dtype(dtype))
    np.testing.assert_array_equal(got.view(np.uint8), np.clip(x, -most, most).astype(dtype).view(np.uint8))
    held = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(codes[:37], "w"))
    graph = helper.make_graph([held, helper.make_node("Cast", ["w"], ["y0"], to=TensorProto.FLOAT)], "g", [], [helper.make_tensor_value_info("y0", 1, None)])
    np.testing.assert_array_equal(on_devices.run(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)]), {})["y0"], codes[:37].astype(F32))


@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_complex_blocks(kind: Any) -> None:
    """A reshape of strided memory has to copy it."""
    x = (np.arange(32) + 1j).astype(kind).reshape(1, 2, 4, 4)
    wanted = x.reshape(1, 2, 2, 2, 2, 2).transpose(0, 3, 5, 1, 2, 4).reshape(1, 8, 2, 2)
    np.testing.assert_array_equal(run("SpaceToDepth", x, blocksize=2), wanted)


def test_cubic_samples_within_half_an_element_of_the_border() -> None:
    """As the reference evaluator: only what is beyond the border is moved to it."""
    x, grid = np.array([[[[1, 2, 4]]]], F32), np.array([[[[-0.9, 0], [0.95, 0], [-1.4, 0]]]], F32)
    model = node_model("GridSample", [x, grid], 20, mode="cubic", padding_mode="border")
    np.testing.assert_allclose(run("GridSample", x, grid, opset=20, mode="cubic", padding_mode="border"),
                               ReferenceEvaluator(model).run(None, {"x0": x, "x1": grid})[0], rtol=1e-5)


def test_ranges_of_doubles_count_in_doubles() -> None:
    for first, last, step in ((0.0, 0.3, 0.1), (1.1, 1.7, 0.2), (0.1, 1.9, 0.3), (1.3, 0.1, -0.4)):
        np.testing.assert_allclose(run("Range", *map(np.array, (first, last, step))), np.arange(first, last, step))
