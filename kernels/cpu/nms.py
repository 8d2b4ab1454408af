"""Call "nms": boxes [B, N, 4], scores [B, C, N] (f32), overlap limit and least score (f32 scalars; each may be absent) -> boxes
chosen of each class, best first, then -1: [B, C, most] (i64); attrs centred (boxes by centre and size, else by corners).

One task a batch entry and class; its workspace holds the candidates as a heap. Of equal scores the first box comes first.
"""
from __future__ import annotations

from importlib import import_module

from gpuonnx.kernels.contract import Build, Kernel, Layout, Ref, Spec, Step


def supports(call: Spec) -> str | None:
    boxes = call.inputs[0]
    return None if boxes is not None and boxes.dtype == "f32" else "boxes are float32"


def build(call: Spec) -> Build:
    boxes, scores, overlap, least = (*call.inputs, *[None] * 2)[:4]
    chosen = call.outputs[0]
    assert boxes is not None and scores is not None
    given: list[Layout | None] = [overlap, least]
    kernel = Kernel("nms", (), "numba", lambda symbol: import_module("gpuonnx.kernels.cpu.nms_code").kernel())
    args = (Ref("in", 0), Ref("in", 1), *(0 if g is None else Ref("in", 2 + k) for k, g in enumerate(given)), Ref("out", 0), Ref("work", 0),
            boxes.shape[1], scores.shape[1], chosen.shape[2], *boxes.strides, *scores.strides, *chosen.strides, call.attrs["centred"])
    tasks = scores.shape[0] * scores.shape[1]
    return Build((Step(kernel, args, tasks),), (tasks * boxes.shape[1] * 8,))
