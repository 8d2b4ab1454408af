"""What a step of a recurrent kernel computes, in LLVM IR: products of states and weights, cells, states in 8 bits; see recurrent.py."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu import scalars
from gpuonnx.kernels.cpu.lanes import I32, I64, PTR, STORED
from gpuonnx.kernels.cpu.micro import VECTORS, Code, internal
from gpuonnx.kernels.cpu.pairs import PAIR, Pairs
from gpuonnx.kernels.cpu.recurrent import CODES, FUNCTIONS, GATES, Form

X, Y, YH, YC, H0, C0, EXTRA, PEEPHOLES = range(8)
ROWS = (4, 2, 1)
CHAINS = 8


class Functions:
    """The activation functions of ONNX on vectors."""

    def __init__(self, b: Code, dtype: str, alpha: Any, beta: Any) -> None:
        self.b, self.dtype, self.alpha, self.beta = b, dtype, alpha, beta

    def of(self, code: int, x: Any) -> Any:
        return getattr(self, CODES[code].lower())(x)

    def scalar(self, name: str, *args: Any) -> Any:
        return scalars.EMITTERS[name](self.b, self.dtype, *args)

    def number(self, value: float) -> Any:
        return self.b.const(value, self.dtype)

    def relu(self, x: Any) -> Any: return self.scalar("relu", x)
    def tanh(self, x: Any) -> Any: return self.scalar("tanh", x)
    def sigmoid(self, x: Any) -> Any: return self.scalar("sigmoid", x)
    def affine(self, x: Any) -> Any: return self.b.fadd(self.b.fmul(self.alpha, x), self.beta)
    def scaledtanh(self, x: Any) -> Any: return self.b.fmul(self.alpha, self.tanh(self.b.fmul(self.beta, x)))
    def softsign(self, x: Any) -> Any: return self.b.fdiv(x, self.b.fadd(self.number(1), self.scalar("abs", x)))

    def leakyrelu(self, x: Any) -> Any:
        return self.b.select(self.b.fcmp(">=", x, self.number(0)), x, self.b.fmul(self.alpha, x))

    def thresholdedrelu(self, x: Any) -> Any:
        return self.b.select(self.b.fcmp(">", x, self.alpha), x, self.b.fmul(x, self.number(0)))

    def hardsigmoid(self, x: Any) -> Any:
        return self.b.pick("<", self.number(1), self.b.pick(">", self.number(0), self.affine(x)))

    def elu(self, x: Any) -> Any:
        below = self.b.fmul(self.alpha, self.b.fsub(self.scalar("exp", x), self.number(1)))
        return self.b.select(self.b.fcmp(">=", x, self.number(0)), x, below)

    def softplus(self, x: Any) -> Any:
        soft = self.scalar("log", self.b.fadd(self.number(1), self.scalar("exp", x)))
        return self.b.select(self.b.fcmp("<", x, self.number(30)), soft, x)


class Cell:
    """One module: `product` adds state times weights to the gates, `cell<n>` applies the functions of a direction to one entry."""

    def __init__(self, form: Form) -> None:
        self.form, self.dtype, self.lanes, self.unit = form, form.dtype, form.lanes, size(form.dtype)
        self.real, self.vector = STORED[form.dtype], form.lanes * size(form.dtype)

    def render(self, symbol: str) -> None:
        """The module's functions."""
        self.module = ir.Module(symbol)
        self.product = self.render_whole_product() if self.form.whole else self.render_product()
        body = {"rnn": self.rnn, "gru": self.gru, "lstm": self.lstm}[self.form.cell]
        self.cells = [self.render_cell(k, codes, body) for k, codes in enumerate(self.form.codes)]
        self.after_reset = [self.render_cell(k, codes, self.gru_after_reset, "after_reset") for k, codes in enumerate(self.form.codes)
                            ] if self.two_products else []
        self.quantize = self.render_quantize() if self.form.quantized else None

    @property
    def two_products(self) -> bool:
        return self.form.cell == "gru" and not self.form.linear_before_reset

    def function(self, name: str, kinds: Sequence[Any]) -> tuple[Code, Any, Sequence[Any]]:
        return internal(self.module, name, self.lanes, self.form.names, kinds)

    def load(self, b: Code, pointer: Any) -> Any:
        return b.load(pointer, typ=b.vector(self.real), align=self.unit)

    def gate(self, b: Code) -> Any:
        """Bytes of one gate of an entry."""
        return b.mul(b.word("panels"), I64(VECTORS * self.vector))

    # the product
    def render_product(self) -> Any:
        """void product(args, gates, states, weights, from, to, rows): gates[row] += states[row] times weights [panels, H, panel], for panels
        `from` to `to`."""
        b, function, (gates, states, weights, start, stop, rows) = self.function("product", [PTR, PTR, PTR, I64, I64, I64])
        hidden, line, state = b.word("hidden"), b.word("line"), b.word("state")
        with b.loop(start, stop, 1) as p:
            panel = b.shifted(weights, b.mul(p, b.mul(hidden, I64(VECTORS * self.vector))))
            first = b.shifted(gates, b.mul(p, I64(VECTORS * self.vector)))
            done: Any = I64(0)
            for m in ROWS:
                most = b.and_(rows, I64(-m))
                with b.loop(done, most, m) as row:
                    self.tile(b, m, b.shifted(first, b.mul(row, line)), b.shifted(states, b.mul(row, state)), panel)
                done = most
        b.ret_void()
        return function

    def tile(self, b: Code, m: int, gates: Any, states: Any, panel: Any) -> None:
        """m rows of one panel, in as many chains as hide the latency of the multiply-add."""
        hidden, line, state = b.word("hidden"), b.word("line"), b.word("state")
        cells, unroll = m * VECTORS, CHAINS // (m * VECTORS)
        places = [b.shifted(b.shifted(gates, b.mul(line, I64(i))), j * self.vector) for i in range(m) for j in range(VECTORS)]
        lines = [b.shifted(states, b.mul(state, I64(i))) for i in range(m)]
        zero = b.const(0.0, self.dtype)
        sums = [*(self.load(b, place) for place in places), *[zero] * (cells * (unroll - 1))]

        def steps(k: Any, sums: list[Any], count: int) -> list[Any]:
            out = list(sums)
            for u in range(count):
                at = b.add(k, I64(u))
                columns = [self.load(b, b.shifted(panel, b.add(b.mul(at, I64(VECTORS * self.vector)), I64(j * self.vector)))) for j in range(VECTORS)]
                for i, row in enumerate(lines):
                    value = b.splat(b.load(b.shifted(row, b.mul(at, I64(self.unit))), typ=self.real, align=self.unit))
                    for j, column in enumerate(columns):
                        cell = u * cells + i * VECTORS + j
                        out[cell] = b.madd(value, column, out[cell])
            return out
        whole = b.and_(hidden, I64(-unroll))
        sums = b.carry(I64(0), whole, unroll, sums, lambda k, carried: steps(k, carried, unroll))
        if unroll > 1:
            sums = b.carry(whole, hidden, 1, sums, lambda k, carried: steps(k, carried, 1))
        while len(sums) > cells:
            half = len(sums) // 2
            sums = [b.fadd(x, y) for x, y in zip(sums[:half], sums[half:], strict=True)]
        for place, total in zip(places, sums, strict=True):
            b.store(total, place, align=self.unit)

    def render_whole_product(self) -> Any:
        """void product(args, gates, states, weights, scales, from, to, rows): gates[row] += integer states times integer weights, scaled."""
        b, function, (gates, states, weights, scales, start, stop, rows) = self.function("product", [PTR, PTR, PTR, PTR, I64, I64, I64])
        line, state, width = b.word("line"), b.word("state"), VECTORS * self.vector
        with b.loop(start, stop, 1) as p:
            panel = b.shifted(weights, b.mul(p, b.mul(b.word("quads"), I64(2 * PAIR * VECTORS * self.lanes))))
            first, factors = (b.shifted(base, b.mul(p, I64(width))) for base in (gates, scales))
            done: Any = I64(0)
            for m in ROWS:
                most = b.and_(rows, I64(-m))
                with b.loop(done, most, m) as row:
                    places = b.shifted(first, b.mul(row, line))
                    totals = self.whole_tile(b, m, b.shifted(states, b.mul(row, state)), panel)
                    scale = b.splat(b.load(self.state_scale(b, states), typ=self.real, align=self.unit))
                    for i, total in enumerate(totals):
                        place = b.shifted(b.shifted(places, b.mul(line, I64(i // VECTORS))), i % VECTORS * self.vector)
                        factor = b.fmul(scale, self.load(b, b.shifted(factors, i % VECTORS * self.vector)))
                        b.store(b.madd(b.sitofp(total, factor.type), factor, self.load(b, place)), place, align=self.unit)
                done = most
        b.ret_void()
        return function

    def state_scale(self, b: Code, states: Any) -> Any:
        """The scale of the quantized states stands behind those of all entries."""
        return b.shifted(states, b.mul(b.word("group"), b.word("state")))

    def whole_tile(self, b: Code, m: int, states: Any, panel: Any) -> list[Any]:
        dot, state = Pairs(), b.word("state")
        lines = [b.shifted(states, b.mul(state, I64(i))) for i in range(m)]
        half, bytes_ = ir.IntType(16), ir.VectorType(ir.IntType(8), PAIR * self.lanes)

        def step(quad: Any, sums: list[Any]) -> list[Any]:
            out = list(sums)
            for u in range(2):
                k = b.add(b.mul(quad, I64(2)), I64(u))
                at = b.shifted(panel, b.mul(k, I64(PAIR * VECTORS * self.lanes)))
                columns = [b.sext(b.load(b.shifted(at, j * PAIR * self.lanes), typ=bytes_, align=1), ir.VectorType(half, PAIR * self.lanes))
                           for j in range(VECTORS)]
                for i, line in enumerate(lines):
                    value = b.splat(b.load(b.shifted(line, b.mul(k, I64(4))), typ=I32, align=2))
                    for j, column in enumerate(columns):
                        cell = i * VECTORS + j
                        out[cell] = dot.dot(b, value, b.bitcast(column, b.vector(I32)), out[cell])
            return out
        return b.carry(I64(0), b.word("quads"), 1, [dot.zero(b)] * (m * VECTORS), step)

    # the cells
    def render_cell(self, number: int, codes: tuple[int, ...], body: Callable[..., None], name: str = "cell") -> Any:
        """void cell(args, gates, h, next, c, spare, numbers, direction, from, to): an entry's new state, elements `from` to `to`, from its gates."""
        b, function, (gates, h, after, c, spare, numbers, direction, start, stop) = self.function(
            f"{name}{number}", [PTR, PTR, PTR, PTR, PTR, PTR, I64, I64, I64])
        constant = [b.splat(b.load(b.shifted(numbers, k * self.unit), typ=self.real, align=self.unit)) for k in range(2 * len(codes))]
        limit = None
        if self.form.clip:
            both = 2 * FUNCTIONS[self.form.cell] * self.unit
            directions = b.select(b.icmp_signed("==", b.word("direction"), I64(2)), I64(2 * both), I64(both))
            limit = b.splat(b.load(b.shifted(b.address(b.word("numbers")), directions), typ=self.real, align=self.unit))

        def applied(which: int, x: Any, clipped: bool = True) -> Any:
            if limit is not None and clipped:
                x = b.pick("<", limit, b.pick(">", b.fneg(limit), x))
            return Functions(b, self.dtype, *constant[2 * which:2 * which + 2]).of(codes[which], x)
        hidden = b.word("hidden")
        with b.loop(start, stop, self.lanes) as j:
            offset = b.mul(j, I64(self.unit))
            gate = [b.shifted(b.shifted(gates, b.mul(self.gate(b), I64(k))), offset) for k in range(GATES[self.form.cell])]
            peephole: list[Any] = []
            if self.form.peepholes:
                mask = b.lanes_below(b.sub(hidden, j))
                base = b.address(b.add(b.word("peepholes"), b.mul(direction, b.word("peepholes.d"))))
                peephole = [self.strided(b, b.shifted(base, b.mul(b.add(b.mul(hidden, I64(k)), j), b.word("peepholes.j"))), mask) for k in range(3)]
            body(b, applied, gate, *(b.shifted(p, offset) for p in (h, after, c, spare)), peephole)
        b.ret_void()
        return function

    def strided(self, b: Code, pointer: Any, mask: Any) -> Any:
        """A vector of weights whose last axis may have any stride."""
        if self.form.unit[PEEPHOLES]:
            return b.read(pointer, self.dtype, mask)
        steps = b.mul(b.iota(), b.splat(b.sdiv(b.word("peepholes.j"), I64(self.unit))))
        return b.gather(pointer, steps, self.dtype, mask)

    def rnn(self, b: Code, f: Any, gate: list[Any], h: Any, after: Any, c: Any, spare: Any, peephole: list[Any]) -> None:
        b.store(f(0, self.load(b, gate[0])), after, align=self.unit)

    def gru(self, b: Code, f: Any, gate: list[Any], h: Any, after: Any, c: Any, spare: Any, peephole: list[Any]) -> None:
        """gates z, r, h. Before the reset: `spare` has the input's part of h. After it: spare = z and c = r * h are for the second product."""
        z, r = f(0, self.load(b, gate[0])), f(0, self.load(b, gate[1]))
        if self.two_products:
            b.store(z, spare, align=self.unit)
            b.store(b.fmul(r, self.load(b, h)), c, align=self.unit)
            return
        self.blend(b, z, f(1, b.fadd(self.load(b, spare), b.fmul(r, self.load(b, gate[2])))), h, after)

    def gru_after_reset(self, b: Code, f: Any, gate: list[Any], h: Any, after: Any, c: Any, spare: Any, peephole: list[Any]) -> None:
        self.blend(b, self.load(b, spare), f(1, self.load(b, gate[2])), h, after)

    def blend(self, b: Code, z: Any, new: Any, h: Any, after: Any) -> None:
        kept = b.fmul(z, self.load(b, h))
        b.store(b.fadd(b.fmul(b.fsub(b.const(1.0, self.dtype), z), new), kept), after, align=self.unit)

    def lstm(self, b: Code, f: Any, gate: list[Any], h: Any, after: Any, c: Any, spare: Any, peephole: list[Any]) -> None:
        """gates i, o, f, c; peepholes i, o, f."""
        i, o, forget, new = (self.load(b, g) for g in gate)
        old = self.load(b, c)
        if peephole:
            i, forget = b.fadd(i, b.fmul(peephole[0], old)), b.fadd(forget, b.fmul(peephole[2], old))
        i = f(0, i)
        forget = b.fsub(b.const(1.0, self.dtype), i) if self.form.input_forget else f(0, forget)
        cell = b.fadd(b.fmul(forget, old), b.fmul(i, f(1, new)))
        b.store(cell, c, align=self.unit)
        if peephole:
            o = b.fadd(o, b.fmul(peephole[1], cell))
        b.store(b.fmul(f(0, o), f(2, cell, False)), after, align=self.unit)

    # states
    def render_quantize(self) -> Any:
        """void quantize(args, states, out, entries): states through 8 bits, scale and zero point from their range (as DynamicQuantizeLinear);
        with integer weights they stay int16, less the zero point, and the scale stands behind them."""
        b, function, (states, out, entries) = self.function("quantize", [PTR, PTR, I64])
        hidden, state, zero = b.word("hidden"), b.word("state"), b.const(0.0, self.dtype)

        def place(base: Any, e: Any, j: Any) -> Any:
            return b.shifted(base, b.add(b.mul(e, state), b.mul(j, I64(self.unit))))

        def ends(e: Any, j: Any, found: list[Any]) -> list[Any]:
            value = b.select(b.lanes_below(b.sub(hidden, j)), self.load(b, place(states, e, j)), zero)
            return [b.pick("<", value, found[0]), b.pick(">", value, found[1])]
        low, high = b.carry(I64(0), entries, 1, [zero, zero],
                            lambda e, found: b.carry(I64(0), hidden, self.lanes, found, lambda j, inner: ends(e, j, inner)))
        low, high = (b.across(lambda x, y, o=o: b.pick(o, x, y), v) for o, v in (("<", low), (">", high)))
        most = b.const(255.0, self.dtype)
        scale = b.select(b.fcmp(">", high, low), b.fdiv(b.fsub(high, low), most), b.const(1.0, self.dtype))

        def whole(x: Any) -> Any:
            return b.pick("<", most, b.pick(">", zero, x))
        middle = whole(self.rounded(b, b.fdiv(b.fneg(low), scale)))
        with b.counted(entries) as e, b.loop(I64(0), hidden, self.lanes) as j:
            code = whole(b.fadd(self.rounded(b, b.fdiv(self.load(b, place(states, e, j)), scale)), middle))
            if self.form.whole:
                small = b.trunc(b.convert(b.fsub(code, middle), self.dtype, "i32"), b.vector(ir.IntType(16)))
                b.store(small, b.shifted(out, b.add(b.mul(e, state), b.mul(j, I64(2)))), align=2)
            else:
                b.store(b.fmul(b.fsub(code, middle), scale), place(out, e, j), align=self.unit)
        if self.form.whole:
            b.store(b.lane(scale), self.state_scale(b, out), align=self.unit)
        b.ret_void()
        return function

    def rounded(self, b: Code, x: Any) -> Any:
        return b.intrinsic("llvm.roundeven", x)

    def copy(self, b: Code, source: Any, target: Any, count: Any, step: Any = None, reading: bool = True) -> None:
        """`count` elements between dense memory with room behind it and a tensor, the source if `reading`, whose elements are `step` bytes
        apart (None: they are dense too)."""
        if step is not None:
            with b.counted(count) as j:
                near, far = b.mul(j, I64(self.unit)), b.mul(j, step)
                value = b.load(b.shifted(source, far if reading else near), typ=self.real, align=self.unit)
                b.store(value, b.shifted(target, near if reading else far), align=self.unit)
            return
        whole = b.and_(count, I64(-self.lanes))
        with b.loop(I64(0), whole, self.lanes) as j:
            at = b.mul(j, I64(self.unit))
            b.store(self.load(b, b.shifted(source, at)), b.shifted(target, at), align=self.unit)
        with b.if_then(b.icmp_signed("<", whole, count)):
            at, mask = b.mul(whole, I64(self.unit)), b.lanes_below(b.sub(count, whole))
            if reading:
                b.store(b.read(b.shifted(source, at), self.dtype, mask), b.shifted(target, at), align=self.unit)
            else:
                b.write(self.load(b, b.shifted(source, at)), b.shifted(target, at), self.dtype, mask)

    def spread(self, b: Code, name: str, which: int) -> Any:
        return None if self.form.unit[which] else b.word(f"{name}.j")

    def zero(self, b: Code, target: Any, count: Any, step: Any) -> None:
        with b.counted(count) as j:
            b.store(self.real(0.0), b.shifted(target, b.mul(j, step)), align=self.unit)

    def at(self, code: Code, name: str, **indices: Any) -> Any:
        where = code.word(name)
        for axis, index in indices.items():
            where = code.add(where, code.mul(index, code.word(f"{name}.{axis}")))
        return code.address(where)

    def given(self, b: Code, name: str) -> Any:
        return b.icmp_signed("!=", b.word(name), I64(0))
