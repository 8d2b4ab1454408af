"""Values of a nest's expressions as vectors: what is the same in all lanes is computed once, in vectors of one lane."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gpuonnx.codegen.cpu_places import Address, Place, Scope
from gpuonnx.codegen.nest import UNIT, Access, Form, Term, lanes_of_host
from gpuonnx.ir.affine import affine
from gpuonnx.ir.expr import Expr, postorder, reached, sure
from gpuonnx.kernels.contract import CTX_CODE, CTX_LIMIT, CTX_VALUE, ERROR_INDEX

LEAVES = ("const", "index", "word")
WRITTEN = -2
ORDERS = ("less", "less_equal", "greater", "greater_equal")


class Values:
    """The text of one kernel so far. `places`: the vectors of lanes that code is being written for, side by side; `here` is
    the one that values are computed for. `group`: loads of this tile, transposed; `cut`: its masks (tile's axis, lanes)."""

    places: list[Place]
    group: dict[int, list[Any]]
    cut: Any

    def __init__(self, form: Form, symbol: str) -> None:
        import llvmlite.ir as ir

        from gpuonnx.codegen.native import host
        from gpuonnx.kernels.cpu.lanes import I64, PTR, Lanes
        self.ir, self.form, self.i64, self.ptr = ir, form, I64, PTR
        features = {f[1:]: f[0] == "+" for f in host().features.split(",") if f}
        self.module = ir.Module("nest")
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I64]), symbol)
        function.attributes.add("nounwind")
        self.ctx, self.args, self.task = function.args
        self.full = lanes_of_host()
        self.b = Lanes(function.append_basic_block("entry"), self.full, True, features)
        self.b.fail = self._fail
        self.here = Place()
        self.coordinates: dict[int, Any] = {-1: I64(0)}
        self._words: dict[int, Any] = {}
        self._same: dict[Expr, bool] = {}
        self._needs: dict[Expr, tuple[frozenset[int], frozenset[Any]]] = {}
        self.sure = sure_accesses(form)

    def word(self, number: int) -> Any:
        if number not in self._words:
            b = self.b
            with b.goto_entry_block():
                self._words[number] = b.load(b.gep(self.args, [self.i64(number)], source_etype=self.i64), typ=self.i64)
        return self._words[number]

    def read_words(self) -> None:
        """All of them, before anything else."""
        f = self.form
        numbers = {*f.sizes, *f.words.values()}
        for a in (*f.accesses, *f.stores.values()):
            numbers |= {a.pointer, a.offset, *(s[1] for s in a.strides if s not in (0, 1))}
            numbers |= {n for t in a.terms for n in (t.stride, t.size) if n != UNIT}
            numbers |= {x.value for t in a.terms for x in t.index.walk() if x.op == "word"}
        for bound in f.bounds():
            numbers |= {bound.offset, *(n for _, n in bound.terms)}
            numbers |= {x.value for a, _ in bound.terms if isinstance(a, Expr) for x in a.walk() if x.op == "word"}
        stages = (*f.stages, *(f.interior.stages if f.interior is not None else ()))
        numbers |= {x.value for x in postorder(tuple(a.expr for stage in stages for a in stage)) if x.op == "word"}
        for number in sorted(numbers):
            self.word(number)

    def all(self) -> list[Expr]:
        return [a.expr for stage in self.form.stages for a in stage]

    def size(self, axis: int) -> Any:
        return self.word(self.form.sizes[axis])

    def least(self, a: Any, c: Any) -> Any:
        return self.b.select(self.b.icmp_signed("<", a, c), a, c)

    @contextmanager
    def lanes(self, width: int) -> Iterator[None]:
        """Inside: constants, words and variables are vectors of `width` lanes."""
        held, self.b.width = self.b.width, width
        yield
        self.b.width = held

    def below(self, count: Any, inverse: bool = False) -> Any:
        """A mask of the first `count` lanes, any i64, or of the others."""
        from gpuonnx.kernels.cpu.lanes import I32
        b, full = self.b, self.i64(self.full)
        with self.lanes(self.full):
            most = self.least(b.select(b.icmp_signed("<", count, self.i64(0)), self.i64(0), count), full)
            return b.icmp_signed(">=" if inverse else "<", b.iota("i32"), b.splat(b.trunc(most, I32)))

    # what depends on what
    def same(self, e: Expr) -> bool:
        """Whether all lanes have the same value."""
        lane = self.form.lane
        if lane < 0:
            return True
        if e not in self._same:
            match e.op:
                case "index": found = e.value != lane
                case "folded": found = lane in self.form.over
                case "access":
                    access = self.form.accesses[e.value]
                    found = access.strides[lane] == 0 and all(self.same(t.index) for t in access.terms)
                case _: found = all(self.same(a) for a in e.args)
            self._same[e] = found
        return self._same[e]

    def width(self, e: Expr) -> int:
        return 1 if self.same(e) else self.full

    def needs(self, e: Expr) -> tuple[frozenset[int], frozenset[Any]]:
        """The axes and fold results that a value is made from; WRITTEN where the nest itself writes what is read: no hoisting."""
        if e not in self._needs:
            axes: set[int] = set()
            results: set[Any] = set()
            if e.op == "index":
                axes.add(e.value)
            elif e.op == "folded":
                results.add(e.value)
            elif e.op == "access":
                access = self.form.accesses[e.value]
                axes |= {a for a, s in enumerate(access.strides) if s != 0} | ({WRITTEN} if access.volatile else set())
            for arg in e.args:
                more = self.needs(arg)
                axes |= more[0]
                results |= more[1]
            self._needs[e] = frozenset(axes - {-1}), frozenset(results)
        return self._needs[e]

    def ready(self, e: Expr) -> bool:
        axes, results = self.needs(e)
        return all(self._placed(a) for a in axes) and all(r in self.here.results for r in results)

    def _placed(self, axis: int) -> bool:
        if axis == self.form.lane:
            return self.here.lane is not None
        return self.here.tile is not None if axis == self.form.tile else axis in self.coordinates

    def coordinate(self, axis: int) -> Any:
        if axis == self.form.lane:
            return self.here.lane
        return self.here.tile if axis == self.form.tile else self.coordinates[axis]

    def enter(self, roots: Sequence[Expr]) -> None:
        """Coordinates are as they are now: compute what they determine of `roots`, in a new scope of `here`."""
        self.here.scopes.append(Scope())
        for key, access in [*enumerate(self.form.accesses), *self.form.stores.items()]:
            self._advance(key, access)
        for x in unconditional(roots):
            if x.op not in LEAVES and self.ready(x):
                self.value(x)

    # addresses
    def _advance(self, key: Any, access: Access) -> None:
        """The address of an access as far as the coordinates say."""
        b, here = self.b, self.here
        known = next((s.addresses[key] for s in reversed(here.scopes) if key in s.addresses), None) or Address(self.word(access.offset))
        total, axes, terms, mask = known.total, set(known.axes), set(known.terms), known.mask
        for axis, stride in enumerate(access.strides):
            if axis not in axes and self._placed(axis):
                axes.add(axis)
                if stride != 0:
                    at = self.coordinate(axis)
                    total = b.add(total, at if stride == 1 else b.mul(at, self.word(stride[1])))
        if key in self.sure:
            for k, t in enumerate(access.terms):
                if k not in terms and self.same(t.index) and self.ready(t.index):
                    terms.add(k)
                    total, mask = self._uniform(t, total, mask)
        here.scopes[-1].addresses[key] = Address(total, frozenset(axes), frozenset(terms), mask)

    def _address(self, key: Any) -> Address:
        return next(s.addresses[key] for s in reversed(self.here.scopes) if key in s.addresses)

    def active(self) -> Any:
        """The lanes that may touch memory, None for all."""
        mask = self.here.mask
        for c in self.here.conditions:
            mask = c if mask is None else self.both(mask, c)
        return mask

    def both(self, x: Any, y: Any) -> Any:
        if x is None or y is None:
            return y if x is None else x
        count = max(x.type.count, y.type.count)
        return self.b.and_(self.spread(x, count), self.spread(y, count))

    def spread(self, vector: Any, count: int) -> Any:
        """A vector of one lane, in `count` lanes."""
        if vector.type.count == count:
            return vector
        from gpuonnx.kernels.cpu.lanes import I32
        ir = self.ir
        picks = ir.Constant(ir.VectorType(I32, count), [0] * count)
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), picks)

    def _uniform(self, t: Term, total: Any, mask: Any) -> tuple[Any, Any]:
        b = self.b
        at = self.value(t.index)
        if t.from_data:
            mask = self.both(mask, self._checked(at, t))
        step = b.lane(at)
        return b.add(total, step if t.stride == UNIT else b.mul(step, self.word(t.stride))), mask

    def place(self, key: Any, access: Access) -> tuple[Any, Any, Any]:
        """(scalar element offset, lane offsets or None, mask) of an access here."""
        b, lane = self.b, self.form.lane
        known = self._address(key)
        offset, vector, mask = known.total, None, self.both(known.mask, self.active())
        for k, t in enumerate(access.terms):
            if k in known.terms:
                continue
            if self.same(t.index):
                offset, inside = self._uniform(t, offset, None)
                mask = self.both(mask, inside)
                continue
            at = self.value(t.index)
            if t.from_data:
                mask = self.both(mask, self._checked(at, t))
            with self.lanes(self.full):
                step = at if t.stride == UNIT else b.mul(at, b.splat(self.word(t.stride)))
                vector = step if vector is None else b.add(vector, step)
        stride: Any = 0 if self.here.lane is None else access.strides[lane]
        if vector is None and isinstance(key, int) and self._apart(access, mask):
            return offset, None, mask
        if stride not in (0, 1) or vector is not None and stride == 1:
            with self.lanes(self.full):
                own = b.iota() if stride == 1 else b.mul(b.iota(), b.splat(self.word(stride[1])))
                vector = own if vector is None else b.add(vector, own)
        return offset, vector, mask

    def _apart(self, access: Access, mask: Any) -> int:
        """How many elements are from lane to lane where they are read by vectors that are shuffled, else 0. Parts of vectors only
        where the processor has masked loads."""
        from gpuonnx.kernels.cpu.lanes import SIZES
        stride: Any = 0 if self.here.lane is None else access.strides[self.form.lane]
        if stride in (0, 1) or len(stride) < 3:
            return 0
        return stride[2] if mask is None or SIZES[access.stored] >= 4 and self.b.features.get("avx") else 0

    def _checked(self, at: Any, t: Term) -> Any:
        """Record lanes whose index is out of range; the lanes that are within."""
        b = self.b
        with self.lanes(at.type.count):
            inside = b.icmp_unsigned("<", at, b.splat(self.word(t.size)))
            bad = b.xor(inside, b.const(1, "bool"))
        self._record(bad, at, self.word(t.size), ERROR_INDEX)
        return inside

    def some(self, mask: Any) -> Any:
        """Whether any lane is on, an i1."""
        bits = self.b.bitcast(mask, self.ir.IntType(mask.type.count))
        return self.b.icmp_unsigned("!=", bits, bits.type(0))

    def _record(self, bad: Any, values: Any, limit: Any, code: int) -> None:
        """Store the error of the first lane that is bad and active."""
        b = self.b
        bad = self.both(bad, self.active())
        count = bad.type.count
        with b.if_then(self.some(bad), likely=False):
            bits = b.bitcast(bad, self.ir.IntType(count))
            number = b.zext(self._first(bits), self.i64) if count > 1 else self.i64(0)
            value = b.extract_element(self.spread(values, count), b.trunc(number, self.ir.IntType(32)))
            for slot, what in ((CTX_VALUE, value), (CTX_LIMIT, limit), (CTX_CODE, self.i64(code))):
                b.store(what, b.gep(self.ctx, [self.i64(slot)], source_etype=self.i64))

    def _fail(self, bad: Any, code: int) -> None:
        """Lanes that met an error, as scalar functions report them."""
        with self.lanes(bad.type.count):
            self._record(bad, self.b.const(0, "i64"), self.i64(0), code)

    def _first(self, bits: Any) -> Any:
        name = f"llvm.cttz.i{bits.type.width}"
        known = self.module.globals.get(name)
        if known is None:
            known = self.ir.Function(self.module, self.ir.FunctionType(bits.type, [bits.type, self.ir.IntType(1)]), name)
        return self.b.call(known, [bits, self.ir.IntType(1)(1)])

    def pointer(self, access: Access, offset: Any) -> Any:
        from gpuonnx.kernels.cpu.lanes import STORED
        base = self.b.inttoptr(self.word(access.pointer), self.ptr)
        return self.b.gep(base, [offset], source_etype=STORED[access.stored])

    # values
    def value(self, root: Expr) -> Any:
        """One lane if all lanes are the same, else all."""
        for e in unconditional((root,)):
            if not any(e in s.values for s in self.here.scopes):
                self.here.scopes[-1].values[e] = self._emit(e)
        return self._found(root)

    def wide(self, root: Expr, count: int) -> Any:
        self.value(root)
        return self._argument(root, count)

    def _found(self, e: Expr) -> Any:
        return next(s.values[e] for s in reversed(self.here.scopes) if e in s.values)

    def _argument(self, e: Expr, count: int) -> Any:
        if e.op == "const":
            with self.lanes(count):
                return self.b.const(e.value, e.dtype)
        return self.spread(self._found(e), count)

    def _emit(self, e: Expr) -> Any:
        from gpuonnx.kernels.cpu import bounded, scalars
        b, count = self.b, self.width(e)
        with self.lanes(count):
            match e.op:
                case "const": return b.const(e.value, e.dtype)
                case "word": return b.splat(self.word(e.value))
                case "index":
                    if e.value == self.form.lane:
                        return b.add(b.splat(self.here.lane), b.iota())
                    return b.splat(self.coordinate(e.value))
                case "folded": return self.here.results[e.value]
                case "access": return self._load(e)
                case "guard": return self._guard(e, count)
            held = bounded.bounded(e)
            if held is not None:
                return bounded.emit(b, held, lambda x: self.wide(x, count), e.dtype)
            if e.op == "div" and count > 1 and self._is_sum(e.args[1]):
                return b.fmul(self._argument(e.args[0], count), self.spread(self._inverse(e.args[1]), count))
            if count > 1 and e.op in ORDERS and e.args[0].dtype == "ix":
                ordered = self._ordered(e)
                if ordered is not None:
                    return ordered
            args = [self._argument(a, count) for a in e.args]
            if e.op == "cast":
                return b.convert(args[0], e.args[0].dtype, e.dtype)
            if e.op == "round":
                return b.widen(b.narrow(args[0], e.value), e.value)
            if e.dtype == "ix" and e.op in ("floordiv", "floormod") and count > 1:
                return self._divided(e.op, *args)
            return scalars.emit(b, e, args)

    def _slope(self, e: Expr) -> int | None:
        """What an index grows by from lane to lane, where that is a number."""
        form = affine(e, self.same)
        slope = None if form is None else form.terms.get(self.form.lane, 0)
        return slope if isinstance(slope, int) else None

    def _first_lane(self, e: Expr) -> Any:
        """An index with a slope, in the first lane: a scalar."""
        b = self.b
        if self.same(e):
            return self.i64(e.value) if e.op == "const" else b.lane(self._found(e))
        if e.op == "index":
            return self.here.lane
        return {"neg": b.neg, "add": b.add, "sub": b.sub, "mul": b.mul}[e.op](*map(self._first_lane, e.args))

    def _ordered(self, e: Expr) -> Any:
        """A comparison of indices: where lanes are in order, those before or after one that scalars tell."""
        b, (low, high) = self.b, e.args if e.op.startswith("less") else e.args[::-1]
        from_low, from_high = self._slope(low), self._slope(high)
        if from_low is None or from_high is None or from_low == from_high:
            return None
        slope = from_high - from_low
        left = b.sub(self._first_lane(high), self._first_lane(low))
        if not e.op.endswith("equal"):
            left = b.sub(left, self.i64(1))
        steps = b.divided_down(left, abs(slope))
        return self.below(b.neg(steps), inverse=True) if slope > 0 else self.below(b.add(steps, self.i64(1)))

    def _is_sum(self, e: Expr) -> bool:
        """Whether all lanes are divided by one float sum: its inverse, made once, then costs a last bit and saves divisions."""
        return e.op == "folded" and self.same(e) and e.dtype == "f32" and self.form.stages[e.value[0]][e.value[1]].op == "sum"

    def _inverse(self, e: Expr) -> Any:
        key = Expr("inverse", (e,), e.dtype)
        if not any(key in s.values for s in self.here.scopes):
            total = self._found(e)
            with self.lanes(1):
                scope = next(s for s in self.here.scopes if e in s.values)
                scope.values[key] = self.b.fdiv(self.b.const(1.0, e.dtype), total)
        return self._found(key)

    def _divided(self, op: str, x: Any, y: Any) -> Any:
        """Floor division of indices by way of f64, exact below 2**53; by 0 it is by 1."""
        b = self.b
        safe = b.select(b.icmp_signed("==", y, b.const(0, "ix")), b.const(1, "ix"), y)
        return b.floordiv(x, safe) if op == "floordiv" else b.remainder(x, safe)

    def _guard(self, e: Expr, count: int) -> Any:
        b, here = self.b, self.here
        condition = self._found(e.args[0])
        held = here.conditions
        branches = []
        for argument, inverse in ((e.args[1], False), (e.args[2], True)):
            with self.lanes(condition.type.count):
                chosen = b.xor(condition, b.const(1, "bool")) if inverse else condition
            here.conditions = [*held, chosen]
            here.scopes.append(Scope())
            branches.append(self.wide(argument, count))
            here.scopes.pop()
        here.conditions = held
        return b.select(self.spread(condition, count), *branches)

    def _load(self, e: Expr) -> Any:
        from gpuonnx.kernels.cpu.lanes import SIZES, STORED
        b, access = self.b, self.form.accesses[e.value]
        if self.here.tile is not None and self._tiled(e.value, access):
            return b.widen(self.tiled(e.value, access), access.stored)
        offset, vector, mask = self.place(e.value, access)
        pointer = self.pointer(access, offset)
        if not self.same(e):
            pointer = self._readable(pointer)
            wide = None if mask is None else self.spread(mask, self.full)
            step = self._apart(access, mask)
            if vector is None and step:
                return b.widen(b.read_apart(pointer, access.stored, step, wide), access.stored)
            if vector is not None:
                spare = None if mask is None or mask.type.count == 1 else self.args
                return b.widen(b.gather(pointer, vector, access.stored, wide, spare), access.stored)
            return b.widen(b.read(pointer, access.stored, wide), access.stored)
        if mask is not None and mask is not self.here.mask:
            pointer = b.select(self.some(mask), pointer, self.args)
        one = b.load(pointer, typ=STORED[access.stored], align=SIZES[access.stored])
        return b.widen(b.splat(one), access.stored)

    def _readable(self, pointer: Any) -> Any:
        """The pointer, or that of the arguments where a condition that all lanes share is not met: a masked load that nothing is
        read by still costs microseconds where there is no page."""
        for condition in (c for c in self.here.conditions if c.type.count == 1):
            pointer = self.b.select(self.some(condition), pointer, self.args)
        return pointer

    def _tiled(self, number: int, access: Access) -> bool:
        f = self.form
        return not f.weave and number in self.sure and not access.terms and access.strides[f.tile] == 1 and access.strides[f.lane] not in (0, 1)

    def tiled(self, number: int, access: Access) -> Any:
        """A load that is contiguous along the tile's axis: the whole tile is read with the first place, then transposed."""
        b, w = self.b, self.full
        if number not in self.group:
            held, self.here = self.here, self.places[0]
            stride, total = self.word(access.strides[self.form.lane][1]), self._address(number).total
            rows = []
            with self.lanes(w):
                for v in range(w):
                    mask = None if self.cut is None else b.and_(self.cut[0], b.splat(b.lane(self.cut[1], v)))
                    place = b.add(total, b.mul(stride, self.i64(v))) if v else total
                    rows.append(b.read(self.pointer(access, place), access.stored, mask))
                self.group[number] = b.transpose(rows)
            self.here = held
        return self.group[number][next(u for u, p in enumerate(self.places) if p is self.here)]


def unconditional(roots: Sequence[Expr]) -> list[Expr]:
    """What is computed whatever guards say, arguments first; guards' branches and indices of loads stay out."""
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
            needs = e.args[:1] if e.op == "guard" else () if e.op == "access" else e.args
            stack.extend((a, False) for a in reversed(needs))
    return out


def sure_accesses(form: Form) -> set[Any]:
    """Accesses that no guard keeps from happening; those of stores are."""
    roots = [a.expr for stage in form.stages for a in stage] + [t.index for s in form.stores.values() for t in s.terms]
    return {*form.stores, *(e.value for e in reached(roots, sure) if e.op == "access")}

