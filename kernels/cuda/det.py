"""Call "det": see kernels/cpu/det.py. A warp a small matrix, a block a larger one."""
from __future__ import annotations

from gpuonnx.ir.dims import floordiv, lt, select
from gpuonnx.kernels.contract import Build, Ref, Spec, Step
from gpuonnx.kernels.cpu.det import supports
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.source import kernel

THREADS, WARP = 256, 32
SMALL, SHARED = 24, 72


def build(call: Spec) -> Build:
    """A warp has matrices up to SMALL, in shared memory up to SHARED (a block's together at most 41 KB)."""
    x = call.inputs[0]
    assert x is not None
    count, size = x.shape[0], x.shape[1]
    small, fits = lt(size, SMALL + 1), lt(size, SHARED + 1)
    per = select(small, THREADS // WARP, 1)
    nbytes = size * size * 8
    args = (Ref("in", 0), Ref("out", 0), Ref("work", 0), count, size, *x.strides, *call.outputs[0].strides, select(small, WARP, THREADS), fits)
    step = Step(kernel("det", "eliminate", TAGS[x.dtype], threads=THREADS), args, floordiv(count + per - 1, per), THREADS,
                select(fits, per * nbytes, 0))
    return Build((step,), (select(fits, 0, count * nbytes),))


__all__ = ["build", "supports"]
