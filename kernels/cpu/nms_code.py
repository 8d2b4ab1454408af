"""The body of nms, compiled by Numba: candidates leave a heap best first; one that overlaps no chosen box is chosen."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba import float32
from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer

HALF = float32(0.5)


@register_jitable
def sink(heap: Any, count: Any, parent: Any, scores: Any, step: Any) -> None:
    """Restore the heap below `parent`: every parent is better than its children."""
    while True:
        child = 2 * parent + 1
        if child >= count:
            return
        if child + 1 < count and better(heap[child + 1], heap[child], scores, step):
            child += 1
        if not better(heap[child], heap[parent], scores, step):
            return
        heap[child], heap[parent] = heap[parent], heap[child]
        parent = child


@register_jitable
def better(i: Any, j: Any, scores: Any, step: Any) -> Any:
    a, b = scores[i * step], scores[j * step]
    return a > b or (a == b and i < j)


@register_jitable
def edges(box: Any, step: Any, centred: Any) -> Any:
    """Lower and upper corners and the area."""
    a, b, c, d = box[0], box[step], box[2 * step], box[3 * step]
    if centred != 0:
        a, c = a - c * HALF, a + c * HALF
        b, d = b - d * HALF, b + d * HALF
    low, left, high, right = min(a, c), min(b, d), max(a, c), max(b, d)
    return low, left, high, right, (high - low) * (right - left)


@register_jitable
def overlaps(first: Any, second: Any, step: Any, centred: Any, limit: Any) -> Any:
    """Whether the intersection is more than `limit` of the union."""
    a, b = edges(first, step, centred), edges(second, step, centred)
    high, wide = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if high <= 0 or wide <= 0 or a[4] <= 0 or b[4] <= 0:
        return False
    shared = high * wide
    return shared / (a[4] + b[4] - shared) > limit


@cache
def kernel() -> Any:
    at, ints = pointer("f32"), pointer("i64")

    def run(context: Any, words: Any, task: Any) -> None:
        boxes, rows, room = words[6], words[7], words[8]
        batch, row = task // rows, task % rows
        step = words[11]
        scores, stride = at(words[1] + 4 * (batch * words[12] + row * words[13])), words[14]
        out, next_out = ints(words[4] + 8 * (batch * words[15] + row * words[16])), words[17]
        first = words[0] + 4 * batch * words[9]
        limit = at(words[2])[0] if words[2] != 0 else float32(0)
        heap = ints(words[5] + 8 * task * boxes)
        count = words[6] * 0
        for n in range(boxes):
            score = scores[n * stride]
            if score == score and (words[3] == 0 or score > at(words[3])[0]):
                heap[count] = n
                count += 1
        for n in range(count // 2 - 1, -1, -1):
            sink(heap, count, n, scores, stride)
        chosen = words[6] * 0
        while count > 0 and chosen < room:
            best = heap[0]
            count -= 1
            heap[0] = heap[count]
            sink(heap, count, 0, scores, stride)
            free = True
            for k in range(chosen):
                other = out[k * next_out]
                if overlaps(at(first + 4 * best * words[10]), at(first + 4 * other * words[10]), step, words[18], limit):
                    free = False
                    break
            if free:
                out[chosen * next_out] = best
                chosen += 1
        for k in range(chosen, room):
            out[k * next_out] = -1
    return run
