"""Linear algebra beyond products: Det."""
from __future__ import annotations

from gpuonnx.ir.build import Spec, Tensor, builder, call, product
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import op


@op("Det", since=11)
def det(X: Tensor) -> Tensor:
    """The determinant of every matrix in the last two axes."""
    builder().meet(X.shape[-1], X.shape[-2])
    lead = X.shape[:-2]
    flat = X.cast(compute(X.dtype)).reshape(product(lead), *X.shape[-2:])
    y: Tensor = call("det", flat, out=Spec(flat.dtype, (flat.shape[0],)))
    return y.reshape(*lead).cast(X.dtype) if lead else y.squeeze([0]).cast(X.dtype)
