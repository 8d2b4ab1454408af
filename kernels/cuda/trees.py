"""Call "trees": x [N, F], columns i32 [K, 2] (feature; 1: a NaN reads as -inf), nodes i32 [M, 3] (column, node if x <= threshold, node if
not; a leaf: -1 and the range of its entries), thresholds [M], roots i32 [T], leaf targets i32 [L], leaf weights [L] -> scores
[N, targets]; all but x are constants. attrs: aggregate (0 sum, 1 average, 2 min, 3 max).

A thread takes a row through all trees or, where rows are few, through one of PARTS parts of them.
"""
from __future__ import annotations

from functools import partial

import numpy as np

from gpuonnx.ir.dims import Dim, floordiv, lt, select
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Build, Packed, Ref, Spec, Step
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.source import kernel

THREADS = 256
SHARED = 32 << 10
FOLDS = ("SUM", "SUM", "MIN", "MAX")
AVERAGE = 1
PARTS, MANY = 64, 4096


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    nodes = call.inputs[2]
    if x is None or x.dtype not in ("f32", "f64"):
        return "tree ensembles compute in float32 or float64"
    return None if nodes is not None and nodes.dtype == "i32" else "forests on CUDA are tables of x <= threshold"


def build(call: Spec) -> Build:
    x, out = call.inputs[0], call.outputs[0]
    assert x is not None
    columns, nodes, thresholds, roots, targets, weights = (call.constants[k] for k in range(1, 7))
    rows, count, unit, trees = x.shape[0], out.shape[1], size(x.dtype), len(roots)
    parts = min(PARTS, 1 << max(trees - 1, 0).bit_length())
    segments: Dim = select(lt(rows, MANY), parts, 1)
    blocks = floordiv(rows * segments + THREADS - 1, THREADS)
    room = 2 * count * THREADS * unit
    fits = lt(room, SHARED + 1)
    args = (Ref("in", 0), Ref("packed", 0), *(Ref("packed", k) for k in range(1, 4)), Ref("out", 0), Ref("work", 0), rows, trees, count,
            *x.strides, *out.strides, parts, segments, fits, int(call.attrs["aggregate"] == AVERAGE))
    one = int(isinstance(count, int) and count == 1)
    code = kernel("trees", "walk", TAGS[x.dtype], FOLDS[call.attrs["aggregate"]], one, threads=THREADS, parts=("sort.cuh",))
    packed = (partial(packing, columns, nodes, thresholds), *(partial(np.asarray, a) for a in (roots, targets, weights)))
    return Build((Step(code, args, blocks, THREADS, select(fits, room, 0)),), (select(fits, 0, blocks * room),), tuple(Packed((), p) for p in packed))


def packing(columns: np.ndarray, nodes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """A record a node: column (2 * feature + 1 where a NaN goes to yes; -1: a leaf), yes, no, and the threshold's key (sort.cuh)."""
    column = np.where(nodes[:, 0] < 0, -1, columns[np.maximum(nodes[:, 0], 0)] @ [2, 1]) if len(columns) else nodes[:, 0]
    bits = (thresholds + 0).view(f"u{thresholds.itemsize}")
    sign = bits.dtype.type(1) << bits.dtype.type(8 * thresholds.itemsize - 1)
    key = np.where(bits & sign, ~bits, bits | sign)
    ways = [("column", "i4"), ("yes", "i4"), ("no", "i4")]
    record = [*ways, ("limit", "u4")] if thresholds.itemsize == 4 else [("limit", "u8"), *ways, ("unused", "i4")]
    out = np.zeros(len(nodes), record)
    out["column"], out["yes"], out["no"], out["limit"] = column, nodes[:, 1], nodes[:, 2], key
    return out.view(np.uint8)
