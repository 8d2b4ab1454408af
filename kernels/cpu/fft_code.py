"""The kernel "fft" as vector code: a plan and its table, then Stockham's passes, one for each factor, between two arrays.

Rows that are short stand side by side as lanes of [points, lanes]. A longer one is an array of its own until a pass has too few `i` for
a vector: then [l1, rest] turns to [l1 / lanes, rest, lanes], after which every lane is a transform of its own, and the last pass
leaves the results in order. Only the forward sign is computed: the inverse is the same with the planes exchanged.

Plan: length of the passes, of the convolution (0: none), number of factors, the factors, and at CHIRP where in the table the chirp
stands. Table: for each pass its roots (fft_pass.py), then the chirp [2, points] and its transform [2, length].
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.fft import MOST_TOGETHER, PLAN_WORDS, Form
from gpuonnx.kernels.cpu.fft_pass import ANY, BUTTERFLIES, Complex, Passes, Planes
from gpuonnx.kernels.cpu.lanes import I1, I32, I64, PTR, STORED
from gpuonnx.kernels.cpu.micro import Code, entry

LENGTH, CONVOLUTION, COUNT, FACTORS, CHIRP = 0, 1, 2, 3, PLAN_WORDS - 1
DOUBLE = ir.DoubleType()


def plan(b: Code, place: Any) -> Any:
    """Where a word of the plan stands."""
    return b.gep(b.address(b.word("plan")), [I64(place) if isinstance(place, int) else place], source_etype=I64)


def planned(b: Code, place: Any) -> Any:
    return b.load(plan(b, place), typ=I64)


class Fourier(Passes):
    """One module."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def text(self, symbol: str) -> str:
        super().__init__(ir.Module(symbol), self.form.work, self.form.names)
        self.transform = self.render_transform()
        planner, rows = self.render_planner(), self.render_rows()
        b, _, task = entry(self.module, symbol, self.width, self.names)
        with b.if_then(b.icmp_signed(">", b.word("points"), I64(0))), b.if_else(b.icmp_signed("!=", b.word("planned"), I64(0))) as (run, make):
            with run:
                b.call(rows, [b.args, task])
            with make:
                b.call(planner, [b.args])
        b.ret_void()
        return str(self.module)

    # transforms
    def render_transform(self) -> Any:
        """void transform(args, source, target, apart, lanes, found): all passes; found[0]: which of the arrays has the result, [1] the other."""
        fold, spread = self.render_fold(), self.render_spread()
        passes = [(factor, [self.render(factor, lanes) for lanes in (False, True)]) for factor in (*BUTTERFLIES, ANY)]
        b, function, (source, target, apart, lanes, found) = self.function("transform", [PTR, PTR, I64, I64, PTR])
        length = planned(b, LENGTH)
        state = {name: b.variable(I64) for name in ("l1", "rest", "place", "lanes", "run")}
        for name, value in (("l1", I64(1)), ("rest", length), ("place", b.word("table")), ("lanes", lanes), ("run", I64(0))):
            b.store(value, state[name])
        b.store(source, found)
        b.store(target, b.shifted(found, 8))

        def now(name: str) -> Any:
            return b.load(state[name], typ=I64)

        def call(what: Any, *args: Any) -> None:
            arrays = [b.load(b.shifted(found, 8 * k), typ=PTR) for k in (0, 1)]
            b.call(what, [b.args, *arrays, apart, *args])
            b.store(arrays[1], found)
            b.store(arrays[0], b.shifted(found, 8))
        with b.counted(planned(b, COUNT)) as f:
            p = planned(b, b.add(f, I64(FACTORS)))
            ido = b.udiv(now("rest"), p)
            few = b.icmp_signed("<", ido, I64(self.width))
            with b.if_then(b.and_(few, b.icmp_signed("==", now("lanes"), I64(0)))):
                l1 = now("l1")
                blocks = self.blocks(b, l1)
                call(fold, l1, now("rest"))
                for name, value in (("run", l1), ("l1", blocks), ("lanes", I64(1))):
                    b.store(value, state[name])
            place, l1 = now("place"), now("l1")
            done, default = b.append_basic_block("passed"), b.append_basic_block("any")
            switch = b.switch(p, default)
            for factor, ways in passes:
                block = b.append_basic_block(f"factor{factor}") if factor else default
                if factor:
                    switch.add_case(I64(factor), block)
                b.position_at_end(block)
                with b.if_else(b.icmp_signed("==", now("lanes"), I64(0))) as branches:
                    for way, branch in zip(ways, branches, strict=True):
                        with branch:
                            call(way, p, l1, ido, b.address(place))
                b.branch(done)
            b.position_at_end(done)
            for name, value in (("place", b.add(place, b.mul(self.roots_of(b, p, ido), I64(self.unit)))), ("l1", b.mul(l1, p)), ("rest", ido)):
                b.store(value, state[name])
        run = now("run")
        pitch = b.mul(self.blocks(b, run), I64(self.width))
        with b.if_then(b.icmp_signed("!=", run, pitch)):
            call(spread, run, pitch, length)
        b.ret_void()
        return function

    def blocks(self, b: Code, count: Any) -> Any:
        """Vectors that hold so many numbers."""
        return b.udiv(b.add(count, I64(self.width - 1)), I64(self.width))

    def roots_of(self, b: Code, p: Any, ido: Any) -> Any:
        """How many numbers of the table belong to a pass."""
        known = b.or_(b.icmp_signed("<=", p, I64(5)), b.icmp_signed("==", p, I64(8)))
        return b.mul(b.add(b.mul(b.sub(p, I64(1)), ido), b.select(known, I64(0), p)), I64(2))

    def render_fold(self) -> Any:
        """void fold(args, source, target, apart, l1, rest): [l1, rest] -> [l1 / lanes, rest, lanes]; lanes too many repeat the last."""
        b, function, (source, target, apart, l1, rest) = self.function("fold", [PTR, PTR, I64, I64, I64])
        x, y = (Planes(b, self.work, start, apart) for start in (source, target))
        last = b.splat(b.sub(l1, I64(1)))
        with b.counted(self.blocks(b, l1)) as block:
            line = b.add(b.splat(b.mul(block, I64(self.width))), b.iota("i64"))
            lines = b.mul(b.select(b.icmp_signed("<", line, last), line, last), b.splat(rest))
            with b.counted(rest) as i:
                y.moved(b.mul(b.add(b.mul(block, rest), i), I64(self.width))).write(x.moved(i).gathered(lines))
        b.ret_void()
        return function

    def render_spread(self) -> Any:
        """void spread(args, source, target, apart, run, pitch, count): runs that begin `pitch` numbers apart -> `count` numbers without gaps."""
        b, function, (source, target, apart, run, pitch, count) = self.function("spread", [PTR, PTR, I64, I64, I64, I64])
        x, y = (Planes(b, self.work, start, apart) for start in (source, target))
        with b.counted(b.udiv(count, run)) as j, b.loop(I64(0), run, self.width) as i:
            y.moved(b.add(b.mul(j, run), i)).write(x.moved(b.add(b.mul(j, pitch), i)).read())
        b.ret_void()
        return function

    # the plan
    def render_planner(self) -> Any:
        """void planner(args): the plan and the table of `points`."""
        prepare = self.render_prepare()
        b, function, _ = self.function("planner", [])
        n, room = b.word("points"), b.address(b.word("room"))
        m = self.padded(b, n)
        length = b.select(b.icmp_signed("!=", m, I64(0)), m, n)
        b.store(length, plan(b, LENGTH))
        b.store(m, plan(b, CONVOLUTION))
        self.factorize(b, length)
        shift = self.shift(b, length)
        b.call(prepare, [b.args, length, shift])
        roots = Roots(b, self.work, room, shift)

        def passes(f: Any, carried: list[Any]) -> list[Any]:
            l1, place = carried
            p = planned(b, b.add(f, I64(FACTORS)))
            ido = b.udiv(length, b.mul(l1, p))
            table = self.table(b, place, ido)
            with b.loop(I64(1), p, 1) as j:
                step = b.mul(j, l1)
                roots.write(table.moved(b.mul(b.sub(j, I64(1)), I64(2)), b.mul(ido, I64(self.unit))), ido, lambda i: b.mul(i, b.splat(step)))
            after, units = b.add(place, self.roots_of(b, p, ido)), b.add(place, b.mul(b.mul(b.sub(p, I64(1)), ido), I64(2)))
            with b.if_then(b.icmp_signed("!=", after, units)):
                roots.write(self.table(b, units, p), p, lambda i: b.mul(i, b.splat(b.udiv(length, p))))
            return [b.mul(l1, p), after]
        _, place = b.carry(I64(0), planned(b, COUNT), 1, [I64(1), I64(0)], passes)
        b.store(place, plan(b, CHIRP))
        with b.if_then(b.icmp_signed("!=", m, I64(0))):
            double = b.mul(n, I64(2))
            shift = self.shift(b, double)
            b.call(prepare, [b.args, double, shift])
            chirp = self.table(b, place, n)
            Roots(b, self.work, room, shift).write(chirp, n, lambda k: b.urem(b.mul(k, k), b.splat(double)))
            self.spectrum(b, chirp, m, self.table(b, b.add(place, double), m))
        b.ret_void()
        return function

    def table(self, b: Code, place: Any, count: Any) -> Planes:
        """`count` numbers of the table."""
        return Planes(b, self.work, b.address(b.word("table")), b.mul(count, I64(self.unit))).moved(place)

    def spectrum(self, b: Code, chirp: Planes, m: Any, target: Planes) -> None:
        """The transform of the chirp and the same backwards, on `m` points, divided by m."""
        n, scale = b.word("points"), b.fdiv(DOUBLE(1.0), b.sitofp(m, DOUBLE))
        room = Planes(b, self.work, b.address(b.word("room")), b.word("plane"))
        self.clear(b, room, I64(0), m)
        with b.counted(n) as k:
            for part in (I64(0), I64(1)):
                value = b.load(b.shifted(chirp.moved(k).start, b.mul(part, chirp.apart)), typ=STORED[self.work], align=self.unit)
                value = value if self.work == "f64" else b.fpext(value, DOUBLE)
                value = b.fmul(value, scale)
                value = value if self.work == "f64" else b.fptrunc(value, STORED[self.work])
                for place in (k, b.urem(b.sub(m, k), m)):
                    b.store(value, b.shifted(room.moved(place).start, b.mul(part, room.apart)), align=self.unit)
        found = b.array(PTR, 2)
        b.call(self.transform, [b.args, room.start, room.moved(I64(2), room.apart).start, room.apart, I64(0), found])
        result = Planes(b, self.work, b.load(found, typ=PTR), room.apart)
        with b.loop(I64(0), m, self.width) as k:
            target.moved(k).write(result.moved(k).read(), b.lanes_below(b.sub(m, k)))

    def clear(self, b: Code, target: Planes, first: Any, stop: Any) -> None:
        zero = b.const(0.0, self.work)
        with b.loop(first, stop, self.width) as k:
            target.moved(k).write(Complex(b, zero, zero))

    def cost(self, b: Code, n: Any) -> Any:
        """About how many operations the factors of n take."""
        def weight(p: Any) -> Any:
            return b.add(p, b.select(b.icmp_signed("<=", p, I64(5)), I64(0), b.lshr(p, I64(3))))

        def next_factor(state: list[Any]) -> list[Any]:
            p, rest, total = state
            divides = b.icmp_signed("==", b.urem(rest, p), I64(0))
            return [b.select(divides, p, b.add(p, I64(1))), b.select(divides, b.udiv(rest, p), rest),
                    b.add(total, b.select(divides, weight(p), I64(0)))]
        _, rest, total = b.during([I64(2), n, I64(0)], lambda state: b.icmp_signed("<=", b.mul(state[0], state[0]), state[1]), next_factor)
        return b.mul(b.add(total, b.add(rest, b.lshr(rest, I64(3)))), n)

    def padded(self, b: Code, n: Any) -> Any:
        """The length of the convolution that does for `n` points, at most 5 / 2 of it; 0 where their own factors are cheaper."""
        least, best = b.sub(b.mul(n, I64(2)), I64(1)), I64(1 << 62)
        for first in (1, 3, 5, 9, 15):
            [m] = b.during([I64(first)], lambda state: b.icmp_signed("<", state[0], least), lambda state: [b.shl(state[0], I64(1))])
            best = b.least(m, best)
        pays = b.icmp_signed("<", b.mul(I64(3), self.cost(b, best)), self.cost(b, n))
        return b.select(b.and_(pays, b.icmp_signed(">=", n, I64(50))), best, I64(0))

    def factorize(self, b: Code, length: Any) -> None:
        """8s, 4s, a 2 in front, then the odd ones."""
        def step(state: list[Any]) -> list[Any]:
            p, rest, count = state
            divides = b.icmp_signed("==", b.urem(rest, p), I64(0))
            with b.if_then(divides):
                b.store(p, plan(b, b.add(count, I64(FACTORS))))
                with b.if_then(b.icmp_signed("==", p, I64(2))):
                    b.store(planned(b, FACTORS), plan(b, b.add(count, I64(FACTORS))))
                    b.store(I64(2), plan(b, FACTORS))
            smaller = b.select(b.icmp_signed(">", p, I64(2)), b.lshr(p, I64(1)), I64(3))
            odd = b.add(p, I64(2))
            odd = b.select(b.icmp_signed(">", b.mul(odd, odd), rest), rest, odd)
            other = b.select(b.trunc(p, ir.IntType(1)), odd, smaller)
            return [b.select(divides, p, other), b.select(divides, b.udiv(rest, p), rest), b.add(count, b.zext(divides, I64))]
        _, _, count = b.during([I64(8), length, I64(0)], lambda state: b.icmp_signed(">", state[1], I64(1)), step)
        b.store(count, plan(b, COUNT))

    def shift(self, b: Code, n: Any) -> Any:
        """Bits of the first of two small tables whose products are all n roots of 1."""
        return b.during([I64(0)], lambda s: b.icmp_signed("<", b.shl(I64(1), b.shl(s[0], I64(1))), n), lambda s: [b.add(s[0], I64(1))])[0]

    def render_prepare(self) -> Any:
        """void prepare(args, n, shift): both tables to the room, as pairs of doubles; angles are below an eighth of a turn."""
        b, function, (n, shift) = self.function("prepare", [I64, I64])
        first, room = b.shl(I64(1), shift), Planes(b, "f64", b.address(b.word("room")), I64(8))
        functions = [ir.Function(self.module, ir.FunctionType(DOUBLE, [DOUBLE]), name) for name in ("cos", "sin")]
        with b.counted(b.add(first, b.add(b.lshr(n, shift), I64(1)))) as place:
            k = b.select(b.icmp_signed("<", place, first), place, b.shl(b.sub(place, first), shift))
            quarters = b.mul(k, I64(4))
            quarter, rest = b.udiv(quarters, n), b.urem(quarters, n)
            swapped = b.icmp_signed(">", b.shl(rest, I64(1)), n)
            share = b.sitofp(b.select(swapped, b.sub(n, rest), rest), DOUBLE)
            angle = b.fdiv(b.fmul(share, DOUBLE(0.5 * math.pi)), b.sitofp(n, DOUBLE))
            values = [b.call(f, [angle]) for f in functions]
            other = b.xor(swapped, b.trunc(quarter, ir.IntType(1)))
            for at, x, y, turns in ((0, values[0], values[1], b.add(quarter, I64(1))), (8, values[1], values[0], quarter)):
                value = b.select(other, y, x)
                negative = b.icmp_signed("!=", b.and_(turns, I64(2)), I64(0))
                b.store(b.select(negative, b.fneg(value), value), b.shifted(room.moved(place, I64(16)).start, at), align=8)
        b.ret_void()
        return function


    # the rows
    def render_rows(self) -> Any:
        """void rows(args, task): every `tasks`-th row, or group of rows."""
        load, store, convolve = self.render_load(), self.render_store(), self.render_convolve()
        b, function, (task,) = self.function("rows", [I64])
        rows, tasks, plane = b.word("rows"), b.word("tasks"), b.word("plane")
        inverse = b.icmp_signed("!=", b.word("inverse"), I64(0))
        many = b.icmp_signed(">", b.mul(rows, I64(2)), I64(self.width))
        together = b.and_(many, b.icmp_signed("<=", planned(b, LENGTH), I64(MOST_TOGETHER)))
        lanes, group = b.zext(together, I64), b.select(together, I64(self.width), I64(1))
        room = b.shifted(b.address(b.word("room")), b.mul(b.mul(task, plane), I64(4)))
        swap, apart, found = b.select(inverse, plane, I64(0)), b.select(inverse, b.neg(plane), plane), b.array(PTR, 2)
        source, target = b.shifted(room, swap), b.shifted(room, b.add(swap, b.mul(plane, I64(2))))
        groups = b.udiv(b.add(rows, b.sub(group, I64(1))), group)
        with b.counted(b.sdiv(b.add(b.sub(groups, task), b.sub(tasks, I64(1))), tasks)) as turn:
            first = b.mul(b.add(task, b.mul(turn, tasks)), group)
            b.call(load, [b.args, room, first, lanes])
            with b.if_else(b.icmp_signed("!=", planned(b, CONVOLUTION), I64(0))) as (long, short):
                with long:
                    b.call(convolve, [b.args, source, target, apart, lanes, found])
                with short:
                    b.call(self.transform, [b.args, source, target, apart, lanes, found])
            b.call(store, [b.args, b.shifted(b.load(found, typ=PTR), b.neg(swap)), first, lanes])
        b.ret_void()
        return function

    def render_convolve(self) -> Any:
        """void convolve(args, source, target, apart, lanes, found): the transform of `points` as a convolution with the chirp."""
        times = self.render_times()
        b, function, (source, target, apart, lanes, found) = self.function("convolve", [PTR, PTR, I64, I64, PTR])
        n, m, at = b.word("points"), planned(b, CONVOLUTION), planned(b, CHIRP)
        chirp, spectrum = self.table(b, at, n).start, self.table(b, b.add(at, b.mul(n, I64(2))), m).start
        one, back = STORED[self.work](1.0), b.neg(apart)
        b.call(times, [b.args, source, apart, chirp, n, one, lanes])
        wide = b.select(b.icmp_signed("!=", lanes, I64(0)), I64(self.width), I64(1))
        self.clear(b, Planes(b, self.work, source, apart), b.mul(n, wide), b.mul(m, wide))
        b.call(self.transform, [b.args, source, target, apart, lanes, found])
        result, other = (b.load(b.shifted(found, 8 * k), typ=PTR) for k in (0, 1))
        b.call(times, [b.args, result, apart, spectrum, m, STORED[self.work](-1.0), lanes])
        b.call(self.transform, [b.args, b.shifted(result, apart), b.shifted(other, apart), back, lanes, found])
        result = b.shifted(b.load(found, typ=PTR), back)
        b.call(times, [b.args, result, apart, chirp, n, one, lanes])
        b.store(result, found)
        b.ret_void()
        return function

    def render_times(self) -> Any:
        """void times(args, data, apart, roots, count, sign, lanes): every point times its root (sign -1) or the conjugate (1)."""
        b, function, (data, apart, roots, count, sign, lanes) = self.function("times", [PTR, I64, PTR, I64, STORED[self.work], I64])
        points, table = Planes(b, self.work, data, apart), Planes(b, self.work, roots, b.mul(count, I64(self.unit)))
        factor = b.splat(sign)

        def turn(place: Planes, root: Complex) -> None:
            place.write(place.read().by_conjugate(Complex(b, root.re, b.fmul(root.im, factor))))
        with b.if_else(b.icmp_signed("!=", lanes, I64(0))) as (many, one):
            with many, b.counted(count) as k:
                turn(points.moved(b.mul(k, I64(self.width))), table.moved(k).repeated())
            with one, b.counted(count, self.width) as k:
                turn(points.moved(k), table.moved(k).read())
        b.ret_void()
        return function

    def render_load(self) -> Any:
        """void load(args, room, first row, lanes): the points of a row or of a group of rows."""
        b, function, (room, first, lanes) = self.function("load", [PTR, I64, I64])
        lines, target = Lines(b, "x", first, lanes), Planes(b, self.work, room, b.word("plane"))
        points, zero = b.splat(b.word("points")), b.const(0.0, self.form.dtype)
        folded = b.select(b.icmp_signed("!=", b.word("hermitian"), I64(0)), b.lshr(b.word("points"), I64(1)), b.word("points"))
        have, half = b.splat(b.word("have")), b.splat(folded)
        with lines.each(b.word("points")) as (turn, k):
            back = b.icmp_signed(">", k, half)
            inside = b.icmp_signed("<", k, points)
            k = b.select(back, b.sub(points, k), k)
            re, im = lines.read(k, b.and_(inside, b.icmp_signed("<", k, have)), self.form.dtype, zero)
            value = Complex(b, re, b.select(back, b.fneg(im), im))
            if self.form.dtype != self.work:
                value = Complex(b, *(b.convert(part, self.form.dtype, self.work) for part in value.parts()))
            target.moved(b.mul(turn, I64(self.width))).write(value)
        b.ret_void()
        return function

    def render_store(self) -> Any:
        """void store(args, result, first row, lanes): the bins that are kept; of an inverse, divided by the number of points."""
        b, function, (result, first, lanes) = self.function("store", [PTR, I64, I64])
        lines, source = Lines(b, "y", first, lanes), Planes(b, self.work, result, b.word("plane"))
        whole = b.fdiv(DOUBLE(1.0), b.sitofp(b.word("points"), DOUBLE))
        scale = b.splat(b.select(b.icmp_signed("!=", b.word("inverse"), I64(0)), whole, DOUBLE(1.0)))
        scale, kept = b.convert(scale, "f64", self.work), b.splat(b.word("kept"))
        with lines.each(b.word("kept")) as (turn, k):
            value = source.moved(b.mul(turn, I64(self.width))).read().by(scale)
            if self.form.dtype != self.work:
                value = Complex(b, *(b.convert(part, self.work, self.form.dtype) for part in value.parts()))
            lines.write(k, b.icmp_signed("<", k, kept), self.form.dtype, value)
        b.ret_void()
        return function


class Lines:
    """The numbers of x or y by vectors: one point of a row a lane, or a vector of points of one row."""

    def __init__(self, b: Code, name: str, first: Any, lanes: Any) -> None:
        self.b, self.name, self.lanes = b, name, lanes
        row = b.add(b.splat(first), b.mul(b.iota("i64"), b.splat(lanes)))
        last, inner = b.splat(b.sub(b.word("rows"), I64(1))), b.splat(b.word("inner"))
        self.exists = b.icmp_signed("<=", row, last)
        row = b.select(self.exists, row, last)
        self.base = b.add(b.mul(b.udiv(row, inner), self.step("a")), b.mul(b.urem(row, inner), self.step("c")))
        self.pairs = b.icmp_signed("==", b.word(f"{name}.parts"), I64(2))
        self.near = b.or_(b.xor(self.pairs, I1(1)), b.icmp_signed("==", b.word(f"{name}.p"), I64(1)))

    def step(self, axis: str) -> Any:
        return self.b.splat(self.b.word(f"{self.name}.{axis}"))

    @contextmanager
    def each(self, count: Any) -> Iterator[tuple[Any, Any]]:
        """The number of each vector and its points' numbers."""
        b = self.b
        one = b.sub(I64(1), self.lanes)
        advance = b.add(b.mul(one, I64(b.width - 1)), I64(1))
        within = b.mul(b.iota("i64"), b.splat(one))
        with b.counted(b.udiv(b.add(count, b.sub(advance, I64(1))), advance)) as turn:
            yield turn, b.add(b.splat(b.mul(turn, advance)), within)

    def places(self, k: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
        """The pointer, offsets, whether all lanes are there, and stand side by side."""
        b = self.b
        offsets = b.add(self.base, b.mul(k, self.step("k")))
        steps = b.add(b.splat(b.lane(offsets)), b.mul(b.iota("i64"), b.splat(b.word(f"{self.name}.parts"))))
        whole, beside = (b.intrinsic("llvm.vector.reduce.and", m, result=I1) for m in (mask, b.icmp_signed("==", offsets, steps)))
        return b.address(b.word(self.name)), offsets, whole, b.and_(b.and_(whole, beside), self.near)

    def read(self, k: Any, mask: Any, dtype: str, zero: Any) -> tuple[Any, Any]:
        """Real and imaginary parts; 0 where the mask does not hold."""
        b, kind = self.b, zero.type
        start, offsets, _, beside = self.places(k, mask)
        re, im = b.variable(kind), b.variable(kind)
        b.store(zero, im)
        with b.if_else(beside) as (near, far):
            with near:
                place = b.gep(start, [b.lane(offsets)], source_etype=STORED[dtype])
                with b.if_else(self.pairs) as (two, one):
                    with two:
                        both = [b.read(place, dtype), b.read(b.shifted(place, b.width * size(dtype)), dtype)]
                        for k0, cell in ((0, re), (1, im)):
                            b.store(b.shuffle_vector(*both, ir.Constant(b.vector(I32), list(range(k0, 2 * b.width, 2)))), cell)
                    with one:
                        b.store(b.read(place, dtype), re)
            with far:
                b.store(b.gather(start, offsets, dtype, mask), re)
                with b.if_then(self.pairs):
                    b.store(b.gather(start, b.add(offsets, self.step("p")), dtype, mask), im)
        return b.load(re, typ=kind), b.load(im, typ=kind)

    def write(self, k: Any, mask: Any, dtype: str, value: Complex) -> None:
        b = self.b
        mask = b.and_(mask, self.exists)
        start, offsets, _, beside = self.places(k, mask)
        with b.if_else(beside) as (near, far):
            with near:
                place = b.gep(start, [b.lane(offsets)], source_etype=STORED[dtype])
                with b.if_else(self.pairs) as (two, one):
                    with two:
                        zipped = [lane for pair in zip(range(b.width), range(b.width, 2 * b.width), strict=True) for lane in pair]
                        both = b.shuffle_vector(*value.parts(), ir.Constant(ir.VectorType(I32, 2 * b.width), zipped))
                        b.store(both, place, align=size(dtype))
                    with one:
                        b.write(value.re, place, dtype)
            with far:
                b.scatter(value.re, start, offsets, dtype, mask)
                with b.if_then(self.pairs):
                    b.scatter(value.im, start, b.add(offsets, self.step("p")), dtype, mask)


class Roots:
    """Roots of 1 as products of those that `prepare` left."""

    def __init__(self, b: Code, work: str, room: Any, shift: Any) -> None:
        self.b, self.work, self.room, self.shift = b, work, Planes(b, "f64", room, I64(8)), shift

    def write(self, target: Planes, count: Any, index: Callable[[Any], Any]) -> None:
        """target[i] = root number index(i), i < count."""
        b = self.b
        first = b.shl(I64(1), self.shift)
        with b.loop(I64(0), count, b.width) as i:
            numbers = b.add(b.splat(i), b.iota("i64"))
            last = b.splat(b.sub(count, I64(1)))
            number = index(b.select(b.icmp_signed("<", numbers, last), numbers, last))
            low = self.room.gathered(b.shl(b.and_(number, b.splat(b.sub(first, I64(1)))), b.const(1, "i64")))
            high = self.room.gathered(b.shl(b.add(b.lshr(number, b.splat(self.shift)), b.splat(first)), b.const(1, "i64")))
            root = [b.convert(part, "f64", self.work) for part in (
                b.fsub(b.fmul(low.re, high.re), b.fmul(low.im, high.im)), b.fadd(b.fmul(low.re, high.im), b.fmul(low.im, high.re)))]
            target.moved(i).write(Complex(b, *root), b.lanes_below(b.sub(count, i)))
