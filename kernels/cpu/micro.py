"""The contraction kernel: out[b, m, n] = epilogue(sum over taps t and k of A[b, m, t, k] * B[n-panel, t, k, n]).

A tile of `rows` x `vectors` accumulators lives in registers; A is read one scalar at a time (k has unit stride), B from
panels of `vectors` whole vectors. GEMM, convolution and Winograd's products are this with other strides. Every size and
stride is a word of `args`; compiled in are the element type, how many loops of taps there are, and the epilogue.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as binding
import llvmlite.ir as ir

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.emit import Emitter, Form, weight
from gpuonnx.kernels.cpu.lanes import I32, I64, PTR, STORED, Lanes

UNROLL = {1: 8, 2: 4}
ROW_GROUP = 5
INLINE = 8


@dataclass(frozen=True)
class Target:
    """What the host's vector unit offers: bytes a vector, accumulator rows of the largest tile by the vectors of a row, fused multiply-add,
    dot products of bytes."""

    bytes: int
    rows: tuple[int, ...]
    fma: bool
    vnni: bool
    name: str

    def tile(self, vectors: int) -> int:
        """Rows of the largest tile of `vectors` vectors a row."""
        return self.rows[vectors - 1]

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 16 if self.name in ("avx2", "sse") else 32


@cache
def features() -> dict[str, bool]:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return dict(binding.get_host_cpu_features())


@cache
def target() -> Target:
    has = features()
    x86 = "sse2" in has
    if has.get("avx512f") and has.get("avx512bw") and has.get("avx512vl"):
        return Target(64, (16, 14, 9), True, bool(has.get("avx512vnni")), "avx512")
    if has.get("avx2"):
        return Target(32, (12, 6, 4), bool(has.get("fma")), False, "avx2")
    return Target(16, (12, 6, 4) if x86 else (16, 8, 6), not x86, False, "sse" if x86 else "neon")


VECTORS = 2


def lanes_of(dtype: str) -> int:
    return target().bytes // size(dtype)


def panel_of(dtype: str) -> int:
    """Columns of one B panel."""
    return VECTORS * lanes_of(dtype)


class Code(Lanes):
    """Lanes with the words of `args` by name, byte addresses and plain integer arithmetic."""

    i64_type = I64

    def __init__(self, block: Any, width: int, args: Any, names: Sequence[str]) -> None:
        super().__init__(block, width, True, features())
        self.args, self.places, self.read_words = args, {n: k for k, n in enumerate(names)}, dict[str, Any]()
        self.fused = target().fma

    def i64(self, number: int) -> Any:
        return I64(number)

    def word(self, name: str) -> Any:
        """A word of `args`, read once, where the function begins."""
        if name not in self.read_words:
            with self.goto_entry_block():
                self.read_words[name] = self.load(self.gep(self.args, [I64(self.places[name])], source_etype=I64), typ=I64)
        return self.read_words[name]

    def address(self, number: Any) -> Any:
        return self.inttoptr(number, PTR)

    def shifted(self, pointer: Any, offset: Any) -> Any:
        """`offset` bytes further."""
        offset = I64(offset) if isinstance(offset, int) else offset
        return self.gep(pointer, [offset], source_etype=ir.IntType(8))

    def array(self, kind: Any, count: int, align: int = 8) -> Any:
        """An opaque pointer to `count` elements on the stack."""
        with self.goto_entry_block():
            room = self.alloca(ir.ArrayType(kind, count))
            room.align = align
            where = self.gep(room, [I64(0)], source_etype=kind)
            where.type = PTR
            return where

    def opaque(self, pointer: Any) -> Any:
        """The same pointer, of which the optimiser knows nothing: keeps it from chaining the addresses of a tile's rows."""
        hidden = ir.InlineAsm(ir.FunctionType(PTR, [PTR]), "", "=r,0")
        return self.call(hidden, [pointer])

    def least(self, a: Any, b: Any) -> Any:
        return self.select(self.icmp_signed("<", a, b), a, b)

    def madd(self, a: Any, b: Any, c: Any) -> Any:
        return self.fma(a, b, c) if self.fused else self.fadd(self.fmul(a, b), c)

    def scalar(self, here: Any, stored: str, mask: Any = None) -> Any:
        """One element; where `mask` forbids every lane it reads the argument block instead."""
        pointer = self.address(here)
        if mask is not None:
            pointer = self.select(self.intrinsic("llvm.vector.reduce.or", mask, result=ir.IntType(1)), pointer, self.args)
        return self.load(pointer, typ=STORED[stored], align=size(stored))

    def lanes_below(self, left: Any, first: int = 0) -> Any:
        """Mask of the lanes whose number, counted from `first`, is below `left`."""
        left = self.trunc(self.least(left, I64(1 << 20)), I32)
        return self.icmp_signed("<", self.add(self.iota("i32"), self.const(first, "i32")), self.splat(left))

    @contextmanager
    def counted(self, stop: Any, step: int = 1) -> Iterator[Any]:
        with self.loop(I64(0), stop, step) as i:
            yield i

    def carry(self, start: Any, stop: Any, step: int, values: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """A counted loop that carries values: `body(i, values)` gives the next ones; returns the last."""
        def following(v: list[Any]) -> list[Any]:
            return [self.add(v[0], I64(step)), *body(v[0], v[1:])]
        return self.during([start, *values], lambda v: self.icmp_signed("<", v[0], stop), following)[1:]

    def during(self, values: list[Any], holds: Callable[[list[Any]], Any], body: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """A loop that carries values: while `holds(values)`, `body(values)` gives the next ones; returns the last."""
        before = self.block
        head, inside, after = (self.append_basic_block(n) for n in ("head", "body", "after"))
        self.branch(head)
        self.position_at_end(head)
        phis = [self.phi(v.type) for v in values]
        self.cbranch(holds(phis), inside, after)
        self.position_at_end(inside)
        following = body(phis)
        for phi, first, later in zip(phis, values, following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, self.block)
        self.branch(head)
        self.position_at_end(after)
        return phis

    def coordinates(self, number: Any, sizes: Sequence[Any]) -> list[Any]:
        """Row-major coordinates of a linear index; the first axis takes what is left."""
        out = []
        for extent in sizes[:0:-1]:
            out.append(self.urem(number, extent))
            number = self.udiv(number, extent)
        return [number, *reversed(out)] if sizes else []


def entry(module: Any, symbol: str, width: int, names: Sequence[str]) -> tuple[Code, Any, Any]:
    """The kernel's function: its code, ctx and task."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I64]), symbol)
    function.attributes.add("nounwind")
    ctx, args, task = function.args
    return Code(function.append_basic_block("entry"), width, args, names), ctx, task


def internal(module: Any, symbol: str, width: int, names: Sequence[str], extra: Sequence[Any]) -> tuple[Code, Any, Sequence[Any]]:
    """A function of this module that gets `args` first."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR, *extra]), symbol)
    function.linkage = "internal"
    function.attributes.add("nounwind")
    args, *rest = function.args
    return Code(function.append_basic_block("entry"), width, args, names), function, rest


class Real:
    """Multiply-add of float vectors: one k is one element of A. `unroll`: how many k the largest tile takes at a time."""

    unroll = 4

    def __init__(self, dtype: str) -> None:
        self.dtype, self.unit, self.key = dtype, size(dtype), dtype
        self.scalar = STORED[dtype]

    def tile(self, vectors: int) -> int:
        """Rows of the largest tile of `vectors` vectors a row."""
        return target().tile(vectors)

    def zero(self, b: Code) -> Any:
        return b.const(0.0, self.dtype)

    def panel(self, b: Code, pointer: Any) -> Any:
        return b.load(pointer, typ=b.vector(self.scalar), align=self.unit)

    def dot(self, b: Code, a: Any, column: Any, total: Any) -> Any:
        return b.madd(a, column, total)

    def join(self, b: Code, x: Any, y: Any) -> Any:
        return b.fadd(x, y)


@dataclass(frozen=True)
class Contraction:
    """What is compiled in: arithmetic (a Real's type, or an integer scheme), loops of taps, batch axes, epilogue, word names,
    the tile: lanes of a vector, rows, vectors of a row. way: how B lies; in panels, or (for few rows) as it is, its lines `b.line` bytes apart:
    `lines` along the columns, or `dots`, along k."""

    dtype: str
    taps: int
    batch: int
    epilogue: Form
    names: tuple[str, ...]
    lanes: int
    rows: int
    vectors: int
    way: str = "panels"


class Renderer:
    """Contraction -> LLVM module: `tile<m>` accumulates, `finish` runs the epilogue over a buffer, the entry walks a task."""

    def __init__(self, form: Contraction, arithmetic: Any, module: Any, prefix: str = "") -> None:
        """Functions of `module`, their names after `prefix`."""
        self.form, self.dot, self.module, self.prefix = form, arithmetic, module, prefix
        self.width, self.vectors = form.lanes, form.vectors
        self.row_bytes = self.vectors * self.width * arithmetic.unit
        self.finish = self.render_finish()
        self.half = -(-self.form.rows // 2)
        self.tiles = {m: self.render_tile(m) for m in dict.fromkeys([self.form.rows, *range(self.half, 0, -1)])}

    @classmethod
    def text(cls, form: Contraction, arithmetic: Any, symbol: str) -> str:
        """The kernel's module."""
        renderer = cls(form, arithmetic, ir.Module(symbol))
        renderer.render_entry(symbol)
        return str(renderer.module)

    def render_finish(self) -> Any:
        """void finish(args, frame, buffer, rows, first row, first column): the epilogue of `rows` rows of accumulators."""
        b, function, (frame, buffer, rows, first, column) = internal(
            self.module, f"{self.prefix}finish", self.width, self.form.names, [PTR, PTR, I64, I64, I64])
        left = b.sub(b.word("columns"), column)
        whole = b.icmp_signed(">=", left, I64(self.vectors * self.width))
        with b.if_else(whole) as (full, part):
            with full:
                self.finish_rows(b, frame, buffer, rows, first, column, None)
            with part:
                masks = [b.lanes_below(left, j * self.width) for j in range(self.vectors)]
                self.finish_rows(b, frame, buffer, rows, first, column, masks)
        b.ret_void()
        return function

    def finish_rows(self, b: Code, frame: Any, buffer: Any, rows: Any, first: Any, column: Any, masks: Sequence[Any] | None) -> None:
        emitter = Emitter(b, self.form.epilogue, frame, column, self.vectors, masks)
        emitter.prepare()
        kind = self.dot.zero(b).type
        vector = self.width * self.dot.unit
        with b.counted(rows) as i:
            line = b.shifted(buffer, b.mul(i, I64(self.vectors * vector)))
            known = dict(emitter.known)
            emitter.row(b.add(first, i), 1, [b.load(b.shifted(line, j * vector), typ=kind, align=vector) for j in range(self.vectors)])
            emitter.known = known

    def render_tile(self, m: int) -> Any:
        """void tile(args, frame, a, b, first row, first column): m rows of one panel."""
        b, function, (frame, a, panel, first, column) = internal(
            self.module, f"{self.prefix}tile{m}", self.width, self.form.names, [PTR, PTR, PTR, I64, I64])
        chains = max(1, 8 // (m * self.vectors))
        cells = m * self.vectors
        step = b.word("a.row")
        steps = [b.mul(step, I64(i)) for i in range(ROW_GROUP + 1)]
        values = [panel, *[self.dot.zero(b)] * (cells * chains)]
        _, *sums = self.taps(b, 0, a, values, lambda here, carried: self.run(b, here, steps, m, carried))
        while len(sums) > cells:
            half = len(sums) // 2
            sums = [self.dot.join(b, x, y) for x, y in zip(sums[:half], sums[half:], strict=True)]
        self.close_tile(b, m, [sums[i * self.vectors:(i + 1) * self.vectors] for i in range(m)], frame, first, column)
        b.ret_void()
        return function

    def taps(self, b: Code, depth: int, a: Any, values: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        if depth == self.form.taps:
            return body(a, values)
        step = b.word(f"tap{depth}")
        return b.carry(I64(0), b.word(f"taps{depth}"), 1, values,
                       lambda i, carried: self.taps(b, depth + 1, b.shifted(a, b.mul(i, step)), carried, body))

    def run(self, b: Code, a: Any, steps: list[Any], m: int, values: list[Any]) -> list[Any]:
        """All k of one tap, UNROLL at a time and then one by one; values: the panel's address, then chains of accumulators."""
        length, panel, cells, unroll = b.word("run"), values[0], m * self.vectors, self.unroll(m)
        whole = b.and_(length, I64(-unroll))

        def some(k: Any, sums: list[Any], count: int) -> list[Any]:
            rows = self.row_pointers(b, b.shifted(a, b.mul(k, I64(self.dot.unit))), steps, m)
            line = b.shifted(panel, b.mul(k, self.line_bytes(b)))
            sums = list(sums)
            for u in range(count):
                chain = u * cells % len(sums)
                sums[chain:chain + cells] = self.step(b, rows, line, u, sums[chain:chain + cells])
            return sums

        sums = b.carry(I64(0), whole, unroll, values[1:], lambda k, carried: some(k, carried, unroll))
        if unroll > 1:
            sums = b.carry(whole, length, 1, sums, lambda k, carried: some(k, carried, 1))
        return [b.shifted(panel, b.mul(length, self.line_bytes(b))), *sums]

    def line_bytes(self, b: Code) -> Any:
        """From one line of B to the next."""
        return b.word("b.line") if self.form.way == "lines" else I64(self.row_bytes)

    def unroll(self, m: int) -> int:
        return self.dot.unroll if m == self.form.rows else UNROLL.get(m, 1)

    def row_pointers(self, b: Code, a: Any, steps: list[Any], m: int) -> list[Any]:
        """Addresses of A's rows: every group of ROW_GROUP from a pointer of its own, so that few registers hold them all."""
        out, base = [], a
        for i in range(m):
            if i % ROW_GROUP == 0:
                base = b.opaque(b.shifted(base, steps[ROW_GROUP]) if i else base)
            out.append(b.shifted(base, steps[i % ROW_GROUP]) if i % ROW_GROUP else base)
        return out

    def step(self, b: Code, rows: list[Any], panel: Any, u: int, sums: list[Any]) -> list[Any]:
        """One k: every row's scalar times the panel's vectors."""
        vector = self.width * self.dot.unit
        line = b.shifted(panel, b.mul(self.line_bytes(b), I64(u)))
        columns = [self.dot.panel(b, b.shifted(line, j * vector)) for j in range(self.vectors)]
        out = []
        for i, row in enumerate(rows):
            value = b.splat(b.load(b.shifted(row, u * self.dot.unit), typ=self.dot.scalar, align=1))
            out += [self.dot.dot(b, value, columns[j], sums[i * self.vectors + j]) for j in range(self.vectors)]
        return out

    def close_tile(self, b: Code, m: int, totals: list[list[Any]], frame: Any, first: Any, column: Any) -> None:
        """The largest tile runs a light epilogue from registers; all else goes through a buffer to `finish`."""
        if m < self.form.rows or weight(self.form.epilogue) > INLINE:
            return self.through_buffer(b, m, totals, frame, first, column)
        whole = b.icmp_signed(">=", b.sub(b.word("columns"), column), I64(self.vectors * self.width))
        with b.if_else(whole) as (full, part):
            with full:
                emitter = Emitter(b, self.form.epilogue, frame, column, self.vectors, None)
                for i, line in enumerate(totals):
                    emitter.row(b.add(first, I64(i)), i, line)
            with part:
                self.through_buffer(b, m, totals, frame, first, column)

    def through_buffer(self, b: Code, m: int, totals: list[list[Any]], frame: Any, first: Any, column: Any) -> None:
        vector = self.width * self.dot.unit
        buffer = b.array(totals[0][0].type, m * self.vectors, vector)
        for i, line in enumerate(totals):
            for j, value in enumerate(line):
                b.store(value, b.shifted(buffer, (i * self.vectors + j) * vector), align=vector)
        b.call(self.finish, [b.args, frame, buffer, I64(m), first, column])

    def render_block(self, name: str, change: Callable[[Code, Any, Any], None]) -> Any:
        """void block(args, batch entry, first row, last row, x): some rows by all columns; `change(code, first row, x)` may set addresses
        of its own in `frame` and `bases`."""
        b, function, (number, first, last, x) = internal(self.module, f"{self.prefix}{name}", self.width, self.form.names, [I64, I64, I64, I64])
        self.begin(b)
        self.place(b, number)
        change(b, first, x)
        with b.counted(b.word("panels")) as p:
            where = b.address(b.add(b.load(self.bases["b"], typ=I64), b.mul(p, b.word("b.panel"))))
            self.rows(b, first, last, where, b.mul(p, I64(self.vectors * self.width)))
        b.ret_void()
        return function

    def begin(self, b: Code) -> None:
        self.frame = b.array(I64, len(self.form.epilogue.accesses))
        self.bases = {name: b.variable(I64) for name in ("a", "b")}

    def render_entry(self, symbol: str) -> None:
        """One task: a group of panels by a group of batch entries by a chunk of rows."""
        b, _, task = entry(self.module, symbol, self.width, self.form.names)
        self.begin(b)
        group, chunk, panels = b.coordinates(task, [None, b.word("chunks"), b.word("groups")])
        p0, p1 = self.span(b, panels, "panels", "panels.task")
        b0, b1 = self.span(b, group, "batch", "batch.task")
        m0, m1 = self.span(b, chunk, "rows", "rows.task")
        with b.loop(p0, p1, 1) as p, b.loop(b0, b1, 1) as n:
            self.place(b, n)
            where = b.address(b.add(b.load(self.bases["b"], typ=I64), b.mul(p, b.word("b.panel"))))
            self.rows(b, m0, m1, where, b.mul(p, I64(self.vectors * self.width)))
        b.ret_void()

    def span(self, b: Code, number: Any, extent: str, each: str) -> tuple[Any, Any]:
        first = b.mul(number, b.word(each))
        return first, b.least(b.add(first, b.word(each)), b.word(extent))

    def place(self, b: Code, number: Any) -> None:
        """Addresses of A, B and every access of the epilogue at one batch entry."""
        where = b.coordinates(number, [b.word(f"size{i}") for i in range(self.form.batch)])
        for name, variable in self.bases.items():
            b.store(moved(b, name, where), variable)
        store_frame(b, self.frame, len(self.form.epilogue.accesses), where)

    def rows(self, b: Code, m0: Any, m1: Any, panel: Any, column: Any) -> None:
        """Largest tiles, then what is left as one or two smaller ones."""
        most, cursor = self.form.rows, b.variable(I64)
        b.store(m0, cursor)
        head, body, done = (b.append_basic_block(n) for n in ("rows", "rows.body", "rows.done"))
        b.branch(head)
        b.position_at_end(head)
        m = b.load(cursor, typ=I64)
        left = b.sub(m1, m)
        b.cbranch(b.icmp_signed(">", left, I64(0)), body, done)
        b.position_at_end(body)
        split = b.select(b.icmp_signed(">", left, I64(self.half)), b.lshr(b.add(left, I64(1)), I64(1)), left)
        take = b.select(b.icmp_signed(">=", left, I64(most)), I64(most), split)
        here = b.address(b.add(b.load(self.bases["a"], typ=I64), b.mul(m, b.word("a.row"))))
        b.store(b.add(m, take), cursor)
        cases = {n: b.append_basic_block(f"rows{n}") for n in self.tiles}
        switch = b.switch(take, cases[most])
        for n, block in cases.items():
            if n != most:
                switch.add_case(I64(n), block)
            b.position_at_end(block)
            b.call(self.tiles[n], [b.args, self.frame, here, panel, m, column])
            b.branch(head)
        b.position_at_end(done)


def moved(b: Code, name: str, where: Sequence[Any]) -> Any:
    """The word `name` moved to a batch entry."""
    base = b.word(name)
    for i, coordinate in enumerate(where):
        base = b.add(base, b.mul(coordinate, b.word(f"{name}.{i}")))
    return base


def store_frame(b: Code, frame: Any, count: int, where: Sequence[Any]) -> None:
    """The addresses of an epilogue's accesses at a batch entry."""
    for k in range(count):
        b.store(moved(b, f"at{k}", where), b.gep(frame, [I64(k)], source_etype=I64))
