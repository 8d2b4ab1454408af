"""Call "trees": x [N, F], columns i32 [K, 2] (feature; 1: a NaN reads as -inf), nodes i32 [M, 3] (column, node if x <= threshold, node if
not; a leaf: -1 and the range of its entries), thresholds [M], roots i32 [T], leaf targets i32 [L], leaf weights [L] -> scores
[N, targets]; all but x are constants. attrs: aggregate (0 sum, 1 average, 2 min, 3 max).

Rows go in blocks. Each block's columns are copied to groups of LANES rows; then LANES rows walk one tree at a time, a few trees of one cache
at a time, or, in blocks of few rows, one row walks LANES trees. Leaves are summed by segments of trees and the segments at the end:
the order depends on the forest alone, however the work is split.
"""
from __future__ import annotations

from functools import partial

import numpy as np

from gpuonnx.ir.dims import Dim, dmax, dmin, floordiv
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu.tree_layout import LANES, Packing, pack

STRANDS = 64
TASKS = 16
STEPS_A_TASK = 8192
BUFFER_BYTES = 1 << 17
MOST_ROWS = 256


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in ("f32", "f64") else "tree ensembles compute in float32 or float64"


def shares(p: Packing, rows: Dim, column_bytes: int, unit: int) -> tuple[Dim, Dim, Dim, Dim]:
    """Rows of a block, blocks, how many of them stand in memory at once, and tasks that share the segments of each: by sizes alone."""
    segments = len(p.segments) - 1
    most = max(LANES, min(MOST_ROWS, BUFFER_BYTES // max(column_bytes, segments * p.stride * unit) // LANES * LANES))
    least = min(most, LANES * -(-STEPS_A_TASK // (LANES * max(1, p.steps))))
    tasks = LANES * -(-TASKS // segments)
    block = dmin(most, dmax(least, LANES * floordiv(rows + tasks - 1, tasks)))
    blocks = floordiv(rows + block - 1, block)
    splits = dmin(segments, floordiv(rows * p.steps, STEPS_A_TASK), floordiv(STRANDS, dmax(1, blocks)))
    return block, blocks, dmin(blocks, STRANDS), dmax(1, splits)


def build(call: Spec) -> Build:
    x, out = call.inputs[0], call.outputs[0]
    assert x is not None
    unit, rows, aggregate = size(x.dtype), x.shape[0], call.attrs["aggregate"]
    columns, nodes, thresholds, roots, targets, weights = (call.constants[k] for k in range(1, 7))
    fold = "sum" if aggregate < 2 else "min" if aggregate == 2 else "max"
    count = out.shape[1]
    assert isinstance(count, int)
    p = pack(nodes, thresholds, roots, targets, weights, count, fold)
    segments = len(p.segments) - 1
    block, blocks, strands, splits = shares(p, rows, (len(columns) + 1) * unit, unit)
    args: dict[str, Arg] = {
        "x": Ref("in", 0), "columns": Ref("in", 1), "nodes": Ref("packed", 0), "trees": Ref("packed", 1), "chunks": Ref("packed", 2),
        "segments": Ref("packed", 3), "weights": Ref("packed", 4), "ranges": Ref("packed", 5), "out": Ref("out", 0),
        "partial": Ref("work", 0), "buffer": Ref("work", 1), "rows": rows, "width": len(columns), "x.row": x.strides[0] * unit,
        "x.column": x.strides[1] * unit, "targets": count, "stride": p.stride, "leaves": p.leaves,
        "out.row": out.strides[0] * unit, "out.column": out.strides[1] * unit, "block": block, "blocks": blocks, "strands": strands,
        "splits": splits, "parts": segments, "pieces": len(p.chunks) - 1, "count": len(roots)}
    form = (x.dtype, p.form, fold, aggregate == 1, tuple(args))

    def kernel(part: str) -> Kernel:
        from gpuonnx.kernels.cpu.trees_code import Trees
        return Kernel(part, form, "llvm", lambda symbol: Trees(*form).text(part, symbol))
    words = tuple(args.values())
    steps = [Step(kernel("trees"), words, strands * splits)]
    if segments > 1:
        steps.append(Step(kernel("trees_sum"), words, strands * dmin(1, splits - 1)))
    tables = (p.nodes, p.trees, p.chunks, p.segments, p.weights, p.ranges)
    work = (strands * segments * block * p.stride * unit, strands * splits * block * (len(columns) + 1) * unit)
    return Build(tuple(steps), work, tuple(Packed((), partial(np.asarray, table)) for table in tables))
