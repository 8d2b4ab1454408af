"""The derivatives of kernels, one rule each."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Tensor, builder, call, full, size_scalar, tensor_map, tensor_reduce, tensor_scatter
from gpuonnx.ir.dims import dmax, dmin
from gpuonnx.ir.expr import Expr, cast, const, dim, guard
from gpuonnx.ir.formula import either, equal, less, less_equal, maximum, minimum, select
from gpuonnx.ops.gradient import Adjoint, derivative, reverse


def input_of(node: g.Call, position: int) -> Tensor:
    return Tensor(node.inputs[position], builder())


@derivative("gemm")
def of_gemm(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """A matrix that serves every batch entry gets the sum over them."""
    from gpuonnx.ops.matmul import matrix_product, transposed
    out, a, b = outs[0], input_of(node, 0), input_of(node, 1)
    assert out is not None
    left, right = matrix_product(out, transposed(b.wide())), matrix_product(transposed(a.wide()), out)
    return [t if t.rank == whole.rank else t.sum(range(t.rank - 2)) for t, whole in ((left, a), (right, b))]


@derivative("conv")
def of_conv(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """By x: the transposed convolution. By w: the sum over batch and places of what each tap saw."""
    from gpuonnx.ops import conv
    from gpuonnx.ops.window import Window, spatial
    out, x, w = outs[0], input_of(node, 0).wide(), input_of(node, 1).wide()
    assert out is not None
    pads, rank, group = node.attrs["pads"], x.rank - 2, node.attrs["group"]
    window = Window(node.attrs["kernel"], node.attrs["strides"], node.attrs["dilations"], pads[:rank], pads[rank:], spatial(out))
    phases = conv.Phases(window.kernel, window.strides, window.dilations)
    by_x = conv.transposed_convolution(out, w, phases, group, window.before, spatial(x))
    each = w.shape[0] // group

    def term(*i: Expr) -> Expr:
        o, c, tap, n, at = i[0], i[1], i[2:2 + rank], i[2 + rank], i[3 + rank:]
        places = window.places(at, tap)
        channel = c if group == 1 else o // dim(each) * dim(w.shape[1]) + c
        return guard(window.inside(places, spatial(x)), out.at(n, o, *at) * x.at(n, channel, *places), const(0, w.dtype))
    ranges = (*w.shape, x.shape[0], *window.out)
    return [by_x, tensor_reduce(ranges, range(2 + rank, len(ranges)), "sum", w.dtype, term)]


@derivative("topk")
def of_topk(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """Each value goes back to the place it came from."""
    values, places = outs[0], Tensor(node.outputs[1], builder())
    assert values is not None
    zeros = full(node.inputs[0].dims, 0, values.dtype)
    return [tensor_scatter(zeros, values.shape, lambda r, k: [r, cast(places.at(r, k), "ix")], lambda r, k: values.at(r, k), "add")]


@derivative("fft")
def of_fft(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """A linear function: its adjoint is the transform with the other sign, unscaled; a hermitian input counts its bins twice,
    but for the first and the one in the middle."""
    from gpuonnx.ops.signal import fourier, resized
    out, x, inverse = outs[0], node.inputs[0], bool(node.attrs["inverse"])
    assert out is not None
    if not node.attrs["hermitian"]:
        count = x.dims[1]
        back = fourier(resized(out, count), count, not inverse, x.dims[3])
        factor = size_scalar(count, out.dtype)
        return [back / factor if inverse else back * factor]
    count = out.shape[1]
    spectrum = resized(fourier(out, dmin(x.dims[1], count), False), x.dims[1])

    def weighted(*i: Expr) -> Expr:
        once = either(equal(i[1], dim(0)), equal(i[1] * 2, dim(count)))
        inside = less_equal(i[1] * 2, dim(count))
        factor = select(inside, select(once, const(1, out.dtype), const(2, out.dtype)), const(0, out.dtype))
        return spectrum.at(*i) * factor / cast(dim(count), out.dtype)
    return [tensor_map(spectrum.shape, out.dtype, weighted)]


@derivative("det")
def of_det(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """The cofactors: of singular matrices too."""
    out = outs[0]
    assert out is not None
    return [cofactors(input_of(node, 0)) * out.unsqueeze([1, 2])]


def cofactors(x: Tensor) -> Tensor:
    """x[N, n, n] -> [N, n, n]: the determinants of what is left without a row and a column, with the signs of a chessboard."""
    count, size = x.shape[0], builder().meet(x.shape[1], x.shape[2])
    less_one = dmax(size - 1, 0)

    def minor(k: Expr, r: Expr, c: Expr) -> Expr:
        row, column = k // dim(size) % dim(size), k % dim(size)
        return x.at(k // dim(size) // dim(size), select(less(r, row), r, r + 1), select(less(c, column), c, c + 1))
    minors = tensor_map((count * size * size, less_one, less_one), x.dtype, minor)
    found = call("det", minors, out=x.like(count * size * size)).reshape(count, size, size)
    return tensor_map(x.shape, x.dtype, lambda n, r, c: select(equal((r + c) % dim(2), dim(0)), found.at(n, r, c), -found.at(n, r, c)))


@derivative("trees")
def of_trees(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """A function of steps: slope 0 wherever there is one."""
    return [None] * len(node.inputs)


@derivative("coupling")
def of_coupling(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """Of the exact solution, which the kernel comes near: p with Q p = the same for all classes, and sum 1."""
    won, classes = input_of(node, 0), dim(node.out.dims[1])
    shape = (won.shape[0], node.out.dims[1], node.out.dims[1])

    def wins(n: Expr, i: Expr, j: Expr) -> Expr:
        low, high = minimum(i, j), maximum(i, j)
        r = won.at(n, low * classes - low * (low + 1) // dim(2) + high - low - 1)
        return guard(equal(i, j), const(0, won.dtype), guard(less(i, j), r, 1 - r))
    r = tensor_map(shape, won.dtype, wins)
    lost = (r * r).sum(1)
    q = tensor_map(shape, won.dtype, lambda n, i, j: select(equal(i, j), lost.at(n, i), -r.at(n, i, j) * r.at(n, j, i)))
    solution = cofactors(q).sum(2)
    return reverse([solution / solution.sum(1, keepdims=True)], outs, [won], 1)
