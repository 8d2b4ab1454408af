"""Loops over the lanes of a nest: whole vectors, cut-off ones, interiors, transposed tiles."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from gpuonnx.codegen.cpu_values import Values, sure_accesses
from gpuonnx.codegen.nest import Bound, Interior
from gpuonnx.ir.expr import Expr, postorder

UNROLL = ((14, 4), (40, 2))


class Strips(Values):
    """`body` is called for `places`, vectors of lanes side by side."""

    @contextmanager
    def entered(self, roots: Sequence[Expr]) -> Iterator[None]:
        """All places in a new scope; coordinates are set."""
        for place in self.places:
            self.here = place
            self.enter(roots)
        yield
        for place in self.places:
            place.scopes.pop()

    def each(self, action: Callable[[int], None]) -> None:
        for u, place in enumerate(self.places):
            self.here = place
            action(u)

    def strips(self, low: Any, high: Any, roots: Sequence[Expr], body: Callable[[], None]) -> None:
        """`body` for groups of whole vectors from low to high, then for single ones, then for the masked rest."""
        self.cut_off(self.whole(low, high, roots, body), high, roots, body)

    def whole(self, low: Any, high: Any, roots: Sequence[Expr], body: Callable[[], None]) -> Any:
        """`body` for whole vectors from low on; where they end."""
        b, w = self.b, self.full
        outer = self.places
        unroll = max(self.unroll // len(outer), 1)
        for count in (unroll, 1) if unroll > 1 else (1,):
            end = b.add(low, b.and_(b.sub(high, low), self.i64(-w * count)))
            with b.loop(low, end, w * count) as i:
                starts = [b.add(i, self.i64(u * w)) if u else i for u in range(count)]
                self.places = [place.at(start, None) for start in starts for place in outer]
                with self.entered(roots):
                    body()
            low = end
        self.places, self.here = outer, outer[0]
        return low

    def cut_off(self, low: Any, high: Any, roots: Sequence[Expr], body: Callable[[], None]) -> None:
        """`body` for masked vectors from low to high."""
        b, outer = self.b, self.places
        with b.loop(low, high, self.full) as i:
            mask = self.below(b.sub(high, i)) if self.full > 1 else None
            self.places = [place.at(i, mask) for place in outer]
            with self.entered(roots):
                body()
        self.places, self.here = outer, outer[0]

    def parted(self, interior: Interior, low: Any, high: Any, body: Callable[[], None]) -> None:
        """Up to the interior of the lanes' axis masked vectors or single lanes, then whole vectors of its simpler stages, then
        again the former."""
        b, form, sure = self.b, self.form, self.sure
        start, end = low, high
        for place in self.places:
            self.here = place
            for bound in interior.bounds:
                start, end = self.narrowed(bound, start, end)
        scalar = self.singly(interior)
        if not scalar:
            start = b.add(low, b.and_(b.add(b.sub(start, low), self.i64(self.full - 1)), self.i64(-self.full)))
        length = b.and_(b.sub(end, start), self.i64(-self.full))
        some = b.icmp_signed(">", length, self.i64(0))
        start = b.select(some, start, high)
        end = b.select(some, b.add(start, length), high)
        with b.loop(self.i64(0), self.i64(2), 1) as turn:
            before = b.icmp_signed("==", turn, self.i64(0))
            with self.vectors_of(1 if scalar else self.full):
                self.cut_off(b.select(before, low, end), b.select(before, start, high), self.all(), body)
            with b.if_then(b.and_(before, some)):
                self.form = replace(form, stages=interior.stages)
                self.sure = sure_accesses(self.form)
                self.unroll = unrolled(self.all())
                with self.entered(self.all()):
                    self.whole(start, end, self.all(), body)
                self.form, self.sure = form, sure
                self.unroll = unrolled(self.all())

    def singly(self, interior: Interior) -> bool:
        """Whether single lanes cost less than part of a vector: where they read here and there, or are few, and are not folded."""
        f = self.form
        numbers = {e.value for e in postorder(tuple(self.all())) if e.op == "access"}
        return not f.over and (interior.nearly or any(not self.same(t.index) and not t.from_data for k in numbers for t in f.accesses[k].terms))

    @contextmanager
    def vectors_of(self, count: int) -> Iterator[None]:
        """Inside: vectors of the lanes' axis have `count` lanes."""
        held, self.full = self.full, count
        yield
        self.full = held

    def narrowed(self, bound: Bound, low: Any, high: Any) -> tuple[Any, Any]:
        """What the bound, for all coordinates of loops not yet entered, leaves of the range of its axis."""
        b, rest = self.b, self.word(bound.offset)
        for axis, number in bound.terms:
            factor = self.word(number)
            if isinstance(axis, Expr):
                rest = b.add(rest, b.mul(b.lane(self.value(axis)), factor))
            elif self._placed(axis):
                rest = b.add(rest, b.mul(self.coordinate(axis), factor))
            else:
                rest = b.add(rest, self.least(b.mul(b.sub(self.size(axis), self.i64(1)), factor), self.i64(0)))
        places = b.divided_down(rest, abs(bound.slope))
        if bound.slope > 0:
            first = b.neg(places)
            return b.select(b.icmp_signed(">", first, low), first, low), high
        return low, self.least(b.add(places, self.i64(1)), high)

    def tiles(self, first: Any, low: Any, high: Any, body: Callable[[], None]) -> None:
        """Square tiles of the tile's axis from `first` and lanes from low to high; those that are cut off under masks."""
        b, w = self.b, self.full
        (outer,) = self.places
        left = b.sub(self.size(self.form.tile), first)
        places = [outer.at(None, None) for _ in range(w)]
        for u, place in enumerate(places):
            place.tile = b.add(first, self.i64(u)) if u else first
        self.places = places
        with self.entered(self.all()):
            whole = b.add(low, b.and_(b.sub(high, low), self.i64(-w)))
            whole = b.select(b.icmp_signed("<", left, self.i64(w)), low, whole)
            with b.loop(low, whole, w) as i:
                self.group, self.cut = {}, None
                self.places = [p.at(i, None) for p in places]
                with self.entered(self.all()):
                    body()
            with b.loop(whole, high, w) as i:
                with self.lanes(w):
                    lanes, across = self.below(b.sub(high, i)), self.below(left)
                    rows = [b.splat(b.lane(across, u)) for u in range(w)]
                    self.group, self.cut = {}, (across, lanes)
                    self.places = [p.at(i, b.and_(lanes, rows[u])) for u, p in enumerate(places)]
                with self.entered(self.all()):
                    body()
            self.places = places
        self.places, self.here = [outer], outer


def unrolled(roots: Sequence[Expr]) -> int:
    """How many vectors a turn of the lanes' loop takes: fewer, the more is computed."""
    nodes = len(postorder(tuple(roots)))
    return next((n for most, n in UNROLL if nodes <= most), 1)
