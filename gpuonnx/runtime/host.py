"""What Python does during a run: text, sequences, optionals. By name, so that programs stay plain data.

A function takes the node's inputs (arrays; lists for sequences; None for what is absent) and its attributes, and gives
the list of its outputs.
"""
from __future__ import annotations

from collections.abc import Callable
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


@host_function("bit_cast")
def bit_cast(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    x = np.asarray(arrays[0])
    return [np.ascontiguousarray(x).view(numpy_dtype(attrs["to"])).reshape(x.shape)]
