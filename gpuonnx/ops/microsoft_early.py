"""com.microsoft: operators that ONNX took over later, and small ones that exporters (PyTorch, skl2onnx, tf2onnx) have written into files."""
from __future__ import annotations

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Tensor, builder, constant, dim, size_scalar, tensor_map
from gpuonnx.ir.expr import Expr, apply, cast, const
from gpuonnx.ir.formula import both, less_equal, maximum, minimum, select, sqrt
from gpuonnx.ops import image, index, search, shape
from gpuonnx.ops.conv import conv_transpose
from gpuonnx.ops.matmul import matrix_product, transposed
from gpuonnx.ops.microsoft import microsoft
from gpuonnx.ops.registry import Const, Dims
from gpuonnx.ops.search_steps import NONE, marked
from gpuonnx.ops.window import Ints


@microsoft("ExpandDims")
def expand_dims(x: Tensor, axis: Const) -> Tensor:
    return x.unsqueeze([int(axis.reshape(-1)[0])])


@microsoft("GatherND")
def gather_nd(data: Tensor, indices: Tensor) -> Tensor:
    return index.gather_nd(data, indices)


@microsoft("GridSample")
def grid_sample(x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros") -> Tensor:
    return image.grid_sample_16(x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


@microsoft("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    return shape.trilu(x, k, upper=upper)


@microsoft("Range")
def range_of(start: Tensor, limit: Tensor, delta: Tensor | None = None) -> Tensor:
    return shape.range_11(start, limit, constant(1, start.dtype) if delta is None else delta)


@microsoft("Pad")
def pad(data: Tensor, pads: Dims, value: Tensor | None = None, *, mode: str = "constant") -> Tensor:
    return shape.pad(data, pads, value, mode=mode)


@microsoft("Unique")
def unique(x: Tensor) -> tuple[Tensor, ...]:
    """The distinct elements as they come, which of them each is, and how often each stands there."""
    values, _, places, counts = search.unique(x, sorted=0)
    return values, places, counts


@microsoft("UnfoldTensor")
def unfold_tensor(x: Tensor, *, dim: int = -1, size: int, step: int = 1) -> Tensor:
    """All stretches of `size` on an axis, `step` apart, each along a new last axis."""
    axis = x.axis(dim)
    builder().require(x.shape[axis] - size, f"size {size} must be at most {x.shape[axis]}")
    count = d.floordiv(x.shape[axis] - size, step) + 1
    return x.view((*x.shape[:axis], count, *x.shape[axis + 1:], size), lambda *i: [*i[:axis], i[axis] * step + i[-1], *i[axis + 1:-1]])


@microsoft("CDist")
def cdist(a: Tensor, b: Tensor, *, metric: str = "sqeuclidean") -> Tensor:
    """Distances of the rows of a[M, N] from those of b[K, N]."""
    if metric not in ("euclidean", "sqeuclidean"):
        raise ModelError(f"{builder().origin}: metric {metric!r} is neither euclidean nor sqeuclidean, which ONNX Runtime knows")
    lengths = [(t * t).sum([1], keepdims=True) for t in (a, b)]
    squares = maximum(lengths[0] - matrix_product(a, transposed(b)) * 2.0 + transposed(lengths[1]), 0.0)
    return sqrt(squares) if metric == "euclidean" else squares


@microsoft("MatMulInteger16")
def matmul_integer_16(a: Tensor, b: Tensor) -> Tensor:
    kind = "i32" if a.dtype == "i16" else "u32"
    return matrix_product(a.cast(kind), b.cast(kind))


@microsoft("NGramRepeatBlock")
def ngram_repeat_block(input_ids: Tensor, scores: Tensor, *, ngram_size: int) -> Tensor:
    """scores[B, V], -inf for words that would complete a run of `ngram_size` words for the second time."""
    old = marked(scores, input_ids, size_scalar(input_ids.shape[1]), ngram_size)
    return select(old > 0, NONE, scores)


@microsoft("ConvTransposeWithDynamicPads")
def conv_transpose_with_dynamic_pads(x: Tensor, w: Tensor, pads: Const | None = None, b: Tensor | None = None, *, auto_pad: str = "NOTSET",
                                     dilations: Ints = None, group: int = 1, kernel_shape: Ints = None, output_padding: Ints = None,
                                     strides: Ints = None) -> Tensor:
    given = None if pads is None else [int(p) for p in pads.reshape(-1)]
    return conv_transpose(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, output_padding=output_padding,
                          pads=given, strides=strides)


@microsoft("SampleOp")
def sample(x: Tensor) -> Tensor:
    return x


@microsoft("CropAndResize")
def crop_and_resize(x: Tensor, rois: Tensor, batch_indices: Tensor, crop_size: Dims, *, extrapolation_value: float = 0.0,
                    mode: str = "bilinear") -> Tensor:
    """The boxes rois[R, 4] (top, left, bottom, right, as shares of x[N, C, H, W] less one row and column), each of one image, at one size."""
    if mode not in ("bilinear", "nearest"):
        raise ModelError(f"{builder().origin}: mode {mode!r} is neither bilinear nor nearest")
    ends = x.shape[2:]

    def place(r: Expr, at: Expr, k: int) -> Expr:
        low, high, last = rois.at(r, k), rois.at(r, k + 2), cast(dim(ends[k] - 1), x.dtype)
        several = cast(dim(d.dmax(crop_size[k] - 1, 1)), x.dtype)
        middle = (low + high) * 0.5 * last
        return select(less_equal(dim(crop_size[k]), 1), middle, low * last + cast(at, x.dtype) * ((high - low) * last / several))

    def element(r: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        points, entry = [place(r, i, 0), place(r, j, 1)], cast(batch_indices.at(r), "ix")

        def inside(k: int) -> Expr:
            return both(less_equal(const(0.0, x.dtype), points[k]), less_equal(points[k], cast(dim(ends[k] - 1), x.dtype)))

        def index_of(value: Expr, k: int) -> Expr:
            return minimum(maximum(cast(value, "ix"), dim(0)), dim(ends[k] - 1))

        def pixel(y: Expr, z: Expr) -> Expr:
            return x.at(entry, c, index_of(y, 0), index_of(z, 1))
        if mode == "nearest":
            found = pixel(*(apply("floor", p + 0.5) for p in points))
        else:
            corners = [(apply("floor", p), apply("ceil", p)) for p in points]
            shares = [p - low for p, (low, _) in zip(points, corners, strict=True)]
            rows = [pixel(y, corners[1][0]) + (pixel(y, corners[1][1]) - pixel(y, corners[1][0])) * shares[1] for y in corners[0]]
            found = rows[0] + (rows[1] - rows[0]) * shares[0]
        return select(both(inside(0), inside(1)), found, const(extrapolation_value, x.dtype))
    return tensor_map((rois.shape[0], x.shape[1], crop_size[0], crop_size[1]), x.dtype, element)
