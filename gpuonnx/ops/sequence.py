"""Sequences and optionals: Python lists during the run, and nothing at all where their elements are known while lowering."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir.build import Spec, Tensor, concat, constant, host
from gpuonnx.ir.types import BY_ONNX
from gpuonnx.ops.registry import INTERNAL, op
from gpuonnx.ops.shape import split

WHY = "sequences and optionals are Python lists"


def held(x: Tensor) -> list[Tensor] | None:
    """The elements of a sequence that is known while lowering."""
    found = x.builder.held.get(x.value)
    return None if found is None else [t for t in found if t is not None]


def holding(x: Tensor, elements: Sequence[Tensor | None]) -> Tensor:
    x.builder.held[x.value] = list(elements)
    return x


def inner(dtype: str) -> str:
    """The element type of `seq(...)` or `optional(...)`."""
    if not dtype.endswith(")"):
        raise ModelError(f"{dtype} is neither a sequence nor an optional")
    return dtype[dtype.index("(") + 1:-1]


def place(position: Tensor | None, count: int) -> int | None:
    """A position known while lowering, counted from the start."""
    if position is None:
        return None
    found = position.builder.elements(position.value)
    at = found.reshape(-1)[0] if found is not None and found.size == 1 else None
    return at + count if isinstance(at, int) and at < 0 else at if isinstance(at, int) else None


def checked(at: int, count: int, owner: Tensor) -> int:
    if not 0 <= at < count:
        raise ShapeError(f"{owner.builder.origin}: position {at} of a sequence of {count}")
    return at


def sequence(name: str, *inputs: Tensor | None, dtype: str, elements: Sequence[Tensor] | None = None, rank: int | None = None,
             **attrs: Any) -> Tensor:
    """`rank`: of all elements, where it is known."""
    made: Tensor = host(name, *inputs, out=Spec(dtype, None), why=WHY, **attrs)
    if rank is not None:
        made.builder.element_ranks[made.value] = rank
    return made if elements is None else holding(made, elements)


def rank_of(x: Tensor) -> int | None:
    """The rank that all elements of a sequence have, if it is known."""
    ranks = {t.rank if t.is_tensor else None for t in held(x) or ()}
    return ranks.pop() if len(ranks) == 1 else None if ranks else x.builder.element_ranks.get(x.value)


def longer_rank(x: Tensor, element: Tensor) -> int | None:
    """The rank of all elements with one more."""
    mine = element.rank if element.is_tensor else None
    return mine if held(x) == [] or mine == rank_of(x) else None


def of_rank(dtype: str, rank: int | None) -> Spec:
    sizes: Any = None if rank is None else (None,) * rank
    return Spec(dtype, sizes)


@op("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> Tensor:
    return sequence("sequence_construct", dtype=f"seq({BY_ONNX[dtype]})", elements=[])


@op("SequenceConstruct", since=11)
def sequence_construct(*xs: Tensor) -> Tensor:
    return sequence("sequence_construct", *xs, dtype=f"seq({xs[0].dtype})", elements=xs)


@op("SequenceInsert", since=11)
def sequence_insert(x: Tensor, element: Tensor, position: Tensor | None = None) -> Tensor:
    known = held(x)
    if known is not None:
        at = len(known) if position is None else place(position, len(known))
        known = None if at is None else known[:checked(at, len(known) + 1, x)] + [element] + known[at:]
    return sequence("sequence_insert", x, element, position, dtype=x.dtype, elements=known, rank=longer_rank(x, element))


@op("Push", domain=INTERNAL)
def push(x: Tensor, element: Tensor) -> Tensor:
    return sequence("sequence_insert", x, element, None, dtype=x.dtype)


@op("Element", domain=INTERNAL)
def element(x: Tensor, number: Tensor, *, rank: int) -> Tensor:
    """The element at -1 - number, a tensor of known rank."""
    made: Tensor = host("sequence_at", x, -1 - number, out=of_rank(inner(x.dtype), rank), why=WHY)
    return made


@op("SequenceErase", since=11)
def sequence_erase(x: Tensor, position: Tensor | None = None) -> Tensor:
    known = held(x)
    if known is not None:
        at = len(known) - 1 if position is None else place(position, len(known))
        known = None if at is None else known[:checked(at, len(known), x)] + known[at + 1:]
    return sequence("sequence_erase", x, position, dtype=x.dtype, elements=known, rank=rank_of(x))


@op("SequenceAt", since=11)
def sequence_at(x: Tensor, position: Tensor) -> Tensor:
    known = held(x)
    at = None if known is None else place(position, len(known))
    if known is not None and at is not None:
        return known[checked(at, len(known), x)]
    made: Tensor = host("sequence_at", x, position, out=of_rank(inner(x.dtype), rank_of(x)), why=WHY)
    return made


@op("SequenceLength", since=11)
def sequence_length(x: Tensor) -> Tensor:
    known = held(x)
    if known is not None:
        return constant(len(known), "i64")
    made: Tensor = host("sequence_length", x, out=Spec("i64", ()), why=WHY)
    return made


@op("SplitToSequence", since=11)
def split_to_sequence(x: Tensor, parts: Tensor | None = None, *, axis: int = 0, keepdims: int = 1) -> Tensor:
    """Pieces of size 1 (without the axis unless `keepdims`), of one size (the last may be smaller), or of the sizes given."""
    axis = x.axis(axis)
    sizes = known_parts(x, parts, axis)
    elements = None if sizes is None else split(x, list(sizes), axis=axis, outputs=len(sizes)) if sizes else []
    if elements is not None and parts is None and not keepdims:
        elements = [t.squeeze([axis]) for t in elements]
    rank = x.rank if parts is not None or keepdims else x.rank - 1
    return sequence("split_to_sequence", x, parts, dtype=f"seq({x.dtype})", elements=elements, rank=rank, axis=axis, keepdims=keepdims)


def known_parts(x: Tensor, parts: Tensor | None, axis: int, limit: int = 256) -> list[int] | None:
    """The sizes of the pieces, where both their number and they are known while lowering."""
    size = x.shape[axis]
    if parts is None:
        return [1] * size if isinstance(size, int) and size <= limit else None
    given = x.builder.elements(parts.value)
    if given is None or not all(isinstance(p, int) for p in given.ravel()):
        return None
    if given.ndim:
        return [int(p) for p in given]
    part = int(given.item())
    if not isinstance(size, int) or part <= 0 or size > part * limit:
        return None
    return [part] * (size // part) + ([size % part] if size % part else [])


@op("ConcatFromSequence", since=11)
def concat_from_sequence(x: Tensor, *, axis: int, new_axis: int = 0) -> Tensor:
    known = held(x)
    if known:
        return concat([t.unsqueeze([axis]) for t in known] if new_axis else known, axis)
    rank = rank_of(x)
    spec = of_rank(inner(x.dtype), None if rank is None else rank + new_axis)
    made: Tensor = host("concat_from_sequence", x, out=spec, why=WHY, axis=axis, new_axis=new_axis)
    return made


@op("Optional", since=15)
def optional(x: Tensor | None = None, *, type: Any = None) -> Tensor:
    """An optional that holds x, or nothing of the `type`."""
    if x is None and type is None:
        raise ModelError("an Optional without an element needs a type")
    dtype = proto_dtype(type) if x is None else x.dtype
    made: Tensor = host("optional", x, out=Spec(f"optional({dtype})", None), why=WHY)
    return holding(made, [x])


def proto_dtype(proto: Any) -> str:
    """`f32`, `seq(f32)`, `optional(f32)` of a TypeProto."""
    match proto.WhichOneof("value"):
        case "sequence_type": return f"seq({proto_dtype(proto.sequence_type.elem_type)})"
        case "optional_type": return f"optional({proto_dtype(proto.optional_type.elem_type)})"
    return BY_ONNX[proto.tensor_type.elem_type]


@op("OptionalHasElement", since=15)
def optional_has_element(x: Tensor | None = None) -> Tensor:
    if x is None or not x.dtype.startswith("optional"):
        return constant(x is not None)
    if x.value in x.builder.held:
        return constant(x.builder.held[x.value][0] is not None)
    made: Tensor = host("optional_has", x, out=Spec("bool", ()), why=WHY)
    return made


@op("OptionalGetElement", since=15)
def optional_get_element(x: Tensor) -> Tensor:
    if not x.dtype.startswith("optional"):
        return x
    if x.value in x.builder.held:
        element = x.builder.held[x.value][0]
        if element is None:
            raise ModelError("OptionalGetElement of an empty optional")
        return element
    made: Tensor = host("optional_get", x, out=Spec(inner(x.dtype), None), why=WHY)
    return made
