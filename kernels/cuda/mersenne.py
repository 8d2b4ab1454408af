"""Call "mersenne": seed [] (i64; its low 32 bits count) -> u [N], float64: the numbers in [0, 1) that NumPy's RandomState(seed) gives
(MT19937, Matsumoto and Nishimura, 1998). One block: the stream is one recurrence."""
from __future__ import annotations

from gpuonnx.kernels.contract import Build, Ref, Spec, Step
from gpuonnx.kernels.cuda.source import kernel

THREADS = 256


def supports(call: Spec) -> str | None:
    return None if call.outputs[0].dtype == "f64" else "the Mersenne twister gives float64"


def build(call: Spec) -> Build:
    out = call.outputs[0]
    args = (Ref("in", 0), Ref("out", 0), out.shape[0], out.strides[0])
    return Build((Step(kernel("mersenne", "draw", threads=THREADS), args, 1, THREADS),))
