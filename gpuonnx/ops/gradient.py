"""Gradient: the IR differentiated in reverse.

Maps, Reduces, prefix folds, Scatters, Views and Assembles are differentiated by what they say (`gradient_nodes.py`); a Call by the
rule registered for its kernel (`gradient_kernels.py`); control flow by that for its node (`importer/gradients/`). Adjoints are kept
in the compute type of their value.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from gpuonnx.errors import ModelError, UnsupportedOp
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Tensor, builder, full, tensor_map
from gpuonnx.ir.expr import Expr, cast, dim
from gpuonnx.ir.types import compute, kind
from gpuonnx.ops.gradient_nodes import Parts, of_node
from gpuonnx.ops.registry import INTERNAL, op
from gpuonnx.ops.sequence import sequence

Adjoint = Tensor | None
KernelRule = Callable[[g.Call, Sequence[Adjoint]], Sequence[Adjoint]]
NodeRule = Callable[[Any, Sequence[Adjoint], set[g.Value]], Parts]
KERNELS: dict[str, KernelRule] = {}
NODES: dict[type[g.Node], NodeRule] = {}
WITHOUT: dict[str, str] = {
    "gemm_integer": "it computes in integers", "conv_integer": "it computes in integers", "nms": "it finds places",
    "unique": "it finds places", "mersenne": "it draws random numbers"}
"""Kernels that have no derivative, and why."""


def derivative(kernel: str) -> Callable[[KernelRule], KernelRule]:
    """Register what gives the adjoints of a Call's inputs from those of its outputs."""
    def declare(rule: KernelRule) -> KernelRule:
        KERNELS[kernel] = rule
        return rule
    return declare


def node_derivative(node: type[g.Node]) -> Callable[[NodeRule], NodeRule]:
    """Register what a kind of node adds to the adjoints of its inputs, given those of its outputs and the values that matter."""
    def declare(rule: NodeRule) -> NodeRule:
        NODES[node] = rule
        return rule
    return declare


@op("Gradient", domain="ai.onnx.preview.training")
def gradient(*inputs: Tensor, xs: list[str], y: str, zs: list[str] | None = None, scope: Mapping[str, Any]) -> list[Tensor]:
    """The derivatives of the sum of `y` by each of `xs`, at the values that are fed for `xs` and `zs`."""
    names = [*xs, *(zs or ())]
    if len(inputs) != len(names):
        raise ModelError(f"xs and zs name {len(names)} tensors, the node has {len(inputs)} inputs")
    for name in (y, *xs):
        if (found := named(scope, name)).kind != "f":
            raise ModelError(f"{name!r} has the type {found.dtype}; a float tensor is expected")
    target, own = named(scope, y), [named(scope, name) for name in names]
    target, given = moved(target, own, inputs)
    made = reverse([target], [full(target.shape, 1, compute(target.dtype))], given, len(xs))
    for name, x, t in zip(xs, given, made, strict=False):
        if t is None:
            smooth_or_apart(target.value, x.value, name, {t.value for t in given})
    return [full(x.shape, 0, x.dtype) if t is None else t.cast(x.dtype) for x, t in zip(given, made, strict=False)]


@op("Gradient", domain=INTERNAL)
def pullback(*tensors: Tensor, xs: int, ys: int) -> list[Tensor]:
    """In a body: the adjoints of the first `xs` tensors from those of `ys`. The last 2 * `ys` tensors are the ys and their adjoints; what is
    between is what else the ys are made from."""
    given, targets, seeds = tensors[:-2 * ys], tensors[-2 * ys:-ys], tensors[-ys:]
    made = reverse(targets, [fitted(t, y) for t, y in zip(seeds, targets, strict=True)], given, xs)
    return [full(x.shape, 0, compute(x.dtype)) if t is None else t for x, t in zip(given, made, strict=False)]


def fitted(t: Tensor, like: Tensor) -> Tensor:
    """`t` with the sizes that `like` has, which name the same numbers."""
    shape = [builder().meet(b, a) for a, b in zip(t.shape, like.shape, strict=True)] and like.shape
    return t if t.shape == shape else t.view(shape, lambda *i: i)


@op("Total", domain=INTERNAL)
def total(*tensors: Tensor) -> Tensor:
    return reduce(lambda a, b: a + fitted(b, a), tensors)


@op("Row", domain=INTERNAL)
def row(stack: Tensor, number: Tensor, *, from_end: int = 0) -> Tensor:
    """stack[number], or with `from_end` stack[-1 - number]."""
    def element(*i: Expr) -> Expr:
        at = cast(number.at(), "ix")
        return stack.at(dim(stack.shape[0] - 1) - at if from_end else at, *i)
    return tensor_map(stack.shape[1:], stack.dtype, element)


def named(scope: Mapping[str, Any], name: str) -> Tensor:
    found = scope.get(name)
    if not isinstance(found, Tensor) or not found.is_tensor:
        raise ModelError(f"{name!r} is no tensor that is known here")
    return found


def leading_to(targets: Iterable[g.Value], given: set[g.Value]) -> list[g.Node]:
    """The nodes between `given` and `targets`, in order. What these depend on is computed from `given` and constants alone."""
    owner = builder()
    wanted, nodes = set(targets), set[g.Node]()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        node = owner.producers.get(value)
        if value in given or value in owner.constants:
            continue
        if node is None:
            raise ModelError(f"y depends on {value.name or value!r}, which is in neither xs nor zs, or stands where the run has to know a value "
                             f"before the rest of the model can be compiled")
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
    for node in leading_to([y.value], {t.value for t in own}):
        if any(v in values for v in node.inputs):
            if any(v in sources for v in node.outputs):
                raise UnsupportedOp(f"other values are fed than xs and zs name, and sizes hang on {', '.join(node.origins)}")
            outputs = tuple(g.Value(v.dtype, v.shape) for v in node.outputs)
            owner.add(replace(node.moved(values), outputs=outputs))
            values.update(zip(node.outputs, outputs, strict=True))
    return Tensor(values.get(y.value, y.value), owner), [Tensor(values.get(t.value, t.value), owner) for t in own]


def reverse(targets: Sequence[Tensor], seeds: Sequence[Adjoint], given: Sequence[Tensor], count: int) -> list[Adjoint]:
    """The adjoints of the first `count` of `given` from those of `targets`; None where these do not depend on it."""
    wanted = [(y.value, t) for y, t in zip(targets, seeds, strict=True) if t is not None]
    nodes = leading_to([y for y, _ in wanted], {t.value for t in given})
    active = {t.value for t in given[:count]}
    for node in nodes:
        if any(v in active for v in node.inputs):
            active.update(v for v in node.outputs if may_vary(v))
    totals: dict[g.Value, Tensor] = {}

    def add(parts: Iterable[tuple[g.Value, Tensor]]) -> None:
        for value, part in parts:
            totals[value] = joint(totals[value], part) if value in totals else part
    add(wanted)
    for node in reversed(nodes):
        outs = [totals.get(v) for v in node.outputs]
        if any(v in active for v in node.inputs) and any(t is not None for t in outs):
            add(pulled(node, outs, active))
    return [totals.get(t.value) for t in given[:count]]


def joint(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two adjoints, of a tensor or of all elements of a sequence."""
    return a + b if a.is_tensor else sequence("sequence_sum", a, b, dtype=a.dtype)


def may_vary(v: g.Value) -> bool:
    """Whether a value can have an adjoint: floats, and what may hold some."""
    return v.shape is None or kind(v.dtype) == "f"


def smooth_or_apart(y: g.Value, x: g.Value, name: str, given: set[g.Value]) -> None:
    """Raises UnsupportedOp, naming the node, where y depends on x but through integers and truth values alone."""
    nodes = leading_to([y], given)
    touched, smooth, lost = {x}, {x}, list[str]()
    useful = {y, *(v for n in nodes for v in n.inputs)}
    for node in nodes:
        if any(v in touched for v in node.inputs):
            touched.update(node.outputs)
        if any(v in smooth for v in node.inputs):
            smooth.update(filter(may_vary, node.outputs))
            lost += [f"{', '.join(node.origins)} ({why(node, v)})" for v in node.outputs if v in useful and not may_vary(v)]
    if y in touched and y not in smooth:
        raise UnsupportedOp(f"y depends on {name!r} through {', '.join(dict.fromkeys(lost))} alone: there is no derivative")


def why(node: g.Node, result: g.Value) -> str:
    reason = WITHOUT.get(node.kernel) if isinstance(node, g.Call) else None
    return reason or f"a result has the type {result.dtype}"


def pulled(node: g.Node, outs: Sequence[Adjoint], active: set[g.Value]) -> Parts:
    """What the adjoints of a node's outputs add to those of its inputs."""
    owner = builder()
    try:
        if isinstance(node, g.Call):
            found = zip(node.inputs, rule_of(node)(node, outs), strict=True)
            return [(v, t) for v, t in found if t is not None and v in active]
        if type(node) in NODES:
            return NODES[type(node)](node, outs, active)
        return of_node(node, outs[0], active)
    except UnsupportedOp as error:
        raise UnsupportedOp(f"{owner.origin} cannot go through {', '.join(node.origins)}: {error}") from error


def rule_of(node: g.Call) -> KernelRule:
    if node.kernel not in KERNELS:
        raise UnsupportedOp(f"there is no derivative of kernel {node.kernel!r}: {WITHOUT.get(node.kernel, 'none is known here')}")
    return KERNELS[node.kernel]
