"""The body of coupling, compiled by Numba."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba import float32
from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer


@register_jitable
def quadratic(q: Any, won: Any, step: Any, count: Any) -> None:
    """q[i, i] = sum of squares of what others win against i; q[i, j] = -r[j, i] * r[i, j]."""
    for i in range(count):
        q[i * count + i] = float32(0)
    pair = count * 0
    for i in range(count):
        for j in range(i + 1, count):
            r = won[pair * step]
            s = float32(1) - r
            q[i * count + i] += s * s
            q[j * count + j] += r * r
            q[i * count + j] = -r * s
            q[j * count + i] = -r * s
            pair += 1


@register_jitable
def swept(q: Any, qp: Any, p: Any, step: Any, count: Any) -> Any:
    """One round over the classes; True where p was good enough before it."""
    whole = float32(0)
    for i in range(count):
        qp[i] = float32(0)
        for j in range(count):
            qp[i] += q[i * count + j] * p[j * step]
        whole += p[i * step] * qp[i]
    error = float32(0)
    for i in range(count):
        error = max(error, abs(qp[i] - whole))
    if error < float32(0.005) / float32(count):
        return True
    for i in range(count):
        away = (whole - qp[i]) / q[i * count + i]
        p[i * step] += away
        scale = float32(1) + away
        whole = (whole + away * (away * q[i * count + i] + float32(2) * qp[i])) / scale / scale
        for j in range(count):
            qp[j] = (qp[j] + away * q[i * count + j]) / scale
            p[j * step] /= scale
    return False


@cache
def kernel() -> Any:
    at = pointer("f32")

    def run(context: Any, words: Any, task: Any) -> None:
        count, step = words[3], words[7]
        won, p = at(words[0] + 4 * task * words[4]), at(words[1] + 4 * task * words[6])
        q = at(words[2] + 4 * task * count * (count + 1))
        qp = at(words[2] + 4 * task * count * (count + 1) + 4 * count * count)
        quadratic(q, won, words[5], count)
        for i in range(count):
            p[i * step] = float32(1) / float32(count)
        for _ in range(100):
            if swept(q, qp, p, step, count):
                break
    return run
