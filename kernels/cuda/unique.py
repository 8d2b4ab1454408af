"""Call "unique": see kernels/cpu/unique.py. A merge sort of row numbers, then sums of where groups begin."""
from __future__ import annotations

from gpuonnx.kernels.contract import Arg, Build, Kernel, Ref, Spec, Step
from gpuonnx.kernels.cpu.unique import supports
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.passes import THREADS, grid, merging, tiles_of
from gpuonnx.kernels.cuda.source import kernel

INDEX = 4


def build(call: Spec) -> Build:
    x = call.inputs[0]
    assert x is not None
    rows, tag = x.shape[0], TAGS[x.dtype]

    def part(function: str, *parameters: str | int) -> Kernel:
        return kernel("unique", function, *parameters, parts=("sort.cuh",))

    def args(width: int = 0, second: int = 0) -> tuple[Arg, ...]:
        return (Ref("in", 0), *(Ref("out", k) for k in range(4)), *(Ref("work", k) for k in range(6)), *x.shape, *x.strides,
                *(o.strides[0] for o in call.outputs[:3]), width, second)

    def step(kernel: Kernel, tasks: Arg) -> Step:
        assert not isinstance(tasks, Ref)
        return Step(kernel, args(), tasks, THREADS)

    tiles, in_order = tiles_of(rows), bool(call.attrs["sorted"])
    ranks = [] if in_order else [step(part("count_firsts"), tiles), step(part("add_up"), 1), step(part("rank_groups"), tiles)]
    steps = [step(part("tiles", tag), tiles), *merging(part("pass", tag), 1, rows, args), step(part("count_groups", tag), tiles),
             step(part("add_up"), 1), step(part("number_groups", tag), tiles), *ranks, step(part("write", int(not in_order)), grid(rows))]
    return Build(tuple(steps), (rows * 2 * INDEX, *[rows * INDEX] * 4, tiles * INDEX))


__all__ = ["build", "supports"]
