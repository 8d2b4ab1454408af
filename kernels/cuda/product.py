"""What the launchers of products share: the epilogue as text, the choice of a tile by sizes, the launches.

A product has rows, columns and k for each batch entry. Its output's axes are dealt to batch, rows and columns; the text splits a row's number
into coordinates, merged where every access allows it. Sizes come as words: they choose among kernels, they are in no text.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from gpuonnx.ir.dims import Dim, dmax, dmin, floordiv, lt, select
from gpuonnx.ir.expr import Expr, folded, postorder, substitute
from gpuonnx.ir.types import compute, size
from gpuonnx.kernels.contract import Build, Kernel, Layout, Packed, Ref, Spec, Step
from gpuonnx.kernels.cuda.expression import C_TYPES, TAGS, Writer, conversion
from gpuonnx.kernels.cuda.loops import Loop, loops, named_axes, product
from gpuonnx.kernels.cuda.words import SYMBOL, Access, Pattern, Words, pattern, pointer, term_words

PROCESSORS, CHUNK = 132, 16
FINISH_THREADS = 256


def ceildiv(a: Dim, b: Dim) -> Dim:
    quotient: Dim = floordiv(a + b - 1, b)
    return quotient


@dataclass(frozen=True)
class Axes:
    """Virtual axes of the output (`ranges`), the numbers of those that are batch, rows and columns, and where element
    (index(0), ...) of them lies in the output: one index an output axis."""

    ranges: tuple[Dim, ...]
    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    places: tuple[Expr, ...]

    def count(self, group: Sequence[int]) -> Dim:
        return product(self.ranges[a] for a in group)


@dataclass
class Text:
    """A kernel on its way to text: words, lines, and the coordinates of the batch."""

    call: Spec
    axes: Axes
    sum: str
    words: Words = field(default_factory=Words)
    lines: list[str] = field(default_factory=list)
    prelude: list[str] = field(default_factory=list)
    task: str = ""

    def __post_init__(self) -> None:
        out, epilogue, places = self.call.outputs[0], self.call.epilogue, self.axes.places
        total = folded(0, 0, self.sum)
        expr = total if epilogue is None else substitute(epilogue.expr, lambda e: total if e.op == "load" and e.value == 0 else None)
        self.expr = substitute(expr, lambda e: places[e.value] if e.op == "index" else None)
        operands = epilogue.operands if epilogue is not None else ()
        self.loads: dict[Expr, Pattern] = {e: pattern(operands[e.value - 1], e.args) for e in postorder((self.expr,)) if e.op == "load"}
        self.layouts = {e: operands[e.value - 1] for e in self.loads}
        self.stored = pattern(out, places)
        patterns, named = [*self.loads.values(), self.stored], named_axes((self.expr,))
        self.groups: dict[str, list[Loop]] = {
            prefix: loops(group, self.axes.ranges, patterns, named)
            for prefix, group in (("b", self.axes.batch), ("r.r", self.axes.rows), ("c.c", self.axes.columns))}

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    @contextmanager
    def reread(self, head: str, tail: str) -> Iterator[None]:
        """What is written between `head` and `tail` reads its words there, from `later`, so that they take no registers before."""
        first = len(self.words.args)
        self.line(head)
        before, self.lines = self.lines, []
        yield
        self.lines = [*before, *self.words.declared(first, source="later").splitlines(), *self.lines]
        self.line(tail)

    # where the block works
    def extent(self, depth: Dim, pieces: Dim, task: str) -> None:
        """Declare `extent` and `task`, whose text is given."""
        a = self.axes
        sizes = (a.count(a.rows), a.count(a.columns), depth, a.count(a.batch), pieces)
        self.line(f"const Extent extent = {{{', '.join(map(self.words.word, sizes))}}};")
        self.task = task
        self.line(f"const Task task = {task};")

    def split_batch(self, axes: Sequence[int]) -> dict[int, str]:
        """Declare the coordinates of the batch axes themselves, for operands; answers with their names."""
        return dict(zip(axes, self.split("task.batch", [self.axes.ranges[a] for a in axes], "x"), strict=True))

    def split(self, flat: str, sizes: Sequence[Dim], prefix: str) -> list[str]:
        """Declare the coordinates `prefix`0, ... of the row-major position `flat`; answers with their names."""
        return self._split(flat, sizes, prefix, self.line)

    def _split(self, flat: str, sizes: Sequence[Dim], prefix: str, line: Callable[[str], None]) -> list[str]:
        names = [f"{prefix}{k}" for k in range(len(sizes))]
        rest = flat
        for k in range(len(sizes) - 1, 0, -1):
            extent = self.words.word(sizes[k])
            line(f"const ix above_{prefix}{k} = quotient({rest}, {extent}), {names[k]} = {rest} - above_{prefix}{k} * {extent};")
            rest = f"above_{prefix}{k}"
        if sizes:
            line(f"const ix {names[0]} = {rest};")
        return names

    def address(self, ref: Ref, layout: Layout, strides: Sequence[tuple[str, Dim]]) -> str:
        """The address of an operand's first element for the coordinates given with their strides."""
        parts = [f"{name} * {self.words.word(s)}" for name, s in strides if not (isinstance(s, int) and s == 0)]
        base = pointer(self.words, ref, layout.dtype)
        return f"{base} + ({' + '.join(parts)}) * {size(layout.dtype)}" if parts else base

    # results
    def results(self, partial: bool) -> None:
        """Declare `out`, what stores the sums. Words are read again, so that they take no registers before."""
        first = len(self.words.args)
        lines = [f"  const Extent whole = {{{', '.join(f'again[{k}]' for k in range(5))}}};",
                 f"  const Task here = {self.task.replace('extent', 'whole')};"]
        for name, prefix in (("Row", "r"), ("Column", "c")):
            lines += self._coordinates(name, prefix, [loop.size for loop in self.groups[f"{prefix}.{prefix}"]])
        self._split("here.batch", [loop.size for loop in self.groups["b"]], "b", lambda text: lines.append("  " + text))
        out = self.call.outputs[0]
        writer = Writer(self.words, self._access, self._named())
        writer.results[0, 0] = "sum"
        value = writer.value(self.expr)
        if self.expr.dtype != compute(out.dtype):
            value = conversion(value, self.expr.dtype, compute(out.dtype))
        lines += ["  const auto value = [&](const Row& r, const Column& c, " f"{C_TYPES[self.sum]} sum) {{",
                  *("  " + text for text in writer.lines), f"    return {value};", "  };"]
        place = self._place(out.dtype, Ref("out", 0), self.stored)
        lines.append(f"  const auto place = [&](const Row& r, const Column& c) -> ix {{ return {place.affine_offset()}; }};")
        work = self.words.word(Ref("work", 0)) if partial else "0"
        lines.append(f"  const auto out = output<{TAGS[out.dtype]}, {C_TYPES[self.sum]}>({place.base}, {work}, row_of, column_of, value, place);")
        self.lines += ["  const volatile ix* const again = args;", self.words.declared(first, source="again").rstrip("\n"), *lines]

    def coordinates(self, name: str, prefix: str, sizes: Sequence[Dim]) -> None:
        """Declare `<name>_of`, in small letters: the coordinates `prefix`0, ... of a row-major position, as a struct."""
        self.lines += self._coordinates(name, prefix, sizes)

    def _coordinates(self, name: str, prefix: str, sizes: Sequence[Dim]) -> list[str]:
        members = ", ".join(f"{prefix}{k}" for k in range(max(1, len(sizes))))
        self.prelude.append(f"struct {name} {{ ix {members}; }};\n")
        lines = [f"  const auto {name.lower()}_of = [&](ix at) {{"]
        names = self._split("at", sizes, prefix, lambda text: lines.append("    " + text))
        return [*lines, f"    return {name}{{{', '.join(names) or 'at'}}};", "  };"]

    def _named(self) -> dict[int, str]:
        coordinates = {a: "0" for a in range(len(self.axes.ranges))}
        for prefix, group in self.groups.items():
            for k, loop in enumerate(group):
                coordinates.update((axis, f"{prefix}{k}") for axis in loop.axes)
        return coordinates

    def _access(self, e: Expr) -> Access:
        return self._place(self.layouts[e].dtype, Ref("extra", e.value - 1), self.loads[e])

    def _place(self, stored: str, ref: Ref, p: Pattern) -> Access:
        parts = [(f"{prefix}{k}", self.words.stride(loop.stride(p))) for prefix, group in self.groups.items() for k, loop in enumerate(group)]
        return Access(stored, pointer(self.words, ref, stored, p.offset), parts, term_words(self.words, p.terms))

    def step(self, name: str, source: str, operands: int, tasks: Dim, threads: int, blocks: int = 1, shared: int = 0) -> Step:
        """`operands` words belong to the part before the results."""
        head = self.words.declared(0, operands)
        text = (f'#include "{source}"\n{"".join(self.prelude)}extern "C" __global__ void __launch_bounds__({threads}, RESIDENT({blocks})) '
                f"{SYMBOL}(ix* ctx, const ix* args) {{\n{head}" + "\n".join(self.lines) + "\n}\n")
        return Step(Kernel(name, (text,), "cuda", lambda symbol: text.replace(SYMBOL, symbol)), tuple(self.words.args), tasks, threads, shared)


@dataclass(frozen=True)
class Lines:
    """A constant operand of tensor cores as [..., rows, k] with lines of whole chunks of 16 bytes: where it is, its element strides, the copy."""

    ref: Ref
    strides: tuple[Dim, ...]
    packed: tuple[Packed, ...] = ()


def lines(array: np.ndarray) -> Lines:
    """`array` is [..., rows, k]."""
    *lead, rows, depth = array.shape
    line = -(-depth * array.itemsize // CHUNK) * CHUNK // array.itemsize

    def make() -> np.ndarray:
        out = np.zeros((*lead, rows, line), array.dtype)
        out[..., :depth] = array
        return out
    dense = Layout.dense("u8", (*lead, rows, line))
    return Lines(Ref("packed", 0), dense.strides, (Packed(("lines", array.shape, line), make),))


@dataclass(frozen=True)
class Tile:
    """A C++ type of product.cuh by its name in the text, what a block of it makes and takes."""

    name: str
    text: str
    height: int
    width: int
    depth: int
    threads: int
    blocks: int = 1
    shared: int = 0
    store: str = "pool, whole, here, out"
    unit: str = "Tile::DEPTH"

    def tiles(self, axes: Axes) -> Dim:
        return ceildiv(axes.count(axes.rows), self.height) * ceildiv(axes.count(axes.columns), self.width) * axes.count(axes.batch)


@dataclass(frozen=True)
class Choice:
    """A tile, when it serves (a Dim in {0, 1}) and into how many pieces k is cut."""

    tile: Tile
    serves: Dim
    pieces: Dim


def cut(tile: Tile, axes: Axes, depth: Dim) -> Dim:
    """Pieces of k, so that few tiles still fill the processors, each piece worth its launch."""
    pieces: Dim = dmax(1, dmin(floordiv(2 * PROCESSORS, dmax(1, tile.tiles(axes))), floordiv(depth, 16 * tile.depth), 32))
    return pieces


def choose(axes: Axes, depth: Dim, big: Tile | None, small: Tile, skinny: Tile | None) -> list[Choice]:
    """One tile serves at any sizes: `skinny` for a few rows, `big` where its tiles fill the processors."""
    few: Dim = lt(axes.count(axes.rows), 2 * skinny.height + 1) if skinny is not None else 0
    many: Dim = (1 - few) * lt(PROCESSORS - 1, big.tiles(axes)) if big is not None else 0
    found = [Choice(small, (1 - few) * (1 - many), cut(small, axes, depth))]
    if big is not None:
        found.insert(0, Choice(big, many, 1))
    if skinny is not None:
        found.append(Choice(skinny, few, cut(skinny, axes, depth)))
    return [c for c in found if not (isinstance(c.serves, int) and not c.serves)]


@dataclass(frozen=True)
class Pieces:
    """How pieces of k come together: the file, the last line and what writes the text before the results; bytes of the workspace behind the sums."""

    source: str = "product.cuh"
    together: str = "out.add_pieces(whole, here);"
    before: Callable[[Text], None] = lambda text: None
    more: Dim = 0


SUMMED = Pieces()


def launches(call: Spec, axes: Axes, depth: Dim, sum_type: str, choices: Sequence[Choice], source: str,
             body: Callable[[Text, Tile], None], packed: tuple[Packed, ...] = (), gather: Pieces = SUMMED) -> Build:
    """The steps of a product: for each choice a launch that is empty where another serves, then one that puts the pieces together."""
    pieces = pieces_of(choices)
    steps = []
    for choice in choices:
        tile, text = choice.tile, Text(call, axes, sum_type)
        text.line(f"typedef {tile.text} Tile;")
        text.extent(depth, choice.pieces, f"task_of(extent, Tile::HEIGHT, Tile::WIDTH, {tile.unit})")
        body(text, tile)
        operands = len(text.words.args)
        text.results(not one(choice.pieces))
        text.line(f"tile.store({tile.store});")
        tasks = choice.serves * tile.tiles(axes) * choice.pieces
        steps.append(text.step(f"{call_name(source)}_{tile.name}", source, operands, tasks, tile.threads, tile.blocks, tile.shared))
    if one(pieces):
        return Build(tuple(steps), (), packed, call.in_place())
    steps.append(_gathered(call, axes, depth, sum_type, pieces, gather))
    each = axes.count((*axes.batch, *axes.rows, *axes.columns))
    return Build(tuple(steps), (select(lt(1, pieces), pieces * each * size(sum_type) + gather.more, 0),), packed, call.in_place())


def pieces_of(choices: Sequence[Choice]) -> Dim:
    """Into how many pieces the choice that serves cuts k."""
    pieces: Dim = 1
    for choice in choices:
        pieces = select(choice.serves, choice.pieces, pieces)
    return pieces


def one(pieces: Dim) -> bool:
    return isinstance(pieces, int) and pieces == 1


def call_name(source: str) -> str:
    return source.removesuffix(".cu")


def _gathered(call: Spec, axes: Axes, depth: Dim, sum_type: str, pieces: Dim, gather: Pieces) -> Step:
    text = Text(call, axes, sum_type)
    text.extent(depth, pieces, "element_of(extent)")
    gather.before(text)
    operands = len(text.words.args)
    text.results(True)
    text.line(gather.together)
    blocks = ceildiv(axes.count(axes.rows) * axes.count(axes.columns), FINISH_THREADS) * axes.count(axes.batch)
    return text.step("pieces", gather.source, operands, select(lt(1, pieces), blocks, 0), FINISH_THREADS)
