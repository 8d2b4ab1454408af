"""Host functions of ai.onnx.ml that handle maps, and Unique of text."""
from __future__ import annotations

from typing import Any

import numpy as np

from gpuonnx.ir.types import numpy_dtype
from gpuonnx.runtime.host import host_function, texts
from gpuonnx.runtime.host_reference import HOST_FUNCTIONS as HOST_FUNCTIONS


@host_function("zip_map")
def zip_map(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    rows = np.atleast_2d(np.asarray(arrays[0])).tolist()
    return [[dict(zip(attrs["labels"], row, strict=True)) for row in rows]]


def converted(values: list[Any], dtype: str) -> np.ndarray:
    """One row of a type; text as Python prints and reads it."""
    if dtype == "str":
        return texts(np.array(values, object))
    return np.array([float(v) if dtype == "f32" else int(float(v)) for v in values], numpy_dtype(dtype))


@host_function("cast_map")
def cast_map(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """attrs: to, columns (None: dense)."""
    given, columns = arrays[0], attrs["columns"]
    keys = sorted(given)
    row = converted([given[k] for k in keys], attrs["to"])
    if columns is None:
        return [row.reshape(1, -1)]
    if keys and not 0 <= keys[0] <= keys[-1] < columns:
        raise IndexError(f"the keys {keys[0]} to {keys[-1]} of a sparse map do not fit {columns} columns")
    out = np.full((1, columns), "" if attrs["to"] == "str" else 0, row.dtype)
    out[0, keys] = row
    return [out]


@host_function("dict_vectorizer")
def dict_vectorizer(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """attrs: vocabulary, dtype."""
    nothing = "" if attrs["dtype"] == "str" else 0
    found = np.empty((1, len(attrs["vocabulary"])), object)
    found[0, :] = [arrays[0].get(k, nothing) for k in attrs["vocabulary"]]
    return [found if attrs["dtype"] == "str" else found.astype(numpy_dtype(attrs["dtype"]))]


@host_function("unique")
def unique(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """Unique of text; attrs: axis (None: all elements), sorted."""
    x, axis = texts(arrays[0]), attrs["axis"]
    rows = x.reshape(-1, 1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    keys = [tuple(row) for row in rows.tolist()]
    first: dict[Any, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    order = sorted(first) if attrs["sorted"] else list(first)
    number = {key: k for k, key in enumerate(order)}
    inverse = np.array([number[key] for key in keys], np.int64)
    indices = np.array([first[key] for key in order], np.int64)
    y = x.reshape(-1)[indices] if axis is None else np.take(x, indices, axis)
    return [y, indices, inverse, np.bincount(inverse, minlength=len(order)).astype(np.int64)]
