"""The depthwise convolution as vector code."""
from __future__ import annotations

from itertools import product
from typing import Any

import llvmlite.ir as ir

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.depthwise import Shape
from gpuonnx.kernels.cpu.emit import Emitter, weight
from gpuonnx.kernels.cpu.lanes import I64, STORED
from gpuonnx.kernels.cpu.micro import INLINE, Code, entry, lanes_of, target

CHUNK = 64
KEPT_TAPS = 9


def text(shape: Shape, symbol: str) -> str:
    """One task: (batch, place on the outer axes, chunk of channels)."""
    module = ir.Module(symbol)
    b, _, task = entry(module, symbol, lanes_of(shape.dtype), shape.names)
    outer = range(len(shape.outer))
    image, *places, chunk = b.coordinates(task, [None, *(b.word(f"size{k}") for k in outer), b.word("chunks")])
    line = b.add(b.word("x"), b.mul(image, b.word("x.batch")))
    for k, place in enumerate(places):
        line = b.add(line, b.mul(place, b.word(f"x.{k}")))
    frame = b.array(I64, len(shape.epilogue.accesses))
    for k in range(len(shape.epilogue.accesses)):
        where = b.word(f"at{k}")
        for axis, place in enumerate((image, *places)):
            where = b.add(where, b.mul(place, b.word(f"at{k}.{axis}")))
        b.store(where, b.gep(frame, [I64(k)], source_etype=I64))
    first = b.mul(chunk, I64(CHUNK))
    last = b.least(b.add(first, I64(CHUNK)), b.word("channels"))
    side = 8 if target().bytes == 64 else 4
    buffer = b.array(b.vector(STORED[shape.dtype]), side, target().bytes)
    whole = b.add(first, b.and_(b.sub(last, first), I64(-b.width)))
    with b.loop(first, whole, b.width) as channel:
        Line(b, shape, b.add(line, b.mul(channel, I64(size(shape.stored)))), frame, buffer, channel, None).all(side)
    with b.loop(whole, last, b.width) as channel:
        mask = b.lanes_below(b.sub(b.word("channels"), channel))
        Line(b, shape, b.add(line, b.mul(channel, I64(size(shape.stored)))), frame, buffer, channel, mask).all(1)
    b.ret_void()
    return str(module)


class Line:
    """One line of outputs for one vector of channels, of which `mask` tells those that there are (None: all)."""

    def __init__(self, b: Code, shape: Shape, line: Any, frame: Any, buffer: Any, channel: Any, mask: Any) -> None:
        self.b, self.shape, self.line, self.buffer, self.mask = b, shape, line, buffer, mask
        self.emitter = Emitter(b, shape.epilogue, frame, channel, 1, [mask])
        self.emitter.prepare()
        self.taps = list(product(*map(range, shape.outer), range(shape.kernel)))
        self.unit = size(shape.dtype)
        self.weights = b.add(b.word("weights"), b.mul(channel, I64(self.unit)))
        self.start = self.weight(-1)
        self.kept = [self.weight(k) for k in range(len(self.taps))] if len(self.taps) <= KEPT_TAPS else []

    def all(self, side: int) -> None:
        """`side` outputs at a time, then one by one."""
        b, wide, done = self.b, self.b.word("wide"), I64(0)
        for count in dict.fromkeys((side, 1)):
            whole = b.and_(wide, I64(-count))
            with b.loop(done, whole, count) as column:
                self.outputs(column, count)
            done = whole

    def weight(self, tap: int) -> Any:
        """A line of the weights; before the first tap is where the sums start."""
        b = self.b
        return b.read(b.address(b.add(self.weights, b.mul(b.word("weights.line"), I64(tap + 1)))), self.shape.dtype)

    def value(self, here: Any) -> Any:
        b, shape = self.b, self.shape
        return b.convert(b.read(b.address(here), shape.stored, self.mask), shape.stored, shape.dtype)

    def outputs(self, column: Any, count: int) -> None:
        b, shape = self.b, self.shape
        step = b.word("x.column")
        here = b.add(self.line, b.mul(column, b.mul(step, I64(shape.stride))))
        sums = [self.start] * count
        rows: dict[tuple[int, ...], dict[int, Any]] = {}
        for number, (*outer, tap) in enumerate(self.taps):
            values = rows.setdefault(tuple(outer), {})
            factor = self.kept[number] if self.kept else self.weight(number)
            for i in range(count):
                at = i * shape.stride + tap * shape.dilation
                if at not in values:
                    values[at] = self.value(b.add(self.row(here, outer), b.mul(step, I64(at))))
                sums[i] = b.madd(values[at], factor, sums[i])
        self.finish(column, sums)

    def row(self, here: Any, outer: list[int]) -> Any:
        for k, tap in enumerate(outer):
            if tap:
                here = self.b.add(here, self.b.mul(self.b.word(f"tap.{k}"), I64(tap)))
        return here

    def finish(self, column: Any, sums: list[Any]) -> None:
        """A light epilogue straight from registers, a heavy one in a loop over a buffer."""
        b, emitter = self.b, self.emitter
        known = dict(emitter.known)
        if len(sums) == 1 or weight(self.shape.epilogue) <= INLINE:
            for i, total in enumerate(sums):
                emitter.row(b.add(column, I64(i)), i, [total])
        else:
            vector = b.width * self.unit
            for i, total in enumerate(sums):
                b.store(total, b.shifted(self.buffer, i * vector), align=vector)
            with b.counted(I64(len(sums))) as i:
                total = b.load(b.shifted(self.buffer, b.mul(i, I64(vector))), typ=sums[0].type, align=vector)
                emitter.row(b.add(column, i), 0, [total])
        emitter.known = known
