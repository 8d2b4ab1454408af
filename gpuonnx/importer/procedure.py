"""A Procedure is a piece of an ONNX model that is compiled by itself: the main graph, a body, the rest after a late point."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.ir.types import BY_ONNX

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class InputInfo:
    """A declared input. `dims`: ints, names or None for free ones; None where the rank is free. A non-tensor has a dtype
    like `seq(f32)` and dims None."""

    name: str
    dtype: str
    dims: tuple[int | str | None, ...] | None
    optional: bool = False


@dataclass(frozen=True)
class Environment:
    """What all procedures of one model share: opsets, model-local functions, custom operators, where weights lie."""

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    array: Any = None


@dataclass(eq=False)
class Procedure:
    """Nodes in order, the inputs they need, the names they give. `constants` are arrays or undecoded TensorProtos;
    `defaults` are the declared inputs among them, which a call may give other values.

    A `cold` one came from the cache without its nodes; an `inner` one is the body of an If or a Loop. `carried`:
    how many values the Loop of this body carries; its second input, the condition, is then true."""

    name: str
    nodes: Sequence[onnx.NodeProto]
    inputs: tuple[InputInfo, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Any]
    environment: Environment
    output_infos: tuple[InputInfo, ...] = ()
    cold: bool = False
    defaults: tuple[InputInfo, ...] = ()
    inner: bool = False
    carried: int = -1

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.inputs)


@dataclass(frozen=True)
class Argument:
    """What one call gives for an input: type, shape (None: not a tensor), and the elements of a small integer tensor."""

    dtype: str
    shape: tuple[int, ...] | None
    elements: np.ndarray | None = None


def type_name(proto: onnx.TypeProto) -> tuple[str, tuple[int | str | None, ...] | None]:
    """dtype and declared dims of a TypeProto."""
    which = proto.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(proto, which)
        dtype = BY_ONNX.get(tensor.elem_type, "undefined")
        dtype = dtype if which == "tensor_type" else f"sparse({dtype})"
        if not tensor.HasField("shape"):
            return dtype, None
        return dtype, tuple(_declared(dim) for dim in tensor.shape.dim)
    if which == "sequence_type":
        return f"seq({type_name(proto.sequence_type.elem_type)[0]})", None
    if which == "optional_type":
        return f"optional({type_name(proto.optional_type.elem_type)[0]})", None
    if which == "map_type":
        return f"map({BY_ONNX[proto.map_type.key_type]},{type_name(proto.map_type.value_type)[0]})", None
    return "undefined", None


def _declared(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value > 0 else None
    return dim.dim_param.strip("?") or None


def is_tensor(dtype: str) -> bool:
    return "(" not in dtype and dtype != "undefined"


def input_info(value: onnx.ValueInfoProto) -> InputInfo:
    dtype, dims = type_name(value.type)
    return InputInfo(value.name, dtype, dims, dtype.startswith("optional"))


def read_names(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads itself; a Gradient names tensors in its attributes as well."""
    names = [name for name in node.input if name]
    if node.op_type == "Gradient":
        for a in node.attribute:
            names += [s.decode() for s in (*a.strings, *([a.s] if a.s else []))]
    return names


def free_names(nodes: Sequence[onnx.NodeProto], own: set[str]) -> list[str]:
    """Names used by the nodes (bodies included) but made by none of them nor in `own`; in order of first use."""
    made = set(own)
    found: dict[str, None] = {}
    for node in nodes:
        for name in read_names(node):
            if name not in made:
                found.setdefault(name)
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                found.update(dict.fromkeys(n for n in captured(graph) if n not in made))
        made.update(node.output)
    return list(found)


def captured(graph: onnx.GraphProto) -> list[str]:
    """Names that a sub-graph takes from outside."""
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    made = own | {o for n in graph.node for o in n.output}
    inner = free_names(graph.node, own)
    return inner + [o.name for o in graph.output if o.name not in made and o.name not in inner]
