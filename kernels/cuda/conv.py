"""Call "conv": x[N, C, ...] with w[O, C / group, ...] as a product of w[O, C taps] and windows of x, gathered while they are read.

A group is a batch entry, its output channels are rows, the positions of all images columns. In the text stand the sizes of the window; strides,
dilations, pads and extents are words. Few channels a group (depthwise) are a nest.
"""
from __future__ import annotations

from dataclasses import replace
from math import prod

from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.expr import dim, index
from gpuonnx.ir.types import compute
from gpuonnx.kernels.contract import Build, Layout, Ref, Spec
from gpuonnx.kernels.cuda.gemm import MMA, multiply, reader, tiles_of
from gpuonnx.kernels.cuda.loops import same
from gpuonnx.kernels.cuda.product import CHUNK, Axes, Lines, Text, Tile, choose, launches, lines

FEWEST_ROWS = 8
SPATIAL = 3


def supports(call: Spec) -> str | None:
    x, w = call.inputs[0], call.inputs[1]
    if x is None or w is None or x.dtype != w.dtype or x.dtype not in ("f32", "f64", *MMA):
        return "conv of these types"
    return shape_reason(x, w, call)


def shape_reason(x: Layout, w: Layout, call: Spec) -> str | None:
    """Why a tile of rows and columns does not suit, or None."""
    if not 3 <= len(x.shape) <= 2 + SPATIAL:
        return f"conv over {len(x.shape) - 2} spatial axes"
    each = floordiv(w.shape[0], call.attrs["group"])
    if call.attrs["group"] > 1 and isinstance(each, int) and each < FEWEST_ROWS:
        return "few channels a group are a nest"
    if not all(same(w.strides[k], w.strides[k + 1] * w.shape[k + 1]) for k in range(1, len(w.shape) - 1)):
        return "channels and taps of the weights do not lie in one line"
    return None


def axes_of(call: Spec) -> Axes:
    """Virtual axes: group, channel of the group, image, spatial axes."""
    w, out, group = call.inputs[1], call.outputs[0], call.attrs["group"]
    assert w is not None
    each = floordiv(w.shape[0], group)
    spatial = tuple(range(3, 1 + len(out.shape)))
    channel = index(1) if group == 1 else index(0) * dim(each) + index(1)
    return Axes((group, each, out.shape[0], *out.shape[2:]), (0,), (1,), (2, *spatial), (index(2), channel, *map(index, spatial)))


def build(call: Spec) -> Build:
    x, w = call.inputs[0], call.inputs[1]
    assert x is not None and w is not None
    axes, depth = axes_of(call), w.shape[1] * prod(call.attrs["kernel"])
    copy = ragged(call)
    big, small = tiles_of(x.dtype, (True, True))
    if big is not None:
        few = isinstance(axes.ranges[1], int) and axes.ranges[1] <= small.height
        big = None if few else replace(big, blocks=1)

    def body(text: Text, tile: Tile) -> None:
        operands(text, call, copy)
        window = f"{'WindowChunks' if tile.shared else 'WindowSlice'}<Tile, {taps(call)}>(image, extent, task{', 0' if tile.shared else ''})"
        if tile.shared:
            text.line("NoZeros zeros;")
        multiply(text, tile, reader(tile, 0, False), window)
    return launches(call, axes, depth, compute(x.dtype), choose(axes, depth, big, small, None), "conv.cu", body, copy.packed if copy else ())


def taps(call: Spec) -> str:
    kernel = call.attrs["kernel"]
    return ", ".join(map(str, (*(1,) * (SPATIAL - len(kernel)), *kernel)))


def ragged(call: Spec) -> Lines | None:
    """Constant weights for tensor cores whose lines are no whole chunks, as a copy."""
    w = call.constants.get(1)
    if w is None or w.itemsize > 2:
        return None
    table = w.reshape(w.shape[0], -1)
    return lines(table) if table.shape[1] * table.itemsize % CHUNK else None


def operands(text: Text, call: Spec, copy: Lines | None) -> None:
    """Declare `left`, the weights, and `image`."""
    x, w, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert x is not None and w is not None
    group = text.split_batch((0,))[0]
    each = text.axes.ranges[1]
    ref, strides = (copy.ref, copy.strides) if copy is not None else (Ref("in", 1), w.strides)
    left = text.address(ref, w, [(group, each * strides[0])])
    text.line(f"const Matrix left = {{{left}, {text.words.stride(strides[0])}, {text.words.stride(strides[-1])}}};")
    rank = len(call.attrs["kernel"])

    def three(values: tuple[Dim, ...], missing: int) -> list[str]:
        return [*[str(missing)] * (SPATIAL - rank), *(text.words.stride(v) for v in values)]
    base = text.address(Ref("in", 0), x, [(group, w.shape[1] * x.strides[1])])
    steps = [text.words.word(x.strides[0]), text.words.word(x.strides[1]), *three(x.strides[2:], 0)]
    numbers = [*three(x.shape[2:], 1), *three(out.shape[2:], 1), *three(call.attrs["strides"], 1), *three(call.attrs["dilations"], 1),
               *three(call.attrs["pads"][:rank], 0)]
    text.line(f"const Image image = {{{', '.join([base, *steps, *(f'(int){n}' for n in numbers)])}}};")
