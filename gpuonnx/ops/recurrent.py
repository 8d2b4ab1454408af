"""RNN, GRU, LSTM: the products with the input are one matrix product for all times; the rest is a kernel."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, broadcast_at, builder, call, concat, constant, tensor_map
from gpuonnx.ir.dims import Dim
from gpuonnx.kernels.cpu.recurrent import CODES
from gpuonnx.ops.matmul import integer_product, matrix_product
from gpuonnx.ops.registry import op

Floats = Sequence[float] | None
Names = Sequence[str] | None
DEFAULTS = {"rnn": ("Tanh",), "gru": ("Sigmoid", "Tanh"), "lstm": ("Sigmoid", "Tanh", "Tanh")}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
CONSTANTS = {"Affine": (1.0, 0.0), "LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "ScaledTanh": (1.0, 1.0), "HardSigmoid": (0.2, 0.5),
             "Elu": (1.0, 0.0)}
NEEDS = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}


def functions(cell: str, directions: int, names: Names, alpha: Floats, beta: Floats) -> tuple[tuple[int, float, float], ...]:
    """(code, alpha, beta) of every function; given constants go to the functions that have some, in order."""
    chosen = list(names or DEFAULTS[cell] * directions)
    if cell == "rnn" and chosen == ["Tanh", "Tanh"]:
        chosen = chosen[:directions]
    if len(chosen) != len(DEFAULTS[cell]) * directions:
        raise ModelError(f"{builder().origin}: {len(chosen)} activations, {len(DEFAULTS[cell]) * directions} are needed")
    alphas, betas, known = list(alpha or ()), list(beta or ()), {c.lower(): c for c in CODES}
    out = []
    for name in chosen:
        if name.lower() not in known:
            raise ModelError(f"{builder().origin}: activation {name!r} is none of {', '.join(CODES)}")
        name = known[name.lower()]
        a, b = CONSTANTS.get(name, (0.0, 0.0))
        a = alphas.pop(0) if NEEDS.get(name, 0) >= 1 and alphas else a
        b = betas.pop(0) if NEEDS.get(name, 0) >= 2 and betas else b
        out.append((CODES.index(name), float(a), float(b)))
    return tuple(out)


def input_gates(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """x[T, B, I] with w[D, G, I]: [T, B, D * G], all directions in one product."""
    flat = w.reshape(w.shape[0] * w.shape[1], w.shape[2])
    gates = matrix_product(x.reshape(x.shape[0] * x.shape[1], x.shape[2]), flat.transpose([1, 0]))
    if bias is not None:
        gates = gates + bias.reshape(w.shape[0] * w.shape[1])
    return gates.reshape(x.shape[0], x.shape[1], w.shape[0] * w.shape[1])


Projection = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def fitting(gates: int, direction: str, x: Tensor, w: Tensor, r: Tensor, hidden: int | None, **others: Tensor | None) -> None:
    """x[T, B, I], w[D, G * H, I], r[D, G * H, H] and the others agree in their sizes; the kernels rely on it."""
    owner, directions = builder(), count_of(direction)
    for name, t in {"X": x, "W": w, "R": r}.items():
        if t.rank != 3:
            raise ModelError(f"{owner.origin}: {name} has {t.rank} axes, 3 are needed")
    size, batch = r.shape[2], x.shape[1]
    wanted: dict[str, tuple[Tensor | None, tuple[Dim, ...]]] = {
        "W": (w, (directions, size * gates, x.shape[2])), "R": (r, (directions, size * gates, size)),
        "B": (others["b"], (directions, 2 * size * gates)), "sequence_lens": (others["lens"], (batch,)),
        "initial_h": (others["h0"], (directions, batch, size)), "initial_c": (others["c0"], (directions, batch, size)),
        "P": (others["peepholes"], (directions, 3 * size))}
    if hidden is not None:
        owner.meet(size, hidden)
    for name, (given, shape) in wanted.items():
        if given is None:
            continue
        if given.rank != len(shape):
            raise ModelError(f"{owner.origin}: {name} has {given.rank} axes, {len(shape)} are needed")
        for have, want in zip(given.shape, shape, strict=True):
            owner.meet(have, want)


def part(b: Tensor, first: Dim, count: Dim) -> Tensor:
    return b.slice(1, first, count)


def recurrent(cell: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lens: Tensor | None, h0: Tensor | None, c0: Tensor | None,
              peepholes: Tensor | None, layout: int, direction: str, hidden: int | None, outputs: int, project: Projection = input_gates,
              whole: tuple[Tensor, Tensor] | None = None, **attrs: Any) -> tuple[Tensor, ...]:
    """Y, Y_h (and Y_c) in the layout asked for: 0 is time first, 1 batch first. `project` makes the gates of the input; `whole` has r in int8 and
    the scales of its rows."""
    stored = x.dtype
    x, w, r, b, h0, c0, peepholes = (None if t is None else t.wide() for t in (x, w, r, b, h0, c0, peepholes))  # type: ignore[assignment]
    if layout:
        x = x.transpose([1, 0, 2])
        h0, c0 = (None if t is None else t.transpose([1, 0, 2]) for t in (h0, c0))
    gates, size = GATES[cell], r.shape[2]
    fitting(gates, direction, x, w, r, hidden, b=b, lens=lens, h0=h0, c0=c0, peepholes=peepholes)
    extra = None
    bias = None
    if b is not None:
        mine, theirs = part(b, 0, size * gates), part(b, size * gates, size * gates)
        if cell == "gru" and attrs["linear_before_reset"]:
            extra = part(theirs, 2 * size, size)
            bias = concat([part(mine, 0, 2 * size) + part(theirs, 0, 2 * size), part(mine, 2 * size, size)], 1)
        else:
            bias = mine + theirs
    projected = project(x, w, bias)
    length, batch, directions = x.shape[0], x.shape[1], r.shape[0]
    specs = [x.like(length, directions, batch, size), x.like(directions, batch, size)] + ([x.like(directions, batch, size)] if cell == "lstm" else [])
    r, scales = whole or (r, None)
    steps = None if lens is None else lens.cast("i32")
    results = call(cell, projected, r, h0, c0, peepholes, extra, steps, scales, out=specs, direction=direction, **attrs)
    y, *last = (t.cast(stored) for t in results)
    if layout:
        y, last = y.transpose([2, 0, 1, 3]), [t.transpose([1, 0, 2]) for t in last]
    return (y, *last)[:max(outputs, 1)]


def count_of(direction: str) -> int:
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ModelError(f"{builder().origin}: direction {direction!r} is none of forward, reverse, bidirectional")
    return 2 if direction == "bidirectional" else 1


@op("RNN", since=1)
def rnn(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: Tensor | None = None, initial_h: Tensor | None = None, *,
        activation_alpha: Floats = None, activation_beta: Floats = None, activations: Names = ("Tanh", "Tanh"), clip: float = 0.0,
        direction: str = "forward", hidden_size: int | None = None, layout: int = 0, output_sequence: int = 0, outputs: int) -> tuple[Tensor, ...]:
    chosen = functions("rnn", count_of(direction), activations, activation_alpha, activation_beta)
    return recurrent("rnn", x, w, r, b, sequence_lens, initial_h, None, None, layout, direction, hidden_size, outputs, activations=chosen, clip=clip)


@op("GRU", since=1)
def gru(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: Tensor | None = None, initial_h: Tensor | None = None, *,
        activation_alpha: Floats = None, activation_beta: Floats = None, activations: Names = None, clip: float = 0.0,
        direction: str = "forward", hidden_size: int | None = None, layout: int = 0, linear_before_reset: int = 0, output_sequence: int = 0,
        outputs: int) -> tuple[Tensor, ...]:
    chosen = functions("gru", count_of(direction), activations, activation_alpha, activation_beta)
    return recurrent("gru", x, w, r, b, sequence_lens, initial_h, None, None, layout, direction, hidden_size, outputs, activations=chosen, clip=clip,
                     linear_before_reset=linear_before_reset)


@op("LSTM", since=1)
def lstm(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: Tensor | None = None, initial_h: Tensor | None = None,
         initial_c: Tensor | None = None, p: Tensor | None = None, *, activation_alpha: Floats = None, activation_beta: Floats = None,
         activations: Names = None, clip: float = 0.0, direction: str = "forward", hidden_size: int | None = None, input_forget: int = 0,
         layout: int = 0, output_sequence: int = 0, outputs: int) -> tuple[Tensor, ...]:
    chosen = functions("lstm", count_of(direction), activations, activation_alpha, activation_beta)
    return recurrent("lstm", x, w, r, b, sequence_lens, initial_h, initial_c, p, layout, direction, hidden_size, outputs,
                     activations=chosen, clip=clip, input_forget=input_forget)


def small_weights(r: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor] | None:
    """r [D, H, gates * H] less its zero point ([D], or [D, gates * H]) as int8 [D, gates * H, H] and the scales [D, gates * H], where all is
    known and fits."""
    constants = builder().constants
    if any(t.value not in constants for t in (r, scale, zero)):
        return None
    codes, factors, points = (constants[t.value] for t in (r, scale, zero))
    rows = (codes.shape[0], codes.shape[2])
    points, factors = (np.broadcast_to(a if a.ndim == 2 else a.reshape(-1, 1), rows) for a in (points, factors))
    plain = codes.astype(np.int32) - points.astype(np.int32)[:, None]
    if plain.size and not -128 <= int(plain.min()) <= int(plain.max()) <= 127:
        return None
    return constant(np.ascontiguousarray(plain.astype(np.int8).transpose(0, 2, 1))), constant(factors.astype(np.float32))


@op("DynamicQuantizeLSTM", since=1, domain="com.microsoft")
def dynamic_quantize_lstm(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, sequence_lens: Tensor | None, initial_h: Tensor | None,
                          initial_c: Tensor | None, p: Tensor | None, w_scale: Tensor, w_zero_point: Tensor, r_scale: Tensor,
                          r_zero_point: Tensor, *, activation_alpha: Floats = None, activation_beta: Floats = None, activations: Names = None,
                          clip: float = 0.0, direction: str = "forward", hidden_size: int | None = None, input_forget: int = 0,
                          outputs: int) -> tuple[Tensor, ...]:
    """Weights come as [D, I, 4H] and [D, H, 4H] in 8 bits with a scale a direction (or a gate's row). The input's product is one of integers;
    the state's weights are dequantised here. The input and, in every step, the state go through 8 bits."""
    from gpuonnx.ops.quantize import dequantized, dynamic_range, quantized

    def wide(s: Tensor) -> Tensor:
        return s.unsqueeze([1]) if s.rank == 2 else s.unsqueeze([1, 2]) if s.rank == 1 else s

    def restored(t: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return dequantized(t, wide(scale), wide(zero), "f32").transpose([0, 2, 1])

    def along(t: Tensor) -> Tensor:
        """One value a column of the product."""
        directions, _, columns = w.shape
        shape = (directions, 1, columns)
        return tensor_map(shape, t.dtype, lambda *_: broadcast_at(wide(t), shape)).reshape(directions * columns)
    scale, zero = dynamic_range(x)

    def project(x: Tensor, w_restored: Tensor, bias: Tensor | None) -> Tensor:
        length, batch, width = x.shape
        directions, _, columns = w.shape
        codes = quantized(x, scale, zero, "u8").reshape(length * batch, width)
        total = integer_product(codes, w.transpose([1, 0, 2]).reshape(width, directions * columns), zero, along(w_zero_point))
        gates = total.cast("f32") * (scale * along(w_scale))
        if bias is not None:
            gates = gates + bias.reshape(directions * columns)
        return gates.reshape(length, batch, directions * columns)
    chosen = functions("lstm", count_of(direction), activations, activation_alpha, activation_beta)
    return recurrent("lstm", x, restored(w, w_scale, w_zero_point), restored(r, r_scale, r_zero_point), b, sequence_lens, initial_h, initial_c, p, 0,
                     direction, hidden_size, outputs, project, small_weights(r, r_scale, r_zero_point), activations=chosen, clip=clip,
                     input_forget=input_forget, quantized_state=1)
