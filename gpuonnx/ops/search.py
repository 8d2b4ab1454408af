"""TopK, NonZero, Unique, NonMaxSuppression: hand-written kernels, and what they found gathered."""
from __future__ import annotations

from typing import Any

from gpuonnx.errors import ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Spec, Tensor, builder, call, cast, concat, const, dim, host, positions, product, tensor_map
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.formula import equal, less_equal, not_equal, select
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import Dims, op


def top(x: Tensor, k: Dim, axis: int, largest: int, in_order: int) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along an axis and their positions, in order; of equals the first come first."""
    axis = x.axis(axis)
    builder().require(x.shape[axis] - k, f"k must be at most {x.shape[axis]}, the size of axis {axis}")
    order = [a for a in range(x.rank) if a != axis] + [axis]
    rows = x.transpose(order)
    shape = (*rows.shape[:-1], k)
    flat = rows.reshape(product(rows.shape[:-1]), rows.shape[-1]).cast(compute(x.dtype))
    specs = [Spec(flat.dtype, (flat.shape[0], k)), Spec("i64", (flat.shape[0], k))]
    back = [order.index(a) for a in range(x.rank)]
    values, indices = (t.reshape(shape).transpose(back) for t in call("topk", flat, out=specs, largest=largest, sorted=in_order))
    return values.cast(x.dtype), indices


@op("TopK", since=10)
def top_k(X: Tensor, K: Dims, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    if len(K) != 1:
        raise ShapeError(f"{builder().origin}: K has {len(K)} elements, not 1")
    return top(X, K[0], axis, largest, sorted)


@op("TopK", since=1)
def top_k_1(X: Tensor, *, axis: int = -1, k: int) -> tuple[Tensor, Tensor]:
    return top(X, k, axis, 1, 1)


@op("NonZero", since=9)
def non_zero(X: Tensor) -> Tensor:
    """Coordinates of the elements that are not zero, one row an axis, in row-major order."""
    x = X.reshape(1) if X.rank == 0 else X
    count = product(x.shape)
    flags = x if x.dtype == "bool" else tensor_map(x.shape, "bool", lambda *i: not_equal(x.at(*i), const(0, compute(x.dtype))))
    flat = positions(flags.reshape(count))
    rows = [1] * x.rank
    for a in range(x.rank - 2, -1, -1):
        rows[a] = rows[a + 1] * x.shape[a + 1]
    found = [tensor_map((1, flat.shape[0]), "i64", lambda _, n, a=a: cast(
        cast(flat.at(n), "ix") // dim(rows[a]) % dim(x.shape[a]), "i64")) for a in range(x.rank)]
    return concat(found, 0) if X.rank else tensor_map((0, flat.shape[0]), "i64", lambda *_: const(0, "i64"))


@op("Unique", since=11)
def unique(X: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    """The distinct elements, or slices along `axis`, the first place of each, which of them each is, and how often each stands there."""
    if X.dtype == "str":
        return unique_text(X, axis, sorted)
    x = X.reshape(product(X.shape)) if axis is None else X
    along = x.axis(axis or 0)
    order = [along] + [a for a in range(x.rank) if a != along]
    narrow = "u8" if x.dtype == "bool" else compute(x.dtype)
    rows = x.transpose(order).reshape(x.shape[along], product([x.shape[a] for a in order[1:]])).cast(narrow)
    length = Spec("i64", (rows.shape[0],))
    first, inverse, counts, count = call("unique", rows, out=[length, length, length, Spec("i64", ())], sorted=sorted)
    found = builder().read(count).item()
    builder().require(x.shape[along] - found, "there are no more distinct elements than elements")
    indices, counts = first.slice(0, 0, found), counts.slice(0, 0, found)
    shape = [found if a == along else s for a, s in enumerate(x.shape)]
    y = tensor_map(shape, x.dtype, lambda *i: x.at(*i[:along], cast(indices.at(i[along]), "ix"), *i[along + 1:]))
    return y, indices, inverse, counts


def unique_text(x: Tensor, axis: int | None, in_order: int) -> tuple[Tensor, ...]:
    shape: list[Any] = [None] if axis is None else [None if a == x.axis(axis) else s for a, s in enumerate(x.shape)]
    some: Any = Spec("i64", (None,))  # type: ignore[arg-type]
    return host("unique", x, out=[Spec("str", tuple(shape)), some, some, some], why="text is handled in Python",  # type: ignore[no-any-return]
                axis=axis, sorted=in_order)


@op("NonMaxSuppression", since=10)
def non_max_suppression(boxes: Tensor, scores: Tensor, max_output_boxes_per_class: Dims | None = None, iou_threshold: Tensor | None = None,
                        score_threshold: Tensor | None = None, *, center_point_box: int = 0) -> Tensor:
    """Rows of (batch entry, class, box): the best boxes that overlap no better one too much, best first in each class."""
    meet = builder().meet
    batch, count = meet(boxes.shape[0], scores.shape[0]), meet(boxes.shape[1], scores.shape[2])
    most = d.dmin(d.dmax(max_output_boxes_per_class[0], 0), count) if max_output_boxes_per_class else 0
    classes = scores.shape[1]
    limits = [None if t is None else t.reshape() for t in (iou_threshold, score_threshold)]
    chosen = call("nms", boxes, scores, *limits, out=Spec("i64", (batch, classes, most)), centred=center_point_box)
    flat = chosen.reshape(batch * classes * most)
    places = positions(tensor_map(flat.shape, "bool", lambda n: less_equal(const(0, "i64"), flat.at(n))))

    def element(n: Expr, column: Expr) -> Expr:
        place = cast(places.at(n), "ix")
        row = place // dim(d.dmax(most, 1))
        where = select(equal(column, dim(0)), row // dim(d.dmax(classes, 1)), row % dim(d.dmax(classes, 1)))
        return select(equal(column, dim(2)), flat.at(place), cast(where, "i64"))
    return tensor_map((places.shape[0], 3), "i64", element)
