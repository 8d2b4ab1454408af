"""Sampling at places that come from data: DeformConv, RoiAlign, MaxRoiPool."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import product as combinations

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Tensor, apply, builder, cast, const, dim, product, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import guard
from gpuonnx.ir.formula import both, equal, greater, less, less_equal, maximum, minimum, select
from gpuonnx.ir.types import compute
from gpuonnx.ops.matmul import matrix_product
from gpuonnx.ops.registry import op
from gpuonnx.ops.window import Ints, Window, spatial

Tap = tuple[Expr, Expr]


def clamped(place: Expr, size: Dim) -> Expr:
    """A position (float or index) as an index within an axis."""
    return minimum(maximum(cast(place, "ix"), dim(0)), dim(size - 1))


def taps(x: Expr, size: Dim) -> list[Tap]:
    """(index, weight) of both neighbours of a position; what lies outside has weight 0."""
    first = apply("floor", x)
    found = []
    for step, weight in ((0.0, 1.0 - (x - first)), (1.0, x - first)):
        place = first + step
        inside = both(less_equal(const(0.0, x.dtype), place), less_equal(place, cast(dim(size - 1), x.dtype)))
        found.append((clamped(place, size), select(inside, weight, const(0.0, x.dtype))))
    return found


def sampled(x: Tensor, lead: Sequence[Expr], axes: Sequence[Sequence[Tap]], wide: str) -> Expr:
    """The weighted sum over all combinations of the axes' taps; a weight of 0 hides what stands there."""
    total: Expr | None = None
    for chosen in combinations(*axes):
        weight = chosen[0][1]
        for _, w in chosen[1:]:
            weight = weight * w
        value = cast(x.at(*lead, *(place for place, _ in chosen)), wide)
        part = select(equal(weight, 0.0), const(0.0, wide), value * weight)
        total = part if total is None else total + part
    assert total is not None
    return total


@op("DeformConv", since=19)
def deform_conv(X: Tensor, W: Tensor, offset: Tensor, B: Tensor | None = None, mask: Tensor | None = None, *, dilations: Ints = None,
                group: int = 1, kernel_shape: Ints = None, offset_group: int = 1, pads: Ints = None, strides: Ints = None) -> Tensor:
    """A convolution whose every tap is moved by `offset` and weighted by `mask`: samples as columns, then a matrix product."""
    kernel = [int(builder().ask(s)) for s in (kernel_shape or W.shape[2:])]
    window = Window.of(spatial(X), kernel, "NOTSET", dilations, pads, strides)
    rank, count = window.rank, product(kernel)
    wide = compute(X.dtype)
    per_offset, per_group = d.floordiv(X.shape[1], offset_group), d.floordiv(X.shape[1], group)
    offsets = offset.reshape(offset.shape[0], offset_group, *kernel, rank, *window.out)
    masks = None if mask is None else mask.reshape(mask.shape[0], offset_group, *kernel, *window.out)

    def column(n: Expr, c: Expr, *rest: Expr) -> Expr:
        tap, out = rest[:rank], rest[rank:]
        which = c // dim(per_offset)
        found = [taps(cast(place, wide) + offsets.at(n, which, *tap, a, *out), size)
                 for a, (place, size) in enumerate(zip(window.places(out, tap), spatial(X), strict=True))]
        value = sampled(X, (n, c), found, wide)
        return value if masks is None else value * masks.at(n, which, *tap, *out)
    places, batch = product(window.out), X.shape[0]
    columns = tensor_map((batch, X.shape[1], *kernel, *window.out), X.dtype, column).reshape(batch, group, per_group * count, places)
    weights = W.reshape(1, group, d.floordiv(W.shape[0], group), per_group * count)
    y = matrix_product(weights, columns).reshape(batch, W.shape[0], *window.out)
    return y if B is None else y + B.reshape(B.shape[0], *[1] * rank)


@op("RoiAlign", since=16)
def roi_align(X: Tensor, rois: Tensor, batch_indices: Tensor, *, coordinate_transformation_mode: str = "half_pixel", mode: str = "avg",
              output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0) -> Tensor:
    """Bilinear samples in the cells of every region, averaged (or the largest weighted corner)."""
    if mode not in ("avg", "max"):
        raise ModelError(f"{builder().origin}: mode {mode!r} is neither avg nor max")
    centred = coordinate_transformation_mode == "half_pixel"
    cells, wide = (output_height, output_width), compute(X.dtype)

    def extent(r: Expr, a: int) -> tuple[Expr, Expr]:
        """Start and length of region r along axis a (0: rows)."""
        first, last = (cast(rois.at(r, k), wide) * spatial_scale - (0.5 if centred else 0.0) for k in (1 - a, 3 - a))
        return first, last - first if centred else maximum(last - first, const(1.0, wide))

    def samples(r: Expr, a: int) -> Expr:
        return dim(sampling_ratio) if sampling_ratio > 0 else cast(apply("ceil", extent(r, a)[1] / float(cells[a])), "ix")

    def most(a: int) -> Dim:
        if sampling_ratio > 0:
            return sampling_ratio
        counts = tensor_map((rois.shape[0],), "i64", lambda r: maximum(cast(samples(r, a), "i64"), const(1, "i64")))
        found: Dim = d.dmax(builder().read(counts.max()).item(), 1)
        return found

    def cell(r: Expr, at: Expr, k: Expr, a: int) -> Expr:
        first, length = extent(r, a)
        size = length / float(cells[a])
        return first + cast(at, wide) * size + (cast(k, wide) + 0.5) * size / cast(samples(r, a), wide)

    def corners(position: Expr, size: Dim) -> list[Tap]:
        low = maximum(position, const(0.0, wide))
        base = clamped(apply("floor", low), size)
        last = less_equal(dim(size - 1), base)
        part = select(last, const(0.0, wide), low - cast(base, wide))
        valid = both(less_equal(const(-1.0, wide), position), less_equal(position, cast(dim(size), wide)))
        return [(base, select(valid, 1.0 - part, const(0.0, wide))), (minimum(base + 1, dim(size - 1)), select(valid, part, const(0.0, wide)))]

    def element(r: Expr, c: Expr, i: Expr, j: Expr, k: Expr, m: Expr) -> Expr:
        axes = [corners(cell(r, at, n, a), X.shape[2 + a]) for a, (at, n) in enumerate(((i, k), (j, m)))]
        batch = cast(batch_indices.at(r), "ix")
        parts = [cast(X.at(batch, c, row, column), wide) * (u * v) for (row, u), (column, v) in combinations(*axes)]
        value = parts[0] + parts[1] + parts[2] + parts[3] if mode == "avg" else maximum(maximum(parts[0], parts[1]), maximum(parts[2], parts[3]))
        used = both(less(k, samples(r, 0)), less(m, samples(r, 1)))
        return guard(used, value, const(0.0 if mode == "avg" else float("-inf"), wide))
    shape = (rois.shape[0], X.shape[1], *cells)
    folded = tensor_reduce((*shape, most(0), most(1)), [4, 5], "sum" if mode == "avg" else "max", X.dtype, element)

    def finished(r: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        count = maximum(samples(r, 0), dim(0)) * maximum(samples(r, 1), dim(0))
        if mode == "avg":
            return folded.at(r, c, i, j) / cast(maximum(count, dim(1)), wide)
        return select(greater(count, dim(0)), folded.at(r, c, i, j), const(0.0, wide))
    return tensor_map(shape, X.dtype, finished)


@op("RoiAlign", since=10)
def roi_align_10(X: Tensor, rois: Tensor, batch_indices: Tensor, *, mode: str = "avg", output_height: int = 1, output_width: int = 1,
                 sampling_ratio: int = 0, spatial_scale: float = 1.0) -> Tensor:
    return roi_align(X, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", mode=mode, output_height=output_height,
                     output_width=output_width, sampling_ratio=sampling_ratio, spatial_scale=spatial_scale)


@op("MaxRoiPool", since=1)
def max_roi_pool(X: Tensor, rois: Tensor, *, pooled_shape: list[int], spatial_scale: float = 1.0) -> Tensor:
    """The largest element of every cell of every region (batch entry, x1, y1, x2, y2); an empty cell gives 0."""
    wide = compute(X.dtype)

    def corner(r: Expr, k: int) -> Expr:
        return cast(apply("floor", cast(rois.at(r, k), wide) * spatial_scale + 0.5), "ix")

    def length(r: Expr, a: int) -> Expr:
        return maximum(corner(r, 4 - a) - corner(r, 2 - a) + 1, dim(1))

    def bounds(r: Expr, at: Expr, a: int) -> tuple[Expr, Expr]:
        size = cast(length(r, a), wide) / float(pooled_shape[a])
        first, last = apply("floor", cast(at, wide) * size), apply("ceil", (cast(at, wide) + 1.0) * size)
        start, end = (minimum(maximum(cast(e, "ix") + corner(r, 2 - a), dim(0)), dim(X.shape[2 + a])) for e in (first, last))
        return start, end

    def most(a: int) -> Dim:
        widest = tensor_map((rois.shape[0],), "i64", lambda r: cast(minimum(length(r, a) // pooled_shape[a] + 2, dim(X.shape[2 + a])), "i64"))
        found: Dim = d.dmax(builder().read(widest.max()).item(), 1)
        return found

    def element(r: Expr, c: Expr, i: Expr, j: Expr, k: Expr, m: Expr) -> Expr:
        (top, bottom), (left, right) = bounds(r, i, 0), bounds(r, j, 1)
        value = X.at(cast(rois.at(r, 0), "ix"), c, clamped(top + k, X.shape[2]), clamped(left + m, X.shape[3]))
        return guard(both(less(top + k, bottom), less(left + m, right)), value, const(float("-inf"), wide))
    shape = (rois.shape[0], X.shape[1], *pooled_shape)
    largest = tensor_reduce((*shape, most(0), most(1)), [4, 5], "max", X.dtype, element)
    lowest = const(float("-inf"), wide)
    return tensor_map(shape, X.dtype, lambda *i: select(equal(largest.at(*i), lowest), const(0.0, wide), largest.at(*i)))
