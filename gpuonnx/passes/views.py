"""Views as index arithmetic: reshapes that only split axes, composition, reading through a view."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import product
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, dim, index


def one(size: Dim) -> bool:
    return isinstance(size, int) and size == 1


def same(a: Dim, b: Dim) -> bool:
    return a is b or isinstance(a, int) and isinstance(b, int) and a == b


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def groups(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new axes (size 1 left out) that hold the same number of elements, as short as can be proved."""
    a = [k for k, s in enumerate(old) if not one(s)]
    b = [k for k, s in enumerate(new) if not one(s)]
    out: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        next_i, next_j = i + 1, j + 1
        left, right = old[a[i]], new[b[j]]
        while not same(left, right):
            grow_right = _divides(right, left)
            if (grow_right or next_i == len(a)) and next_j < len(b):
                right, next_j = right * new[b[next_j]], next_j + 1
            elif next_i < len(a):
                left, next_i = left * old[a[next_i]], next_i + 1
            else:
                break
        if not same(left, right):
            next_i, next_j = len(a), len(b)
        out.append((a[i:next_i], b[j:next_j]))
        i, j = next_i, next_j
    if i < len(a) or j < len(b):
        rest = (a[i:], b[j:])
        out = [*out[:-1], (out[-1][0] + rest[0], out[-1][1] + rest[1])] if out else [rest]
    return out


def _divides(a: Dim, b: Dim) -> bool:
    """Whether `a` looks like a proper factor of `b`."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    if isinstance(b, int):
        return False
    return d.divide_exactly(b, a) is not None


def split_index(old: Sequence[Dim], new: Sequence[Dim]) -> tuple[Expr, ...] | None:
    """Index expressions of a reshape that only splits axes and moves ones, else None."""
    out = [dim(0)] * len(old)
    for olds, news in groups(old, new):
        if len(olds) != 1:
            return None
        out[olds[0]] = flat([index(k) for k in news], [new[k] for k in news])
    return tuple(out)


def flat(indices: Sequence[Expr], sizes: Sequence[Dim]) -> Expr:
    """The row-major position of `indices` in an array of `sizes`."""
    total = dim(0)
    weight: Dim = 1
    terms: list[Expr] = []
    for i, s in zip(reversed(indices), reversed(sizes), strict=True):
        terms.insert(0, i if one(weight) else i * dim(weight))
        weight = weight * s
    for k, t in enumerate(terms):
        total = t if k == 0 else total + t
    return total


def through_reshape(indices: Sequence[Expr], old: Sequence[Dim], new: Sequence[Dim]) -> tuple[Expr, ...]:
    """Indices into `old` of the element that `indices` name in its reshape to `new`."""
    out = [dim(0)] * len(old)
    for olds, news in groups(old, new):
        position = flat([indices[k] for k in news], [new[k] for k in news])
        for axis in reversed(olds[1:]):
            out[axis] = position % dim(old[axis])
            position = position // dim(old[axis])
        if olds:
            out[olds[0]] = position
    return tuple(out)


def source_indices(view: g.View, indices: Sequence[Expr]) -> tuple[Expr, ...]:
    """Indices into the input of a view of what `indices` name in its output (not simplified)."""
    if view.index is None:
        return through_reshape(indices, view.inputs[0].dims, view.out.dims)
    from gpuonnx.passes.rewrite import at_indices
    return tuple([at_indices(e, indices) for e in view.index])


def is_reshape(view: g.View) -> bool:
    """Whether the view has all elements of its input, in row-major order."""
    old, new = view.inputs[0].dims, view.out.dims
    return view.index is None or same(product(old), product(new)) and view.index == split_index(old, new)


def is_identity(indices: Sequence[Expr], shape: Sequence[Dim]) -> bool:
    """Whether as many axes are read as there are, axis k at index(k), or at 0 where its size is 1."""
    return len(indices) == len(shape) and all(i.op == "index" and i.value == k or one(s) and i.op == "const"
                                              for k, (i, s) in enumerate(zip(indices, shape, strict=True)))
