"""What Python does during a run: text, sequences, optionals. By name, so that programs stay plain data.

A function takes the node's inputs (arrays; lists for sequences; None for what is absent) and its attributes, and gives
the list of its outputs.
"""
from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuonnx.ir.types import numpy_dtype

HostFunction = Callable[[list[Any], dict[str, Any]], list[Any]]
HOST_FUNCTIONS: dict[str, HostFunction] = {}


def host_function(name: str) -> Callable[[HostFunction], HostFunction]:
    """Register a function under the name that `build.host` nodes call it by."""
    def register(function: HostFunction) -> HostFunction:
        HOST_FUNCTIONS[name] = function
        return function
    return register


def texts(array: Any) -> np.ndarray:
    """An array of Python strings."""
    source = np.asarray(array)
    out = np.empty(source.size, object)
    out[:] = [x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else str(x) for x in source.ravel()]
    return out.reshape(source.shape)


@host_function("cast_text")
def cast_text(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """Numbers to text as NumPy prints them, text to numbers as Python reads them."""
    x, to = np.asarray(arrays[0]), attrs["to"]
    if to == "str":
        return [texts(x)]
    dtype = numpy_dtype(to)
    read: Callable[[str], Any] = float if dtype.kind not in "iub" else _integer
    values = np.array([read(s) for s in texts(x).ravel()], object if dtype.kind in "iu" else None)
    return [values.astype(dtype).reshape(x.shape)]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))


@host_function("random_key")
def random_key(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    return [np.array(secrets.randbits(63), np.int64)]


@host_function("bit_cast")
def bit_cast(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    x = np.asarray(arrays[0])
    return [np.ascontiguousarray(x).view(numpy_dtype(attrs["to"])).reshape(x.shape)]


def kept(value: Any) -> Any:
    """A value that outlives the memory it was lent from."""
    if isinstance(value, list):
        return [kept(v) for v in value]
    return None if value is None else np.array(value)


def place_in(array: Any, count: int, inserting: bool = False) -> int:
    at = int(np.asarray(array).reshape(-1)[0])
    place = at + count if at < 0 else at
    if not 0 <= place < count + inserting:
        raise IndexError(f"position {at} of a sequence of {count}")
    return place


@host_function("sequence_construct")
def sequence_construct(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    return [[kept(a) for a in arrays]]


@host_function("sequence_insert")
def sequence_insert(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    items, element, position = [*arrays, None][:3]
    at = len(items) if position is None else place_in(position, len(items), inserting=True)
    return [[*items[:at], kept(element), *items[at:]]]


@host_function("sequence_erase")
def sequence_erase(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    items, position = [*arrays, None][:2]
    at = place_in(-1 if position is None else position, len(items))
    return [[*items[:at], *items[at + 1:]]]


@host_function("sequence_at")
def sequence_at(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    items, position = arrays
    return [items[place_in(position, len(items))]]


@host_function("sequence_length")
def sequence_length(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    return [np.array(len(arrays[0]), np.int64)]


@host_function("split_to_sequence")
def split_to_sequence(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    x, parts = [*arrays, None][:2]
    axis, size = attrs["axis"], x.shape[attrs["axis"]]
    sizes = np.ones(size, np.int64) if parts is None else np.asarray(parts, np.int64)
    if sizes.ndim == 0:
        if sizes <= 0:
            raise ValueError(f"pieces of {sizes} elements")
        sizes = np.minimum(sizes, size - np.arange(0, size, int(sizes)))
    if sizes.sum() != size or (sizes < 0).any():
        raise ValueError(f"the parts {sizes.tolist()} do not make up an axis of {size}")
    pieces = np.split(x, np.cumsum(sizes)[:-1], axis) if len(sizes) else []
    if parts is None and not attrs["keepdims"]:
        pieces = [p.squeeze(axis) for p in pieces]
    return [[kept(p) for p in pieces]]


@host_function("concat_from_sequence")
def concat_from_sequence(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    join = np.stack if attrs["new_axis"] else np.concatenate
    return [join(arrays[0], axis=attrs["axis"])]


@host_function("optional")
def optional(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    return [kept(arrays[0])]


@host_function("optional_has")
def optional_has(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    return [np.array(arrays[0] is not None)]


@host_function("optional_get")
def optional_get(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    if arrays[0] is None:
        raise ValueError("the optional holds nothing")
    return [arrays[0]]


@host_function("string_concat")
def string_concat(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    return [np.asarray(np.add(texts(arrays[0]), texts(arrays[1])), object)]


@host_function("string_split")
def string_split(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    x = texts(arrays[0])
    limit = -1 if attrs["maxsplit"] is None else attrs["maxsplit"]
    pieces = [s.split(attrs["delimiter"], limit) for s in x.ravel()]
    longest = max(map(len, pieces), default=0)
    out = np.full((x.size, longest), "", object)
    for row, parts in zip(out, pieces, strict=True):
        row[:len(parts)] = parts
    return [out.reshape(*x.shape, longest), np.array([len(p) for p in pieces], np.int64).reshape(x.shape)]


@host_function("regex_full_match")
def regex_full_match(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    x = texts(arrays[0])
    pattern = re.compile(attrs["pattern"])
    return [np.array([pattern.fullmatch(s) is not None for s in x.ravel()], bool).reshape(x.shape)]


CASES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}


@host_function("string_normalizer")
def string_normalizer(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    x = texts(arrays[0])
    if x.ndim == 2 and x.shape[0] != 1 or x.ndim not in (1, 2):
        raise ValueError(f"StringNormalizer takes [C] or [1, C], here {list(x.shape)}")
    stop = set(attrs["stopwords"]) if attrs["sensitive"] else {s.lower() for s in attrs["stopwords"]}
    left = [s for s in x.ravel() if (s if attrs["sensitive"] else s.lower()) not in stop]
    out = texts(np.array([CASES[attrs["case"]](s) for s in left] or [""], object))
    return [out.reshape(*x.shape[:-1], -1)]


@host_function("tf_idf")
def tf_idf(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    x = arrays[0]
    rows = (texts(x) if np.asarray(x).dtype.kind in "OSU" else np.asarray(x)).reshape(-1, np.asarray(x).shape[-1] if np.ndim(x) else 1)
    starts, pool = [*attrs["starts"], len(attrs["pool"])], attrs["pool"]
    known: dict[tuple[Any, ...], int] = {}
    for length, (start, stop) in enumerate(zip(starts, starts[1:], strict=False), 1):
        for at in range(start, stop, length):
            known.setdefault(tuple(pool[at:at + length]), len(known))
    places, weights = np.array(attrs["places"]), np.array(attrs["weights"] or [1.0] * len(attrs["places"]), np.float32)
    low, high = attrs["lengths"]
    out = np.zeros((len(rows), max(attrs["places"]) + 1), np.float32)
    for row, tokens in zip(out, rows.tolist(), strict=True):
        for length in range(low, high + 1):
            for gram in _grams(tokens, length, attrs["skips"]):
                if (which := known.get(gram)) is not None:
                    row[places[which]] += 1
    if attrs["mode"] != "TF":
        scale = np.ones(out.shape[1], np.float32)
        scale[places] = weights
        out = (np.minimum(out, 1) if attrs["mode"] == "IDF" else out) * scale
    return [out.reshape(*np.shape(x)[:-1], -1)]


def _grams(tokens: list[Any], length: int, skips: int) -> Iterator[tuple[Any, ...]]:
    """The n-grams of a row, with 0 to `skips` items left out between neighbours; single items once."""
    for step in range(1, (skips if length > 1 else 0) + 2):
        for start in range(len(tokens) - (length - 1) * step):
            yield tuple(tokens[start:start + (length - 1) * step + 1:step])
