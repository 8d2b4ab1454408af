"""TopK and its kin: hand-written kernels over rows."""
from __future__ import annotations

from gpuonnx.errors import ShapeError
from gpuonnx.ir.build import Spec, Tensor, builder, call, cast, concat, const, dim, positions, tensor_map
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.formula import not_equal
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import Dims, op


def top(x: Tensor, k: Dim, axis: int, largest: int, in_order: int) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along an axis and their positions, in order; of equals the first come first."""
    axis = x.axis(axis)
    builder().require(x.shape[axis] - k, f"k must be at most {x.shape[axis]}, the size of axis {axis}")
    order = [a for a in range(x.rank) if a != axis] + [axis]
    rows = x.transpose(order)
    shape = (*rows.shape[:-1], k)
    flat = rows.reshape(_product(rows.shape[:-1]), rows.shape[-1]).cast(compute(x.dtype))
    specs = [Spec(flat.dtype, (flat.shape[0], k)), Spec("i64", (flat.shape[0], k))]
    back = [order.index(a) for a in range(x.rank)]
    values, indices = (t.reshape(shape).transpose(back) for t in call("topk", flat, out=specs, largest=largest, sorted=in_order))
    return values.cast(x.dtype), indices


def _product(sizes: tuple[Dim, ...]) -> Dim:
    out: Dim = 1
    for s in sizes:
        out = out * s
    return out


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
    count = _product(x.shape)
    flags = x if x.dtype == "bool" else tensor_map(x.shape, "bool", lambda *i: not_equal(x.at(*i), const(0, compute(x.dtype))))
    flat = positions(flags.reshape(count))
    rows = [1] * x.rank
    for a in range(x.rank - 2, -1, -1):
        rows[a] = rows[a + 1] * x.shape[a + 1]
    found = [tensor_map((1, flat.shape[0]), "i64", lambda _, n, a=a: cast(
        cast(flat.at(n), "ix") // dim(rows[a]) % dim(x.shape[a]), "i64")) for a in range(x.rank)]
    return concat(found, 0) if X.rank else tensor_map((0, flat.shape[0]), "i64", lambda *_: const(0, "i64"))
