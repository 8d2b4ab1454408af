"""The body of unique, compiled by Numba: row numbers sorted by their rows (stable), then one walk over equal neighbours."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer


@cache
def kernel(dtype: str) -> Any:  # noqa: C901
    at, ints = pointer(dtype), pointer("i64")

    @register_jitable
    def order(x: Any, words: Any, i: Any, j: Any) -> Any:
        """-1, 0 or 1 as row i comes before, is equal to, or comes after row j."""
        for k in range(words[7]):
            a, b = x[i * words[8] + k * words[9]], x[j * words[8] + k * words[9]]
            if a < b or (b != b and a == a):
                return -1
            if a > b or (a != a and b == b):
                return 1
        return 0

    @register_jitable
    def merge(x: Any, words: Any, source: Any, target: Any, low: Any, middle: Any, high: Any) -> None:
        left, right = low, middle
        for k in range(low, high):
            if left < middle and (right >= high or order(x, words, source[left], source[right]) <= 0):
                target[k] = source[left]
                left += 1
            else:
                target[k] = source[right]
                right += 1

    @register_jitable
    def sorted_rows(x: Any, words: Any, rows: Any) -> Any:
        """The address of the row numbers in order, one of the two halves of the workspace."""
        here, there = words[5], words[5] + 8 * rows
        for k in range(rows):
            ints(here)[k] = k
        width = rows * 0 + 1
        while width < rows:
            for low in range(0, rows, 2 * width):
                merge(x, words, ints(here), ints(there), low, min(low + width, rows), min(low + 2 * width, rows))
            here, there = there, here
            width *= 2
        return here

    def run(context: Any, words: Any, task: Any) -> None:
        x, first, inverse, counts = at(words[0]), ints(words[1]), ints(words[2]), ints(words[3])
        rows, next_first, next_inverse, next_count = words[6], words[10], words[11], words[12]
        here = sorted_rows(x, words, rows)
        places, other = ints(here), ints(2 * words[5] + 8 * rows - here)
        found = rows * 0
        for k in range(rows):
            first[k * next_first] = 0
            counts[k * next_count] = 0
        for k in range(rows):
            row = places[k]
            if k == 0 or order(x, words, places[k - 1], row) != 0:
                first[found * next_first] = row
                found += 1
            inverse[row * next_inverse] = found - 1
        if words[13] == 0:
            seen = rows * 0
            for row in range(rows):
                group = inverse[row * next_inverse]
                if first[group * next_first] == row:
                    other[group] = seen
                    seen += 1
                inverse[row * next_inverse] = other[group]
            for row in range(rows - 1, -1, -1):
                first[inverse[row * next_inverse] * next_first] = row
        for row in range(rows):
            counts[inverse[row * next_inverse] * next_count] += 1
        ints(words[4])[0] = found
    return run
