"""Call "gemm": out[..., M, N] = epilogue(A[..., M, K] @ B[..., K, N]); also how any contraction is bound to sizes."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.ir.dims import Dim, dmax, dmin, eq, floordiv, lt, select
from gpuonnx.ir.types import compute, numpy_dtype, size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu import pack
from gpuonnx.kernels.cpu.emit import NotAffine, Plan, analyse, check, identity, words

if TYPE_CHECKING:
    from gpuonnx.kernels.cpu.micro import Contraction

FLOATS = ("f32", "f64", "f16", "bf16")
LEAST_WORK = 1 << 18
FEW, NARROW, TILES = 4, 512, {"dots": 1}
TILE_COST = {1: 1.3, 2: 1.0, 3: 0.98}


def ceildiv(a: Dim, b: Dim) -> Dim:
    quotient: Dim = floordiv(a + b - 1, b)
    return quotient


@dataclass(frozen=True)
class Axis:
    """One output axis that is not the lane axis: its size, and byte strides of A and of packed B."""

    size: Dim
    a: Dim
    b: Dim


@dataclass(frozen=True)
class Problem:
    """A contraction over `axes` (the last one is the row axis), `columns` lanes for each, summed over taps and a run of k.

    `a` and `b` are pointers; `taps` are (count, byte step of A); `plan` has one stride an axis and one for the lanes;
    panels of B have `vectors` vectors a line. way: `panels`, or how B lies where it is not packed, its lines `line` bytes apart."""

    dtype: str
    a: Arg
    b: Arg
    axes: tuple[Axis, ...]
    columns: Dim
    taps: tuple[tuple[Dim, Dim], ...]
    run: Dim
    plan: Plan
    vectors: int = 2
    way: str = "panels"
    line: Dim = 0


def same(a: Dim, b: Dim) -> bool:
    """Proven equal."""
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


def collapsed(p: Problem) -> Problem:
    """Fewer axes: those of size 1 go, neighbours that are one in every operand merge, and B must not move along rows."""
    groups: list[list[int]] = []
    sizes: list[Dim] = []
    strides = [(axis.a, axis.b, *(o.strides[k] for o in p.plan.operands)) for k, axis in enumerate(p.axes)]
    for k, axis in enumerate(p.axes):
        if same(axis.size, 1):
            continue
        if groups and all(same(outer, inner * axis.size) for outer, inner in zip(strides[groups[-1][-1]], strides[k], strict=True)):
            groups[-1].append(k)
            sizes[-1] = sizes[-1] * axis.size
        else:
            groups.append([k])
            sizes.append(axis.size)
    axes = [Axis(n, p.axes[g[-1]].a, p.axes[g[-1]].b) for g, n in zip(groups, sizes, strict=True)]
    lane = len(p.axes)
    if axes and same(axes[-1].b, 0):
        return replace(p, axes=tuple(axes), plan=p.plan.merged([*groups, [lane]]))
    plan = p.plan.merged([*groups, [lane]]).with_row()
    return replace(p, axes=(*axes, Axis(1, 0, 0)), plan=plan)


def product(factors: Sequence[Dim]) -> Dim:
    out: Dim = 1
    for f in factors:
        out = out * f
    return out


def split(p: Problem, nr: int, mr: int, unit: int) -> dict[str, Dim]:
    """How the work is cut into tasks, from sizes only: enough of them for many threads, each worth its overhead, the
    rows of one task in the second-level cache."""
    *batch, rows = p.axes
    total, panels, entries = rows.size, ceildiv(p.columns, nr), product([x.size for x in batch])
    depth = dmax(1, p.run * product([count for count, _ in p.taps]))
    fits = floordiv(floordiv(400_000, dmax(1, p.run * unit)), mr) * mr
    shared = floordiv(total * panels * entries, 32)
    most = dmax(2 * mr, dmin(16 * mr, fits, shared))
    each = ceildiv(dmax(1, ceildiv(total, dmax(1, ceildiv(total, most)))), mr) * mr
    chunks = ceildiv(total, each)
    work = depth * nr * dmax(8, dmin(each, total))
    panels_task = dmax(1, dmin(panels, floordiv(LEAST_WORK, work)))
    groups = ceildiv(panels, panels_task)
    several = dmax(floordiv(LEAST_WORK, work * panels_task), ceildiv(4 * mr, dmax(1, dmin(each, total))))
    batch_task = dmax(1, dmin(entries, several))
    return {"rows": total, "columns": p.columns, "panels": panels, "batch": entries, "chunks": chunks, "groups": groups,
            "rows.task": each, "panels.task": panels_task, "batch.task": batch_task,
            "tasks": ceildiv(entries, batch_task) * chunks * groups}


def contraction(p: Problem, arithmetic: Any | None = None) -> Step:
    """The step that computes a Problem."""
    from gpuonnx.kernels.cpu.micro import Real, target
    dot = arithmetic or Real(p.dtype)
    mr, nr = TILES.get(p.way) or dot.tile(p.vectors), p.vectors * target().bytes // dot.unit
    p = collapsed(p)
    numbers = split(p, nr, mr, dot.unit)
    tasks = numbers.pop("tasks")
    args, form = arguments(p, numbers, dot)

    def text(symbol: str) -> str:
        from gpuonnx.kernels.cpu.thin import renderer
        return renderer(form.way).text(form, dot, symbol)
    return Step(Kernel("contraction", (form, target(), dot.key), "llvm", text), tuple(args.values()), tasks)


def arguments(p: Problem, numbers: Mapping[str, Dim], dot: Any) -> tuple[dict[str, Arg], Contraction]:
    """The words of a Problem by name, with `numbers` among them, and its form."""
    from gpuonnx.kernels.cpu.micro import Contraction, target
    *batch, rows = p.axes
    lanes, depth = target().bytes // dot.unit, p.run * product([count for count, _ in p.taps])
    nr = p.vectors * lanes
    panel = {"panels": depth * nr * dot.unit, "lines": nr * dot.unit, "dots": nr * p.line}[p.way]
    args: dict[str, Arg] = {"a": p.a, "b": p.b, "a.row": rows.a, "run": p.run, "b.panel": panel, "b.line": p.line, **numbers}
    for i, axis in enumerate(batch):
        args |= {f"size{i}": axis.size, f"a.{i}": axis.a, f"b.{i}": axis.b}
    for i, (count, step) in enumerate(p.taps):
        args |= {f"taps{i}": count, f"tap{i}": step}
    args |= words(p.plan)
    mr = TILES.get(p.way) or dot.tile(p.vectors)
    return args, Contraction(p.dtype, len(p.taps), len(batch), p.plan.form(), tuple(args), lanes, mr, p.vectors, p.way)


def vectors_for(columns: Dim, lanes: int, constant: bool) -> int:
    """Vectors of a panel's line: where a constant B is packed once, as few columns of filling as there can be; two, if all are alike."""
    from gpuonnx.kernels.cpu.micro import VECTORS
    if not constant or not isinstance(columns, int):
        return VECTORS
    wide = {v: -(-columns // (v * lanes)) * v for v in (VECTORS, 3, 1)}
    return min(wide, key=lambda v: wide[v] * TILE_COST[v])


def broadcast(layout: Layout, shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Strides of the batch axes of `layout` (all but its last two) over the batch `shape` it broadcasts to."""
    missing = len(shape) - (len(layout.shape) - 2)
    out: list[Dim] = [0] * missing
    for n, full, stride in zip(layout.shape[:-2], shape[missing:], layout.strides[:-2], strict=True):
        if same(n, full) or same(stride, 0):
            out.append(stride)
        else:
            out.append(0 if same(n, 1) else stride if isinstance(n, int) else select(eq(n, 1), 0, stride))
    return tuple(out)


def dense_batch(layout: Layout, unit: Dim, shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Byte strides over the batch `shape` of a packed copy that holds `unit` bytes for each matrix of `layout`."""
    copy = Layout(layout.dtype, layout.shape, (*_steps(layout.shape[:-2], unit), 0, 0))
    return broadcast(copy, shape)


def _steps(shape: Sequence[Dim], unit: Dim) -> tuple[Dim, ...]:
    out: list[Dim] = []
    for n in reversed(shape):
        out.insert(0, unit)
        unit = unit * n
    return tuple(out)


def supports(call: Spec) -> str | None:
    a, b = call.inputs[0], call.inputs[1]
    if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
        return "gemm takes two matrices"
    if a.dtype not in FLOATS or b.dtype not in FLOATS or compute(a.dtype) != compute(b.dtype):
        return f"gemm of {a.dtype} and {b.dtype}"
    return epilogue_reason(call, compute(a.dtype), identity(len(call.outputs[0].shape)))


def epilogue_reason(call: Spec, dtype: str, forms: Any) -> str | None:
    if call.epilogue is None:
        return None
    try:
        analyse(call.outputs[0], call.epilogue, dtype, forms)
    except NotAffine as error:
        return str(error)
    return check(call.epilogue.expr)


def pack_constant(array: np.ndarray, dtype: str, nr: int) -> np.ndarray:
    """[..., K, N] -> [..., N / nr, K, nr], zero padded."""
    *batch, k, n = array.shape
    panels = -(-n // nr)
    out = np.zeros((*batch, panels, k, nr), numpy_dtype(dtype))
    padded = np.zeros((*batch, k, panels * nr), out.dtype)
    padded[..., :n] = array
    out[...] = np.moveaxis(padded.reshape(*batch, k, panels, nr), -2, -3)
    return out


@dataclass
class Workspace:
    """Steps before the product and the workspaces they fill."""

    steps: list[Step]
    bytes: list[Dim]

    def take(self, count: Dim) -> Ref:
        self.bytes.append(count)
        return Ref("work", len(self.bytes) - 1)


def left_operand(a: Layout, dtype: str, shape: Sequence[Dim], work: Workspace) -> tuple[Ref, tuple[Dim, ...]]:
    """A pointer to A with unit k stride and its byte strides (batch axes, row); packed first if it is not like that, or if
    its rows would all fall into one set of the first-level cache."""
    unit = size(dtype)
    if a.dtype == dtype and same(a.strides[-1], 1) and not _aliasing(a, unit):
        return Ref("in", 0), tuple(s * unit for s in (*broadcast(a, shape), a.strides[-2]))
    rows, depth = a.shape[-2:]
    blocks = ceildiv(depth, pack.block(dtype))
    line = (floordiv(blocks, 2) * 2 + 1) * pack.block(dtype) * unit
    room = work.take(product(a.shape[:-2]) * rows * line)
    work.steps.append(pack.step(Ref("in", 0), a, (-2, -1), room, dtype, line, pack.block(dtype) * unit, rows * line))
    return room, (*dense_batch(a, rows * line, shape), line)


def _aliasing(a: Layout, unit: int) -> bool:
    rows, line = a.shape[-2], a.strides[-2]
    return isinstance(line, int) and line != 0 and line * unit % 4096 == 0 and not (isinstance(rows, int) and rows < 8)


def right_operand(b: Layout, ref: Ref, known: np.ndarray | None, dtype: str, shape: Sequence[Dim],
                  work: Workspace) -> tuple[Ref, tuple[Dim, ...], tuple[Packed, ...]]:
    """B at `ref` (an array, where it is `known`) in panels, and its byte strides along the batch axes."""
    from gpuonnx.kernels.cpu.micro import lanes_of
    depth, columns = b.shape[-2:]
    nr, unit = vectors_for(columns, lanes_of(dtype), known is not None) * lanes_of(dtype), size(dtype)
    matrix = ceildiv(columns, nr) * depth * nr * unit
    steps = dense_batch(b, matrix, shape)
    if known is not None:
        return Ref("packed", 0), steps, (Packed(("panels", dtype, nr), lambda: pack_constant(known, dtype, nr)),)
    room = work.take(product(b.shape[:-2]) * matrix)
    work.steps.append(pack.step(ref, b, (-2, -1), room, dtype, nr * unit, depth * nr * unit, matrix))
    return room, steps, ()


@dataclass(frozen=True)
class Lying:
    """A B that need not be packed for few rows, or for any number of them (`always`): its way, vectors of a line of results, byte strides of
    the batch axes and between lines."""

    way: str
    vectors: int
    steps: tuple[Dim, ...]
    line: Dim
    always: bool = False

    def serves(self, rows: Dim) -> Dim:
        """Whether so many rows take it as it lies."""
        few: Dim = 1 if self.always else lt(rows, FEW + 1)
        return few


def lying(b: Layout, dtype: str, shape: Sequence[Dim]) -> Lying | None:
    """None where neither columns nor k are neighbours, or columns do not fill vectors."""
    from gpuonnx.kernels.cpu.micro import VECTORS, lanes_of
    unit, columns, lanes = size(dtype), b.shape[-1], lanes_of(dtype)
    steps = tuple(s * unit for s in broadcast(b, shape))
    if b.dtype != dtype:
        return None
    if same(b.strides[-2], 1) and not same(columns, 1):
        return Lying("dots", VECTORS, steps, b.strides[-1] * unit)
    if same(b.strides[-1], 1) and isinstance(columns, int) and columns and columns % lanes == 0:
        line = b.strides[-2] * unit
        return Lying("lines", VECTORS if columns % (VECTORS * lanes) == 0 else 1, steps, line, isinstance(line, int) and line <= NARROW)
    return None


def unless(steps: Sequence[Step], condition: Dim) -> list[Step]:
    """The same steps, without tasks where `condition` holds."""
    return [replace(s, tasks=select(condition, 0, s.tasks)) for s in steps]


def build(call: Spec) -> Build:
    """Where B is no constant, few rows take it as it lies (any number, where its lines are short); whether they are few may be known only when
    sizes are."""
    from gpuonnx.kernels.cpu.micro import lanes_of
    a, b, out = call.inputs[0], call.inputs[1], call.outputs[0]
    assert a is not None and b is not None
    dtype, shape, known = compute(a.dtype), out.shape[:-2], call.constants.get(1)
    work = Workspace([], [])
    left, a_steps = left_operand(a, dtype, shape, work)
    plan = analyse(out, call.epilogue, dtype, identity(len(out.shape)))

    def problem(ref: Ref, steps: Sequence[Dim], vectors: int, way: str = "panels", line: Dim = 0) -> Problem:
        axes = tuple(Axis(n, x, y) for n, x, y in zip((*shape, out.shape[-2]), a_steps, (*steps, 0), strict=True))
        return Problem(dtype, left, ref, axes, out.shape[-1], (), a.shape[-1], plan, vectors, way, line)
    there = lying(b, dtype, shape) if known is None else None
    few: Dim = 0
    steps = list(work.steps)
    if there is not None:
        thin = problem(Ref("in", 1), there.steps, there.vectors, there.way, there.line)
        few = there.serves(collapsed(thin).axes[-1].size)
        steps += unless([contraction(thin)], 1 - few)
    if same(few, 1):
        return Build(tuple(steps), tuple(work.bytes), in_place=call.in_place())
    before = len(work.bytes)
    work.steps.clear()
    right, b_steps, packed = right_operand(b, Ref("in", 1), known, dtype, shape, work)
    vectors = vectors_for(out.shape[-1], lanes_of(dtype), known is not None)
    steps += unless([*work.steps, contraction(problem(right, b_steps, vectors))], few)
    bytes_of = (*work.bytes[:before], *(select(few, 0, n) for n in work.bytes[before:]))
    return Build(tuple(s for s in steps if not same(s.tasks, 0)), bytes_of, packed, call.in_place())
