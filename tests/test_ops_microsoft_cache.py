"""com.microsoft attention whose cache is a shared buffer, of few bits or of a window, against ONNX Runtime."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_ops_microsoft import RNG, both, caches, close, codes, floats

pytest.importorskip("onnxruntime", reason="com.microsoft operators are compared with ONNX Runtime: pip install gpuonnx[bench]")


@pytest.mark.parametrize(("rows", "causal", "beams"), [(1, 0, False), (3, 0, False), (3, 1, False), (1, 0, True)])
def test_multi_head_attention_in_a_shared_buffer(rows: int, causal: int, beams: bool) -> None:
    given = [floats(4, rows, 12) for _ in range(3)]
    ways = [RNG.integers(0, 2, (2, 2, 9)).astype(np.int32)] if beams else []
    inputs = [*given, None, None, None, floats(4, 3, 9, 4), floats(4, 3, 9, 4), np.array([5], np.int32), *ways]
    close("MultiHeadAttention", inputs, 3, num_heads=3, unidirectional=causal)


def grouped(batch: int, rows: int, cache: list[Any], ends: list[int], total: int) -> list[Any]:
    """Inputs of a GroupQueryAttention of 4 heads that share 2, 16 columns each."""
    return [floats(batch, rows, 64), floats(batch, rows, 32), floats(batch, rows, 32), *cache, np.array(ends, np.int32) - 1, np.array(total, np.int32)]


@pytest.mark.parametrize("kind", ["PER_TENSOR", "PER_CHANNEL"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("step", ["prompt", "token"])
def test_group_query_attention_with_a_cache_of_few_bits(kind: str, bits: int, step: str) -> None:
    dtype: Any = np.int8 if bits == 8 else np.uint8
    cache = [codes(2, 2, 8, 16 * bits // 8, dtype=dtype) for _ in range(2)]
    scales = [np.abs(floats(1) if kind == "PER_TENSOR" else floats(1, 2, 1, 16)) * np.float32(4 / 2**bits) + np.float32(0.01) for _ in range(2)]
    inputs = grouped(2, 4, cache, [4, 3], 4) if step == "prompt" else grouped(2, 1, cache, [6, 4], 6)
    pairs = both("GroupQueryAttention", [*inputs, *[None] * 5, *scales], 3, [1, 3 if bits == 8 else 2, 3 if bits == 8 else 2], num_heads=4, kv_num_heads=2,
                 k_quant_type=kind, v_quant_type=kind, kv_cache_bit_width=bits)
    for ours, theirs in pairs:
        rows = [3 if step == "prompt" else theirs.shape[1]] if theirs.dtype == np.float32 else [3]
        ours, theirs = (t[:, :rows[0]] if t.dtype == np.float32 else t[:, :, :3] for t in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def resident(count: int, capacity: int, window: int) -> int:
    at_once = capacity - window + 1
    return count if count <= capacity else count - at_once * -(-(count - capacity) // at_once)


@pytest.mark.parametrize(("rows", "ends", "capacity"), [(1, [3, 2], 4), (1, [7, 5], 4), (1, [9, 12], 7), (3, [9], 6), (6, [6], 4)])
@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("biased", [False, True])
def test_group_query_attention_with_a_window_of_the_cache(rows: int, ends: list[int], capacity: int, rotary: int, biased: bool) -> None:
    cache = [floats(len(ends), 2, capacity, 16) for _ in range(2)]
    more = caches(8) if rotary else [None, None]
    bias = floats(1, 4, rows, max(ends)) if biased else None
    pairs = both("GroupQueryAttention", [*grouped(len(ends), rows, cache, ends, max(ends)), *more, None, bias], 3, num_heads=4, kv_num_heads=2,
                 sliding_window_cache=1, local_window_size=4, do_rotary=rotary)
    for k, (ours, theirs) in enumerate(pairs):
        for b, end in enumerate(ends):
            kept = resident(end, capacity, 4)
            mine, its = (t[b] if k == 0 else t[b, :, :kept] for t in (ours, theirs))
            np.testing.assert_allclose(mine, its, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("sliding", [0, 1])
def test_group_query_attention_of_padded_chunks(rotary: int, window: int, sliding: int) -> None:
    if sliding and window < 0:
        window = 5
    ends, valid, capacity = [6, 4], [3, 2], 5 if sliding else 10
    cache = [floats(2, 2, capacity, 16) for _ in range(2)]
    more = caches(8) if rotary else [None, None]
    inputs = [*grouped(2, 3, cache, ends, 8), *more, *[None] * 7, np.array(valid, np.int32)]
    pairs = both("GroupQueryAttention", inputs, 3, num_heads=4, kv_num_heads=2, local_window_size=window, do_rotary=rotary, sliding_window_cache=sliding)
    for k, (ours, theirs) in enumerate(pairs):
        for b, end in enumerate(ends):
            kept = resident(end, capacity, window) if sliding else end
            mine, its = (t[b, :valid[b]] if k == 0 else t[b, :, :kept] for t in (ours, theirs))
            np.testing.assert_allclose(mine, its, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("more", [[], [floats(36)]])
@pytest.mark.parametrize("masked", [False, True])
def test_decoder_masked_multi_head_attention_in_a_buffer(more: list[Any], masked: bool, beams: int) -> None:
    ways = RNG.integers(0, beams, (4 // beams, beams, 9)).astype(np.int32)
    mask = np.array([[1, 0, 1, 1, 1, 1]] * 4, np.int32) if masked else None
    inputs = [*(floats(4, 1, 12) for _ in range(3)), mask, floats(1, 3, 1, 6), floats(4, 3, 9, 4), floats(4, 3, 9, 4), np.array([5], np.int32),
              np.array([beams], np.int32), ways, *more]
    close("DecoderMaskedMultiHeadAttention", inputs, 3, num_heads=3, past_present_share_buffer=1)


@pytest.mark.parametrize("more", [[], [None] * 7 + [floats(36)]])
def test_decoder_masked_multi_head_attention_to_an_encoder(more: list[Any]) -> None:
    close("DecoderMaskedMultiHeadAttention", [floats(4, 1, 12), floats(4, 3, 5, 4), floats(4, 3, 5, 4), *more], 1, num_heads=3)
