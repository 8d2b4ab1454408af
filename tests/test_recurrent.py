"""RNN, GRU and LSTM against their equations in NumPy: hidden sizes that fill no vector, every direction, lengths, peepholes."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpuonnx

RNG = np.random.default_rng(0)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS: dict[str, Any] = {
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)), "Tanh": lambda x, a, b: np.tanh(x), "Relu": lambda x, a, b: np.maximum(x, 0),
    "Affine": lambda x, a, b: a * x + b, "LeakyRelu": lambda x, a, b: np.where(x >= 0, x, a * x), "ThresholdedRelu": lambda x, a, b: np.where(x > a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x), "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, b: np.where(x >= 0, x, a * (np.exp(x) - 1)), "Softsign": lambda x, a, b: x / (1 + abs(x)),
    "Softplus": lambda x, a, b: np.log1p(np.exp(x))}
BETA = ("Affine", "ScaledTanh", "HardSigmoid")
ALPHA = (*BETA, "LeakyRelu", "ThresholdedRelu", "Elu")
PLAIN = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def step(cell: str, x: np.ndarray, h: np.ndarray, c: np.ndarray, w: dict[str, np.ndarray], functions: list[Any], attrs: dict[str, Any]) -> Any:
    """(h, c) of one batch entry after x; float64."""
    size, clip = h.size, attrs.get("clip", np.inf)
    f, g, last = [lambda v, k=k: functions[k](np.clip(v, -clip, clip)) for k in range(len(functions))] + [None] * (3 - len(functions))
    xw, r = w["W"] @ x + w["Bw"] , w["R"]
    if cell == "RNN":
        return f(xw + r @ h + w["Br"]), c
    if cell == "GRU":
        z, reset = np.split(f((xw + r @ h + w["Br"])[:2 * size]), 2)
        mine, theirs = xw[2 * size:], w["Br"][2 * size:]
        inner = reset * (r[2 * size:] @ h + theirs) if attrs.get("linear_before_reset") else r[2 * size:] @ (reset * h) + theirs
        return (1 - z) * g(mine + inner) + z * h, c
    i, o, forget, new = np.split(xw + r @ h + w["Br"], 4)
    pi, po, pf = np.split(w["P"], 3)
    i = f(i + pi * c)
    c = (1 - i if attrs.get("input_forget") else f(forget + pf * c)) * c + i * g(new)
    return f(o + po * c) * functions[2](c), c


def expected(cell: str, x: np.ndarray, w: dict[str, np.ndarray], h0: np.ndarray, c0: np.ndarray, lengths: np.ndarray, attrs: dict[str, Any]) -> Any:
    directions, size = h0.shape[0], h0.shape[2]
    y, h, c = np.zeros((len(x), directions, x.shape[1], size)), h0.astype(np.float64), c0.astype(np.float64)
    names = attrs.get("activations", PLAIN[cell] * directions)
    alphas, betas = iter(attrs.get("activation_alpha", ())), iter(attrs.get("activation_beta", ()))
    numbers = [(next(alphas) if n in ALPHA else 0, next(betas) if n in BETA else 0) for n in names]
    functions = [lambda v, n=n, ab=ab: FUNCTIONS[n](v, *ab) for n, ab in zip(names, numbers, strict=True)]
    for d in range(directions):
        weights = {k: v[d].astype(np.float64) for k, v in w.items()}
        mine = functions[d * len(PLAIN[cell]):][:len(PLAIN[cell])]
        for b, n in enumerate(lengths):
            backwards = attrs["direction"] == "reverse" or d == 1
            for t in reversed(range(n)) if backwards else range(n):
                h[d, b], c[d, b] = step(cell, x[t, b], h[d, b], c[d, b], weights, mine, attrs)
                y[t, d, b] = h[d, b]
    return [y, h, c][:3 if cell == "LSTM" else 2]


def check(cell: str, size: int, dtype: Any = np.float32, constant: bool = True, lengths: list[int] | None = None, peepholes: bool = False,
          states: bool = True, **attrs: Any) -> None:
    attrs.setdefault("direction", "forward")
    batch, wide, length, directions, gates = 3, 4, 5, 2 if attrs["direction"] == "bidirectional" else 1, GATES[cell]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def random(*shape: int) -> np.ndarray:
        return (RNG.standard_normal(shape) * 0.5).astype(dtype)
    w, r, b = random(directions, gates * size, wide), random(directions, gates * size, size), random(directions, 2 * gates * size)
    p = random(directions, 3 * size) if peepholes else np.zeros((directions, 3 * size), dtype)
    shape = (directions, batch, size)
    h0, c0 = (random(*shape), random(*shape)) if states else (np.zeros(shape, dtype), np.zeros(shape, dtype))
    feed = {"x": random(length, batch, wide)} | ({"h0": h0} if states else {}) | ({} if constant else {"R": r})
    if cell == "LSTM" and states:
        feed["c0"] = c0
    if lengths is not None:
        feed["lens"] = np.array(lengths, np.int32)
    inputs = ["x", "W", "R", "B", "lens" if lengths else "", "h0" if states else ""]
    inputs += ["c0" if states else "", "P" if peepholes else ""] if cell == "LSTM" else []
    outputs = ["y", "yh", "yc"][:3 if cell == "LSTM" else 2]
    known = {"W": w, "B": b} | ({"R": r} if constant else {}) | ({"P": p} if peepholes else {})
    graph = helper.make_graph(
        [helper.make_node(cell, inputs, outputs, hidden_size=size, **attrs)], "g",
        [helper.make_tensor_value_info(n, TensorProto.INT32 if n == "lens" else kind, [None] * v.ndim) for n, v in feed.items()],
        [helper.make_tensor_value_info(n, kind, None) for n in outputs], [numpy_helper.from_array(v, n) for n, v in known.items()])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    half = gates * size
    want = expected(cell, feed["x"], {"W": w, "R": r, "Bw": b[:, :half], "Br": b[:, half:], "P": p}, h0, c0, np.array(lengths or [length] * batch), attrs)
    for threads in (1, 2):
        got = gpuonnx.load(proto, device="cpu", threads=threads).run(feed)
        for name, value in zip(outputs, want, strict=True):
            np.testing.assert_allclose(got[name], value, rtol=2e-5 if dtype == np.float32 else 1e-12, atol=2e-5 if dtype == np.float32 else 1e-12, err_msg=name)


@pytest.mark.parametrize("size", [1, 5, 8, 37])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_cells(cell: str, direction: str, size: int) -> None:
    check(cell, size, direction=direction, lengths=[3, 0, 5] if size == 5 else None, states=size != 8)


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_weights_that_are_inputs_and_float64(cell: str) -> None:
    check(cell, 21, constant=False, direction="bidirectional")
    check(cell, 9, np.float64)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name: str) -> None:
    for cell, names in (("RNN", [name]), ("GRU", ["Sigmoid", name]), ("LSTM", ["Sigmoid", name, "Tanh"])):
        check(cell, 6, activations=names, activation_alpha=[0.3] * len(names), activation_beta=[0.6] * len(names))


def test_directions_with_functions_of_their_own() -> None:
    check("LSTM", 6, direction="bidirectional", activations=["Sigmoid", "Tanh", "Tanh", "HardSigmoid", "Softsign", "Elu"],
          activation_alpha=[0.2, 0.5], activation_beta=[0.4])


@pytest.mark.parametrize("more", [{"clip": 0.4}, {"input_forget": 1}, {"peepholes": True}, {"peepholes": True, "clip": 0.3, "direction": "bidirectional"}])
def test_what_only_some_models_have(more: dict[str, Any]) -> None:
    check("LSTM", 10, **more)


def test_reset_after_the_product() -> None:
    check("GRU", 10, linear_before_reset=1)
    check("GRU", 10, linear_before_reset=1, clip=0.5, direction="bidirectional")
