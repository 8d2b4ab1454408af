"""The passes of fft on vectors of complex numbers.

Real and imaginary parts stand in planes of their own, `apart` bytes from one another. A pass with factor p reads points
i + ido * (j + p * k) and writes points i + ido * (k + l1 * j), j < p, k < l1, i < ido. Roots are e^(+ix), [p - 1, 2, ido], for a factor
without a butterfly of its own then the p roots of 1, [2, p]; a forward transform multiplies by their conjugates. Sums are taken in
the order of FFTPACK (Swarztrauber, 1982), so that results round as those of its descendants in NumPy and SciPy.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.lanes import I64, PTR, STORED
from gpuonnx.kernels.cpu.micro import Code, internal, lanes_of


class Complex:
    """A vector of complex numbers in two vectors of reals; nothing is fused."""

    def __init__(self, b: Code, re: Any, im: Any) -> None:
        self.b, self.re, self.im = b, re, im

    def parts(self) -> tuple[Any, Any]:
        return self.re, self.im

    def __add__(self, other: Complex) -> Complex:
        return Complex(self.b, self.b.fadd(self.re, other.re), self.b.fadd(self.im, other.im))

    def __sub__(self, other: Complex) -> Complex:
        return Complex(self.b, self.b.fsub(self.re, other.re), self.b.fsub(self.im, other.im))

    def by(self, real: Any) -> Complex:
        return Complex(self.b, self.b.fmul(self.re, real), self.b.fmul(self.im, real))

    def turned(self) -> Complex:
        """Times -i; the optimiser folds the sign into the sum that follows."""
        return Complex(self.b, self.im, self.b.fneg(self.re))

    def by_conjugate(self, root: Complex) -> Complex:
        b, c, s = self.b, root.re, root.im
        return Complex(b, b.fadd(b.fmul(self.re, c), b.fmul(self.im, s)), b.fsub(b.fmul(self.im, c), b.fmul(self.re, s)))

    def where(self, mask: Any, other: Complex) -> Complex:
        """This where the mask holds, else the other."""
        return Complex(self.b, self.b.select(mask, self.re, other.re), self.b.select(mask, self.im, other.im))


Constant = Callable[[float], Any]


def two(_: Constant, x: Sequence[Complex]) -> list[Complex]:
    return [x[0] + x[1], x[0] - x[1]]


def three(real: Constant, x: Sequence[Complex]) -> list[Complex]:
    plus, minus = x[1] + x[2], x[1] - x[2]
    even, odd = x[0] + plus.by(real(-0.5)), minus.by(real(math.sqrt(0.75))).turned()
    return [x[0] + plus, even + odd, even - odd]


def four(_: Constant, x: Sequence[Complex]) -> list[Complex]:
    even, odd, plus, minus = x[0] + x[2], x[0] - x[2], x[1] + x[3], (x[1] - x[3]).turned()
    return [even + plus, odd + minus, even - plus, odd - minus]


def five(real: Constant, x: Sequence[Complex]) -> list[Complex]:
    (c1, s1), (c2, s2) = ((real(math.cos(k * 2 * math.pi / 5)), real(math.sin(k * 2 * math.pi / 5))) for k in (1, 2))
    plus, minus, near, far = x[1] + x[4], x[1] - x[4], x[2] + x[3], x[2] - x[3]
    even, odd = x[0] + plus.by(c1) + near.by(c2), (minus.by(s1) + far.by(s2)).turned()
    even2, odd2 = x[0] + plus.by(c2) + near.by(c1), (minus.by(s2) - far.by(s1)).turned()
    return [x[0] + plus + near, even + odd, even2 + odd2, even2 - odd2, even - odd]


def eight(real: Constant, x: Sequence[Complex]) -> list[Complex]:
    half_root = real(math.sqrt(0.5))
    even, odd = four(real, x[::2]), four(real, x[1::2])
    odd = [odd[0], (odd[1] + odd[1].turned()).by(half_root), odd[2].turned(), (odd[3].turned() - odd[3]).by(half_root)]
    return [p + q for p, q in zip(even, odd, strict=True)] + [p - q for p, q in zip(even, odd, strict=True)]


BUTTERFLIES = {8: eight, 4: four, 2: two, 3: three, 5: five}
ANY = 0
ZERO = I64(0)


class Planes:
    """Complex numbers of type `work` from an address on; their imaginary parts stand `apart` bytes from the real ones."""

    def __init__(self, b: Code, work: str, start: Any, apart: Any) -> None:
        self.b, self.work, self.start, self.apart = b, work, start, apart

    def moved(self, count: Any, unit: Any = None) -> Planes:
        """`count` times `unit` bytes (else numbers) further."""
        offset = self.b.mul(count, I64(size(self.work)) if unit is None else unit)
        return Planes(self.b, self.work, self.b.shifted(self.start, offset), self.apart)

    def both(self, read: Callable[[Any], Any]) -> Complex:
        return Complex(self.b, read(self.start), read(self.b.shifted(self.start, self.apart)))

    def read(self) -> Complex:
        """A vector of them."""
        return self.both(lambda place: self.b.read(place, self.work))

    def repeated(self) -> Complex:
        """The first in all lanes."""
        return self.both(lambda place: self.b.splat(self.b.load(place, typ=STORED[self.work], align=size(self.work))))

    def gathered(self, offsets: Any) -> Complex:
        return self.both(lambda place: self.b.gather(place, offsets, self.work))

    def write(self, value: Complex, mask: Any = None) -> None:
        self.b.write(value.re, self.start, self.work, mask)
        self.b.write(value.im, self.b.shifted(self.start, self.apart), self.work, mask)


class Step:
    """A vector of one k. source, target: at its first i, their points `line` and `step` bytes apart. roots: of result 1 at that i; None where
    all roots are 1. first: the mask of i = 0 where lanes are i; where they are not, None, and they share a root."""

    def __init__(self, b: Code, source: Planes, target: Planes, line: Any, step: Any, roots: Planes | None, first: Any) -> None:
        self.b, self.source, self.target, self.line, self.step, self.roots, self.first = b, source, target, line, step, roots, first

    def point(self, j: Any) -> Complex:
        return self.source.moved(j, self.line).read()

    def put(self, j: Any, value: Complex) -> None:
        """Result j times the conjugate of its root, which is 1 for i = 0."""
        if self.roots is not None and j is not ZERO:
            root = self.roots.moved(self.b.mul(self.b.sub(j, I64(1)), I64(2)), self.roots.apart)
            turned = value.by_conjugate(root.repeated() if self.first is None else root.read())
            value = turned if self.first is None else value.where(self.first, turned)
        self.target.moved(j, self.step).write(value)

    def written_out(self, factor: int) -> None:
        numbers = [ZERO, *map(I64, range(1, factor))]
        results = BUTTERFLIES[factor](lambda v: self.b.const(v, self.source.work), [self.point(j) for j in numbers])
        for j, value in zip(numbers, results, strict=True):
            self.put(j, value)

    def any_odd(self, p: Any, units: Planes) -> None:
        """Points j and p - j go in as sum and difference; `units`: the p roots of 1."""
        b, half = self.b, self.b.lshr(self.b.add(p, I64(1)), I64(1))
        first = self.point(ZERO)

        def pair(j: Any) -> tuple[Complex, Complex]:
            near, far = self.point(j), self.point(b.sub(p, j))
            return near + far, near - far

        def summed(j: Any, total: list[Any]) -> list[Any]:
            return list((Complex(b, *total) + pair(j)[0]).parts())
        self.put(ZERO, Complex(b, *b.carry(I64(1), half, 1, list(first.parts()), summed)))
        zero = b.const(0.0, self.source.work)
        with b.loop(I64(1), half, 1) as m:
            def turn(j: Any, carried: list[Any], m: Any = m) -> list[Any]:
                *sums, place = carried
                place = b.add(place, m)
                place = b.select(b.icmp_signed(">=", place, p), b.sub(place, p), place)
                unit, (plus, minus) = units.moved(place).repeated(), pair(j)
                even = Complex(b, *sums[:2]) + plus.by(unit.re)
                odd = Complex(b, b.fadd(sums[2], b.fmul(unit.im, minus.im)), b.fsub(sums[3], b.fmul(unit.im, minus.re)))
                return [*even.parts(), *odd.parts(), place]
            *sums, _ = b.carry(I64(1), half, 1, [*first.parts(), zero, zero, I64(0)], turn)
            even, odd = Complex(b, *sums[:2]), Complex(b, *sums[2:])
            self.put(m, even + odd)
            self.put(b.sub(p, m), even - odd)


class Passes:
    """The passes of a module as functions void pass(args, source, target, apart, p, l1, ido, roots), `work` the type of all numbers.

    With `lanes` the arrays are [points, lanes] and every lane is a transform of its own; else a vector is some i of one k, of which
    there must be enough. A vector that would pass the last i starts earlier: results may be written twice."""

    def __init__(self, module: Any, work: str, names: tuple[str, ...]) -> None:
        self.module, self.work, self.names, self.unit, self.width = module, work, names, size(work), lanes_of(work)

    def function(self, name: str, kinds: Sequence[Any]) -> tuple[Code, Any, Sequence[Any]]:
        return internal(self.module, name, self.width, self.names, kinds)

    def render(self, factor: int, lanes: bool) -> Any:
        b, function, (source, target, apart, p, l1, ido, roots) = self.function(
            f"pass{factor}{'.lanes' if lanes else ''}", [PTR, PTR, I64, I64, I64, I64, PTR])
        p = I64(factor) if factor else p
        cell = I64(self.unit * self.width if lanes else self.unit)
        line = b.mul(ido, cell)
        table = Planes(b, self.work, roots, b.mul(ido, I64(self.unit)))
        units = Planes(b, self.work, b.shifted(roots, b.mul(b.mul(b.sub(p, I64(1)), ido), I64(2 * self.unit))), b.mul(p, I64(self.unit)))
        with b.counted(l1) as k:
            x, y = Planes(b, self.work, source, apart).moved(b.mul(k, p), line), Planes(b, self.work, target, apart).moved(k, line)

            def run(i: Any, table: Planes | None, first: Any) -> None:
                step = Step(b, x.moved(i, cell), y.moved(i, cell), line, b.mul(line, l1), table and table.moved(i), first)
                step.written_out(factor) if factor else step.any_odd(p, units)
            if lanes:
                run(ZERO, None, None)
                with b.loop(I64(1), ido, 1) as i:
                    run(i, table, None)
            else:
                with b.loop(ZERO, ido, self.width) as i:
                    i = b.least(i, b.sub(ido, I64(self.width)))
                    run(i, table, b.icmp_signed("==", b.add(b.splat(i), b.iota("i64")), b.const(0, "i64")))
        b.ret_void()
        return function
