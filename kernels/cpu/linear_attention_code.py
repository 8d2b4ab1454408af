"""The body of linear_attention, compiled by Numba; the words are those of `arguments`, then the work area."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba import float32
from numba.extending import register_jitable

from gpuonnx.kernels.cpu.linear_attention import COLUMNS, ROWS_BESIDE
from gpuonnx.kernels.cpu.pointers import pointer

Q, K, V, BEFORE, FACTORS, RATES, Y, AFTER = 13, 17, 21, 25, 29, 33, 36, 40
WORK = 44


@register_jitable
def faded(s: Any, row: Any, factor: Any, key: Any, found: Any) -> None:
    """A row of the state times its factor; what it holds for the key goes to `found`."""
    for j in range(COLUMNS):
        x = s[row + j] * factor
        s[row + j] = x
        s[found + j] += x * key


@register_jitable
def added(s: Any, target: Any, source: Any, factor: Any) -> None:
    for j in range(COLUMNS):
        s[target + j] += s[source + j] * factor


@register_jitable
def cleared(s: Any, row: Any) -> None:
    for j in range(COLUMNS):
        s[row + j] = float32(0)


@cache
def kernel() -> Any:
    f32 = pointer("f32")

    def run(context: Any, words: Any, task: Any) -> None:
        q, k, v = f32(words[0]), f32(words[1]), f32(words[2])
        factors, rates, y = f32(words[4]), f32(words[5]), f32(words[6])
        length, size, width, heads, group = words[8], words[9], words[10], words[11], words[12]
        parts = (width + COLUMNS - 1) // COLUMNS
        first, n, b = task % parts * COLUMNS, task // parts % heads, task // parts // heads
        count = min(COLUMNS, width - first)
        s = f32(words[WORK] + task * (size + ROWS_BESIDE) * COLUMNS * 4)
        found, read = size * COLUMNS, (size + 1) * COLUMNS
        for i in range(size):
            cleared(s, i * COLUMNS)
            if words[3] != 0:
                old = b * words[BEFORE] + n * words[BEFORE + 1] + i * words[BEFORE + 2]
                for j in range(count):
                    s[i * COLUMNS + j] = f32(words[3])[old + (first + j) * words[BEFORE + 3]]
        for t in range(length):
            key = b * words[K] + n * words[K + 1] + t * words[K + 2]
            fade = b * words[FACTORS] + n * words[FACTORS + 1] + t * words[FACTORS + 2]
            cleared(s, found)
            if words[4] != 0 or words[5] != 0:
                for i in range(size):
                    factor = factors[fade + i * words[FACTORS + 3]] if words[4] != 0 else float32(1)
                    faded(s, i * COLUMNS, factor, k[key + i * words[K + 3]], found)
            rate = rates[b * words[RATES] + n * words[RATES + 1] + t * words[RATES + 2]] if words[5] != 0 else float32(0)
            value = b * words[V] + n * words[V + 1] + t * words[V + 2]
            for j in range(count):
                x = v[value + (first + j) * words[V + 3]]
                s[found + j] = rate * (x - s[found + j]) if words[5] != 0 else x
            for i in range(size):
                added(s, i * COLUMNS, found, k[key + i * words[K + 3]])
            for g in range(group):
                query = b * words[Q] + (n * group + g) * words[Q + 1] + t * words[Q + 2]
                cleared(s, read)
                for i in range(size):
                    added(s, read, i * COLUMNS, q[query + i * words[Q + 3]])
                out = b * words[Y] + t * words[Y + 1] + (n * group + g) * words[Y + 2]
                for j in range(count):
                    y[out + (first + j) * words[Y + 3]] = s[read + j]
        for i in range(size):
            new = b * words[AFTER] + n * words[AFTER + 1] + i * words[AFTER + 2]
            for j in range(count):
                f32(words[7])[new + (first + j) * words[AFTER + 3]] = s[i * COLUMNS + j]
    return run
