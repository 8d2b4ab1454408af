"""Calls "rnn", "gru", "lstm": gates of the input [T, B, D * gates * H], r [D, gates * H, H], then (each may be absent)
h0 [D, B, H], c0 [D, B, H], peepholes [D, 3H], the recurrent bias of the h gate [D, H], lengths [B] (int32);
outputs y [T, D, B, H], y_h [D, B, H] and for lstm y_c [D, B, H].

attrs: direction (forward reverse bidirectional), activations as (code, alpha, beta) for each direction's functions, clip (0: none),
linear_before_reset, input_forget, quantized_state (the state goes through 8 bits before each product, all batch entries with one
scale).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.types import numpy_dtype, size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Packed, Ref, Spec, Step

GROUPS = {"rnn": (1,), "gru": (2, 1), "lstm": (4,)}
PANEL, ROWS = 4, 2
DIRECTIONS = ("forward", "reverse", "bidirectional")
CODES = ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus")


@dataclass(frozen=True)
class Form:
    """What is compiled in. `functions`: numbers in CODES, of both directions where they differ."""

    cell: str
    dtype: str
    functions: tuple[tuple[int, ...], ...]
    clip: bool
    peepholes: bool
    lengths: bool
    linear_before_reset: bool
    input_forget: bool
    quantized: bool
    names: tuple[str, ...]


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    if x is None or x.dtype not in ("f32", "f64"):
        return "recurrent cells compute in float32 or float64"
    return None


def build_cell(cell: str, call: Spec) -> Build:
    """A step that packs r unless it is constant, then one task for each direction and batch entry."""
    from gpuonnx.kernels.cpu.micro import lanes_of, target
    x, r, h0, c0, peepholes, extra, lens = (*call.inputs, *[None] * 7)[:7]
    assert x is not None and r is not None
    dtype, unit, groups, width = x.dtype, size(x.dtype), GROUPS[cell], lanes_of(x.dtype)
    directions, hidden, (length, batch) = r.shape[0], r.shape[2], x.shape[:2]
    weights_bytes = sum((columns(g, hidden, width) for g in groups), 0) * rounded(hidden, ROWS) * unit
    steps: list[Step] = []
    work: list[Dim] = []
    packed: list[Packed] = []
    if 1 in call.constants:
        array = call.constants[1]
        weights = Ref("packed", 0)
        packed.append(Packed(("recurrent", groups, width), lambda: panels(array, groups, width)))
    else:
        weights = Ref("work", 0)
        work.append(directions * weights_bytes)
        steps.append(_turning(dtype, groups, r, weights, weights_bytes))
    form, numbers, clip = _form(cell, call)
    quantized = form.quantized
    group: Dim = batch if quantized else 1
    one = rounded(hidden, width)
    room = (group * (2 * one + columns(1, hidden, width)) + sum((columns(g, hidden, width) for g in groups), 0)) * unit
    tasks = directions if quantized else directions * batch
    y, yh, yc = [*call.outputs, *[None] * 3][:3]
    args: dict[str, Arg] = {
        "r": weights, "r.direction": weights_bytes, "work": Ref("work", len(work)), "room": room, "numbers": Ref("packed", len(packed)),
        "clip": clip, "length": length, "batch": batch, "hidden": hidden, "group": group,
        "mode": DIRECTIONS.index(call.attrs["direction"])}
    inputs = (("x", x, 0), ("h0", h0, 2), ("c0", c0, 3), ("p", peepholes, 4), ("extra", extra, 5), ("lens", lens, 6))
    for name, layout, number in inputs:
        args |= _place(name, layout, Ref("in", number))
    for number, (name, layout) in enumerate((("y", y), ("yh", yh), ("yc", yc))):
        args |= _place(name, layout, Ref("out", number))
    work.append(room * tasks)
    form = replace(form, names=tuple(args))
    steps.append(Step(Kernel(cell, (form, target()), "llvm", lambda symbol: _text(form, symbol)), tuple(args.values()), tasks))
    return Build(tuple(steps), tuple(work), (*packed, Packed((), lambda: numbers)))


def _form(cell: str, call: Spec) -> tuple[Form, np.ndarray, int]:
    """The form without its names; alpha and beta of every function of each direction and the clip limit; where that one lies, in bytes."""
    x, _, _, _, peepholes, _, lens = (*call.inputs, *[None] * 7)[:7]
    assert x is not None
    chosen, attrs = call.attrs["activations"], call.attrs
    count = len(chosen) // (2 if attrs["direction"] == "bidirectional" else 1)
    functions = tuple(dict.fromkeys(tuple(int(code) for code, _, _ in chosen[k:k + count]) for k in range(0, len(chosen), count)))
    flat = [v for _, alpha, beta in chosen for v in (alpha, beta)]
    clip = float(attrs.get("clip", 0.0) or 0.0)
    form = Form(cell, x.dtype, functions, clip > 0, peepholes is not None, lens is not None, bool(attrs.get("linear_before_reset", 0)),
                bool(attrs.get("input_forget", 0)), bool(attrs.get("quantized_state", 0)), ())
    return form, np.array([*flat, clip], numpy_dtype(x.dtype)), len(flat) * size(x.dtype)


def rounded(n: Any, unit: int) -> Any:
    """An int or a Dim, up to a multiple of `unit`."""
    return floordiv(n + (unit - 1), unit) * unit


def columns(gates: int, hidden: Any, width: int) -> Any:
    """Columns of a group of gates, padded: each gate to whole vectors, the group to whole panels."""
    return rounded(rounded(hidden, width) * gates, PANEL * width)


def panels(r: np.ndarray, groups: Sequence[int], width: int) -> np.ndarray:
    """r [D, gates * H, H] as [D, elements]: for each group of gates its panels, each [H padded, PANEL * width]."""
    directions, _, hidden = r.shape
    padded, rows, first, out = rounded(hidden, width), rounded(hidden, ROWS), 0, []
    for gates in groups:
        block = np.zeros((directions, rows, columns(gates, hidden, width)), r.dtype)
        part = r[:, first * hidden:(first + gates) * hidden].reshape(directions, gates, hidden, hidden)
        for gate in range(gates):
            block[:, :hidden, gate * padded:gate * padded + hidden] = part[:, gate].swapaxes(1, 2)
        out.append(block.reshape(directions, rows, -1, PANEL * width).swapaxes(1, 2).reshape(directions, -1))
        first += gates
    return np.ascontiguousarray(np.concatenate(out, 1))


def _turning(dtype: str, groups: tuple[int, ...], r: Layout, target: Ref, size_of_one: Dim) -> Step:
    from gpuonnx.kernels.cpu.micro import target as machine
    args: dict[str, Arg] = {"target": target, "target.direction": size_of_one, "hidden": r.shape[2], **_place("source", r, Ref("in", 1))}
    names = tuple(args)
    return Step(Kernel("recurrent weights", (dtype, groups, names, machine()), "llvm", lambda symbol: _turned(dtype, groups, names, symbol)),
                tuple(args.values()), r.shape[0])


def _text(form: Form, symbol: str) -> str:
    from gpuonnx.kernels.cpu.recurrent_code import Cell
    return Cell(form, symbol).text()


def _turned(dtype: str, groups: tuple[int, ...], names: tuple[str, ...], symbol: str) -> str:
    from gpuonnx.kernels.cpu.recurrent_code import turned
    return turned(dtype, groups, names, symbol)


RANKS = {"x": 3, "h0": 3, "c0": 3, "p": 2, "extra": 2, "lens": 1, "y": 4, "yh": 3, "yc": 3, "source": 3}


def _place(name: str, layout: Layout | None, where: Ref) -> dict[str, Arg]:
    """A tensor's address and strides in bytes, 0 where it is absent."""
    if layout is None:
        return {name: 0, **{f"{name}.{k}": 0 for k in range(RANKS[name])}}
    return {name: where, **{f"{name}.{k}": stride * size(layout.dtype) for k, stride in enumerate(layout.strides)}}
