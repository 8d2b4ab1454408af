"""The bodies of fft and fft_plan, compiled by Numba: Stockham's passes, one for each factor, between two buffers.

A pass with factor p reads cc[i + ido * (j + p * k)] and writes ch[i + ido * (k + l1 * j)], j < p, k < l1, i < ido, l1 being the
product of the factors before; elements are pairs of numbers. Only the forward sign is computed: the inverse is the same with
the two parts of every number exchanged.

Plan: length of the passes, of the convolution (0: none), number of factors, the factors, and at CHIRP where in the table the
chirp stands. Table: for each pass its roots
[p - 1, ido], for a factor without a pass of its own the p roots of 1, then the chirp and its transform.
"""
from __future__ import annotations

import math
from functools import cache
from typing import Any

from numba import float32, float64
from numba.extending import register_jitable

from gpuonnx.ir.types import numpy_dtype
from gpuonnx.kernels.cpu import fft
from gpuonnx.kernels.cpu.fft_pass import passes
from gpuonnx.kernels.cpu.pointers import pointer

doubles, ints = pointer("f64"), pointer("i64")
CHIRP = fft.PLAN_WORDS - 1
cost, padded = register_jitable(fft.cost), register_jitable(fft.padded)


@register_jitable
def factorized(n: Any, plan: Any) -> None:
    """8s, 4s, a 2 in front, then the odd ones."""
    plan[0], count = n, 0
    while n % 8 == 0:
        plan[3 + count], count, n = 8, count + 1, n // 8
    while n % 4 == 0:
        plan[3 + count], count, n = 4, count + 1, n // 4
    if n % 2 == 0:
        plan[3 + count], n = 2, n // 2
        plan[3 + count], plan[3] = plan[3], 2
        count += 1
    p = 3
    while p * p <= n:
        while n % p == 0:
            plan[3 + count], count, n = p, count + 1, n // p
        p += 2
    if n > 1:
        plan[3 + count], count = n, count + 1
    plan[2] = count


@register_jitable
def unit(k: Any, n: Any, out: Any, at: Any) -> None:
    """out[at] = the k-th of n roots of 1, as an angle below an eighth of a turn."""
    quarter = 4 * k // n
    rest = 4 * k - quarter * n
    swapped = 2 * rest > n
    angle = (n - rest if swapped else rest) * (0.5 * math.pi) / n
    c, s = math.cos(angle), math.sin(angle)
    if swapped:
        c, s = s, c
    quarter &= 3
    if quarter == 1:
        c, s = -s, c
    elif quarter == 2:
        c, s = -c, -s
    elif quarter == 3:
        c, s = s, -c
    out[at], out[at + 1] = c, s


@register_jitable
def prepared(n: Any, roots: Any) -> Any:
    """Two small tables whose products are all n roots of 1; gives the bits of the first."""
    shift = 0
    while (1 << (2 * shift)) < n:
        shift += 1
    for k in range(1 << shift):
        unit(k, n, roots, 2 * k)
    for k in range((n >> shift) + 1):
        unit(k << shift, n, roots, 2 * (k + (1 << shift)))
    return shift


@register_jitable
def root(k: Any, shift: Any, roots: Any) -> Any:
    low, high = 2 * (k & ((1 << shift) - 1)), 2 * ((k >> shift) + (1 << shift))
    a, b, c, d = roots[low], roots[low + 1], roots[high], roots[high + 1]
    return a * c - b * d, a * d + b * c


@register_jitable
def tabulated(plan: Any, table: Any, roots: Any) -> Any:
    """The roots of every pass; gives where the table goes on."""
    n, l1, place = plan[0], 1, 0
    shift = prepared(n, roots)
    for f in range(plan[2]):
        p = plan[3 + f]
        ido = n // (l1 * p)
        for j in range(1, p):
            for i in range(ido):
                table[place], table[place + 1] = root(j * l1 * i, shift, roots)
                place += 2
        if p > 5 and p != 8:
            for j in range(p):
                table[place], table[place + 1] = root(j * (n // p), shift, roots)
                place += 2
        l1 *= p
    return place


@cache
def planner(dtype: str) -> Any:
    at, transform = pointer(dtype), passes(dtype)

    def run(context: Any, words: Any, task: Any) -> None:
        plan, table, roots, scratch = ints(words[0]), at(words[1]), doubles(words[2]), at(words[2])
        n = words[3]
        if n <= 0:
            return
        m = padded(n)
        factorized(m if m else n, plan)
        plan[1] = m
        place = tabulated(plan, table, roots)
        plan[CHIRP] = place
        if m == 0:
            return
        shift = prepared(2 * n, roots)
        square = 0
        for k in range(n):
            table[place + 2 * k], table[place + 2 * k + 1] = root(square, shift, roots)
            square = (square + 2 * k + 1) % (2 * n)
        scale = 1.0 / m
        for k in range(2 * m):
            scratch[k] = 0
        for k in range(n):
            for part in range(2):
                value = table[place + 2 * k + part] * scale
                scratch[2 * k + part] = value
                scratch[2 * ((m - k) % m) + part] = value
        end, _ = transform(scratch, at(words[2] + 2 * m * words[4]), plan, table)
        for k in range(2 * m):
            table[place + 2 * n + k] = end[k]
    return run


@cache
def kernel(dtype: str, work: str) -> Any:  # noqa: C901
    """`dtype`: of what is read and stored; `work`: of all that is in between."""
    at, wide, transform = pointer(dtype), pointer(work), passes(work)
    real: Any = {"f32": float32, "f64": float64}[work]
    nothing, one = numpy_dtype(work).type(0), numpy_dtype(work).type(1)

    @register_jitable
    def taken(x: Any, words: Any, base: Any, k: Any) -> Any:
        """Input k of a row."""
        have, step, part = words[7], words[11], words[13]
        sign = one
        if words[20] and k > words[6] // 2:
            k, sign = words[6] - k, -one
        if k >= have:
            return nothing, nothing
        if words[21] < 2:
            return real(x[base + k * step]), nothing
        return real(x[base + k * step]), x[base + k * step + part] * sign

    @register_jitable
    def loaded(a: Any, x: Any, words: Any, base: Any) -> None:
        for k in range(words[6]):
            real, imaginary = taken(x, words, base, k)
            if words[19]:
                a[2 * k], a[2 * k + 1] = imaginary, real
            else:
                a[2 * k], a[2 * k + 1] = real, imaginary

    @register_jitable
    def stored(a: Any, y: Any, words: Any, base: Any, scale: Any) -> None:
        step, part = words[15], words[17]
        for k in range(words[8]):
            if words[19]:
                y[base + k * step] = a[2 * k + 1] * scale
                if words[22] > 1:
                    y[base + k * step + part] = a[2 * k] * scale
            else:
                y[base + k * step] = a[2 * k]
                if words[22] > 1:
                    y[base + k * step + part] = a[2 * k + 1]

    @register_jitable
    def times(a: Any, table: Any, place: Any, n: Any, swap: Any) -> None:
        """a[k] by the conjugate of the table's number; or by the number itself, with the parts exchanged."""
        for k in range(n):
            re, im, c, s = a[2 * k], a[2 * k + 1], table[place + 2 * k], table[place + 2 * k + 1]
            if swap:
                a[2 * k], a[2 * k + 1] = re * s + im * c, re * c - im * s
            else:
                a[2 * k], a[2 * k + 1] = re * c + im * s, im * c - re * s

    @register_jitable
    def exchanged(a: Any, n: Any) -> None:
        for k in range(n):
            a[2 * k], a[2 * k + 1] = a[2 * k + 1], a[2 * k]

    @register_jitable
    def convolved(a: Any, b: Any, plan: Any, table: Any, n: Any) -> Any:
        """The transform of a[:n] as a convolution with the chirp."""
        m, chirp, spectrum = plan[1], plan[CHIRP], plan[CHIRP] + 2 * n
        times(a, table, chirp, n, False)
        for k in range(2 * n, 2 * m):
            a[k] = 0
        there, other = transform(a, b, plan, table)
        times(there, table, spectrum, m, True)
        back, _ = transform(there, other, plan, table)
        exchanged(back, n)
        times(back, table, chirp, n, False)
        return back

    def run(context: Any, words: Any, task: Any) -> None:
        x, y, plan, table = at(words[0]), at(words[1]), ints(words[2]), wide(words[3])
        rows, n, inner = words[5], words[6], words[9]
        if n <= 0:
            return
        length = plan[1] if plan[1] else n
        first, second = wide(words[4] + task * words[23]), wide(words[4] + task * words[23] + 2 * length * words[24])
        scale = real(1.0 / n)
        for row in range(task, rows, words[18]):
            loaded(first, x, words, row // inner * words[10] + row % inner * words[12])
            if plan[1]:
                found = convolved(first, second, plan, table, n)
            else:
                found, _ = transform(first, second, plan, table)
            stored(found, y, words, row // inner * words[14] + row % inner * words[16], scale)
    return run
