"""What kernels written in Numba start from: words of `args` as typed pointers."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

ELEMENTS = {"f32": types.float32, "f64": types.float64, "i8": types.int8, "u8": types.uint8, "i16": types.int16, "u16": types.uint16,
            "i32": types.int32, "u32": types.uint32, "i64": types.int64, "u64": types.uint64, "bool": types.uint8}


@cache
def pointer(dtype: str) -> Any:
    """A function for kernels: an address (int64) as a pointer to elements of `dtype`."""
    element = ELEMENTS[dtype]

    @intrinsic
    def typed(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))
        return types.CPointer(element)(types.int64), code  # type: ignore[no-untyped-call]
    return typed
