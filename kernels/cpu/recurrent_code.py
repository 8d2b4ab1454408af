"""The bodies of the recurrent kernels as vector code, lanes along the hidden units. One task runs one direction of some batch
entries through time.

Gates of x come in computed; here are the products with the hidden state and the gates' functions. States and gates lie in work
memory, each gate padded with zeros to whole vectors, the recurrence weights in panels of PANEL vectors of columns, their rows
padded to a multiple of ROWS.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.lanes import I32, I64, PTR, STORED
from gpuonnx.kernels.cpu.micro import Code, entry, internal, lanes_of
from gpuonnx.kernels.cpu.recurrent import CODES, GROUPS, PANEL, ROWS, Form
from gpuonnx.kernels.cpu.scalars import EMITTERS


def activated(b: Code, dtype: str, name: str, x: Any, alpha: Any, beta: Any) -> Any:
    """An activation function of ONNX's recurrent operators; a NaN stays one."""
    zero, one = b.const(0, dtype), b.const(1, dtype)

    def scalar(op: str, value: Any) -> Any:
        return EMITTERS[op](b, dtype, value)
    match name:
        case "Affine": return b.madd(alpha, x, beta)
        case "LeakyRelu": return b.select(b.fcmp(">=", x, zero), x, b.fmul(alpha, x))
        case "ThresholdedRelu": return b.select(b.fcmp(">", x, alpha), x, b.fmul(x, zero))
        case "ScaledTanh": return b.fmul(alpha, scalar("tanh", b.fmul(beta, x)))
        case "HardSigmoid": return b.pick("<", one, b.pick(">", zero, b.madd(alpha, x, beta)))
        case "Elu": return b.select(b.fcmp(">=", x, zero), x, b.fmul(alpha, b.fsub(scalar("exp", x), one)))
        case "Softsign": return b.fdiv(x, b.fadd(one, scalar("abs", x)))
        case "Softplus": return b.select(b.fcmp("<", x, b.const(30, dtype)), scalar("log1p", scalar("exp", x)), x)
    return scalar(name.lower(), x)


def product(module: Any, dtype: str) -> Any:
    """product(args, gates, state, scale, weights, panels, rows): gates[panel] += state @ weights[panel] * scale."""
    width, unit = lanes_of(dtype), size(dtype)
    b, function, (gates, state, scale, weights, panels, rows) = internal(module, "product", width, (), [PTR, PTR, STORED[dtype], PTR, I64, I64])
    scale = b.splat(scale)
    line = PANEL * width * unit
    with b.counted(panels) as panel:
        here = b.shifted(weights, b.mul(panel, b.mul(rows, I64(line))))

        def body(k: Any, sums: list[Any]) -> list[Any]:
            out = []
            for r in range(ROWS):
                row = b.add(k, I64(r))
                value = b.splat(b.load(b.shifted(state, b.mul(row, I64(unit))), typ=STORED[dtype], align=unit))
                start = b.shifted(here, b.mul(row, I64(line)))
                for v in range(PANEL):
                    out.append(b.madd(value, b.read(b.shifted(start, v * width * unit), dtype), sums[r * PANEL + v]))
            return out
        sums = b.carry(I64(0), rows, ROWS, [b.const(0, dtype)] * (ROWS * PANEL), body)
        for v in range(PANEL):
            into = b.shifted(b.shifted(gates, b.mul(panel, I64(line))), v * width * unit)
            total = sums[v]
            for r in range(1, ROWS):
                total = b.fadd(total, sums[r * PANEL + v])
            b.write(b.madd(total, scale, b.read(into, dtype)), into, dtype)
    b.ret_void()
    return function


@contextmanager
def across(b: Code, count: Any) -> Iterator[tuple[Any, Any]]:
    """Each vector of `count` elements: its first element, the mask of those that exist."""
    with b.counted(count, b.width) as first:
        yield first, b.lanes_below(b.sub(count, first))


def moves(module: Any, dtype: str, into: bool) -> Any:
    """spread(args, strided, stride, dense, count): from `strided` to `dense`, its last vector filled up with zeros, zeros where the
    address is 0; collect: the other way, nothing where it is 0. `stride` in bytes."""
    width, unit = lanes_of(dtype), size(dtype)
    b, function, (strided, stride, dense, count) = internal(module, "spread" if into else "collect", width, (), [I64, I64, PTR, I64])
    there = b.icmp_signed("!=", strided, I64(0))
    offsets = b.mul(b.iota("i64"), b.splat(b.sdiv(stride, I64(unit))))
    unit_stride = b.icmp_signed("==", stride, I64(unit))
    if not into:
        with b.if_then(b.not_(there)):
            b.ret_void()
    with across(b, count) as (first, mask):
        near = b.shifted(dense, b.mul(first, I64(unit)))
        far = b.address(b.add(strided, b.mul(first, stride)))
        if into:
            mask = b.and_(mask, b.splat(there))
        with b.if_else(unit_stride) as (plain, general):
            with plain:
                b.write(b.read(far, dtype, mask), near, dtype) if into else b.write(b.read(near, dtype), far, dtype, mask)
            with general:
                if into:
                    b.write(b.gather(far, offsets, dtype, mask), near, dtype)
                else:
                    b.scatter(b.read(near, dtype), far, offsets, dtype, mask)
    b.ret_void()
    return function


@dataclass
class State:
    """Where one batch entry's vectors lie: hidden state, what the product reads of it, second state, gates by number."""

    h: Any
    q: Any
    c: Any
    gates: Sequence[Any]


class Cell:
    """The kernel of one form under construction."""

    def __init__(self, form: Form, symbol: str) -> None:
        self.form, self.dtype, self.unit = form, form.dtype, size(form.dtype)
        self.module = ir.Module(symbol)
        self.product = product(self.module, self.dtype)
        self.spread, self.collect = (moves(self.module, self.dtype, into) for into in (True, False))
        self.b, _, self.task = entry(self.module, symbol, lanes_of(self.dtype), form.names)
        self.words = {name: self.b.word(name) for name in form.names}
        self.scale = self.b.array(STORED[self.dtype], 1)

    def text(self) -> str:
        b, w = self.b, self.words
        parts = b.udiv(b.add(w["batch"], b.sub(w["group"], I64(1))), w["group"])
        self.direction = b.udiv(self.task, parts)
        self.first = b.mul(b.urem(self.task, parts), w["group"])
        self.entries = b.least(w["group"], b.sub(w["batch"], self.first))
        self.room = b.add(w["work"], b.mul(self.task, w["room"]))
        self.padded = b.mul(b.udiv(b.add(w["hidden"], I64(b.width - 1)), I64(b.width)), I64(b.width))
        self.weights = b.add(w["r"], b.mul(self.direction, w["r.direction"]))
        with b.counted(self.entries) as e:
            for name, at in (("h0", "h"), ("c0", "c")):
                b.call(self.spread, [b.args, self.outside(name, self.direction, b.add(self.first, e)), w[f"{name}.2"],
                                     getattr(self.state(e), at), w["hidden"]])
        with b.counted(w["length"]) as number:
            if self.form.quantized:
                self.quantize()
            with b.counted(self.entries) as e:
                self.turn(number, e)
        with b.counted(self.entries) as e:
            state = self.state(e)
            for name, vector in (("yh", state.h), ("yc", state.c)):
                self.give(name, vector, self.direction, b.add(self.first, e))
        b.ret_void()
        return str(self.module)

    def outside(self, name: str, *where: Any) -> Any:
        """The address of a row of an input or output, 0 where there is none."""
        b, base = self.b, self.words[name]
        here = base
        for k, i in enumerate(where):
            here = b.add(here, b.mul(i, self.words[f"{name}.{k}"]))
        return b.select(b.icmp_signed("==", base, I64(0)), base, here)

    def give(self, name: str, vector: Any, *where: Any) -> None:
        self.b.call(self.collect, [self.b.args, self.outside(name, *where), self.words[f"{name}.{len(where)}"], vector, self.words["hidden"]])

    def panels(self, gates: int) -> Any:
        columns = self.b.mul(self.padded, I64(gates))
        return self.b.udiv(self.b.add(columns, I64(PANEL * self.b.width - 1)), I64(PANEL * self.b.width))

    def bytes(self, panels: Any) -> Any:
        return self.b.mul(panels, I64(PANEL * self.b.width * self.unit))

    def state(self, e: Any) -> State:
        b, one = self.b, self.b.mul(self.padded, I64(self.unit))
        second = self.bytes(self.panels(1))
        own = b.add(b.add(one, one), second)
        h = b.address(b.add(self.room, b.mul(e, own)))
        q = b.shifted(h, one)
        at = b.address(b.add(self.room, b.mul(self.entries, own)))
        gates = []
        for count in GROUPS[self.form.cell]:
            gates += [b.shifted(at, b.mul(one, I64(k))) for k in range(count)]
            at = b.shifted(at, self.bytes(self.panels(count)))
        return State(h, q if self.form.quantized else h, b.shifted(q, one), gates)

    def turn(self, number: Any, e: Any) -> None:
        """One entry at one time; past its length its outputs are 0."""
        b, w = self.b, self.words
        batch, state = b.add(self.first, e), self.state(e)
        steps = w["length"]
        if self.form.lengths:
            given = b.sext(b.load(b.address(b.add(w["lens"], b.mul(batch, w["lens.0"]))), typ=I32, align=4), I64)
            steps = b.least(b.select(b.icmp_signed("<", given, I64(0)), I64(0), given), steps)
        with b.if_else(b.icmp_signed("<", number, steps)) as (inside, past):
            with past:
                b.call(self.spread, [b.args, I64(0), I64(self.unit), state.gates[0], w["hidden"]])
                self.give("y", state.gates[0], number, self.direction, batch)
            with inside:
                backwards = b.or_(b.icmp_signed("==", w["mode"], I64(1)),
                                  b.and_(b.icmp_signed("==", w["mode"], I64(2)), b.icmp_signed("==", self.direction, I64(1))))
                t = b.select(backwards, b.sub(b.sub(steps, I64(1)), number), number)
                self.read_gates(state, t, batch)
                {"rnn": self.rnn, "gru": self.gru, "lstm": self.lstm}[self.form.cell](state)
                self.give("y", state.h, t, self.direction, batch)

    def read_gates(self, state: State, t: Any, batch: Any) -> None:
        b, w = self.b, self.words
        line = b.mul(w["hidden"], w["x.2"])
        first = b.add(self.outside("x", t, batch), b.mul(b.mul(self.direction, I64(len(state.gates))), line))
        for k, gate in enumerate(state.gates):
            b.call(self.spread, [b.args, b.add(first, b.mul(I64(k), line)), w["x.2"], gate, w["hidden"]])

    def multiply(self, gates: Any, state: Any, group: int) -> None:
        """gates of a group += state @ its weights."""
        b = self.b
        rows = b.mul(b.udiv(b.add(self.words["hidden"], I64(ROWS - 1)), I64(ROWS)), I64(ROWS))
        weights = self.weights
        for before in GROUPS[self.form.cell][:group]:
            weights = b.add(weights, b.mul(self.bytes(self.panels(before)), rows))
        kind = STORED[self.dtype]
        scale = b.load(self.scale, typ=kind, align=self.unit) if self.form.quantized else ir.Constant(kind, 1.0)
        b.call(self.product, [b.args, gates, state, scale, b.address(weights), self.panels(GROUPS[self.form.cell][group]), rows])

    @contextmanager
    def units(self) -> Iterator[Units]:
        with across(self.b, self.words["hidden"]) as (first, mask):
            yield Units(self.b, self.dtype, self.b.mul(first, I64(self.unit)), mask)

    def function(self, number: int, x: Any) -> Any:
        """Function `number` of this direction."""
        b, (first, *others) = self.b, self.form.functions
        place = b.mul(b.add(b.mul(self.direction, I64(len(first))), I64(number)), I64(2 * self.unit))
        alpha, beta = (self.number(b.add(place, I64(k * self.unit))) for k in (0, 1))
        value = activated(b, self.dtype, CODES[first[number]], x, alpha, beta)
        for codes in others:
            backwards = activated(b, self.dtype, CODES[codes[number]], x, alpha, beta)
            value = b.select(b.icmp_signed("==", self.direction, I64(0)), value, backwards)
        return value

    def number(self, offset: Any) -> Any:
        """One of the functions' numbers, in all lanes."""
        b = self.b
        return b.splat(b.load(b.address(b.add(self.words["numbers"], offset)), typ=STORED[self.dtype], align=self.unit))

    def clipped(self, x: Any) -> Any:
        if not self.form.clip:
            return x
        b = self.b
        limit = self.number(self.words["clip"])
        return b.pick("<", limit, b.pick(">", b.fneg(limit), x))

    def rnn(self, s: State) -> None:
        self.multiply(s.gates[0], s.q, 0)
        with self.units() as u:
            u.put(s.h, self.function(0, self.clipped(u.get(s.gates[0]))))

    def gru(self, s: State) -> None:
        """Gates z, r, h; with linear_before_reset the bias `extra` of h belongs to the recurrent product."""
        b = self.b
        gate_z, gate_r, gate_h = s.gates
        self.multiply(gate_z, s.q, 0)
        with self.units() as u:
            for gate in (gate_z, gate_r):
                u.put(gate, self.function(0, self.clipped(u.get(gate))))
        if self.form.linear_before_reset:
            b.call(self.spread, [b.args, self.outside("extra", self.direction), self.words["extra.1"], s.c, self.words["hidden"]])
            self.multiply(s.c, s.h, 1)
            with self.units() as u:
                u.put(gate_h, b.madd(u.get(gate_r), u.get(s.c), u.get(gate_h)))
        else:
            with self.units() as u:
                u.put(s.c, b.fmul(u.get(gate_r), u.get(s.h)))
            self.multiply(gate_h, s.c, 1)
        with self.units() as u:
            new, z = self.function(1, self.clipped(u.get(gate_h))), u.get(gate_z)
            u.put(s.h, b.madd(z, u.get(s.h), b.fmul(b.fsub(b.const(1, self.dtype), z), new)))

    def lstm(self, s: State) -> None:
        """Gates i, o, f, c; peepholes i, o, f."""
        b = self.b
        gate_i, gate_o, gate_f, gate_c = s.gates
        self.multiply(gate_i, s.q, 0)
        with self.units() as u:
            def through(number: int, gate: Any, peephole: int, state: Any) -> Any:
                value = u.get(gate)
                if self.form.peepholes:
                    here = b.add(self.outside("p", self.direction), b.mul(self.words["hidden"], I64(peephole * self.unit)))
                    value = b.madd(u.read(here), state, value)
                return self.function(number, self.clipped(value))
            c = u.get(s.c)
            i = through(0, gate_i, 0, c)
            f = b.fsub(b.const(1, self.dtype), i) if self.form.input_forget else through(0, gate_f, 2, c)
            c = b.madd(f, c, b.fmul(i, self.function(1, self.clipped(u.get(gate_c)))))
            u.put(s.c, c)
            u.put(s.h, b.fmul(through(0, gate_o, 1, c), self.function(2, c)))

    def quantize(self) -> None:
        """scale * q = h through 8 bits, one scale and zero point for all entries from the range of h (as DynamicQuantizeLinear)."""
        b, zero, most = self.b, self.b.const(0, self.dtype), self.b.const(255, self.dtype)
        ends = [b.array(b.vector(STORED[self.dtype]), 1, 64) for _ in range(2)]
        for end in ends:
            b.write(zero, end, self.dtype)
        with b.counted(self.entries) as e:
            s = self.state(e)
            with self.units() as u:
                for end, operator in zip(ends, "<>", strict=True):
                    b.write(b.pick(operator, b.read(end, self.dtype), u.get(s.h)), end, self.dtype)
        low, high = (b.across(lambda x, y, o=operator: b.pick(o, x, y), b.read(end, self.dtype)) for end, operator in zip(ends, "<>", strict=True))
        scale = b.select(b.fcmp(">", high, low), b.fdiv(b.fsub(high, low), most), b.const(1, self.dtype))
        b.store(b.lane(scale), self.scale, align=self.unit)

        def bounded(x: Any) -> Any:
            return b.pick("<", most, b.pick(">", zero, x))
        point = bounded(b.intrinsic("llvm.roundeven", b.fdiv(b.fneg(low), scale)))
        with b.counted(self.entries) as e:
            s = self.state(e)
            with self.units() as u:
                whole = bounded(b.fadd(b.intrinsic("llvm.roundeven", b.fdiv(u.get(s.h), scale)), point))
                u.put(s.q, b.fsub(whole, point))


@dataclass
class Units:
    """One vector of hidden units, `offset` bytes into every buffer of them."""

    b: Code
    dtype: str
    offset: Any
    mask: Any

    def get(self, buffer: Any) -> Any:
        return self.b.read(self.b.shifted(buffer, self.offset), self.dtype)

    def put(self, buffer: Any, value: Any) -> None:
        """Zeros past the last unit: the products read them."""
        self.b.write(self.b.select(self.mask, value, self.b.const(0, self.dtype)), self.b.shifted(buffer, self.offset), self.dtype)

    def read(self, address: Any) -> Any:
        """From memory that is not padded."""
        return self.b.read(self.b.address(self.b.add(address, self.offset)), self.dtype, self.mask)


def turned(dtype: str, groups: Sequence[int], names: Sequence[str], symbol: str) -> str:
    """Panels of weights from r [D, gates * H, H]: one task a direction; see `recurrent.panels`."""
    unit, width = size(dtype), lanes_of(dtype)
    columns_of = PANEL * width
    module = ir.Module(symbol)
    b, _, task = entry(module, symbol, width, names)
    hidden = b.word("hidden")
    padded = b.mul(b.udiv(b.add(hidden, I64(width - 1)), I64(width)), I64(width))
    rows = b.mul(b.udiv(b.add(hidden, I64(ROWS - 1)), I64(ROWS)), I64(ROWS))
    target = b.add(b.word("target"), b.mul(task, b.word("target.direction")))
    source = b.add(b.word("source"), b.mul(task, b.word("source.0")))
    for gates in groups:
        panels = b.udiv(b.add(b.mul(padded, I64(gates)), I64(columns_of - 1)), I64(columns_of))
        with b.counted(b.mul(panels, I64(columns_of))) as column, b.counted(rows) as k:
            gate, unit_number = b.udiv(column, padded), b.urem(column, padded)
            real = b.and_(b.icmp_signed("<", gate, I64(gates)), b.and_(b.icmp_signed("<", unit_number, hidden), b.icmp_signed("<", k, hidden)))
            line = b.add(b.mul(gate, hidden), unit_number)
            here = b.add(b.add(source, b.mul(line, b.word("source.1"))), b.mul(k, b.word("source.2")))
            value = b.load(b.address(b.select(real, here, source)), typ=STORED[dtype], align=unit)
            value = b.select(real, value, ir.Constant(STORED[dtype], 0.0))
            panel, lane = b.udiv(column, I64(columns_of)), b.urem(column, I64(columns_of))
            place = b.add(b.mul(b.add(b.mul(panel, rows), k), I64(columns_of)), lane)
            b.store(value, b.address(b.add(target, b.mul(place, I64(unit)))), align=unit)
        target = b.add(target, b.mul(b.mul(panels, rows), I64(columns_of * unit)))
        source = b.add(source, b.mul(b.mul(hidden, I64(gates)), b.word("source.1")))
    b.ret_void()
    return str(module)


__all__ = ["Cell", "turned"]
