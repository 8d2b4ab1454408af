"""Call "coupling": probabilities [N, P] that the first of each two classes wins, pairs in lexicographic order -> [N, C] probabilities
of the classes (f32). Fixed point of Wu, Lin and Weng (2004), as libsvm: at most 100 rounds, error 0.005 / C. One task a row.
"""
from __future__ import annotations

from importlib import import_module

from gpuonnx.kernels.contract import Build, Kernel, Ref, Spec, Step


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype == "f32" else "pairwise probabilities are float32"


def build(call: Spec) -> Build:
    x, out = call.inputs[0], call.outputs[0]
    assert x is not None
    count = out.shape[1]
    kernel = Kernel("coupling", (), "numba", lambda symbol: import_module("gpuonnx.kernels.cpu.coupling_code").kernel())
    args = (Ref("in", 0), Ref("out", 0), Ref("work", 0), count, *x.strides, *out.strides)
    return Build((Step(kernel, args, x.shape[0]),), (x.shape[0] * count * (count + 1) * 4,))
