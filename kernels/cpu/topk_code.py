"""The body of topk: a heap of the k best so far, the worst of them on top, sorted at the end. Compiled by Numba."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer


@cache
def kernel(dtype: str, largest: bool) -> Any:  # noqa: C901
    at, ints = pointer(dtype), pointer("i64")

    @register_jitable
    def better(a: Any, i: Any, b: Any, j: Any) -> Any:
        """Whether value a at position i comes before b at j."""
        if a == b or (a != a and b != b):
            return i < j
        if largest:
            return a != a or a > b
        return b != b or a < b

    @register_jitable
    def sink(values: Any, places: Any, stride: Any, other: Any, count: Any) -> None:
        """Restore the heap below its top: every parent is worse than its children."""
        parent = 0
        while True:
            child = 2 * parent + 1
            if child >= count:
                return
            right = child + 1
            if right < count and better(values[child * stride], places[child * other], values[right * stride], places[right * other]):
                child = right
            if better(values[child * stride], places[child * other], values[parent * stride], places[parent * other]):
                return
            swap(values, places, stride, other, child, parent)
            parent = child

    @register_jitable
    def swap(values: Any, places: Any, stride: Any, other: Any, i: Any, j: Any) -> None:
        value, place = values[i * stride], places[i * other]
        values[i * stride], places[i * other] = values[j * stride], places[j * other]
        values[j * stride], places[j * other] = value, place

    @register_jitable
    def rise(values: Any, places: Any, stride: Any, other: Any, child: Any) -> None:
        while child > 0:
            parent = (child - 1) // 2
            if better(values[child * stride], places[child * other], values[parent * stride], places[parent * other]):
                return
            swap(values, places, stride, other, child, parent)
            child = parent

    def run(context: Any, words: Any, task: Any) -> None:
        count, wanted, step = words[3], words[4], words[6]
        stride, other = words[8], words[10]
        source = words[5] * task
        x = at(words[0])
        size = words[11] * 0
        values, places = at(words[1] + words[7] * task * words[11]), ints(words[2] + words[9] * task * 8)
        if wanted == 0:
            return
        for i in range(count):
            value = x[source + i * step]
            if size < wanted:
                values[size * stride], places[size * other] = value, i
                rise(values, places, stride, other, size)
                size += 1
            elif better(value, i, values[0], places[0]):
                values[0], places[0] = value, i
                sink(values, places, stride, other, size)
        while size > 1:
            size -= 1
            swap(values, places, stride, other, 0, size)
            sink(values, places, stride, other, size)
    return run
