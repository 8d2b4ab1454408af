"""Call "conv_winograd": a 3x3 convolution with stride 1 and constant weights as F(m x m, 3 x 3), m = 2 or 4 (attrs "tile").

Three steps: tiles of (m+2)^2 inputs become (m+2)^2 matrices [tiles, C]; each is multiplied by its own [C, O]; tiles of products
become m^2 outputs, which go through the epilogue. x lies channels-last, and its halo is readable `reach(m)` past the pads.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu.conv import output_axes
from gpuonnx.kernels.cpu.emit import analyse, identity, words
from gpuonnx.kernels.cpu.gemm import Axis, Problem, ceildiv, contraction, epilogue_reason, pack_constant

LINE = 64
LEAST_CHANNELS = 32
HEAVY_WEIGHTS = 10 << 20
WEIGHT_READ = 10
TRANSFORM = 16
WORTH = 0.8
MOST_WORK = 1 << 28


def preferred_tile(in_channels: int, out_channels: int, tiles: Callable[[int], int] | None = None) -> int:
    """m by which a layer with this many channels runs fastest, 0 where the direct kernel does; `tiles(m)` says how many tiles
    of m x m outputs there are, where that is known. No layer gets more than MOST_WORK bytes of working memory."""
    if min(in_channels, out_channels) < LEAST_CHANNELS:
        return 0
    if tiles is None:
        return 4 if 36 * 4 * in_channels * out_channels <= HEAVY_WEIGHTS else 2
    transforms = TRANSFORM * (1 / in_channels + 1 / out_channels)
    cost = {m: (m + 2) ** 2 * (max(tiles(m), WEIGHT_READ) + transforms * tiles(m)) for m in (2, 4)}
    best = min(cost, key=lambda m: cost[m])
    if (best + 2) ** 2 * tiles(best) * 4 * (in_channels + out_channels) > MOST_WORK:
        return 0
    return best if cost[best] < WORTH * 9 * max(tiles(1), WEIGHT_READ) else 0


def reach(tile: int) -> int:
    """Elements read past the pads at the end of both spatial axes, at most."""
    return tile - 1


def supports(call: Spec) -> str | None:
    x, w = call.inputs[0], call.inputs[1]
    if x is None or w is None or x.dtype != "f32" or w.dtype != "f32" or len(x.shape) != 4:
        return "conv_winograd takes f32 images"
    a = call.attrs
    if tuple(a["kernel"]) != (3, 3) or {*a["strides"], *a["dilations"], a["group"]} != {1} or a.get("tile") not in (2, 4):
        return "conv_winograd does 3x3 windows with stride 1 by tiles of 2 or 4"
    return epilogue_reason(call, "f32", output_axes(4, 1, call.outputs[0].shape[1]))


def weight_transform(tile: int) -> np.ndarray:
    """G of F(tile, 3), float64 [tile + 2, 3]."""
    if tile == 2:
        return np.array([[1, 0, 0], [.5, .5, .5], [.5, -.5, .5], [0, 0, 1]])
    return np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24


def transformed_weights(w: np.ndarray, tile: int) -> np.ndarray:
    """[O, C, 3, 3] -> f32 [(tile + 2)^2, C, O]"""
    g = weight_transform(tile)
    places = np.einsum("ai,ocij,bj->abco", g, w.astype(np.float64), g, optimize=True)
    matrices: np.ndarray = places.reshape(len(g) ** 2, w.shape[1], w.shape[0]).astype(np.float32)
    return matrices


def line_of(channels: Dim) -> Dim:
    """Bytes from one tile to the next in a matrix: whole vectors, no multiple of a page's quarter."""
    line = ceildiv(channels, LINE // 4) * LINE
    return line + LINE if isinstance(line, int) and line % 1024 == 0 else line


def build(call: Spec) -> Build:
    from gpuonnx.kernels.cpu.micro import panel_of
    x, w, out, tile = call.inputs[0], call.inputs[1], call.outputs[0], call.attrs["tile"]
    assert x is not None and w is not None
    batch, channels, columns = x.shape[0], w.shape[1], w.shape[0]
    high, wide = ceildiv(out.shape[2], tile), ceildiv(out.shape[3], tile)
    places, tiles, nr = (tile + 2) ** 2, batch * high * wide, panel_of("f32")
    a_line, c_line = line_of(channels), line_of(columns)
    a, c = Ref("work", 0), Ref("work", 1)
    sizes: dict[str, Arg] = {"high": high, "wide": wide}
    elements = floordiv(c_line, 4)
    product = Layout("f32", (places, tiles, columns), (tiles * elements, elements, 1))
    plan = analyse(product, None, "f32", identity(3))
    plan = replace(plan, operands=tuple(replace(o, ref=c) for o in plan.operands))
    axes = (Axis(places, tiles * a_line, ceildiv(columns, nr) * channels * nr * 4), Axis(tiles, a_line, 0))
    weights = call.constants[1]
    packed = Packed(("winograd", tile, nr), lambda: pack_constant(transformed_weights(weights, tile), "f32", nr))
    steps = (
        inputs_step(call, a, sizes | {"channels": channels, "line": a_line, "place": tiles * a_line}, batch * high),
        contraction(Problem("f32", a, Ref("packed", 0), axes, columns, (), channels, plan)),
        outputs_step(call, c, sizes | {"channels": columns, "line": c_line, "place": tiles * c_line}, batch * high))
    return Build(steps, (places * tiles * a_line, places * tiles * c_line), (packed,), call.in_place())


def inputs_step(call: Spec, into: Ref, sizes: dict[str, Arg], rows: Dim) -> Step:
    """Tiles of x to matrices; a task is one row of tiles by CHUNK channels."""
    from gpuonnx.kernels.cpu.micro import target
    from gpuonnx.kernels.cpu.winograd_code import CHUNK, inputs_text
    x, tile, pads = call.inputs[0], call.attrs["tile"], call.attrs["pads"]
    assert x is not None
    batch, _, row, column = (s * 4 for s in x.strides)
    chunks = ceildiv(x.shape[1], CHUNK)
    args: dict[str, Arg] = sizes | {
        "chunks": chunks, "x": Ref("in", 0, -pads[0] * row - pads[1] * column), "x.batch": batch, "x.row": row, "x.column": column,
        "matrix": into}
    names = tuple(args)
    kernel = Kernel("winograd inputs", (tile, names, target()), "llvm", lambda symbol: inputs_text(tile, names, symbol))
    return Step(kernel, tuple(args.values()), rows * chunks)


def outputs_step(call: Spec, source: Ref, sizes: dict[str, Arg], rows: Dim) -> Step:
    """Matrices to tiles of the output, through the epilogue."""
    from gpuonnx.kernels.cpu.micro import target
    from gpuonnx.kernels.cpu.winograd_code import CHUNK, outputs_text
    out, tile = call.outputs[0], call.attrs["tile"]
    plan = analyse(out, call.epilogue, "f32", output_axes(4, 1, out.shape[1]))
    chunks = ceildiv(out.shape[1], CHUNK)
    args: dict[str, Arg] = sizes | {"chunks": chunks, "matrix": source, "out.high": out.shape[2], "out.wide": out.shape[3]} | words(plan)
    names, form = tuple(args), plan.form()
    kernel = Kernel("winograd outputs", (tile, form, names, target()), "llvm", lambda symbol: outputs_text(tile, form, names, symbol))
    return Step(kernel, tuple(args.values()), rows * chunks)

