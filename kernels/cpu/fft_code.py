"""The kernel "fft" as vector code: plans, or transforms some rows."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.fft import MOST_TOGETHER, Form
from gpuonnx.kernels.cpu.fft_pass import Complex, Planes
from gpuonnx.kernels.cpu.fft_plan import DOUBLE, Planner
from gpuonnx.kernels.cpu.fft_transform import CHIRP, CONVOLUTION, LENGTH, planned
from gpuonnx.kernels.cpu.lanes import I1, I32, I64, PTR, STORED
from gpuonnx.kernels.cpu.micro import Code, entry


class Fourier(Planner):
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

    def render_rows(self) -> Any:
        """void rows(args, task): every `tasks`-th row, or group of rows."""
        load, store, convolve = self.render_load(), self.render_store(), self.render_convolve()
        b, function, (task,) = self.function("rows", [I64])
        rows, tasks, plane = b.word("rows"), b.word("tasks"), b.word("plane")
        inverse = b.icmp_signed("!=", b.word("inverse"), I64(0))
        many = b.icmp_signed(">", b.mul(rows, I64(2)), I64(self.width))
        together = b.and_(many, b.icmp_signed("<=", planned(b, LENGTH), I64(MOST_TOGETHER)))
        lanes, group = b.zext(together, I64), b.select(together, I64(self.width), I64(1))
        far, whole = b.icmp_signed("!=", b.word("far"), I64(0)), b.mul(plane, I64(4))
        near = b.alloca(ir.IntType(8), b.select(far, I64(64), whole))
        near.align = 64
        room = b.address(b.select(far, b.add(b.word("room"), b.mul(task, whole)), b.ptrtoint(near, I64)))
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
        lines, target = Lines(b, "x", self.form, first, lanes), Planes(b, self.work, room, b.word("plane"))
        hermitian, points, zero = b.icmp_signed("!=", b.word("hermitian"), I64(0)), b.word("points"), b.const(0.0, self.work)

        def write(place: Any, value: Complex) -> None:
            target.moved(b.mul(place, I64(self.width))).write(value)
        with lines.blocks(b.select(hermitian, I64(0), b.least(b.word("have"), points))) as point:
            values = b.transpose([lines.converted(b.read(p, self.form.dtype)) for p in lines.here])
            with b.if_else(lines.pairs) as (two, one):
                with two:
                    for k in range(0, self.width, 2):
                        write(b.add(point, I64(k // 2)), Complex(b, *values[k:k + 2]))
                with one:
                    for k, value in enumerate(values):
                        write(b.add(point, I64(k)), Complex(b, value, zero))
        folded = b.splat(b.select(hermitian, b.lshr(points, I64(1)), points))
        with lines.each(points) as (turn, k):
            back, inside = b.icmp_signed(">", k, folded), b.icmp_signed("<", k, b.splat(points))
            k = b.select(back, b.sub(b.splat(points), k), k)
            value = lines.read(k, b.and_(inside, b.icmp_signed("<", k, b.splat(b.word("have")))))
            write(turn, Complex(b, value.re, b.select(back, b.fneg(value.im), value.im)))
        b.ret_void()
        return function

    def render_store(self) -> Any:
        """void store(args, result, first row, lanes): the bins that are kept; of an inverse, divided by the number of points."""
        b, function, (result, first, lanes) = self.function("store", [PTR, I64, I64])
        lines, source = Lines(b, "y", self.form, first, lanes), Planes(b, self.work, result, b.word("plane"))
        whole = b.fdiv(DOUBLE(1.0), b.sitofp(b.word("points"), DOUBLE))
        scale = b.convert(b.splat(b.select(b.icmp_signed("!=", b.word("inverse"), I64(0)), whole, DOUBLE(1.0))), "f64", self.work)

        def read(place: Any) -> Complex:
            return source.moved(b.mul(place, I64(self.width))).read().by(scale)
        def write(values: list[Any]) -> None:
            for place, value in zip(lines.here, b.transpose(values), strict=True):
                b.write(lines.stored(value), place, self.form.dtype)
        with lines.blocks(b.word("kept")) as point, b.if_else(lines.pairs) as (two, one):
            with two:
                write([v for k in range(self.width // 2) for v in read(b.add(point, I64(k))).parts()])
            with one:
                write([read(b.add(point, I64(k))).re for k in range(self.width)])
        with lines.each(b.word("kept")) as (turn, k):
            lines.write(k, b.icmp_signed("<", k, b.splat(b.word("kept"))), read(turn))
        b.ret_void()
        return function


class Lines:
    """The numbers of x or y by vectors: one point of a row a lane, or a vector of points of one row."""

    def __init__(self, b: Code, name: str, form: Form, first: Any, lanes: Any) -> None:
        self.b, self.name, self.form, self.lanes = b, name, form, lanes
        self.kind, self.start = STORED[form.dtype], b.address(b.word(name))
        row = b.add(b.splat(first), b.mul(b.iota("i64"), b.splat(lanes)))
        last, inner = b.splat(b.sub(b.word("rows"), I64(1))), b.splat(b.word("inner"))
        self.exists = b.icmp_signed("<=", row, last)
        row = b.select(self.exists, row, last)
        self.base = b.add(b.mul(b.udiv(row, inner), self.step("a")), b.mul(b.urem(row, inner), self.step("c")))
        self.parts = b.word(f"{name}.parts")
        self.pairs = b.icmp_signed("==", self.parts, I64(2))
        self.near = b.or_(b.xor(self.pairs, I1(1)), b.icmp_signed("==", b.word(f"{name}.p"), I64(1)))
        self.done: Any = I64(0)

    def step(self, axis: str) -> Any:
        return self.b.splat(self.b.word(f"{self.name}.{axis}"))

    def converted(self, value: Any) -> Any:
        return self.b.convert(value, self.form.dtype, self.form.work)

    def stored(self, value: Any) -> Any:
        return self.b.convert(value, self.form.work, self.form.dtype)

    @contextmanager
    def blocks(self, count: Any) -> Iterator[Any]:
        """Where every lane is a row whose points stand side by side: of each as many numbers as there are lanes, at `here`, and the
        number of their first point. `each` goes on after them."""
        b = self.b
        beside = b.and_(self.near, b.icmp_signed("==", b.word(f"{self.name}.k"), self.parts))
        serves = b.and_(beside, b.icmp_signed("!=", self.lanes, I64(0)))
        number = b.select(serves, b.udiv(b.mul(count, self.parts), I64(b.width)), I64(0))
        rows = [b.gep(self.start, [b.lane(self.base, k)], source_etype=self.kind) for k in range(b.width)]
        with b.counted(number) as n:
            self.here = [b.shifted(row, b.mul(n, I64(b.width * size(self.form.dtype)))) for row in rows]
            yield b.udiv(b.mul(n, I64(b.width)), self.parts)
        self.done = b.udiv(b.mul(number, I64(b.width)), self.parts)

    @contextmanager
    def each(self, count: Any) -> Iterator[tuple[Any, Any]]:
        """The number of each vector and its points' numbers."""
        b = self.b
        one = b.sub(I64(1), self.lanes)
        advance = b.add(b.mul(one, I64(b.width - 1)), I64(1))
        within = b.mul(b.iota("i64"), b.splat(one))
        with b.loop(self.done, b.udiv(b.add(count, b.sub(advance, I64(1))), advance), 1) as turn:
            yield turn, b.add(b.splat(b.mul(turn, advance)), within)

    def places(self, k: Any, mask: Any) -> tuple[Any, Any, Any]:
        """The first lane's pointer, offsets, and whether all lanes are there and stand side by side."""
        b = self.b
        offsets = b.add(self.base, b.mul(k, self.step("k")))
        steps = b.add(b.splat(b.lane(offsets)), b.mul(b.iota("i64"), b.splat(self.parts)))
        beside = b.intrinsic("llvm.vector.reduce.and", b.and_(mask, b.icmp_signed("==", offsets, steps)), result=I1)
        return b.gep(self.start, [b.lane(offsets)], source_etype=self.kind), offsets, b.and_(beside, self.near)

    def read(self, k: Any, mask: Any) -> Complex:
        """Points k; 0 where the mask does not hold."""
        b, dtype, width = self.b, self.form.dtype, self.b.width
        place, offsets, beside = self.places(k, mask)
        zero = b.const(0.0, dtype)
        re, im = b.variable(zero.type), b.variable(zero.type)
        b.store(zero, im)
        with b.if_else(beside) as (near, far):
            with near, b.if_else(self.pairs) as (two, one):
                with two:
                    both = [b.read(place, dtype), b.read(b.shifted(place, width * size(dtype)), dtype)]
                    for part, cell in enumerate((re, im)):
                        b.store(b.shuffle_vector(*both, ir.Constant(b.vector(I32), list(range(part, 2 * width, 2)))), cell)
                with one:
                    b.store(b.read(place, dtype), re)
            with far:
                b.store(b.gather(self.start, offsets, dtype, mask), re)
                with b.if_then(self.pairs):
                    b.store(b.gather(self.start, b.add(offsets, self.step("p")), dtype, mask), im)
        return Complex(b, *(self.converted(b.load(cell, typ=zero.type)) for cell in (re, im)))

    def write(self, k: Any, mask: Any, value: Complex) -> None:
        """Points k where the mask holds."""
        b, dtype, width = self.b, self.form.dtype, self.b.width
        mask = b.and_(mask, self.exists)
        place, offsets, beside = self.places(k, mask)
        re, im = map(self.stored, value.parts())
        with b.if_else(beside) as (near, far):
            with near, b.if_else(self.pairs) as (two, one):
                with two:
                    zipped = [lane for k0 in range(width) for lane in (k0, width + k0)]
                    b.store(b.shuffle_vector(re, im, ir.Constant(ir.VectorType(I32, 2 * width), zipped)), place, align=size(dtype))
                with one:
                    b.write(re, place, dtype)
            with far:
                b.scatter(re, self.start, offsets, dtype, mask)
                with b.if_then(self.pairs):
                    b.scatter(im, self.start, b.add(offsets, self.step("p")), dtype, mask)
