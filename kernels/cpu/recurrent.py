"""Calls "rnn", "gru", "lstm": gates of the input [T, B, D * gates * H], r [D, gates * H, H], then (each may be absent)
h0 [D, B, H], c0 [D, B, H], peepholes [D, 3H], the recurrent bias of the h gate [D, H], lengths [B] (int32);
outputs y [T, D, B, H], y_h [D, B, H] and for lstm y_c [D, B, H].

attrs: direction (forward reverse bidirectional), activations as (code, alpha, beta) for each direction's functions, clip (0: none),
linear_before_reset, input_forget, quantized_state (the state goes through 8 bits before each product, all batch entries with one
scale).
"""
from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import numpy as np

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.types import numpy_dtype, size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Packed, Ref, Spec, Step

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
DIRECTIONS = ("forward", "reverse", "bidirectional")
CODES = ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus")


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    if x is None or x.dtype not in ("f32", "f64"):
        return "recurrent cells compute in float32 or float64"
    return None


def build_cell(cell: str, call: Spec) -> Build:
    """A step that transposes r unless it is constant, then one task for each direction and batch entry."""
    x, r, h0, c0, peepholes, extra, lens = (*call.inputs, *[None] * 7)[:7]
    assert x is not None and r is not None
    dtype, unit = x.dtype, size(x.dtype)
    directions, hidden = r.shape[0], r.shape[2]
    length, batch, gates = x.shape[0], x.shape[1], GATES[cell]
    steps: list[Step] = []
    work: list[Dim] = []
    if 1 in call.constants:
        array = call.constants[1]
        turned = Ref("packed", 0)
        packed: tuple[Packed, ...] = (Packed(("transposed",), lambda: np.ascontiguousarray(array.swapaxes(1, 2))),)
    else:
        work.append(directions * gates * hidden * hidden * unit)
        turned, packed = Ref("work", 0), ()
        steps.append(Step(transposition(dtype), (Ref("in", 1), turned, gates * hidden, hidden, *r.strides), directions))
    quantized = int(bool(call.attrs.get("quantized_state", 0)))
    group: Dim = batch if quantized else 1
    room = hidden * (group * 3 + gates) * unit
    numbers = activations(call, directions)
    outs = [*call.outputs, *[None] * 3][:3]
    args: list[Arg] = [
        Ref("in", 0), turned, _at(h0, 2), _at(c0, 3), _at(peepholes, 4), _at(extra, 5), _at(lens, 6),
        *(Ref("out", k) if o is not None else 0 for k, o in enumerate(outs)), Ref("work", len(work)),
        length, batch, hidden, directions,
        *x.strides, *_strides(h0, 3), *_strides(c0, 3), *_strides(lens, 1), *_strides(outs[0], 4), *_strides(outs[1], 3), *_strides(outs[2], 3)]
    args += [group, quantized, 0, 0, 0]
    args += [DIRECTIONS.index(call.attrs["direction"]), _strides(extra, 2)[0], _strides(peepholes, 2)[0], room,
             call.attrs.get("linear_before_reset", 0), call.attrs.get("input_forget", 0), Ref("packed", len(packed)),
             *(int(code) for code, _, _ in call.attrs["activations"])]
    tasks = directions if quantized else directions * batch
    work.append(room * tasks)
    kernel = Kernel(cell, (dtype,), "numba", lambda symbol: import_module("gpuonnx.kernels.cpu.recurrent_code").kernel(cell, dtype))
    steps.append(Step(kernel, tuple(args), tasks))
    return Build(tuple(steps), tuple(work), (*packed, Packed((), lambda: numbers)))


def activations(call: Spec, directions: Dim) -> np.ndarray:
    """alpha and beta of every function, then the clip limit."""
    x = call.inputs[0]
    assert x is not None
    flat = [v for _, alpha, beta in call.attrs["activations"] for v in (alpha, beta)]
    return np.array([*flat, call.attrs.get("clip", 0.0)], numpy_dtype(x.dtype))


def transposition(dtype: str) -> Kernel:
    return Kernel("transpose_gates", (dtype,), "numba", lambda symbol: import_module("gpuonnx.kernels.cpu.recurrent_code").transpose(dtype))


def _at(layout: Layout | None, number: int) -> Arg:
    return 0 if layout is None else Ref("in", number)


def _strides(layout: Layout | None, rank: int) -> Sequence[Dim]:
    return (0,) * rank if layout is None else layout.strides
