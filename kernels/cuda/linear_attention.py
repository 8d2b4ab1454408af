"""Call "linear_attention": see kernels/cpu/linear_attention.py. A thread a column of a state."""
from __future__ import annotations

from gpuonnx.ir.dims import lt, select
from gpuonnx.kernels.contract import Build, Spec, Step
from gpuonnx.kernels.cpu.linear_attention import arguments, blocks, supports
from gpuonnx.kernels.cuda.source import kernel

THREADS = 64
SHARED = 160


def build(call: Spec) -> Build:
    """Columns of at most SHARED rows stand in shared memory (40 KB a block)."""
    k = call.inputs[1]
    assert k is not None
    fits = lt(k.shape[3], SHARED + 1)
    step = Step(kernel("linear_attention", "recall", threads=THREADS), (*arguments(call), fits), blocks(call, THREADS), THREADS,
                select(fits, k.shape[3] * THREADS * 4, 0))
    return Build((step,))


__all__ = ["build", "supports"]
