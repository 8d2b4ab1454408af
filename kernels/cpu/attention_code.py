"""Renders the attention kernel to LLVM IR; see attention.py. A task is `scores`, `between` and `mix` over the same rows."""
from __future__ import annotations

from functools import reduce
from typing import Any

import llvmlite.ir as ir

from gpuonnx.ir.expr import Expr, folded
from gpuonnx.ir.scalar import FOLDS
from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.attention import Block
from gpuonnx.kernels.cpu.emit import At, Emitter
from gpuonnx.kernels.cpu.lanes import I64
from gpuonnx.kernels.cpu.micro import Code, Contraction, Real, entry, internal, store_frame
from gpuonnx.kernels.cpu.scalars import EMITTERS
from gpuonnx.kernels.cpu.thin import renderer

COPIES = 4


class Attention:
    """One module of two contractions and what is done to rows between them; where there are two ways, the first is for few rows."""

    def __init__(self, form: Block, ways: tuple[tuple[Contraction, Contraction], ...]) -> None:
        self.form, self.ways = form, ways
        self.unit = size(form.dtype)

    def text(self, symbol: str) -> str:
        self.module = ir.Module(symbol)
        between = self.render_between()
        blocks, start, own = [], 0, sum(len(c.names) for way in self.ways for c in way)
        for number, (first, second) in enumerate(self.ways):
            scores, mix = (self.contraction(c, f"{name}{number}.") for name, c in (("scores", first), ("mix", second)))
            blocks.append([(scores, start), (between, own), (mix, start + len(first.names))])
            start += len(first.names) + len(second.names)
        self.render_entry(symbol, blocks, own)
        return str(self.module)

    def contraction(self, form: Contraction, prefix: str) -> Any:
        """A block whose scores are in the task's room, written by the first contraction or read by the second."""
        made = renderer(form.way)(form, Real(self.form.dtype), self.module, prefix)

        def placed(b: Code, first: Any, room: Any) -> None:
            def at(number: int, start: Any) -> None:
                where = b.sub(start, b.mul(first, b.word(f"at{number}.row")))
                b.store(where, b.gep(made.frame, [I64(number)], source_etype=I64))
            if prefix.startswith("scores"):
                return at(0, room)
            b.store(b.sub(room, b.mul(first, b.word("a.row"))), made.bases["a"])
            return None if self.form.factor < 0 else at(self.form.factor, b.add(room, b.word("factors")))
        return made.render_block("block", placed)

    def render_between(self) -> Any:
        """void between(args, batch entry, first row, last row, room): the folds of each row, and its new elements in place of the old."""
        b, function, (number, first, last, room) = internal(self.module, "between", self.form.lanes, self.form.names, [I64, I64, I64, I64])
        frame = b.array(I64, len(self.form.expressions.accesses))
        store_frame(b, frame, len(self.form.expressions.accesses), b.coordinates(number, [b.word(f"size{i}") for i in range(self.form.batch)]))
        b.store(b.sub(room, b.mul(first, b.word("line"))), b.gep(frame, [I64(0)], source_etype=I64))
        with b.loop(first, last, 1) as row:
            Row(self.form, b, frame, row, b.add(b.add(room, b.word("factors")), b.mul(b.sub(row, first), I64(self.unit)))).walk()
        b.ret_void()
        return function

    def render_entry(self, symbol: str, ways: list[list[tuple[Any, int]]], own: int) -> None:
        b, _, task = entry(self.module, symbol, self.form.lanes, self.form.names)
        args = b.args
        b.args = b.shifted(args, 8 * own)
        number, chunk = b.udiv(task, b.word("chunks")), b.urem(task, b.word("chunks"))
        first = b.mul(chunk, b.word("rows.task"))
        last = b.least(b.add(first, b.word("rows.task")), b.word("rows"))
        far = b.icmp_signed("!=", b.word("far"), I64(0))
        near = b.alloca(ir.IntType(8), b.select(far, I64(64), b.word("room")))
        near.align = 64
        room = b.select(far, b.add(b.word("work"), b.mul(task, b.word("room"))), b.ptrtoint(near, I64))

        def run(blocks: list[tuple[Any, int]]) -> None:
            for block, where in blocks:
                b.call(block, [b.shifted(args, 8 * where), number, first, last, room])
        if len(ways) == 1:
            run(ways[0])
        else:
            with b.if_else(b.icmp_signed("!=", b.word("few"), I64(0))) as (few, many):
                with few:
                    run(ways[0])
                with many:
                    run(ways[1])
        b.ret_void()


class Row:
    """The stages over one row of scores, whose factor belongs at the address `factor`."""

    def __init__(self, form: Block, b: Code, frame: Any, row: Any, factor: Any) -> None:
        self.form, self.b, self.frame, self.row, self.factor = form, b, frame, row, factor
        self.known: dict[Any, Any] = {}

    def walk(self) -> None:
        *folds, result = self.form.expressions.expr.args
        expressions = iter(folds)
        for number, ops in enumerate(self.form.folds):
            self.fold(number, ops, [next(expressions) for _ in ops])
        if self.form.factor < 0:
            self.pass_over([], lambda emitter, at, _: (emitter.store(emitter.value(result, at), at), [])[1])
            return
        emitter, b = Emitter(self.b, self.form.expressions, self.frame, I64(0), 1, None), self.b
        b.store(b.lane(emitter.value(result, At(self.row, 0, 0, None, None, dict(self.known)))), b.address(self.factor), align=size(self.form.dtype))

    def fold(self, stage: int, ops: tuple[str, ...], expressions: list[Expr]) -> None:
        b, kept = self.b, self.form.kept if stage == len(self.form.folds) - 1 else -1
        starts = [b.const(FOLDS[op].identity(e.dtype), e.dtype) for op, e in zip(ops, expressions, strict=True)]
        copies = COPIES if kept < 0 and all(e.op == "load" for e in expressions) else 1

        def combine(emitter: Emitter, at: At, sums: list[Any]) -> list[Any]:
            out = []
            for op, e, old in zip(ops, expressions, sums, strict=True):
                value = emitter.value(e, at)
                new = EMITTERS[FOLDS[op].combine](b, e.dtype, old, value)
                mask = emitter.masks[0]
                out.append(new if mask is None else b.select(mask, new, old))
            if kept >= 0:
                emitter.store(emitter.value(expressions[kept], at), at)
            return out
        totals = self.pass_over(starts, combine, copies)
        for action, (op, e) in enumerate(zip(ops, expressions, strict=True)):
            def both(x: Any, y: Any, op: str = op, e: Expr = e) -> Any:
                return EMITTERS[FOLDS[op].combine](b, e.dtype, x, y)
            one = b.across(both, reduce(both, totals[action::len(ops)]))
            self.known[folded(stage, action, e.dtype), None, None] = b.splat(b.lane(one))

    def pass_over(self, starts: list[Any], body: Any, copies: int = 1) -> list[Any]:
        """`body(emitter, at, carried)` for every vector of the row, the last one masked; `copies` of what is carried take turns."""
        b, columns, lanes, count = self.b, self.b.word("columns"), self.form.lanes, len(starts)
        whole = b.and_(columns, I64(-lanes))

        def turns(j: Any, values: list[Any]) -> list[Any]:
            return [v for k in range(copies) for v in self.vector(b.add(j, I64(k * lanes)), None, values[k * count:(k + 1) * count], body)]

        def one(j: Any, values: list[Any], masks: list[Any] | None) -> list[Any]:
            return [*self.vector(j, masks, values[:count], body), *values[count:]]
        most = b.sub(whole, b.srem(whole, I64(copies * lanes)))
        carried = b.carry(I64(0), most, copies * lanes, starts * copies, turns)
        if copies > 1:
            carried = b.carry(most, whole, lanes, carried, lambda j, values: one(j, values, None))
        return b.carry(whole, columns, lanes, carried, lambda j, values: one(j, values, [b.lanes_below(b.sub(columns, j))]))

    def vector(self, column: Any, masks: list[Any] | None, carried: list[Any], body: Any) -> list[Any]:
        emitter = Emitter(self.b, self.form.expressions, self.frame, column, 1, masks)
        at = At(self.row, 0, 0, None, None, dict(self.known))
        access = self.form.expressions.accesses[0]
        place = emitter.unit(access, emitter.here(0, access, at), 0)
        score = self.b.read(place, self.form.dtype, emitter.masks[0])
        return body(emitter, At(self.row, 0, 0, score, None, at.known), carried)  # type: ignore[no-any-return]
