"""Renders the kernel "trees" to LLVM IR; see trees.py and tree_layout.py."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir

from gpuonnx.ir.types import size
from gpuonnx.kernels.cpu.lanes import I32, I64, PTR, STORED
from gpuonnx.kernels.cpu.micro import Code, entry, internal
from gpuonnx.kernels.cpu.tree_layout import ACROSS, COLUMN, DENSE, ENTRY, LANES, ONE, WAY

WIDTH, LINE = 4, 64
FEW, PASSES = 3, 4


class Trees:
    """One module a form: element type, how leaves are kept, how they fold (sum, min, max), whether the sum is divided."""

    def __init__(self, dtype: str, leaf: str, fold: str, average: bool, names: tuple[str, ...]) -> None:
        self.leaf, self.fold, self.average, self.names = leaf, fold, average, names
        self.unit, self.dtype = size(dtype), dtype
        self.real = STORED[dtype]
        self.neutral = self.real(0.0 if fold == "sum" else float("nan"))

    def text(self, part: str, symbol: str) -> str:
        self.module = ir.Module(symbol)
        finish = self.render_finish()
        if part == "trees_sum":
            b, _, task = entry(self.module, symbol, WIDTH, self.names)
            self.each_block(b, task, lambda first, rows: b.call(finish, [b.args, task, first, rows]))
            b.ret_void()
        else:
            self.render_entry(symbol, finish)
        return str(self.module)

    def function(self, name: str, kinds: Sequence[Any]) -> tuple[Code, Any, Sequence[Any]]:
        return internal(self.module, name, WIDTH, self.names, kinds)

    def each_block(self, b: Code, strand: Any, body: Any) -> None:
        """The blocks of one strand: body(first row, rows)."""
        block, rows, strands = b.word("block"), b.word("rows"), b.word("strands")
        with b.counted(b.udiv(b.sub(b.add(b.word("blocks"), b.sub(strands, I64(1))), strand), strands)) as turn:
            first = b.mul(b.add(strand, b.mul(turn, strands)), block)
            body(first, b.least(block, b.sub(rows, first)))

    def table(self, b: Code, name: str, index: Any) -> Any:
        return b.load(b.gep(b.address(b.word(name)), [index], source_etype=I64), typ=I64)

    def partial(self, b: Code, strand: Any, segment: Any) -> Any:
        """Where a segment's sums of a block stand: [rows, stride]."""
        number = b.add(b.mul(strand, b.word("parts")), segment)
        return b.address(b.add(b.word("partial"), b.mul(number, self.block_bytes(b))))

    def block_bytes(self, b: Code) -> Any:
        return b.mul(b.mul(b.word("block"), b.word("stride")), I64(self.unit))

    def render_entry(self, symbol: str, finish: Any) -> None:
        fill, together, alone = self.render_fill(), self.render_rows(), self.render_row()
        b, _, task = entry(self.module, symbol, WIDTH, self.names)
        splits, parts = b.word("splits"), b.word("parts")
        strand, split = b.udiv(task, splits), b.urem(task, splits)
        group = b.mul(b.add(b.word("width"), I64(1)), I64(LANES * self.unit))
        buffer = b.address(b.add(b.word("buffer"), b.mul(b.mul(task, b.udiv(b.word("block"), I64(LANES))), group)))
        s0, s1 = (b.udiv(b.mul(b.add(split, I64(k)), parts), splits) for k in (0, 1))

        def block(first: Any, rows: Any) -> None:
            groups = b.udiv(b.add(rows, I64(LANES - 1)), I64(LANES))
            few = b.icmp_signed("<=", rows, I64(FEW))
            b.call(fill, [b.args, buffer, first, rows])
            with b.loop(s0, s1, 1) as segment:
                sums = self.partial(b, strand, segment)
                self.clear(b, sums)
                c0, c1 = (self.table(b, "segments", b.add(segment, I64(k))) for k in (0, 1))
                with b.if_else(few) as (one_by_one, in_groups):
                    with one_by_one, b.counted(rows) as row:
                        x = b.shifted(buffer, b.mul(row, I64(self.unit)))
                        total = b.shifted(sums, b.mul(row, b.mul(b.word("stride"), I64(self.unit))))
                        b.call(alone, [b.args, x, total, self.table(b, "chunks", c0), self.table(b, "chunks", c1)])
                    with in_groups, b.loop(c0, c1, 1) as chunk, b.counted(groups) as number:
                        x = b.shifted(buffer, b.mul(number, group))
                        total = b.shifted(sums, b.mul(number, b.mul(b.word("stride"), I64(LANES * self.unit))))
                        self.prefetch(b, b.add(chunk, I64(1)), number, groups)
                        b.call(together, [b.args, x, total, self.table(b, "chunks", chunk), self.table(b, "chunks", b.add(chunk, I64(1)))])
            with b.if_then(b.icmp_signed("==", splits, I64(1))):
                b.call(finish, [b.args, strand, first, rows])
        self.each_block(b, strand, block)
        b.ret_void()

    def prefetch(self, b: Code, chunk: Any, group: Any, groups: Any) -> None:
        """Ask for this group's share of the nodes of a chunk that comes next, where rows enough pass through it."""
        last = b.word("pieces")
        begin, end = (self.table(b, "trees", b.mul(self.table(b, "chunks", b.least(b.add(chunk, I64(k)), last)), I64(4))) for k in (0, 1))
        share = b.add(b.udiv(b.sub(end, begin), groups), I64(LINE))
        nodes = b.address(b.add(b.add(b.word("nodes"), begin), b.mul(group, share)))
        known = self.module.globals.get("llvm.prefetch.p0") or ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [PTR, I32, I32, I32]), "llvm.prefetch.p0")
        with b.loop(I64(0), b.select(b.icmp_signed(">=", groups, I64(PASSES)), share, I64(0)), LINE) as offset:
            b.call(known, [b.shifted(nodes, offset), I32(0), I32(2), I32(1)])

    def clear(self, b: Code, sums: Any) -> None:
        zero = ir.Constant(ir.VectorType(self.real, LANES), [self.neutral.constant] * LANES)
        with b.loop(I64(0), self.block_bytes(b), LANES * self.unit) as offset:
            b.store(zero, b.shifted(sums, offset), align=self.unit)

    def render_fill(self) -> Any:
        """void fill(args, buffer, first, rows): [groups, 1 + columns, LANES]; the column before the others is -inf."""
        b, function, (buffer, first, rows) = self.function("fill", [PTR, I64, I64])
        low = ir.Constant(ir.VectorType(self.real, LANES), [float("-inf")] * LANES)
        width, columns = b.word("width"), b.address(b.word("columns"))
        along, across = b.word("x.row"), b.word("x.column")
        with b.loop(I64(0), rows, LANES) as row:
            last = b.sub(b.sub(rows, row), I64(1))
            group = b.shifted(buffer, b.mul(b.mul(row, b.add(width, I64(1))), I64(self.unit)))
            base = b.add(b.word("x"), b.mul(b.add(first, row), along))
            lines = [b.add(base, b.mul(b.least(I64(k), last), along)) for k in range(LANES)]
            b.store(low, group, align=self.unit)
            with b.counted(width) as number:
                feature, raised = (b.load(b.gep(columns, [b.add(b.mul(number, I64(2)), I64(k))], source_etype=I32), typ=I32) for k in (0, 1))
                at = b.mul(b.sext(feature, I64), across)
                values: Any = ir.Constant(low.type, ir.Undefined)
                for k, line in enumerate(lines):
                    values = b.insert_element(values, b.load(b.address(b.add(line, at)), typ=self.real, align=self.unit), I32(k))
                missing = b.fcmp_unordered("uno", values, values)
                where = b.shifted(group, b.mul(b.add(number, I64(1)), I64(LANES * self.unit)))
                replaced = b.select(missing, low, values)
                b.store(b.select(b.icmp_signed("!=", raised, I32(0)), replaced, values), where, align=self.unit)
        b.ret_void()
        return function

    def step(self, b: Code, places: Sequence[Any], xs: Sequence[Any]) -> tuple[list[Any], Any]:
        """The next nodes of all walks, and 0 where all stand on leaves, which lead to themselves."""
        following, moved = [], I64(0)
        for place, x in zip(places, xs, strict=True):
            limit = b.load(place, typ=self.real, align=self.unit)
            column, way = (b.sext(b.load(b.shifted(place, at), typ=I32, align=4), I64) for at in (COLUMN, WAY))
            past = b.fcmp_unordered(">", b.load(b.shifted(x, column), typ=self.real, align=self.unit), limit)
            following.append(b.shifted(b.shifted(place, way), b.select(past, I64(ACROSS), I64(0))))
            moved = b.or_(moved, way)
        return following, moved

    def walk(self, b: Code, places: list[Any], xs: list[Any]) -> list[Any]:
        """All walks together, until every one stands on a leaf."""
        before, loop, after = b.block, b.append_basic_block("walk"), b.append_basic_block("arrived")
        b.branch(loop)
        b.position_at_end(loop)
        here = [b.phi(PTR) for _ in places]
        following, moved = self.step(b, here, xs)
        b.cbranch(b.icmp_signed("!=", moved, I64(0)), loop, after)
        for place, start, later in zip(here, places, following, strict=True):
            place.add_incoming(start, before)
            place.add_incoming(later, loop)
        b.position_at_end(after)
        return following

    def tree(self, b: Code, number: Any) -> list[Any]:
        """Address of the root, target, steps that every walk may take, whether some need more."""
        root, *others = (self.table(b, "trees", b.add(b.mul(number, I64(4)), I64(k))) for k in range(4))
        return [b.shifted(b.address(b.word("nodes")), root), *others]

    def render_rows(self) -> Any:
        """void rows(args, x, sums, first tree, last): LANES rows walk one tree after the other."""
        b, function, (x, sums, first, last) = self.function("rows", [PTR, PTR, I64, I64])
        step = b.mul(b.word("stride"), I64(self.unit))
        xs = [b.shifted(x, k * self.unit) for k in range(LANES)]
        with b.loop(first, last, 1) as number:
            root, target, sure, unsure = self.tree(b, number)
            places = b.carry(I64(0), sure, 1, [root] * LANES, lambda _, here: self.step(b, here, xs)[0])
            before = b.block
            with b.if_then(b.icmp_signed("!=", unsure, I64(0))):
                later = self.walk(b, places, xs)
                walked = b.block
            places = self.joined(b, places, before, later, walked)
            total = sums
            for place in places:
                self.add_leaf(b, place, total, target)
                total = b.shifted(total, step)
        b.ret_void()
        return function

    def joined(self, b: Code, first: list[Any], before: Any, second: list[Any], after: Any) -> list[Any]:
        out = []
        for x, y in zip(first, second, strict=True):
            phi = b.phi(PTR)
            phi.add_incoming(x, before)
            phi.add_incoming(y, after)
            out.append(phi)
        return out

    def render_row(self) -> Any:
        """void row(args, x, sums, first tree, last): one row walks LANES trees together; leaves are added in the order of the trees."""
        b, function, (x, sums, first, last) = self.function("row", [PTR, PTR, I64, I64])
        arrived = b.array(PTR, LANES)
        with b.loop(first, last, LANES) as number:
            most = b.sub(last, I64(1))
            roots = [self.tree(b, b.least(b.add(number, I64(k)), most))[0] for k in range(LANES)]
            for k, place in enumerate(self.walk(b, roots, [x] * LANES)):
                b.store(place, b.shifted(arrived, 8 * k))
            with b.counted(b.least(I64(LANES), b.sub(last, number))) as k:
                place = b.load(b.shifted(arrived, b.mul(k, I64(8))), typ=PTR)
                self.add_leaf(b, place, sums, self.tree(b, b.add(number, k))[1])
        b.ret_void()
        return function

    def add_leaf(self, b: Code, place: Any, sums: Any, target: Any) -> None:
        if self.leaf == ONE:
            cell = b.shifted(sums, b.mul(target, I64(self.unit)))
            return self.fold_into(b, cell, b.load(place, typ=self.real, align=self.unit), self.unit)
        number = (b.sext(b.load(b.shifted(place, ENTRY), typ=I32, align=4), I64) if self.unit == 4
                  else b.fptosi(b.load(place, typ=self.real, align=self.unit), I64))
        weights = b.address(b.word("weights"))
        if self.leaf == DENSE:
            bytes_ = b.mul(b.word("stride"), I64(self.unit))
            row = b.shifted(weights, b.mul(number, bytes_))
            with b.loop(I64(0), bytes_, WIDTH * self.unit) as offset:
                value = b.load(b.shifted(row, offset), typ=b.vector(self.real), align=self.unit)
                self.fold_into(b, b.shifted(sums, offset), value, self.unit)
            return None
        ranges, targets = b.address(b.word("ranges")), b.add(b.word("leaves"), I64(1))
        begin, end = (self.number(b, ranges, b.add(number, I64(k))) for k in (0, 1))
        with b.loop(begin, end, 1) as e:
            cell = b.shifted(sums, b.mul(self.number(b, ranges, b.add(targets, e)), I64(self.unit)))
            self.fold_into(b, cell, b.load(b.shifted(weights, b.mul(e, I64(self.unit))), typ=self.real, align=self.unit), self.unit)
        return None

    def number(self, b: Code, base: Any, index: Any) -> Any:
        return b.sext(b.load(b.gep(base, [index], source_etype=I32), typ=I32, align=4), I64)

    def fold_into(self, b: Code, cell: Any, value: Any, align: int) -> None:
        b.store(self.folded(b, b.load(cell, typ=value.type, align=align), value), cell, align=align)

    def folded(self, b: Code, total: Any, value: Any) -> Any:
        """The sum; or the least or greatest so far, where NaN is nothing yet."""
        if self.fold == "sum":
            return b.fadd(total, value)
        better = b.fcmp_ordered(">" if self.fold == "min" else "<", total, value)
        return b.select(b.or_(better, b.fcmp_unordered("uno", total, total)), value, total)

    def render_finish(self) -> Any:
        """void finish(args, strand, first, rows): out = the segments' sums folded in order; no leaf at all is 0."""
        b, function, (strand, first, rows) = self.function("finish", [I64, I64, I64])
        step = self.block_bytes(b)
        base, parts = self.partial(b, strand, I64(0)), b.word("parts")
        out = b.address(b.add(b.word("out"), b.mul(first, b.word("out.row"))))
        count = b.sitofp(b.word("count"), self.real)
        with b.counted(rows) as row, b.counted(b.word("targets")) as target:
            cell = b.shifted(base, b.mul(b.add(b.mul(row, b.word("stride")), target), I64(self.unit)))

            def fold(segment: Any, carried: list[Any], cell: Any = cell) -> list[Any]:
                value = b.load(b.shifted(cell, b.mul(segment, step)), typ=self.real, align=self.unit)
                return [self.folded(b, carried[0], value)]
            [total] = b.carry(I64(1), parts, 1, [b.load(cell, typ=self.real, align=self.unit)], fold)
            if self.average:
                total = b.fdiv(total, count)
            if self.fold != "sum":
                total = b.select(b.fcmp_unordered("uno", total, total), self.real(0.0), total)
            b.store(total, b.shifted(out, b.add(b.mul(row, b.word("out.row")), b.mul(target, b.word("out.column")))), align=self.unit)
        b.ret_void()
        return function
