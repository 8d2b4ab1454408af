"""Matrix products. Leading axes broadcast by Views; what is not a float goes to integer kernels or a plain Reduce."""
from __future__ import annotations

from collections.abc import Callable

from gpuonnx.errors import ShapeError
from gpuonnx.ir.build import Spec, Tensor, builder, call, tensor_reduce
from gpuonnx.ir.build import cast as cast_expr
from gpuonnx.ir.dims import Dim, eq
from gpuonnx.ir.expr import Expr
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import op

GEMM_TYPES = ("f32", "f64", "f16", "bf16")
BYTES = ("u8", "i8")


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """a[..., M, K] @ b[..., K, N], broadcast as NumPy's matmul; a vector is a matrix with an axis that goes again."""
    if not a.rank or not b.rank:
        raise ShapeError(f"{builder().origin}: a scalar has no matrix product")
    if a.rank == 1 or b.rank == 1:
        return of_vectors(a, b, matrix_product)
    a, b = with_batch(a, b)
    shape = (*batch_of(a, b), a.shape[-2], b.shape[-1])
    if a.dtype in GEMM_TYPES:
        builder().meet(a.shape[-1], b.shape[-2])
        return call("gemm", a, b, out=a.like(*shape))  # type: ignore[no-any-return]
    return summed_product(a, b)


def of_vectors(a: Tensor, b: Tensor, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A product where an operand is a vector: its axis of size 1 goes again."""
    y = f(a.unsqueeze([0]) if a.rank == 1 else a, b.unsqueeze([1]) if b.rank == 1 else b)
    gone = ([y.rank - 2] if a.rank == 1 else []) + ([y.rank - 1] if b.rank == 1 else [])
    return y.squeeze(gone)


def with_batch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the common leading axes; a plain matrix serves every batch entry as it is."""
    if a.rank == 2 or b.rank == 2:
        return a, b
    lead = builder().broadcast(a.shape[:-2], b.shape[:-2])
    return a.expand((*lead, *a.shape[-2:])), b.expand((*lead, *b.shape[-2:]))


def batch_of(a: Tensor, b: Tensor) -> tuple[Dim, ...]:
    """The leading axes of a product after `with_batch`."""
    return tuple(a.shape[:-2]) if a.rank > 2 else tuple(b.shape[:-2])


def summed_product(a: Tensor, b: Tensor, dtype: str | None = None) -> Tensor:
    """The same as a Reduce, in `dtype` (default: the type of `a`)."""
    inner = builder().meet(a.shape[-1], b.shape[-2])
    stored = dtype or a.dtype
    wide = compute(stored)
    ranges = (*batch_of(a, b), a.shape[-2], b.shape[-1], inner)

    def element(*i: Expr) -> Expr:
        batch, (row, column, k) = i[:-3], i[-3:]
        left = a.at(*batch[len(batch) - (a.rank - 2):], row, k)
        right = b.at(*batch[len(batch) - (b.rank - 2):], k, column)
        return cast_expr(left, wide) * cast_expr(right, wide)
    return tensor_reduce(ranges, [len(ranges) - 1], "sum", stored, element)


def transposed(t: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return t.transpose([*range(t.rank - 2), t.rank - 1, t.rank - 2])


@op("MatMul", since=1)
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return matrix_product(a, b)


@op("Gemm", since=7)
def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    if a.rank != 2 or b.rank != 2:
        raise ShapeError(f"{builder().origin}: A and B are matrices, here of rank {a.rank} and {b.rank}")
    a, b = transposed(a) if transA else a, transposed(b) if transB else b
    y = scaled(matrix_product(a, b), alpha)
    if c is None:
        return y
    return (y + scaled(c, beta)).kept_to(y.shape)


def scaled(t: Tensor, factor: float) -> Tensor:
    """factor * t; integers are scaled by the whole part of the factor."""
    return t if factor == 1 else t * (factor if t.kind == "f" else int(factor))


@op("Gemm", since=1)
def gemm_1(a: Tensor, b: Tensor, c: Tensor, *, alpha: float = 1.0, beta: float = 1.0, broadcast: int = 0, transA: int = 0,
           transB: int = 0) -> Tensor:
    """C is broadcast where `broadcast` says so, and has the right shape anyway."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


def integer_product(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """(a - a_zero) @ (b - b_zero) in int32; zero points are scalars, or one a row of `a`, one a column of `b`."""
    if a.rank == 1 or b.rank == 1:
        return of_vectors(a, b, lambda x, y: integer_product(x, y, a_zero, b_zero))
    a, b = with_batch(a, b)
    simple = all(z is None or z.rank <= 1 for z in (a_zero, b_zero)) and a.dtype in BYTES and b.dtype in BYTES
    if simple:
        builder().meet(a.shape[-1], b.shape[-2])
        zeros = [one_or_many(a_zero, a.shape[-2]), one_or_many(b_zero, b.shape[-1])]
        return call("gemm_integer", a, b, *zeros, out=Spec("i32", (*batch_of(a, b), a.shape[-2], b.shape[-1])))  # type: ignore[no-any-return]
    left, right = a.cast("i32"), b.cast("i32")
    if a_zero is not None:
        left = left - (a_zero.cast("i32") if a_zero.rank != 1 else a_zero.cast("i32").unsqueeze([1]))
    if b_zero is not None:
        right = right - b_zero.cast("i32")
    return summed_product(left, right)


def one_or_many(zero: Tensor | None, count: Dim | None = None) -> Tensor | None:
    """A scalar, or one value for each of `count` (not checked if None); a vector of one element is a scalar."""
    if zero is None or zero.rank != 1:
        return zero
    if builder().ask(eq(zero.shape[0], 1)):
        return zero.reshape()
    if count is not None:
        builder().meet(zero.shape[0], count)
    return zero


@op("MatMulInteger", since=10)
def matmul_integer(A: Tensor, B: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None) -> Tensor:
    return integer_product(A, B, a_zero_point, b_zero_point)

