"""Elementwise operators: the official cases, and what these leave out."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from op_runner import cases_of, check_case, compare, run_node

from gpuonnx.errors import DeviceError, GpuOnnxError

RNG = np.random.default_rng(1)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", cases_of("math", "activation", "cast"), ids=lambda c: c.name)
def test_official(case: Any) -> None:
    check_case(case, free=False)
    check_case(case, free=True)


def test_broadcast_of_opset_6_needs_its_flag_and_starts_at_axis() -> None:
    a, b = floats(2, 3, 4), floats(3)
    compare(run_node("Add", [a, b], 6, axis=1, broadcast=1)[0], a + b[:, None])
    compare(run_node("Mul", [a, floats(4)[:4] * 0 + 2], 6, broadcast=1)[0], a * 2)
    with pytest.raises(GpuOnnxError):
        run_node("Add", [a, b], 6)


def test_attributes_of_opset_1_without_meaning_are_accepted() -> None:
    compare(run_node("Relu", [np.float32([-1, 2])], 1, consumed_inputs=[0])[0], np.float32([0, 2]))


@pytest.mark.parametrize(("opset", "attributes"), [(1, {"min": -0.5}), (6, {"min": -0.5, "max": 0.5})])
def test_clip_by_attributes(opset: int, attributes: dict[str, float]) -> None:
    x = floats(20)
    compare(run_node("Clip", [x], opset, **attributes)[0], np.clip(x, -0.5, attributes.get("max")))


def test_clip_with_one_bound_and_crossed_bounds() -> None:
    x = np.int32([-3, 0, 3])
    compare(run_node("Clip", [x, None, np.int32(1)], 13)[0], np.int32([-3, 0, 1]))
    compare(run_node("Clip", [x, np.int32(2), np.int32(-2)], 13)[0], np.int32([-2, -2, -2]))


def test_integer_division_rounds_towards_zero_and_reports_zero() -> None:
    a, b = np.int32([-7, 7, -7, 7]), np.int32([2, 2, -2, -2])
    compare(run_node("Div", [a, b], 14)[0], np.int32([-3, 3, 3, -3]))
    with pytest.raises(DeviceError, match="division by zero"):
        run_node("Div", [a, b * 0], 14)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64])
def test_mod_both_ways(dtype: Any) -> None:
    a, b = np.array([7, 100, 5], dtype), np.array([3, 7, 5], dtype)
    compare(run_node("Mod", [a, b], 13)[0], np.mod(a, b))
    compare(run_node("Mod", [a, b], 13, fmod=1)[0], np.fmod(a, b))


def test_power_keeps_the_type_of_the_base() -> None:
    compare(run_node("Pow", [np.int32([2, 3]), np.float32([0.5, 2])], 15)[0], np.int32([1, 9]))
    compare(run_node("Pow", [np.float32([2, 3]), np.int64([3, 2])], 15)[0], np.float32([8, 9]))


def test_nan_goes_through_max_min_and_clip() -> None:
    x = np.float32([np.nan, 1])
    for name in ("Max", "Min"):
        compare(run_node(name, [x, np.float32([0, 0])], 13)[0], np.float32([np.nan, 1 if name == "Max" else 0]))
    compare(run_node("Clip", [x, np.float32(0), np.float32(1)], 13)[0], x)


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shift_beyond_the_width(direction: str) -> None:
    x, y = np.int8([-4, 4]), np.int8([9, 9])
    compare(run_node("BitShift", [x, y], 28, direction=direction)[0], np.int8([-1 if direction == "RIGHT" else 0, 0]))


@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Softplus", "Gelu", "Mish", "Swish", "HardSwish", "Elu", "Selu", "Celu", "Softsign", "Tanh"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_activations_compute_in_a_wider_type_and_round_once(name: str, dtype: Any) -> None:
    x = (floats(50) * 4).astype(dtype)
    exact = run_node(name, [x.astype(np.float64)], 28)[0]
    ours = run_node(name, [x], 28)[0]
    assert ours.dtype == x.dtype
    bound = {np.float16: 1e-3, ml_dtypes.bfloat16: 8e-3, np.float64: 1e-12}[dtype]
    np.testing.assert_allclose(ours.astype(np.float64), exact, rtol=bound, atol=bound * 1e-2)


def test_softmax_before_opset_13_is_of_a_matrix() -> None:
    x = floats(2, 3, 4)
    flat = x.reshape(2, 12)
    e = np.exp(flat - flat.max(1, keepdims=True))
    compare(run_node("Softmax", [x], 11)[0], (e / e.sum(1, keepdims=True)).reshape(x.shape))


def test_softmax_of_halves_does_not_overflow() -> None:
    x = np.full((1, 100_000), 10, np.float16)
    assert np.isfinite(run_node("LogSoftmax", [x], 13)[0]).all()


def test_slope_of_opset_6_belongs_to_channels() -> None:
    x, slope = floats(2, 3, 4, 3), np.float32([0.1, 0.2, 0.3])
    compare(run_node("PRelu", [x, slope], 6)[0], np.where(x < 0, x * slope[:, None, None], x))


def test_text_to_numbers_and_back() -> None:
    words = np.array(["1.5", "-2", "NaN", "1e3"], object)
    compare(run_node("Cast", [words], 21, to=1)[0], np.float32([1.5, -2, np.nan, 1000]))
    assert run_node("Cast", [np.int32([3, -4])], 21, to=8)[0].tolist() == ["3", "-4"]


def test_cast_by_name_of_opset_1() -> None:
    compare(run_node("Cast", [np.float32([1.7, -1.7])], 1, to="INT32")[0], np.int32([1, -1]))


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_exponents_round_as_the_reference(mode: str) -> None:
    from onnx.numpy_helper import to_float8e8m0
    x = np.exp2(RNG.uniform(-100, 100, 500)).astype(np.float32)
    x[:5] = np.float32([1, 2, 1.5, np.nextafter(np.float32(1), np.float32(2)), 3])
    ours = run_node("Cast", [x], 25, to=24, round_mode=mode)[0]
    assert (ours.view(np.uint8) == to_float8e8m0(x, True, mode).view(np.uint8)).all()


def test_infinities_of_float8_survive_and_saturate_when_asked() -> None:
    x = np.float32([np.inf, -np.inf, 70000, 1])
    assert np.isinf(run_node("Cast", [x], 21, to=19, saturate=0)[0].astype(np.float32)[:3]).all()
    assert run_node("Cast", [x], 21, to=19)[0].astype(np.float32).tolist() == [57344, -57344, 57344, 1]
