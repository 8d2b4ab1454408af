"""Call "gemm": out[..., M, N] = epilogue(A[..., M, K] @ B[..., K, N]), any strides. float32 and float64 by FMA, halves by tensor cores."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import index
from gpuonnx.ir.types import compute, size
from gpuonnx.kernels.contract import Build, Layout, Ref, Spec
from gpuonnx.kernels.cuda.expression import C_TYPES, TAGS
from gpuonnx.kernels.cuda.loops import same
from gpuonnx.kernels.cuda.product import CHUNK, Axes, Lines, Text, Tile, choose, launches, lines

MMA = {"f16": "MmaF16", "bf16": "MmaBf16"}
SLICE_BYTES, STAGES = 64, 4


def supports(call: Spec) -> str | None:
    a, b = call.inputs[0], call.inputs[1]
    if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
        return "gemm takes two matrices"
    if a.dtype != b.dtype or a.dtype not in ("f32", "f64", *MMA):
        return f"gemm of {a.dtype} and {b.dtype}"
    return None


def simt(dtype: str, height: int, width: int, depth: int, rows: int, columns: int, blocks: int) -> Tile:
    """FMA: a thread makes rows x columns."""
    text = f"Simt<{C_TYPES[dtype]}, {height}, {width}, {depth}, {rows}, {columns}>"
    return Tile(f"{dtype}_{height}x{width}", text, height, width, depth, height // rows * (width // columns), blocks)


def tensor(mma: str, name: str, shape: tuple[int, int, int, int], unit: int, by_k: tuple[bool, bool], blocks: int) -> Tile:
    """Tensor cores: `shape` is the block's tile, then a warp's; `unit` bytes an element; by_k as in product.cuh."""
    height, width, rows, columns = shape
    text = f"Tensor<{mma}, {height}, {width}, {rows}, {columns}, {flag(by_k[0])}, {flag(by_k[1])}>"
    threads = height // rows * (width // columns) * 32
    shared = STAGES * (height + width) * SLICE_BYTES
    return Tile(f"{name}_{height}x{width}", text, height, width, SLICE_BYTES // unit, threads, blocks, shared, "pool, whole, here, out, zeros")


BIG, SMALL = (128, 128, 64, 32), (64, 64, 32, 32)


def flag(value: bool) -> str:
    return "true" if value else "false"


def unit_stride(stride: Dim) -> bool:
    return isinstance(stride, int) and stride == 1


def axes_of(call: Spec) -> Axes:
    a, b = call.inputs[0], call.inputs[1]
    assert a is not None and b is not None
    return axes_over(call.outputs[0], a, (b,))


def axes_over(out: Layout, left: Layout, rights: Sequence[Layout]) -> Axes:
    """Batch axes over which `left` is one tall matrix and the others the same are rows."""
    rank = len(out.shape)
    first, row = rank - 2, rank - 2
    steps, others = strides_of(left, rank), [strides_of(v, rank) for v in rights]
    while first and all(same(v[first - 1], 0) for v in others) and (
            same(steps[first - 1], steps[first] * out.shape[first]) or same(out.shape[first - 1], 1)):
        first -= 1
    return Axes(out.shape, tuple(range(first)), tuple(range(first, row + 1)), (rank - 1,), tuple(map(index, range(rank))))


def strides_of(layout: Layout, rank: int) -> tuple[Dim, ...]:
    """Strides by the output's axes, the last two being the matrix's own; a plain matrix serves every batch entry."""
    return (0,) * (rank - len(layout.shape)) + tuple(layout.strides)


def matrices(text: Text, call: Spec, right: Lines | None = None) -> None:
    """Declare `left` and `right`, which may be a copy by k."""
    rank = len(call.outputs[0].shape)
    names = text.split_batch(text.axes.batch)
    for k, name in enumerate(("left", "right")):
        layout = call.inputs[k]
        assert layout is not None
        strides, ref = strides_of(layout, rank), Ref("in", k)
        row, depth = strides[-2:] if k == 0 else strides[:-3:-1]
        if k == 1 and right is not None:
            ref, strides = right.ref, (0,) * (rank - len(right.strides)) + right.strides
            row, depth = strides[-2:]
        address = text.address(ref, layout, [(names[a], strides[a]) for a in text.axes.batch])
        text.line(f"const Matrix {name} = {{{address}, {text.words.stride(row)}, {text.words.stride(depth)}}};")


def build(call: Spec) -> Build:
    a, b = call.inputs[0], call.inputs[1]
    assert a is not None and b is not None
    axes, depth, dtype, copy = axes_of(call), a.shape[-1], compute(a.dtype), ragged(call)
    by_row = unit_stride(a.strides[-2]) and not unit_stride(a.strides[-1]), unit_stride(b.strides[-1]) and copy is None
    big, small = tiles_of(a.dtype, (not by_row[0], not by_row[1]))
    by_k = copy is not None or unit_stride(b.strides[-2]) and not by_row[1]
    skinny = Tile(f"{a.dtype}_few", f"Skinny<{TAGS[a.dtype]}, {C_TYPES[dtype]}, {flag(by_k)}>", 4, 8 if by_k else 32, 32, 256,
                  store="whole, here, out")

    def body(text: Text, tile: Tile) -> None:
        matrices(text, call, copy)
        if tile is skinny:
            text.line("Tile tile;")
            text.line("tile.run(extent, task, left, right);")
        else:
            if tile.shared:
                text.line("NoZeros zeros;")
            multiply(text, tile, reader(tile, 0, by_row[0]), reader(tile, 1, by_row[1]))
    return launches(call, axes, depth, dtype, choose(axes, depth, big, small, skinny), "gemm.cu", body, copy.packed if copy else ())


def ragged(call: Spec) -> Lines | None:
    """A constant B of halves whose lines are no whole chunks, as a copy by k."""
    b = call.constants.get(1)
    if b is None or b.itemsize != 2 or b.shape[-1] * b.itemsize % CHUNK == 0:
        return None
    return lines(b.swapaxes(-1, -2))


def tiles_of(stored: str, by_k: tuple[bool, bool]) -> tuple[Tile | None, Tile]:
    """The large tile, if there is one, and the small one."""
    if stored in MMA:
        big, small = (tensor(MMA[stored], stored, shape, size(stored), by_k, 2) for shape in (BIG, SMALL))
        return big, small
    if stored == "f64":
        return None, simt(stored, 64, 64, 16, 4, 4, 2)
    return simt(stored, 128, 128, 8, 8, 8, 2), simt(stored, 64, 64, 16, 8, 4, 4)


def reader(tile: Tile, side: int, by_row: bool) -> str:
    """How slices of `left` (side 0) or `right` are read."""
    name, extent, at = (("left", "HEIGHT", "row"), ("right", "WIDTH", "column"))[side]
    kind, way = ("MatrixChunks", not by_row) if tile.shared else ("MatrixSlice", by_row)
    return f"{kind}<Tile, Tile::{extent}, {flag(way)}>({name}, task.{at}, extent.{at}s, task)"


def multiply(text: Text, tile: Tile, left: str, right: str) -> None:
    """Declare `tile` and run its loop; `zeros` is declared where tensor cores want it."""
    pool = ("__shared__ __align__(16) Tile::raw pool[Tile::POOL];", "extern __shared__ __align__(128) char pool[];")[tile.shared > 0]
    text.line(f"{pool} Tile tile; tile.run(pool, task, {left}, {right}{', zeros' if tile.shared else ''});")
