"""Decision trees as tables. Whatever a node asks of a feature, it becomes `x <= threshold`."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import builder
from gpuonnx.ir.types import numpy_dtype

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(8)
MOST_NODES = 1 << 26
AGGREGATES = ("SUM", "AVERAGE", "MIN", "MAX")


@dataclass(frozen=True)
class Forest:
    """Nodes of all trees: arrays [M] of mode, feature, threshold, next node if true (`yes`) and if false (`no`), and whether a missing
    value (NaN) goes to `yes`. A leaf keeps the range of its entries in `yes`, `no`; the entries are arrays targets, weights [L].
    `sets` has the members that a MEMBER node compares with. roots [T] starts the trees."""

    dtype: str
    mode: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    missing: np.ndarray
    roots: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    sets: dict[int, list[float]] = field(default_factory=dict)

    def features(self) -> int:
        """How many features the nodes ask for."""
        asked = self.feature[self.mode != LEAF]
        if asked.size and int(asked.min()) < 0:
            raise ModelError(f"{builder().origin}: feature {asked.min()} of the trees is out of range")
        return int(asked.max(initial=-1)) + 1

    def check_targets(self, count: int) -> None:
        if self.targets.size and not 0 <= int(self.targets.min()) <= int(self.targets.max()) < count:
            wrong = self.targets[(self.targets < 0) | (self.targets >= count)]
            raise ModelError(f"{builder().origin}: leaf target {wrong[0]} of {count}")

    def tables(self) -> list[np.ndarray]:
        """columns i32 [K, 2] (feature, 1 where NaN reads as -inf), nodes i32 [M, 3] (column, yes, no; a leaf: -1, range of its
        entries), thresholds [M], roots, targets, weights."""
        if len(self.mode) >= MOST_NODES:
            raise ModelError(f"{builder().origin}: {len(self.mode)} nodes of trees; {MOST_NODES - 1} are possible")
        limits = Limits.of(self)
        inner = limits.column >= 0
        columns, inverse = np.unique(limits.column[inner], return_inverse=True)
        limits.column[inner] = inverse
        real = numpy_dtype(self.dtype)
        nodes = np.stack([limits.column, limits.yes, limits.no], 1).astype(np.int32)
        return [np.stack([columns // 2, columns % 2], 1).astype(np.int32).reshape(-1, 2), nodes, limits.threshold,
                self.roots.astype(np.int32), self.targets.astype(np.int32), self.weights.astype(real)]


def below(t: np.ndarray) -> np.ndarray:
    """The largest value less than t: `x < t` is `x <= below(t)`. There is none below -inf: NaN."""
    return np.where(np.isneginf(t), np.nan, np.nextafter(t, -np.inf, dtype=t.dtype)).astype(t.dtype)


@dataclass
class Limits:
    """Nodes that ask `x <= threshold`; column is 2 * feature, plus 1 where a NaN in it reads as -inf (then it goes to yes), or -1."""

    column: np.ndarray
    threshold: np.ndarray
    yes: np.ndarray
    no: np.ndarray

    @staticmethod
    def of(forest: Forest) -> Limits:
        with np.errstate(over="ignore"):
            t = forest.threshold.astype(numpy_dtype(forest.dtype))
        mode, missing, leaf = forest.mode, forest.missing.astype(bool), forest.mode == LEAF
        with np.errstate(over="ignore", under="ignore"):
            limit = np.where((mode == LT) | (mode == GTE), below(t), t)
        never = np.isnan(limit)
        always = (mode == GTE) & np.isneginf(t)
        swap = np.where(never, ~always, (mode == GTE) | (mode == GT)) & ~leaf
        limit[never] = np.inf
        yes, no = np.where(swap, forest.no, forest.yes), np.where(swap, forest.yes, forest.no)
        column = np.where(leaf, -1, 2 * forest.feature + (missing ^ swap))
        out = Limits(column, limit, yes, no)
        out.compare_sets(forest, t)
        return out

    def compare_sets(self, forest: Forest, t: np.ndarray) -> None:
        """EQ, NEQ and MEMBER: a search among the ends of the set's members."""
        added: list[tuple[int, Any, int, int]] = []
        for n in np.flatnonzero((forest.mode == EQ) | (forest.mode == NEQ) | (forest.mode == MEMBER)).tolist():
            inside, outside, missing = int(forest.yes[n]), int(forest.no[n]), bool(forest.missing[n])
            if forest.mode[n] == NEQ:
                inside, outside, missing = outside, inside, False
            members = np.unique(np.array(forest.sets[n], t.dtype) if forest.mode[n] == MEMBER else t[n:n + 1])
            row = search(members[~np.isnan(members)], 2 * int(forest.feature[n]), inside, outside, missing, added, len(forest.mode))
            self.column[n], self.threshold[n], self.yes[n], self.no[n] = row
        if added:
            columns = list(zip(*added, strict=True))
            self.column, self.yes, self.no = (np.concatenate([a, np.array(columns[k], np.int64)])
                                              for k, a in ((0, self.column), (2, self.yes), (3, self.no)))
            self.threshold = np.concatenate([self.threshold, np.array(columns[1], t.dtype)])


def search(members: np.ndarray, column: int, inside: int, outside: int, missing: bool, added: list[tuple[int, Any, int, int]],
           first: int) -> tuple[int, Any, int, int]:
    """A binary search for x among sorted `members`: the first of its rows, the others go to `added`, whose rows are nodes from `first`.
    A NaN takes the first way inside where `missing`, else the last way, outside."""
    if not members.size:
        return column + (not missing), np.inf, outside, inside
    cuts = np.stack([below(members), members], 1).ravel()
    ends = [outside, *[inside, outside] * len(members)]
    if np.isnan(cuts[0]):
        cuts, ends = cuts[1:], ends[1:]
    goal = ends.index(inside) if missing else len(ends) - 1

    def part(low: int, high: int) -> int:
        if low == high:
            return ends[low]
        added.append(row(low, high))
        return first + len(added) - 1

    def row(low: int, high: int) -> tuple[int, Any, int, int]:
        middle = (low + high) // 2
        return column + (goal <= middle), cuts[middle], part(low, middle), part(middle + 1, high)

    return row(0, len(ends) - 1)


def check_tree(forest: Forest) -> Forest:
    """Every walk ends: no node is reached twice."""
    inner = forest.mode != LEAF
    count = np.bincount(np.concatenate([forest.yes[inner], forest.no[inner]]), minlength=len(forest.mode))
    twice = np.flatnonzero(count > 1)
    if twice.size:
        raise ModelError(f"{builder().origin}: node {twice[0]} is reached in two ways: this is no tree")
    return replace(forest, roots=np.flatnonzero(count == 0))


def check_acyclic(forest: Forest) -> Forest:
    """Every walk ends: nodes, from the roots on, are taken away when nothing leads to them any more, until none is left."""
    inner = forest.mode != LEAF
    count = np.bincount(np.concatenate([forest.yes[inner], forest.no[inner]]), minlength=len(forest.mode))
    ready, gone = np.flatnonzero(count == 0), 0
    while ready.size:
        gone += ready.size
        ready = ready[inner[ready]]
        reached = np.concatenate([forest.yes[ready], forest.no[ready]])
        np.subtract.at(count, reached, 1)
        ready = np.unique(reached)
        ready = ready[count[ready] == 0]
    if gone < len(forest.mode):
        raise ModelError(f"{builder().origin}: the nodes of a tree lead in a circle")
    return forest
