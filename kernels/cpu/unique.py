"""Call "unique": rows [R, W] -> first [R] (where each distinct row first stands), inverse [R] (which distinct row each row is),
counts [R], and how many are distinct (a scalar), all i64; attrs sorted: distinct rows ascend, else they stand in order of appearance.

Elements of `first` and `counts` beyond that number are 0. NaN is the largest value and equal to itself. One task: a merge sort.
"""
from __future__ import annotations

from functools import partial
from importlib import import_module

from gpuonnx.kernels.contract import Build, Kernel, Ref, Spec, Step

TYPES = ("f32", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in TYPES else f"unique of {x.dtype if x else 'nothing'}"


def build(call: Spec) -> Build:
    x = call.inputs[0]
    assert x is not None
    kernel = Kernel("unique", (x.dtype,), "numba", partial(_code, x.dtype))
    args = (Ref("in", 0), *(Ref("out", k) for k in range(4)), Ref("work", 0), *x.shape, *x.strides,
            *(o.strides[0] for o in call.outputs[:3]), call.attrs["sorted"])
    return Build((Step(kernel, args, 1),), (x.shape[0] * 16,))


def _code(dtype: str, symbol: str) -> object:
    return import_module("gpuonnx.kernels.cpu.unique_code").kernel(dtype)
