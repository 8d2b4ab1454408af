"""The plan of fft, found when it runs: factors of the length, or a convolution, and the table of roots."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir

from gpuonnx.kernels.cpu.fft_pass import Complex, Planes
from gpuonnx.kernels.cpu.fft_transform import CHIRP, CONVOLUTION, COUNT, FACTORS, LENGTH, Transform, plan, planned
from gpuonnx.kernels.cpu.lanes import I64, PTR, STORED
from gpuonnx.kernels.cpu.micro import Code

DOUBLE = ir.DoubleType()


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


class Planner(Transform):
    """The function `planner` of a module; `transform` must be there."""

    transform: Any

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

    def spectrum(self, b: Code, chirp: Planes, m: Any, target: Planes) -> None:
        """The transform of the chirp and the same backwards, on `m` points, divided by m."""
        n, scale = b.word("points"), b.fdiv(DOUBLE(1.0), b.sitofp(m, DOUBLE))
        room = Planes(b, self.work, b.address(b.word("room")), b.word("plane"))
        self.clear(b, room, I64(0), m)
        with b.loop(I64(0), n, self.width) as k:
            value = Complex(b, *(b.convert(part, self.work, "f64") for part in chirp.moved(k).read().parts())).by(b.splat(scale))
            room.moved(k).write(Complex(b, *(b.convert(part, "f64", self.work) for part in value.parts())), b.lanes_below(b.sub(n, k)))
        with b.loop(I64(1), n, 1) as k:
            for part in (I64(0), room.apart):
                here, there = (b.shifted(room.moved(at).start, part) for at in (k, b.sub(m, k)))
                b.store(b.load(here, typ=STORED[self.work], align=self.unit), there, align=self.unit)
        found = b.array(PTR, 2)
        b.call(self.transform, [b.args, room.start, room.moved(I64(2), room.apart).start, room.apart, I64(0), found])
        result = Planes(b, self.work, b.load(found, typ=PTR), room.apart)
        with b.loop(I64(0), m, self.width) as k:
            target.moved(k).write(result.moved(k).read(), b.lanes_below(b.sub(m, k)))

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
