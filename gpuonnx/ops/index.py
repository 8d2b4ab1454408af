"""Reading and writing at indices that come from data."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Tensor, cast, dim, from_end, positions, product, tensor_map, tensor_prefix, tensor_scatter
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.formula import equal, less, select
from gpuonnx.ops.registry import Const, Dims, op

COMBINE = {"none": None, "add": "add", "mul": "mul", "max": "max", "min": "min"}


@op("Gather", since=1)
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """out[.., i.., ..] = x[.., indices[i..], ..]; one constant index makes a view."""
    axis = x.axis(axis)
    known = x.builder.constants.get(indices.value)
    if known is not None and known.size == 1:
        return taken(x, axis, int(known.reshape(()))).unsqueeze(range(axis, axis + known.ndim))
    if known is not None and known.size:
        size, first, last = x.shape[axis], int(known.min()), int(known.max())
        x.builder.require(size - 1 - last, f"index {last} into an axis of {size}")
        x.builder.require(size + min(first, 0), f"index {first} into an axis of {size}")
    stop = axis + indices.rank
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1:])
    return tensor_map(shape, x.dtype, lambda *i: x.at(*i[:axis], from_end(indices.at(*i[axis:stop]), x.shape[axis]), *i[stop:]))


def taken(x: Tensor, axis: int, place: int) -> Tensor:
    """x[.., place, ..], without the axis."""
    size = x.shape[axis]
    x.builder.require(size - 1 - place if place >= 0 else size + place, f"index {place} into an axis of {size}")
    at = place if place >= 0 else size + place
    return x.view([*x.shape[:axis], *x.shape[axis + 1:]], lambda *i: [*i[:axis], dim(at), *i[axis:]])


@op("GatherElements", since=11)
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """out[i] = x[i with indices[i] at `axis`]"""
    axis = x.axis(axis)
    within(x, indices, axis)
    return tensor_map(indices.shape, x.dtype, lambda *i: x.at(*i[:axis], from_end(indices.at(*i), x.shape[axis]), *i[axis + 1:]))


def within(x: Tensor, indices: Tensor, axis: int) -> None:
    """Indices stay inside x on the axes that they do not choose."""
    if indices.rank != x.rank:
        raise ShapeError(f"{x.builder.origin}: indices of rank {indices.rank} for data of rank {x.rank}; both must have the same rank")
    for a, (size, count) in enumerate(zip(x.shape, indices.shape, strict=True)):
        if a != axis:
            x.builder.require(size - count, f"indices reach beyond axis {a} of the data: {count} of {size}")


def alike(shape: Sequence[Dim], updates: Tensor) -> None:
    """The updates have the shape that the indices ask for."""
    if len(shape) != updates.rank:
        raise ShapeError(f"{updates.builder.origin}: updates of rank {updates.rank}; the indices ask for rank {len(shape)}")
    for wanted, size in zip(shape, updates.shape, strict=True):
        updates.builder.meet(wanted, size)


@op("GatherND", since=11)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The last axis of `indices` holds coordinates into the axes of x after the `batch_dims` shared ones."""
    depth, outer = index_depth(indices), indices.rank - 1
    used = batch_dims + depth
    if used > x.rank:
        raise ShapeError(f"{x.builder.origin}: {depth} coordinates after {batch_dims} batch axes into rank {x.rank}")
    batch = [x.builder.meet(a, b) for a, b in zip(x.shape[:batch_dims], indices.shape[:batch_dims], strict=True)]
    shape = (*batch, *indices.shape[batch_dims:outer], *x.shape[used:])
    return tensor_map(shape, x.dtype, lambda *i: x.at(*i[:batch_dims], *coordinates(x, indices, i[:outer], batch_dims), *i[outer:]))


def index_depth(indices: Tensor) -> int:
    return int(indices.builder.ask(indices.shape[-1]))


def coordinates(x: Tensor, indices: Tensor, row: tuple[Expr, ...], first: int) -> list[Expr]:
    """The coordinates in a row of `indices`, of the axes of x from `first` on."""
    return [from_end(indices.at(*row, k), x.shape[first + k]) for k in range(index_depth(indices))]


@op("ScatterElements", since=11)
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """x, with updates[i] at (or combined into) i with indices[i] at `axis`."""
    axis = x.axis(axis)
    within(x, indices, axis)
    alike(indices.shape, updates)
    return tensor_scatter(x, indices.shape, lambda *i: [*i[:axis], from_end(indices.at(*i), x.shape[axis]), *i[axis + 1:]],
                          updates.at, combined(reduction))


def combined(reduction: str) -> str | None:
    if reduction not in COMBINE:
        raise ModelError(f"a reduction is one of {', '.join(COMBINE)}, here {reduction!r}")
    return COMBINE[reduction]


@op("Scatter", since=9)
def scatter(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    return scatter_elements(x, indices, updates, axis=axis)


@op("ScatterND", since=11)
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """x, with the slices of `updates` at (or combined into) the coordinates in the last axis of `indices`."""
    outer, depth = indices.rank - 1, index_depth(indices)
    shape = (*(x.builder.meet(a, b) for a, b in zip(updates.shape[:outer], indices.shape[:outer], strict=True)), *x.shape[depth:])
    for given, wanted in zip(updates.shape, shape, strict=True):
        x.builder.meet(given, wanted)
    return tensor_scatter(x, shape, lambda *i: [*coordinates(x, indices, i[:outer], 0), *i[outer:]], updates.at, combined(reduction))


@op("TensorScatter", since=24)
def tensor_scatter_24(past: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear") -> Tensor:
    """The cache with `update` written along `axis` from write_indices[batch] on; in mode circular the index wraps round."""
    axis = past.axis(axis)
    if mode not in ("linear", "circular") or axis == 0:
        raise ModelError(f"TensorScatter knows the modes linear and circular on an axis after the batch, here {mode!r}, {axis}")
    within(past, update, axis)
    past.builder.require(past.shape[axis] - update.shape[axis], f"the update is longer than axis {axis} of the cache")
    if write_indices is not None:
        alike(past.shape[:1], write_indices)

    def place(*i: Expr) -> list[Expr]:
        at = i[axis] if write_indices is None else i[axis] + cast(write_indices.at(i[0]), "ix")
        return [*i[:axis], at % dim(past.shape[axis]) if mode == "circular" else at, *i[axis + 1:]]
    return tensor_scatter(past, update.shape, place, update.at)


@op("OneHot", since=9)
def one_hot(indices: Tensor, depth: Dims, values: Tensor, *, axis: int = -1) -> Tensor:
    """values[1] where the new axis is at the index, values[0] elsewhere; an index out of range has no place."""
    values.builder.meet(values.shape[0], 2)
    size = depth[0] if isinstance(depth[0], (int, d.Poly)) else d.rounded("trunc", depth[0])
    rank = indices.rank + 1
    if not -rank <= axis < rank:
        raise ShapeError(f"{indices.builder.origin}: axis {axis} of rank {rank}")
    axis %= rank
    shape = [*indices.shape[:axis], size, *indices.shape[axis:]]
    return tensor_map(shape, values.dtype, lambda *i: select(
        equal(from_end(indices.at(*i[:axis], *i[axis + 1:]), size), i[axis]), values.at(1), values.at(0)))


@op("CumSum", since=11)
def cum_sum(x: Tensor, axis: Const, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return tensor_prefix(x, int(axis.reshape(-1)[0]), "add", bool(exclusive), bool(reverse))


@op("CumProd", since=26)
def cum_prod(x: Tensor, axis: Const, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return tensor_prefix(x, int(axis.reshape(-1)[0]), "mul", bool(exclusive), bool(reverse))


@op("ReverseSequence", since=10)
def reverse_sequence(x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first sequence_lens[batch] steps of time backwards, the rest as they are."""
    def source(*i: Expr) -> Expr:
        step, length = i[time_axis], cast(sequence_lens.at(i[batch_axis]), "ix")
        back = select(less(step, length), length - 1 - step, select(less(length, 0), length, step))
        return x.at(*i[:time_axis], back, *i[time_axis + 1:])
    return tensor_map(x.shape, x.dtype, source)


@op("Compress", since=9)
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices along `axis` (of the flat input without one) where the condition holds; it may be shorter than the axis."""
    if axis is None:
        x, axis = x.reshape(product(x.shape)), 0
    return gather(x, positions(condition), axis=axis)
