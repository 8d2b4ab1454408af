"""The protobuf wire format, read without protobuf: where a file is broken, and where weights lie in it."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_NAME, TENSOR_RAW = 7, 5, 8, 9
MODEL_FIELDS = {1: "ir_version", 2: "producer_name", 3: "producer_version", 4: "domain", 5: "model_version", 6: "doc_string", 7: "graph",
                8: "opset_import", 14: "metadata_props", 20: "training_info", 25: "functions", 26: "configuration"}
MODEL_KINDS = {name: VARINT if name in ("ir_version", "model_version") else BYTES for name in MODEL_FIELDS.values()}


class Broken(Exception):
    """The bytes stop being protobuf at `offset`; `missing` more bytes are wanted, 0 where the bytes themselves are wrong."""

    def __init__(self, offset: int, missing: int) -> None:
        super().__init__(f"at byte {offset}")
        self.offset, self.missing = offset, missing


@dataclass(frozen=True)
class Field:
    """One field: its number, wire type, and the bytes [start, end) of its value."""

    number: int
    kind: int
    start: int
    end: int


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[start:end], not descending into them."""
    at = start
    while at < end:
        tag, value = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise Broken(at, 0)
        if kind == VARINT:
            stop = _varint(data, value, end)[1]
        elif kind == BYTES:
            length, value = _varint(data, value, end)
            stop = value + length
        elif kind in (FIXED32, FIXED64):
            stop = value + (4 if kind == FIXED32 else 8)
        else:
            raise Broken(at, 0)
        if stop > end:
            raise Broken(at, stop - end)
        yield Field(number, kind, value, stop)
        at = stop


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at `at` and the offset behind it."""
    number = 0
    for position in range(10):
        if at + position >= end:
            raise Broken(at, 1)
        byte = data[at + position]
        number |= (byte & 127) << (7 * position)
        if byte < 128:
            return number, at + position + 1
    raise Broken(at, 0)


def where_broken(data: memoryview) -> Broken | None:
    """The first place where a model's bytes, its graph's or its weights' are not protobuf."""
    try:
        for field in fields(data, 0, len(data)):
            if field.number == MODEL_GRAPH and field.kind == BYTES:
                for part in fields(data, field.start, field.end):
                    if part.kind == BYTES and part.number in (1, GRAPH_INITIALIZER):
                        for _ in fields(data, part.start, part.end):
                            pass
    except Broken as broken:
        return broken
    return None


def is_tensor(data: memoryview) -> bool:
    """Whether the bytes read as a TensorProto (a data_type, then data) rather than a model."""
    try:
        found = {(field.number, field.kind) for field in fields(data, 0, len(data))}
    except Broken:
        return False
    return (2, VARINT) in found and any((number, BYTES) in found for number in (4, 5, 6, 7, TENSOR_RAW, 10, 11))


def is_model(data: memoryview) -> bool:
    """Whether the top-level fields are those of a ModelProto, as far as they can be read."""
    try:
        for field in fields(data, 0, len(data)):
            name = MODEL_FIELDS.get(field.number)
            if name is None or MODEL_KINDS[name] != field.kind:
                return False
    except Broken:
        return False
    return True


def weights(data: memoryview) -> dict[str, tuple[int, int]]:
    """Offset and length of the raw data of each initializer of the main graph that has any, by name."""
    found: dict[str, tuple[int, int]] = {}
    for field in fields(data, 0, len(data)):
        if field.number != MODEL_GRAPH or field.kind != BYTES:
            continue
        for part in fields(data, field.start, field.end):
            if part.number == GRAPH_INITIALIZER and part.kind == BYTES:
                name, place = "", None
                for item in fields(data, part.start, part.end):
                    if item.number == TENSOR_NAME:
                        name = bytes(data[item.start:item.end]).decode("utf-8", "replace")
                    elif item.number == TENSOR_RAW:
                        place = (item.start, item.end - item.start)
                if place is not None:
                    found[name] = place
    return found
