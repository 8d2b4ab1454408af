"""Normalisations, losses, optimizers, random numbers."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import on_devices
import pytest
from op_runner import cases_of, check_case, compare, node_model, run_node

import gpuonnx
from gpuonnx.errors import DeviceError

RNG = np.random.default_rng(4)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def is_random(name: str) -> bool:
    """What a generator gives is not in the standard; Dropout with a seed is a kernel, which the runner here has not."""
    return name.startswith(("test_bernoulli", "test_training_dropout"))


@pytest.mark.parametrize("case", cases_of("normalize", "loss", "training", "random", without=is_random), ids=lambda c: c.name)
def test_official(case: Any) -> None:
    check_case(case, free=False)
    check_case(case, free=True)


@pytest.mark.parametrize("opset", [1, 6, 7, 9, 14, 15])
def test_batch_normalization_of_every_version(opset: int) -> None:
    x, scale, bias, mean, variance = floats(2, 3, 4), floats(3), floats(3), floats(3), np.abs(floats(3))
    attributes = {"is_test": 1} if opset < 7 else {}
    expected = (x - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5) * scale[:, None] + bias[:, None]
    compare(run_node("BatchNormalization", [x, scale, bias, mean, variance], opset, **attributes)[0], expected, 1e-4, 1e-5)


def test_batch_statistics_of_single_activations() -> None:
    x, scale, bias, mean, variance = floats(5, 2, 3), floats(2, 3), floats(2, 3), floats(2, 3), np.abs(floats(2, 3))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    compare(run_node("BatchNormalization", [x, scale, bias, mean, variance], 7, spatial=0)[0], expected, 1e-4, 1e-5)


def test_training_by_naming_outputs() -> None:
    x, ones, zeros = floats(4, 3, 5), np.ones(3, np.float32), np.zeros(3, np.float32)
    y, mean, variance, saved_mean, saved_variance = run_node("BatchNormalization", [x, ones, zeros, zeros, ones], 9, outputs=5)
    compare(saved_mean, x.mean((0, 2)), 1e-4)
    compare(saved_variance, x.var((0, 2)), 1e-4)
    compare(mean, x.mean((0, 2)) * np.float32(0.1), 1e-4)
    compare(variance, x.var((0, 2)) * np.float32(0.1) + np.float32(0.9), 1e-4)
    compare(y, (x - x.mean((0, 2))[:, None]) / np.sqrt(x.var((0, 2))[:, None] + 1e-5), 1e-4, 1e-5)


@pytest.mark.parametrize("name", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_statistics_do_not_overflow_in_narrow_types(name: str, dtype: Any) -> None:
    x, scale = (floats(2, 400) * 300).astype(dtype), np.ones(400, dtype)
    ours = run_node(name, [x, scale], 23, outputs=1)[0]
    v = x.astype(np.float64)
    v = v - v.mean(1, keepdims=True) if name == "LayerNormalization" else v
    assert ours.dtype == x.dtype
    np.testing.assert_allclose(ours.astype(np.float64), v / np.sqrt((v * v).mean(1, keepdims=True) + 1e-5), rtol=1e-2, atol=1e-2)


def test_group_normalization_of_opset_18_scales_groups() -> None:
    x, scale, bias = floats(2, 4, 3), floats(2), floats(2)
    v = x.reshape(2, 2, 6)
    v = (v - v.mean(2, keepdims=True)) / np.sqrt(v.var(2, keepdims=True) + 1e-5) * scale[:, None] + bias[:, None]
    compare(run_node("GroupNormalization", [x, scale, bias], 18, num_groups=2)[0], v.reshape(x.shape), 1e-4, 1e-5)


def test_an_ignored_label_may_be_out_of_range_and_others_may_not() -> None:
    scores, labels = floats(3, 4), np.int64([1, -100, 2])
    loss = run_node("SoftmaxCrossEntropyLoss", [scores, labels], 13, ignore_index=-100)[0]
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    compare(loss, np.float32(-(np.log(p[0, 1]) + np.log(p[2, 2])) / 2), 1e-4)
    with pytest.raises(DeviceError, match="out of range"):
        run_node("SoftmaxCrossEntropyLoss", [scores, labels], 13)


def test_uniform_and_normal_numbers() -> None:
    for dtype, number in ((np.float32, 1), (np.float64, 11), (np.float16, 10)):
        u = run_node("RandomUniform", [], 22, dtype=number, shape=[40, 500], low=-2.0, high=4.0, seed=7.0)[0]
        assert u.dtype == dtype and -2 <= u.min() and u.max() <= 4
        assert abs(u.astype(np.float64).mean() - 1) < 0.05 and abs(u.astype(np.float64).std() - 6 / 12**0.5) < 0.05
        n = run_node("RandomNormalLike", [np.zeros((40, 500), dtype)], 22, mean=3.0, scale=2.0, seed=8.0)[0]
        assert n.dtype == dtype and abs(n.astype(np.float64).mean() - 3) < 0.05 and abs(n.astype(np.float64).std() - 2) < 0.05


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    def draw(**attributes: Any) -> Any:
        return run_node("RandomUniform", [], 22, shape=[8], **attributes)[0].tolist()
    assert draw(seed=1.0) == draw(seed=1.0) != draw(seed=2.0)
    assert draw() != draw()


def test_bernoulli_and_multinomial_follow_their_probabilities() -> None:
    p = np.full(20_000, 0.3, np.float32)
    assert abs(run_node("Bernoulli", [p], 22, seed=1.0)[0].mean() - 0.3) < 0.02
    weights = np.log(np.float32([[0.1, 0.6, 0.3], [1, 0, 0]]) + np.float32(1e-30))
    drawn = run_node("Multinomial", [weights], 22, sample_size=20_000, seed=3.0)[0]
    assert drawn.dtype == np.int32
    np.testing.assert_allclose(np.bincount(drawn[0], minlength=3) / 20_000, [0.1, 0.6, 0.3], atol=0.02)
    assert (drawn[1] == 0).all()


def test_dropout_drops_only_in_training() -> None:
    x = np.ones(10_000, np.float32)
    y, mask = run_node("Dropout", [x, np.float32(0.25), np.array(True)], 22, outputs=2)
    assert abs(mask.mean() - 0.75) < 0.02 and mask.dtype == bool
    compare(y, mask / np.float32(0.75))
    y, mask = run_node("Dropout", [x, np.float32(0.25)], 22, outputs=2)
    assert mask.all() and (y == x).all()
    assert run_node("Dropout", [x], 7, outputs=2)[1].dtype == np.float32
    assert run_node("Dropout", [x], 1, outputs=2, is_test=0)[1].mean() < 0.6


@pytest.mark.usefixtures("every_device")
@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
@pytest.mark.parametrize("count", [0, 1, 312, 313, 2000])
def test_dropout_with_a_seed_draws_what_numpy_draws(seed: int, count: int) -> None:
    """As the standard's reference implementation does."""
    inputs = [np.ones(count, np.float64), np.array(0.3), np.array(True)]
    session = gpuonnx.load(node_model("Dropout", inputs, 13, 2, seed=seed), device=on_devices.current, threads=1)
    expected = np.random.RandomState(seed).uniform(size=count) >= 0.3
    assert session.run(inputs)["y1"].tolist() == expected.tolist()
    assert session.run(inputs)["y1"].tolist() == expected.tolist()
