"""Where the elements of a NumPy array begin. `__array_interface__` builds a dictionary for each answer; calls of a few microseconds
read the pointer, which stands behind the object's head, themselves."""
from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np

HEAD = object.__basicsize__
_word = ctypes.c_size_t.from_address


def _told(array: np.ndarray) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


def _read(array: np.ndarray) -> int:
    return _word(id(array) + HEAD).value


def _choose() -> Callable[[np.ndarray], int]:
    """The quick way where it answers as NumPy does."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_size_t) != ctypes.sizeof(ctypes.c_void_p):
        return _told
    base = np.zeros(6, np.int16)
    return _read if all(_read(a) == _told(a) for a in (base, base[1:], base[::-1], base.reshape(2, 3).T, np.zeros(()))) else _told


address = _choose()
