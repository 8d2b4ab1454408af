"""What an error record that a kernel left in ctx says."""
from __future__ import annotations

from typing import NoReturn

import numpy as np

from gpuonnx.errors import DeviceError
from gpuonnx.kernels.contract import CTX_CODE, CTX_LIMIT, CTX_VALUE, ERROR_CANCELLED, ERROR_DIVIDE, ERROR_DOMAIN, ERROR_INDEX


def explain(record: np.ndarray) -> NoReturn:
    """Raise the DeviceError of a record (int64 words of ctx)."""
    value, limit = int(record[CTX_VALUE]), int(record[CTX_LIMIT])
    raise DeviceError({
        ERROR_INDEX: f"index {value} is out of range: the axis has {limit} elements",
        ERROR_DIVIDE: "integer division by zero",
        ERROR_CANCELLED: "the run was cancelled",
        ERROR_DOMAIN: f"value {value} is outside what the kernel can take (limit {limit})",
    }.get(int(record[CTX_CODE]), f"a kernel failed with code {int(record[CTX_CODE])}"))
