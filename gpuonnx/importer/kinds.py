"""Does a node get the inputs its schema asks for: all that are required, of allowed types, of one type where the schema says so?"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import ModelError, UnsupportedType
from gpuonnx.importer.procedure import is_tensor
from gpuonnx.ir.types import BY_ONNX

if TYPE_CHECKING:
    import onnx

    from gpuonnx.ir.build import Tensor


@dataclass(frozen=True)
class Formal:
    """An input of an operator: `variable` is the type it shares with others of that name, `allowed` our names of tensor types."""

    name: str
    required: bool
    variadic: bool
    variable: str
    allowed: frozenset[str]
    tensor: bool = True


@cache
def formals(domain: str, name: str, opset: int) -> tuple[Formal, ...] | None:
    """The inputs of an operator of the standard. Types that its newest version allows are allowed in older ones too; of versions
    with other inputs than the newest, types are not looked at."""
    from onnx import defs
    if not defs.has(name, opset, domain):
        return None
    schema: Any = defs.get_schema(name, opset, domain)
    newest: Any = defs.get_schema(name, domain)
    wider, loose = {i.name: _names(i.types) for i in newest.inputs}, {i.name: i.types for i in newest.inputs}
    if any(i.name not in wider for i in schema.inputs):
        return tuple(Formal(i.name, i.option == defs.OpSchema.FormalParameterOption.Single, True, "", frozenset()) for i in schema.inputs)
    option = defs.OpSchema.FormalParameterOption
    return tuple(Formal(i.name, i.option == option.Single, i.option == option.Variadic,
                        "" if "(" in i.type_str or not i.is_homogeneous else i.type_str, _names(i.types) | wider[i.name],
                        any(t.startswith("tensor(") for t in (*i.types, *loose[i.name])))
                 for i in schema.inputs)


@cache
def _spelled() -> dict[str, str]:
    """Our name of a type by the standard's spelling, such as tensor(float)."""
    from onnx import TensorProto
    return {f"tensor({name.lower()})": BY_ONNX[number] for name, number in TensorProto.DataType.items() if number in BY_ONNX}


def _names(spelled: Sequence[str]) -> frozenset[str]:
    known = _spelled()
    return frozenset(known[s] for s in spelled if s in known)


@cache
def attributes_of(domain: str, name: str, opset: int) -> dict[str, int] | None:
    """The attributes of an operator of the standard, with the number of their type; those of its newest version too."""
    from onnx import defs
    if not defs.has(name, opset, domain):
        return None
    both: Any = (defs.get_schema(name, domain), defs.get_schema(name, opset, domain))
    return {n: int(a.type) for schema in both for n, a in schema.attributes.items()}


def check_attributes(node: onnx.NodeProto, domain: str, opset: int) -> None:
    """Raises ModelError for an attribute that the operator does not have, or of another type than the standard's."""
    known = attributes_of(domain, node.op_type, opset)
    if known is None:
        return
    for a in node.attribute:
        wanted = known.get(a.name)
        if wanted is None:
            raise ModelError(f"{node.op_type} (opset {opset}) has no attribute {a.name!r}")
        if a.type and a.type != wanted:
            kind = type(a).AttributeType.Name
            raise ModelError(f"attribute {a.name!r} of {node.op_type} is a {kind(wanted)}, here a {kind(a.type)}")


def check_inputs(node: onnx.NodeProto, inputs: Sequence[Tensor | None], domain: str, opset: int) -> None:
    """Raises ModelError or UnsupportedType; operators that have no schema are not looked at."""
    wanted = formals(domain, node.op_type, opset)
    if wanted is None:
        return
    for position, formal in enumerate(wanted):
        if formal.required and (position >= len(inputs) or inputs[position] is None):
            raise ModelError(f"input {position} ({formal.name}) of {node.op_type} is required and absent")
    seen: dict[str, tuple[str, str]] = {}
    for position, given in enumerate(inputs if wanted else ()):
        formal = wanted[min(position, len(wanted) - 1)]
        if given is None or not is_tensor(given.dtype) or position >= len(wanted) and not formal.variadic:
            continue
        name = node.input[position]
        if not formal.tensor:
            raise UnsupportedType(f"input {name!r} is a tensor of {given.dtype}; {formal.name} of {node.op_type} is none")
        if formal.allowed and given.dtype not in formal.allowed:
            raise UnsupportedType(f"input {name!r} is {given.dtype}; {formal.name} of {node.op_type} may be {', '.join(sorted(formal.allowed))}: "
                                  "insert a Cast")
        if formal.variable:
            first, dtype = seen.setdefault(formal.variable, (name, given.dtype))
            if dtype != given.dtype:
                raise ModelError(f"inputs {first!r} ({dtype}) and {name!r} ({given.dtype}) must be of one type: insert a Cast")
