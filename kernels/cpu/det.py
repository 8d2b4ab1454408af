"""Call "det": x [B, N, N] -> [B], float32 or float64: Gaussian elimination with partial pivoting in float64. One task a matrix."""
from __future__ import annotations

from functools import partial
from importlib import import_module

from gpuonnx.kernels.contract import Build, Kernel, Ref, Spec, Step


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in ("f32", "f64") else "determinants compute in float32 or float64"


def build(call: Spec) -> Build:
    x = call.inputs[0]
    assert x is not None
    kernel = Kernel("det", (x.dtype,), "numba", partial(_code, x.dtype))
    args = (Ref("in", 0), Ref("out", 0), Ref("work", 0), x.shape[1], *x.strides, *call.outputs[0].strides)
    return Build((Step(kernel, args, x.shape[0]),), (x.shape[0] * x.shape[1] * x.shape[1] * 8,))


def _code(dtype: str, symbol: str) -> object:
    return import_module("gpuonnx.kernels.cpu.det_code").kernel(dtype)
