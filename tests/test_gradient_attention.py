"""Gradient through what sequence models are made of: attention with its masks, caches and rotations, linear attention, causal convolution."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradient_runner import check, doubles
from onnx import TensorProto, helper


def narrow(op_type: str, given: dict[str, np.ndarray | None], outputs: int, domain: str = "", device: str = "cpu", opset: int = 28, **attributes: Any) -> None:
    """Of an operator of float32, through casts: all its float inputs, by way of all its outputs."""
    names, nodes = [], []
    for n, x in given.items():
        floats = x is not None and x.dtype == np.float64
        names.append("" if x is None else f"{n}_32" if floats else n)
        nodes += [helper.make_node("Cast", [n], [f"{n}_32"], to=TensorProto.FLOAT)] if floats else []
    made = [f"o{k}" for k in range(outputs)]
    nodes.append(helper.make_node(op_type, names, made, domain=domain, **attributes))
    for o in made:
        nodes += [helper.make_node("Cast", [o], [f"{o}_64"], to=TensorProto.DOUBLE), helper.make_node("Mul", [f"{o}_64", f"{o}_64"], [f"{o}_s"]),
                  helper.make_node("ReduceSum", [f"{o}_s"], [f"{o}_r"], keepdims=0)]
    nodes.append(helper.make_node("Sum", [f"{o}_r" for o in made], ["y"]))
    check(nodes, {n: x for n, x in given.items() if x is not None}, step=1e-2, tolerance=1e-2, device=device, opset=opset)


def linear(rule: str, heads: int, past: bool, wide: bool, rows: int = 3) -> dict[str, np.ndarray | None]:
    decay = doubles(1, rows, 4 if wide else 2, low=-1.0, high=-0.1) if rule.startswith("gated") else None
    return {"q": doubles(1, rows, heads * 2, low=-1.0, high=1.0), "k": doubles(1, rows, 4, low=-0.7, high=0.7), "v": doubles(1, rows, 6, low=-1.0, high=1.0),
            "s": doubles(1, 2, 2, 3, low=-1.0, high=1.0) if past else None, "g": decay,
            "b": doubles(1, rows, 2, low=0.2, high=0.8) if "delta" in rule else None}


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize(("heads", "past", "wide"), [(2, True, False), (4, False, True)])
def test_linear_attention(rule: str, heads: int, past: bool, wide: bool) -> None:
    narrow("LinearAttention", linear(rule, heads, past, wide), 2, q_num_heads=heads, kv_num_heads=2, update_rule=rule)


def test_linear_attention_on_the_emulated_gpu() -> None:
    narrow("LinearAttention", linear("gated_delta", 2, True, False, 2), 2, device="emulated-cuda", q_num_heads=2, kv_num_heads=2)


def test_linear_attention_of_microsoft() -> None:
    given = linear("gated_delta", 2, False, False)
    narrow("LinearAttention", {**given, "s": doubles(2, 1, 2, 2, 3, low=-1.0, high=1.0)}, 2, "com.microsoft", q_num_heads=2, kv_num_heads=2, state_window=2)
    rows = {"q": doubles(3, 1, 2), "k": doubles(3, 1, 2), "v": doubles(3, 2, 3), "cu": np.array([0, 1, 3], np.int32), "g": doubles(3, 2, low=-1.0, high=-0.1),
            "b": doubles(3, 2), "s": doubles(2, 2, 3, 2)}
    narrow("GatedDeltaNet", rows, 2, "com.microsoft", qk_l2_norm=1, beta_activation="sigmoid")


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_causal_convolution(activation: str) -> None:
    given = {"x": doubles(2, 3, 4, low=-1.0, high=1.0), "w": doubles(3, 1, 3), "b": doubles(3), "s": doubles(2, 3, 2)}
    narrow("CausalConvWithState", given, 2, activation=activation)
    narrow("CausalConvWithState", {**given, "s": doubles(2, 2, 3, 4)}, 2, "com.microsoft", dilation=2, state_window=2, activation=activation)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotations(interleaved: int) -> None:
    turns = {"c": doubles(5, 2), "t": doubles(5, 2)}
    places = np.array([[0, 3, 1]])
    narrow("RotaryEmbedding", {"x": doubles(1, 2, 3, 6), **turns, "p": places}, 1, interleaved=interleaved, rotary_embedding_dim=4)
    narrow("RotaryEmbedding", {"x": doubles(1, 3, 8), "p": places, **turns}, 1, "com.microsoft", interleaved=interleaved)
    narrow("MRotaryEmbedding", {"x": doubles(1, 2, 3, 4), "p": np.array([[[0, 3, 1]], [[1, 2, 0]], [[4, 4, 2]]]), **turns}, 1, "com.microsoft",
           mrope_section=[1, 1, 0], interleaved=interleaved)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.4, "qk_matmul_output_mode": 3}, {"left_window_size": 1}])
def test_attention(attributes: dict[str, Any]) -> None:
    given = {"q": doubles(1, 2, 3, 2), "k": doubles(1, 1, 3, 2), "v": doubles(1, 1, 3, 2), "m": doubles(3, 5), "pk": doubles(1, 1, 2, 2), "pv": doubles(1, 1, 2, 2)}
    narrow("Attention", given, 4, **attributes)


def test_attention_of_microsoft() -> None:
    heads = {"q": doubles(1, 2, 4), "k": doubles(1, 2, 4), "v": doubles(1, 2, 4)}
    buffers = {"pk": doubles(1, 2, 5, 2), "pv": doubles(1, 2, 5, 2)}
    narrow("MultiHeadAttention", {**heads, "b": doubles(12), "m": None, "a": doubles(1, 2, 2, 4), **buffers, "n": np.array([2], np.int32)}, 3,
           "com.microsoft", num_heads=2, unidirectional=1)
    grouped = {"q": doubles(1, 2, 4), "k": doubles(1, 2, 2), "v": doubles(1, 2, 2), "pk": doubles(1, 1, 5, 2), "pv": doubles(1, 1, 5, 2)}
    narrow("GroupQueryAttention", {**grouped, "ends": np.array([3], np.int32), "total": np.array([4], np.int32)}, 3, "com.microsoft", num_heads=2,
           kv_num_heads=1, local_window_size=3)
