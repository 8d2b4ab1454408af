"""Scatter after its copy. Without a combination the last index in row-major order wins, whatever the schedule: every writer first
registers its position (a maximum), then only the winner writes. With one, an atomic loop combines; one-byte types go in order."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.codegen.cuda_nest import THREADS, NestText, Operand, blocks, step
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.graph import Scatter, Store
from gpuonnx.ir.types import compute, size
from gpuonnx.kernels.contract import Layout, Ref, Step
from gpuonnx.kernels.cuda.expression import C_TYPES, TAGS, scalar
from gpuonnx.kernels.cuda.loops import loops, product
from gpuonnx.kernels.cuda.words import SYMBOL, Pattern, Words, pattern

BITS = {2: "unsigned short", 4: "unsigned", 8: "u64"}


class ScatterText(NestText):
    """One pass over the ranges; `body` writes what is done with (`place`, `value`)."""

    def __init__(self, node: Scatter, inputs: Sequence[Operand], output: Operand) -> None:
        self.node = node
        super().__init__(node.ranges, frozenset(), ((Store(0, node.index, node.expr),),), inputs, [output])

    def _arrange(self, roots: list[object]) -> None:  # type: ignore[override]
        axes = range(len(self.ranges))
        self.kept, self.folded = loops(list(axes), self.ranges, [Pattern(0, {})], frozenset(axes)), []

    def run(self, kind: str, serial: bool) -> Step:
        w = self.writer
        count = product(loop.size for loop in self.kept)
        n = self.words.word(count)
        self._ones()
        head = f"for (ix i = 0; i < {n}; ++i)" if serial else \
            f"for (ix i = (ix)blockIdx.x * blockDim.x + threadIdx.x; i < {n}; i += (ix)gridDim.x * blockDim.x)"
        with w.block(head):
            self._split("i", "c", self.kept)
            action = self.stages[0][0]
            assert isinstance(action, Store)
            place = self._place(self.outputs[0], self.stores[id(action)])
            offset, checked = w.offset(place)
            with w.block(f"if ({checked or 'true'})"):
                getattr(self, f"_{kind}")(place.base, offset)
        return self._finish(f"scatter_{kind}", 1 if serial else count, 1 if serial else THREADS)

    def _register(self, base: str, offset: str) -> None:
        winners = self.words.word(Ref("work", 0))
        self.writer.line(f"atomicMax(at<long long>({winners}) + ({offset}), i);")

    def _tag(self) -> str:
        return TAGS[self.outputs[0].layout.dtype]

    def _combined(self, old: str, value: str) -> str:
        dtype = compute(self.outputs[0].layout.dtype)
        assert self.node.combine is not None
        name = {"max": "or", "mul": "and", "min": "and", "add": "or"}[self.node.combine] if dtype == "bool" else self.node.combine
        return scalar(name, [old, value], [dtype, dtype], dtype)

    def _combine(self, base: str, offset: str) -> None:
        """Compare and swap until nobody came between; integer additions do without."""
        stored = self.outputs[0].layout.dtype
        w, value = self.writer, self.writer.value(self.node.expr)
        tag, bits, wide = self._tag(), BITS[size(stored)], C_TYPES[compute(stored)]
        w.line(f"{bits}* target = at<{bits}>({base}) + ({offset});")
        w.line(f"{bits} seen = *target, before;")
        with w.block("do"):
            w.line("before = seen;")
            w.line(f"{tag}::raw old;")
            w.line("memcpy(&old, &before, sizeof old);")
            w.line(f"const {wide} was = {tag}::widen(old);")
            w.line(f"const {tag}::raw next = {tag}::narrow({self._combined('was', value)});")
            w.line(f"{bits} wanted;")
            w.line("memcpy(&wanted, &next, sizeof wanted);")
            w.line("seen = atomicCAS(target, before, wanted);")
        w.lines[-1] += " while (seen != before);"

    def _serially(self, base: str, offset: str) -> None:
        value = self.writer.value(self.node.expr)
        old = f"ld<{self._tag()}>({base}, {offset})"
        self.writer.line(f"st<{self._tag()}>({base}, {offset}, {self._combined(old, value)});")


def _cleared(count: Dim) -> Step:
    """Fill the work area of winners with -1."""
    words = Words()
    n, base = words.word(count), words.word(Ref("work", 0))
    text = (f'extern "C" __global__ void {SYMBOL}(ix* ctx, const ix* args) {{\n{words.declared()}'
            f"  for (ix i = (ix)blockIdx.x * blockDim.x + threadIdx.x; i < {n}; i += (ix)gridDim.x * blockDim.x) "
            f"at<long long>({base})[i] = -1;\n}}\n")
    return step("scatter_clear", text, words, blocks(count, THREADS))


def scatter_steps(node: Scatter, inputs: Sequence[Operand], output: Operand) -> tuple[list[Step], tuple[Dim, ...]]:
    """The steps after the copy of inputs[0], and the bytes of their work areas."""
    if node.combine:
        serial = size(output.layout.dtype) == 1
        return [ScatterText(node, inputs, output).run("serially" if serial else "combine", serial)], ()
    cells = product(output.layout.shape)
    dense = Operand(output.ref, Layout.dense(output.layout.dtype, output.layout.shape))
    return [_cleared(cells), _registering(node, inputs, dense), _writing(node, inputs, output, dense)], (cells * 8,)


def _registering(node: Scatter, inputs: Sequence[Operand], dense: Operand) -> Step:
    return ScatterText(node, inputs, dense).run("register", False)


def _writing(node: Scatter, inputs: Sequence[Operand], output: Operand, dense: Operand) -> Step:
    return WinnerText(node, inputs, output, dense).run("write", False)


class WinnerText(ScatterText):
    """Winners lie densely, the output as it may."""

    def __init__(self, node: Scatter, inputs: Sequence[Operand], output: Operand, dense: Operand) -> None:
        self.real = output
        super().__init__(node, inputs, dense)

    def _write(self, base: str, offset: str) -> None:
        winners = self.words.word(Ref("work", 0))
        w = self.writer
        place = self._place(self.real, pattern(self.real.layout, self.node.index))
        real, _ = w.offset(place)
        with w.block(f"if (at<const long long>({winners})[{offset}] == i)"):
            w.line(f"st<{self._tag()}>({place.base}, {real}, {w.value(self.node.expr)});")

