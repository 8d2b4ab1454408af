"""Walks a recurrent kernel's task through time, in LLVM IR; see recurrent.py. `share` is one chunk of columns of one step."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

from gpuonnx.kernels.contract import CTX_POOL, CTX_RUN
from gpuonnx.kernels.cpu.flow import KERNEL, RUN, Callee
from gpuonnx.kernels.cpu.lanes import I32, I64, PTR
from gpuonnx.kernels.cpu.micro import VECTORS, Code, entry
from gpuonnx.kernels.cpu.recurrent import FUNCTIONS, GATES, HEADER, Form
from gpuonnx.kernels.cpu.recurrent_code import C0, EXTRA, H0, YC, YH, Cell, X, Y

ARGS, NUMBER, FIRST, ENTRIES, DIRECTION, ROOM = range(6)


def render(form: Form, symbol: str) -> str:
    """The kernel's module."""
    cell = Cell(form)
    cell.render(symbol)
    phases = [_share(cell, f"share{phase}", phase) for phase in range(2 if cell.two_products else 1)]
    _entry(cell, symbol, phases)
    return str(cell.module)


def _share(cell: Cell, name: str, phase: int) -> Any:
    """share(ctx, record, task): the gates, products and cells of a chunk of columns of one direction at one step; a second phase where the
    last gate waits for the others."""
    function = ir.Function(cell.module, KERNEL, name)
    function.linkage = "internal"
    function.attributes.add("nounwind")
    _, record, task = function.args
    b = Code(function.append_basic_block("entry"), cell.lanes, None, cell.form.names)
    b.args = b.load(record, typ=PTR)
    number, first, entries, direction, room = (b.load(b.shifted(record, 8 * k), typ=I64) for k in (NUMBER, FIRST, ENTRIES, DIRECTION, ROOM))
    which, chunk = b.udiv(task, b.word("chunks")), b.urem(task, b.word("chunks"))
    start = b.mul(chunk, b.word("chunk"))
    span = Span(b, start, b.least(b.add(start, b.word("chunk")), b.word("panels")), VECTORS * cell.lanes)
    part = Part(cell, b, b.address(b.add(room, b.mul(which, b.word("room.direction")))), b.add(direction, which), first, entries)
    part.step(number, span, phase)
    b.ret_void()
    return function


def _entry(cell: Cell, symbol: str, phases: Sequence[Any]) -> None:
    b, ctx, task = entry(cell.module, symbol, cell.lanes, cell.form.names)
    batch, group, together = b.word("batch"), b.word("group"), b.word("together")
    parts = b.udiv(b.sub(b.add(batch, group), I64(1)), group)
    direction = b.mul(b.udiv(task, parts), together)
    first = b.mul(b.urem(task, parts), group)
    entries = b.least(group, b.sub(batch, first))
    record = b.address(b.add(b.word("room"), b.mul(task, b.word("room.task"))))
    room = b.ptrtoint(b.shifted(record, 8 * HEADER), I64)
    b.store(b.args, record)
    for value, place in ((first, FIRST), (entries, ENTRIES), (direction, DIRECTION), (room, ROOM)):
        b.store(value, b.shifted(record, 8 * place))

    @contextmanager
    def directions() -> Iterator[Part]:
        with b.counted(together) as which:
            yield Part(cell, b, b.address(b.add(room, b.mul(which, b.word("room.direction")))), b.add(direction, which), first, entries)
    with directions() as part:
        part.begin()
    with b.counted(b.word("length")) as number:
        b.store(number, b.shifted(record, 8 * NUMBER))
        if cell.quantize is not None:
            with directions() as part:
                b.call(cell.quantize, [b.args, part.h(number), part.q, entries])
        for share in phases:
            _shared(b, ctx, share, record, b.mul(together, b.word("chunks")))
    with directions() as part:
        part.end()
    b.ret_void()


def _shared(b: Code, ctx: Any, function: Any, record: Any, tasks: Any) -> None:
    """All tasks of `function`, by whoever is free."""
    run = b.load(b.shifted(ctx, 8 * CTX_RUN), typ=PTR)
    many = b.and_(b.icmp_signed("!=", b.ptrtoint(run, I64), I64(0)), b.icmp_signed(">", tasks, I64(1)))
    with b.if_else(many) as (several, alone):
        with several:
            pool = b.load(b.shifted(ctx, 8 * CTX_POOL), typ=PTR)
            b.call(Callee(run, RUN), [pool, b.bitcast(function, PTR), ctx, record, tasks])
        with alone, b.counted(tasks) as task:
            b.call(function, [ctx, record, task])


class Span:
    """Panels `start` to `stop` of every gate, and their columns."""

    def __init__(self, b: Code, start: Any, stop: Any, panel: int) -> None:
        self.start, self.stop = start, stop
        self.first = b.mul(start, I64(panel))
        self.last = b.least(b.mul(stop, I64(panel)), b.word("hidden"))
        self.count = b.sub(self.last, self.first)


@dataclass
class Part:
    """One direction of some batch entries: gates and states in the task's room."""

    cell: Cell
    b: Code
    room: Any
    direction: Any
    first: Any
    entries: Any

    def __post_init__(self) -> None:
        b, cell, self.form = self.b, self.cell, self.cell.form
        self.state, self.line = b.word("state"), b.word("line")
        self.block = b.mul(b.word("group"), self.state)
        self.gates = self.room
        self.states = b.shifted(self.room, b.mul(b.word("group"), self.line))
        self.c, self.q, self.spare = (b.shifted(self.states, b.mul(self.block, I64(k))) for k in (2, 3, 4))
        functions = 2 * FUNCTIONS[self.form.cell] * cell.unit
        self.numbers = b.address(b.add(b.word("numbers"), b.mul(self.direction, I64(functions))))
        said = b.word("direction")
        both = b.and_(b.icmp_signed("==", said, I64(2)), b.icmp_signed("==", self.direction, I64(1)))
        self.backwards = b.or_(b.icmp_signed("==", said, I64(1)), both)

    def h(self, number: Any) -> Any:
        """The states before step `number`; those after it lie in the other of two places."""
        return self.b.shifted(self.states, self.b.mul(self.b.and_(number, I64(1)), self.block))

    def row(self, base: Any, e: Any, step: Any) -> Any:
        return self.b.shifted(base, self.b.mul(e, step))

    def at(self, name: str, **indices: Any) -> Any:
        b, where = self.b, self.b.word(name)
        for axis, index in indices.items():
            where = b.add(where, b.mul(index, b.word(f"{name}.{axis}")))
        return b.address(where)

    def given(self, name: str) -> Any:
        return self.b.icmp_signed("!=", self.b.word(name), I64(0))

    def steps(self, e: Any) -> Any:
        """How many steps entry e of the batch takes."""
        b, length = self.b, self.b.word("length")
        given = self.given("lens")
        place = b.select(given, self.at("lens", b=e), b.args)
        said = b.sext(b.load(place, typ=I32, align=4), I64)
        said = b.least(b.select(b.icmp_signed(">", said, I64(0)), said, I64(0)), length)
        return b.select(given, said, length)

    @contextmanager
    def active(self, number: Any) -> Iterator[tuple[Any, Any]]:
        """Entries that have a step `number`, and the time of it."""
        b = self.b
        with b.counted(self.entries) as e:
            steps = self.steps(b.add(self.first, e))
            with b.if_then(b.icmp_signed("<", number, steps)):
                yield e, b.select(self.backwards, b.sub(b.sub(steps, I64(1)), number), number)

    @contextmanager
    def finished(self, number: Any) -> Iterator[Any]:
        """Entries that have no step `number` any more."""
        b = self.b
        with b.counted(self.entries) as e, b.if_then(b.icmp_signed(">=", number, self.steps(b.add(self.first, e)))):
            yield e

    def begin(self) -> None:
        b, cell, hidden = self.b, self.cell, self.b.word("hidden")
        for name, which, base in (("h0", H0, self.states), ("c0", C0, self.c)):
            with b.counted(self.entries) as e:
                target = self.row(base, e, self.state)
                with b.if_else(self.given(name)) as (there, absent):
                    with there:
                        cell.copy(b, self.at(name, d=self.direction, b=b.add(self.first, e)), target, hidden, cell.spread(b, name, which))
                    with absent:
                        cell.zero(b, target, hidden, I64(cell.unit))

    def step(self, number: Any, span: Span, phase: int) -> None:
        b, cell, gates = self.b, self.cell, GATES[self.form.cell]
        before, after = self.h(number), self.h(b.add(number, I64(1)))
        waiting = cell.two_products and phase == 0
        if phase == 0:
            with self.active(number) as (e, t):
                self.fill(e, t, span)
        for gate in range(gates - 1 if waiting else gates) if phase == 0 else (gates - 1,):
            self.multiply(gate, span, self.c if phase else self.q if cell.quantize is not None else before)
        with self.active(number) as (e, t):
            self.apply(cell.after_reset if phase else cell.cells, e, before, after, span)
        if waiting:
            return
        offset = b.mul(span.first, I64(cell.unit))
        with self.finished(number) as e:
            place = b.add(b.mul(e, self.state), offset)
            cell.copy(b, b.shifted(before, place), b.shifted(after, place), span.count)
        self.store(number, b.shifted(after, offset), span)

    def fill(self, e: Any, t: Any, span: Span) -> None:
        """The gates of the input at time t; a bias inside the reset gate stands apart from the input's part."""
        b, cell, gates = self.b, self.cell, GATES[self.form.cell]
        hidden, step, offset = b.word("hidden"), cell.spread(b, "x", X), b.mul(span.first, I64(cell.unit))
        inside = self.form.cell == "gru" and not cell.two_products
        for k in range(gates):
            column = b.add(b.mul(hidden, b.add(b.mul(self.direction, I64(gates)), I64(k))), span.first)
            source = self.at("x", t=t, b=b.add(self.first, e), j=column)
            target = b.shifted(self.row(self.gates, e, self.line), b.add(b.mul(cell.gate(b), I64(k)), offset))
            if not inside or k < gates - 1:
                cell.copy(b, source, target, span.count, step)
                continue
            cell.copy(b, source, b.shifted(self.row(self.spare, e, self.state), offset), span.count, step)
            with b.if_else(self.given("extra")) as (there, absent):
                with there:
                    cell.copy(b, self.at("extra", d=self.direction, j=span.first), target, span.count, cell.spread(b, "extra", EXTRA))
                with absent:
                    cell.zero(b, target, span.count, I64(cell.unit))

    def multiply(self, gate: int, span: Span, states: Any) -> None:
        b, cell = self.b, self.cell
        columns = b.mul(b.word("panels"), I64(VECTORS * cell.lanes))
        number = b.add(b.mul(self.direction, I64(GATES[self.form.cell])), I64(gate))
        depth = b.mul(b.word("quads"), I64(4)) if self.form.whole else b.mul(b.word("hidden"), I64(cell.unit))
        weights = [b.address(b.add(b.word("weights0"), b.mul(number, b.mul(columns, depth))))]
        if self.form.whole:
            weights.append(b.address(b.add(b.word("weights1"), b.mul(number, b.mul(columns, I64(cell.unit))))))
        b.call(cell.product, [b.args, b.shifted(self.gates, b.mul(cell.gate(b), I64(gate))), states, *weights, span.start, span.stop, self.entries])

    def apply(self, cells: Sequence[Any], e: Any, before: Any, after: Any, span: Span) -> None:
        b = self.b
        args = [b.args, self.row(self.gates, e, self.line), *(self.row(s, e, self.state) for s in (before, after, self.c, self.spare)),
                self.numbers, self.direction, span.first, span.last]
        if len(cells) == 1:
            b.call(cells[0], args)
            return
        with b.if_else(b.icmp_signed("==", self.direction, I64(0))) as (one, other):
            with one:
                b.call(cells[0], args)
            with other:
                b.call(cells[1], args)

    def store(self, number: Any, states: Any, span: Span) -> None:
        """The new states into y; behind the end of a shorter sequence, zeros."""
        b, cell = self.b, self.cell
        with b.if_then(self.given("y")):
            with self.active(number) as (e, t):
                target = self.at("y", t=t, d=self.direction, b=b.add(self.first, e), j=span.first)
                cell.copy(b, self.row(states, e, self.state), target, span.count, cell.spread(b, "y", Y), False)
            with self.finished(number) as e:
                cell.zero(b, self.at("y", t=number, d=self.direction, b=b.add(self.first, e), j=span.first), span.count, b.word("y.j"))

    def end(self) -> None:
        b, cell = self.b, self.cell
        for name, which, base in (("yh", YH, self.h(b.word("length"))), ("yc", YC, self.c)):
            with b.if_then(self.given(name)), b.counted(self.entries) as e:
                target = self.at(name, d=self.direction, b=b.add(self.first, e))
                cell.copy(b, self.row(base, e, self.state), target, b.word("hidden"), cell.spread(b, name, which), False)
