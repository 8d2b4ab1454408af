"""Sampling images: GridSample, AffineGrid, Col2Im, CenterCropPad."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Tensor, builder, cast, const, dim, product, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import apply, guard
from gpuonnx.ir.formula import absolute, both, equal, less, less_equal, maximum, minimum, select
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import Dims, op
from gpuonnx.ops.resize import cubic
from gpuonnx.ops.window import Ints, Window


def position(coordinate: Expr, size: Dim, align_corners: int) -> Expr:
    """From [-1, 1] to elements: the ends are the centres of the outer elements, or their outer edges."""
    length = cast(dim(size), coordinate.dtype)
    if align_corners:
        return (coordinate + 1.0) / 2.0 * (length - 1.0)
    return ((coordinate + 1.0) * length - 1.0) / 2.0


@op("AffineGrid", since=20)
def affine_grid(theta: Tensor, size: Dims, *, align_corners: int = 0) -> Tensor:
    """theta [N, n, n + 1] maps the places of an output of `size` [N, C, (D,) H, W] to [N, (D,) H, W, n], in [-1, 1], x first."""
    spatial, wide = list(size[2:]), compute(theta.dtype)
    n = len(spatial)
    if theta.rank != 3 or n not in (2, 3):
        raise ShapeError(f"{builder().origin}: theta has 3 axes and size 4 or 5 numbers, here {theta.rank} and {len(size)}")
    for got, wanted in zip(theta.shape, (size[0], n, n + 1), strict=True):
        builder().meet(got, wanted)

    def centre(place: Expr, count: Dim) -> Expr:
        number, whole = cast(place, wide), cast(dim(count), wide)
        return number * 2.0 / maximum(whole - 1.0, 1.0) - 1.0 if align_corners else (number * 2.0 + 1.0) / whole - 1.0

    def element(b: Expr, *at: Expr) -> Expr:
        *where, axis = at
        total = cast(theta.at(b, axis, dim(n)), wide)
        for k in range(n):
            total = total + cast(theta.at(b, axis, dim(k)), wide) * centre(where[n - 1 - k], spatial[n - 1 - k])
        return total
    return tensor_map([size[0], *spatial, n], theta.dtype, element)


def reflected(x: Expr, size: Dim, align_corners: int) -> Expr:
    """Mirrored at the borders until it is inside."""
    low = 0.0 if align_corners else -0.5
    length = cast(dim(size), x.dtype)
    span = length - 1.0 if align_corners else length
    away = absolute(x - low)
    safe = maximum(span, 1e-30)
    folds = apply("floor", away / safe)
    rest = away - folds * safe
    odd = equal(folds - apply("floor", folds / 2.0) * 2.0, 1.0)
    return select(less_equal(span, 0.0), const(0.0, x.dtype), select(odd, safe - rest, rest) + low)


def held_in(x: Expr, size: Dim, align_corners: int) -> Expr:
    """Moved to the nearest element where it is beyond the border; up to half an element out it may stay."""
    margin, last = const(0.0 if align_corners else 0.5, x.dtype), cast(dim(size - 1), x.dtype)
    moved: Expr = minimum(maximum(x, 0.0), last)
    return select(both(less_equal(-margin, x), less_equal(x, last + margin)), x, moved)


def sampled(x: Tensor, at: tuple[Expr, ...], places: Sequence[Expr], mode: str, align_corners: int) -> Expr:
    """The element at whole positions; what lies outside is 0, the border's, or mirrored."""
    inside: Expr = const(True, "bool")
    found = []
    for place, size in zip(places, x.shape[2:], strict=True):
        if mode == "reflection":
            mirrored = reflected(cast(place, "f64"), size, align_corners)
            place = cast(apply("rint", mirrored), "ix")
        if mode == "zeros":
            inside = both(inside, both(less_equal(dim(0), place), less(place, dim(size))))
        else:
            place = minimum(maximum(place, dim(0)), dim(size - 1))
        found.append(place)
    return guard(inside, cast(x.at(*at, *found), compute(x.dtype)), const(0, compute(x.dtype)))


@op("GridSample", since=20)
def grid_sample(X: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Tensor:
    """X[N, C, ...] read at grid[N, ..., axes], the last axis naming the innermost axis first."""
    rank = X.rank - 2
    supports = {"nearest": 0, "linear": 1, "bilinear": 1, "cubic": 2, "bicubic": 2}
    if mode not in supports or padding_mode not in ("zeros", "border", "reflection"):
        raise ModelError(f"{builder().origin}: mode {mode!r} or padding_mode {padding_mode!r} is not known")
    if grid.rank != X.rank:
        raise ShapeError(f"{builder().origin}: a grid of {grid.rank} axes for an image of {X.rank}; both must have the same number")
    builder().meet(grid.shape[-1], rank)
    builder().meet(grid.shape[0], X.shape[0])
    support = supports[mode]
    shape = (X.shape[0], X.shape[1], *grid.shape[1:-1])

    def element(*i: Expr) -> Expr:
        at = []
        for a in range(rank):
            c = cast(grid.at(i[0], *i[2:], dim(rank - 1 - a)), "f32" if compute(grid.dtype) == "f32" else "f64")
            x = position(c, X.shape[2 + a], align_corners)
            if padding_mode == "border":
                x = held_in(x, X.shape[2 + a], align_corners)
            elif padding_mode == "reflection" and support < 2:
                x = reflected(x, X.shape[2 + a], align_corners)
            at.append(x)
        if support == 0:
            return sampled(X, i[:2], [cast(apply("rint", x), "ix") for x in at], padding_mode, align_corners)
        return interpolated(X, i[:2], at, support, padding_mode, align_corners)
    return tensor_map(shape, X.dtype, element)


def interpolated(x: Tensor, at: tuple[Expr, ...], where: Sequence[Expr], support: int, mode: str, align_corners: int) -> Expr:
    """A weighted sum of the 2 * support elements each way around."""
    wide = compute(x.dtype)

    def along(axis: int, chosen: list[Expr]) -> Expr:
        if axis == len(where):
            return sampled(x, at, chosen, mode, align_corners)
        first = apply("floor", where[axis])
        total: Expr | None = None
        for tap in range(1 - support, support + 1):
            distance = where[axis] - (first + float(tap))
            weight = maximum(1.0 - absolute(distance), 0.0) if support == 1 else cast(cubic(-0.75, cast(distance, "f64")), distance.dtype)
            part = along(axis + 1, [*chosen, cast(first, "ix") + dim(tap)]) * cast(weight, wide)
            total = part if total is None else total + part
        assert total is not None
        return total
    return along(0, [])


@op("GridSample", since=16)
def grid_sample_16(X: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros") -> Tensor:
    return grid_sample(X, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


@op("Col2Im", since=18)
def col2im(input: Tensor, image_shape: Dims, block_shape: Dims, *, dilations: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    """Every element of the image is the sum of the block elements that were taken from it."""
    kernel = [int(builder().ask(k)) for k in block_shape]
    rank, taps = len(kernel), product([int(builder().ask(k)) for k in block_shape])
    window = Window.of(list(image_shape), kernel, "NOTSET", dilations, pads, strides)
    channels = d.floordiv(input.shape[1], taps)
    builder().meet(input.shape[1], channels * taps)
    builder().meet(input.shape[2], product(window.out))
    ranges = (input.shape[0], channels, *image_shape, *kernel)

    def element(*i: Expr) -> Expr:
        at, tap = i[2:2 + rank], i[2 + rank:]
        inside: Expr = const(True, "bool")
        column: Expr = dim(0)
        row: Expr = i[1]
        for k in range(rank):
            moved = at[k] + dim(window.before[k]) - tap[k] * dim(window.dilations[k])
            block = moved // dim(window.strides[k])
            fits = both(less_equal(dim(0), moved), less(block, dim(window.out[k])))
            inside = both(inside, both(fits, equal(block * dim(window.strides[k]), moved)))
            column = column * dim(window.out[k]) + block
            row = row * dim(kernel[k]) + tap[k]
        return guard(inside, input.at(i[0], row, column), const(0, compute(input.dtype)))
    return tensor_reduce(ranges, range(2 + rank, len(ranges)), "sum", input.dtype, element)


@op("CenterCropPad", since=18)
def center_crop_pad(input_data: Tensor, shape: Dims, *, axes: list[int] | None = None) -> Tensor:
    """Cut or filled with zeros on both sides; an odd element is cut from, or added to, the end."""
    chosen = [input_data.axis(a) for a in axes] if axes is not None else list(range(input_data.rank))
    sizes = list(input_data.shape)
    shifts: dict[int, Dim] = {}
    for a, wanted in zip(chosen, shape, strict=True):
        more, less_ = d.dmax(wanted - sizes[a], 0), d.dmax(sizes[a] - wanted, 0)
        shifts[a] = d.floordiv(less_, 2) - d.floordiv(more, 2)
        sizes[a] = wanted

    def element(*i: Expr) -> Expr:
        places = [e + dim(shifts[a]) if a in shifts else e for a, e in enumerate(i)]
        inside: Expr = const(True, "bool")
        for a in shifts:
            inside = both(inside, both(less_equal(dim(0), places[a]), less(places[a], dim(input_data.shape[a]))))
        return guard(inside, input_data.at(*places), const(0, compute(input_data.dtype)))
    return tensor_map(sizes, input_data.dtype, element)
