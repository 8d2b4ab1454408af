"""Calls "rnn", "gru", "lstm": see kernels/cpu/recurrent.py. r is transposed (once, where it is constant), then a block for each direction
and batch entry goes through time with its state in shared memory; too large a state lies in a work area."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from gpuonnx.ir.dims import Dim, floordiv, lt, select
from gpuonnx.ir.types import numpy_dtype, size
from gpuonnx.kernels.contract import Arg, Build, Layout, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu.recurrent import DIRECTIONS, supports
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.source import kernel

THREADS, TURN_THREADS = {"f32": 384, "f64": 256}, 256
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
STATE = 32 << 10
MOST_CODES, SCALES = 6, 7


def build_cell(cell: str, call: Spec) -> Build:
    x, r, h0, c0, peepholes, extra, lens, scales = (*call.inputs, *[None] * 8)[:8]
    assert x is not None and r is not None
    unit, tag = size(x.dtype), TAGS[x.dtype]
    directions, hidden = r.shape[0], r.shape[2]
    length, batch, gates = x.shape[0], x.shape[1], GATES[cell]
    turned, turning, work, packed = _transposed(call, r, gates * hidden, tag) if scales is None else _words(call)
    constants = [v for _, alpha, beta in call.attrs["activations"] for v in (alpha, beta)]
    numbers = np.array([*constants, call.attrs.get("clip", 0.0)], numpy_dtype(x.dtype))
    threads, quantized = THREADS[x.dtype], int(bool(call.attrs.get("quantized_state", 0))) * (1 if scales is None else 2)
    group: Dim = batch if quantized else 1
    tasks = directions if quantized else directions * batch
    state = 4 * group * hidden * unit
    fits = lt(state, STATE + 1)
    outs = [*call.outputs, *[None] * 3][:3]
    codes = [int(code) for code, _, _ in call.attrs["activations"]]
    args: tuple[Arg, ...] = (
        Ref("in", 0), turned, *(_at(t, 2 + k) for k, t in enumerate((h0, c0, peepholes, extra, lens))),
        *(Ref("out", k) if o is not None else 0 for k, o in enumerate(outs)), Ref("work", len(work)), Ref("packed", len(packed)),
        length, batch, hidden, directions, *x.strides, *_strides(h0, 3), *_strides(c0, 3), *_strides(peepholes, 2), *_strides(extra, 2),
        *_strides(lens, 1), *_strides(outs[0], 4), *_strides(outs[1], 3), *_strides(outs[2], 3), DIRECTIONS.index(call.attrs["direction"]), group,
        fits, call.attrs.get("linear_before_reset", 0), call.attrs.get("input_forget", 0), *codes, *[0] * (MOST_CODES - len(codes)),
        0 if scales is None else Ref("packed", 1))
    code = kernel("recurrent", "recur", tag, cell.upper(), threads, quantized, threads=threads)
    step = Step(code, args, tasks, threads, threads * gates * unit + select(fits, state, 0))
    return Build((*turning, step), (*work, select(fits, 0, tasks * state)), (*packed, Packed((), lambda: numbers)))


def _transposed(call: Spec, r: Layout, rows: Dim, tag: str) -> tuple[Ref, tuple[Step, ...], tuple[Dim, ...], tuple[Packed, ...]]:
    """Where r lies with its axes swapped; the step, the work area or the constant that it takes."""
    if 1 in call.constants:
        return Ref("packed", 0), (), (), (Packed(("transposed",), partial(_turned, call)),)
    directions, hidden = r.shape[0], r.shape[2]
    args = (Ref("in", 1), Ref("work", 0), directions, rows, hidden, *r.strides)
    tiles = floordiv(rows + 31, 32) * floordiv(hidden + 31, 32)
    step = Step(kernel("recurrent", "turn", tag, threads=TURN_THREADS), args, directions * tiles, TURN_THREADS)
    return Ref("work", 0), (step,), (directions * rows * hidden * size(r.dtype),), ()


def _turned(call: Spec) -> np.ndarray:
    """r [D, gates * H, H] as [D, H, gates * H]."""
    return np.ascontiguousarray(call.constants[1].swapaxes(1, 2))


def _words(call: Spec) -> tuple[Ref, tuple[Step, ...], tuple[Dim, ...], tuple[Packed, ...]]:
    """int8 r [D, gates * H, H] as [D, H / 4, gates * H, 4], with zeros at the end, and the scales of its rows."""
    r, scales = call.constants[1], call.constants[SCALES]

    def words() -> np.ndarray:
        padded = np.pad(r, ((0, 0), (0, 0), (0, -r.shape[2] % 4)))
        return np.ascontiguousarray(padded.reshape(*r.shape[:2], -1, 4).swapaxes(1, 2))
    return Ref("packed", 0), (), (), (Packed(("words",), words), Packed(("scales",), lambda: np.ascontiguousarray(scales)))


def _at(layout: Layout | None, number: int) -> Arg:
    return 0 if layout is None else Ref("in", number)


def _strides(layout: Layout | None, rank: int) -> Sequence[Dim]:
    return (0,) * rank if layout is None else layout.strides


__all__ = ["build_cell", "supports"]
