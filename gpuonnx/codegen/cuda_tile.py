"""A sum of products as one CUDA kernel of tiles: what two tensors share is folded, rows belong to one factor, columns to the other.

A block of 256 threads makes a tile of 64 x 64: both factors' slices of 16 go through shared memory, each thread keeps 4 x 4 sums. A factor
is any expression (a convolution's is guarded where its window leaves the input), so products and convolutions are one text.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuonnx.codegen.cuda_nest import THREADS, Operand, kernel_of, numpy_type
from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.ir.expr import Expr, const, guard, postorder
from gpuonnx.ir.graph import Fold, Nest, Store
from gpuonnx.kernels.contract import Step
from gpuonnx.kernels.cuda.expression import C_TYPES, TAGS, Writer, conversion
from gpuonnx.kernels.cuda.words import SYMBOL, Access, Words, access

TILE, DEPTH, EACH = 64, 16, 4


@dataclass(frozen=True)
class Factors:
    """left depends on batch, row and folded axes; right on batch, column and folded axes."""

    left: Expr
    right: Expr
    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    folded: tuple[int, ...]
    store: Store


def factors(nest: Nest) -> Factors | None:
    """The nest as a sum of products over tiles, or None."""
    if len(nest.stages) != 2 or len(nest.stages[0]) != 1 or len(nest.stages[1]) != 1:
        return None
    fold, store = nest.stages[0][0], nest.stages[1][0]
    if not isinstance(fold, Fold) or fold.op != "sum" or not isinstance(store, Store):
        return None
    expr, condition = fold.expr, None
    if expr.op == "guard" and expr.args[2].op == "const" and expr.args[2].value == 0:
        condition, expr = expr.args[0], expr.args[1]
    if expr.op != "mul":
        return None
    left, right = expr.args
    if condition is not None:
        left = guard(condition, left, const(0, left.dtype))
    over, one, two = nest.over, axes(left), axes(right)
    kept = [a for a in range(len(nest.ranges)) if a not in over]
    rows = tuple(a for a in kept if a in one and a not in two)
    columns = tuple(a for a in kept if a in two and a not in one)
    batch = tuple(a for a in kept if a not in rows and a not in columns)
    return Factors(left, right, batch, rows, columns, tuple(sorted(over)), store) if rows and columns and over else None


def axes(e: Expr) -> set[int]:
    return {x.value for x in postorder((e,)) if x.op == "index"}


def tile_step(nest: Nest, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Step | None:
    """The launch, or None where the nest is no product."""
    found = factors(nest)
    return None if found is None else TileText(nest, found, inputs, outputs).step()


class TileText:
    """One product on its way to text."""

    def __init__(self, nest: Nest, found: Factors, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        self.nest, self.f, self.inputs, self.outputs = nest, found, inputs, outputs
        self.words = Words()
        self.accesses: dict[Expr, Access] = {}
        self.writer = Writer(self.words, self._access, {a: f"x{a}" for a in range(len(nest.ranges))})
        self.ctype = C_TYPES[found.left.dtype]

    def _access(self, e: Expr) -> Access:
        if e not in self.accesses:
            operand = self.inputs[e.value]
            self.accesses[e] = access(self.words, operand.ref, operand.layout, e.args, self.writer.coordinates)
        return self.accesses[e]

    def _count(self, group: Sequence[int]) -> Dim:
        total: Dim = 1
        for a in group:
            total = total * self.nest.ranges[a]
        return total

    def _split(self, flat: str, group: Sequence[int]) -> None:
        """Declare the coordinate of each axis of `group`, of which `flat` is the row-major position."""
        w, rest = self.writer, flat
        for a in reversed(group[1:]):
            size, above = self.words.word(self.nest.ranges[a]), w.fresh()
            w.line(f"const ix {above} = quotient({rest}, {size}), x{a} = {rest} - {above} * {size};")
            rest = above
        if group:
            w.line(f"const ix x{group[0]} = {rest};")

    def step(self) -> Step:
        w, f, t = self.writer, self.f, self.ctype
        rows, columns, depth = (self.words.word(self._count(g)) for g in (f.rows, f.columns, f.folded))
        w.line(f"__shared__ {t} left[{DEPTH}][{TILE + EACH}];")
        w.line(f"__shared__ {t} right[{DEPTH}][{TILE + EACH}];")
        w.line(f"const ix across = ({columns} + {TILE - 1}) / {TILE}, down = ({rows} + {TILE - 1}) / {TILE};")
        w.line(f"const ix block = quotient(blockIdx.x, across), column0 = (blockIdx.x - block * across) * {TILE};")
        w.line(f"const ix batch = quotient(block, down), row0 = (block - batch * down) * {TILE};")
        w.line("const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;")
        self._split("batch", f.batch)
        w.line(f"{t} sum[{EACH}][{EACH}];")
        w.line("#pragma unroll")
        with w.block(f"for (int i = 0; i < {EACH * EACH}; ++i)"):
            w.line(f"sum[i / {EACH}][i % {EACH}] = ({t})0;")
        with w.block(f"for (ix k0 = 0; k0 < {depth}; k0 += {DEPTH})"):
            self._slice("left", f.left, f.rows, f"row0 + (i >> 4) < {rows} && k0 + (i & 15) < {depth}", "row0 + (i >> 4)", "k0 + (i & 15)",
                        "[i & 15][i >> 4]")
            self._slice("right", f.right, f.columns, f"column0 + (i & 63) < {columns} && k0 + (i >> 6) < {depth}", "column0 + (i & 63)",
                        "k0 + (i >> 6)", "[i >> 6][i & 63]")
            w.line("__syncthreads();")
            w.line("#pragma unroll")
            with w.block(f"for (int k = 0; k < {DEPTH}; ++k)"):
                w.line(f"{t} a[{EACH}], b[{EACH}];")
                w.line("#pragma unroll")
                w.line(f"for (int i = 0; i < {EACH}; ++i) a[i] = left[k][ty * {EACH} + i], b[i] = right[k][tx + 16 * i];")
                w.line("#pragma unroll")
                w.line(f"for (int i = 0; i < {EACH * EACH}; ++i) sum[i / {EACH}][i % {EACH}] += a[i / {EACH}] * b[i % {EACH}];")
            w.line("__syncthreads();")
        self._results(rows, columns)
        text = (f'extern "C" __global__ void __launch_bounds__({THREADS}, 1) {SYMBOL}(ix* ctx, const ix* args) {{\n'
                f"{self.words.declared()}{w.text()}}}\n")
        tiles = floordiv(self._count(f.rows) + TILE - 1, TILE) * floordiv(self._count(f.columns) + TILE - 1, TILE)
        return Step(kernel_of("tile", text), tuple(self.words.args), self._count(f.batch) * tiles, THREADS)

    def _slice(self, name: str, factor: Expr, group: Sequence[int], inside: str, position: str, k: str, place: str) -> None:
        """Fill one factor's slice: 4 elements a thread."""
        w = self.writer
        with w.block(f"for (int i = threadIdx.x; i < {TILE * DEPTH}; i += {THREADS})"):
            w.line(f"{self.ctype} element = ({self.ctype})0;")
            with w.block(f"if ({inside})"):
                w.line(f"const ix at = {position}, k = {k};")
                self._split("at", group)
                self._split("k", self.f.folded)
                w.line(f"element = {w.value(factor)};")
            w.line(f"{name}{place} = element;")

    def _results(self, rows: str, columns: str) -> None:
        w, f, action = self.writer, self.f, self.f.store
        operand = self.outputs[action.output]
        w.line("#pragma unroll")
        with w.block(f"for (int i = 0; i < {EACH * EACH}; ++i)"):
            w.line(f"const ix row = row0 + ty * {EACH} + i / {EACH}, column = column0 + tx + 16 * (i % {EACH});")
            with w.block(f"if (row < {rows} && column < {columns})"):
                self._split("row", f.rows)
                self._split("column", f.columns)
                w.results[0, 0] = f"sum[i / {EACH}][i % {EACH}]"
                value, wide = w.value(action.expr), numpy_type(operand.layout.dtype)
                if action.expr.dtype != wide:
                    value = conversion(value, action.expr.dtype, wide)
                there = access(self.words, operand.ref, operand.layout, action.indices, w.coordinates)
                offset, _ = w.offset(there)
                w.line(f"st<{TAGS[operand.layout.dtype]}>({there.base}, {offset}, {value});")
