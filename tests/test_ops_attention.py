"""Attention, rotary embeddings, causal convolutions: the official cases, and the reference with every size free."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from op_runner import node_model

import gpuonnx
from gpuonnx.conformance import suite

RNG = np.random.default_rng(23)
OFFICIAL = [n for n in suite.cases() if n.startswith(("test_attention", "test_rotary", "test_causal_conv")) and "expanded" not in n]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(op_type: str, inputs: list[Any], outputs: int = 1, opset: int = 25, tolerance: float = 1e-5, **attributes: Any) -> None:
    model = node_model(op_type, inputs, opset, outputs, **attributes)
    feeds = {f"x{k}": x for k, x in enumerate(inputs) if x is not None}
    expected = ReferenceEvaluator(model).run(None, feeds)
    for ours, theirs in zip(gpuonnx.load(model, device="cpu", threads=1).run(feeds).values(), expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OFFICIAL[::4])
def test_official(name: str) -> None:
    suite.run_case(name, "cpu", 1)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_every_stage_of_the_scores(mode: int) -> None:
    mask = RNG.random((3, 5)) > 0.3
    mask[1] = False
    check("Attention", [floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6), mask], 4, qk_matmul_output_mode=mode, softcap=2.0 if mode else 0.0)


def test_rank_3_with_past_window_and_shared_heads() -> None:
    inputs = [floats(2, 3, 24), floats(2, 3, 12), floats(2, 3, 8), None, floats(2, 2, 4, 6), floats(2, 2, 4, 4)]
    check("Attention", inputs, 3, q_num_heads=4, kv_num_heads=2, is_causal=1, left_window_size=3)


def test_filled_part_of_a_cache() -> None:
    inputs = [floats(2, 2, 3, 4), floats(2, 2, 7, 4), floats(2, 2, 7, 4), floats(3, 5), None, None, np.array([2, 5], np.int64)]
    check("Attention", inputs, is_causal=1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_types(dtype: Any) -> None:
    inputs = [floats(1, 2, 3, 4).astype(dtype) for _ in range(3)]
    check("Attention", inputs, opset=23, tolerance=1e-12 if dtype == np.float64 else 2e-2)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_partial_rotation(interleaved: int) -> None:
    positions = RNG.integers(0, 9, (2, 3))
    inputs = [floats(2, 3, 20), floats(9, 3), floats(9, 3), positions]
    check("RotaryEmbedding", inputs, opset=23, num_heads=2, rotary_embedding_dim=6, interleaved=interleaved)
