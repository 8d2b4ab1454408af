"""The derivatives of what the nodes of the IR say by themselves: expressions, folds, prefix folds, scatters, views."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpuonnx.errors import UnsupportedOp
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Dim, Tensor, builder, full, product, tensor_map, tensor_prefix, tensor_reduce, tensor_scatter
from gpuonnx.ir.derivative import adjoints
from gpuonnx.ir.expr import Expr, cast, const, dim, guard, index, substitute
from gpuonnx.ir.formula import both, equal, greater, less, select
from gpuonnx.ir.types import compute

Parts = list[tuple[g.Value, Tensor]]


def of_node(node: g.Node, out: Tensor | None, active: set[g.Value]) -> Parts:
    """What the adjoint of a node's output adds to those of its inputs."""
    if out is not None:
        match node:
            case g.View(index=None): return [(node.inputs[0], out.reshape(*node.inputs[0].dims))]
            case g.View(): return [viewed(node, out)]
            case g.Assemble(): return assembled(node, out)
            case g.Map(): return spread(node, node.out.dims, node.expr, at_axes(out), active)
            case g.Reduce(): return spread(node, node.ranges, node.expr, reduced(node, out), active)
            case g.Prefix(): return spread(node, node.out.dims, node.expr, at_axes(PREFIXES[node.fold](node, out)), active)
            case g.Scatter(): return scattered(node, out, active)
    raise UnsupportedOp(f"there is no derivative of {type(node).__name__}{f' {node.name}, which Python runs' if isinstance(node, g.Host) else ''}")


def at_axes(t: Tensor, axes: Sequence[int] | None = None) -> Expr:
    return t.at(*map(index, range(t.rank) if axes is None else axes))


def named_loads(node: g.Node, e: Expr) -> Expr:
    """An expression of a node with its loads naming values, as `tensor_map` and friends take it."""
    return substitute(e, lambda x: Expr("load", x.args, x.dtype, node.inputs[x.value]) if x.op == "load" else None)


def spread(node: g.Node, ranges: Sequence[Dim], expr: Expr, seed: Expr, active: set[g.Value]) -> Parts:
    """Each element that `expr` reads gets its adjoint, summed over the ranges that read it."""
    found = adjoints(named_loads(node, expr), seed, lambda e: e.value in active)
    return [(load.value, gathered(ranges, load.value, load.args, part, condition)) for load, part, condition in found]


def gathered(ranges: Sequence[Dim], value: g.Value, places: Sequence[Expr], part: Expr, condition: Expr | None) -> Tensor:
    """The sum over `ranges` of `part` at `places` of a tensor shaped as `value`; nothing where `condition` fails."""
    wide = compute(value.dtype)
    part = part if condition is None else guard(condition, part, const(0, wide))
    axes = [e.value if e.op == "index" and ranges[e.value] == size else None for e, size in zip(places, value.dims, strict=True)]
    used = [a for a in axes if a is not None]
    single = [k for k, a in enumerate(axes) if a is None]
    if len(set(used)) == len(used) and all(places[k] is dim(0) and value.dims[k] == 1 for k in single):
        over = [a for a in range(len(ranges)) if a not in used]
        total = tensor_reduce(ranges, over, "sum", wide, lambda *_: part)
        return total.transpose([sorted(used).index(a) for a in used]).unsqueeze(single)
    inside = [e if condition is None else guard(condition, e, dim(0)) for e in places]
    return tensor_scatter(full(value.dims, 0, wide), ranges, lambda *_: inside, lambda *_: part, "add")


def viewed(node: g.View, out: Tensor) -> tuple[g.Value, Tensor]:
    assert node.index is not None
    return node.inputs[0], gathered(node.out.dims, node.inputs[0], node.index, at_axes(out), None)


def assembled(node: g.Assemble, out: Tensor) -> Parts:
    start: Dim = 0
    found = []
    for value in node.inputs:
        found.append((value, out.slice(node.axis, start, value.dims[node.axis])))
        start = start + value.dims[node.axis]
    return found


def flat_index(ranges: Sequence[Dim], axes: Sequence[int] | None = None) -> Expr:
    """The number of the current index in row-major order of the axes (None: all)."""
    flat = dim(0)
    for a in range(len(ranges)) if axes is None else axes:
        flat = flat * dim(ranges[a]) + index(a)
    return flat


def scattered(node: g.Scatter, out: Tensor, active: set[g.Value]) -> Parts:
    """The adjoints of what is written into and of what is written."""
    into, places, expr = Tensor(node.inputs[0], builder()).wide(), [named_loads(node, e) for e in node.index], named_loads(node, node.expr)
    kept, seed = SCATTERS[node.combine or "last"](Written(node, into, places, expr), out)
    return [(node.inputs[0], kept), *spread(node, node.ranges, node.expr, seed, active)]


@dataclass(frozen=True)
class Written:
    """A Scatter with its parts in the compute type; loads in `places` and `expr` name values."""

    node: g.Scatter
    into: Tensor
    places: Sequence[Expr]
    expr: Expr

    def scatter(self, into: Tensor, value: Expr, combine: str | None = None) -> Tensor:
        return tensor_scatter(into, self.node.ranges, lambda *_: self.places, lambda *_: value, combine)


def added(w: Written, out: Tensor) -> tuple[Tensor, Expr]:
    return out, out.at(*w.places)


def replaced(w: Written, out: Tensor) -> tuple[Tensor, Expr]:
    """What is overwritten has no part in the result: of elements written to one place the last counts."""
    nothing = const(0, out.dtype)
    flat = cast(flat_index(w.node.ranges), "i64")
    last = w.scatter(full(out.shape, -1, "i64"), flat)
    return w.scatter(out, nothing), select(equal(last.at(*w.places), flat), out.at(*w.places), nothing)


def multiplied(w: Written, out: Tensor) -> tuple[Tensor, Expr]:
    """Each factor gets the product of the others: the whole by this one, with zeros counted apart."""
    one, nothing = const(1, out.dtype), const(0, out.dtype)

    def gathered_up(e: Expr, zero: Expr, other: Expr) -> Expr:
        return select(equal(e, 0), zero, other)
    own = at_axes(w.into)
    zeros = w.scatter(tensor_map(out.shape, out.dtype, lambda *_: gathered_up(own, one, nothing)), gathered_up(w.expr, one, nothing), "add")
    rest = w.scatter(tensor_map(out.shape, out.dtype, lambda *_: gathered_up(own, one, own)), gathered_up(w.expr, one, w.expr), "mul")
    kept = tensor_map(out.shape, out.dtype, lambda *_: at_axes(out) * others(own, at_axes(zeros), at_axes(rest)))
    return kept, out.at(*w.places) * others(w.expr, zeros.at(*w.places), rest.at(*w.places))


def extreme(w: Written, out: Tensor) -> tuple[Tensor, Expr]:
    """The first of equals: what was there before, else in the order of writing."""
    nothing = const(0, out.dtype)
    result = Tensor(w.node.out, builder()).wide()
    before = tensor_map(out.shape, "bool", lambda *_: equal(at_axes(w.into), at_axes(result)))
    flat, count = cast(flat_index(w.node.ranges), "i64"), cast(dim(product(w.node.ranges)), "i64")
    unset = tensor_map(out.shape, "i64", lambda *_: select(at_axes(before), const(-1, "i64"), count))
    first = w.scatter(unset, select(equal(w.expr, result.at(*w.places)), flat, count), "min")
    kept = tensor_map(out.shape, out.dtype, lambda *_: select(at_axes(before), at_axes(out), nothing))
    return kept, select(equal(first.at(*w.places), flat), out.at(*w.places), nothing)


SCATTERS = {"last": replaced, "add": added, "mul": multiplied, "max": extreme, "min": extreme}


def elements_of(node: g.Prefix) -> Tensor:
    return tensor_map(node.out.dims, compute(node.out.dtype), lambda *_: named_loads(node, node.expr))


def prefix_sum(node: g.Prefix, out: Tensor) -> Tensor:
    return tensor_prefix(out, node.axis, "add", node.exclusive, not node.reverse)


def prefix_product(node: g.Prefix, out: Tensor) -> Tensor:
    """Before the first zero: what is behind, by this factor. At it: the sum of products without it. Behind it: nothing."""
    x = elements_of(node)
    one, nothing, zero = const(1, x.dtype), const(0, x.dtype), equal(at_axes(x), 0)
    zeros = tensor_prefix(tensor_map(x.shape, x.dtype, lambda *_: select(zero, one, nothing)), node.axis, "add", False, node.reverse)
    first = both(zero, equal(at_axes(zeros), 1))

    def behind(e: Expr) -> Tensor:
        factors = tensor_map(x.shape, x.dtype, lambda *_: e)
        return prefix_sum(node, out * tensor_prefix(factors, node.axis, "mul", node.exclusive, node.reverse))
    whole, rest = behind(at_axes(x)), behind(select(first, one, at_axes(x)))
    safe = select(zero, one, at_axes(x))
    return tensor_map(x.shape, x.dtype, lambda *_: select(equal(at_axes(zeros), 0), at_axes(whole) / safe, select(first, at_axes(rest), nothing)))


def prefix_extreme(node: g.Prefix, out: Tensor) -> Tensor:
    """To the place of the extreme so far, the first of equals."""
    x, axis, size = elements_of(node), node.axis, dim(node.out.dims[node.axis])
    earlier = tensor_prefix(x, axis, node.fold, True, node.reverse)
    beats = (greater if node.fold == "max" else less)(at_axes(x), at_axes(earlier))
    step = size - 1 - index(axis) if node.reverse else index(axis)
    steps = tensor_map(x.shape, "i64", lambda *_: select(beats, cast(step, "i64"), const(0, "i64")))
    found = cast(at_axes(tensor_prefix(steps, axis, "max", node.exclusive, node.reverse)), "ix")
    known = less(dim(0), step) if node.exclusive else None
    found = found if known is None else guard(known, found, dim(0))
    place = list(map(index, range(x.rank)))
    place[axis] = size - 1 - found if node.reverse else found
    part = at_axes(out) if known is None else select(known, at_axes(out), const(0, out.dtype))
    return tensor_scatter(full(x.shape, 0, out.dtype), x.shape, lambda *_: place, lambda *_: part, "add")


PREFIXES = {"add": prefix_sum, "mul": prefix_product, "max": prefix_extreme, "min": prefix_extreme}


def reduced(node: g.Reduce, out: Tensor) -> Expr:
    """The adjoint of the folded expression at each index of the ranges."""
    kept = [a for a in range(len(node.ranges)) if a not in node.over]
    return FOLDS[node.fold](node, named_loads(node, node.expr), kept, at_axes(out, kept))


def of_extreme(node: g.Reduce, expr: Expr, kept: Sequence[int], seed: Expr) -> Expr:
    return select(first_extreme(node, expr, kept), seed, const(0, seed.dtype))


def first_extreme(node: g.Reduce, expr: Expr, kept: Sequence[int]) -> Expr:
    """Whether the current index is that of the first extreme: folded axes are read as one, so that an argmax finds it."""
    sizes = [node.ranges[a] for a in node.over]
    count = product(sizes)

    def element(*i: Expr) -> Expr:
        at, flat = dict(zip(kept, i, strict=False)), i[-1]
        for a in reversed(node.over):
            at[a] = flat % dim(node.ranges[a]) if a != node.over[0] else flat
            flat = flat // dim(node.ranges[a])
        return substitute(expr, lambda e: at[e.value] if e.op == "index" else None)
    ranges = [*(node.ranges[a] for a in kept), count]
    best = tensor_reduce(ranges, [len(kept)], f"arg{node.fold}", "i64", element)
    flat = flat_index(node.ranges, node.over)
    return equal(cast(at_axes(best, kept), "ix"), flat)


def product_of_others(node: g.Reduce, expr: Expr, kept: Sequence[int]) -> Expr:
    """The product of the other elements: the whole by this one, with zeros counted apart."""
    zero, one, nothing = equal(expr, 0), const(1, expr.dtype), const(0, expr.dtype)
    zeros = at_axes(tensor_reduce(node.ranges, node.over, "sum", expr.dtype, lambda *_: select(zero, one, nothing)), kept)
    rest = at_axes(tensor_reduce(node.ranges, node.over, "prod", expr.dtype, lambda *_: select(zero, one, expr)), kept)
    return others(expr, zeros, rest)


def others(factor: Expr, zeros: Expr, rest: Expr) -> Expr:
    """The product without `factor`, from how many factors are 0 and the product of those that are not."""
    zero, nothing = equal(factor, 0), const(0, factor.dtype)
    safe = select(zero, const(1, factor.dtype), factor)
    return select(zero, select(equal(zeros, 1), rest, nothing), select(equal(zeros, 0), rest / safe, nothing))


FOLDS: dict[str, Callable[[g.Reduce, Expr, Sequence[int], Expr], Expr]] = {
    "sum": lambda node, expr, kept, seed: seed,
    "prod": lambda node, expr, kept, seed: seed * product_of_others(node, expr, kept),
    "max": of_extreme,
    "min": of_extreme}
"""Folds of floats that give floats."""
