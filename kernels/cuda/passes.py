"""The launches that sort more than a tile (sort.cuh): one for tiles, one for each doubling of the runs, none where nothing is left to do."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuonnx.ir.dims import Dim, bounds, dmax, dmin, floordiv, lt, select
from gpuonnx.kernels.contract import Arg, Kernel, Step

TILE, THREADS = 2048, 256
MOST = 1 << 32


def tiles_of(count: Dim) -> Dim:
    found: Dim = floordiv(count + TILE - 1, TILE)
    return found


def merging(kernel: Kernel, segments: Dim, count: Dim, args: Callable[[int, int], Sequence[Arg]]) -> list[Step]:
    """Passes over segments of `count` elements; args(width, second) are a pass' words: runs of `width` lie in the second half or the first."""
    steps, width, second = [], TILE, 0
    largest = bounds(count)[1]
    while width < (MOST if largest is None else min(MOST, largest)):
        blocks = segments * tiles_of(count)
        steps.append(Step(kernel, tuple(args(width, second)), select(lt(width, count), blocks, 0), THREADS))
        width, second = 2 * width, 1 - second
    return steps


def grid(count: Dim, per: int = THREADS) -> Dim:
    """Blocks of a grid-stride loop."""
    found: Dim = dmin(dmax(floordiv(count + per - 1, per), 0), 1 << 16)
    return found
