"""Call "topk": x [rows, n] -> the k best values [rows, k] in order and their positions (i64); attrs largest, sorted.

Of equal values the first comes first; NaN counts as the largest value. One task a row.
"""
from __future__ import annotations

from functools import partial
from importlib import import_module

from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Build, Kernel, Ref, Spec, Step

TYPES = ("f32", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in TYPES else f"topk of {x.dtype if x else 'nothing'}"


def build(call: Spec) -> Build:
    x, values, places = call.inputs[0], call.outputs[0], call.outputs[1]
    assert x is not None
    key = (x.dtype, bool(call.attrs["largest"]))
    kernel = Kernel("topk", key, "numba", partial(_code, key))
    args = (Ref("in", 0), Ref("out", 0), Ref("out", 1), x.shape[1], values.shape[1], *x.strides, *values.strides, *places.strides, size(x.dtype))
    return Build((Step(kernel, args, x.shape[0]),))


def _code(key: tuple[str, bool], symbol: str) -> object:
    return import_module("gpuonnx.kernels.cpu.topk_code").kernel(*key)
