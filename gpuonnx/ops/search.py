"""TopK and its kin: hand-written kernels over rows."""
from __future__ import annotations

from gpuonnx.errors import ShapeError
from gpuonnx.ir.build import Spec, Tensor, builder, call
from gpuonnx.ir.dims import Dim
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


