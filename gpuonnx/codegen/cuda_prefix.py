"""Prefix folds: a row is cut into as many pieces as threads share it; pieces are folded, then walked again from what lies before them."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.codegen.cuda_nest import COMBINE, THREADS, NestText, Operand, accumulator, fold_struct
from gpuonnx.ir.dims import lt, select
from gpuonnx.ir.expr import index
from gpuonnx.ir.graph import Fold, Prefix, Store
from gpuonnx.kernels.contract import Step
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.loops import product

NAMES = {"add": "sum", "mul": "prod", "or": "any", "and": "all"}


class PrefixText(NestText):
    def __init__(self, node: Prefix, inputs: Sequence[Operand], output: Operand) -> None:
        ranges = output.layout.shape
        place = tuple(index(a) for a in range(len(ranges)))
        self.node = node
        self.fold = Fold(NAMES.get(node.fold, node.fold), node.expr)
        assert self.fold.op in COMBINE, node.fold
        super().__init__(ranges, frozenset((node.axis,)), ((Store(0, place, node.expr),),), inputs, [output])

    def prefix(self) -> Step:
        w, words = self.writer, self.words
        rows, extent = product(loop.size for loop in self.kept), self.ranges[self.node.axis]
        few = lt(extent, 512)
        names = words.word(rows), words.word(extent), words.word(select(few, 1, THREADS))
        ctype, start = accumulator(self.fold)
        self.prelude.append(fold_struct("Fold", ctype, self.fold))
        self._ones()
        w.line(f"const int lanes = (int){names[2]}, per = {THREADS} / lanes, lane = threadIdx.x % lanes, group = threadIdx.x / lanes;")
        w.line(f"const ix piece = quotient({names[1]} + lanes - 1, lanes), begin = lane * piece, stop = begin + piece;")
        w.line(f"const ix end = stop < {names[1]} ? stop : {names[1]};")
        w.line(f"__shared__ {ctype} parts[{THREADS}];")
        with w.block(f"for (ix first = (ix)blockIdx.x * per; first < {names[0]}; first += (ix)gridDim.x * per)"):
            w.line(f"const bool live = first + group < {names[0]};")
            w.line(f"const ix row = live ? first + group : {names[0]} - 1;")
            self._split("row", "c", self.kept)
            w.line(f"{ctype} acc = {start};")
            with w.block("if (lanes > 1)"):
                self._walk(names[1], store=False)
                w.line("parts[threadIdx.x] = acc;")
                w.line("__syncthreads();")
                w.line(f"acc = {start};")
                w.line("for (int k = 0; k < lane; ++k) acc = Fold::f(acc, parts[threadIdx.x - lane + k]);")
                w.line("__syncthreads();")
            self._walk(names[1], store=True)
        return self._finish("prefix", rows, select(few, THREADS, 1))

    def _walk(self, extent: str, store: bool) -> None:
        w = self.writer
        with w.block("for (ix k = begin; k < end; ++k)"):
            position = f"{extent} - 1 - k" if self.node.reverse else "k"
            w.line(f"const ix f0 = {position};")
            w.coordinates[self.node.axis] = "f0"
            value = w.value(self.fold.expr)
            step = f"acc = Fold::f(acc, {value});"
            if not store:
                w.line(step)
                return
            action = self.stages[0][0]
            assert isinstance(action, Store)
            place = self._place(self.outputs[0], self.stores[id(action)])
            offset, _ = w.offset(place)
            write = f"if (live) st<{TAGS[self.outputs[0].layout.dtype]}>({place.base}, {offset}, acc);"
            for line in (write, step) if self.node.exclusive else (step, write):
                w.line(line)


def prefix_step(node: Prefix, inputs: Sequence[Operand], output: Operand) -> Step:
    return PrefixText(node, inputs, output).prefix()
