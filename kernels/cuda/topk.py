"""Call "topk": see kernels/cpu/topk.py. One block a row; more wanted than a tile holds are sorted in passes. Equal values by position."""
from __future__ import annotations

from gpuonnx.ir.dims import Dim, lt, select
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Ref, Spec, Step
from gpuonnx.kernels.cpu.topk import supports
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.passes import THREADS, TILE, grid, merging, tiles_of
from gpuonnx.kernels.cuda.source import kernel

LONG, MANY_THREADS = 16384, 1024


def build(call: Spec) -> Build:
    x, values, places = call.inputs[0], call.outputs[0], call.outputs[1]
    assert x is not None
    (rows, length), wanted, tag, largest = x.shape, values.shape[1], TAGS[x.dtype], int(bool(call.attrs["largest"]))

    def part(function: str, *parameters: str | int, threads: int = THREADS) -> Kernel:
        return kernel("topk", function, tag, *parameters, threads=threads, parts=("sort.cuh",))

    def args(width: int = 0, second: int = 0) -> tuple[Arg, ...]:
        return (Ref("in", 0), Ref("out", 0), Ref("out", 1), Ref("work", 0), rows, length, wanted, *x.strides, *values.strides, *places.strides,
                width, second)

    many, long = lt(TILE, wanted), lt(LONG, length)
    tiles: Dim = select(many, rows * tiles_of(wanted), 0)
    steps = [Step(part("best", largest, THREADS), args(), select(long, 0, rows), THREADS),
             Step(part("best", largest, MANY_THREADS, threads=MANY_THREADS), args(), select(long, rows, 0), MANY_THREADS),
             Step(part("tiles"), args(), tiles, THREADS),
             *merging(part("pass"), rows, wanted, args),
             Step(part("write"), args(), select(many, grid(rows * wanted), 0), THREADS)]
    entry = 2 * max(size(x.dtype), 4)
    return Build(tuple(s for s in steps if not (isinstance(s.tasks, int) and s.tasks == 0)), (select(many, rows * wanted * 2 * entry, 0),))


__all__ = ["build", "supports"]
