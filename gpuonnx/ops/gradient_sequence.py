"""The derivatives of what Python does with sequences of tensors: the adjoint of a sequence is the sequence of its elements' adjoints."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuonnx.errors import UnsupportedOp
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Spec, Tensor, builder, constant, host
from gpuonnx.ir.formula import less, select
from gpuonnx.ir.types import compute
from gpuonnx.ops.gradient import Adjoint, node_derivative
from gpuonnx.ops.gradient_nodes import Parts
from gpuonnx.ops.sequence import WHY, inner, sequence

Rule = Callable[[g.Host, Tensor], Sequence[Adjoint]]


@node_derivative(g.Host)
def of_host(node: g.Host, outs: Sequence[Adjoint], active: set[g.Value]) -> Parts:
    if node.name not in RULES or outs[0] is None:
        raise UnsupportedOp(f"there is no derivative of {node.name}, which Python runs")
    found = zip(node.inputs, RULES[node.name](node, outs[0]), strict=False)
    return [(v, t) for v, t in found if t is not None and v in active]


def adjoints_of(v: g.Value) -> str:
    return f"seq({compute(inner(v.dtype))})"


def element_at(adjoints: Tensor, position: Tensor, like: g.Value) -> Tensor:
    made: Tensor = host("sequence_at", adjoints, position, out=Spec(compute(like.dtype), like.shape), why=WHY)
    return made


def position_of(node: g.Host, place: int) -> Tensor:
    """The input that says where; without it the last is meant."""
    return Tensor(node.inputs[place], builder()) if place < len(node.inputs) else constant(-1, "i64")


def of_construct(node: g.Host, out: Tensor) -> Sequence[Adjoint]:
    return [element_at(out, constant(k, "i64"), v) for k, v in enumerate(node.inputs)]


def of_insert(node: g.Host, out: Tensor) -> Sequence[Adjoint]:
    """A place counted from the end is one further from the end of what is longer."""
    place = position_of(node, 2)
    place = select(less(place, 0), place - 1, place) if len(node.inputs) > 2 else place
    return [sequence("sequence_erase", out, place, dtype=out.dtype), element_at(out, place, node.inputs[1])]


def of_erase(node: g.Host, out: Tensor) -> Sequence[Adjoint]:
    x, place = Tensor(node.inputs[0], builder()), position_of(node, 1)
    return [sequence("sequence_gap", out, x, place, dtype=adjoints_of(x.value), element=compute(inner(x.dtype)))]


def of_at(node: g.Host, out: Tensor) -> Sequence[Adjoint]:
    x = Tensor(node.inputs[0], builder())
    return [sequence("sequence_only", x, out, position_of(node, 1), dtype=adjoints_of(x.value))]


def of_concat(node: g.Host, out: Tensor) -> Sequence[Adjoint]:
    x = Tensor(node.inputs[0], builder())
    return [sequence("sequence_pieces", x, out, dtype=adjoints_of(x.value), **node.attrs)]


def of_split(node: g.Host, out: Tensor) -> Sequence[Adjoint]:
    x, whole = node.inputs[0], len(node.inputs) == 1 and not node.attrs["keepdims"]
    made: Tensor = host("concat_from_sequence", out, out=Spec(compute(x.dtype), x.shape), why=WHY, axis=node.attrs["axis"], new_axis=int(whole))
    return [made]


RULES: dict[str, Rule] = {"sequence_construct": of_construct, "sequence_insert": of_insert, "sequence_erase": of_erase, "sequence_at": of_at,
                          "concat_from_sequence": of_concat, "split_to_sequence": of_split,
                          "sequence_length": lambda node, out: [None]}
