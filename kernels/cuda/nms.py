"""Call "nms": see kernels/cpu/nms.py. Sorted candidates, then one block a batch entry and class."""
from __future__ import annotations

from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Ref, Spec, Step
from gpuonnx.kernels.cpu.nms import supports
from gpuonnx.kernels.cuda.passes import THREADS, merging, tiles_of
from gpuonnx.kernels.cuda.source import kernel

ENTRY = 8


def build(call: Spec) -> Build:
    boxes, scores, overlap, least = (*call.inputs, *[None] * 2)[:4]
    chosen = call.outputs[0]
    assert boxes is not None and scores is not None
    count, segments = boxes.shape[1], scores.shape[0] * scores.shape[1]

    def part(function: str) -> Kernel:
        return kernel("nms", function, parts=("sort.cuh",))

    def given(layout: Layout | None, number: int) -> Arg:
        return 0 if layout is None else Ref("in", number)

    def args(width: int = 0, second: int = 0) -> tuple[Arg, ...]:
        return (Ref("in", 0), Ref("in", 1), given(overlap, 2), given(least, 3), Ref("out", 0), Ref("work", 0), count, scores.shape[1],
                chosen.shape[2], segments, *boxes.strides, *scores.strides, *chosen.strides, call.attrs["centred"], width, second)

    steps = [Step(part("tiles"), args(), segments * tiles_of(count), THREADS), *merging(part("pass"), segments, count, args),
             Step(part("choose"), args(), segments, THREADS)]
    return Build(tuple(steps), (segments * count * 2 * ENTRY,))


__all__ = ["build", "supports"]
