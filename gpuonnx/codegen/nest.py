"""Nests arranged for loops: `arrange` turns a node and its layouts into a Form (structure only) and argument words.

Everything is symbolic: strides that are the ints 0 and 1 are facts of the Form, all other numbers are words that a run fills in.
Axes of size 1 are dropped; neighbours collapse where one is the other's continuation in every access.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpuonnx.codegen.phases import split
from gpuonnx.codegen.settle import clips, is_uniform, settle
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.affine import Affine, affine
from gpuonnx.ir.dims import Dim, dmax, dmin, floordiv
from gpuonnx.ir.expr import Expr, cast, const, folded, index, load, postorder, reached, rewrite
from gpuonnx.ir.scalar import FOLDS
from gpuonnx.kernels.contract import Arg, Layout, Ref

TASK_WORK, LEAST_CHUNK, PLAIN_SUM, TINY, TILE_LEAST = 1 << 15, 64, 512, 4, 8
NEAR, UNIT, FEW, BORDER = (-1, 2, 3, 4), -1, 5, 4


def lanes_of_host() -> int:
    """Lanes of a vector: one AVX-512 register of float32, else two registers of AVX2 or NEON."""
    from gpuonnx.codegen.native import host
    return 16 if host().has("avx512f") else 8


@dataclass(frozen=True)
class Term:
    """An index that is not affine: expression, stride word (or UNIT, a stride of 1), size word, whether data decides it."""

    index: Expr
    stride: int
    size: int
    from_data: bool


@dataclass(frozen=True)
class Access:
    """pointer word + (offset word + sum of axis strides) elements + terms. A stride is 0, 1 or ("w", word), or
    ("w", word, number) where lanes are a few elements apart. A volatile one reads what the nest itself writes."""

    stored: str
    pointer: int
    offset: int
    strides: tuple[Any, ...]
    terms: tuple[Term, ...] = ()
    volatile: bool = False


@dataclass(frozen=True)
class Bound:
    """slope * coordinate of `axis` + offset word + the other (axis, or what is the same in all lanes, factor word) >= 0."""

    axis: int
    slope: int
    offset: int
    terms: tuple[tuple[Any, int], ...]


@dataclass(frozen=True)
class Interior:
    """The stages as they are where all bounds of the lanes hold. `nearly`: of the other lanes there are a few only."""

    stages: tuple[Any, ...]
    bounds: tuple[Bound, ...]
    nearly: bool = False


@dataclass(frozen=True)
class Walk:
    """How the results of a Prefix are combined along `over`."""

    combine: str
    identity: Any
    exclusive: bool
    reverse: bool


@dataclass
class Form:
    """Structure only; sizes and strides are words. Loads are `access` expressions: value = number, args = terms' indices.
    `tile`: an axis along which loads are contiguous that the lanes' axis is not; square tiles of both are transposed.
    `weave`: how many places the tile's axis has, where they lie in memory between the lanes. `clips`: bounds
    of the loops of a stage's folds. `few`: a folded axis that is no loop, and how long it is."""

    sizes: tuple[int, ...]
    over: tuple[int, ...]
    lane: int
    stages: tuple[Any, ...]
    accesses: tuple[Access, ...]
    stores: dict[tuple[int, int], Access]
    inside: dict[tuple[int, int], tuple[int, ...]]
    words: dict[str, int] = field(default_factory=dict)
    compensated: bool = False
    walk: Walk | None = None
    tile: int = -1
    weave: int = 0
    interior: Interior | None = None
    clips: dict[int, tuple[Bound, ...]] = field(default_factory=dict)
    few: dict[int, int] = field(default_factory=dict)

    def key(self) -> tuple[Any, ...]:
        stages = self.stages if self.interior is None else (*self.stages, *self.interior.stages)
        actions = tuple(tuple(("fold", a.op, a.expr) if isinstance(a, g.Fold) else ("store", a.output, a.expr) for a in stage)
                        for stage in stages)
        interior = None if self.interior is None else (self.interior.bounds, self.interior.nearly)
        return (self.sizes, self.over, self.lane, actions, self.accesses, tuple(sorted(self.stores.items())),
                tuple(sorted(self.inside.items())), tuple(sorted(self.words.items())), self.compensated, self.walk, self.tile, self.weave,
                interior, tuple(sorted(self.clips.items())), tuple(self.few.items()))

    def bounds(self) -> list[Bound]:
        return [*(self.interior.bounds if self.interior is not None else ()), *(c for each in self.clips.values() for c in each)]


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


@dataclass
class Walked:
    """An access before words: offset, stride each axis, (position, expression, size, stride) of what is not affine."""

    layout: Layout
    pointer: Ref
    offset: Dim
    strides: list[Dim]
    terms: list[tuple[int, Expr, Dim, Dim]]


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
    kept = tuple(index(a) for a in range(len(node.ranges)) if a not in node.over)
    kind = "i64" if node.fold.startswith("arg") else node.expr.dtype
    result = folded(0, 0, kind)
    stored = types.compute(node.out.dtype)
    out = result if kind == stored else cast(result, stored)
    return g.Nest(node.inputs, node.outputs, ranges=node.ranges, over=frozenset(node.over),
                  stages=((g.Fold(node.fold, node.expr),), (g.Store(0, kept, out),)), origins=node.origins)


def product(sizes: Sequence[Dim]) -> Dim:
    out: Dim = 1
    for s in sizes:
        out = out * s
    return out


def _is(d: Dim, number: int) -> bool:
    return isinstance(d, int) and d == number


def _small(d: Dim) -> bool:
    return isinstance(d, int) and d < TILE_LEAST


def _border(bound: Affine, lane: int, size: Dim) -> float:
    """How many lanes a bound leaves out, where that is a number."""
    slope = bound.terms[lane]
    left = -bound.offset if isinstance(slope, int) and slope > 0 else size - 1 - bound.offset
    return max(left, 0) if len(bound.terms) == 1 and isinstance(left, int) and slope in (1, -1) else math.inf


def _same(a: Dim, b: Dim) -> bool:
    return a is b or isinstance(a, int) and isinstance(b, int) and a == b


def _walked(indices: Sequence[Expr], layout: Layout, pointer: Ref, rank: int, lane: int | None = None) -> Walked:
    """`lane`: the axis of the lanes where it is known, so that what is the same in all of them can be a term of its own."""
    out = Walked(layout, pointer, 0, [0] * rank, [])
    for k, (e, size, stride) in enumerate(zip(indices, layout.shape, layout.strides, strict=True)):
        form = affine(e, None if lane is None else lambda x: is_uniform(x, lane))
        if form is None:
            out.terms.append((k, e, size, stride))
            continue
        out.offset = out.offset + form.offset * stride
        for axis, factor in form.terms.items():
            if isinstance(axis, Expr):
                out.terms.append((k, axis, size, factor * stride))
            else:
                out.strides[axis] = out.strides[axis] + factor * stride
    return out


def _named(nest: g.Nest, walks: Sequence[Walked]) -> set[int]:
    """Axes whose coordinates are computed with: in values, or in indices that are not affine."""
    roots = [a.expr for stage in nest.stages for a in stage] + [t[1] for w in walks for t in w.terms]
    found: set[int] = {e.value for e in reached(roots, lambda e: () if e.op == "load" else e.args) if e.op == "index"}
    if any(isinstance(a, g.Fold) and a.op.startswith("arg") for stage in nest.stages for a in stage):
        found |= nest.over
    return found


class Arrangement:
    """One nest on its way to a Form. `sequence`: every store runs at each index of `over`, in order."""

    def __init__(self, nest: g.Nest, inputs: Sequence[Layout], outputs: Sequence[Layout], refs: Sequence[Ref], sequence: bool,
                 lane_over: bool, volatile: int = -1, keep_ones: bool = False) -> None:
        ones = _ones(nest, keep_ones)
        self.nest = _without_ones(nest, ones)
        nest = self.nest
        self.sequence, self.lane_over, self.volatile = sequence, lane_over, volatile
        self.inputs, self.refs = inputs, refs
        rank = len(nest.ranges)
        self.loads: dict[Expr, Walked] = {}
        self._walk(nest.roots)
        self.stores = {(s, p): _walked(a.indices, outputs[a.output], Ref("out", a.output), rank)
                       for s, stage in enumerate(nest.stages) for p, a in enumerate(stage) if isinstance(a, g.Store)}
        self.walks = [*self.loads.values(), *self.stores.values()]
        self.named = _named(nest, self.walks)
        self.sizes: dict[int, Dim] = {a: s for a, s in enumerate(nest.ranges) if a not in ones}
        self.mentioned = {key: self._mentions(self.nest.stages[key[0]][key[1]]) for key in self.stores}
        self._collapse()
        self.words = Words()

    def _walk(self, exprs: Sequence[Expr], lane: int | None = None) -> None:
        """The loads among `exprs` that are new."""
        for e in postorder(tuple(exprs)):
            if e.op == "load" and e not in self.loads:
                self.loads[e] = _walked(e.args, self.inputs[e.value], self.refs[e.value], len(self.nest.ranges), lane)

    def _mentions(self, action: Any) -> frozenset[int]:
        return frozenset(x.value for i in action.indices for x in i.walk() if x.op == "index")

    def _joins(self, outer: int, inner: int) -> bool:
        if {outer, inner} & self.named or any((outer in m) != (inner in m) for m in self.mentioned.values()):
            return False
        size = self.sizes[inner]
        return all(_same(w.strides[outer], w.strides[inner] * size) for w in self.walks)

    def _collapse(self) -> None:
        over = self.nest.over
        kept = [a for a in self.sizes if a not in over]
        pairs = [(a, b) for a in kept for b in kept if a != b]
        for a, b in pairs:
            if a in self.sizes and b in self.sizes and self._joins(a, b):
                self.sizes[b] = self.sizes[b] * self.sizes.pop(a)
        inner = [a for a in self.sizes if a in over]
        for a, b in zip(reversed(inner[:-1]), reversed(inner[1:]), strict=True):
            if b in self.sizes and self._joins(a, b):
                self.sizes[a] = self.sizes[a] * self.sizes.pop(b)
                for w in self.walks:
                    w.strides[a] = w.strides[b]

    def _lane(self, axes: Sequence[int]) -> int:
        """The axis that most accesses step along by one; stores count twice, a later one of equals."""
        stores = {id(w) for w in self.stores.values()}
        filling = {self._woven(a) for a in axes}

        def score(axis: int) -> tuple[int, int]:
            good, woven = 0, self._woven(axis) >= 0
            for w in self.walks:
                weight = 2 if id(w) in stores else 1
                stride = 1 if woven and id(w) in stores else w.strides[axis]
                good += weight * (2 if _is(stride, 1) else 1 if _is(stride, 0) else -2)
                good -= 3 * sum(any(x.op == "index" and x.value == axis for x in t[1].walk()) for t in w.terms)
            size = self.sizes[axis]
            return good - 4 * (isinstance(size, int) and size < TINY) - 100 * (axis in filling), axis
        best = max(axes, key=score, default=-1)
        stepping = [w.strides[best] for w in self.stores.values()] if best >= 0 and self._woven(best) < 0 else []
        return best if self.lane_over or all(_is(s, 1) for s in stepping) else -1

    def _woven(self, lane: int) -> int:
        """The axis of which a few places fill the gaps that stores along `lane` leave, or -1."""
        steps = {w.strides[lane] if isinstance(w.strides[lane], int) and not w.terms else 0 for w in self.stores.values()}
        if self.sequence or not self.lane_over or lane in self.nest.over or len(steps) != 1 or not steps <= set(NEAR[1:]):
            return -1
        return next((a for a, size in self.sizes.items() if a not in self.nest.over and isinstance(size, int) and {size} == steps
                     and all(_is(w.strides[a], 1) for w in self.stores.values())), -1)

    def _clipped(self, beside: set[int]) -> dict[int, list[tuple[int, Affine]]]:
        """Conditions of folds' values that are bounds of their loops are no longer in the nest: {stage: [(axis, what is not negative)]}.
        `beside`: axes of which several places are in one turn of those loops."""
        found, stages = {}, list(self.nest.stages)
        for s, stage in enumerate(stages):
            action = stage[0]
            if self.sequence or len(stage) > 1 or not isinstance(action, g.Fold) or action.op.startswith("arg"):
                continue
            expr, bounds = clips(action.expr, self.nest.over, beside, FOLDS[action.op].identity(action.expr.dtype))
            if bounds:
                found[s], stages[s] = bounds, (g.Fold(action.op, expr),)
        self.nest = g.Nest(self.nest.inputs, self.nest.outputs, ranges=self.nest.ranges, over=self.nest.over, stages=tuple(stages),
                           origins=self.nest.origins)
        return found

    def _settled(self, lane: int, tile: int) -> tuple[tuple[Any, ...], tuple[Affine, ...]]:
        """The stages as they are in the interior of the lanes' axis, and its bounds; none where that is no different."""
        if self.sequence or not self.lane_over or lane < 0 or lane in self.nest.over or tile >= 0:
            return (), ()
        exprs, bounds = settle([a.expr for stage in self.nest.stages for a in stage], lane, self.nest.over)
        if not bounds:
            return (), ()
        self._walk(exprs, lane)
        new = iter(exprs)
        return tuple(tuple(replace(a, expr=next(new)) for a in stage) for stage in self.nest.stages), bounds

    def _bound(self, axis: int, bound: Affine, number: dict[int, int], fix: Any) -> Bound:
        words, slope = self.words, bound.terms[axis]
        assert isinstance(slope, int)
        terms = ((fix(a) if isinstance(a, Expr) else number[a], words.of(c)) for a, c in bound.terms.items() if a != axis)
        return Bound(number[axis], slope, words.of(bound.offset), tuple(terms))

    def _access(self, w: Walked, order: Sequence[int], lane: int, fix: Any, volatile: bool) -> Access:
        words = self.words
        terms = tuple(Term(fix(e), UNIT if _is(stride, 1) else words.of(stride), words.of(size), any(x.op in ("load", "folded") for x in e.walk()))
                      for _, e, size, stride in w.terms)

        def stride(axis: int) -> Any:
            step = w.strides[axis]
            if _is(step, 0) or _is(step, 1):
                return step
            near = axis == lane and isinstance(step, int) and step in NEAR
            return ("w", words.of(step), step) if near else ("w", words.of(step))
        return Access(w.layout.dtype, words.of(w.pointer), words.of(w.offset), tuple(map(stride, order)), terms, volatile)

    def form(self) -> tuple[Form, Dim]:
        """The Form and the number of tasks."""
        nest, words = self.nest, self.words
        order = list(self.sizes)
        number = {a: k for k, a in enumerate(order)}
        lane = self._lane([a for a in order if self.lane_over or a not in nest.over])
        woven = self._woven(lane) if lane >= 0 else -1
        tile = woven if woven >= 0 else self._tile(lane) if self.lane_over else -1
        clipped = self._clipped({lane, tile})
        settled, bounds = self._settled(lane, -1 if woven >= 0 else tile)
        nest = self.nest
        numbers = {e: k for k, e in enumerate(self.loads)}
        positions = {e: [t[0] for t in w.terms] for e, w in self.loads.items()}
        done: dict[Expr, Expr] = {}

        def fix(root: Expr) -> Expr:
            for e in postorder((root,)):
                if e in done:
                    continue
                if e.op == "load":
                    done[e] = Expr("access", tuple(done[e.args[k]] for k in positions[e]), e.dtype, numbers[e])
                elif e.op == "dim":
                    done[e] = Expr("word", (), e.dtype, words.of(e.value))
                elif e.op == "index":
                    done[e] = index(number.get(e.value, -1))
                else:
                    done[e] = Expr(e.op, tuple(done[a] for a in e.args), e.dtype, e.value)
            return done[root]
        accesses = tuple(self._access(w, order, lane, fix, e.value == self.volatile) for e, w in self.loads.items())
        stores = {key: self._access(w, order, lane, fix, False) for key, w in self.stores.items()}

        def fixed(stages: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(tuple(g.Fold(a.op, fix(a.expr)) if isinstance(a, g.Fold) else g.Store(a.output, (), fix(a.expr)) for a in stage)
                         for stage in stages)
        stages = fixed(nest.stages)
        over = tuple(number[a] for a in order if a in nest.over)
        inside = {key: over if self.sequence else tuple(number[a] for a in order if a in nest.over and a in self.mentioned[key])
                  for key in stores}
        form = Form(tuple(words.of(self.sizes[a]) for a in order), over, number.get(lane, -1), stages, accesses, stores, inside)
        form.tile = number.get(tile, -1)
        last = max((a for a in order if a in nest.over and a != lane), default=-1)
        many = self.sizes.get(last)
        if len(over) > 1 and isinstance(many, int) and 1 < many <= FEW:
            form.few = {number[last]: many}
        between = self.sizes.get(woven, 0)
        form.weave = between if isinstance(between, int) else 0
        form.clips = {s: tuple(self._bound(axis, b, number, fix) for axis, b in each) for s, each in clipped.items()}
        if settled:
            form.interior = Interior(fixed(settled), tuple(self._bound(lane, b, number, fix) for b in bounds),
                                     all(_border(b, lane, self.sizes[lane]) <= BORDER for b in bounds))
        tasks = self._tasks(form, lane, tile)
        return form, tasks

    def _tile(self, lane: int) -> int:
        """The axis that the transposed loads are contiguous along."""
        if lane < 0 or any(a in self.nest.over for a in self.sizes) or _small(self.sizes[lane]):
            return -1
        for w in self.loads.values():
            if w.terms or _is(w.strides[lane], 0) or _is(w.strides[lane], 1):
                continue
            for a, size in self.sizes.items():
                if a != lane and _is(w.strides[a], 1) and not _small(size):
                    return a
        return -1

    def _tasks(self, form: Form, lane: int, tile: int) -> Dim:
        """Tasks of about TASK_WORK elements: some rows of the axes that are kept, or a part of the lanes' axis."""
        over, words = self.nest.over, self.words
        rows = product([s for a, s in self.sizes.items() if a not in over and a not in (lane, tile)])
        deep = product([s for a, s in self.sizes.items() if a in over])
        extent: Dim = self.sizes[lane] if lane >= 0 and lane not in over else 1
        form.compensated = not isinstance(deep, int) or deep > PLAIN_SUM * (lanes_of_host() if lane in over else 1)
        each = dmax(deep, 1)
        if form.weave:
            each = each * form.weave
        elif tile >= 0:
            width = lanes_of_host()
            blocks = floordiv(self.sizes[tile] + (width - 1), width)
            rows, each = rows * blocks, width
        chunk = dmax(floordiv(dmin(extent, dmax(floordiv(TASK_WORK, each), LEAST_CHUNK)) + (LEAST_CHUNK - 1), LEAST_CHUNK) * LEAST_CHUNK, LEAST_CHUNK)
        chunks = floordiv(extent + chunk - 1, chunk)
        rows_each = dmax(floordiv(TASK_WORK, dmax(each * dmin(extent, chunk), 1)), 1)
        form.words = {"blocks": words.of(blocks)} if tile >= 0 and not form.weave else {}
        form.words |= {"rows": words.of(rows), "rows_each": words.of(rows_each), "lane_each": words.of(chunk), "lane_tasks": words.of(chunks)}
        tasks: Dim = floordiv(rows + rows_each - 1, rows_each) * chunks
        return tasks


def _ones(nest: g.Nest, keep: bool) -> set[int]:
    """Axes of size 1 that need no loop; the position that an argmax finds does, a prefix too (`keep`)."""
    arg = keep or any(isinstance(a, g.Fold) and a.op.startswith("arg") for stage in nest.stages for a in stage)
    return {a for a, s in enumerate(nest.ranges) if _is(s, 1) and not (arg and a in nest.over)}


def _without_ones(nest: g.Nest, ones: set[int]) -> g.Nest:
    """Coordinates along axes of size 1 are 0."""
    if not ones:
        return nest

    def leaf(x: Expr) -> Expr:
        return const(0, "ix") if x.op == "index" and x.value in ones else x
    fixed = iter(rewrite(nest.roots, leaf))
    stages = tuple(tuple(g.Fold(a.op, next(fixed)) if isinstance(a, g.Fold) else _store(a.output, next(fixed), [next(fixed) for _ in a.indices])
                         for a in stage) for stage in nest.stages)
    return g.Nest(nest.inputs, nest.outputs, ranges=nest.ranges, over=nest.over - ones, stages=stages, origins=nest.origins)


def _store(output: int, expr: Expr, indices: list[Expr]) -> g.Store:
    return g.Store(output, tuple(indices), expr)


def arrange(nest: g.Nest, inputs: Sequence[Layout], outputs: Sequence[Layout], sequence: bool = False, lane_over: bool = True,
            own: tuple[int, int] = (-1, 0), keep_ones: bool = False) -> tuple[Form, tuple[Arg, ...], Dim]:
    """(Form, argument words, tasks). `own`: the number of an input that is an output itself, and of which."""
    if not sequence and lane_over:
        nest = split(nest, outputs)
    refs = [Ref("out", own[1]) if k == own[0] else Ref("in", k) for k in range(len(inputs))]
    arrangement = Arrangement(nest, inputs, outputs, refs, sequence, lane_over, own[0], keep_ones)
    form, tasks = arrangement.form()
    return form, tuple(arrangement.words.args), tasks
