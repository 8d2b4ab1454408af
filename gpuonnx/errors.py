"""Every error that gpuonnx raises on purpose. A message names the thing, what was expected, what came, and the mend."""
from __future__ import annotations


class GpuOnnxError(Exception):
    """Base of all errors raised by gpuonnx."""


class ModelError(GpuOnnxError):
    """The file is not a model, or the model breaks the standard."""


class UnsupportedOp(GpuOnnxError):
    """The model uses operators that have no definition; the message lists all of them."""


class UnsupportedType(GpuOnnxError):
    """An element type that an operator or a device cannot take."""


class InputError(GpuOnnxError):
    """An input that is missing, unknown, or of the wrong type."""


class ShapeError(GpuOnnxError):
    """Sizes that cannot be: of an input, or met by a node while running; also an index that is out of range."""


class CompileError(GpuOnnxError):
    """A kernel did not compile."""


class DeviceError(GpuOnnxError):
    """A device that is absent or failed."""


class MemoryLimitError(GpuOnnxError):
    """The run needs more memory than `memory_limit` allows."""


class Cancelled(GpuOnnxError):
    """The run was stopped by its deadline."""
