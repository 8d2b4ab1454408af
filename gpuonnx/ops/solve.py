"""Linear algebra beyond products."""
from __future__ import annotations

from gpuonnx.ir.build import Spec, Tensor, builder, call, product, tensor_map
from gpuonnx.ir.expr import Expr, cast, const
from gpuonnx.ir.formula import absolute, equal, less, select
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import INTERNAL, op


@op("Det", since=11)
def det(X: Tensor) -> Tensor:
    """The determinant of every matrix in the last two axes."""
    builder().meet(X.shape[-1], X.shape[-2])
    lead = X.shape[:-2]
    flat = X.cast(compute(X.dtype)).reshape(product(lead), *X.shape[-2:])
    y: Tensor = call("det", flat, out=Spec(flat.dtype, (flat.shape[0],)))
    return y.reshape(*lead).cast(X.dtype) if lead else y.squeeze([0]).cast(X.dtype)


@op("EliminationStep", domain=INTERNAL)
def elimination_step(number: Tensor, x: Tensor) -> Tensor:
    """x[N, n, m] after one step of Gauss and Jordan: the row with the largest element of column `number`, of those from `number` on, comes to its
    place, divided by it; multiples of it make the rest of the column zero."""
    count, rows = x.shape[:2]

    def k() -> Expr:
        return cast(number.at(), "ix")
    sizes = tensor_map((count, rows), x.dtype, lambda b, r: select(less(r, k()), const(-1, x.dtype), absolute(x.at(b, r, k()))))
    best = sizes.fold("argmax", 1)

    def row(b: Expr, r: Expr) -> Expr:
        pivot = cast(best.at(b), "ix")
        return select(equal(r, k()), pivot, select(equal(r, pivot), k(), r))

    def element(b: Expr, r: Expr, c: Expr) -> Expr:
        pivot = cast(best.at(b), "ix")
        share = x.at(b, pivot, c) / x.at(b, pivot, k())
        return select(equal(r, k()), share, x.at(b, row(b, r), c) - x.at(b, row(b, r), k()) * share)
    return tensor_map(x.shape, x.dtype, element)
