"""Nests as LLVM IR, one lane axis, masked remainders: `build(node, inputs, outputs)`."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.affine import affine
from gpuonnx.ir.dims import Dim, dmax, dmin, floordiv
from gpuonnx.ir.expr import Expr, index, load, postorder, rewrite
from gpuonnx.ir.scalar import FOLDS
from gpuonnx.kernels.contract import CTX_CODE, CTX_LIMIT, CTX_VALUE, ERROR_INDEX, Arg, Build, Kernel, Layout, Ref, Step

TASK_WORK = 1 << 15
PLAIN_SUM = 512


def supports(node: g.Node) -> str | None:
    """None, or why this renderer cannot run the node."""
    from gpuonnx.kernels.cpu.scalars import has
    if isinstance(node, (g.Prefix, g.Scatter)):
        return f"{type(node).__name__} has no CPU renderer yet"
    if not isinstance(node, (g.Map, g.Reduce, g.Nest, g.Copy)):
        return f"{type(node).__name__} is no loop nest"
    for v in (*node.inputs, *node.outputs):
        if types.kind(v.dtype) in "cs":
            return f"elements of type {v.dtype} have no vectors"
    own = {"const", "dim", "index", "load", "folded", "guard", "cast", "round"}
    for e in postorder(tuple(_roots(as_nest(node)))):
        if e.op not in own and not has(e.op):
            return f"the scalar function {e.op} has no CPU emission"
        if types.kind(e.dtype) in "cs":
            return f"values of type {e.dtype} have no vectors"
    return None


def _roots(nest: g.Nest) -> list[Expr]:
    return [x for stage in nest.stages for a in stage for x in ((a.expr,) if isinstance(a, g.Fold) else (a.expr, *a.indices))]


def as_nest(node: g.Node) -> g.Nest:
    """A Map, Reduce or Copy as a nest of one or two stages."""
    if isinstance(node, g.Nest):
        return node
    axes = tuple(map(index, range(node.outputs[0].rank)))
    if isinstance(node, g.Copy):
        node = g.Map(node.inputs, node.outputs, expr=load(0, node.inputs[0].dtype, axes), origins=node.origins)
    if isinstance(node, g.Map):
        return g.Nest(node.inputs, node.outputs, ranges=node.out.dims, over=frozenset(), stages=((g.Store(0, axes, node.expr),),),
                      origins=node.origins)
    assert isinstance(node, g.Reduce)
    from gpuonnx.ir.expr import cast, folded
    kept = tuple(index(a) for a in range(len(node.ranges)) if a not in node.over)
    kind = "i64" if node.fold.startswith("arg") else node.expr.dtype
    result = folded(0, 0, kind)
    stored = types.compute(node.out.dtype)
    out = result if kind == stored else cast(result, stored)
    return g.Nest(node.inputs, node.outputs, ranges=node.ranges, over=frozenset(node.over),
                  stages=((g.Fold(node.fold, node.expr),), (g.Store(0, kept, out),)), origins=node.origins)


@dataclass(frozen=True)
class Term:
    """An index that is not affine: expression, stride word, size word, whether data decides it."""

    index: Expr
    stride: int
    size: int
    from_data: bool


@dataclass(frozen=True)
class Access:
    """pointer word + (offset word + sum of axis strides) elements + terms. A stride is 0, 1 or ("w", word)."""

    stored: str
    pointer: int
    offset: int
    strides: tuple[Any, ...]
    terms: tuple[Term, ...] = ()


@dataclass
class Form:
    """Structure only; sizes and strides are words."""

    sizes: tuple[int, ...]
    over: tuple[int, ...]
    lane: int
    stages: tuple[Any, ...]
    accesses: tuple[tuple[Expr, Access], ...]
    stores: dict[tuple[int, int], Access]
    words: dict[str, int] = field(default_factory=dict)
    compensated: bool = False

    def key(self) -> tuple[Any, ...]:
        stages = tuple(tuple(("fold", a.op, a.expr) if isinstance(a, g.Fold) else ("store", a.output, a.expr) for a in stage)
                       for stage in self.stages)
        return (self.sizes, self.over, self.lane, stages, self.accesses, tuple(sorted(self.stores.items())), tuple(sorted(self.words.items())),
                self.compensated)


class Words:
    """Argument words, each once."""

    def __init__(self) -> None:
        self.args: list[Arg] = []
        self.known: dict[Any, int] = {}

    def of(self, arg: Any) -> int:
        key = (type(arg).__name__, arg if isinstance(arg, (int, Ref)) else id(arg))
        if key not in self.known:
            self.known[key] = len(self.args)
            self.args.append(arg)
        return self.known[key]


def collapsed(nest: g.Nest, layouts: Sequence[Layout], outs: Sequence[Layout]) -> g.Nest:
    return nest


def build(node: g.Node, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...]) -> Build:
    """One step."""
    nest = as_nest(node)
    words = Words()
    pointers = [words.of(Ref("in", k)) for k in range(len(inputs))] + [words.of(Ref("out", k)) for k in range(len(outputs))]
    rank = len(nest.ranges)
    accesses: dict[Expr, Access] = {}
    for e in postorder(tuple(_roots(nest))):
        if e.op == "load":
            accesses[e] = _access(e.args, inputs[e.value], pointers[e.value], rank, words)
    stores = {}
    for s, stage in enumerate(nest.stages):
        for p, action in enumerate(stage):
            if isinstance(action, g.Store):
                stores[s, p] = _access(action.indices, outputs[action.output], pointers[len(inputs) + action.output], rank, words)

    def leaf(x: Expr) -> Expr:
        return Expr("word", (), "ix", words.of(x.value)) if x.op == "dim" else x

    order = list(accesses)
    flat = rewrite((*order, *(a.expr for stage in nest.stages for a in stage)), leaf)
    exprs = iter(flat[len(order):])
    stages = tuple(tuple(g.Fold(a.op, next(exprs)) if isinstance(a, g.Fold) else g.Store(a.output, (), next(exprs)) for a in stage)
                   for stage in nest.stages)
    renamed = {}
    for old, new in zip(order, flat, strict=False):
        found = accesses[old]
        terms = tuple(Term(rewrite((t.index,), leaf)[0], t.stride, t.size, t.from_data) for t in found.terms)
        renamed[new] = Access(found.stored, found.pointer, found.offset, found.strides, terms)
    over = tuple(sorted(nest.over))
    lane = _lane(rank, over, [*renamed.values(), *stores.values()])
    form = Form(tuple(words.of(s) for s in nest.ranges), over, lane, stages, tuple(renamed.items()), stores)
    extent = _product([nest.ranges[a] for a in over])
    form.compensated = not isinstance(extent, int) or extent > PLAIN_SUM
    kept = [nest.ranges[a] for a in range(rank) if a not in nest.over and a != lane]
    inner = [nest.ranges[a] for a in over]
    rows, extent, each = _product(kept), nest.ranges[lane] if lane >= 0 and lane not in over else 1, dmax(_product(inner), 1)
    lane_each = dmax(floordiv(dmin(extent, dmax(floordiv(TASK_WORK, each), 64)) + 63, 64) * 64, 64)
    lane_tasks = dmax(floordiv(extent + lane_each - 1, lane_each), 1)
    rows_each = dmax(floordiv(TASK_WORK, dmax(each * dmin(extent, lane_each), 1)), 1)
    tasks = floordiv(rows + rows_each - 1, rows_each) * lane_tasks
    form.words = {"rows": words.of(rows), "rows_each": words.of(rows_each), "lane_each": words.of(lane_each), "lane_tasks": words.of(lane_tasks)}
    kernel = Kernel("nest", form.key(), "llvm", lambda symbol: Renderer(form, symbol).text())
    return Build((Step(kernel, tuple(words.args), tasks),))


def _product(sizes: Sequence[Dim]) -> Dim:
    out: Dim = 1
    for s in sizes:
        out = out * s
    return out


def _access(indices: Sequence[Expr], layout: Layout, pointer: int, rank: int, words: Words) -> Access:
    offset: Dim = 0
    strides: list[Dim] = [0] * rank
    terms = []
    for e, size, stride in zip(indices, layout.shape, layout.strides, strict=True):
        form = affine(e)
        if form is None:
            data = any(x.op == "load" for x in e.walk())
            terms.append(Term(e, words.of(stride), words.of(size), data))
            continue
        offset = offset + form.offset * stride
        for axis, factor in form.terms.items():
            strides[axis] = strides[axis] + factor * stride
    facts = tuple(s if isinstance(s, int) and s in (0, 1) else ("w", words.of(s)) for s in strides)
    return Access(layout.dtype, pointer, words.of(offset), facts, tuple(terms))


def _lane(rank: int, over: tuple[int, ...], accesses: Sequence[Access]) -> int:
    """The axis that most accesses step along by one; a later one of equals."""
    def score(axis: int) -> tuple[int, int]:
        good = sum(2 if a.strides[axis] == 1 else 1 if a.strides[axis] == 0 else -2 for a in accesses)
        good -= sum(3 for a in accesses for t in a.terms if any(x.op == "index" and x.value == axis for x in t.index.walk()))
        return good, axis
    return max(range(rank), key=score, default=-1)


class Scope:
    """What is known inside one loop: axes with coordinates, values, partial addresses."""

    def __init__(self) -> None:
        self.values: dict[Expr, Any] = {}
        self.addresses: dict[Any, Any] = {}


class Renderer:
    """One kernel text."""

    def __init__(self, form: Form, symbol: str) -> None:
        import llvmlite.ir as ir

        from gpuonnx.codegen.native import host
        from gpuonnx.kernels.cpu.lanes import I64, PTR, Lanes
        self.ir, self.form, self.i64 = ir, form, I64
        features = {f[1:]: f[0] == "+" for f in host().features.split(",") if f}
        self.width = 16 if features.get("avx512f") else 8
        self.module = ir.Module("nest")
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I64]), symbol)
        function.attributes.add("nounwind")
        self.ctx, self.args, self.task = function.args
        self.b = Lanes(function.append_basic_block("entry"), self.width, True, features)
        self.b.fail = self._fail
        self.accesses = dict(form.accesses)
        self.scopes = [Scope()]
        self.coordinates: dict[int, Any] = {}
        self.results: dict[tuple[int, int], Any] = {}
        self.mask: Any = None
        self.conditions: list[Any] = []
        self._words: dict[int, Any] = {}
        self.lane_base: Any = None

    def word(self, number: int) -> Any:
        if number not in self._words:
            b = self.b
            with b.goto_entry_block():
                self._words[number] = b.load(b.gep(self.args, [self.i64(number)], source_etype=self.i64), typ=self.i64)
        return self._words[number]

    def size(self, axis: int) -> Any:
        return self.word(self.form.sizes[axis])

    def text(self) -> str:
        b, f = self.b, self.form
        for number in sorted({*f.sizes, *f.words.values(), *(n for _, a in f.accesses for n in _word_numbers(a)),
                              *(n for a in f.stores.values() for n in _word_numbers(a)),
                              *(e.value for e in postorder(tuple(self._all())) if e.op == "word")}):
            self.word(number)
        start = b.append_basic_block("start")
        b.branch(start)
        b.position_at_end(start)
        w = {k: self.word(n) for k, n in f.words.items()}
        row_task, lane_task = b.udiv(self.task, w["lane_tasks"]), b.urem(self.task, w["lane_tasks"])
        first = b.mul(row_task, w["rows_each"])
        last = self.least(b.add(first, w["rows_each"]), w["rows"])
        rows = [a for a in range(len(f.sizes)) if a not in f.over and a != f.lane]
        with b.loop(first, last, 1) as row:
            rest = row
            for axis in reversed(rows):
                if axis is rows[0]:
                    self.coordinates[axis] = rest
                else:
                    self.coordinates[axis] = b.urem(rest, self.size(axis))
                    rest = b.udiv(rest, self.size(axis))
            with self.scope(self._all()):
                if f.lane < 0:
                    self.lane_base = self.i64(0)
                    self.mask = b.icmp_signed("<", b.iota(), b.const(1, "ix"))
                    self.stages()
                elif f.lane in f.over:
                    self.stages()
                else:
                    low = b.mul(lane_task, w["lane_each"])
                    high = self.least(b.add(low, w["lane_each"]), self.size(f.lane))
                    self.lanes(low, high, self.stages)
        b.ret_void()
        return str(self.module)

    def _all(self) -> list[Expr]:
        return [a.expr for stage in self.form.stages for a in stage]

    def least(self, a: Any, c: Any) -> Any:
        return self.b.select(self.b.icmp_signed("<", a, c), a, c)

    def lanes(self, low: Any, high: Any, body: Callable[[], None]) -> None:
        """`body` for whole vectors from low to high, then for the masked rest."""
        b, w = self.b, self.width
        whole = b.add(low, b.and_(b.sub(high, low), self.i64(-w)))
        with b.loop(low, whole, w) as i:
            self.lane_base, self.mask = i, None
            self.coordinates[self.form.lane] = i
            with self.scope(self._all()):
                body()
        with b.if_then(b.icmp_signed("<", whole, high)):
            self.lane_base = whole
            self.coordinates[self.form.lane] = whole
            self.mask = b.icmp_signed("<", b.add(b.iota(), b.splat(whole)), b.splat(high))
            with self.scope(self._all()):
                body()
        self.mask = None
        self.coordinates.pop(self.form.lane)

    @contextmanager
    def scope(self, roots: Sequence[Expr]) -> Iterator[None]:
        """Inside: coordinates are as they are now; what they determine of `roots` is computed here, once."""
        self.scopes.append(Scope())
        held = self.conditions
        self.conditions = []
        for e, access in self.accesses.items():
            self._partial(e, access)
        for key, access in self.form.stores.items():
            self._partial(key, access)
        for x in _unconditional(roots):
            if x.op not in ("const", "index", "word") and self._ready(x):
                self.value(x)
        yield
        self.conditions = held
        self.scopes.pop()

    def _ready(self, x: Expr) -> bool:
        for y in x.walk():
            if y.op == "index" and y.value not in self.coordinates:
                return False
            if y.op == "folded" and y.value not in self.results:
                return False
        return True

    # addresses
    def _partial(self, key: Any, access: Access) -> None:
        b = self.b
        known = next((s.addresses[key] for s in reversed(self.scopes) if key in s.addresses), None)
        total, done = known if known is not None else (self.word(access.offset), frozenset())
        new = frozenset(self.coordinates)
        for axis in sorted(new - done):
            stride = access.strides[axis]
            if stride != 0:
                step = self.coordinates[axis] if stride == 1 else b.mul(self.coordinates[axis], self.word(stride[1]))
                total = b.add(total, step)
        self.scopes[-1].addresses[key] = (total, new)

    def _offset(self, key: Any) -> Any:
        return next(s.addresses[key] for s in reversed(self.scopes) if key in s.addresses)[0]

    def _guarded(self) -> Any:
        """The lanes that may touch memory, None for all."""
        mask = self.mask
        for c in self.conditions:
            mask = c if mask is None else self.b.and_(mask, c)
        return mask

    def _place(self, key: Any, access: Access) -> tuple[Any, Any, Any]:
        """(scalar element offset, lane offsets or None, mask) of an access here."""
        b, mask = self.b, self._guarded()
        offset, vector = self._offset(key), None
        lane = self.form.lane
        for t in access.terms:
            at = self.value(t.index)
            moving = any(x.op == "index" and x.value == lane or x.op == "folded" for x in t.index.walk()) and lane >= 0
            moving = moving or lane >= 0
            if t.from_data:
                mask = self._checked(at, t, mask)
            if moving and any(x.op in ("index", "load", "folded") for x in t.index.walk()):
                step = b.mul(at, b.splat(self.word(t.stride)))
                vector = step if vector is None else b.add(vector, step)
            else:
                offset = b.add(offset, b.mul(b.lane(at), self.word(t.stride)))
        if lane >= 0 and vector is None:
            stride = access.strides[lane]
            if stride not in (0, 1):
                vector = b.mul(b.iota(), b.splat(self.word(stride[1])))
        elif lane >= 0 and access.strides[lane] != 0:
            stride = access.strides[lane]
            own = b.iota() if stride == 1 else b.mul(b.iota(), b.splat(self.word(stride[1])))
            vector = b.add(vector, own)
        return offset, vector, mask

    def _checked(self, at: Any, t: Term, mask: Any) -> Any:
        """Record lanes whose index is out of range, and switch them off."""
        b = self.b
        inside = b.icmp_unsigned("<", at, b.splat(self.word(t.size)))
        self._record(b.xor(inside, b.const(1, "bool")), mask, at, self.word(t.size), ERROR_INDEX)
        return inside if mask is None else b.and_(mask, inside)

    def _record(self, bad: Any, mask: Any, values: Any, limit: Any, code: int) -> None:
        """Store the error of the first lane that is bad and active."""
        b = self.b
        if mask is not None:
            bad = b.and_(bad, mask)
        bits = b.bitcast(bad, self.ir.IntType(self.width))
        with b.if_then(b.icmp_unsigned("!=", bits, bits.type(0)), likely=False):
            number = b.zext(self._first(bits), self.i64)
            value = b.extract_element(values, b.trunc(number, self.ir.IntType(32)))
            for slot, what in ((CTX_VALUE, value), (CTX_LIMIT, limit), (CTX_CODE, self.i64(code))):
                b.store(what, b.gep(self.ctx, [self.i64(slot)], source_etype=self.i64))

    def _fail(self, bad: Any, code: int) -> None:
        """Lanes that met an error, as scalar functions report them; those of an empty lane axis do not count."""
        b, mask, lane = self.b, self._guarded(), self.form.lane
        if lane >= 0 and lane not in self.form.over and lane not in self.coordinates:
            some = b.splat(b.icmp_signed(">", self.size(lane), self.i64(0)))
            mask = some if mask is None else b.and_(mask, some)
        self._record(bad, mask, b.const(0, "i64"), self.i64(0), code)

    def _first(self, bits: Any) -> Any:
        name = f"llvm.cttz.i{self.width}"
        known = self.module.globals.get(name)
        if known is None:
            known = self.ir.Function(self.module, self.ir.FunctionType(bits.type, [bits.type, self.ir.IntType(1)]), name)
        return self.b.call(known, [bits, self.ir.IntType(1)(1)])

    def _pointer(self, access: Access, offset: Any) -> Any:
        from gpuonnx.kernels.cpu.lanes import PTR, STORED
        b = self.b
        base = b.inttoptr(self.word(access.pointer), PTR)
        return b.gep(base, [offset], source_etype=STORED[access.stored])

    # values
    def value(self, root: Expr) -> Any:
        for e in _unconditional((root,)):
            if not any(e in s.values for s in self.scopes):
                self.scopes[-1].values[e] = self._emit(e)
        return self._found(root)

    def _found(self, e: Expr) -> Any:
        return next(s.values[e] for s in reversed(self.scopes) if e in s.values)

    def _emit(self, e: Expr) -> Any:
        from gpuonnx.kernels.cpu import scalars
        b = self.b
        match e.op:
            case "const": return b.const(e.value, e.dtype)
            case "word": return b.splat(self.word(e.value))
            case "index":
                if e.value == self.form.lane:
                    return b.add(b.splat(self.lane_base), b.iota())
                return b.splat(self.coordinates[e.value])
            case "folded": return self.results[e.value]
            case "load": return self._load(e)
            case "guard": return self._guard(e)
        args = [self._found(a) for a in e.args]
        if e.op == "cast":
            return b.convert(args[0], e.args[0].dtype, e.dtype)
        if e.op == "round":
            return b.widen(b.narrow(args[0], e.value), e.value)
        return scalars.emit(b, e, args)

    def _guard(self, e: Expr) -> Any:
        b = self.b
        condition = self._found(e.args[0])
        self.scopes.append(Scope())
        self.scopes[-1].addresses = {}
        self.conditions = [*self.conditions, condition]
        inside = self.value(e.args[1])
        self.conditions = [*self.conditions[:-1], b.xor(condition, b.const(1, "bool"))]
        self.scopes[-1] = Scope()
        outside = self.value(e.args[2])
        self.conditions = self.conditions[:-1]
        self.scopes.pop()
        return b.select(condition, inside, outside)

    def _load(self, e: Expr) -> Any:
        b, access = self.b, self.accesses[e]
        offset, vector, mask = self._place(e, access)
        pointer = self._pointer(access, offset)
        if vector is not None:
            return b.widen(b.gather(pointer, vector, access.stored, mask), access.stored)
        if self.form.lane >= 0 and access.strides[self.form.lane] == 1:
            return b.widen(b.read(pointer, access.stored, mask), access.stored)
        if mask is not None and (self.conditions or access.terms):
            return b.widen(b.gather(pointer, b.const(0, "ix"), access.stored, mask), access.stored)
        from gpuonnx.kernels.cpu.lanes import SIZES, STORED
        return b.widen(b.splat(b.load(pointer, typ=STORED[access.stored], align=SIZES[access.stored])), access.stored)

    # stages
    def stages(self) -> None:
        for s, stage in enumerate(self.form.stages):
            folds = [(p, a) for p, a in enumerate(stage) if isinstance(a, g.Fold)]
            if folds:
                self.fold(s, folds)
            for p, a in enumerate(stage):
                if isinstance(a, g.Store):
                    self.store(s, p, a)
        self.results = {}

    def inner(self, axes: Sequence[int], roots: Sequence[Expr], body: Callable[[], None]) -> None:
        """`body` inside loops over the axes that are folded; the lane axis, if among them, innermost."""
        if not axes:
            body()
            return
        axis = next((a for a in axes if a != self.form.lane), self.form.lane)
        rest = [a for a in axes if a != axis]
        if axis == self.form.lane:
            self.lanes(self.i64(0), self.size(axis), body)
            return
        with self.b.loop(self.i64(0), self.size(axis), 1) as i:
            self.coordinates[axis] = i
            with self.scope(roots):
                self.inner(rest, roots, body)
            self.coordinates.pop(axis)

    def fold(self, stage: int, folds: Sequence[tuple[int, Any]]) -> None:
        b, folded_lanes = self.b, self.form.lane in self.form.over
        accumulators = []
        for _, action in folds:
            kind = action.expr.dtype
            accumulator = b.variable(b.vector(b.element(kind)))
            b.store(b.const(FOLDS[action.op].identity(kind), kind), accumulator)
            place = None
            if action.op.startswith("arg"):
                place = b.variable(b.vector(self.i64))
                b.store(b.const(-1, "ix"), place)
            elif self.form.compensated and action.op == "sum" and types.kind(kind) == "f":
                place = b.variable(b.vector(b.element(kind)))
                b.store(b.const(0, kind), place)
            accumulators.append((accumulator, place))

        def body() -> None:
            for (_, action), (accumulator, place) in zip(folds, accumulators, strict=True):
                self._combine(action, accumulator, place)
        self.inner(self.form.over, [a.expr for _, a in folds], body)
        for (p, action), (accumulator, place) in zip(folds, accumulators, strict=True):
            kind = action.expr.dtype
            value = b.load(accumulator, typ=b.vector(b.element(kind)))
            if action.op.startswith("arg"):
                where = b.load(place, typ=b.vector(self.i64))
                self.results[stage, p] = self._across_arg(action.op, kind, value, where) if folded_lanes else where
            else:
                self.results[stage, p] = self._across(action.op, kind, value) if folded_lanes else value

    def _combine(self, action: Any, accumulator: Any, place: Any) -> None:
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b, kind = self.b, action.expr.dtype
        value = self.value(action.expr)
        old = b.load(accumulator, typ=b.vector(b.element(kind)))
        if action.op == "sum" and place is not None:
            self._compensated(value, old, accumulator, place)
            return
        if place is None:
            new = EMITTERS[FOLDS[action.op].combine](b, kind, old, value)
            b.store(new if self.mask is None else b.select(self.mask, new, old), accumulator)
            return
        where = b.load(place, typ=b.vector(self.i64))
        (axis,) = self.form.over
        here = b.add(b.splat(self.lane_base), b.iota()) if axis == self.form.lane else b.splat(self.coordinates[axis])
        better = self._better(action.op, kind, value, old, where)
        better = better if self.mask is None else b.and_(better, self.mask)
        b.store(b.select(better, value, old), accumulator)
        b.store(b.select(better, here, where), place)

    def _compensated(self, value: Any, old: Any, accumulator: Any, lost: Any) -> None:
        """Kahan's summation; what an infinite sum loses is nothing."""
        b = self.b
        missing = b.load(lost, typ=old.type)
        term = b.fsub(value, missing)
        new = b.fadd(old, term)
        rest = b.fsub(b.fsub(new, old), term)
        rest = b.select(b.fcmp_ordered("ord", rest, rest), rest, b.const(0, "f64" if "double" in str(old.type) else "f32"))
        if self.mask is not None:
            new, rest = b.select(self.mask, new, old), b.select(self.mask, rest, missing)
        b.store(new, accumulator)
        b.store(rest, lost)

    def _better(self, op: str, kind: str, value: Any, old: Any, where: Any) -> Any:
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b = self.b
        better = EMITTERS["greater" if op == "argmax" else "less"](b, kind, value, old)
        if types.kind(kind) == "f":
            nan_now, nan_before = b.fcmp_unordered("uno", value, value), b.fcmp_unordered("uno", old, old)
            better = b.and_(b.or_(better, nan_now), b.xor(nan_before, b.const(1, "bool")))
        return b.or_(better, b.icmp_signed("<", where, b.const(0, "ix")))

    def _across(self, op: str, kind: str, value: Any) -> Any:
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        return self.b.across(lambda x, y: EMITTERS[FOLDS[op].combine](self.b, kind, x, y), value)

    def _across_arg(self, op: str, kind: str, value: Any, where: Any) -> Any:
        """The first position among lanes of the best value."""
        from gpuonnx.kernels.cpu.scalars import EMITTERS
        b, i32 = self.b, self.ir.IntType(32)
        step = self.width // 2
        while step:
            picks = self.ir.Constant(self.ir.VectorType(i32, self.width), [q ^ step for q in range(self.width)])
            other, there = b.shuffle_vector(value, value, picks), b.shuffle_vector(where, where, picks)
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
            value, where = b.select(better, other, value), b.select(better, there, where)
            step //= 2
        return where

    def store(self, stage: int, position: int, action: Any) -> None:
        access = self.form.stores[stage, position]
        over = [a for a in self.form.over if access.strides[a] != 0]
        def body() -> None:
            self._write((stage, position), access, action.expr)
        if over:
            self.inner(over, [action.expr], body)
        else:
            body()

    def _write(self, key: Any, access: Access, expr: Expr) -> None:
        from gpuonnx.kernels.cpu.lanes import SIZES
        b, lane = self.b, self.form.lane
        value = b.narrow(self.value(expr), access.stored)
        offset, vector, mask = self._place(key, access)
        pointer = self._pointer(access, offset)
        active = lane >= 0 and self.lane_base is not None and (lane in self.coordinates)
        if not active:
            b.store(b.lane(value), pointer, align=SIZES[access.stored])
        elif vector is not None:
            b.scatter(value, pointer, vector, access.stored, mask)
        elif access.strides[lane] == 1:
            b.write(value, pointer, access.stored, mask)
        else:
            b.store(b.lane(value), pointer, align=SIZES[access.stored])


def _word_numbers(a: Access) -> list[int]:
    return [a.pointer, a.offset, *(s[1] for s in a.strides if s not in (0, 1)), *(n for t in a.terms for n in (t.stride, t.size)),
            *(x.value for t in a.terms for x in t.index.walk() if x.op == "word")]


def _unconditional(roots: Sequence[Expr]) -> list[Expr]:
    """What is computed whatever guards say, arguments first; loads of guards' branches stay out."""
    seen: set[Expr] = set()
    out: list[Expr] = []
    stack = [(r, False) for r in reversed(list(roots))]
    while stack:
        e, ready = stack.pop()
        if ready:
            out.append(e)
        elif e not in seen:
            seen.add(e)
            stack.append((e, True))
            needs = e.args[:1] if e.op == "guard" else () if e.op == "load" else e.args
            stack.extend((a, False) for a in reversed(needs))
    return out
