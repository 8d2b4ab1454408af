"""Einsum: pairs of operands contracted from left to right, by a matrix product where it is one."""
from __future__ import annotations

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, builder, product, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr
from gpuonnx.ops.matmul import matrix_product
from gpuonnx.ops.registry import op

DOTS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def parsed(equation: str, operands: tuple[Tensor, ...]) -> tuple[list[str], str]:
    """Labels of each operand and of the result; an ellipsis becomes labels of its own, aligned at its end."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ModelError(f"{builder().origin}: equation {equation!r} has {len(terms)} terms for {len(operands)} inputs")
    used = set(left + right)
    spare = [c for c in (*DOTS, *map(chr, range(0x391, 0x3A0))) if c not in used]
    most = max((t.rank - len(term.replace("...", "")) for term, t in zip(terms, operands, strict=True) if "..." in term), default=0)
    dots = "".join(spare[:max(most, 0)])
    labels = []
    for term, t in zip(terms, operands, strict=True):
        count = t.rank - len(term.replace("...", ""))
        term = term.replace("...", dots[len(dots) - count:] if count > 0 else "")
        if len(term) != t.rank:
            raise ModelError(f"{builder().origin}: term {term!r} of {equation!r} for an input of rank {t.rank}")
        labels.append(term)
    if arrow:
        return labels, right.replace("...", dots)
    every = "".join(labels).replace(dots, "") if dots else "".join(labels)
    once = sorted(c for c in set(every) if c not in dots and sum(term.count(c) for term in labels) == 1)
    return labels, dots + "".join(once)


def diagonal(t: Tensor, labels: str) -> tuple[Tensor, str]:
    """A label that stands twice is read along the diagonal."""
    kept = "".join(dict.fromkeys(labels))
    if kept == labels:
        return t, labels
    shape: list[Dim] = []
    for c in kept:
        size = t.shape[labels.index(c)]
        for other in (t.shape[k] for k, label in enumerate(labels) if label == c):
            size = builder().meet(size, other)
        shape.append(size)
    return t.view(shape, lambda *i: [i[kept.index(c)] for c in labels]), kept


def summed(t: Tensor, labels: str, kept: str) -> tuple[Tensor, str]:
    gone = [k for k, c in enumerate(labels) if c not in kept]
    return (t.sum(gone), "".join(c for c in labels if c in kept)) if gone else (t, labels)


def arranged(t: Tensor, labels: str, wanted: str) -> Tensor:
    """Axes in the order of `wanted`; labels that are missing have size 1."""
    t = t.transpose([labels.index(c) for c in wanted if c in labels])
    missing = [k for k, c in enumerate(wanted) if c not in labels]
    return t.unsqueeze(missing) if missing else t


def contracted(a: Tensor, one: str, b: Tensor, two: str, needed: str) -> tuple[Tensor, str]:
    """The product of two operands, summed over what only they have and nobody needs."""
    a, one = summed(a, one, two + needed)
    b, two = summed(b, two, one + needed)
    shared = [c for c in one if c in two]
    batch, inner = "".join(c for c in shared if c in needed), "".join(c for c in shared if c not in needed)
    rows, columns = "".join(c for c in one if c not in two), "".join(c for c in two if c not in one)
    sizes = dict(zip(two, b.shape, strict=True)) | dict(zip(one, a.shape, strict=True))
    for c in shared:
        sizes[c] = builder().broadcast([sizes[c]], [b.shape[two.index(c)]])[0]
    a = arranged(a, one, batch + rows + inner).expand([sizes[c] for c in batch + rows + inner])
    b = arranged(b, two, batch + inner + columns).expand([sizes[c] for c in batch + inner + columns])
    lead, m, k, n = ([sizes[c] for c in group] for group in (batch, rows, inner, columns))
    if a.kind == "f" and inner:
        y = matrix_product(a.reshape(*lead, product(m), product(k)), b.reshape(*lead, product(k), product(n)))
        return y.reshape(*lead, *m, *n), batch + rows + columns
    return by_reduce(a, b, (lead, m, k, n)), batch + rows + columns


def by_reduce(a: Tensor, b: Tensor, groups: tuple[list[Dim], ...]) -> Tensor:
    lead, m, k, n = groups
    x, y, z = len(lead), len(m), len(n)

    def element(*i: Expr) -> Expr:
        batch, rows, columns, inner = i[:x], i[x:x + y], i[x + y:x + y + z], i[x + y + z:]
        return a.at(*batch, *rows, *inner) * b.at(*batch, *inner, *columns)
    ranges = (*lead, *m, *n, *k)
    if not k:
        return tensor_map(ranges, a.dtype, element)
    return tensor_reduce(ranges, range(x + y + z, len(ranges)), "sum", a.dtype, element)


@op("Einsum", since=12)
def einsum(*Inputs: Tensor, equation: str) -> Tensor:
    labels, result = parsed(equation, Inputs)
    pairs = [diagonal(t, term) for t, term in zip(Inputs, labels, strict=True)]
    t, term = pairs[0]
    for number, (other, theirs) in enumerate(pairs[1:], 2):
        later = result + "".join(label for _, label in pairs[number:])
        t, term = contracted(t, term, other, theirs, later)
    t, term = summed(t, term, result)
    if sorted(term) != sorted(result):
        raise ModelError(f"{builder().origin}: the result {result!r} of {equation!r} names what no input has")
    return t.transpose([term.index(c) for c in result])


