"""Winograd's transforms of inputs and outputs as vector code, lanes along the channels."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

from gpuonnx.kernels.cpu.emit import Emitter, Form
from gpuonnx.kernels.cpu.lanes import I64, STORED
from gpuonnx.kernels.cpu.micro import Code, entry, lanes_of

CHUNK = 64


def forward(b: Code, tile: int, d: Sequence[Any]) -> list[Any]:
    """B^T d: one line of tile + 2 inputs."""
    if tile == 2:
        return [b.fsub(d[0], d[2]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[1], d[3])]

    def times(x: Any, y: Any, c: float) -> Any:
        return b.madd(b.const(c), x, y)
    even, odd = times(d[2], d[4], -4.0), times(d[1], d[3], -4.0)
    far, near = b.fsub(d[4], d[2]), b.fsub(d[3], d[1])
    return [times(d[0], times(d[2], d[4], -5.0), 4.0), b.fadd(even, odd), b.fsub(even, odd), times(near, far, 2.0), times(near, far, -2.0),
            times(d[1], times(d[3], d[5], -5.0), 4.0)]


def backward(b: Code, tile: int, d: Sequence[Any]) -> list[Any]:
    """A^T d: one line of `tile` outputs."""
    if tile == 2:
        return [b.fadd(b.fadd(d[0], d[1]), d[2]), b.fsub(b.fsub(d[1], d[2]), d[3])]

    def times(x: Any, y: Any, c: float) -> Any:
        return b.madd(b.const(c), x, y)
    p, q, r, t = b.fadd(d[1], d[2]), b.fsub(d[1], d[2]), b.fadd(d[3], d[4]), b.fsub(d[3], d[4])
    return [b.fadd(b.fadd(d[0], p), r), times(t, q, 2.0), times(r, p, 4.0), b.fadd(times(t, q, 8.0), d[5])]


def both(b: Code, line: Any, tile: int, square: list[list[Any]]) -> list[list[Any]]:
    """The transform along columns, then along rows; square[y][x]."""
    columns = [line(b, tile, [row[x] for row in square]) for x in range(len(square))]
    return [line(b, tile, [column[y] for column in columns]) for y in range(len(columns[0]))]


@contextmanager
def vectors(b: Code, chunk: Any) -> Iterator[tuple[Any, Any]]:
    """Each vector of a chunk of channels: its first channel and the mask of those that exist."""
    first = b.mul(chunk, I64(CHUNK))
    last = b.least(b.add(first, I64(CHUNK)), b.word("channels"))
    with b.loop(first, last, b.width) as channel:
        yield channel, b.lanes_below(b.sub(b.word("channels"), channel))


def inputs_text(tile: int, names: tuple[str, ...], symbol: str) -> str:
    """matrix[place, tile, channel] from tiles of x; a task is (batch, row of tiles, chunk of channels)."""
    module = ir.Module(symbol)
    b, _, task = entry(module, symbol, lanes_of("f32"), names)
    image, row, chunk = b.coordinates(task, [None, b.word("high"), b.word("chunks")])
    line, column, place = b.word("line"), b.word("x.column"), b.word("place")
    corner = b.add(b.add(b.word("x"), b.mul(image, b.word("x.batch"))), b.mul(row, b.mul(b.word("x.row"), I64(tile))))
    tiles = b.mul(b.add(b.mul(image, b.word("high")), row), b.word("wide"))
    target = b.add(b.word("matrix"), b.mul(tiles, line))
    with vectors(b, chunk) as (channel, mask), b.counted(b.word("wide")) as number:
        lanes = b.mul(channel, I64(4))
        here = b.add(b.add(corner, lanes), b.mul(number, b.mul(column, I64(tile))))
        square = []
        for _ in range(tile + 2):
            starts = [b.add(here, b.mul(column, I64(x))) for x in range(tile + 2)]
            square.append([b.read(b.address(s), "f32", mask) for s in starts])
            here = b.add(here, b.word("x.row"))
        into = b.add(b.add(target, lanes), b.mul(number, line))
        for row_values in both(b, forward, tile, square):
            for value in row_values:
                b.write(value, b.address(into), "f32")
                into = b.add(into, place)
    b.ret_void()
    return str(module)


def outputs_text(tile: int, form: Form, names: tuple[str, ...], symbol: str) -> str:
    """Outputs from matrix[place, tile, channel] by way of a small buffer: the epilogue runs over the pixels that exist."""
    module = ir.Module(symbol)
    b, _, task = entry(module, symbol, lanes_of("f32"), names)
    image, row, chunk = b.coordinates(task, [None, b.word("high"), b.word("chunks")])
    kind = b.vector(STORED["f32"])
    vector = b.width * 4
    buffer = b.array(kind, tile * tile, vector)
    frame = b.array(I64, len(form.accesses))
    top = b.mul(row, I64(tile))
    rows = b.least(I64(tile), b.sub(b.word("out.high"), top))
    tiles = b.mul(b.add(b.mul(image, b.word("high")), row), b.word("wide"))
    source = b.add(b.word("matrix"), b.mul(tiles, b.word("line")))
    with vectors(b, chunk) as (channel, mask), b.counted(b.word("wide")) as number:
        here = b.add(b.add(source, b.mul(channel, I64(4))), b.mul(number, b.word("line")))
        square: list[list[Any]] = []
        for _ in range(tile + 2):
            square.append([])
            for _ in range(tile + 2):
                square[-1].append(b.read(b.address(here), "f32"))
                here = b.add(here, b.word("place"))
        for k, value in enumerate(v for line in both(b, backward, tile, square) for v in line):
            b.store(value, b.shifted(buffer, k * vector), align=vector)
        left = b.mul(number, I64(tile))
        columns = b.least(I64(tile), b.sub(b.word("out.wide"), left))
        with b.counted(rows) as y:
            place_frame(b, form, frame, image, b.add(top, y))
            finish(b, form, frame, channel, mask, left, columns, b.shifted(buffer, b.mul(y, I64(tile * vector))))
    b.ret_void()
    return str(module)


def place_frame(b: Code, form: Form, frame: Any, image: Any, row: Any) -> None:
    """Address of every access at one row of one image."""
    for k in range(len(form.accesses)):
        where = b.add(b.word(f"at{k}"), b.add(b.mul(image, b.word(f"at{k}.0")), b.mul(row, b.word(f"at{k}.1"))))
        b.store(where, b.gep(frame, [I64(k)], source_etype=I64))


def finish(b: Code, form: Form, frame: Any, channel: Any, mask: Any, left: Any, columns: Any, line: Any) -> None:
    """The epilogue of `columns` pixels from column `left` on."""
    emitter = Emitter(b, form, frame, channel, 1, [mask])
    emitter.prepare()
    kind, vector = b.vector(STORED["f32"]), b.width * 4
    with b.counted(columns) as x:
        known = dict(emitter.known)
        emitter.row(b.add(left, x), 1, [b.load(b.shifted(line, b.mul(x, I64(vector))), typ=kind, align=vector)])
        emitter.known = known
