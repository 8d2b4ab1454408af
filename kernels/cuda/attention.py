"""Call "attention" (see kernels/cpu/attention.py) where its rows are a softmax: tiles of keys, never a matrix of scores. float32 and float64 by
FMA; halves by tensor cores, which take weights as halves before they are divided by their sum: as sums of two where the graph does not round them."""
from __future__ import annotations

import math
from dataclasses import dataclass

from gpuonnx.ir.dims import Dim, lt
from gpuonnx.ir.expr import Expr, apply, const, dim, folded, index, postorder, rewrite, substitute
from gpuonnx.ir.graph import Rows
from gpuonnx.ir.types import INDEX, compute, size
from gpuonnx.kernels.contract import Build, Layout, Ref, Spec
from gpuonnx.kernels.cuda.expression import C_TYPES, TAGS, Writer, unsupported_expression
from gpuonnx.kernels.cuda.gemm import MMA, axes_over, flag, strides_of, unit_stride
from gpuonnx.kernels.cuda.loops import loops, named_axes
from gpuonnx.kernels.cuda.product import Axes, Choice, Pieces, Text, Tile, cut, launches, one, pieces_of
from gpuonnx.kernels.cuda.words import Access, Pattern, pattern, pointer, term_words

OWN = 3
KEYS_APART = 16
MOST, TOTAL, SUM = (0, 0), (1, 0), (2, 0)
NO_SOFTMAX = "the rows are no softmax, which alone can be taken tile by tile"


@dataclass(frozen=True)
class Softmax:
    """What tiles need to know of Rows. `score`: of the product, load(0), at its own index. `base`: what is taken from scores before exp, of
    folded(0, 0), the largest. `result`: what becomes of folded(2, 0), a sum of values by weights, given folded(1, 0), the sum of the weights.
    `first`, `last`: keys beyond which the scores of a row are -inf."""

    score: Expr
    base: Expr
    result: Expr
    first: Expr | None
    last: Expr | None

    @staticmethod
    def of(rows: Rows, axis: int, stored: str) -> Softmax | None:
        """`axis`: that of the keys. Roundings to `stored` after the score are dropped."""
        if [[f.op for f in stage] for stage in rows.stages] != [["max"], ["sum"]]:
            return None
        score, weight = rows.stages[0][0].expr, rows.stages[1][0].expr
        inner = bare(weight, stored)
        taken = bare(inner.args[0], stored) if inner.op == "exp" else inner
        if taken.op != "sub" or taken.args[0] is not score or score.dtype != compute(stored) or any(e.op == "folded" for e in postorder((score,))):
            return None
        (marked,) = rewrite((rows.result,), lambda e: folded(*SUM, e.dtype) if e is weight else e)
        base, marked = (_unrounded(e, stored) for e in (taken.args[1], marked))
        if any(e.op == "load" and e.value == 0 or e.op == "index" and e.value == axis for e in postorder((base, marked))):
            return None
        result = _linear(marked)
        if result is None:
            return None
        before = rows.score
        whole = score if before is None else substitute(score, lambda e: before if e.op == "load" and e.value == 0 else None)
        return Softmax(whole, base, result, *reach(whole, axis))

    @property
    def expressions(self) -> tuple[Expr, ...]:
        return tuple(e for e in (self.score, self.base, self.result, self.first, self.last) if e is not None)


def reach(score: Expr, axis: int) -> tuple[Expr | None, Expr | None]:
    """The first and the last key where `score` may be more than -inf, by the conditions that stand around it."""
    first: Expr | None = None
    last: Expr | None = None
    while score.op == "round" or score.op in ("where", "guard") and score.args[2].op == "const" and score.args[2].value == -math.inf:
        if score.op == "round":
            (score,) = score.args
            continue
        waiting, score = [score.args[0]], score.args[1]
        while waiting:
            condition = waiting.pop()
            if condition.op == "and":
                waiting += condition.args
            elif condition.op in ("less", "less_equal"):
                strict = int(condition.op == "less")
                left, right = condition.args
                above, below = _beside_key(left, axis), _beside_key(right, axis)
                if above is not None and _free(right, axis):
                    bound = right - above - strict
                    last = bound if last is None else apply("min", last, bound)
                elif below is not None and _free(left, axis):
                    bound = left - below + strict
                    first = bound if first is None else apply("max", first, bound)
    return first, last


def _beside_key(e: Expr, axis: int) -> Expr | None:
    """What is added to the key's index in `e`; None where it has another form."""
    if e is index(axis):
        return dim(0)
    if e.op in ("add", "sub") and e.dtype == INDEX:
        left, right = e.args
        inner = _beside_key(left, axis)
        if inner is not None and _free(right, axis):
            return apply(e.op, inner, right)
        inner = _beside_key(right, axis) if e.op == "add" else None
        if inner is not None and _free(left, axis):
            return left + inner
    return None


def _free(e: Expr, axis: int) -> bool:
    return e.dtype == INDEX and not any(x.op == "load" and x.value == 0 or x.op == "index" and x.value == axis for x in postorder((e,)))


def rounds(e: Expr, stored: str) -> bool:
    return e.op == "round" and e.value == stored


def bare(e: Expr, stored: str) -> Expr:
    """Without a rounding to the type that it is stored in."""
    return e.args[0] if rounds(e, stored) else e


def _unrounded(e: Expr, stored: str) -> Expr:
    return rewrite((e,), lambda x: bare(x, stored))[0]


def _linear(e: Expr) -> Expr | None:
    """`e`, a function of a weight, as the same function of a sum by weights; None where it is not linear. A weight is NaN where their sum is."""
    if e is folded(*SUM, e.dtype):
        return e
    if e.op in ("div", "mul"):
        changing = [k for k, a in enumerate(e.args) if _weighs(a)]
        inner = _linear(e.args[changing[0]]) if len(changing) == 1 else None
        if inner is None or e.op == "div" and changing != [0]:
            return None
        return Expr(e.op, tuple(inner if k in changing else a for k, a in enumerate(e.args)), e.dtype)
    if e.op in ("where", "guard") and e.args[0].op == "isnan" and e.args[0].args[0] is e.args[2] and e.args[1] is const(0.0, e.dtype):
        inner = _linear(e.args[2])
        if inner is not None:
            of_all = substitute(inner, lambda x: folded(*TOTAL, x.dtype) if x is folded(*SUM, x.dtype) else None)
            return apply("where", apply("isnan", of_all), e.args[1], inner)
    return None


def _weighs(e: Expr) -> bool:
    return any(x is folded(*SUM, x.dtype) for x in postorder((e,)))


def supports(call: Spec) -> str | None:
    operands = call.inputs[:OWN]
    types = {v.dtype for v in operands if v is not None}
    if len(call.inputs) < OWN or any(v is None or len(v.shape) < 2 for v in operands) or len(types) != 1:
        return "attention takes three matrices of one type"
    (stored,) = types
    if stored not in ("f32", "f64", *MMA):
        return f"attention of {stored}"
    softmax = Softmax.of(call.attrs["rows"], len(call.outputs[0].shape) - 1, stored)
    return NO_SOFTMAX if softmax is None else unsupported_expression(softmax.expressions)


class Scores:
    """The part of a text that knows about rows and keys: `with(use)`, which calls `use` with the Rules."""

    def __init__(self, text: Text, call: Spec, softmax: Softmax, keys: Dim) -> None:
        self.text, self.call, self.words = text, call, text.words
        self.sum = text.sum
        rank = len(call.outputs[0].shape)
        ranges = (*call.outputs[0].shape[:-1], keys)
        roots = softmax.expressions
        self.layouts = {e: self._operand(e) for e in postorder(roots) if e.op == "load" and e.value > 0}
        self.loads: dict[Expr, Pattern] = {e: pattern(layout, e.args) for e, layout in self.layouts.items()}
        named, patterns = named_axes(roots), list(self.loads.values())
        self.groups = {prefix: loops(axes, ranges, patterns, named)
                       for prefix, axes in (("y", text.axes.batch), ("s.s", text.axes.rows), ("key", (rank - 1,)))}
        text.split("task.batch", [loop.size for loop in self.groups["y"]], "y")
        real = C_TYPES[self.sum]
        with text.reread("const auto with = [&](const auto& use) {", "};"):
            text.coordinates("ScoreRow", "s", [loop.size for loop in self.groups["s.s"]])
            self._function("score", f"ix key, {real} product", softmax.score)
            self._function("base", f"{real} most", softmax.base)
            self._function("result", f"{real} most, {real} total, {real} sum", softmax.result)
            self._function("first", "ix from", softmax.first, "from")
            self._function("last", "ix to", softmax.last, "to")
            text.line("use(rules_of(scorerow_of, score, base, result, first, last));")

    def _operand(self, e: Expr) -> Layout:
        layout: Layout | None = self.call.inputs[OWN - 1 + e.value]
        assert layout is not None
        return layout

    def _coordinate(self, prefix: str, k: int) -> str:
        return prefix if prefix == "key" else f"{prefix}{k}"

    def _function(self, name: str, parameters: str, expr: Expr | None, otherwise: str = "") -> None:
        """A function of a row and the parameters, of the expression's type; `otherwise`, the parameter that it gives back where there is none."""
        named = {a: "0" for group in (self.text.axes.batch, self.text.axes.rows, self.text.axes.columns) for a in group}
        for prefix, group in self.groups.items():
            for k, loop in enumerate(group):
                named.update((axis, self._coordinate(prefix, k)) for axis in loop.axes)
        writer = Writer(self.words, self._access, named)
        writer.results.update({MOST: "most", TOTAL: "total", SUM: "sum"})
        value = otherwise if expr is None else writer.value(expr)
        self.text.line(f"const auto {name} = [&](const ScoreRow& s, {parameters}) -> {C_TYPES[INDEX if expr is None else expr.dtype]} {{")
        for line in writer.lines:
            self.text.line(line)
        self.text.line(f"  return {value};")
        self.text.line("};")

    def _access(self, e: Expr) -> Access | str:
        if e.value == 0:
            return "product"
        p, layout = self.loads[e], self.layouts[e]
        parts = [(self._coordinate(prefix, k), self.words.stride(loop.stride(p)))
                 for prefix, group in self.groups.items() for k, loop in enumerate(group)]
        return Access(layout.dtype, pointer(self.words, Ref("in", OWN - 1 + e.value), layout.dtype, p.offset), parts, term_words(self.words, p.terms))


@dataclass(frozen=True)
class Problem:
    """One attention: its operands, the axes of its result."""

    call: Spec
    softmax: Softmax
    axes: Axes

    @staticmethod
    def of(call: Spec) -> Problem:
        a, b, c, out = *call.inputs[:OWN], call.outputs[0]
        assert a is not None and b is not None and c is not None
        softmax = Softmax.of(call.attrs["rows"], len(out.shape) - 1, a.dtype)
        assert softmax is not None
        return Problem(call, softmax, axes_over(out, a, (b, c)))

    @property
    def operands(self) -> tuple[Layout, Layout, Layout]:
        a, b, c = self.call.inputs[:OWN]
        assert a is not None and b is not None and c is not None
        return a, b, c

    @property
    def keys(self) -> Dim:
        keys: Dim = self.operands[1].shape[-1]
        return keys

    @property
    def sizes(self) -> tuple[Dim, Dim, Dim]:
        """Rows, columns, depth of the first product."""
        return self.axes.count(self.axes.rows), self.axes.count(self.axes.columns), self.operands[0].shape[-1]

    def lines(self, number: int) -> tuple[Dim, Dim]:
        """Strides of an operand along its rows and along what its product sums over."""
        row, depth = strides_of(self.operands[number], len(self.call.outputs[0].shape))[-2:]
        return (row, depth) if number == 0 else (depth, row)

    def by_k(self, number: int) -> bool:
        """Whether slices lie along the sum: not where the rows alone are neighbours in memory."""
        row, depth = self.lines(number)
        return unit_stride(depth) or not unit_stride(row)

    def tile(self, width: int) -> Tile:
        """A block's tile that is `width` columns wide."""
        stored = self.operands[0].dtype
        if stored in MMA:
            flags = ", ".join(flag(self.by_k(k)) for k in range(OWN))
            wide = not rounds(self.call.attrs["rows"].result, stored)
            keys = 32 if wide and width > 64 else 64
            text = f"AttendTensor<{MMA[stored]}, {TAGS[stored]}, {keys}, {width}, {flag(wide)}, {flags}>"
            stage = 64 * max(64 + keys, width)
            return Tile(f"{stored}_{width}", text, 64, width, KEYS_APART, 128, 2, 4 * 64 * 64 + 4 * stage, store=STORE, unit="Tile::KEYS")
        rows = 64 if stored == "f32" else 32
        unit = size(stored)
        chunk = 16 // unit
        stage = max(2 * rows * 64, 64 * (width + chunk))
        shared = 4 * rows * 64 + 3 * stage + rows * (rows + chunk) * unit
        return Tile(f"{stored}_{width}", f"AttendSimt<{C_TYPES[stored]}, {rows}, {rows}, {width}>", rows, width, KEYS_APART, rows * 2, 2, shared,
                    store=STORE, unit="Tile::KEYS")

    def readers(self) -> str:
        """The types of the readers of slices, by the tile's name."""
        first = [f"MatrixChunks<Tile, Tile::{extent}, {flag(self.by_k(k) if self.operands[0].dtype in MMA else True)}>"
                 for k, extent in ((0, "HEIGHT"), (1, "KEYS"))]
        if self.operands[0].dtype in MMA:
            return ", ".join([*first, f"MatrixChunks<Tile, Tile::WIDTH, {flag(self.by_k(2))}>"])
        return ", ".join([*first, f"MatrixSlice<Tile, Tile::WIDTH, {flag(not self.by_k(2))}>"])

    def matrices(self, text: Text) -> None:
        """Declare `left`, `right` and `values`."""
        rank = len(self.call.outputs[0].shape)
        names = text.split_batch(text.axes.batch)
        for k, name in enumerate(("left", "right", "values")):
            layout = self.operands[k]
            strides, (row, depth) = strides_of(layout, rank), self.lines(k)
            address = text.address(Ref("in", k), layout, [(names[a], strides[a]) for a in text.axes.batch])
            text.line(f"const ix {name}_base = {address};")
            with text.reread(f"const auto {name} = [&] {{", "};"):
                text.line(f"return Matrix{{{name}_base, {text.words.stride(row)}, {text.words.stride(depth)}}};")


STORE = "pool, whole, here, out, stats(), operands"


def build(call: Spec) -> Build:
    problem = Problem.of(call)
    axes, sums, keys = problem.axes, compute(problem.operands[0].dtype), problem.keys
    narrow, wide = map(problem.tile, (32, 64) if sums == "f64" else (64, 128))
    few: Dim = lt(axes.count(axes.columns), narrow.width + 1)
    both = [Choice(t, serves, cut(t, axes, keys)) for t, serves in ((narrow, few), (wide, 1 - few))]
    choices = [c for c in both if not (isinstance(c.serves, int) and not c.serves)]
    pieces, rows = pieces_of(choices), axes.count((*axes.batch, *axes.rows))
    stats = 0 if one(pieces) else Ref("work", 0, pieces * rows * axes.count(axes.columns) * size(sums))

    def body(text: Text, tile: Tile) -> None:
        text.line("const volatile ix* const later = args;")
        problem.matrices(text)
        with text.reread("const auto sizes = [&] {", "};"):
            text.line(f"return Sizes{{{', '.join(text.words.word(n) for n in problem.sizes)}}};")
        Scores(text, call, problem.softmax, keys)
        with text.reread("const auto stats = [&] {", "};"):
            text.line(f"return {text.words.word(stats)};")
        text.line("extern __shared__ __align__(128) char pool[];")
        text.line("Tile tile;")
        text.line("const auto operands = operands_of(sizes, left, right, values, with);")
        bounded = problem.softmax.first is not None or problem.softmax.last is not None
        text.line(f"const Task near = {'within_reach<Tile>(pool, task, operands)' if bounded else 'task'};")
        text.line(f"attend<{problem.readers()}>(tile, pool, near, operands);")

    def before(text: Text) -> None:
        text.line("const volatile ix* const later = args;")
        Scores(text, call, problem.softmax, keys)
        text.line(f"const ix stats = {text.words.word(stats)};")
    gather = Pieces("attention.cu", f"attend_pieces<{C_TYPES[sums]}>(whole, here, stats, with, out);", before, 2 * pieces * rows * size(sums))
    return launches(call, axes, keys, sums, choices, "attention.cu", body, gather=gather)
