"""com.microsoft against ONNX Runtime: the inputs and attributes that fewer files have."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_ops_microsoft import RNG, both, caches, close, codes, floats, padding, run_node, scale, small, zero

pytest.importorskip("onnxruntime", reason="com.microsoft operators are compared with ONNX Runtime: pip install gpuonnx[bench]")


def test_gelus() -> None:
    x = floats(2, 3, 8)
    close("Gelu", [x])
    close("QuickGelu", [x])
    close("FastGelu", [x])
    close("FastGelu", [x, floats(8)])
    close("BiasGelu", [x, floats(8)])
    value, gate = np.split(x + (bias := floats(8)), 2, axis=2)
    np.testing.assert_allclose(run_node("BiasSplitGelu", [x, bias]), value * run_node("Gelu", [gate]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run_node("BiasAdd", [x, bias, x]), x + bias + x, rtol=1e-6)


def test_skipping_normalisations() -> None:
    x = floats(2, 3, 8)
    close("SkipLayerNormalization", [x, floats(2, 3, 8), floats(8), floats(8), floats(8)])
    close("SkipLayerNormalization", [x, floats(3, 8), floats(8), floats(8)])
    close("SkipSimplifiedLayerNormalization", [x, floats(2, 3, 8), floats(8), floats(8)])
    close("SkipSimplifiedLayerNormalization", [x, floats(1, 3, 8), floats(8)])
    expected = x / np.sqrt((x * x).mean(2, keepdims=True) + 1e-5) * (gamma := floats(8))
    np.testing.assert_allclose(run_node("SimplifiedLayerNormalization", [x, gamma]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("second", [0, 1])
def test_products(first: int, second: int) -> None:
    a, b = floats(2, 4, 3) if first else floats(2, 3, 4), floats(2, 5, 4) if second else floats(2, 4, 5)
    for name in ("FusedMatMul", "TransposeMatMul"):
        close(name, [a, b], transA=first, transB=second, alpha=0.5)
    moved = [floats(3, 2, 4) if first else floats(2, 3, 4), floats(4, 2, 5) if second else floats(2, 4, 5)]
    close("FusedMatMul", moved, transBatchA=first, transBatchB=second)


@pytest.mark.parametrize(("name", "parameters"), [
    ("Relu", {}), ("Tanh", {}), ("Sigmoid", {}), ("LeakyRelu", {"activation_alpha": 0.2}), ("Elu", {"activation_alpha": 0.7}), ("Softplus", {}),
    ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}), ("Softsign", {}), ("ThresholdedRelu", {"activation_alpha": 0.3}),
    ("Selu", {"activation_alpha": 1.6, "activation_gamma": 1.05})])
def test_activations_behind_a_product(name: str, parameters: dict[str, float]) -> None:
    close("FusedGemm", [floats(3, 4), floats(4, 5), floats(5)], activation=name, **parameters)


@pytest.mark.parametrize(("name", "parameters"), [("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.3, 0.4]), ("HardSwish", [])])
def test_activations_behind_a_convolution(name: str, parameters: list[float]) -> None:
    attributes: dict[str, Any] = {"activation_params": parameters} if parameters else {}
    close("FusedConv", [floats(1, 4, 6, 6), floats(4, 4, 3, 3), floats(4)], activation=name, **attributes)
    close("FusedConv", [floats(1, 4, 6, 6), floats(4, 4, 3, 3), floats(4), floats(1, 4, 4, 4)], activation="Relu")


def test_integer_products() -> None:
    close("MatMulIntegerToFloat", [codes(3, 4), small(4, 5), scale(0.1), scale(0.2)], tolerance=1e-4)
    close("MatMulIntegerToFloat", [codes(3, 4), small(4, 5), scale(0.1), floats(5)**2, zero(3), small(5), floats(5)], tolerance=1e-4)
    close("DynamicQuantizeMatMul", [floats(3, 4), small(4, 5), floats(5)**2], tolerance=1e-4)


def test_nbits_with_a_bias_and_with_an_order() -> None:
    """With an order and zero points ONNX Runtime is not as its document says, so that this is compared with the formula."""
    k, n, block = 128, 5, 32
    a, b, scales, zeros = floats(3, k), codes(n, 4, block // 2), floats(n * 4), codes(n * 2)
    order = RNG.integers(0, 4, k).astype(np.int32)
    attributes = {"K": k, "N": n, "bits": 4, "block_size": block}
    close("MatMulNBits", [a, b, scales, None, None, floats(n)], tolerance=1e-3, **attributes)
    close("MatMulNBits", [a, b, scales, None, order], tolerance=1e-3, **attributes)
    whole, middle = (np.stack([v & 15, v >> 4], -1).reshape(n, -1).astype(np.float32) for v in (b, zeros.reshape(n, 2)))
    weights = (whole - middle[:, order]) * scales.reshape(n, 4)[:, order]
    np.testing.assert_allclose(run_node("MatMulNBits", [a, b, scales, zeros, order], **attributes), a @ weights.T, rtol=1e-3, atol=1e-3)


def test_gather_block_quantized_of_smaller_blocks() -> None:
    close("GatherBlockQuantized", [codes(5, 32), np.array([[1, 0], [2, -1]], np.int32), floats(5, 4), codes(5, 2)], bits=4, block_size=16,
          quantize_axis=1, gather_axis=0)


def test_attention_with_a_past_and_a_mask() -> None:
    mask = RNG.integers(0, 2, (2, 7)).astype(np.int32)
    close("Attention", [floats(2, 3, 12), floats(12, 36), floats(36), mask, floats(2, 2, 3, 4, 4)], 2, num_heads=3)
    close("Attention", [floats(2, 3, 12), floats(12, 36), floats(36), None, None, floats(2, 3, 3, 3)], 2, num_heads=3, scale=0.7)


def test_quantised_attention_with_a_past() -> None:
    inputs = [codes(2, 3, 12), small(12, 36), floats(36), scale(0.01), scale(0.02), None, zero(120), zero(3, np.int8), floats(2, 2, 3, 4, 4)]
    close("QAttention", inputs, 2, tolerance=1e-4, num_heads=3, unidirectional=1)
    inputs = [codes(2, 3, 12), small(12, 36), floats(36), scale(0.01), floats(36)**2 * np.float32(0.02), padding("rows")[:, :3]]
    close("QAttention", inputs, tolerance=1e-4, num_heads=3)


def test_multi_head_attention_with_biases_and_past() -> None:
    query, past = floats(2, 5, 12), [floats(2, 3, 4, 4), floats(2, 3, 4, 4)]
    heads = [query, floats(2, 5, 12), floats(2, 5, 12)]
    close("MultiHeadAttention", [*heads, floats(36), None, None, *past], 3, num_heads=3)
    close("MultiHeadAttention", [*heads, None, None, floats(2, 3, 5, 9), *past], 3, num_heads=3, unidirectional=1)
    close("MultiHeadAttention", [*heads, None, np.array([3, 5], np.int32)], num_heads=3)
    close("MultiHeadAttention", [*heads, None, padding("matrix")], num_heads=3)
    close("MultiHeadAttention", [query, floats(2, 7, 12), floats(2, 7, 18), None, None, floats(1, 1, 5, 7)], num_heads=3, scale=0.3)
    close("MultiHeadAttention", [query, floats(2, 3, 7, 4), floats(2, 3, 7, 4), floats(36)], num_heads=3)


@pytest.mark.parametrize(("rows", "past"), [(4, 0), (1, 6), (3, 5)])
@pytest.mark.parametrize("kind", ["packed", "rotary", "interleaved", "bias", "wide bias", "sink", "positions"])
def test_group_query_attention(rows: int, past: int, kind: str) -> None:
    total = rows + past
    old = [floats(1, 2, past, 16), floats(1, 2, past, 16)] if past else [None, None]
    given = [floats(1, rows, 64), floats(1, rows, 32), floats(1, rows, 32)] if "bias" in kind or kind == "sink" else [floats(1, rows, 128), None, None]
    positions = np.arange(past, total)[None].astype(np.int64)
    more: dict[str, list[Any]] = {"packed": [], "rotary": caches(8), "interleaved": caches(8), "bias": [None, None, None, floats(1, 4, rows, total)],
                                  "wide bias": [None, None, None, floats(1, 1, rows, total)], "sink": [None] * 4 + [floats(4)],
                                  "positions": [*caches(8), positions]}
    attributes: dict[str, Any] = {"do_rotary": int(kind in ("rotary", "interleaved", "positions"))}
    if kind == "interleaved":
        attributes |= {"rotary_interleaved": 1, "local_window_size": 3, "softcap": 2.0}
    lengths = [np.array([total - 1], np.int32), np.array(total, np.int32)]
    close("GroupQueryAttention", [*given, *old, *lengths, *more[kind]], 3, num_heads=4, kv_num_heads=2, **attributes)


def test_partial_rotation() -> None:
    close("RotaryEmbedding", [floats(2, 3, 16), np.array([[0, 1, 2], [3, 4, 5]]), *caches(2)], num_heads=2, rotary_embedding_dim=4)


ONE_CODE = 8e-3
"""What a state that is rounded to the code beside it changes, at the scales below."""


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("state", [False, True])
def test_dynamic_quantize_lstm(directions: int, state: bool) -> None:
    hidden, size = 4, 3
    begin = [floats(directions, 2, hidden), floats(directions, 2, hidden)] if state else [None, None]
    scales = [np.abs(floats(directions)) * np.float32(0.01) + np.float32(0.001) for _ in range(2)]
    zeros = [np.zeros(directions, np.int8)] * 2
    inputs = [floats(5, 2, size), small(directions, size, 4 * hidden), small(directions, hidden, 4 * hidden), floats(directions, 8 * hidden), None,
              *begin, None, scales[0], zeros[0], scales[1], zeros[1]]
    close("DynamicQuantizeLSTM", inputs, 3, tolerance=ONE_CODE, hidden_size=hidden, direction="bidirectional" if directions == 2 else "forward")


@pytest.mark.parametrize("axis", [0, 1])
def test_quantisation_along_an_axis(axis: int) -> None:
    x, scales, zeros = floats(3, 3), np.float32([0.02, 0.05, 0.1]), np.array([7, 120, 200], np.uint8)
    (ours, theirs), = both("QuantizeLinear", [x, scales, zeros], 1, [2], axis=axis)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1 and ours.dtype == theirs.dtype
    close("DequantizeLinear", [codes(3, 3), scales, zeros], axis=axis)


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("normalised", [0, 1])
def test_experts_of_3_bits(block: int, normalised: int) -> None:
    """Codes lie in two bytes; ONNX Runtime has them in halves only."""
    def half(t: np.ndarray) -> np.ndarray:
        return t.astype(np.float16)
    scales = [half(np.abs(floats(4, n, 64 // block)) * 0.1 + 0.01) for n in (128, 64)]
    inputs = [half(floats(6, 64)), half(floats(6, 4)), codes(4, 128, 24), scales[0], half(floats(4, 128)), codes(4, 64, 24), scales[1], half(floats(4, 64))]
    ((ours, theirs),) = both("QMoE", inputs, 1, [10], k=2, expert_weight_bits=3, activation_type="swiglu", swiglu_fusion=1, weights_prepacked=0,
                             block_size=block, normalize_routing_weights=normalised)
    np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2)


def test_gated_experts_bounded_after_their_activation() -> None:
    """Which ONNX Runtime knows on GPUs only."""
    x, router, first, second = floats(5, 8), floats(5, 1), floats(1, 32, 8), floats(1, 8, 16)
    y = run_node("MoE", [x, router, first, np.zeros((1, 32), np.float32), second], activation_type="swiglu", swiglu_fusion=1, swiglu_limit=0.4, swiglu_limit_after_activation=1,
                 activation_alpha=1.2, activation_beta=0.3, normalize_routing_weights=1)
    hidden = x @ first[0].T
    gate, value = hidden[:, ::2], np.clip(hidden[:, 1::2], -0.4, 0.4)
    expected = np.minimum(gate / (1 + np.exp(-1.2 * gate)), 0.4) * (value + 0.3) @ second[0].T
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
