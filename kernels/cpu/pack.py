"""Copies matrices into the form the contraction kernel reads: blocks of whole vectors, widened to the compute type."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Arg, Kernel, Layout, Ref, Step

ROWS = 256


@dataclass(frozen=True)
class Form:
    """dst[batch, block, row, lane] = src[batch, row, block * width + lane], 0 past the last lane.

    `unit` is the source axis with stride 1: lane, row or none."""

    stored: str
    dtype: str
    unit: str
    batch: int
    names: tuple[str, ...]


def block(dtype: str) -> int:
    """Lanes of one block: the columns of a panel."""
    from gpuonnx.kernels.cpu.micro import panel_of
    return panel_of(dtype)


def step(source: Ref, layout: Layout, axes: tuple[int, int], into: Ref, dtype: str, row: Dim, next_block: Dim, matrix: Dim) -> Step:
    """Copy `layout`: `axes` names its row and lane axes, the others are batch axes and come out dense, `matrix` bytes each.
    `row` and `next_block` are the byte strides of the copy."""
    from gpuonnx.kernels.cpu.micro import target
    unit, rank = size(layout.dtype), len(layout.shape)
    rows_axis, lane_axis = (k % rank for k in axes)
    rows, lanes = layout.shape[rows_axis], layout.shape[lane_axis]
    chunks, blocks = floordiv(rows + ROWS - 1, ROWS), floordiv(lanes + block(dtype) - 1, block(dtype))
    args: dict[str, Arg] = {
        "src": source, "dst": into, "rows": rows, "lanes": lanes, "chunks": chunks, "blocks": blocks,
        "src.row": layout.strides[rows_axis] * unit, "src.lane": layout.strides[lane_axis] * unit,
        "dst.row": row, "dst.block": next_block, "dst.matrix": matrix}
    count: Dim = 1
    batch = [k for k in range(rank) if k not in (rows_axis, lane_axis)]
    for i, k in enumerate(batch):
        count = count * layout.shape[k]
        args |= {f"size{i}": layout.shape[k], f"src.{i}": layout.strides[k] * unit}
    strides = {"lane": layout.strides[lane_axis], "row": layout.strides[rows_axis]}
    along = next((name for name, s in strides.items() if isinstance(s, int) and s == 1), "none")
    form = Form(layout.dtype, dtype, along, len(batch), tuple(args))
    kernel = Kernel("pack", (form, target()), "llvm", lambda symbol: text(form, symbol))
    return Step(kernel, tuple(args.values()), count * chunks * blocks)


def text(form: Form, symbol: str) -> str:
    import llvmlite.ir as ir

    from gpuonnx.kernels.cpu.micro import VECTORS, entry, lanes_of
    module = ir.Module(symbol)
    b, _, task = entry(module, symbol, lanes_of(form.dtype), form.names)
    matrix, chunk, number = b.coordinates(task, [None, b.word("chunks"), b.word("blocks")])
    where = b.coordinates(matrix, [b.word(f"size{i}") for i in range(form.batch)])
    source = b.word("src")
    for i, coordinate in enumerate(where):
        source = b.add(source, b.mul(coordinate, b.word(f"src.{i}")))
    target = b.add(b.add(b.word("dst"), b.mul(matrix, b.word("dst.matrix"))), b.mul(number, b.word("dst.block")))
    first = b.mul(chunk, b.i64(ROWS))
    last = b.least(b.add(first, b.i64(ROWS)), b.word("rows"))
    for j in range(VECTORS):
        lane = b.add(b.mul(number, b.i64(VECTORS * b.width)), b.i64(j * b.width))
        here = b.add(source, b.mul(lane, b.word("src.lane")))
        left = b.sub(b.word("lanes"), lane)
        column(b, form, here, b.add(target, b.i64(j * b.width * size(form.dtype))), left, first, last)
    b.ret_void()
    return str(module)


def column(b: Any, form: Form, source: Any, target: Any, left: Any, first: Any, last: Any) -> None:
    """One vector of lanes, rows `first` to `last`."""
    if form.unit == "row":
        return transposed(b, form, source, target, left, first, last)
    mask = b.lanes_below(left)
    with b.loop(first, last, 1) as r:
        here = b.address(b.add(source, b.mul(r, b.word("src.row"))))
        if form.unit == "lane":
            raw = b.read(here, form.stored, mask)
        else:
            offsets = b.mul(b.iota(), b.splat(b.sdiv(b.word("src.lane"), b.i64(size(form.stored)))))
            raw = b.gather(here, offsets, form.stored, mask)
        b.write(b.widen(raw, form.stored), b.address(b.add(target, b.mul(r, b.word("dst.row")))), form.dtype)


def transposed(b: Any, form: Form, source: Any, target: Any, left: Any, first: Any, last: Any) -> None:
    """Squares of `width` rows and lanes: read along rows, transpose, write along lanes."""
    enough = b.icmp_signed(">=", left, b.i64(b.width))
    whole = b.select(enough, b.sub(last, b.srem(b.sub(last, first), b.i64(b.width))), first)
    with b.loop(first, whole, b.width) as r:
        square(b, form, source, target, r)
    with b.loop(whole, last, b.width) as r:
        square(b, form, source, target, r, b.sub(last, r), left)


def square(b: Any, form: Form, source: Any, target: Any, r: Any, rows: Any = None, left: Any = None) -> None:
    """One of them from row `r`: all of it, or `rows` rows and `left` lanes."""
    import llvmlite.ir as ir
    inside = None if rows is None else b.lanes_below(rows)
    here, lines = b.add(source, b.mul(r, b.i64(size(form.stored)))), []
    for lane in range(b.width):
        mask = None if rows is None else b.and_(inside, b.splat(b.icmp_signed(">", left, b.i64(lane))))
        lines.append(b.widen(b.read(b.address(here), form.stored, mask), form.stored))
        here = b.add(here, b.word("src.lane"))
    for k, line in enumerate(b.transpose(lines)):
        where = b.address(b.add(target, b.mul(b.add(r, b.i64(k)), b.word("dst.row"))))
        if rows is None:
            b.write(line, where, form.dtype)
            continue
        live = b.splat(b.icmp_signed(">", rows, b.i64(k)))
        b.write(line, where, form.dtype, b.and_(live, ir.Constant(live.type, [True] * b.width)))
