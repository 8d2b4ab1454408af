"""How a forest lies in memory for the kernel "trees": the two ways of a node are a pair of 32 bytes, a tree's levels stand in order.

A pair is two thresholds (8 bytes each), then twice the place of a column in a group of rows and the way to the true node (int32 bytes);
a node's address is that of its threshold, so that the false node is 8 bytes further. A leaf leads to itself: it compares -inf, which is
never past anything. A node that is reached again (sets share their ways) is a jump to it."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES = 8
PAIR, ACROSS, ENTRY, COLUMN, WAY = 32, 8, 4, 16, 20
EVEN = 1.5
ONE, DENSE, LIST = "one", "dense", "list"
CHUNK_BYTES = 1 << 14
SEGMENT_STEPS = 1024
SEGMENTS = 16
DENSE_FILL = 4


@dataclass(frozen=True)
class Packing:
    """nodes: i32 [pairs, 8]; trees i64 [T + 1, 4]: byte offset of the root, target, steps that every walk may take, whether some need more;
    chunks i64 [C + 1]: trees whose nodes fit the first cache together; segments i64 [S + 1]: chunks whose leaves are summed apart; form,
    weights, ranges, stride: see `leaf_tables`; leaves: how many; steps: of all trees, at most."""

    nodes: np.ndarray
    trees: np.ndarray
    chunks: np.ndarray
    segments: np.ndarray
    form: str
    weights: np.ndarray
    ranges: np.ndarray
    stride: int
    leaves: int
    steps: int


def pack(nodes: np.ndarray, thresholds: np.ndarray, roots: np.ndarray, targets: np.ndarray, weights: np.ndarray, count: int,
         fold: str) -> Packing:
    """nodes i32 [M, 3] (column or -1, yes, no); see kernels/cpu/trees.py."""
    source, jump, tree, level, way = reached(nodes, roots)
    order = np.argsort(tree, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    place = rank + tree + 1
    leaf = nodes[source, 0] < 0
    form, table, ranges, stride, payload, of_tree = leaf_tables(nodes, source, jump | ~leaf, tree, len(roots), targets, weights, count, fold)
    where = place // 2 * PAIR + place % 2 * ACROSS
    home = np.zeros(len(nodes), np.int64)
    home[source[~jump]] = where[~jump]
    inner = ~jump & ~leaf
    ahead = np.where(jump, home[source], np.where(inner, where[way], where)) - where
    column = np.where(inner, nodes[source, 0] + 1, 0) * LANES * thresholds.dtype.itemsize
    memory = written(place, np.where(inner, thresholds[source], payload), inner | (form == ONE), column, ahead, thresholds.dtype)
    depth = np.zeros(len(roots), np.int64)
    np.maximum.at(depth, tree, level + 1)
    starts = where[:len(roots)]
    end = np.flatnonzero(leaf | jump)
    mean = np.bincount(tree[end], level[end], len(roots)) / np.maximum(1, np.bincount(tree[end], minlength=len(roots)))
    sure = np.where(depth <= EVEN * mean + 2, depth - 1, np.ceil(mean / 2)).astype(np.int64)
    unsure = (sure < depth - 1) | jump.any()
    sizes = np.bincount(tree, minlength=len(roots)) * PAIR // 2
    chunks = cuts(sizes, CHUNK_BYTES)
    steps = int(depth.sum())
    works = np.add.reduceat(depth, chunks[:-1]) if len(roots) else depth
    segments = cuts(works, max(SEGMENT_STEPS, -(-steps // SEGMENTS)), at_least=True)
    count = int(np.count_nonzero(leaf & ~jump))
    rows = np.stack([np.append(starts, memory.nbytes), *(np.append(v, 0) for v in (of_tree, sure, unsure))], 1)
    return Packing(memory, rows, chunks, segments, form, table, ranges, stride, count, steps)


def written(place: np.ndarray, held: np.ndarray, real: np.ndarray, column: np.ndarray, ahead: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The pairs as int32 [pairs, 8]; what a node holds is `real`, or the number of a leaf, which float32 nodes have behind their threshold."""
    pair, half = place // 2, place % 2
    memory = np.zeros((int(pair.max(initial=0)) + 1, PAIR // 4), np.int32)
    reals = memory.view(dtype).reshape(len(memory), -1)
    if dtype == np.float64:
        reals[pair, half] = held
    else:
        reals[pair, 2 * half] = np.where(real, held, 0)
        memory[pair, 2 * half + 1] = np.where(real, 0, held)
    memory[pair, 2 * half + 4], memory[pair, 2 * half + 5] = column, ahead
    return memory


def reached(nodes: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, ...]:
    """Level by level, what the walks of all trees can meet: the node, whether it is a jump to where that node stands, tree, level and
    (where it leads on) which of these the true way is."""
    taken = np.zeros(len(nodes), bool)
    here, tree = roots.astype(np.int64), np.arange(len(roots))
    parts: list[tuple[np.ndarray, ...]] = []
    start = level = 0
    while here.size:
        _, first = np.unique(here, return_index=True)
        own = np.zeros(here.size, bool)
        own[first] = ~taken[here[first]]
        taken[here[own]] = True
        on = own & (nodes[here, 0] >= 0)
        start += here.size
        way = np.full(here.size, -1)
        way[on] = start + 2 * np.arange(np.count_nonzero(on))
        parts.append((here, ~own, tree, np.full(here.size, level), way))
        here, tree, level = nodes[here[on], 1:].ravel().astype(np.int64), np.repeat(tree[on], 2), level + 1
    if not parts:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing.astype(bool), nothing, nothing, nothing
    return tuple(np.concatenate(a) for a in zip(*parts, strict=True))


def cuts(sizes: np.ndarray, limit: int, at_least: bool = False) -> np.ndarray:
    """Ends of runs of `sizes`: as long as they sum up to no more than `limit`, or until they reach it."""
    ends, total = [0], 0
    for k, size in enumerate(sizes.tolist()):
        if total and total + (0 if at_least else size) > limit:
            ends.append(k)
            total = 0
        total += size
        if at_least and total >= limit and k + 1 < len(sizes):
            ends.append(k + 1)
            total = 0
    return np.array([*ends, len(sizes)], np.int64)


def leaf_tables(nodes: np.ndarray, source: np.ndarray, other: np.ndarray, tree: np.ndarray, trees: int, targets: np.ndarray,
           weights: np.ndarray, count: int, fold: str) -> tuple[str, np.ndarray, np.ndarray, int, np.ndarray, np.ndarray]:
    """form, weights, ranges, row length, what each leaf holds, target of each tree.

    one: every leaf of a tree has one entry, all of the same target: the leaf holds its weight. dense: the leaf holds the number of its row
    in weights [leaves, stride]. list: of a row in ranges i32 (first to next) of weights and (behind the rows) targets."""
    at = np.flatnonzero(~other)
    first, end = nodes[source[at], 1].astype(np.int64), nodes[source[at], 2].astype(np.int64)
    payload, of_tree = np.zeros(len(source)), np.zeros(trees, np.int64)
    if (end - first == 1).all():
        of_tree[tree[at]] = targets[first]
        if (of_tree[tree[at]] == targets[first]).all() and not np.isnan(weights[first]).any():
            payload[at] = weights[first]
            return ONE, weights[:1], np.zeros(1, np.int32), count, payload, of_tree
    payload[at] = np.arange(len(at))
    sizes = end - first
    entry = np.repeat(first - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum()) if len(at) else first
    owner = np.repeat(np.arange(len(at)), sizes)
    stride = -(-count // 4) * 4
    full = len(at) and np.array_equal(np.unique(owner * count + targets[entry]), np.arange(len(at) * count)) and len(entry) == len(at) * count
    if full or fold == "sum" and len(at) * stride <= DENSE_FILL * len(entry):
        table = np.zeros((len(at), stride), weights.dtype)
        np.add.at(table, (owner, targets[entry]), weights[entry])
        return DENSE, table, np.zeros(1, np.int32), stride, payload, of_tree
    ranges = np.concatenate([np.concatenate([[0], np.cumsum(sizes)]), targets[entry]]).astype(np.int32)
    return LIST, weights[entry], ranges, stride, payload, of_tree
