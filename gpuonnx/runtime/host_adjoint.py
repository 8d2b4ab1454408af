"""What Python does with the adjoints of sequences (`ops/gradient_sequence.py`)."""
from __future__ import annotations

from typing import Any

import numpy as np

from gpuonnx.ir.types import numpy_dtype
from gpuonnx.runtime.host import HOST_FUNCTIONS as HOST_FUNCTIONS
from gpuonnx.runtime.host import host_function, kept, place_in


@host_function("sequence_sum")
def sequence_sum(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    return [[a + b for a, b in zip(*arrays, strict=True)]]


@host_function("sequence_only")
def sequence_only(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """Zeros for every element of a sequence but one."""
    items, adjoint, position = arrays
    at = place_in(position, len(items))
    return [[kept(adjoint) if k == at else np.zeros(np.shape(x), adjoint.dtype) for k, x in enumerate(items)]]


@host_function("sequence_gap")
def sequence_gap(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """Zeros for the element of a sequence that the adjoints of the others do not speak of."""
    adjoints, items, position = arrays
    at = place_in(position, len(items))
    return [[*adjoints[:at], np.zeros(np.shape(items[at]), numpy_dtype(attrs["element"])), *adjoints[at:]]]


@host_function("sequence_pieces")
def sequence_pieces(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """What becomes of each element where they are joined."""
    items, whole = arrays
    axis = attrs["axis"]
    sizes = [1 if attrs["new_axis"] else x.shape[axis] for x in items]
    pieces = np.split(whole, np.cumsum(sizes)[:-1], axis)
    return [[kept(p.squeeze(axis) if attrs["new_axis"] else p) for p in pieces]]
