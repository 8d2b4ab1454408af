"""The body of trees, compiled by Numba."""
from __future__ import annotations

from functools import cache
from typing import Any

from numba import float32, float64
from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer
from gpuonnx.kernels.cpu.trees import LEAF, MEMBER, ROWS


@cache
def kernel(dtype: str) -> Any:  # noqa: C901
    at, ints, real = pointer(dtype), pointer("i32"), float32 if dtype == "f32" else float64

    @register_jitable
    def compared(mode: Any, value: Any, threshold: Any) -> Any:
        if mode == 0:
            return value <= threshold
        if mode == 1:
            return value < threshold
        if mode == 2:
            return value >= threshold
        if mode == 3:
            return value > threshold
        if mode == 4:
            return value == threshold
        return value != threshold

    @register_jitable
    def member(members: Any, first: Any, value: Any) -> Any:
        for k in range(int(members[first])):  # noqa: SIM110
            if members[first + 1 + k] == value:
                return True
        return False

    @register_jitable
    def leaf_of(nodes: Any, thresholds: Any, members: Any, node: Any, x: Any, base: Any, step: Any) -> Any:
        mode = nodes[5 * node]
        while mode != LEAF:
            value = x[base + nodes[5 * node + 1] * step]
            if mode == MEMBER:
                way = member(members, int(thresholds[node]), value)
            else:
                way = compared(mode, value, thresholds[node])
            if value != value and nodes[5 * node + 4] != 0:
                way = True
            node = nodes[5 * node + 2] if way else nodes[5 * node + 3]
            mode = nodes[5 * node]
        return node

    def run(context: Any, words: Any, task: Any) -> None:
        x, nodes, thresholds, roots = at(words[0]), ints(words[1]), at(words[2]), ints(words[3])
        targets, weights, members, out = ints(words[4]), at(words[5]), at(words[6]), at(words[7])
        rows, count, aggregate, trees = words[8], words[12], words[15], words[16]
        for row in range(task * ROWS, min(rows, task * ROWS + ROWS)):
            place = row * words[13]
            for c in range(count):
                out[place + c * words[14]] = real(0)
            for t in range(trees):
                leaf = leaf_of(nodes, thresholds, members, roots[t], x, row * words[10], words[11])
                for entry in range(nodes[5 * leaf + 2], nodes[5 * leaf + 3]):
                    cell = place + targets[entry] * words[14]
                    if aggregate == 2 and t > 0:
                        out[cell] = min(out[cell], weights[entry])
                    elif aggregate == 3 and t > 0:
                        out[cell] = max(out[cell], weights[entry])
                    else:
                        out[cell] += weights[entry]
            if aggregate == 1:
                for c in range(count):
                    out[place + c * words[14]] /= trees
    return run
