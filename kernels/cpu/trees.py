"""Call "trees": x [N, F], nodes i32 [M, 5] (mode, feature, true, false, missing tracks true), thresholds [M], roots i32 [T], leaf targets
i32 [L], leaf weights [L], members (each set: count, values) -> scores [N, targets]; attrs aggregate, trees.

A leaf keeps the range of its entries in (true, false). One task takes a block of rows through all trees.
"""
from __future__ import annotations

from functools import partial
from importlib import import_module

from gpuonnx.ir.dims import floordiv
from gpuonnx.kernels.contract import Build, Kernel, Ref, Spec, Step

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
MEMBER, LEAF = 6, 7
AGGREGATES = ("SUM", "AVERAGE", "MIN", "MAX")
ROWS = 16


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in ("f32", "f64") else "tree ensembles compute in float32 or float64"


def build(call: Spec) -> Build:
    x, out = call.inputs[0], call.outputs[0]
    assert x is not None
    key = (x.dtype,)
    kernel = Kernel("trees", key, "numba", partial(_code, x.dtype))
    args = (*(Ref("in", k) for k in range(7)), Ref("out", 0), x.shape[0], x.shape[1], *x.strides, out.shape[1], *out.strides,
            call.attrs["aggregate"], call.attrs["trees"])
    return Build((Step(kernel, args, floordiv(x.shape[0] + ROWS - 1, ROWS)),))


def _code(dtype: str, symbol: str) -> object:
    return import_module("gpuonnx.kernels.cpu.trees_code").kernel(dtype)
