"""Call "coupling": see kernels/cpu/coupling.py. One warp a row."""
from __future__ import annotations

from gpuonnx.ir.dims import floordiv
from gpuonnx.kernels.contract import Build, Ref, Spec, Step
from gpuonnx.kernels.cpu.coupling import supports
from gpuonnx.kernels.cuda.source import kernel

THREADS, ROWS = 256, 8


def build(call: Spec) -> Build:
    x, out = call.inputs[0], call.outputs[0]
    assert x is not None
    rows, count = x.shape[0], out.shape[1]
    args = (Ref("in", 0), Ref("out", 0), Ref("work", 0), rows, count, *x.strides, *out.strides)
    return Build((Step(kernel("coupling", "couple", threads=THREADS), args, floordiv(rows + ROWS - 1, ROWS), THREADS),),
                 (rows * count * (count + 2) * 4,))


__all__ = ["build", "supports"]
