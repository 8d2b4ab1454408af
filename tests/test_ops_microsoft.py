"""com.microsoft against ONNX Runtime itself."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from op_runner import node_model

import gpuonnx

onnxruntime = pytest.importorskip("onnxruntime", reason="com.microsoft operators are compared with ONNX Runtime: pip install gpuonnx[bench]")

RNG = np.random.default_rng(3)
DOMAIN = "com.microsoft"


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def codes(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)


def small(*shape: int) -> np.ndarray:
    """Signed codes whose products saturate the 16-bit sums of no CPU (ONNX Runtime's do where VNNI is missing)."""
    return RNG.integers(-63, 64, shape).astype(np.int8)


def scale(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def zero(value: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.array(value, dtype)


def both(op_type: str, inputs: list[Any], outputs: int = 1, kinds: list[int] | None = None, **attributes: Any) -> list[tuple[Any, Any]]:
    """Results of ours and of ONNX Runtime; `kinds`: declared output types where not float32."""
    model = node_model(op_type, inputs, 1, outputs, DOMAIN)
    model.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    feeds = {f"x{k}": x for k, x in enumerate(inputs) if x is not None}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    ours = gpuonnx.load(model, device="cpu", threads=1).run(feeds)
    for info in model.graph.input:
        for declared, size in zip(info.type.tensor_type.shape.dim, feeds[info.name].shape, strict=True):
            declared.dim_value = size
    for k, info in enumerate(model.graph.output):
        info.type.tensor_type.elem_type = kinds[k] if kinds else 1
    model.ir_version = 10
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return list(zip(ours.values(), theirs, strict=True))


def run_node(op_type: str, inputs: list[Any], **attributes: Any) -> Any:
    model = node_model(op_type, inputs, 1, 1, DOMAIN, **attributes)
    return gpuonnx.load(model, device="cpu", threads=1).run(inputs)["y0"]


def close(op_type: str, inputs: list[Any], outputs: int = 1, tolerance: float = 2e-5, **attributes: Any) -> None:
    for ours, theirs in both(op_type, inputs, outputs, **attributes):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def same_codes(op_type: str, inputs: list[Any], step: int = 0, dtype: int = 2, **attributes: Any) -> None:
    """Quantised results, at most `step` apart."""
    for ours, theirs in both(op_type, inputs, 1, [dtype], **attributes):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours.astype(int), theirs.astype(int), rtol=0, atol=step)


@pytest.mark.parametrize("name", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize(("dtype", "kind"), [(np.uint8, 2), (np.int8, 3)])
def test_quantised_arithmetic(name: str, dtype: Any, kind: int) -> None:
    inputs = [codes(3, 5, dtype=dtype), scale(0.02), zero(7, dtype), codes(5, dtype=dtype), scale(0.03), zero(3, dtype), scale(0.05), zero(9, dtype)]
    same_codes(name, inputs, 1, kind)


def test_quantised_activations() -> None:
    x = codes(2, 3, 4)
    same_codes("QLinearSigmoid", [x, scale(0.03), zero(128), scale(1 / 256), zero(0)], 1)
    same_codes("QLinearLeakyRelu", [x, scale(0.03), zero(128), scale(0.02), zero(100)], 1, alpha=0.2)
    for axis, opset in ((-1, 13), (1, 12)):
        same_codes("QLinearSoftmax", [x, scale(0.03), zero(128), scale(1 / 256), zero(0)], 1, axis=axis, opset=opset)


def test_quantised_choice_and_concat() -> None:
    x, y = codes(2, 3), codes(2, 3)
    condition = RNG.random((2, 3)) > 0.5
    same_codes("QLinearWhere", [condition, x, scale(0.02), zero(5), y, scale(0.03), zero(6), scale(0.04), zero(7)], 1)
    same_codes("QLinearConcat", [scale(0.04), zero(7), x, scale(0.02), zero(5), y, scale(0.03), zero(6)], 1, axis=1)


@pytest.mark.parametrize("last", [0, 1])
def test_quantised_pools(last: int) -> None:
    x = codes(1, 6, 6, 4) if last else codes(1, 4, 6, 6)
    same_codes("QLinearAveragePool", [x, scale(0.02), zero(5), scale(0.03), zero(9)], 1, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
               channels_last=last)
    same_codes("QLinearGlobalAveragePool", [x, scale(0.02), zero(5), scale(0.03), zero(9)], 1, channels_last=last)


@pytest.mark.parametrize("quantised", [False, True])
def test_qgemm(quantised: bool) -> None:
    a, b, c = codes(4, 6), codes(5, 6), RNG.integers(-900, 900, (1, 5)).astype(np.int32)
    inputs = [a, scale(0.02), zero(120), b, scale(0.01), zero(130), c]
    if quantised:
        same_codes("QGemm", [*inputs, scale(0.05), zero(9)], 1, transB=1)
    else:
        close("QGemm", inputs, transB=1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
def test_matmul_nbits(bits: int, zeros: str) -> None:
    k, n, block = 80, 6, 32
    a, b, scales = floats(2, 3, k), codes(n, 3, block * bits // 8), floats(n * 3)
    given = {"none": None, "packed": codes(n * -(-3 * bits // 8)), "float": floats(n, 3)}[zeros]
    if zeros == "float" and bits == 8:
        pytest.skip("ONNX Runtime has no float zero points for 8 bits")
    close("MatMulNBits", [a, b, scales, given], K=k, N=n, bits=bits, block_size=block, tolerance=2e-4)


@pytest.mark.parametrize("kind", [0, 1])
def test_matmul_bnb4(kind: int) -> None:
    k, n, block = 64, 6, 32
    close("MatMulBnb4", [floats(3, k), codes(n * k // 2), np.abs(floats(n * k // block))], K=k, N=n, block_size=block, quant_type=kind,
          tolerance=1e-4)


def test_gather_block_quantized() -> None:
    indices = np.array([[1, 4], [0, -1]], np.int64)
    close("GatherBlockQuantized", [codes(5, 32), indices, floats(5, 2), codes(5, 1)], bits=4, block_size=32, quantize_axis=1, gather_axis=0)
    close("GatherBlockQuantized", [codes(5, 64), indices, floats(5, 2), codes(5, 2)], bits=8, block_size=32, quantize_axis=1, gather_axis=0)
    close("GatherBlockQuantized", [codes(5, 32), indices, floats(5, 2)], bits=4, block_size=32, quantize_axis=1, gather_axis=0)


def padding(form: str) -> np.ndarray:
    ends = np.array([3, 5], np.int32)
    steps = np.arange(5)
    return {"lengths": ends, "ranges": np.concatenate([np.array([5, 4], np.int32), np.array([2, 0], np.int32)]),
            "rows": (steps < ends[:, None]).astype(np.int32), "matrix": RNG.integers(0, 2, (2, 5, 5)).astype(np.int32)}[form]


@pytest.mark.parametrize("form", ["lengths", "ranges", "rows", "matrix"])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_masks(form: str, causal: int) -> None:
    close("Attention", [floats(2, 5, 12), floats(12, 36), floats(36), padding(form)], num_heads=3, unidirectional=causal)


def test_attention_with_past_and_sizes() -> None:
    close("Attention", [floats(2, 3, 12), floats(12, 36), floats(36), None, floats(2, 2, 3, 4, 4)], 2, num_heads=3, unidirectional=1)
    close("Attention", [floats(2, 3, 12), floats(12, 30), floats(30)], num_heads=3, qkv_hidden_sizes=[12, 12, 6])


def test_qattention() -> None:
    inputs = [codes(2, 5, 12), small(12, 36), floats(36), scale(0.01), scale(0.02), padding("lengths"), zero(120), zero(3, np.int8)]
    close("QAttention", inputs, tolerance=1e-4, num_heads=3)


@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention(causal: int) -> None:
    close("MultiHeadAttention", [floats(2, 5, 12), floats(2, 5, 12), floats(2, 5, 12), floats(36), padding("rows"), floats(1, 3, 5, 5)],
          num_heads=3, unidirectional=causal)


def test_multi_head_attention_with_past() -> None:
    inputs = [floats(2, 5, 12), floats(2, 5, 12), floats(2, 5, 12), None, None, None, floats(2, 3, 4, 4), floats(2, 3, 4, 4)]
    close("MultiHeadAttention", inputs, 3, num_heads=3)


def test_multi_head_attention_of_packed_inputs() -> None:
    """Which ONNX Runtime knows on GPUs only."""
    query, key, value = floats(2, 5, 3, 4), floats(2, 5, 3, 4), floats(2, 5, 3, 4)
    flat = [t.reshape(2, 5, 12) for t in (query, key, value)]
    expected = run_node("MultiHeadAttention", flat, num_heads=3)
    for packed in ([np.stack([query, key, value], 3)], [flat[0], np.stack([key, value], 3)]):
        np.testing.assert_allclose(run_node("MultiHeadAttention", packed, num_heads=3), expected, rtol=1e-5, atol=1e-6)


def caches(half: int = 4) -> list[np.ndarray]:
    angles = np.outer(np.arange(16), np.logspace(0, -2, half)).astype(np.float32)
    return [np.cos(angles), np.sin(angles)]


@pytest.mark.parametrize(("attributes", "rotary"), [({}, False), ({"do_rotary": 1}, True), ({"do_rotary": 1, "rotary_interleaved": 1}, True),
                                                    ({"softcap": 3.0}, False), ({"local_window_size": 2}, False), ({"smooth_softmax": 1}, False)])
@pytest.mark.parametrize("step", ["prompt", "token"])
def test_group_query_attention(attributes: dict[str, Any], rotary: bool, step: str) -> None:
    rows, past = (4, 0) if step == "prompt" else (1, 6)
    total = rows + past
    old = [floats(2, 2, past, 16), floats(2, 2, past, 16)] if past else [None, None]
    inputs = [floats(2, rows, 64), floats(2, rows, 32), floats(2, rows, 32), *old, np.array([total - 1] * 2, np.int32), np.array(total, np.int32)]
    close("GroupQueryAttention", [*inputs, *(caches(8) if rotary else [])], 3, num_heads=4, kv_num_heads=2, **attributes)


def test_group_query_attention_of_a_shared_buffer_and_packed_heads() -> None:
    old = [floats(2, 2, 9, 8), floats(2, 2, 9, 8)]
    inputs = [floats(2, 1, 64), None, None, *old, np.array([3, 6], np.int32), np.array(7, np.int32)]
    ours, theirs = both("GroupQueryAttention", inputs, 3, num_heads=4, kv_num_heads=2)[0]
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    close("RotaryEmbedding", [floats(2, 3, 16), np.array([2], np.int64), *caches()], interleaved=interleaved)
    close("RotaryEmbedding", [floats(2, 2, 3, 8), RNG.integers(0, 16, (2, 3)), *caches()], interleaved=interleaved)


def test_embed_layer_normalization() -> None:
    ids, segments = RNG.integers(0, 9, (2, 5)).astype(np.int32), RNG.integers(0, 2, (2, 5)).astype(np.int32)
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    tables = [floats(9, 8), floats(6, 8), floats(2, 8), floats(8), floats(8)]
    pairs = both("EmbedLayerNormalization", [ids, segments, *tables, mask], 3, [1, 6, 1])
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_nhwc_convolution_and_pool() -> None:
    x, w, b = floats(2, 5, 6, 4), floats(8, 2, 3, 3), floats(8)
    last = run_node("NhwcConv", [x, w.transpose(0, 2, 3, 1), b], group=2, pads=[1, 1, 1, 1])
    first = run_node("FusedConv", [x.transpose(0, 3, 1, 2), w, b], group=2, pads=[1, 1, 1, 1])
    np.testing.assert_allclose(last, first.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    same_codes("NhwcMaxPool", [codes(1, 6, 6, 4)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("last", [0, 1])
def test_group_norm(last: int) -> None:
    x, gamma, beta, skip, bias = floats(2, 4, 3, 3), floats(4), floats(4), floats(2, 4), floats(4)
    v = x.reshape(2, 2, -1)
    expected = ((v - v.mean(2, keepdims=True)) / np.sqrt(v.var(2, keepdims=True) + 1e-5)).reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    expected = expected / (1 + np.exp(-expected))
    given = x.transpose(0, 2, 3, 1) if last else x
    ours = run_node("GroupNorm", [given, gamma, beta], groups=2, activation=1, channels_last=last)
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2) if last else ours, expected, rtol=1e-4, atol=1e-5)
    less = given - (skip[:, None, None] if last else skip[:, :, None, None]) - (bias if last else bias[:, None, None])
    added = run_node("SkipGroupNorm", [less, gamma, beta, skip, bias], groups=2, activation=1, channels_last=last)
    np.testing.assert_allclose(added, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
@pytest.mark.parametrize("normalised", [0, 1])
def test_mixture_of_experts(activation: str, normalised: int) -> None:
    inputs = [floats(2, 3, 8), floats(6, 4), floats(4, 16, 8), floats(4, 16), floats(4, 8, 16), floats(4, 8)]
    close("MoE", inputs, tolerance=1e-4, k=2, activation_type=activation, normalize_routing_weights=normalised)


def test_mixture_of_gated_experts() -> None:
    inputs = [floats(2, 3, 8), floats(6, 4), floats(4, 32, 8), floats(4, 32), floats(4, 8, 16), floats(4, 8)]
    close("MoE", inputs, tolerance=1e-4, k=2, activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.702, activation_beta=1.0,
          swiglu_limit=7.0, normalize_routing_weights=1)


def quantised_experts(bits: int, block: int, zeros: bool, rows: int = 32) -> list[Any]:
    """Inputs of a QMoE with 4 experts, 32 columns, `rows` in between (twice as many rows of fc1 where they are gated)."""
    def weights(n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        scales = np.abs(floats(4, n, k // block) if block else floats(4, n)) * np.float32(0.1 / 2**(bits - 4)) + np.float32(0.01)
        shape = (4, n, -(-k // block * bits // 8)) if block else (4, -(-n * bits // 8))
        return codes(4, n, k * bits // 8), scales, codes(*shape) if zeros else None
    (w1, s1, z1), (w2, s2, z2) = weights(rows, 32), weights(32, 32)
    return [floats(6, 32), floats(6, 4), w1, s1, floats(4, rows), w2, s2, floats(4, 32), None, None, None, z1, z2]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("zeros", [False, True])
def test_quantised_mixture_of_experts(bits: int, block: int, zeros: bool) -> None:
    attributes = {"block_size": block} if block else {}
    close("QMoE", quantised_experts(bits, block, zeros), tolerance=1e-2, k=2, expert_weight_bits=bits, activation_type="silu", **attributes)


def test_quantised_mixture_of_gated_experts() -> None:
    close("QMoE", quantised_experts(4, 16, False, 64), tolerance=1e-2, k=2, expert_weight_bits=4, block_size=16, activation_type="swiglu",
          swiglu_fusion=1, activation_alpha=1.702, activation_beta=1.0, swiglu_limit=7.0, normalize_routing_weights=1)
    router = np.abs(floats(6, 4))
    close("QMoE", [*quantised_experts(4, 16, False), None, router], tolerance=1e-2, k=2, expert_weight_bits=4, block_size=16)


@pytest.mark.parametrize("options", [{"tokenexp": "[a-z]+"}, {"separators": [" ", ","]}, {"separators": [""]}, {"tokenexp": "[a-zA-Z]", "mark": 1}, {"separators": [" "], "mincharnum": 3}])
def test_tokens(options: dict[str, Any]) -> None:
    attributes = {"mark": 0, "mincharnum": 1, "pad_value": "#", **options}
    for x in (np.array([["Some words, some", "a"], ["more of them", ""]], object), np.array(["one two", "three"], object)):
        ((ours, theirs),) = both("Tokenizer", [x], 1, [8], **attributes)
        assert ours.shape == theirs.shape and ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("positive", [0, 1])
def test_hashes(positive: int) -> None:
    for x in (np.array(["", "a", "ab", "abc", "abcd", "some longer words"], object), np.arange(5, dtype=np.int64), np.arange(5, dtype=np.uint32), floats(4)):
        ((ours, theirs),) = both("MurmurHash3", [x], 1, [12 if positive else 6], positive=positive, seed=7)
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()
