"""Gradient: the IR differentiated in reverse.

Maps, Reduces, prefix sums, Scatters, Views and Assembles are differentiated by what they say; a Call by the rule registered
for its kernel. Adjoints are kept in the compute type of their value.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpuonnx.errors import ModelError, UnsupportedOp
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Dim, Tensor, builder, full, product, size_scalar, tensor_map, tensor_prefix, tensor_reduce, tensor_scatter
from gpuonnx.ir.derivative import adjoints
from gpuonnx.ir.expr import Expr, cast, const, dim, guard, index, substitute
from gpuonnx.ir.formula import either, equal, less_equal, select
from gpuonnx.ir.types import compute, kind
from gpuonnx.ops.registry import op

Adjoint = Tensor | None
KernelRule = Callable[[g.Call, Sequence[Adjoint]], Sequence[Adjoint]]
KERNELS: dict[str, KernelRule] = {}


def derivative(kernel: str) -> Callable[[KernelRule], KernelRule]:
    """Register what gives the adjoints of a Call's inputs from those of its outputs."""
    def declare(rule: KernelRule) -> KernelRule:
        KERNELS[kernel] = rule
        return rule
    return declare


@op("Gradient", domain="ai.onnx.preview.training")
def gradient(*inputs: Tensor, xs: list[str], y: str, zs: list[str] | None = None, scope: Mapping[str, Any]) -> list[Tensor]:
    """The derivatives of the sum of `y` by each of `xs`, at the values that are fed for `xs` and `zs`."""
    names = [*xs, *(zs or ())]
    if len(inputs) != len(names):
        raise ModelError(f"xs and zs name {len(names)} tensors, the node has {len(inputs)} inputs")
    for x in (y, *xs):
        if (found := named(scope, x)).kind != "f":
            raise ModelError(f"{x!r} has the type {found.dtype}; a float tensor is expected")
    target, own = named(scope, y), [named(scope, name) for name in names]
    target, given = moved(target, own, inputs)
    made = reverse(target, given, len(xs))
    return [full(x.shape, 0, x.dtype) if t is None else t.cast(x.dtype) for x, t in zip(given, made, strict=False)]


def named(scope: Mapping[str, Any], name: str) -> Tensor:
    found = scope.get(name)
    if not isinstance(found, Tensor) or not found.is_tensor:
        raise ModelError(f"{name!r} is no tensor that is known here")
    return found


def leading_to(y: g.Value, given: set[g.Value]) -> list[g.Node]:
    """The nodes between `given` and `y`, in order. What y depends on is computed from `given` and constants alone."""
    owner = builder()
    wanted, nodes, stack = {y}, set[g.Node](), [y]
    while stack:
        value = stack.pop()
        node = owner.producers.get(value)
        if value in given or value in owner.constants:
            continue
        if node is None:
            raise ModelError(f"y depends on {value.name or value!r}, which is in neither xs nor zs")
        nodes.add(node)
        stack += [v for v in node.inputs if v not in wanted]
        wanted.update(node.inputs)
    return [n for n in owner.nodes if n in nodes]


def moved(y: Tensor, own: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """`y` and what it is made from, computed again where other values are fed than those that xs and zs name."""
    owner = builder()
    values: dict[g.Value, g.Value] = {}
    for there, here in zip(own, inputs, strict=True):
        if here.value is not there.value:
            if here.dtype != there.dtype or here.rank != there.rank:
                raise ModelError(f"{here.dtype} of rank {here.rank} is fed for {there.value.name!r}, {there.dtype} of rank {there.rank}")
            for a, b in zip(here.shape, there.shape, strict=True):
                owner.meet(a, b)
            values[there.value] = here.value
    if not values:
        return y, own
    sources = {s.value for s in owner.symbols.values()}
    for node in leading_to(y.value, {t.value for t in own}):
        if any(v in values for v in node.inputs):
            if any(v in sources for v in node.outputs):
                raise UnsupportedOp(f"other values are fed than xs and zs name, and sizes hang on {', '.join(node.origins)}")
            outputs = tuple(g.Value(v.dtype, v.shape) for v in node.outputs)
            owner.add(replace(node.moved(values), outputs=outputs))
            values.update(zip(node.outputs, outputs, strict=True))
    return Tensor(values.get(y.value, y.value), owner), [Tensor(values.get(t.value, t.value), owner) for t in own]


def reverse(y: Tensor, given: Sequence[Tensor], count: int) -> list[Adjoint]:
    """The adjoints of the first `count` of `given`; None where y does not depend on it."""
    nodes = leading_to(y.value, {t.value for t in given})
    active = {t.value for t in given[:count]}
    for node in nodes:
        if any(v in active for v in node.inputs):
            active.update(v for v in node.outputs if v.shape is not None and kind(v.dtype) == "f")
    totals: dict[g.Value, Tensor] = {y.value: full(y.shape, 1, compute(y.dtype))}
    for node in reversed(nodes):
        outs = [totals.get(v) for v in node.outputs]
        if any(v in active for v in node.inputs) and any(t is not None for t in outs):
            for value, part in pulled(node, outs, active):
                totals[value] = totals[value] + part if value in totals else part
    return [totals.get(t.value) for t in given[:count]]


Parts = list[tuple[g.Value, Tensor]]


def pulled(node: g.Node, outs: Sequence[Adjoint], active: set[g.Value]) -> Parts:
    """What the adjoints of a node's outputs add to those of its inputs."""
    (out, *_), owner = outs, builder()
    try:
        if out is not None:
            match node:
                case g.View(index=None): return [(node.inputs[0], out.reshape(*node.inputs[0].dims))]
                case g.View(): return [viewed(node, out)]
                case g.Assemble(): return assembled(node, out)
                case g.Map(): return spread(node, node.out.dims, node.expr, at_axes(out), active)
                case g.Reduce(): return spread(node, node.ranges, node.expr, reduced(node, out), active)
                case g.Prefix(fold="add"):
                    back = tensor_prefix(out, node.axis, "add", node.exclusive, not node.reverse)
                    return spread(node, node.out.dims, node.expr, at_axes(back), active)
                case g.Scatter(combine=None | "add"): return scattered(node, out, active)
        if isinstance(node, g.Call) and node.kernel in KERNELS:
            found = zip(node.inputs, KERNELS[node.kernel](node, outs), strict=True)
            return [(v, t) for v, t in found if t is not None and v in active]
    except UnsupportedOp as error:
        raise UnsupportedOp(f"{owner.origin} cannot go through {', '.join(node.origins)}: {error}") from error
    what = f"kernel {node.kernel!r}" if isinstance(node, g.Call) else type(node).__name__
    raise UnsupportedOp(f"{owner.origin} cannot go through {', '.join(node.origins)}: there is no derivative of {what}")


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


def scattered(node: g.Scatter, out: Tensor, active: set[g.Value]) -> Parts:
    """What is overwritten has no part in the result."""
    places = [named_loads(node, e) for e in node.index]
    kept = out
    if node.combine is None:
        kept = tensor_scatter(out, node.ranges, lambda *_: places, lambda *_: const(0, out.dtype))
    return [(node.inputs[0], kept), *spread(node, node.ranges, node.expr, out.at(*places), active)]


def reduced(node: g.Reduce, out: Tensor) -> Expr:
    """The adjoint of the folded expression at each index of the ranges."""
    kept = [a for a in range(len(node.ranges)) if a not in node.over]
    seed, expr = at_axes(out, kept), named_loads(node, node.expr)
    if node.fold == "sum":
        return seed
    if node.fold in ("max", "min"):
        return select(first_extreme(node, expr, kept), seed, const(0, seed.dtype))
    if node.fold == "prod":
        return seed * product_of_others(node, expr, kept)
    raise UnsupportedOp(f"there is no derivative of the fold {node.fold}")


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
    flat = dim(0)
    for a in node.over:
        flat = flat * dim(node.ranges[a]) + index(a)
    return equal(cast(at_axes(best, kept), "ix"), flat)


def product_of_others(node: g.Reduce, expr: Expr, kept: Sequence[int]) -> Expr:
    """The product of the other elements: the whole by this one, with zeros counted apart."""
    zero, one, nothing = equal(expr, 0), const(1, expr.dtype), const(0, expr.dtype)
    zeros = at_axes(tensor_reduce(node.ranges, node.over, "sum", expr.dtype, lambda *_: select(zero, one, nothing)), kept)
    rest = at_axes(tensor_reduce(node.ranges, node.over, "prod", expr.dtype, lambda *_: select(zero, one, expr)), kept)
    return select(zero, select(equal(zeros, 1), rest, nothing), select(equal(zeros, 0), rest / expr, nothing))


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
    spectrum = fourier(out, x.dims[1], False)

    def weighted(*i: Expr) -> Expr:
        once = either(equal(i[1], dim(0)), equal(i[1] * 2, dim(count)))
        inside = less_equal(i[1] * 2, dim(count))
        factor = select(inside, select(once, const(1, out.dtype), const(2, out.dtype)), const(0, out.dtype))
        return spectrum.at(*i) * factor / cast(dim(count), out.dtype)
    return [tensor_map(spectrum.shape, out.dtype, weighted)]
