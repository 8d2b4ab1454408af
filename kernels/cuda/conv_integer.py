"""Call "conv_integer": exact int32 sums of (x - zx)(w - zw) of bytes, by tensor cores. Padding counts as zx; zw may be one an output channel."""
from __future__ import annotations

from math import prod

from gpuonnx.kernels.contract import Build, Ref, Spec
from gpuonnx.kernels.cuda.conv import axes_of, operands, ragged, shape_reason, taps
from gpuonnx.kernels.cuda.gemm import multiply, reader
from gpuonnx.kernels.cuda.gemm_integer import BYTES, byte_tiles, zero_point, zeros
from gpuonnx.kernels.cuda.product import Text, Tile, choose, launches


def supports(call: Spec) -> str | None:
    x, w = call.inputs[0], call.inputs[1]
    if x is None or w is None or x.dtype not in BYTES or w.dtype not in BYTES:
        return "conv_integer takes bytes"
    return shape_reason(x, w, call)


def build(call: Spec) -> Build:
    x, w = call.inputs[0], call.inputs[1]
    assert x is not None and w is not None
    axes, depth, zero = axes_of(call), w.shape[1] * prod(call.attrs["kernel"]), zero_point(call, 2)
    big, small = byte_tiles(w, x)
    copy = ragged(call)

    def body(text: Text, tile: Tile) -> None:
        operands(text, call, copy)
        w_zero = zero_point(call, 3)
        group = ("x0", axes.ranges[1] * w_zero.strides[0]) if w_zero is not None and w_zero.shape else None
        zeros(text, (w, w_zero, Ref("in", 3)), (x, zero, Ref("in", 2)), group)
        outside = "0" if zero is None else f"at<const Tile::raw>({text.address(Ref('in', 2), zero, [])})[0]"
        multiply(text, tile, reader(tile, 0, False), f"WindowChunks<Tile, {taps(call)}>(image, extent, task, {outside})")
    return launches(call, axes, depth, "i32", choose(axes, depth, big, small, None), "conv.cu", body, copy.packed if copy else ())
