"""The body of det, compiled by Numba."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba import float64
from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer


@register_jitable
def pivot_of(a: Any, size: Any, column: Any) -> Any:
    """The row, at or below the diagonal, of the largest magnitude in a column."""
    best = column
    for i in range(column + 1, size):
        if abs(a[i * size + column]) > abs(a[best * size + column]):
            best = i
    return best


@cache
def kernel(dtype: str) -> Any:
    at, doubles = pointer(dtype), pointer("f64")

    def run(context: Any, words: Any, task: Any) -> None:
        size = words[3]
        a, x = doubles(words[2] + 8 * task * size * size), at(words[0])
        base = task * words[4]
        for i in range(size):
            for j in range(size):
                a[i * size + j] = x[base + i * words[5] + j * words[6]]
        result = float64(1)
        for k in range(size):
            p = pivot_of(a, size, k)
            if p != k:
                result = -result
                for j in range(k, size):
                    a[p * size + j], a[k * size + j] = a[k * size + j], a[p * size + j]
            pivot = a[k * size + k]
            result *= pivot
            if pivot == 0:
                break
            for i in range(k + 1, size):
                factor = a[i * size + k] / pivot
                for j in range(k + 1, size):
                    a[i * size + j] -= factor * a[k * size + j]
        at(words[1])[task * words[7]] = result
    return run
