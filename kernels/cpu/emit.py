"""Epilogues as vector code: out = expr(accumulator, operands), lanes along one axis of the kernel's iteration space.

A kernel iterates over its own axes: batch axes first, then the row axis, then the lane axis. `analyse` turns each load of
the epilogue into an `Access`, a pointer with one stride for each of those axes; `Emitter` writes the code.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr
from gpuonnx.ir.types import INDEX, size
from gpuonnx.kernels.contract import Arg, Epilogue, Layout, Ref
from gpuonnx.kernels.cpu import bounded, scalars

Affine = tuple[tuple[Dim, ...], Dim]


class NotAffine(ValueError):
    """An operand's index is no affine function of the output's axes."""


@dataclass(frozen=True)
class Access:
    """What is compiled in: stored type (`ix`: the index value itself), and how it moves along rows and lanes (0, 1, s)."""

    stored: str
    row: str
    lane: str


@dataclass(frozen=True)
class Form:
    """The structure of an epilogue. Access 0 is the store; `load`, `index` and `dim` leaves of `expr` hold numbers."""

    expr: Expr
    accesses: tuple[Access, ...]
    dims: int


@dataclass(frozen=True)
class Operand:
    """One access with its run-time numbers: strides in elements by kernel axis (rows and lanes last)."""

    stored: str
    ref: Ref | None
    strides: tuple[Dim, ...]
    start: Dim = 0


@dataclass(frozen=True)
class Plan:
    """The accesses of one epilogue over the kernel's axes."""

    expr: Expr
    operands: tuple[Operand, ...]
    dims: tuple[Dim, ...] = field(default=())

    def form(self) -> Form:
        return Form(self.expr, tuple(_access(o) for o in self.operands), len(self.dims))

    def merged(self, axes: Sequence[Sequence[int]]) -> Plan:
        """Each new axis is a group of old ones, of which the innermost gives the stride."""
        kept = [group[-1] for group in axes]
        return replace(self, operands=tuple(replace(o, strides=tuple(o.strides[k] for k in kept)) for o in self.operands))

    def with_row(self) -> Plan:
        """A row axis of size 1 before the lanes."""
        return replace(self, operands=tuple(replace(o, strides=(*o.strides[:-1], 0, o.strides[-1])) for o in self.operands))


def _access(o: Operand) -> Access:
    *_, row, lane = o.strides
    return Access(o.stored, _kind(row, ()), _kind(lane, (1,)))


def _kind(stride: Dim, units: tuple[int, ...]) -> str:
    return str(stride) if isinstance(stride, int) and stride in (0, *units) else "s"


def affine(e: Expr, forms: Sequence[Affine]) -> Affine:
    """An index expression over kernel axes, where `forms[k]` is the output's axis k over kernel axes."""
    axes = len(forms[0][0]) if forms else 0
    match e.op:
        case "index": return forms[cast(int, e.value)]
        case "const" | "dim": return (0,) * axes, cast(Dim, e.value)
        case "neg": return _scaled(affine(e.args[0], forms), -1)
        case "cast" if e.dtype == INDEX: return affine(e.args[0], forms)
        case "add": return _sum(affine(e.args[0], forms), affine(e.args[1], forms))
        case "sub": return _sum(affine(e.args[0], forms), _scaled(affine(e.args[1], forms), -1))
        case "mul":
            a, b = (affine(x, forms) for x in e.args)
            if all(isinstance(c, int) and c == 0 for c in a[0]):
                a, b = b, a
            if all(isinstance(c, int) and c == 0 for c in b[0]):
                return _scaled(a, b[1])
    raise NotAffine(f"an operand of the epilogue is read at {e!r}")


def _scaled(a: Affine, factor: Dim) -> Affine:
    return tuple(c * factor for c in a[0]), a[1] * factor


def _sum(a: Affine, b: Affine) -> Affine:
    return tuple(x + y for x, y in zip(a[0], b[0], strict=True)), a[1] + b[1]


def located(indices: Sequence[Affine], strides: Sequence[Dim], axes: int) -> Affine:
    """Address in elements of a tensor read at these indices."""
    total: Affine = (0,) * axes, 0
    for where, stride in zip(indices, strides, strict=True):
        total = _sum(total, _scaled(where, stride))
    return total


def identity(axes: int) -> list[Affine]:
    """Output axes that are kernel axes."""
    return [(tuple(int(i == k) for i in range(axes)), 0) for k in range(axes)]


def analyse(out: Layout, epilogue: Epilogue | None, result: str, forms: Sequence[Affine]) -> Plan:
    """`result` is the accumulator's type; raises NotAffine."""
    axes = len(forms[0][0])
    steps, start = located(forms, out.strides, axes)
    operands = [Operand(out.dtype, Ref("out", 0), steps, start)]
    dims: list[Dim] = []
    accumulator = Expr("load", (), result, 0)
    if epilogue is None:
        return Plan(accumulator, tuple(operands))

    def number(found: Operand) -> int:
        if found not in operands[1:]:
            operands.append(found)
        return operands.index(found, 1)

    def leaf(e: Expr) -> Expr:
        match e.op:
            case "load" if e.value == 0: return accumulator
            case "load":
                layout = epilogue.operands[e.value - 1]
                steps, start = located([affine(i, forms) for i in e.args], layout.strides, axes)
                return Expr("load", (), e.dtype, number(Operand(layout.dtype, Ref("extra", e.value - 1), steps, start)))
            case "index":
                return Expr("index", (), INDEX, number(Operand(INDEX, None, *forms[e.value])))
            case "dim":
                if e.value not in dims:
                    dims.append(e.value)
                return Expr("dim", (), INDEX, dims.index(e.value))
        return e

    return Plan(_outside_loads(epilogue.expr, leaf), tuple(operands), tuple(dims))


def _outside_loads(root: Expr, leaf: Callable[[Expr], Expr]) -> Expr:
    """`leaf` sees loads whole: the index expressions inside them are not part of the value."""
    done: dict[Expr, Expr] = {}
    stack = [root]
    while stack:
        e = stack[-1]
        waiting = [] if e.op == "load" else [a for a in e.args if a not in done]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        done[e] = leaf(e) if e.op in ("load", "index", "dim") else Expr(e.op, tuple(done[a] for a in e.args), e.dtype, e.value)
    return done[root]


def words(plan: Plan) -> dict[str, Arg]:
    """The run-time words of a plan, by name: byte strides, and pointers whose offset is the constant part."""
    out: dict[str, Arg] = {}
    for k, o in enumerate(plan.operands):
        unit = 1 if o.ref is None else size(o.stored)
        *batch, row, lane = (s * unit for s in o.strides)
        out[f"at{k}"] = o.start if o.ref is None else replace(o.ref, offset=o.ref.offset + o.start * unit)
        out |= {f"at{k}.{i}": s for i, s in enumerate(batch)}
        access = _access(o)
        if access.row == "s":
            out[f"at{k}.row"] = row
        if access.lane == "s":
            out[f"at{k}.lane"] = lane
    return out | {f"dim{k}": d for k, d in enumerate(plan.dims)}


def weight(form: Form) -> int:
    """Roughly how many instructions one vector of the epilogue takes."""
    heavy = ("exp", "tanh", "erf", "sigmoid", "log", "pow", "sin", "cos", "div", "sqrt", "rsqrt")
    return sum(0 if e.op in ("const", "load") else 30 if e.op.startswith(heavy) else 1 for e in form.expr.walk()) + len(form.accesses)


@dataclass(frozen=True)
class At:
    """Where a value is computed: row number (i64) and its tag, vector of the row, accumulator, guard mask, what is known."""

    number: Any
    tag: int
    vector: int
    accumulator: Any
    mask: Any
    known: dict[tuple[Expr, int | None, int | None], Any]


class Emitter:
    """Code for rows of `count` vectors. `frame` holds the address of each access at row 0, lane 0 of this batch entry."""

    def __init__(self, code: Any, form: Form, frame: Any, column: Any, count: int, masks: Sequence[Any] | None) -> None:
        self.b, self.form, self.count = code, form, count
        self.masks: Sequence[Any] = masks or [None] * count
        self.column = column
        self.bases = [self._base(frame, k, a) for k, a in enumerate(form.accesses)]
        self.known: dict[tuple[Expr, int | None, int | None], Any] = {}
        self.rows: dict[int, tuple[Any, int, Any]] = {}
        self.moves: dict[Expr, tuple[bool, bool]] = {}
        for e in form.expr.walk():
            own = self._leaf_moves(e)
            args = [self.moves[a] for a in e.args]
            self.moves[e] = (own[0] or any(a[0] for a in args), own[1] or any(a[1] for a in args))

    def _leaf_moves(self, e: Expr) -> tuple[bool, bool]:
        """Whether a leaf changes with the row, with the vector."""
        if e.op not in ("load", "index"):
            return False, False
        if e.op == "load" and e.value == 0:
            return True, True
        access = self.form.accesses[e.value]
        return access.row != "0", access.lane != "0"

    def _base(self, frame: Any, k: int, access: Access) -> Any:
        """Address (or index value) at this batch entry and column, row 0."""
        b = self.b
        here = b.load(b.gep(frame, [b.i64(k)], source_etype=b.i64_type), typ=b.i64_type)
        if access.lane == "0":
            return here
        step = b.word(f"at{k}.lane") if access.lane == "s" else b.i64(1 if access.stored == INDEX else size(access.stored))
        return b.add(here, b.mul(self.column, step))

    def prepare(self) -> None:
        """Compute before a loop over rows what no row changes."""
        guarded = {x for g in self.form.expr.walk() if g.op == "guard" for x in g.args[1].walk()}
        for e in self.form.expr.walk():
            row, lane = self.moves[e]
            if not row and e.op != "const" and e not in guarded:
                for j in range(self.count if lane else 1):
                    self.value(e, At(None, 0, j, None, None, self.known))

    def row(self, number: Any, tag: int, accumulators: Sequence[Any]) -> None:
        """Store one row; `tag` tells straight-line rows apart, `number` is the row as an i64."""
        places = [At(number, tag, j, accumulator, None, self.known) for j, accumulator in enumerate(accumulators)]
        held, access = bounded.bounded(self.form.expr), self.form.accesses[0]
        if held is not None and access.lane == "1" and size(access.stored) == 1:
            while len(places) > 1 and self.masks[places[0].vector] is self.masks[places[1].vector] is None:
                self._store_two(held, places.pop(0), places.pop(0))
        for at in places:
            self.store(self.value(self.form.expr, at), at)

    def _store_two(self, held: bounded.Bounded, first: At, second: At) -> None:
        """Bytes of two vectors side by side: their words are packed together."""
        b, access = self.b, self.form.accesses[0]
        words = [bounded.words(b, held, partial(self.value, at=at)) for at in (first, second)]
        packed = b.held_within(b.side_by_side(*words), held.low, held.high, b.element(access.stored))
        b.write(packed, self.unit(access, self.here(0, access, first), first.vector), access.stored)

    def value(self, e: Expr, at: At) -> Any:
        """`e` there; what `at.known` holds already is not computed again."""
        row, lane = self.moves[e]
        key = (e, at.tag if row else None, at.vector if lane else None)
        if key not in at.known:
            if e.op == "guard":
                at.known[key] = self._guard(e, at)
            elif e.op in ("load", "index"):
                at.known[key] = at.accumulator if e.op == "load" and e.value == 0 else self._leaf(e, at)
            elif (held := bounded.bounded(e)) is not None:
                at.known[key] = bounded.emit(self.b, held, partial(self.value, at=at), e.dtype)
            else:
                at.known[key] = compute(self.b, e, [self.value(a, at) for a in e.args])
        return at.known[key]

    def _guard(self, e: Expr, at: At) -> Any:
        b = self.b
        condition, outside = self.value(e.args[0], at), self.value(e.args[2], at)
        outer = at.mask if at.mask is not None else self.masks[at.vector]
        mask = condition if outer is None else b.and_(condition, outer)
        inside = self.value(e.args[1], replace(at, mask=mask, known=dict(at.known)))
        return b.select(condition, inside, outside)

    def _leaf(self, e: Expr, at: At) -> Any:
        b, access = self.b, self.form.accesses[e.value]
        here = self.here(e.value, access, at)
        if e.op == "index":
            if access.lane == "0":
                return b.splat(here)
            step = b.splat(b.word(f"at{e.value}.lane")) if access.lane == "s" else b.const(1, INDEX)
            return b.add(b.splat(here), b.mul(b.add(b.iota(), b.const(at.vector * b.width, INDEX)), step))
        mask = at.mask if at.mask is not None else self.masks[at.vector]
        if access.lane == "0":
            return b.widen(b.splat(b.scalar(here, access.stored, at.mask)), access.stored)
        if access.lane == "1":
            return b.widen(b.read(self.unit(access, here, at.vector), access.stored, mask), access.stored)
        return b.widen(b.gather(*self._strided(e.value, here, at.vector), access.stored, mask), access.stored)

    def here(self, k: int, access: Access, at: At) -> Any:
        """The address at a row: a stride further than at the one before, where that is straight-line code too."""
        if access.row == "0":
            return self.bases[k]
        b, stride = self.b, self.b.word(f"at{k}.row")
        block, tag, where = self.rows.get(k, (None, 0, None))
        if block is not b.block or tag not in (at.tag, at.tag - 1):
            where = b.add(self.bases[k], b.mul(at.number, stride))
        elif tag == at.tag - 1:
            where = b.add(where, stride)
        self.rows[k] = b.block, at.tag, where
        return where

    def unit(self, access: Access, here: Any, vector: int) -> Any:
        """Pointer to a vector whose lanes are neighbours."""
        return self.b.address(self.b.add(here, self.b.i64(vector * self.b.width * size(access.stored))))

    def _strided(self, k: int, here: Any, vector: int) -> tuple[Any, Any]:
        """Pointer and element offsets of one vector."""
        b, access = self.b, self.form.accesses[k]
        step = b.word(f"at{k}.lane") if access.lane == "s" else b.i64(0)
        offsets = b.mul(b.iota(), b.splat(b.sdiv(step, b.i64(size(access.stored)))))
        return b.address(b.add(here, b.mul(step, b.i64(vector * b.width)))), offsets

    def store(self, value: Any, at: At) -> None:
        b, access, mask = self.b, self.form.accesses[0], self.masks[at.vector]
        value = b.narrow(value, access.stored)
        here = self.here(0, access, at)
        if access.lane == "1":
            b.write(value, self.unit(access, here, at.vector), access.stored, mask)
        else:
            b.scatter(value, *self._strided(0, here, at.vector), access.stored, mask)


def compute(b: Any, e: Expr, args: list[Any]) -> Any:
    """One expression node that is no leaf of memory."""
    match e.op:
        case "const": return b.const(e.value, e.dtype)
        case "dim": return b.splat(b.word(f"dim{e.value}"))
        case "cast": return b.convert(args[0], e.args[0].dtype, e.dtype)
        case "round": return b.widen(b.narrow(args[0], e.value), e.value)
    return scalars.emit(b, e, args)


def check(e: Expr, *own: str) -> str | None:
    """Why an epilogue's expression cannot be emitted here, None if it can; `own`: leaves that the kernel itself knows."""
    known = ("const", "dim", "cast", "round", "load", "index", "guard", *own)
    for x in e.walk():
        if x.op not in known and not scalars.has(x.op):
            return f"the epilogue uses {x.op}"
        if x.dtype in ("c64", "c128", "str"):
            return f"the epilogue computes in {x.dtype}"
    return None
