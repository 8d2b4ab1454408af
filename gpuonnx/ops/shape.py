"""Constants, shapes, and operators that move elements without computing on them."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Dim, Expr, Tensor, concat, constant, dim, full, product, size_scalar, sizes, tensor_map
from gpuonnx.ir.expr import cast, const, guard
from gpuonnx.ir.formula import both, equal, greater_equal, less, less_equal, maximum, minimum, select
from gpuonnx.ir.types import BY_ONNX, compute, of_numpy
from gpuonnx.ops.registry import Const, Dims, op


@op("Constant", since=11)
def constant_11(*, value: Any = None, sparse_value: Any = None, value_float: float | None = None, value_floats: list[float] | None = None,
                value_int: int | None = None, value_ints: list[int] | None = None, value_string: str | None = None,
                value_strings: list[str] | None = None) -> Tensor:
    if value is not None:
        return constant(value)
    if sparse_value is not None:
        return constant(dense(sparse_value))
    for given, dtype in ((value_float, "f32"), (value_floats, "f32"), (value_int, "i64"), (value_ints, "i64"),
                         (value_string, "str"), (value_strings, "str")):
        if given is not None:
            return constant(given, dtype)
    raise ModelError("a Constant needs one of its attributes")


@op("Constant", since=1)
def constant_1(*, value: Any) -> Tensor:
    return constant(value)


def dense(sparse: Any) -> np.ndarray:
    """A SparseTensorProto as an array: indices are flat positions, or one row of coordinates a value."""
    from onnx import numpy_helper
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    places = (indices,) if indices.ndim == 1 else tuple(indices.T)
    (out.reshape(-1) if indices.ndim == 1 else out)[places] = values
    return out


@op("ConstantOfShape", since=9)
def constant_of_shape(shape: Dims, *, value: Any = None) -> Tensor:
    fill = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return full(shape, fill.reshape(-1)[0], of_numpy(fill.dtype))


@op("Shape", since=1)
def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return sizes(x.shape[slice(start, end)])


@op("Size", since=1)
def size_of(x: Tensor) -> Tensor:
    return size_scalar(product(x.shape))


@op("Identity", since=1)
def identity(x: Tensor) -> Tensor:
    return x


@op("Reshape", since=5)
def reshape(x: Tensor, shape: Dims, *, allowzero: int = 0) -> Tensor:
    """0 keeps the input's size (unless `allowzero`), one -1 takes what is left. A size read from data may turn out to be either."""
    wanted = [x.shape[i] if not allowzero and d.known(s) and s == 0 and i < x.rank else s for i, s in enumerate(shape)]
    unsure = [not isinstance(s, int) and s.lo < 0 for s in wanted]
    given = [d.select(d.eq(s, 0), x.shape[i], s) if unsure[i] and i < x.rank and not allowzero else s for i, s in enumerate(wanted)]
    literal = [i for i, s in enumerate(wanted) if isinstance(s, int) and s < 0]
    if len(literal) > 1 or any(wanted[i] != -1 for i in literal):
        raise ShapeError(f"{x.builder.origin}: {shape} is no shape")
    for i, s in enumerate(wanted):
        if i in literal or unsure[i] and not literal:
            others = product(given[:i] + given[i + 1:])
            rest = d.floordiv(product(x.shape), others) if not (d.known(others) and others == 0) else 0
            given[i] = rest if i in literal else d.select(d.lt(s, 0), rest, given[i])
    return x.reshape(*given)


@op("Reshape", since=1)
def reshape_1(x: Tensor, *, shape: list[int] | None = None) -> Tensor:
    return reshape(x, list(shape or []))


@op("Flatten", since=1)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.flatten(axis)


@op("Transpose", since=1)
def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return x.transpose(range(x.rank)[::-1] if perm is None else perm)


@op("Squeeze", since=13)
def squeeze(x: Tensor, axes: Const | None = None) -> Tensor:
    """Without axes, every axis that has size 1 in this variant goes."""
    if axes is None:
        axes = np.array([a for a, s in enumerate(x.shape) if x.builder.ask(d.eq(s, 1))], np.int64)
    return x.squeeze(axes.tolist())


@op("Squeeze", since=1)
def squeeze_1(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    return squeeze(x, None if axes is None else np.array(axes, np.int64))


@op("Unsqueeze", since=13)
def unsqueeze(x: Tensor, axes: Const) -> Tensor:
    return x.unsqueeze(axes.ravel().tolist())


@op("Unsqueeze", since=1)
def unsqueeze_1(x: Tensor, *, axes: list[int]) -> Tensor:
    return x.unsqueeze(axes)


@op("Concat", since=4)
def concat_4(*xs: Tensor, axis: int) -> Tensor:
    return concat(xs, axis)


@op("Concat", since=1)
def concat_1(*xs: Tensor, axis: int = 1) -> Tensor:
    return concat(xs, axis)


@op("Split", since=13)
def split(x: Tensor, split: Dims | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int) -> list[Tensor]:
    """Without sizes: equal parts, the last one smaller where that does not come out even."""
    axis = x.axis(axis)
    size = x.shape[axis]
    if split is None:
        count = num_outputs or outputs
        part = -d.floordiv(-size, count)
        split = [part] * (count - 1) + [size - part * (count - 1)]
    x.builder.require(sum(split[1:], split[0]) - size, f"the parts of a Split make up its axis of {size}", equal=True)
    if len(split) != outputs:
        raise ShapeError(f"{x.builder.origin}: {len(split)} parts for {outputs} outputs")
    starts = [sum(split[:k]) for k in range(len(split))]
    return [x.slice(axis, start, part) for start, part in zip(starts, split, strict=True)]


@op("Split", since=2)
def split_2(x: Tensor, *, axis: int = 0, split: list[int] | None = None, outputs: int) -> list[Tensor]:
    return split_parts(x, split, axis, outputs)


@op("Split", since=1)
def split_1(x: Tensor, parts: Dims | None = None, *, axis: int | None = None, split: list[int] | None = None, outputs: int) -> list[Tensor]:
    return split_parts(x, parts or split, axis or 0, outputs)


def split_parts(x: Tensor, parts: Sequence[Dim] | None, axis: int, outputs: int) -> list[Tensor]:
    return split(x, None if parts is None else list(parts), axis=axis, outputs=outputs)


UNBOUNDED = 2**31 - 1


def clamped(bound: Dim, size: Dim, low: Dim, high: Dim) -> Dim:
    """A Slice bound: from the end if negative, then into [low, high]; beyond +-2**31 it means without end."""
    if isinstance(bound, int) and abs(bound) >= UNBOUNDED:
        return high if bound > 0 else low
    place: Dim = d.dmin(d.dmax(d.select(d.lt(bound, 0), bound + size, bound), low), high)
    return place


FARTHEST = 1 << 31


@op("Slice", since=10)
def slice_10(x: Tensor, starts: Dims, ends: Dims, axes: Const | None = None, steps: Const | None = None) -> Tensor:
    where = range(len(starts)) if axes is None else [x.axis(int(a)) for a in axes.ravel()]
    by = [1] * len(starts) if steps is None else [min(max(int(s), -FARTHEST), FARTHEST) for s in steps.ravel()]
    for start, end, axis, step in zip(starts, ends, where, by, strict=True):
        size = x.shape[axis]
        if step == 0:
            raise ShapeError(f"{x.builder.origin}: a step of a Slice is 0")
        if step > 0:
            first, last = clamped(start, size, 0, size), clamped(end, size, 0, size)
            count = -d.floordiv(first - last, step)
            count = count if d.at_most(first, last) else d.dmax(0, count)
        else:
            first, last = clamped(start, size, 0, size - 1), clamped(end, size, -1, size - 1)
            count = d.dmax(0, -d.floordiv(last - first, -step))
        x = x.slice(axis, first, count, step)
    return x


@op("Slice", since=1)
def slice_1(x: Tensor, *, axes: list[int] | None = None, ends: list[int], starts: list[int]) -> Tensor:
    return slice_10(x, list(starts), list(ends), None if axes is None else np.array(axes, np.int64))


@op("Expand", since=8)
def expand(x: Tensor, shape: Dims) -> Tensor:
    return x.expand(shape)


@op("Tile", since=6)
def tile(x: Tensor, repeats: Dims) -> Tensor:
    if len(repeats) != x.rank:
        raise ShapeError(f"{x.builder.origin}: {len(repeats)} repeats for {x.rank} axes")
    shape = [s * r for s, r in zip(x.shape, repeats, strict=True)]
    if all(is_one(s) or is_one(r) for s, r in zip(x.shape, repeats, strict=True)):
        return x.expand(shape)
    apart = x.reshape(*(n for s in x.shape for n in (1, s)))
    return apart.expand([n for s, r in zip(x.shape, repeats, strict=True) for n in (r, s)]).reshape(*shape)


def is_one(size: Dim) -> bool:
    return isinstance(size, int) and size == 1


@op("Tile", since=1)
def tile_1(x: Tensor, tiles: Dims, axis: Const) -> Tensor:
    where = x.axis(int(axis.reshape(-1)[0]))
    return tile(x, [tiles[0] if a == where else 1 for a in range(x.rank)])


@op("Range", since=11)
def range_11(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """start, start + delta, ... up to limit (exclusive)."""
    count = range_size(start, limit, delta)
    return tensor_map([count], start.dtype, lambda i: element(start) + cast(i, compute(start.dtype)) * element(delta))


def element(t: Tensor) -> Expr:
    """The only element of a tensor."""
    return t.at(*([0] * t.rank))


def range_size(start: Tensor, limit: Tensor, delta: Tensor) -> Dim:
    owner = start.builder
    if start.dtype == "f64":
        first, end, by = (float(owner.numbers(t).reshape(-1)[0]) for t in (start, limit, delta))
        return steps_between(owner.origin, first, end, by)
    known = [owner.constants[t.value].reshape(-1)[0].item() for t in (start, limit, delta) if t.value in owner.constants]
    if len(known) == 3:
        first, end, by = known
        return steps_between(owner.origin, first, end, by)
    a, b, step = (owner.read(t).reshape(-1)[0] for t in (start, limit, delta))
    if start.kind == "f":
        steps: Dim = d.rounded("ceil", d.real_op("div", d.real_op("sub", d.real(b), d.real(a)), d.real(step)))
    else:
        owner.require(step * step - 1, "a Range steps by something other than 0")
        steps = -d.floordiv(a - b, step)
    return at_least(steps, 0)


def steps_between(origin: str, first: Any, end: Any, by: Any) -> int:
    """How many steps from `first` come before `end`."""
    if by == 0 or not all(map(math.isfinite, (first, end, by))):
        raise ShapeError(f"{origin}: no range goes from {first} to {end} by {by}")
    return max(0, math.ceil((end - first) / by) if isinstance(by, float) else int(-((first - end) // by)))


def at_least(size: Dim, least: Dim) -> Dim:
    bounded: Dim = d.dmax(least, size)
    return bounded


@op("EyeLike", since=9)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = x.dtype if dtype is None else BY_ONNX[dtype]
    one, zero = const(1, compute(kind)), const(0, compute(kind))
    return tensor_map(x.shape, kind, lambda row, column: select(equal(row + k, column), one, zero))


@op("Trilu", since=14)
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The upper (column - row >= k) or lower (column - row <= k) triangle of matrices; zero elsewhere."""
    def kept(*i: Expr) -> Expr:
        offset = dim(0) if k is None else cast(element(k), "ix")
        inside = greater_equal(i[-1], i[-2] + offset) if upper else less_equal(i[-1], i[-2] + offset)
        return select(inside, x.at(*i), const(0, compute(x.dtype)))
    return tensor_map(x.shape, x.dtype, kept)


@op("DepthToSpace", since=1)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    b, c, h, w = x.shape
    s, depth = blocksize, d.floordiv(c, blocksize * blocksize)
    if mode == "DCR":
        blocks = x.reshape(b, s, s, depth, h, w).transpose([0, 3, 4, 1, 5, 2])
    else:
        blocks = x.reshape(b, depth, s, s, h, w).transpose([0, 1, 4, 2, 5, 3])
    return blocks.reshape(b, depth, h * s, w * s)


@op("SpaceToDepth", since=1)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    b, c, h, w = x.shape
    s, rows, columns = blocksize, d.floordiv(h, blocksize), d.floordiv(w, blocksize)
    blocks = x.reshape(b, c, rows, s, columns, s).transpose([0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4])
    return blocks.reshape(b, c * s * s, rows, columns)


@op("Pad", since=11)
def pad(x: Tensor, pads: Dims, value: Tensor | None = None, axes: Const | None = None, *, mode: str = "constant") -> Tensor:
    """`pads`: begins, then ends, of `axes`; negative ones cut. Modes constant, edge, reflect (about the edge's centre), wrap."""
    where = list(range(x.rank)) if axes is None else [x.axis(int(a)) for a in axes.ravel()]
    if len(pads) != 2 * len(where):
        raise ShapeError(f"{x.builder.origin}: {len(pads)} pads for {len(where)} axes")
    begins, ends = dict(zip(where, pads, strict=False)), dict(zip(where, pads[len(where):], strict=True))
    if mode != "constant":
        x = cropped(x, begins, ends)
    shape = [s + begins.get(a, 0) + ends.get(a, 0) for a, s in enumerate(x.shape)]
    padded = [a for a in where if not (is_zero(begins[a]) and is_zero(ends[a]))]
    if not padded:
        return x
    if mode in PADDED:
        return tensor_map(shape, x.dtype, lambda *i: x.at(*(PADDED[mode](k - dim(begins[a]), x.shape[a]) if a in padded else k
                                                          for a, k in enumerate(i))))
    if mode != "constant":
        raise ModelError(f"Pad knows the modes constant, edge, reflect and wrap, here {mode!r}")
    fill = const("" if x.dtype == "str" else 0, compute(x.dtype)) if value is None else element(value)

    def inside(*i: Expr) -> Expr:
        source = [k - dim(begins[a]) if a in padded else k for a, k in enumerate(i)]
        held = [both(less_equal(dim(0), source[a]), less(source[a], dim(x.shape[a]))) for a in padded]
        everywhere = held[0]
        for h in held[1:]:
            everywhere = both(everywhere, h)
        return guard(everywhere, x.at(*source), fill)
    return tensor_map(shape, x.dtype, inside)


def is_zero(size: Dim) -> bool:
    return isinstance(size, int) and size == 0


def cropped(x: Tensor, begins: dict[int, Dim], ends: dict[int, Dim]) -> Tensor:
    """Negative pads cut first, and are then 0."""
    for a in begins:
        before, after = (p if isinstance(p, int) and p < 0 else 0 for p in (begins[a], ends[a]))
        if before or after:
            x = x.slice(a, -before, x.shape[a] + before + after)
            begins[a], ends[a] = begins[a] - before, ends[a] - after
    return x


def edge(k: Expr, size: Dim) -> Expr:
    return maximum(minimum(k, dim(size - 1)), 0)


def reflected(k: Expr, size: Dim) -> Expr:
    """Back and forth between 0 and size - 1, the ends once."""
    around = dim((size - 1) * 2)
    there = k % maximum(around, 1)
    return minimum(there, around - there)


def wrapped(k: Expr, size: Dim) -> Expr:
    return k % dim(size)


PADDED = {"edge": edge, "reflect": reflected, "wrap": wrapped}


@op("Pad", since=2)
def pad_2(x: Tensor, *, mode: str = "constant", pads: list[int], value: float = 0.0) -> Tensor:
    return pad(x, list(pads), constant(value).cast(x.dtype), mode=mode)


@op("Pad", since=1)
def pad_1(x: Tensor, *, mode: str = "constant", paddings: list[int], value: float = 0.0) -> Tensor:
    return pad_2(x, mode=mode, pads=paddings, value=value)


@op("CenterCropPad", since=18)
def center_crop_pad(x: Tensor, shape: Dims, *, axes: list[int] | None = None) -> Tensor:
    """Cut or pad with zeros around the middle of each axis, to `shape`."""
    where = list(range(x.rank)) if axes is None else [x.axis(a) for a in axes]
    wanted = dict(zip(where, shape, strict=True))
    out = [wanted.get(a, s) for a, s in enumerate(x.shape)]
    begins = {a: center_start(x.shape[a], wanted[a]) for a in where}
    zero = const("" if x.dtype == "str" else 0, compute(x.dtype))

    def placed(*i: Expr) -> Expr:
        source = [k + dim(begins[a]) if a in begins else k for a, k in enumerate(i)]
        inside = const(True, "bool")
        for a in where:
            inside = both(inside, both(less_equal(dim(0), source[a]), less(source[a], dim(x.shape[a]))))
        return guard(inside, x.at(*source), zero)
    return tensor_map(out, x.dtype, placed)


def center_start(size: Dim, wanted: Dim) -> Dim:
    """Where the output begins in the input: negative when padding; an odd one more goes to the end."""
    start: Dim = d.select(d.lt(size, wanted), -d.floordiv(wanted - size, 2), d.floordiv(size - wanted, 2))
    return start
