"""Runs ONNX models; kernels are compiled while the program runs. Nothing heavy is imported before it is needed."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import (
    Cancelled,
    CompileError,
    DeviceError,
    GpuOnnxError,
    InputError,
    MemoryLimitError,
    ModelError,
    ShapeError,
    UnsupportedOp,
    UnsupportedType,
)
from gpuonnx.importer.load import Limits
from gpuonnx.session import Session, load, run

if TYPE_CHECKING:
    from gpuonnx import backend as backend
    from gpuonnx.ops.registry import op as op

__version__ = "0.1.0"

_LAZY = {
    "op": "gpuonnx.ops.registry",
}

__all__ = [
    "Cancelled", "CompileError", "DeviceError", "GpuOnnxError", "InputError", "MemoryLimitError", "ModelError", "ShapeError",
    "UnsupportedOp", "UnsupportedType", "Limits", "Session", "backend", "load", "op", "run",
]


def __getattr__(name: str) -> Any:
    if name == "backend":
        return import_module("gpuonnx.backend")
    if name not in _LAZY:
        raise AttributeError(f"module 'gpuonnx' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "backend"})
