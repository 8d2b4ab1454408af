"""A Nest as one CUDA kernel. Without folds: one thread an element in a grid-stride loop. With folds: `lanes` threads of a block
share a row (an index of the kept axes), neighbours along the folded axes or along the kept ones, whichever lies densely in memory.
Only structure is in the text; sizes, strides, `lanes` and pointers come as words."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpuonnx.ir.dims import Dim, dmin, floordiv, lt, select
from gpuonnx.ir.expr import Expr, postorder, reached, sure
from gpuonnx.ir.graph import Fold, Nest, Store
from gpuonnx.ir.types import kind, numpy_dtype
from gpuonnx.kernels.contract import Kernel, Layout, Ref, Step
from gpuonnx.kernels.cuda.expression import C_TYPES, TAGS, Writer, conversion, literal, scalar
from gpuonnx.kernels.cuda.loops import Loop, loops, named_axes, ordered, product
from gpuonnx.kernels.cuda.words import SYMBOL, Access, Pattern, Words, pattern, pointer, term_words

THREADS = 256
MAX_BLOCKS = 1 << 16
COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}


@dataclass(frozen=True)
class Operand:
    """A tensor a nest reads or writes, and where its address comes from."""

    ref: Ref
    layout: Layout


def kernel_of(name: str, text: str) -> Kernel:
    """The text is the key: equal structure gives equal text."""
    return Kernel(name, (text,), "cuda", lambda symbol: text.replace(SYMBOL, symbol))


def step(name: str, text: str, words: Words, tasks: Dim, threads: int = THREADS) -> Step:
    return Step(kernel_of(name, text), tuple(words.args), tasks, threads)


def blocks(count: Dim, per: Dim) -> Dim:
    """Blocks for `count` items of which a block takes `per` at a time."""
    number: Dim = dmin(floordiv(count + per - 1, per), MAX_BLOCKS)
    return number


class NestText:
    """One nest on its way to text."""

    def __init__(self, ranges: Sequence[Dim], over: frozenset[int], stages: Sequence[Sequence[Fold | Store]], inputs: Sequence[Operand],
                 outputs: Sequence[Operand]) -> None:
        self.ranges, self.over, self.stages = tuple(ranges), over, stages
        self.inputs, self.outputs = inputs, outputs
        self.words = Words()
        roots = [a.expr for stage in stages for a in stage]
        found = dict.fromkeys(e for e in postorder(tuple(roots + self._store_indices())) if e.op == "load")
        self.loads: dict[Expr, Pattern] = {e: pattern(inputs[e.value].layout, e.args) for e in found}
        self.stores: dict[int, Pattern] = {id(a): pattern(outputs[a.output].layout, a.indices) for stage in stages for a in stage
                                           if isinstance(a, Store)}
        self._arrange(roots)
        self.accesses: dict[Expr, Access] = {}
        self.prelude: list[str] = []
        self.writer = Writer(self.words, self._access, {})

    def _store_indices(self) -> list[Expr]:
        return [i for stage in self.stages for a in stage if isinstance(a, Store) for i in a.indices]

    def _arrange(self, roots: list[Expr]) -> None:
        patterns = [*self.loads.values(), *self.stores.values()]
        terms = [t.index for p in self.stores.values() for t in p.terms]
        named = named_axes([*roots, *terms])
        if any(isinstance(a, Fold) and a.op.startswith("arg") for stage in self.stages for a in stage):
            named |= self.over
        first = next(iter(self.stores.values())).strides
        kept = ordered([a for a in range(len(self.ranges)) if a not in self.over], self.ranges, first)
        self.kept = loops(kept, self.ranges, patterns, named)
        self.folded = loops(sorted(self.over), self.ranges, patterns, named)

    def _unit(self, loop: list[Loop]) -> int:
        """How many accesses walk densely along the innermost of some loops."""
        if not loop:
            return 0
        return sum(isinstance(s := loop[-1].stride(p), int) and s == 1 for p in [*self.loads.values(), *self.stores.values()])

    # accesses and coordinates
    def _access(self, e: Expr) -> Access:
        if e not in self.accesses:
            self.accesses[e] = self._place(self.inputs[e.value], self.loads[e])
        return self.accesses[e]

    def _place(self, operand: Operand, p: Pattern) -> Access:
        parts = []
        for prefix, group in (("c", self.kept), ("f", self.folded)):
            parts += [(f"{prefix}{k}", self.words.stride(loop.stride(p))) for k, loop in enumerate(group)]
        return Access(operand.layout.dtype, pointer(self.words, operand.ref, operand.layout.dtype, p.offset), parts, term_words(self.words, p.terms))

    def _split(self, flat: str, prefix: str, group: list[Loop]) -> None:
        """Declare the coordinate of each loop of `group`, of which `flat` is the row-major position."""
        rest = flat
        for k in range(len(group) - 1, 0, -1):
            size, above = self.words.word(group[k].size), self.writer.fresh()
            self.writer.line(f"const ix {above} = quotient({rest}, {size}), {prefix}{k} = {rest} - {above} * {size};")
            rest = above
        if group:
            self.writer.line(f"const ix {prefix}0 = {rest};")
        for k, loop in enumerate(group):
            for axis in loop.axes:
                self.writer.coordinates[axis] = f"{prefix}{k}"

    def _ones(self) -> None:
        self.writer.coordinates.update({a: "0" for a in range(len(self.ranges))})

    # stores and folds
    def _store(self, action: Store, condition: str = "") -> None:
        operand = self.outputs[action.output]
        value = self.writer.value(action.expr)
        wide = numpy_type(operand.layout.dtype)
        if action.expr.dtype != wide and not {action.expr.dtype, wide} <= {"ix", "i64"}:
            value = conversion(value, action.expr.dtype, wide)
        place = self._place(operand, self.stores[id(action)])
        offset, checked = self.writer.offset(place)
        conditions = " && ".join(c for c in (condition, checked) if c)
        self.writer.line((f"if ({conditions}) " if conditions else "") + f"st<{TAGS[operand.layout.dtype]}>({place.base}, {offset}, {value});")

    def step(self) -> Step:
        return self._with_folds() if self.over else self._elementwise()

    def _elementwise(self) -> Step:
        count = product(loop.size for loop in self.kept)
        n = self.words.word(count)
        self._ones()
        with self.writer.block(f"for (ix i = (ix)blockIdx.x * blockDim.x + threadIdx.x; i < {n}; i += (ix)gridDim.x * blockDim.x)"):
            self._split("i", "c", self.kept)
            for stage in self.stages:
                for action in stage:
                    assert isinstance(action, Store)
                    self._store(action)
        return self._finish("map", count, THREADS)

    def _with_folds(self) -> Step:
        rows, extent = product(loop.size for loop in self.kept), product(loop.size for loop in self.folded)
        along = self._unit(self.folded) >= self._unit(self.kept)
        lanes, per = lanes_for(extent, along)
        w, words = self.writer, self.words
        names = words.word(rows), words.word(extent), words.word(lanes)
        self._ones()
        w.line(f"const int lanes = (int){names[2]}, per = {THREADS} / lanes;")
        w.line("const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;" if along else
               "const int lane = threadIdx.x / per, group = threadIdx.x % per;")
        w.line(f"__shared__ __align__(16) u64 scratch[{2 * THREADS // 32 if along else 2 * THREADS}];")
        with w.block(f"for (ix first = (ix)blockIdx.x * per; first < {names[0]}; first += (ix)gridDim.x * per)"):
            w.line(f"const bool live = first + group < {names[0]};")
            w.line(f"const ix row = live ? first + group : {names[0]} - 1;")
            self._split("row", "c", self.kept)
            for number, stage in enumerate(self.stages):
                self._stage(number, stage, names[1], "block_fold" if along else "block_fold_across")
        return self._finish("fold", rows, per)

    def _loops_over(self, action: Fold | Store) -> bool:
        return isinstance(action, Fold) or any(e.op == "index" and e.value in self.over for e in postorder(action.indices))

    def _stage(self, number: int, stage: Sequence[Fold | Store], extent: str, together: str) -> None:
        looped = [(k, a) for k, a in enumerate(stage) if self._loops_over(a)]
        w = self.writer
        for k, a in looped:
            if isinstance(a, Fold):
                ctype, start = accumulator(a)
                w.line(f"{ctype} acc{number}_{k} = {start};")
        if looped:
            w.values(self._invariant([a.expr for _, a in looped]))
            with w.block(f"for (ix f = lane; f < {extent}; f += lanes)"):
                self._split("f", "f", self.folded)
                for k, a in looped:
                    if isinstance(a, Fold):
                        self._accumulate(f"acc{number}_{k}", number, k, a)
                    else:
                        self._store(a, "live")
        for k, a in looped:
            if isinstance(a, Fold):
                name = f"acc{number}_{k}"
                w.line(f"{name} = {together}<Fold{number}_{k}>({name}, lanes, scratch);")
                w.results[number, k] = f"({name}.at < 0 ? 0 : {name}.at)" if a.op.startswith("arg") else name
        for a in stage:
            if isinstance(a, Store) and not self._loops_over(a):
                self._store(a, "live && lane == 0")

    def _invariant(self, roots: list[Expr]) -> tuple[Expr, ...]:
        """The largest sub-expressions, sure to be computed, that no folded axis and no loop changes."""
        varies: dict[Expr, bool] = {}
        for e in postorder(tuple(roots)):
            varies[e] = e.op == "index" and e.value in self.over or any(varies[a] for a in e.args)

        def below(e: Expr) -> Iterable[Expr]:
            return () if not varies[e] else [t.index for t in self.loads[e].terms] if e.op == "load" else sure(e)
        return tuple(e for e in reached(roots, below) if not varies[e] and e.op not in ("const", "dim", "index", "folded"))

    def _accumulate(self, name: str, number: int, k: int, action: Fold) -> None:
        value = self.writer.value(action.expr)
        ctype = C_TYPES[action.expr.dtype]
        combined = f"Fold{number}_{k}"
        if action.op.startswith("arg"):
            at = self.writer.coordinates[next(iter(self.over))]
            self.writer.line(f"{name} = {combined}::f({name}, Best<{ctype}>{{{value}, {at}}});")
            self.prelude.append(best_struct(combined, ctype, action))
        else:
            self.writer.line(f"{name} = {combined}::f({name}, {value});")
            self.prelude.append(fold_struct(combined, ctype, action))

    def _finish(self, name: str, count: Dim, per: Dim) -> Step:
        text = (f'{"".join(self.prelude)}extern "C" __global__ void __launch_bounds__({THREADS}, 1) {SYMBOL}(ix* ctx, const ix* args) {{\n'
                f"{self.words.declared()}{self.writer.text()}}}\n")
        return step(name, text, self.words, blocks(count, per))


def numpy_type(stored: str) -> str:
    from gpuonnx.ir.types import compute
    return compute(stored)


def lanes_for(extent: Dim, along: bool) -> tuple[Dim, Dim]:
    """(threads that share a row, rows of a block): more where rows are long; neighbours on one row must fill memory transactions."""
    if along:
        short, long = lt(extent, 9), lt(extent, 1025)
        return select(short, 1, select(long, 32, THREADS)), select(short, THREADS, select(long, THREADS // 32, 1))
    short = lt(extent, 128)
    return select(short, 1, 8), select(short, THREADS, THREADS // 8)


def accumulator(action: Fold) -> tuple[str, str]:
    """C++ type and initial value of a fold."""
    dtype = action.expr.dtype
    ctype = C_TYPES[dtype]
    if action.op.startswith("arg"):
        return f"Best<{ctype}>", f"{{({ctype})0, -1}}"
    return ctype, literal(identity(action.op, dtype), dtype)


def identity(op: str, dtype: str) -> bool | int | float:
    """What a fold starts from; that of an empty fold."""
    import numpy as np
    if op in ("any", "all"):
        return op == "all"
    if op in ("sum", "prod"):
        return int(op == "prod")
    if kind(dtype) == "b":
        return op == "min"
    if kind(dtype) == "f":
        return float("-inf") if op == "max" else float("inf")
    info = np.iinfo(numpy_dtype(dtype))
    return int(info.min if op == "max" else info.max)


def fold_struct(name: str, ctype: str, action: Fold) -> str:
    dtype = action.expr.dtype
    row = COMBINE[action.op]
    if dtype == "bool" and row in ("max", "min"):
        row = "or" if row == "max" else "and"
    combined = scalar(row, ["a", "b"], [dtype, dtype], dtype)
    return f"struct {name} {{ static __device__ __forceinline__ {ctype} f({ctype} a, {ctype} b) {{ return {combined}; }} }};\n"


def best_struct(name: str, ctype: str, action: Fold) -> str:
    sign = ">" if action.op == "argmax" else "<"
    return (f"struct {name} {{ static __device__ __forceinline__ Best<{ctype}> f(Best<{ctype}> a, Best<{ctype}> b) {{\n"
            f"  if (a.at < 0 || b.at < 0) return a.at < 0 ? b : a;\n"
            f"  const bool an = a.value != a.value, bn = b.value != b.value;\n"
            f"  const bool after = an != bn ? bn : !an && b.value {sign} a.value, equal = an && bn || a.value == b.value;\n"
            f"  return after || equal && b.at < a.at ? b : a;\n}} }};\n")


def nest_step(nest: Nest, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Step:
    return NestText(nest.ranges, nest.over, nest.stages, inputs, outputs).step()
