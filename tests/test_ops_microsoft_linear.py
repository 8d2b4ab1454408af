"""com.microsoft: linear attention, causal convolution, gates, routers and small operators of exporters, against ONNX Runtime."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from op_runner import node_model
from test_ops_microsoft import DOMAIN, RNG, both, close, codes, floats, same_codes, scale, zero

import gpuonnx
from gpuonnx.errors import ModelError

onnxruntime = pytest.importorskip("onnxruntime", reason="com.microsoft operators are compared with ONNX Runtime: pip install gpuonnx[bench]")


def ints(*values: int, dtype: Any = np.int32) -> np.ndarray:
    return np.array(values, dtype)


def ours(op_type: str, inputs: list[Any], outputs: int, **attributes: Any) -> list[np.ndarray]:
    return list(gpuonnx.load(node_model(op_type, inputs, 1, outputs, DOMAIN, **attributes), device="cpu", threads=1)
                .run([x for x in inputs if x is not None]).values())


def recurrent(rule: str, rows: int, heads: int, key_heads: int, wide: bool = False) -> list[Any]:
    """query, key, value, decay, beta of 2 entries; keys of 4, values of 6."""
    decay = -np.abs(floats(2, rows, key_heads * (4 if wide else 1))) if rule.startswith("gated") else None
    beta = np.abs(floats(2, rows, key_heads)) if "delta" in rule else None
    return [floats(2, rows, heads * 4), floats(2, rows, key_heads * 4) * np.float32(0.3), floats(2, rows, key_heads * 6), decay, beta]


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2), (2, 4)])
@pytest.mark.parametrize("wide", [False, True])
def test_linear_attention(rule: str, heads: int, key_heads: int, wide: bool) -> None:
    query, key, value, decay, beta = recurrent(rule, 5, heads, key_heads, wide)
    for past in (None, floats(2, key_heads, 4, 6)):
        close("LinearAttention", [query, key, value, past, decay, beta], 2, q_num_heads=heads, kv_num_heads=key_heads, update_rule=rule)


@pytest.mark.parametrize("window", [1, 3, 7])
def test_states_of_several_steps_of_linear_attention(window: int) -> None:
    """Each is the last state of so many steps less; ONNX Runtime has them on GPUs only."""
    query, key, value, decay, beta = recurrent("gated_delta", 5, 2, 2)
    states, heads = floats(window, 2, 2, 4, 6), {"q_num_heads": 2, "kv_num_heads": 2}
    y, found = ours("LinearAttention", [query, key, value, states, decay, beta], 2, state_window=window, **heads)
    for k in range(window):
        steps = 5 - window + 1 + k
        if steps <= 0:
            assert not found[k].any()
            continue
        part, last = ours("LinearAttention", [query[:, :steps], key[:, :steps], value[:, :steps], states[-1], decay[:, :steps], beta[:, :steps]], 2, **heads)
        np.testing.assert_allclose(found[k], last, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(y[:, :steps], part, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gap", [1, 2])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_causal_convolution(gap: int, activation: str) -> None:
    for past in (None, floats(2, 6, 3 * gap)):
        close("CausalConvWithState", [floats(2, 6, 5), floats(6, 1, 4), floats(6), past], 2, dilation=gap, activation=activation)
    rows = [floats(2, 5, 2, 3), floats(6, 1, 4), None, floats(2, 3 * gap, 2, 3)]
    close("CausalConvWithState", rows, 2, dilation=gap, activation=activation, channels_last=1)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("window", [1, 2, 7])
def test_states_of_several_steps_of_a_causal_convolution(window: int, last: int) -> None:
    x, weight, past = floats(2, 6, 5), floats(6, 1, 4), floats(window, 2, 6, 3)
    y, found = ours("CausalConvWithState", [np.moveaxis(x, 1, 2), weight, None, np.moveaxis(past, 2, 3)] if last else [x, weight, None, past], 2,
                    state_window=window, channels_last=last)
    found = np.moveaxis(found, 3, 2) if last else found
    for k in range(window):
        steps = 5 - window + 1 + k
        wanted = ours("CausalConvWithState", [x[:, :, :steps], weight, None, past[-1]], 2)[1] if steps > 0 else np.zeros((2, 6, 3), np.float32)
        assert found[k].tolist() == wanted.tolist()


@pytest.mark.parametrize("gap", [1, 2])
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("captured", [0, 3])
def test_causal_convolution_of_rows_one_behind_the_other(gap: int, activation: str, captured: int) -> None:
    inputs = [floats(9, 6), floats(6, 1, 4), ints(0, 1, 3, 9), floats(6), floats(3, 6, 3 * gap), *([ints(1, 5, 2)] if captured else [])]
    close("VarlenCausalConvWithState", inputs, 3 if captured else 2, dilation=gap, activation=activation, state_update_capacity=captured)


def test_what_the_cpu_knows_of_no_causal_convolution() -> None:
    with pytest.raises(ModelError, match="CausalConvWithState.*more than one axis.*not supported"):
        ours("CausalConvWithState", [floats(2, 6, 5, 5), floats(6, 1, 4, 4)], 2, ndim=2)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("heads", "value_heads", "wide"), [(2, 2, False), (2, 4, False), (2, 4, True)])
def test_gated_delta_net(rule: str, ragged: bool, heads: int, value_heads: int, wide: bool) -> None:
    decay = -np.abs(floats(6, value_heads, 4) if wide else floats(6, value_heads)) if rule.startswith("gated") else None
    beta = np.abs(floats(6, value_heads)) if "delta" in rule else None
    inputs = [floats(6, heads, 4), floats(6, heads, 4), floats(6, value_heads, 6), ints(0, 4, 6) if ragged else None, decay, beta,
              floats(2, value_heads, 6, 4)]
    close("GatedDeltaNet", inputs, 2, 5e-5, update_rule=rule, qk_l2_norm=1)


@pytest.mark.parametrize("gate", ["softplus", "sigmoid"])
@pytest.mark.parametrize(("decay", "bias"), [((6, 4), (4,)), ((6, 4, 4), (4,)), ((6, 4, 4), (4, 4)), ((6, 4, 4), (16,))])
def test_gates_of_a_gated_delta_net(gate: str, decay: tuple[int, ...], bias: tuple[int, ...]) -> None:
    inputs = [floats(6, 2, 4), floats(6, 2, 4), floats(6, 4, 6), ints(0, 1, 6), floats(*decay), floats(6, 4), floats(2, 4, 6, 4), floats(4), floats(*bias)]
    close("GatedDeltaNet", inputs, 2, 5e-5, gate_activation=gate, beta_activation="sigmoid", qk_l2_norm=1)


def test_forms_of_a_gated_delta_net() -> None:
    given = {"qk_l2_norm": 1, "beta_activation": "sigmoid"}
    batched = [floats(2, 3, 2, 4), floats(2, 3, 2, 4), floats(2, 3, 4, 6), None, -np.abs(floats(2, 3, 4)), floats(2, 3, 4), floats(2, 4, 6, 4)]
    close("GatedDeltaNet", batched, 2, 5e-5, **given)
    close("GatedDeltaNet", [floats(6, 2 * 2 * 4 + 4 * 6), None, None, None, -np.abs(floats(6, 4)), floats(6, 4), floats(2, 4, 6, 4)], 2, 5e-5, **given)
    close("GatedDeltaNet", [floats(6, 2, 4), floats(6, 2, 4), floats(6, 4, 6), ints(0, 1, 6), -np.abs(floats(6, 4)), floats(6, 4)], 2, 5e-5, **given)


GATES: list[tuple[str, list[Any], int, dict[str, Any]]] = [
    ("LinearAttentionGate", [floats(2, 5, 3), floats(3), floats(3), floats(2, 5, 3)], 2, {}), ("LinearAttentionGate", [floats(2, 5, 3), floats(3), floats(3)], 1, {}),
    *(("GatedRMSNorm", [floats(2, 5, 12), floats(4), floats(2, 5, 12)], 1, {"activation": a}) for a in ("silu", "swish", "sigmoid")),
    ("GatedAdd", [floats(2, 5, 4), floats(2, 5, 4), floats(2, 5, 1)], 1, {}), ("ScaledSiLU", [floats(2, 5)], 1, {"alpha": 1.7}),
    ("ScaledSiLU", [floats(2, 5), scale(0.3)], 1, {"alpha": 1.7}),
    *(("BranchwiseRMSNorm", [floats(2, 5, 3, 4), *more], 1, {}) for more in ([], [floats(4)], [floats(3, 4)], [floats(12)])),
    ("BranchwiseRMSNorm", [floats(2, 5, 12), floats(12)], 1, {"num_branches": 3}),
    *(("HyperConnectionPreMix", [floats(2, 5, 3, 4), floats(2, 5, *g)], 1, {"reduction_scale": 0.5}) for g in ((3,), (3, 1), (3, 4))),
    *(("HyperConnectionPreMix", [floats(2, 5, 12), floats(2, 5, *g)], 1, {"num_branches": 3}) for g in ((3,), (3, 1), (3, 4), (12,))),
    *(("HyperConnectionPostMix", [floats(2, 5, 3, 4), floats(2, 5, 4), floats(2, 5, *g), floats(2, 5, 3, 3)], 1, {}) for g in ((3,), (3, 1), (3, 4))),
    ("HyperConnectionPostMix", [floats(2, 5, 12), floats(2, 5, 4), floats(2, 5, 3)], 1, {"num_branches": 3}),
    ("EngramGate", [floats(2, 5, 3, 4), floats(2, 5, 3, 4), floats(2, 5, 4), *(floats(3, 4) for _ in range(3))], 2, {}),
    ("EngramGate", [floats(2, 5, 3, 4), floats(2, 5, 3, 4), floats(2, 5, 4), *(floats(3, 4) for _ in range(2))], 1, {}),
    *(("MoEGroupRouter", [floats(5, 8), floats(8)], 1, {"top_k": 3, **more}) for more in (
        {}, {"n_group": 4, "topk_group": 2}, {"n_group": 2, "group_topk": 9, "router_sentinel": -5.0}))]


@pytest.mark.parametrize("case", range(len(GATES)), ids=[f"{k}-{op_type}" for k, (op_type, *_) in enumerate(GATES)])
def test_gates_and_routers(case: int) -> None:
    op_type, inputs, outputs, attributes = GATES[case]
    close(op_type, inputs, outputs, **attributes)


def test_all_shares_of_a_router() -> None:
    logits, bias = floats(5, 8), floats(8)
    model = node_model("MoEGroupRouter", [logits, bias], 1, 3, DOMAIN, top_k=3)
    model.graph.node[0].output[0] = ""
    del model.graph.output[0]
    scores, shares = gpuonnx.load(model, device="cpu", threads=1).run([logits, bias]).values()
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-logits)), rtol=1e-6)
    np.testing.assert_allclose(scores, shares + bias, rtol=1e-6)


@pytest.mark.parametrize(("layout", "sections"), [(0, [2, 3, 3]), (1, [3, 3, 2]), (1, [4, 2, 2])])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("more", [{"num_heads": 2}, {"num_heads": 2, "rotary_embedding_dim": 16}, {}])
def test_positions_of_three_streams(layout: int, sections: list[int], interleaved: int, more: dict[str, int]) -> None:
    places, size = RNG.integers(0, 9, (3, 2, 5)), 24 if "rotary_embedding_dim" in more else 16
    x = floats(2, 5, 2 * size) if more else floats(2, 2, 5, size)
    close("MRotaryEmbedding", [x, places, floats(9, 8), floats(9, 8)], mrope_section=sections, mrope_layout=layout, interleaved=interleaved, **more)


LAYOUTS = np.array([[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]])


@pytest.mark.parametrize(("rows", "total"), [(50, 50), (1, 45), (1, 60)])
@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("in_one", [False, True])
def test_attention_to_some_blocks(rows: int, total: int, rotary: int, in_one: bool) -> None:
    """ONNX Runtime writes into the buffers of the past, which must be bound as outputs."""
    starts = np.concatenate([np.zeros((2, 1), int), LAYOUTS.sum(2).cumsum(1)], 1).astype(np.int32)
    columns = np.full((2, starts.max()), -1, np.int32)
    for k in range(2):
        columns[k, :starts[k, -1]] = np.nonzero(LAYOUTS[k])[1]
    qkv = [floats(2, rows, 128), None, None] if in_one else [floats(2, rows, 64), floats(2, rows, 32), floats(2, rows, 32)]
    inputs = [*qkv, floats(2, 2, 64, 16), floats(2, 2, 64, 16), starts, columns, ints(total), ints(total, total), *(floats(64, 8) for _ in range(2 * rotary))]
    model = node_model("SparseAttention", inputs, 1, 3, DOMAIN, num_heads=4, kv_num_heads=2, sparse_block_size=16, do_rotary=rotary)
    feeds = {f"x{k}": x for k, x in enumerate(inputs) if x is not None}
    found = gpuonnx.load(model, device="cpu", threads=1).run(feeds)
    model.ir_version = 10
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    held, binding = {k: onnxruntime.OrtValue.ortvalue_from_numpy(x.copy()) for k, x in feeds.items()}, session.io_binding()
    for k, value in held.items():
        binding.bind_ortvalue_input(k, value)
    binding.bind_output("y0")
    binding.bind_ortvalue_output("y1", held["x3"])
    binding.bind_ortvalue_output("y2", held["x4"])
    session.run_with_iobinding(binding)
    for mine, theirs in zip(found.values(), binding.get_outputs(), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=2e-5, atol=2e-5)


EARLY: list[tuple[str, list[Any], list[int], dict[str, Any]]] = [
    *(("ExpandDims", [floats(2, 3), np.array(axis, np.int32)], [1], {}) for axis in (-1, 0)),
    ("GatherND", [floats(3, 4, 2), np.array([[0, 1], [2, 3]])], [1], {}),
    *(("GridSample", [floats(1, 2, 4, 5), floats(1, 3, 3, 2)], [1], {"mode": m, "padding_mode": p}) for m, p in (
        ("bilinear", "zeros"), ("nearest", "border"), ("bicubic", "reflection"))),
    ("Trilu", [floats(2, 4, 4), np.array(1)], [1], {"upper": 0}), ("Trilu", [floats(3, 5)], [1], {}),
    *(("Range", [np.array([v], t) for v in values], [kind], {}) for t, kind in ((np.float32, 1), (np.int64, 7), (np.int16, 5)) for values in ((1, 9, 3), (1, 9))),
    ("Pad", [floats(2, 3), ints(1, 0, 0, 2, dtype=np.int64), scale(7)], [1], {}), ("Pad", [floats(2, 3), ints(1, 0, 0, 2, dtype=np.int64)[None]], [1], {"mode": "edge"}),
    ("Unique", [np.array([2, 1, 1, 3, 4, 3], np.float32)], [1, 7, 7], {}), ("UnfoldTensor", [floats(3, 7)], [1], {"size": 3, "step": 2}),
    ("UnfoldTensor", [floats(3, 7, 2)], [1], {"size": 3, "dim": 1}), ("CDist", [floats(4, 3), floats(5, 3)], [1], {}),
    ("CDist", [floats(4, 3).astype(np.float64), floats(5, 3).astype(np.float64)], [11], {"metric": "euclidean"}),
    ("MatMulInteger16", [codes(2, 3, dtype=np.int16) // 99, codes(3, 4, dtype=np.int16) // 99], [6], {}),
    *(("NGramRepeatBlock", [RNG.integers(0, 4, (3, 9)), floats(3, 6)], [1], {"ngram_size": n}) for n in (1, 2, 3)),
    ("ConvTransposeWithDynamicPads", [floats(1, 2, 4, 4), floats(2, 3, 3, 3), ints(1, 0, 1, 0, dtype=np.int64), floats(3)], [1], {"strides": [2, 2]}),
    ("SampleOp", [floats(2, 3)], [1], {}),
    *(("CropAndResize", [floats(2, 3, 6, 7), np.array([[0, 0, 1, 1], [0.2, 0.3, 0.7, 1.2], [0.9, 0.1, 0.2, 0.8], [-0.1, 0, 0.5, 0.5]], np.float32),
                         ints(0, 1, 1, 0), ints(*size)], [1], {"mode": m, "extrapolation_value": -3.0}) for m in ("bilinear", "nearest")
      for size in ((3, 4), (1, 2), (5, 5))),
    *(("QEmbedLayerNormalization", [RNG.integers(0, 9, (2, 4)).astype(np.int32), RNG.integers(0, 2, (2, 4)).astype(np.int32) if s else None, codes(9, 8), codes(6, 8),
                                    codes(2, 8) if s else None, codes(8), codes(8), np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.int32) if s else None, scale(0.1),
                                    scale(0.2), scale(0.05) if s else None, scale(0.01), scale(0.03), zero(128), zero(120), zero(130) if s else None, zero(2),
                                    zero(100)], [1, 6], {}) for s in (True, False))]


@pytest.mark.parametrize("case", range(len(EARLY)), ids=[f"{k}-{op_type}" for k, (op_type, *_) in enumerate(EARLY)])
def test_small_operators(case: int) -> None:
    op_type, inputs, kinds, attributes = EARLY[case]
    for mine, theirs in both(op_type, inputs, len(kinds), kinds, **attributes):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("last", [0, 1])
def test_quantised_convolution(last: int) -> None:
    inputs = [codes(1, 5, 5, 3) if last else codes(1, 3, 5, 5), scale(0.1), zero(120), codes(4, 3, 3, 3), scale(0.05), zero(100), scale(2), zero(128),
              RNG.integers(-99, 99, 4).astype(np.int32)]
    same_codes("QLinearConv", inputs, 1, channels_last=last, pads=[1, 1, 1, 1])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64])
def test_experts_whose_weights_are_packed_for_the_cpu(bits: int, block: int) -> None:
    inputs = [floats(4, 64), floats(4, 2), codes(2, 128, 64 * bits // 8), np.abs(floats(2, 128, 64 // block)) * np.float32(0.01), None,
              codes(2, 64, 64 * bits // 8), np.abs(floats(2, 64, 64 // block)) * np.float32(0.01)]
    ((mine, theirs),) = both("QMoE", inputs, k=2, activation_type="swiglu", swiglu_fusion=1, weights_prepacked=1, block_size=block, expert_weight_bits=bits)
    np.testing.assert_allclose(mine, theirs, atol=2e-2 * np.abs(theirs).max())


@pytest.mark.parametrize(("kind", "block", "dtype"), [("fp4", 32, TensorProto.FLOAT8E8M0), ("nvfp4", 16, TensorProto.FLOAT8E4M3FN)])
@pytest.mark.parametrize("normalised", [0, 1])
def test_experts_of_4_bit_floats(kind: str, block: int, dtype: int, normalised: int) -> None:
    """ONNX Runtime rounds the activations between."""
    x, router, weights = floats(4, 64), floats(4, 3), [codes(3, 192, 32), codes(3, 64, 48)]
    scales = [np.exp2(RNG.integers(-6, -2, s)).astype(helper.tensor_dtype_to_np_dtype(dtype)) for s in ((3, 192, 64 // block), (3, 64, 96 // block))]
    given = [numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)]
    given += [helper.make_tensor(f"s{k}", dtype, s.shape, s.tobytes(), raw=True) for k, s in enumerate(scales)]
    given += [numpy_helper.from_array(np.abs(floats(3)) + np.float32(0.5), f"g{k}") for k in range(2)]

    def model(layout: int) -> onnx.ModelProto:
        node = helper.make_node("QMoE", ["x", "r", "w0", "s0", "", "w1", "s1", *[""] * 8, "g0", "g1"], ["y"], domain=DOMAIN, k=2, quant_type=kind,
                                activation_type="swiglu", swiglu_fusion=1, weights_prepacked=layout, normalize_routing_weights=normalised)
        infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [4, 64]), ("r", [4, 3]))]
        graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", 1, None)], given)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)], ir_version=11)
    theirs = onnxruntime.InferenceSession(model(1).SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x, "r": router})[0]
    mine = gpuonnx.load(model(1), device="cpu", threads=1).run([x, router])["y"]
    np.testing.assert_allclose(mine, theirs, atol=2e-2 * np.abs(theirs).max())
    if kind == "nvfp4":
        for k, w in enumerate(weights):
            every = np.stack([w & 15, w >> 4], 3).reshape(*w.shape[:2], -1).transpose(0, 2, 1)
            given[k].CopyFrom(numpy_helper.from_array(every[..., 0::2] | every[..., 1::2] << 4, f"w{k}"))
        np.testing.assert_allclose(gpuonnx.load(model(0), device="cpu", threads=1).run([x, router])["y"], mine, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5, 5), (2, 2, 1, 1), (0, 2, 2)])
def test_inverses(shape: tuple[int, ...]) -> None:
    x = floats(*shape)
    close("Inverse", [x], tolerance=1e-4)
    ((mine, theirs),) = both("Inverse", [x.astype(np.float64)], 1, [11])
    np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_an_inverse_that_needs_other_rows_first_on_both_devices() -> None:
    x = np.array([[[0, 2, 1], [1, 0, 0], [3, 0, 1]]], np.float32)
    for device in ("cpu", "emulated-cuda"):
        found = gpuonnx.load(node_model("Inverse", [x], 1, 1, DOMAIN), device=device).run([x])["y0"]
        np.testing.assert_allclose(found, np.linalg.inv(x), rtol=1e-5, atol=1e-6)


def test_what_onnxruntime_has_for_gpus_only() -> None:
    x, w, bias = floats(2, 3, 4), floats(4, 5), floats(5)
    np.testing.assert_allclose(ours("GemmFastGelu", [x, w, bias], 1)[0], ours("FastGelu", [x @ w, bias], 1)[0], rtol=1e-5, atol=1e-5)
    scores, mask = floats(2, 3, 4, 5), floats(2, 1, 1, 5)
    wanted = np.exp(scores + mask)
    np.testing.assert_allclose(ours("BiasSoftmax", [scores, mask], 1, axis=3, is_inner_broadcast=1)[0], wanted / wanted.sum(3, keepdims=True), rtol=1e-5)
