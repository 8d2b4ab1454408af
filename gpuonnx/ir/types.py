"""Element types: one row a type. Names are short (`f32`, `i8`, `bool`); the table gives the other worlds' names."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ElementType:
    """`compute` is the type a load of it has inside an expression; `size` is bytes an element in memory."""

    name: str
    onnx: int
    numpy_name: str
    size: int
    kind: str
    compute: str


_ROWS = """
    f32 1 float32 4 f f32        u8 2 uint8 1 u u8            i8 3 int8 1 i i8            u16 4 uint16 2 u u16
    i16 5 int16 2 i i16          i32 6 int32 4 i i32          i64 7 int64 8 i i64         str 8 object 8 s str
    bool 9 bool 1 b bool         f16 10 float16 2 f f32       f64 11 float64 8 f f64      u32 12 uint32 4 u u32
    u64 13 uint64 8 u u64        c64 14 complex64 8 c c64     c128 15 complex128 16 c c128  bf16 16 bfloat16 2 f f32
    f8e4m3fn 17 float8_e4m3fn 1 f f32      f8e4m3fnuz 18 float8_e4m3fnuz 1 f f32
    f8e5m2 19 float8_e5m2 1 f f32          f8e5m2fnuz 20 float8_e5m2fnuz 1 f f32
    u4 21 uint4 1 u u8           i4 22 int4 1 i i8            f4e2m1 23 float4_e2m1fn 1 f f32
    f8e8m0 24 float8_e8m0fnu 1 f f32       u2 25 uint2 1 u u8            i2 26 int2 1 i i8
    f6e2m3 27 float6_e2m3fn 1 f f32        f6e3m2 28 float6_e3m2fn 1 f f32
""".split()

TYPES = {
    _ROWS[i]: ElementType(_ROWS[i], int(_ROWS[i + 1]), _ROWS[i + 2], int(_ROWS[i + 3]), _ROWS[i + 4], _ROWS[i + 5])
    for i in range(0, len(_ROWS), 6)
}
BY_ONNX = {t.onnx: t.name for t in TYPES.values()}
INDEX = "ix"
BITS = {"i2": 2, "u2": 2, "i4": 4, "u4": 4, "f4e2m1": 4, "f6e2m3": 6, "f6e3m2": 6}


@cache
def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of an element type; the types NumPy lacks come from ml_dtypes. `ix` is int64."""
    if name == INDEX:
        return np.dtype(np.int64)
    spelled = TYPES[name].numpy_name
    if _in_numpy(spelled):
        return np.dtype(spelled)
    import ml_dtypes
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, spelled))
    return found


def _in_numpy(spelled: str) -> bool:
    return spelled in ("bool", "object") or hasattr(np, spelled)


@cache
def _by_numpy(lacking: bool) -> dict[np.dtype, str]:
    """With or without the types that NumPy lacks, for which ml_dtypes has to be imported."""
    return {numpy_dtype(name): name for name, row in TYPES.items() if lacking or _in_numpy(row.numpy_name)}


@cache
def of_numpy(dtype: np.dtype) -> str:
    """The element type of a NumPy dtype; raises KeyError for one that ONNX has no tensor of."""
    dtype = np.dtype(dtype).newbyteorder("=")
    if dtype.kind in "UST":
        return "str"
    found = _by_numpy(False).get(dtype)
    return found if found is not None else _by_numpy(True)[dtype]


def kind(name: str) -> str:
    """`f`, `i`, `u`, `b`, `c` or `s`; the index type counts as `i`."""
    return "i" if name == INDEX else TYPES[name].kind


def compute(name: str) -> str:
    """The type that a value of this stored type has inside an expression."""
    return name if name == INDEX else TYPES[name].compute


def size(name: str) -> int:
    return 8 if name == INDEX else TYPES[name].size
