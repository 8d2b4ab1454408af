"""Attention, rotary embeddings, causal convolutions: the official cases, and the reference with every size free."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator
from op_runner import node_model

import gpuonnx
from gpuonnx.conformance import suite
from gpuonnx.errors import ModelError

RNG = np.random.default_rng(23)
OFFICIAL = [n for n in suite.cases() if n.startswith(("test_attention", "test_rotary", "test_causal_conv", "test_linear_attention", "test_flexattention")) and "expanded" not in n]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(op_type: str, inputs: list[Any], outputs: int = 1, opset: int = 25, tolerance: float = 1e-5, device: str = "cpu",
          **attributes: Any) -> None:
    model = node_model(op_type, inputs, opset, outputs, **attributes)
    feeds = {f"x{k}": x for k, x in enumerate(inputs) if x is not None}
    expected = ReferenceEvaluator(model).run(None, feeds)
    for ours, theirs in zip(gpuonnx.load(model, device=device, threads=1).run(feeds).values(), expected, strict=True):
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


def recurrence(rule: str, batch: int = 2, length: int = 5, heads: int = 4, shared: int = 2, size: int = 6, width: int = 7,
               past: bool = True, per_key: bool = True, dtype: Any = np.float32) -> tuple[list[Any], dict[str, Any]]:
    """Inputs and attributes of a LinearAttention."""
    keys = floats(batch, length, shared, size)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    decay = -np.abs(floats(batch, length, shared * size if per_key else shared)) if "gated" in rule else None
    beta = 1 / (1 + np.exp(floats(batch, length, shared if per_key else 1))) if "delta" in rule else None
    state = floats(batch, shared, size, width) if past else None
    inputs = [floats(batch, length, heads * size), keys.reshape(batch, length, -1), floats(batch, length, shared * width), state, decay, beta]
    cast = [None if x is None else x.astype(dtype) for x in inputs]
    return cast, {"q_num_heads": heads, "kv_num_heads": shared, "update_rule": rule}


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention(rule: str, every_device: str) -> None:
    """Widths around those of a task's columns; columns of a state that do and do not fit in shared memory."""
    for options in ({}, {"past": False, "per_key": False}, {"width": 70, "size": 9, "heads": 2, "length": 2}, {"size": 170, "length": 2, "batch": 1}):
        inputs, attributes = recurrence(rule, **options)
        check("LinearAttention", inputs, 2, 27, 1e-4, every_device, **attributes)


def test_linear_attention_of_half_precision_keeps_a_state_of_float32() -> None:
    inputs, attributes = recurrence("gated_delta", dtype=np.float16)
    inputs[3] = inputs[3].astype(np.float32)
    check("LinearAttention", inputs, 2, 27, 2e-3, scale=0.5, **attributes)


def test_linear_attention_step_by_step_is_all_at_once() -> None:
    inputs, attributes = recurrence("gated_delta")
    model = node_model("LinearAttention", inputs, 27, 2, **attributes)
    session = gpuonnx.load(model, device="cpu", threads=1)
    whole, last = session.run({f"x{k}": x for k, x in enumerate(inputs)}).values()
    state, rows = inputs[3], []
    for t in range(5):
        step = {f"x{k}": state if k == 3 else x[:, t:t + 1] for k, x in enumerate(inputs)}
        row, state = session.run(step).values()
        rows.append(row)
    np.testing.assert_allclose(np.concatenate(rows, 1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-6)
    assert session.stats.variants == 1


@pytest.mark.parametrize(("rule", "without", "heads", "text"), [("gated_delta", 5, 4, "needs beta"), ("gated_delta", 4, 4, "needs decay"), ("gated", None, 4, "takes no beta"),
                                                                ("gated_delta", None, 3, "no multiple"), ("other", None, 4, "none of linear")])
def test_linear_attention_that_is_wrong(rule: str, without: int | None, heads: int, text: str) -> None:
    inputs, attributes = recurrence("gated_delta")
    if without is not None:
        inputs[without] = None
    model = node_model("LinearAttention", inputs, 27, 2, **attributes | {"update_rule": rule, "q_num_heads": heads})
    with pytest.raises(ModelError, match=f"LinearAttention.*{text}"):
        gpuonnx.load(model, device="cpu").run({f"x{k}": x for k, x in enumerate(inputs) if x is not None})


def test_causal_convolution_with_an_unknown_activation() -> None:
    inputs = [floats(1, 2, 3), floats(2, 1, 2)]
    with pytest.raises(ModelError, match="CausalConvWithState.*'gelu' is none of"):
        gpuonnx.load(node_model("CausalConvWithState", inputs, 27, 2, activation="gelu")).run(inputs)


FLEX = """
<ir_version: 10, opset_import: ["" : 26, "ai.onnx.preview" : 1]>
agraph (TYPE[b, h, s, d] q, TYPE[b, n, t, d] k, TYPE[b, n, t, e] v, float[t] bias) => (TYPE[b, h, s, e] y) {
  doubled = Add (bias, bias)
  y = ai.onnx.preview.FlexAttention <OPTIONSscore_mod = more (PRECISION[b, h, s, t] scores) => (PRECISION[b, h, s, t] moved) {
        same = CastLike (doubled, scores)
        moved = Add (scores, same)
      }, prob_mod = less (PRECISION[b, h, s, t] shares) => (RESULT) { BODY }> (q, k, v)
}
"""


def flex(kind: str = "float", precision: str = "float", options: str = "", result: str = "PRECISION[b, h, s, t] twice", body: str = "twice = Add (shares, shares)") -> Any:
    text = FLEX.replace("RESULT", result).replace("BODY", body).replace("OPTIONS", options).replace("TYPE", kind).replace("PRECISION", precision)
    return parser.parse_model(text)


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
@pytest.mark.parametrize(("kind", "dtype", "precision", "options"), [("float", np.float32, "float", ""), ("float16", np.float16, "double", "softmax_precision = 11, "),
                                                                     ("double", np.float64, "double", "scale = 0.5, ")])
def test_flex_attention_whose_bodies_capture(kind: str, dtype: Any, precision: str, options: str, device: str) -> None:
    q, k, v, bias = floats(2, 4, 3, 8).astype(dtype), floats(2, 2, 5, 8).astype(dtype), floats(2, 2, 5, 6).astype(dtype), floats(5)
    y = gpuonnx.load(flex(kind, precision, options), device=device).run({"q": q, "k": k, "v": v, "bias": bias})["y"]
    wide = [np.repeat(t, 2, 1).astype(np.float64) for t in (k, v)]
    scores = q.astype(np.float64) @ wide[0].swapaxes(2, 3) * (0.5 if "scale" in options else 8 ** -0.5) + 2 * bias
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = 2 * shares / shares.sum(-1, keepdims=True) @ wide[1]
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2e-3 if dtype == np.float16 else 1e-5, atol=2e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize(("result", "body"), [("float[b, h, s, t] twice", "gone = Add (shares, shares) twice = ReduceSum <keepdims = 0> (gone)"),
                                              ("int64[b, h, s, t] twice", "twice = Cast <to = 7> (shares)"),
                                              ("float[b, h, s, t] twice, float[b, h, s, t] shares", "twice = Add (shares, shares)")])
def test_flex_attention_whose_body_gives_something_else(result: str, body: str) -> None:
    feeds = {"q": floats(1, 2, 3, 4), "k": floats(1, 2, 3, 4), "v": floats(1, 2, 3, 4), "bias": floats(3)}
    with pytest.raises(ModelError, match="FlexAttention.*prob_mod gives"):
        gpuonnx.load(flex(result=result, body=body), device="cpu").run(feeds)
