"""RNN, GRU and LSTM against the formulas of the standard, one entry and one step at a time in float64."""
from __future__ import annotations

from typing import Any

import numpy as np
import on_devices
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_runner import node_model

import gpuonnx

pytestmark = pytest.mark.usefixtures("every_device")

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
FUNCTIONS: dict[str, Any] = {
    "Relu": lambda x, a, b: np.maximum(x, 0), "Tanh": lambda x, a, b: np.tanh(x), "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, a, b: a * x + b, "LeakyRelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda x, a, b: np.where(x > a, x, 0), "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1), "Elu": lambda x, a, b: np.where(x >= 0, x, a * (np.exp(x) - 1)),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)), "Softplus": lambda x, a, b: np.log1p(np.exp(x))}
NEEDS = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}


class Walk:
    """One direction of one batch entry, from the operator's attributes."""

    def __init__(self, cell: str, functions: list[Any], w: Any, r: Any, b: Any, p: Any, attrs: dict[str, Any]) -> None:
        self.cell, self.functions, self.w, self.r, self.p, self.attrs = cell, functions, w, r, p, attrs
        self.wb, self.rb = np.split(b, 2)
        self.size = r.shape[1]

    def f(self, number: int, x: Any, clipped: bool = True) -> Any:
        limit = self.attrs.get("clip", 0)
        name, alpha, beta = self.functions[number]
        return FUNCTIONS[name](np.clip(x, -limit, limit) if limit and clipped else x, alpha, beta)

    def parts(self, v: Any) -> Any:
        return np.split(v, GATES[self.cell])

    def step(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        return {"RNN": self.rnn, "GRU": self.gru, "LSTM": self.lstm}[self.cell](self.w @ x + self.wb, h, c)

    def rnn(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        return self.f(0, x + self.r @ h + self.rb), c

    def gru(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        (xz, xr, xh), (rz, rr, rh), (bz, br, bh) = self.parts(x), np.split(self.r, 3), self.parts(self.rb)
        z, r = self.f(0, xz + rz @ h + bz), self.f(0, xr + rr @ h + br)
        inner = r * (rh @ h + bh) if self.attrs.get("linear_before_reset") else rh @ (r * h) + bh
        return (1 - z) * self.f(1, xh + inner) + z * h, c

    def lstm(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        i, o, f, n = self.parts(x + self.r @ h + self.rb)
        pi, po, pf = np.split(self.p, 3)
        i = self.f(0, i + pi * c)
        f = 1 - i if self.attrs.get("input_forget") else self.f(0, f + pf * c)
        c = f * c + i * self.f(1, n)
        return self.f(0, o + po * c) * self.f(2, c, False), c


def wanted(cell: str, x: Any, w: Any, r: Any, b: Any, lens: Any, h0: Any, c0: Any, p: Any, attrs: dict[str, Any]) -> list[Any]:
    x, w, r, b, h0, c0, p = (None if v is None else v.astype(np.float64) for v in (x, w, r, b, h0, c0, p))
    (length, batch, _), (directions, _, size) = x.shape, r.shape
    names = list(attrs.get("activations") or DEFAULTS[cell] * directions)
    alphas, betas = list(attrs.get("activation_alpha", ())), list(attrs.get("activation_beta", ()))
    constants = [(n, alphas.pop(0) if NEEDS.get(n, 0) > 0 else 0, betas.pop(0) if NEEDS.get(n, 0) > 1 else 0) for n in names]
    each = len(DEFAULTS[cell])
    y, last = np.zeros((length, directions, batch, size)), np.zeros((2, directions, batch, size))
    for d in range(directions):
        walk = Walk(cell, constants[d * each:][:each], w[d], r[d], b[d] if b is not None else np.zeros(2 * GATES[cell] * size),
                    p[d] if p is not None else np.zeros(3 * size), attrs)
        backwards = attrs["direction"] == "reverse" or d == 1
        for e in range(batch):
            h, c = (v[d, e] if v is not None else np.zeros(size) for v in (h0, c0))
            steps = length if lens is None else int(lens[e])
            for t in reversed(range(steps)) if backwards else range(steps):
                h, c = walk.step(x[t, e], h, c)
                y[t, d, e] = h
            last[0, d, e], last[1, d, e] = h, c
    return [y, *last[:2 if cell == "LSTM" else 1]]


def check(cell: str, seed: int, length: int, batch: int, width: int, size: int, direction: str, dtype: Any = np.float32, given_states: bool = True,
          lens: bool = False, bias: bool = True, peepholes: bool = False, layout: int = 0, constant: bool = True, **attrs: Any) -> None:
    rng = np.random.default_rng(seed)
    directions, gates = 2 if direction == "bidirectional" else 1, GATES[cell]

    def draw(*shape: int) -> Any:
        return rng.uniform(-0.6, 0.6, shape).astype(dtype)
    x, w, r = draw(length, batch, width), draw(directions, gates * size, width), draw(directions, gates * size, size)
    b = draw(directions, 2 * gates * size) if bias else None
    steps = rng.integers(0, length + 1, batch).astype(np.int32) if lens else None
    h0, c0 = (draw(directions, batch, size) if given_states else None for _ in range(2))
    p = draw(directions, 3 * size) if peepholes else None
    attrs = {"direction": direction, **attrs}
    want = wanted(cell, x, w, r, b, steps, h0, c0 if cell == "LSTM" else None, p, attrs)
    inputs = [x, w, r, b, steps, h0] + ([c0, p] if cell == "LSTM" else [])
    if layout:
        inputs = [None if v is None else v.transpose(1, 0, 2) if k in (0, 5, 6) else v for k, v in enumerate(inputs)]
        want = [want[0].transpose(2, 0, 1, 3), *(v.transpose(1, 0, 2) for v in want[1:])]
    model = node_model(cell, inputs, 22, len(want), hidden_size=size, layout=layout, **attrs)
    feeds = {f"x{k}": np.ascontiguousarray(v) for k, v in enumerate(inputs) if v is not None}
    if constant:
        from onnx import numpy_helper
        fixed = {name: feeds.pop(name) for name in ("x1", "x2", "x3") if name in feeds}
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in fixed.items())
        kept = [i for i in model.graph.input if i.name not in fixed]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    got = list(gpuonnx.run(model, feeds, device=on_devices.current).values())
    for g, e in zip(got, want, strict=True):
        assert g.dtype == dtype and g.shape == e.shape
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-12 if dtype == np.float64 else 3e-5)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("dtype", "constant"), [(np.float32, True), (np.float32, False), (np.float64, True)])
def test_directions_and_types(cell: str, direction: str, dtype: Any, constant: bool) -> None:
    check(cell, 1, 5, 3, 4, 19, direction, dtype, constant=constant)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cell=st.sampled_from(["RNN", "GRU", "LSTM"]), seed=st.integers(0, 1000), length=st.integers(0, 6), batch=st.integers(0, 21), width=st.integers(1, 9),
       size=st.integers(1, 40), direction=st.sampled_from(["forward", "reverse", "bidirectional"]), lens=st.booleans(), bias=st.booleans(),
       given_states=st.booleans(), layout=st.integers(0, 1), before=st.integers(0, 1), constant=st.booleans())
def test_sizes_lengths_and_layouts(before: int, cell: str, **attrs: Any) -> None:
    check(cell, **attrs, **({"linear_before_reset": before} if cell == "GRU" else {}))


@pytest.mark.parametrize("cell", GATES)
def test_many_units(cell: str) -> None:
    """More than the threads of a block."""
    check(cell, 1, 2, 1, 3, 520, "forward", lens=True)


def test_a_state_that_shared_memory_cannot_hold() -> None:
    check("RNN", 1, 2, 1, 3, 1100, "forward", np.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("cell", GATES)
def test_functions(cell: str, name: str) -> None:
    """The given function everywhere in one direction, another one in the other."""
    count = len(DEFAULTS[cell])
    used = [name] * count + ["Softsign"] * count
    numbers = {"activation_alpha": [0.3 for n in used if NEEDS.get(n, 0) > 0], "activation_beta": [0.4 for n in used if NEEDS.get(n, 0) > 1]}
    check(cell, 3, 3, 2, 3, 11, "bidirectional", activations=used, **{k: v for k, v in numbers.items() if v})


@pytest.mark.parametrize("attrs", [{"clip": 0.375}, {"peepholes": True}, {"peepholes": True, "clip": 0.25}, {"input_forget": 1},
                                   {"input_forget": 1, "peepholes": True, "lens": True}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lstm_attributes(attrs: dict[str, Any], dtype: Any) -> None:
    check("LSTM", 5, 4, 6, 3, 21, "bidirectional", dtype, **attrs)


@pytest.mark.parametrize("cell", ["RNN", "GRU"])
def test_clip(cell: str) -> None:
    check(cell, 7, 4, 2, 3, 13, "bidirectional", clip=0.2)


def through_bytes(x: np.ndarray) -> np.ndarray:
    """DynamicQuantizeLinear and back."""
    low, high = min(float(x.min(initial=0)), 0), max(float(x.max(initial=0)), 0)
    scale = (high - low) / 255 if high > low else 1.0
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize(("batch", "size"), [(1, 7), (3, 16), (6, 33)])
@pytest.mark.parametrize(("dtype", "zero", "per_row", "known"), [
    (np.int8, 0, False, True), (np.int8, 0, True, True), (np.uint8, 128, False, True), (np.uint8, 90, True, True), (np.int8, 0, False, False)])
def test_dynamic_quantize_lstm(batch: int, size: int, dtype: Any, zero: int, per_row: bool, known: bool) -> None:
    """Weights in 8 bits, known or not, with scales and zero points a direction or a row; u8 round 90 does not fit int8."""
    from onnx import numpy_helper
    rng, length, width = np.random.default_rng(size), 4, 5
    x = rng.uniform(-1, 1, (length, batch, width)).astype(np.float32)
    b = rng.uniform(-0.5, 0.5, (2, 8 * size)).astype(np.float32)
    codes = {"w": rng.integers(zero - 100, zero + 100, (2, width, 4 * size)), "r": rng.integers(zero - 120, zero + 120, (2, size, 4 * size))}
    codes = {k: np.clip(v, *((0, 255) if dtype == np.uint8 else (-128, 127))).astype(dtype) for k, v in codes.items()}
    rows = (2, 4 * size) if per_row else (2,)
    scales = {k: rng.uniform(0.5, 1.5, rows).astype(np.float32) / 120 for k in codes}
    points = {k: np.full(rows, zero, dtype) for k in codes}
    wide = {k: ((codes[k].astype(float) - zero) * scales[k].reshape(2, 1, -1)).transpose(0, 2, 1) for k in codes}
    want = np.zeros((length, 2, batch, size))
    xq = through_bytes(x)
    for d in range(2):
        walk = Walk("LSTM", [(n, 0, 0) for n in DEFAULTS["LSTM"]], wide["w"][d], wide["r"][d], b[d], np.zeros(3 * size), {})
        h, c = np.zeros((batch, size)), np.zeros((batch, size))
        for t in range(length) if d == 0 else reversed(range(length)):
            read = through_bytes(h)
            for e in range(batch):
                h[e], c[e] = walk.step(xq[t, e], read[e], c[e])
            want[t, d] = h
    inputs = [x, codes["w"], codes["r"], b, None, None, None, None, scales["w"], points["w"], scales["r"], points["r"]]
    model = node_model("DynamicQuantizeLSTM", inputs, 1, 1, "com.microsoft", direction="bidirectional", hidden_size=size)
    feeds = {f"x{k}": v for k, v in enumerate(inputs) if v is not None}
    if known:
        fixed = {k: feeds.pop(k) for k in list(feeds) if k != "x0"}
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in fixed.items())
        del model.graph.input[1:]
    got = gpuonnx.run(model, feeds, device=on_devices.current)["y0"]
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-3)


def test_the_sums_of_a_quantised_state_are_exact() -> None:
    """Each product with the state has its opposite: the sum is 0, whatever the order, where it is one of integers."""
    from onnx import numpy_helper
    rng, half, width = np.random.default_rng(0), 35, 3
    size = 2 * half
    state, weights = rng.uniform(-1, 1, half), rng.integers(-127, 128, (1, half, 4 * size))
    x = rng.uniform(-1, 1, (1, 1, width)).astype(np.float32)
    w = rng.integers(-100, 100, (1, width, 4 * size)).astype(np.int8)
    one, none = np.ones(1, np.float32), np.zeros(1, np.int8)
    fixed = {"x1": w, "x2": np.concatenate([weights, -weights], 1).astype(np.int8), "x5": np.tile(state, 2).astype(np.float32).reshape(1, 1, size),
             "x8": one / 100, "x9": none, "x10": one, "x11": none}
    inputs = [x, *(fixed.get(f"x{k}") for k in range(1, 12))]
    model = node_model("DynamicQuantizeLSTM", inputs, 1, 1, "com.microsoft", hidden_size=size)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in fixed.items())
    del model.graph.input[1:]
    i, o, _, c = through_bytes(x[0]).dot(w[0] / 100).reshape(4, size)
    with np.errstate(over="ignore"):
        want = np.tanh(np.tanh(c) / (1 + np.exp(-i))) / (1 + np.exp(-o))
    np.testing.assert_allclose(gpuonnx.run(model, {"x0": x}, device=on_devices.current)["y0"].reshape(-1), want, rtol=0, atol=2e-6)
