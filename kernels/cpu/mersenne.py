"""Call "mersenne": seed [] (i64; its low 32 bits count) -> u [N], float64: the numbers in [0, 1) that NumPy's RandomState(seed) gives.

MT19937 (Matsumoto and Nishimura, 1998), seeded by init_genrand, 53 bits of two words each. One task: the stream is one recurrence.
"""
from __future__ import annotations

from importlib import import_module

from gpuonnx.kernels.contract import Build, Kernel, Ref, Spec, Step

WORDS = 624


def supports(call: Spec) -> str | None:
    return None if call.outputs[0].dtype == "f64" else "the Mersenne twister gives float64"


def build(call: Spec) -> Build:
    out = call.outputs[0]
    kernel = Kernel("mersenne", (), "numba", lambda symbol: import_module("gpuonnx.kernels.cpu.mersenne_code").run)
    args = (Ref("in", 0), Ref("out", 0), Ref("work", 0), out.shape[0], out.strides[0])
    return Build((Step(kernel, args, 1),), (WORDS * 4,))
