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


@cache
def formals(domain: str, name: str, opset: int) -> tuple[Formal, ...] | None:
    """The inputs of an operator of the standard. Types that its newest version allows are allowed in older ones too; of versions
    with other inputs than the newest, types are not looked at."""
    from onnx import defs
    if not defs.has(name, opset, domain):
        return None
    schema: Any = defs.get_schema(name, opset, domain)
    newest: Any = defs.get_schema(name, domain)
    wider = {i.name: _names(i.types) for i in newest.inputs}
    if any(i.name not in wider for i in schema.inputs):
        return tuple(Formal(i.name, i.option == defs.OpSchema.FormalParameterOption.Single, True, "", frozenset()) for i in schema.inputs)
    return tuple(Formal(i.name, i.option == defs.OpSchema.FormalParameterOption.Single, i.option == defs.OpSchema.FormalParameterOption.Variadic,
                        "" if "(" in i.type_str or not i.is_homogeneous else i.type_str, _names(i.types) | wider.get(i.name, frozenset()))
                 for i in schema.inputs)


@cache
def _spelled() -> dict[str, str]:
    """Our name of a type by the standard's spelling, such as tensor(float)."""
    from onnx import TensorProto
    return {f"tensor({name.lower()})": BY_ONNX[number] for name, number in TensorProto.DataType.items() if number in BY_ONNX}


def _names(spelled: Sequence[str]) -> frozenset[str]:
    known = _spelled()
    return frozenset(known[s] for s in spelled if s in known)


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
        if formal.allowed and given.dtype not in formal.allowed:
            raise UnsupportedType(f"input {name!r} is {given.dtype}; {formal.name} of {node.op_type} may be {', '.join(sorted(formal.allowed))}: "
                                  "insert a Cast")
        if formal.variable:
            first, dtype = seen.setdefault(formal.variable, (name, given.dtype))
            if dtype != given.dtype:
                raise ModelError(f"inputs {first!r} ({dtype}) and {name!r} ({given.dtype}) must be of one type: insert a Cast")
