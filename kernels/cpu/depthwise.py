"""Call "conv_depthwise" with as many outputs as channels and constant weights: lanes along the channels, all taps written out.

x lies channels-last with a readable halo. A task is one line of outputs (the last spatial axis) by CHUNK channels; ROWS outputs of
a line are summed side by side.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.types import numpy_dtype, size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu.conv import output_axes
from gpuonnx.kernels.cpu.emit import Form, analyse, words
from gpuonnx.kernels.cpu.gemm import ceildiv, epilogue_reason, product, same

LINE = 64
MOST_TAPS = 64


@dataclass(frozen=True)
class Shape:
    """What is compiled in: type, window of the outer axes, window, stride and dilation of the last one, epilogue, names of the words."""

    dtype: str
    outer: tuple[int, ...]
    kernel: int
    stride: int
    dilation: int
    epilogue: Form
    names: tuple[str, ...]


def supports(call: Spec) -> str | None:
    x, w = call.inputs[0], call.inputs[1]
    if x is None or w is None or x.dtype not in ("f32", "f64") or w.dtype != x.dtype:
        return "this kernel takes f32 or f64"
    if 1 not in call.constants or not same(w.shape[0], x.shape[1]) or not same(x.strides[1], 1):
        return "this kernel takes constant weights, one output a channel, channels side by side"
    if math.prod(call.attrs["kernel"]) > MOST_TAPS:
        return f"more than {MOST_TAPS} taps"
    return epilogue_reason(call, x.dtype, output_axes(len(x.shape), 1, call.outputs[0].shape[1]))


def lines(w: np.ndarray, dtype: str) -> np.ndarray:
    """[C, 1, taps...] -> [taps, C], channels filled up to whole cache lines."""
    each = LINE // size(dtype)
    flat = w.reshape(len(w), -1).T
    out = np.zeros((len(flat), -(-len(w) // each) * each), numpy_dtype(dtype))
    out[:, :len(w)] = flat
    return out


def build(call: Spec) -> Build:
    from gpuonnx.kernels.cpu.depthwise_code import CHUNK, text
    from gpuonnx.kernels.cpu.micro import target
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    kernel, strides, dilations, pads = (call.attrs[k] for k in ("kernel", "strides", "dilations", "pads"))
    unit, last, channels, dtype = size(x.dtype), len(kernel) - 1, w.shape[0], x.dtype
    steps = [s * unit for s in x.strides[2:]]
    corner: Dim = 0
    for before, step in zip(pads[:last + 1], steps, strict=True):
        corner = corner - step * before
    chunks = ceildiv(channels, CHUNK)
    args: dict[str, Arg] = {
        "x": Ref("in", 0, corner), "x.batch": x.strides[0] * unit, "x.column": steps[last], "weights": Ref("packed", 0),
        "weights.line": ceildiv(channels * unit, LINE) * LINE, "channels": channels, "chunks": chunks, "wide": out.shape[-1]}
    for k in range(last):
        args |= {f"size{k}": out.shape[2 + k], f"x.{k}": steps[k] * strides[k], f"tap.{k}": steps[k] * dilations[k]}
    plan = analyse(out, call.epilogue, dtype, output_axes(len(x.shape), 1, channels))
    args |= words(plan)
    shape = Shape(dtype, tuple(kernel[:last]), kernel[last], strides[last], dilations[last], plan.form(), tuple(args))
    code = Kernel("depthwise", (shape, target()), "llvm", lambda symbol: text(shape, symbol))
    array = call.constants[1]
    packed = Packed(("depthwise", dtype), lambda: lines(array, dtype))
    return Build((Step(code, tuple(args.values()), product((out.shape[0], *out.shape[2:-1], chunks))),), (), (packed,))
