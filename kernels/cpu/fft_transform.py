"""The transform of fft: Stockham's passes, one for each factor, between two arrays.

Rows that are short stand side by side as lanes of [points, lanes]. A longer one is an array of its own until a pass has too few `i` for
a vector: then [l1, rest] turns to [l1 / lanes, rest, lanes], after which every lane is a transform of its own, and the last pass
leaves the results in order. Only the forward sign is computed: the inverse is the same with the planes exchanged.

Plan: length of the passes, of the convolution (0: none), number of factors, the factors, and at CHIRP where in the table the chirp
stands. Table: for each pass its roots (fft_pass.py), then the chirp [2, points] and its transform [2, length].
"""
from __future__ import annotations

from typing import Any

from gpuonnx.kernels.cpu.fft import PLAN_WORDS
from gpuonnx.kernels.cpu.fft_pass import ANY, BUTTERFLIES, Complex, Passes, Planes
from gpuonnx.kernels.cpu.lanes import I64, PTR
from gpuonnx.kernels.cpu.micro import Code

LENGTH, CONVOLUTION, COUNT, FACTORS, CHIRP = 0, 1, 2, 3, PLAN_WORDS - 1


def plan(b: Code, place: Any) -> Any:
    """Where a word of the plan stands."""
    return b.gep(b.address(b.word("plan")), [I64(place) if isinstance(place, int) else place], source_etype=I64)


def planned(b: Code, place: Any) -> Any:
    return b.load(plan(b, place), typ=I64)


class Transform(Passes):
    """The function `transform` of a module and what it calls."""

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
        """void fold(args, source, target, apart, l1, rest): [l1, rest] -> [l1 / lanes, rest, lanes]; lanes too many repeat the last. A block
        may pass its end, where the next one begins."""
        b, function, (source, target, apart, l1, rest) = self.function("fold", [PTR, PTR, I64, I64, I64])
        x, y, wide = Planes(b, self.work, source, apart), Planes(b, self.work, target, apart), I64(self.width)
        with b.counted(self.blocks(b, l1)) as block:
            first = b.mul(block, wide)
            lines = [x.moved(b.mul(b.least(b.add(first, I64(k)), b.sub(l1, I64(1))), rest)) for k in range(self.width)]
            with b.counted(rest, self.width) as i:
                columns = [line.moved(i).read().parts() for line in lines]
                out = y.moved(b.add(b.mul(first, rest), b.mul(i, wide)))
                for k, parts in enumerate(zip(*map(b.transpose, map(list, zip(*columns, strict=True))), strict=True)):
                    out.moved(I64(k * self.width)).write(Complex(b, *parts))
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

    def table(self, b: Code, place: Any, count: Any) -> Planes:
        """`count` numbers of the table."""
        return Planes(b, self.work, b.address(b.word("table")), b.mul(count, I64(self.unit))).moved(place)

    def clear(self, b: Code, target: Planes, first: Any, stop: Any) -> None:
        zero = b.const(0.0, self.work)
        with b.loop(first, stop, self.width) as k:
            target.moved(k).write(Complex(b, zero, zero))
