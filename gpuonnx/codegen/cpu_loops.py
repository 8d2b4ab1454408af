"""A Form as LLVM IR `void symbol(i64* ctx, i64* args, i64 task)`: the loops, folds and stores around the values."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpuonnx.codegen.cpu_places import Place
from gpuonnx.codegen.cpu_strips import Strips, unrolled
from gpuonnx.codegen.nest import Access, Bound
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.expr import Expr
from gpuonnx.ir.scalar import FOLDS

PART = 1024


class Loops(Strips):
    """Loops over rows and lanes, and what happens in them. `ranges`: where loops over folded axes that are being written begin and end."""

    def text(self) -> str:
        b, f = self.b, self.form
        self.read_words()
        self.ranges: dict[int, tuple[Any, Any]] = {}
        self.woven: dict[Any, list[tuple[Any, Any]]] = {}
        self.unroll = unrolled(self.all())
        start = b.append_basic_block("start")
        b.branch(start)
        b.position_at_end(start)
        w = {k: self.word(n) for k, n in f.words.items()}
        row_task, lane_task = b.udiv(self.task, w["lane_tasks"]), b.urem(self.task, w["lane_tasks"])
        first = b.mul(row_task, w["rows_each"])
        last = self.least(b.add(first, w["rows_each"]), w["rows"])
        rows = [a for a in range(len(f.sizes)) if a not in f.over and a not in (f.lane, f.tile)]
        counters = Counters(b, first, [*(self.size(a) for a in rows), *([w["blocks"]] if "blocks" in w else [])])
        self.places = [Place(tile=self.i64(u)) for u in range(f.weave)] or [Place()]
        with self.entered(self.all()), b.loop(first, last, 1):
            places = counters.now()
            if "blocks" in w:
                tile = b.mul(places.pop(), self.i64(self.full))
            self.coordinates |= dict(zip(rows, places, strict=True))
            with self.entered(self.all()):
                if "blocks" in w:
                    low = b.mul(lane_task, w["lane_each"])
                    self.tiles(tile, low, self.least(b.add(low, w["lane_each"]), self.size(f.lane)), self.body)
                elif f.lane < 0 or f.lane in f.over:
                    self.body()
                else:
                    low = b.mul(lane_task, w["lane_each"])
                    high = self.least(b.add(low, w["lane_each"]), self.size(f.lane))
                    if f.interior is None:
                        self.strips(low, high, self.all(), self.body)
                    else:
                        self.parted(f.interior, low, high, self.body)
            counters.step()
        b.ret_void()
        return str(self.module)

    def inner(self, axes: Sequence[int], roots: Sequence[Expr], body: Callable[[], None], after: Callable[[], None] | None = None) -> None:
        """`body` inside loops over the axes that are folded, the lane axis, if among them, innermost; `after` every part of the innermost."""
        if not axes:
            body()
            return
        axis = next((a for a in axes if a != self.form.lane), self.form.lane)
        rest = [a for a in axes if a != axis]
        if after is None or rest:
            self._along(axis, *self._range(axis), roots, lambda: self.inner(rest, roots, body, after))
            return
        start, end = self._range(axis)
        with self.b.loop(start, end, PART) as low:
            self._along(axis, low, self.least(self.b.add(low, self.i64(PART)), end), roots, body)
            after()

    def _range(self, axis: int) -> tuple[Any, Any]:
        """Where a loop over `axis` begins and ends."""
        return self.ranges.get(axis) or (self.i64(0), self.size(axis))

    def _ranges(self, clips: Sequence[Bound]) -> dict[int, tuple[Any, Any]]:
        out: dict[int, tuple[Any, Any]] = {}
        for bound in clips:
            out[bound.axis] = self.narrowed(bound, *out.get(bound.axis, self._range(bound.axis)))
        return out

    def _along(self, axis: int, low: Any, high: Any, roots: Sequence[Expr], body: Callable[[], None]) -> None:
        if axis == self.form.lane:
            self.strips(low, high, roots, body)
            return
        if axis in self.form.few and axis not in self.ranges:
            for k in range(self.form.few[axis]):
                self.coordinates[axis] = self.i64(k)
                with self.entered(roots):
                    body()
                self.coordinates.pop(axis)
            return
        with self.b.loop(low, high, 1) as i:
            self.coordinates[axis] = i
            with self.entered(roots):
                body()
            self.coordinates.pop(axis)

    def body(self) -> None:
        """One instance: all stages."""
        if self.form.walk is not None:
            self.prefix()
            return
        for s, stage in enumerate(self.form.stages):
            if self.form.lane in self.form.over:
                self.unroll = unrolled([a.expr for a in stage])
            folds = [(p, a) for p, a in enumerate(stage) if isinstance(a, g.Fold)]
            stores = {(s, p): a for p, a in enumerate(stage) if isinstance(a, g.Store)}
            beside = {key: a for key, a in stores.items() if folds and self._beside(key, a)}
            if folds:
                self.fold(s, folds, beside)
            for key, a in stores.items():
                if key not in beside:
                    self.store(key, a)

    def _beside(self, key: tuple[int, int], action: Any) -> bool:
        """Whether a store can run in the loops of its stage's folds."""
        return self.form.inside[key] == self.form.over and all(r[0] != key[0] for r in self.needs(action.expr)[1])

    # folds
    def variable(self, value: Any) -> Any:
        variable = self.b.variable(value.type)
        self.b.store(value, variable)
        return variable

    def _start(self, action: Any) -> tuple[Any, Any]:
        """(accumulator, its companion: the place of the best, or a sum of parts and what it has lost)."""
        b, kind = self.b, action.expr.dtype
        accumulator = self.variable(b.const(FOLDS[action.op].identity(kind), kind))
        if action.op.startswith("arg"):
            return accumulator, self.variable(b.const(-1, "ix"))
        if self.form.compensated and action.op == "sum" and types.kind(kind) == "f":
            return accumulator, (self.variable(b.const(0, kind)), self.variable(b.const(0, kind)))
        return accumulator, None

    def fold(self, stage: int, folds: Sequence[tuple[int, Any]], beside: dict[tuple[int, int], Any]) -> None:
        form = self.form
        across, copies = form.lane in form.over, self.unroll if form.lane in form.over else len(self.places)
        count = self.full if form.lane >= 0 else 1
        with self.lanes(count):
            held = [[self._start(a) for _ in range(copies)] for _, a in folds]

            def body() -> None:
                for (_, action), copy in zip(folds, held, strict=True):
                    for place, (accumulator, companion) in zip(self.places, copy, strict=False):
                        self.here = place
                        self._combine(action, accumulator, companion, count)
                for key, action in beside.items():
                    self.each(lambda _, key=key, action=action: self._put(key, action))  # type: ignore[misc]

            def add_parts() -> None:
                for copy in held:
                    for accumulator, companion in copy:
                        if isinstance(companion, tuple):
                            self._add_part(accumulator, *companion)
            parts = any(isinstance(companion, tuple) for copy in held for _, companion in copy)
            self.ranges = self._ranges(form.clips.get(stage, ()))
            self.inner(form.over, [a.expr for _, a in folds], body, add_parts if parts else None)
            self.ranges = {}
            for (p, action), copy in zip(folds, held, strict=True):
                if across:
                    value = self._across(action, copy)
                    with self.lanes(1):
                        one = self.b.splat(self.b.lane(value))
                    for place in self.places:
                        place.results[stage, p] = one
                    continue
                for place, (accumulator, companion) in zip(self.places, copy, strict=True):
                    place.results[stage, p] = self._result(accumulator, companion)

    def _result(self, accumulator: Any, companion: Any) -> Any:
        """The place of the best, the sum of parts, or what was accumulated."""
        return self._get(accumulator if companion is None else companion[0] if isinstance(companion, tuple) else companion)

    def _get(self, variable: Any) -> Any:
        return self.b.load(variable, typ=variable.allocated_type)

    def _combine(self, action: Any, accumulator: Any, companion: Any, count: int) -> None:
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b, kind, mask = self.b, action.expr.dtype, self.here.mask if self.form.lane in self.form.over else None
        value = self.wide(action.expr, count)
        old = self._get(accumulator)
        if companion is None or isinstance(companion, tuple):
            new = EMITTERS[FOLDS[action.op].combine](b, kind, old, value)
            b.store(new if mask is None else b.select(mask, new, old), accumulator)
        else:
            where = self._get(companion)
            (axis,) = self.form.over
            here = b.splat(self.coordinate(axis))
            here = b.add(here, b.iota()) if axis == self.form.lane else here
            better = self._better(action.op, kind, value, old, where)
            better = better if mask is None else b.and_(better, mask)
            b.store(b.select(better, value, old), accumulator)
            b.store(b.select(better, here, where), companion)

    def _add_part(self, accumulator: Any, total: Any, lost: Any) -> None:
        """Kahan's summation of what a part has accumulated, which starts again; what an infinite sum loses is nothing."""
        b, old = self.b, self._get(total)
        term = b.fsub(self._get(accumulator), self._get(lost))
        new = b.fadd(old, term)
        rest = b.fsub(b.fsub(new, old), term)
        zero = self.ir.Constant(old.type, None)
        b.store(b.select(b.fcmp_ordered("ord", rest, rest), rest, zero), lost)
        b.store(new, total)
        b.store(zero, accumulator)

    def _better(self, op: str, kind: str, value: Any, old: Any, where: Any) -> Any:
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b = self.b
        better = EMITTERS["greater" if op == "argmax" else "less"](b, kind, value, old)
        if types.kind(kind) == "f":
            nan_now, nan_before = b.fcmp_unordered("uno", value, value), b.fcmp_unordered("uno", old, old)
            better = b.and_(b.or_(better, nan_now), b.xor(nan_before, b.const(1, "bool")))
        return b.or_(better, b.icmp_signed("<", where, b.const(0, "ix")))

    def _across(self, action: Any, copies: Sequence[tuple[Any, Any]]) -> Any:
        """Copies and lanes into one: every lane of the result holds it."""
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b, kind = self.b, action.expr.dtype
        if action.op.startswith("arg"):
            return self._across_best(action.op, kind, [(self._get(v), self._get(w)) for v, w in copies])

        def combine(x: Any, y: Any) -> Any:
            return EMITTERS[FOLDS[action.op].combine](b, kind, x, y)
        values = [self._result(v, w) for v, w in copies]
        while len(values) > 1:
            values = [combine(x, y) for x, y in zip(values[::2], values[1::2], strict=True)]
        return b.across(combine, values[0])

    def _across_best(self, op: str, kind: str, pairs: list[tuple[Any, Any]]) -> Any:
        """The first position of the best value."""
        b, i32 = self.b, self.ir.IntType(32)
        value, where = pairs[0]
        for other, there in pairs[1:]:
            value, where = self._better_of(op, kind, (value, where), (other, there))
        step = self.full // 2
        while step:
            picks = self.ir.Constant(self.ir.VectorType(i32, self.full), [q ^ step for q in range(self.full)])
            other, there = b.shuffle_vector(value, value, picks), b.shuffle_vector(where, where, picks)
            value, where = self._better_of(op, kind, (value, where), (other, there))
            step //= 2
        return where

    def _better_of(self, op: str, kind: str, mine: tuple[Any, Any], others: tuple[Any, Any]) -> tuple[Any, Any]:
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b, (value, where), (other, there) = self.b, mine, others
        better = EMITTERS["greater" if op == "argmax" else "less"](b, kind, other, value)
        same = EMITTERS["equal"](b, kind, other, value)
        if types.kind(kind) == "f":
            nan_there, nan_here = b.fcmp_unordered("uno", other, other), b.fcmp_unordered("uno", value, value)
            same = b.or_(same, b.and_(nan_there, nan_here))
            better = b.and_(b.or_(better, nan_there), b.xor(nan_here, b.const(1, "bool")))
        zero = b.const(0, "ix")
        earlier = b.and_(same, b.icmp_unsigned("<", there, where))
        better = b.or_(b.or_(better, earlier), b.icmp_signed("<", where, zero))
        better = b.and_(better, b.icmp_signed(">=", there, zero))
        return b.select(better, other, value), b.select(better, there, where)

    # prefixes
    def prefix(self) -> None:
        """Along `over`, one after another; lanes are other rows."""
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b, form, walk = self.b, self.form, self.form.walk
        assert walk is not None
        action, access = form.stages[0][0], form.stores[0, 0]
        (axis,) = form.over
        kind, count = action.expr.dtype, self.full if form.lane >= 0 else 1
        with self.lanes(count):
            held = [self.variable(b.const(walk.identity, kind)) for _ in self.places]
            with b.loop(self.i64(0), self.size(axis), 1) as i:
                self.coordinates[axis] = b.sub(b.sub(self.size(axis), self.i64(1)), i) if walk.reverse else i
                with self.entered([action.expr]):
                    def step(u: int) -> None:
                        old = self._get(held[u])
                        new = EMITTERS[walk.combine](b, kind, old, self.wide(action.expr, count))
                        self.write((0, 0), access, old if walk.exclusive else new)
                        b.store(new, held[u])
                    self.each(step)
                self.coordinates.pop(axis)

    # stores
    def store(self, key: tuple[int, int], action: Any) -> None:
        over = self.form.inside[key]

        def body() -> None:
            self.each(lambda _: self._put(key, action))
        if over:
            self.inner(over, [action.expr], body)
        else:
            with self.entered([action.expr]):
                body()

    def _put(self, key: tuple[int, int], action: Any) -> None:
        count = self.full if self.here.lane is not None else 1
        self.write(key, self.form.stores[key], self.wide(action.expr, count))

    def write(self, key: Any, access: Access, value: Any) -> None:
        from gpuonnx.kernels.cpu.lanes import SIZES
        b, lane = self.b, self.form.lane
        with self.lanes(value.type.count):
            value = b.narrow(value, access.stored)
        if self.form.weave and self.here.lane is not None:
            self.weave(key, access, value)
            return
        offset, vector, mask = self.place(key, access)
        pointer = self.pointer(access, offset)
        if self.here.lane is not None and (vector is not None or access.strides[lane] == 1):
            wide = None if mask is None else self.spread(mask, self.full)
            with self.lanes(self.full):
                if vector is not None:
                    b.scatter(value, pointer, vector, access.stored, wide)
                else:
                    b.write(value, pointer, access.stored, wide)
        elif mask is None or mask is self.here.mask:
            b.store(b.lane(value), pointer, align=SIZES[access.stored])
        else:
            with b.if_then(self.some(mask)):
                b.store(b.lane(value), pointer, align=SIZES[access.stored])

    def weave(self, key: Any, access: Access, value: Any) -> None:
        """Places that lie side by side in memory are stored together, lane by lane."""
        held = self.woven.setdefault(key, [])
        held.append((self._address(key).total, value))
        if len(held) == self.form.weave:
            with self.lanes(self.full):
                self.b.write_apart([v for _, v in held], self.pointer(access, held[0][0]), access.stored, self.here.mask)
            held.clear()


class Counters:
    """Row-major coordinates that step from row to row; only the first are divided out."""

    def __init__(self, b: Any, first: Any, sizes: Sequence[Any]) -> None:
        self.b, self.sizes, self.held = b, sizes, [b.variable(first.type) for _ in sizes]
        for k in reversed(range(len(sizes))):
            b.store(b.urem(first, sizes[k]) if k else first, self.held[k])
            first = b.udiv(first, sizes[k]) if k else first

    def now(self) -> list[Any]:
        return [self.b.load(v, typ=v.allocated_type) for v in self.held]

    def step(self) -> None:
        """On to the next row: the last coordinate counts, one that is full starts again and lets the one before count."""
        b, more = self.b, None
        for k in reversed(range(len(self.sizes))):
            value = b.load(self.held[k], typ=self.held[k].allocated_type)
            value = b.add(value, value.type(1) if more is None else b.zext(more, value.type))
            if k:
                more = b.icmp_signed("==", value, self.sizes[k])
                value = b.select(more, value.type(0), value)
            b.store(value, self.held[k])
