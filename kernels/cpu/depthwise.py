"""Calls "conv_depthwise", and "conv_integer" of one channel a group, with as many outputs as channels and constant weights: lanes along
the channels, all taps written out.

x lies channels-last with a readable halo. A task is one line of outputs (the last spatial axis) by CHUNK channels; `side` outputs of
a line are summed side by side. Products of 8-bit integers are summed in float32, which holds every sum of so few taps exactly; what
the zero point of x takes from each sum is where the sum starts.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, index, load, rewrite
from gpuonnx.ir.types import numpy_dtype, size
from gpuonnx.kernels.contract import Arg, Build, Epilogue, Kernel, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu.conv import output_axes
from gpuonnx.kernels.cpu.emit import Form, analyse, words
from gpuonnx.kernels.cpu.gemm import ceildiv, epilogue_reason, product, same

LINE = 64
MOST_TAPS = 64
BYTES = ("u8", "i8")


@dataclass(frozen=True)
class Shape:
    """What is compiled in: types of x and of the sums, window of the outer axes, window, stride and dilation of the last one, epilogue,
    names of the words."""

    stored: str
    dtype: str
    outer: tuple[int, ...]
    kernel: int
    stride: int
    dilation: int
    epilogue: Form
    names: tuple[str, ...]


def supports(call: Spec) -> str | None:
    x, w = call.inputs[0], call.inputs[1]
    if x is None or w is None or x.dtype not in ("f32", "f64", *BYTES) or (w.dtype not in BYTES if x.dtype in BYTES else w.dtype != x.dtype):
        return "this kernel takes f32, f64 or bytes"
    known = all(k in call.constants and call.constants[k].size in (1, w.shape[0]) for k, v in enumerate(call.inputs[2:], 2) if v is not None)
    if 1 not in call.constants or x.dtype in BYTES and not known:
        return "this kernel takes constant weights and zero points"
    if not same(w.shape[0], x.shape[1]) or not same(w.shape[1], 1) or not same(x.strides[1], 1):
        return "this kernel takes one output a channel, channels side by side"
    if math.prod(call.attrs["kernel"]) > MOST_TAPS:
        return f"more than {MOST_TAPS} taps"
    return epilogue_reason(replace(call, epilogue=epilogue_of(call)), sums(x.dtype), output_axes(len(x.shape), 1, call.outputs[0].shape[1]))


def sums(stored: str) -> str:
    """The type of the sums."""
    return "f32" if stored in BYTES else stored


def epilogue_of(call: Spec) -> Epilogue | None:
    """The epilogue over float sums: what it reads as an i32 is a float that holds the same integer."""
    x, out = call.inputs[0], call.outputs[0]
    if x is None or x.dtype not in BYTES:
        return call.epilogue
    here = load(0, "f32", tuple(map(index, range(len(out.shape)))))
    if call.epilogue is None:
        return Epilogue(cast(here, "i32"))

    def change(e: Expr) -> Expr:
        if e.op == "load" and e.value == 0:
            return cast(here, "i32")
        return here if e.op == "cast" and e.dtype == "f32" and e.args[0] is cast(here, "i32") else e
    return Epilogue(rewrite((call.epilogue.expr,), change)[0], call.epilogue.operands)


def lines(w: np.ndarray, dtype: str, starts: np.ndarray) -> np.ndarray:
    """[C, 1, taps...] -> [1 + taps, C]: where each sum starts, then the taps; channels filled up to whole cache lines."""
    each = LINE // size(dtype)
    flat = np.concatenate([starts[None], w.reshape(len(w), -1).T])
    out = np.zeros((len(flat), -(-len(w) // each) * each), numpy_dtype(dtype))
    out[:, :len(w)] = flat
    return out


def packed_lines(call: Spec, dtype: str) -> np.ndarray:
    """The lines of the constant weights less their zero point, and of what the zero point of x takes from each sum."""
    w, zero, own = (call.constants.get(k) for k in (1, 2, 3))
    assert w is not None
    wide = w.astype(numpy_dtype(dtype))
    if own is not None:
        wide = wide - own.astype(wide.dtype).reshape(-1, *(1,) * (w.ndim - 1))
    starts = np.zeros(len(w), wide.dtype) if zero is None else -zero.astype(wide.dtype).reshape(()) * wide.reshape(len(w), -1).sum(1)
    return lines(wide, dtype, starts)


def build(call: Spec) -> Build:
    from gpuonnx.kernels.cpu.depthwise_code import CHUNK, text
    from gpuonnx.kernels.cpu.micro import target
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    kernel, strides, dilations, pads = (call.attrs[k] for k in ("kernel", "strides", "dilations", "pads"))
    unit, last, channels, dtype = size(x.dtype), len(kernel) - 1, w.shape[0], sums(x.dtype)
    steps = [s * unit for s in x.strides[2:]]
    corner: Dim = 0
    for before, step in zip(pads[:last + 1], steps, strict=True):
        corner = corner - step * before
    chunks = ceildiv(channels, CHUNK)
    args: dict[str, Arg] = {
        "x": Ref("in", 0, corner), "x.batch": x.strides[0] * unit, "x.column": steps[last], "weights": Ref("packed", 0),
        "weights.line": ceildiv(channels * size(dtype), LINE) * LINE, "channels": channels, "chunks": chunks, "wide": out.shape[-1]}
    for k in range(last):
        args |= {f"size{k}": out.shape[2 + k], f"x.{k}": steps[k] * strides[k], f"tap.{k}": steps[k] * dilations[k]}
    plan = analyse(out, epilogue_of(call), dtype, output_axes(len(x.shape), 1, channels))
    args |= words(plan)
    shape = Shape(x.dtype, dtype, tuple(kernel[:last]), kernel[last], strides[last], dilations[last], plan.form(), tuple(args))
    code = Kernel("depthwise", (shape, target()), "llvm", lambda symbol: text(shape, symbol))
    packed = Packed(("depthwise", dtype), lambda: packed_lines(call, dtype))
    return Build((Step(code, tuple(args.values()), product((out.shape[0], *out.shape[2:-1], chunks))),), (), (packed,), call.in_place())
