"""RNN, GRU and LSTM: directions, layouts, activations, lengths, peepholes, absent inputs and outputs."""
from __future__ import annotations

from typing import Any

import numpy as np
from every_operator.draw import Case, Draw
from every_operator.elementwise import sigmoid, softplus
from every_operator.folding import wide
from every_operator.row import Row

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
FUNCTIONS: dict[str, Any] = {"Tanh": np.tanh, "Sigmoid": sigmoid, "Relu": lambda x: np.maximum(x, 0), "Softsign": lambda x: x / (1 + np.abs(x)), "Softplus": softplus,
                             "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1)}


def recurrent(d: Draw) -> Case:
    name, gates = d.schema.name, GATES[d.schema.name]
    direction = d.pick("forward", "reverse", "bidirectional")
    n, size, steps, batch, width = 1 + (direction == "bidirectional"), d.pick(1, 2, 3, 9), d.integer(1, 4), d.integer(1, 3), d.integer(1, 4)
    layout = 1 if d.has("layout") and d.flag() else None
    dtype = d.type("T")

    def array(*shape: int) -> np.ndarray:
        return d.array(shape, dtype, False, -1, 1)

    state = (batch, n, size) if layout else (n, batch, size)
    x = array(*((batch, steps, width) if layout else (steps, batch, width)))
    extras: list[Any] = [array(n, 2 * gates * size), d.random.integers(1, steps + 1, batch).astype(np.int32), array(*state)]
    extras += [array(*state), array(n, 3 * size)] if name == "LSTM" else []
    extras = [e if d.flag() else None for e in extras]
    while extras and extras[-1] is None:
        extras.pop()
    activations = [d.pick(*FUNCTIONS) for _ in DEFAULTS[name]] * n if d.flag() else None
    more = {"linear_before_reset": d.pick(None, 0, 1)} if d.has("linear_before_reset") else {}
    more |= {"input_forget": d.pick(None, 0, 1)} if d.has("input_forget") else {}
    if d.has("output_sequence"):
        more["output_sequence"] = 1
    wanted = [f"y{k}" if d.flag() else "" for k in range(3 if name == "LSTM" else 2)]
    wanted = wanted if any(wanted) else ["y0"]
    return d.case(x, array(n, gates * size, width), array(n, gates * size, size), *extras, names=wanted, hidden_size=size, direction=direction,
                  layout=layout, activations=activations, clip=d.pick(None, 0.5), constant=(1, 2, 3), **more)


class Cell:
    """One direction's walk, in float64."""

    def __init__(self, name: str, a: dict[str, Any], place: int, w: Any, r: Any, b: Any, p: Any) -> None:
        self.name, self.a, self.w, self.r, self.size = name, a, w.T, r.T, r.shape[1]
        self.wb, self.rb = (np.zeros(len(w)), np.zeros(len(w))) if b is None else np.split(b, 2)
        self.p = np.split(np.zeros(3 * self.size) if p is None else p, 3)
        count = len(DEFAULTS[name])
        chosen = a.get("activations", DEFAULTS[name] * 2)[place * count:(place + 1) * count]
        self.functions = [self.clipped(FUNCTIONS[f]) for f in chosen]

    def clipped(self, function: Any) -> Any:
        limit = self.a.get("clip")
        return function if limit is None else lambda x: function(np.clip(x, -limit, limit))

    def step(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        f = self.functions
        if self.name == "RNN":
            return f[0](x @ self.w + self.wb + h @ self.r + self.rb), c
        if self.name == "GRU":
            (xz, xr, xh), (rz, rr, rh) = np.split(x @ self.w + self.wb, 3, 1), np.split(self.r, 3, 1)
            bz, br, bh = np.split(self.rb, 3)
            z, r = f[0](xz + h @ rz + bz), f[0](xr + h @ rr + br)
            new = f[1](xh + (r * (h @ rh + bh) if self.a.get("linear_before_reset") else (r * h) @ rh + bh))
            return (1 - z) * new + z * h, c
        i, o, g, n = np.split(x @ self.w + self.wb + h @ self.r + self.rb, 4, 1)
        i = f[0](i + self.p[0] * c)
        g = 1 - i if self.a.get("input_forget") else f[0](g + self.p[2] * c)
        c = g * c + i * f[1](n)
        return f[0](o + self.p[1] * c) * f[2](c), c


def recurred(case: Case) -> list[Any]:
    name, a = case.model.graph.node[-1].op_type, case.attributes
    x, w, r, b, lengths, h0, c0, p = [None if v is None else wide(v) for v in [*case.inputs, *[None] * 8][:8]]
    x, h0, c0 = (v if v is None or not a.get("layout") else np.swapaxes(v, 0, 1) for v in (x, h0, c0))
    steps, batch, n, size = *x.shape[:2], len(w), r.shape[2]
    lengths = np.full(batch, steps) if lengths is None else lengths
    ys, hs, cs = np.zeros((steps, n, batch, size)), np.zeros((n, batch, size)), np.zeros((n, batch, size))
    for k in range(n):
        cell = Cell(name, a, k, w[k], r[k], None if b is None else b[k], None if p is None else p[k])
        backwards = k == 1 or a["direction"] == "reverse"
        for e in range(batch):
            h, c = (np.zeros((1, size)) if v is None else v[k, e:e + 1] for v in (h0, c0))
            order = range(int(lengths[e]))
            for t in reversed(order) if backwards else order:
                h, c = cell.step(x[t, e:e + 1], h, c)
                ys[t, k, e] = h[0]
            hs[k, e], cs[k, e] = h[0], c[0]
    if a.get("layout"):
        ys, hs, cs = ys.transpose(2, 0, 1, 3), hs.swapaxes(0, 1), cs.swapaxes(0, 1)
    return [v for v, o in zip((ys, hs, cs), case.model.graph.node[-1].output, strict=False) if o]


ROWS: dict[str, Row] = {n: Row(recurrent, recurred, sums=2, floor=0.2, slack=3, since=7) for n in GATES}
