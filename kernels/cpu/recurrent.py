"""Calls "rnn", "gru", "lstm": gates of the input [T, B, D * gates * H], r [D, gates * H, H], then (each may be absent)
h0 [D, B, H], c0 [D, B, H], peepholes [D, 3H], the recurrent bias of the h gate [D, H], lengths [B] (int32), scales [D, gates * H];
outputs y [T, D, B, H], y_h [D, B, H] and for lstm y_c [D, B, H]. With scales, r is int8 and a constant, and the state is quantized.

attrs: direction (forward reverse bidirectional), activations as (code, alpha, beta) for each direction's functions, clip (0: none),
linear_before_reset, input_forget, quantized_state (the state goes through 8 bits before each product, all batch entries with one
scale).

r is packed in panels of columns gate by gate, so that a step reads it once from beginning to end. A task takes one direction of some batch
entries through time, or, where the weights outgrow a core's cache, all of them; each of its steps is shared out by columns of the state among
the threads that are free. All of this depends on sizes alone.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpuonnx.ir.dims import Dim, dmax, dmin, floordiv, lt, select
from gpuonnx.ir.types import numpy_dtype, size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Packed, Ref, Spec, Step

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
FUNCTIONS = {"rnn": 1, "gru": 2, "lstm": 3}
DIRECTIONS = ("forward", "reverse", "bidirectional")
CODES = ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus")
TASKS, TOGETHER = 8, 4
NEAR, LEAST_WORK, MOST_CHUNKS = 1 << 18, 1 << 15, 32
SLACK = 64
HEADER = 8


@dataclass(frozen=True)
class Form:
    """What is compiled in. codes: functions of each direction; unit: which of x, y, y_h, y_c, h0, c0, bias have stride 1 in their last axis."""

    cell: str
    dtype: str
    lanes: int
    codes: tuple[tuple[int, ...], ...]
    clip: bool
    peepholes: bool
    linear_before_reset: bool
    input_forget: bool
    quantized: bool
    whole: bool
    unit: tuple[bool, ...]
    names: tuple[str, ...]


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    if x is None or x.dtype not in ("f32", "f64"):
        return "recurrent cells compute in float32 or float64"
    if len(call.inputs) > 7 and call.inputs[7] is not None and not {1, 7} <= call.constants.keys() and call.constants:
        return "8-bit weights of recurrent cells have to be constants"
    return None


def build_cell(cell: str, call: Spec) -> Build:
    """Steps that pack r unless it is constant, then the walk through time."""
    from gpuonnx.kernels.cpu.micro import lanes_of, panel_of, target
    x, r, h0, c0, peepholes, extra, lens, scales = (*call.inputs, *[None] * 8)[:8]
    assert x is not None and r is not None
    y, yh, yc = [*call.outputs, *[None] * 3][:3]
    unit, panel = size(x.dtype), panel_of(x.dtype)
    directions, hidden, length, batch, gates = r.shape[0], r.shape[2], x.shape[0], x.shape[1], GATES[cell]
    quantized = bool(call.attrs.get("quantized_state", 0))
    steps, work, packed, weights = packs(call, gates, panel) if scales is None else whole(call, gates, panel)
    share = shared_out(directions, batch, hidden, gates, size(r.dtype), panel, quantized)
    group, columns = share["group"], share["panels"] * panel
    line, state = columns * gates + panel, columns + SLACK // unit
    one = (group * (line + state * 5) + 2 * state) * unit
    room = HEADER * 8 + one * share["together"]
    args: dict[str, Arg] = {
        "x": Ref("in", 0), "h0": _at(h0, 2), "c0": _at(c0, 3), "peepholes": _at(peepholes, 4), "extra": _at(extra, 5), "lens": _at(lens, 6),
        **{name: Ref("out", k) if o is not None else 0 for k, (name, o) in enumerate({"y": y, "yh": yh, "yc": yc}.items())},
        "numbers": Ref("packed", len(packed)), "room": Ref("work", len(work)), "room.task": room, "room.direction": one,
        "line": line * unit, "state": state * unit, "length": length, "batch": batch, "hidden": hidden,
        "direction": DIRECTIONS.index(call.attrs["direction"]), **share, **{f"weights{k}": w for k, w in enumerate(weights)}}
    tasks = args.pop("tasks")
    assert not isinstance(tasks, Ref)
    if scales is not None:
        args["quads"] = floordiv(hidden + 3, 4)
    for name, layout, axes in (("x", x, "tbj"), ("h0", h0, "dbj"), ("c0", c0, "dbj"), ("lens", lens, "b"), ("y", y, "tdbj"), ("yh", yh, "dbj"),
                               ("yc", yc, "dbj"), ("extra", extra, "dj"), ("peepholes", peepholes, "dj")):
        factor = 4 if name == "lens" else unit
        args |= {f"{name}.{axis}": stride * factor for axis, stride in zip(axes, _strides(layout, len(axes)), strict=True)}
    functions = FUNCTIONS[cell]
    codes = tuple(int(code) for code, _, _ in call.attrs["activations"])
    halves = tuple(codes[k:k + functions] for k in range(0, len(codes), functions))
    form = Form(cell, x.dtype, lanes_of(x.dtype), halves if len(set(halves)) > 1 else halves[:1], bool(call.attrs.get("clip", 0.0) > 0),
                peepholes is not None, bool(call.attrs.get("linear_before_reset", 0)), bool(call.attrs.get("input_forget", 0)), quantized,
                scales is not None, tuple(_dense(layout) for layout in (x, y, yh, yc, h0, c0, extra, peepholes)), tuple(args))

    def text(symbol: str) -> str:
        from gpuonnx.kernels.cpu.recurrent_walk import render
        return render(form, symbol)
    steps.append(Step(Kernel(cell, (form, target()), "llvm", text), tuple(args.values()), tasks))
    numbers = constants(call)
    return Build(tuple(steps), (*work, room * tasks), (*packed, Packed((), lambda: numbers)))


def shared_out(directions: Dim, batch: Dim, hidden: Dim, gates: int, unit: int, panel: int, quantized: bool) -> dict[str, Dim]:
    """How the work is cut. group: batch entries of a task; together: directions of a task; panels of columns of a gate, how many of them are a
    chunk of a step, and the chunks of a direction."""
    products = gates * hidden * hidden
    near = lt(products * unit, NEAR + 1)
    group = batch if quantized else select(near, dmin(TOGETHER, dmax(1, floordiv(batch * directions, TASKS))), batch)
    together = select(near, 1, directions)
    panels = floordiv(hidden + panel - 1, panel)
    most = dmax(1, dmin(MOST_CHUNKS, floordiv(group * products, LEAST_WORK)))
    chunk = floordiv(panels + most - 1, most)
    groups = floordiv(batch + group - 1, dmax(1, group))
    return {"group": group, "together": together, "panels": panels, "chunk": chunk, "chunks": floordiv(panels + chunk - 1, dmax(1, chunk)),
            "tasks": select(near, directions, 1) * groups}


def packs(call: Spec, gates: int, panel: int) -> tuple[list[Step], list[Dim], list[Packed], list[Ref]]:
    """r as [D, gates, panels, H, panel], 0 past the last column; made here where r is constant."""
    from gpuonnx.kernels.cpu.pack import step
    r = call.inputs[1]
    assert r is not None
    if 1 in call.constants:
        return [], [], [Packed(("panels", panel), partial(panels_of, call.constants[1], gates, panel))], [Ref("packed", 0)]
    directions, hidden, unit = r.shape[0], r.shape[2], size(r.dtype)
    block = hidden * panel * unit
    matrix = floordiv(hidden + panel - 1, panel) * block
    part = Layout(r.dtype, (directions, hidden, hidden), r.strides)
    steps = [step(Ref("in", 1, g * hidden * r.strides[1] * unit), part, (2, 1), Ref("work", 0, g * matrix), r.dtype, panel * unit, block,
                  gates * matrix) for g in range(gates)]
    return steps, [directions * gates * matrix], [], [Ref("work", 0)]


def whole(call: Spec, gates: int, panel: int) -> tuple[list[Step], list[Dim], list[Packed], list[Ref]]:
    """int8 r [D, gates * H, H] as [D, gates, panels, pairs of k, panel, 2], pairs in even number, and the columns' scales."""
    r, scales = call.constants[1], call.constants[7]

    def pairs() -> np.ndarray:
        padded = columns_of(np.pad(r, ((0, 0), (0, 0), (0, -r.shape[2] % 4))), gates, panel)
        return np.ascontiguousarray(padded.reshape(*padded.shape[:4], -1, 2).transpose(0, 1, 2, 4, 3, 5))
    return [], [], [Packed((), pairs), Packed((), lambda: columns_of(scales, gates, panel))], [Ref("packed", 0), Ref("packed", 1)]


def columns_of(array: np.ndarray, gates: int, panel: int) -> np.ndarray:
    """[D, gates * H, ...] as [D, gates, panels, panel, ...], 0 past a gate's last column."""
    directions, columns, *rest = array.shape
    hidden = columns // gates
    out = np.zeros((directions, gates, -(-hidden // panel) * panel, *rest), array.dtype)
    out[:, :, :hidden] = array.reshape(directions, gates, hidden, *rest)
    return out.reshape(directions, gates, -1, panel, *rest)


def panels_of(r: np.ndarray, gates: int, panel: int) -> np.ndarray:
    """r [D, gates * H, H] as [D, gates, panels, H, panel]."""
    return np.ascontiguousarray(np.moveaxis(columns_of(r, gates, panel), -1, -2))


def constants(call: Spec) -> np.ndarray:
    """alpha and beta of every function, then the clip limit."""
    x = call.inputs[0]
    assert x is not None
    flat = [v for _, alpha, beta in call.attrs["activations"] for v in (alpha, beta)]
    return np.array([*flat, call.attrs.get("clip", 0.0)], numpy_dtype(x.dtype))


def _at(layout: Layout | None, number: int) -> Arg:
    return 0 if layout is None else Ref("in", number)


def _strides(layout: Layout | None, rank: int) -> Sequence[Dim]:
    return (0,) * rank if layout is None else layout.strides


def _dense(layout: Layout | None) -> bool:
    """Whether the last axis has stride 1, for every binding."""
    return layout is None or isinstance(layout.strides[-1], int) and layout.strides[-1] == 1
