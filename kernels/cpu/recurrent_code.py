"""The bodies of the recurrent kernels, compiled by Numba. One task runs one direction of some batch entries through time.

`words` holds, in order: pointers, sizes, strides in elements (`recurrent.NAMES`). Gates of x come in computed; here are the
products with the hidden state, as sums of rows of the transposed recurrence weights, and the gates' functions.
"""
from __future__ import annotations

import math
from functools import cache
from typing import Any

from numba import float32, float64
from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer

RELU, TANH, SIGMOID, AFFINE, LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH, HARD_SIGMOID, ELU, SOFTSIGN, SOFTPLUS = range(11)


@register_jitable
def activated(code: Any, x: Any, alpha: Any, beta: Any) -> Any:
    if code == SIGMOID:
        return 1 / (1 + math.exp(-x))
    if code == TANH:
        return math.tanh(x)
    if code == RELU:
        return max(x, x * 0)
    if code == AFFINE:
        return alpha * x + beta
    if code == LEAKY_RELU:
        return x if x >= 0 else alpha * x
    if code == THRESHOLDED_RELU:
        return x if x > alpha else x * 0
    if code == SCALED_TANH:
        return alpha * math.tanh(beta * x)
    if code == HARD_SIGMOID:
        return min(max(alpha * x + beta, x * 0), x * 0 + 1)
    if code == ELU:
        return x if x >= 0 else alpha * (math.exp(x) - 1)
    if code == SOFTSIGN:
        return x / (1 + abs(x))
    return math.log(1 + math.exp(x)) if x < 30 else x


@cache
def kernel(cell: str, dtype: str) -> Any:  # noqa: C901
    """The kernel of `cell` (rnn, gru, lstm) for float32 or float64."""
    real, at, ints, unit = (float32 if dtype == "f32" else float64), pointer(dtype), pointer("i32"), 4 if dtype == "f32" else 8

    @register_jitable
    def clipped(x: Any, limit: Any) -> Any:
        return x if limit <= 0 else min(max(x, -limit), limit)

    @register_jitable
    def product(gates: Any, first: Any, count: Any, h: Any, hidden: Any, r: Any, line: Any) -> None:
        """gates[first:first + count] += h @ r[:, first:first + count], a row of r having `line` elements."""
        for k in range(hidden):
            value = h[k]
            base = k * line + first
            for j in range(count):
                gates[first + j] += r[base + j] * value

    @register_jitable
    def function(words: Any, number: Any, x: Any) -> Any:
        return real(activated(words[47 + number], x, at(words[46])[2 * number], at(words[46])[2 * number + 1]))

    @register_jitable
    def rnn(words: Any, h: Any, q: Any, c: Any, gates: Any, r: Any, p: Any, extra: Any, hidden: Any, limit: Any, first: Any) -> None:
        product(gates, 0, hidden, q, hidden, r, hidden)
        for j in range(hidden):
            h[j] = function(words, first, clipped(gates[j], limit))

    @register_jitable
    def gru(words: Any, h: Any, q: Any, c: Any, gates: Any, r: Any, p: Any, extra: Any, hidden: Any, limit: Any, first: Any) -> None:
        """gates: z, r, h. With linear_before_reset (words[44]) the bias `extra` of h belongs to the recurrent product."""
        product(gates, 0, 2 * hidden, q, hidden, r, 3 * hidden)
        for j in range(2 * hidden):
            gates[j] = function(words, first, clipped(gates[j], limit))
        if words[44] != 0:
            for j in range(hidden):
                c[j] = extra[j]
            for k in range(hidden):
                value = h[k]
                base = k * 3 * hidden + 2 * hidden
                for j in range(hidden):
                    c[j] += r[base + j] * value
            for j in range(hidden):
                gates[2 * hidden + j] += gates[hidden + j] * c[j]
        else:
            for j in range(hidden):
                c[j] = gates[hidden + j] * h[j]
            product(gates, 2 * hidden, hidden, c, hidden, r, 3 * hidden)
        for j in range(hidden):
            new = function(words, first + 1, clipped(gates[2 * hidden + j], limit))
            z = gates[j]
            h[j] = (1 - z) * new + z * h[j]

    @register_jitable
    def lstm(words: Any, h: Any, q: Any, c: Any, gates: Any, r: Any, p: Any, extra: Any, hidden: Any, limit: Any, first: Any) -> None:
        """gates: i, o, f, c; peepholes p: i, o, f (words[4]: whether there are any)."""
        product(gates, 0, 4 * hidden, q, hidden, r, 4 * hidden)
        if words[4] != 0:
            for j in range(hidden):
                gates[j] += p[j] * c[j]
                gates[2 * hidden + j] += p[2 * hidden + j] * c[j]
        for j in range(hidden):
            i = function(words, first, clipped(gates[j], limit))
            f = 1 - i
            if words[45] == 0:
                f = function(words, first, clipped(gates[2 * hidden + j], limit))
            new = function(words, first + 1, clipped(gates[3 * hidden + j], limit))
            c[j] = f * c[j] + i * new
            if words[4] != 0:
                gates[hidden + j] += p[hidden + j] * c[j]
            o = function(words, first, clipped(gates[hidden + j], limit))
            h[j] = o * function(words, first + 2, c[j])

    step = {"rnn": rnn, "gru": gru, "lstm": lstm}[cell]
    count, functions, states = {"rnn": 1, "gru": 3, "lstm": 4}[cell], {"rnn": 1, "gru": 2, "lstm": 3}[cell], cell == "lstm"

    @register_jitable
    def quantized(h: Any, q: Any, count: Any) -> None:
        """q = h through 8 bits, scale and zero point from its range (as DynamicQuantizeLinear)."""
        low, high = real(0), real(0)
        for k in range(count):
            low, high = min(low, h[k]), max(high, h[k])
        scale = (high - low) / real(255) if high > low else real(1)
        zero = real(min(max(round(-low / scale), 0), 255))
        for k in range(count):
            q[k] = (min(max(real(round(h[k] / scale)) + zero, real(0)), real(255)) - zero) * scale

    def run(context: Any, words: Any, task: Any) -> None:  # noqa: C901
        xw, h0, c0, lens, y, yh, yc = at(words[0]), at(words[2]), at(words[3]), ints(words[6]), at(words[7]), at(words[8]), at(words[9])
        length, batch, hidden, directions, group = words[11], words[12], words[13], words[14], words[35]
        parts = (batch + group - 1) // group
        direction, first = task // parts, task % parts * group
        entries = min(group, batch - first)
        room = words[10] + task * words[43]
        h, q, gates = at(room), at(room + group * hidden * unit), at(room + 3 * group * hidden * unit)
        c = at(room + 2 * group * hidden * unit)
        r = at(words[1] + direction * hidden * count * hidden * unit)
        p, extra = at(words[4] + direction * words[42] * unit), at(words[5] + direction * words[41] * unit)
        for e in range(entries):
            b = first + e
            for j in range(hidden):
                h[e * hidden + j] = h0[direction * words[18] + b * words[19] + j * words[20]] if words[2] != 0 else real(0)
                c[e * hidden + j] = c0[direction * words[21] + b * words[22] + j * words[23]] if words[3] != 0 else real(0)
        limit = at(words[46])[2 * directions * functions]
        backwards = words[40] == 1 or (words[40] == 2 and direction == 1)
        for number in range(length):
            if words[36] != 0:
                quantized(h, q, entries * hidden)
            for e in range(entries):
                b = first + e
                steps = min(max(lens[b * words[24]], 0), length) if words[6] != 0 else length
                if number >= steps:
                    if words[7] != 0:
                        out = number * words[25] + direction * words[26] + b * words[27]
                        for j in range(hidden):
                            y[out + j * words[28]] = real(0)
                    continue
                t = steps - 1 - number if backwards else number
                base = t * words[15] + b * words[16] + direction * count * hidden * words[17]
                for j in range(count * hidden):
                    gates[j] = xw[base + j * words[17]]
                own = room + e * hidden * unit
                read = at(own + group * hidden * unit) if words[36] != 0 else at(own)
                step(words, at(own), read, at(own + 2 * group * hidden * unit), gates, r, p, extra, hidden, limit, direction * functions)
                if words[7] != 0:
                    out = t * words[25] + direction * words[26] + b * words[27]
                    for j in range(hidden):
                        y[out + j * words[28]] = h[e * hidden + j]
        for e in range(entries):
            b = first + e
            for j in range(hidden):
                if words[8] != 0:
                    yh[direction * words[29] + b * words[30] + j * words[31]] = h[e * hidden + j]
                if states and words[9] != 0:
                    yc[direction * words[32] + b * words[33] + j * words[34]] = c[e * hidden + j]
    return run


@cache
def transpose(dtype: str) -> Any:
    """One task a direction: target[k, j] = source[j, k]. words: source, target, rows, columns, strides of the source."""
    at = pointer(dtype)

    def run(context: Any, words: Any, task: Any) -> None:
        source, target, rows, columns = at(words[0]), at(words[1]), words[2], words[3]
        for k in range(columns):
            for j in range(rows):
                target[(task * columns + k) * rows + j] = source[task * words[4] + j * words[5] + k * words[6]]
    return run
