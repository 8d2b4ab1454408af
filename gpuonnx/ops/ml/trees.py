"""Tree ensembles: flattened into arrays while lowering; one kernel walks them and adds up leaves."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Spec, Tensor, builder, call, cast, concat, constant, tensor_map
from gpuonnx.ir.formula import equal, exp, greater, select, sigmoid
from gpuonnx.kernels.cpu.trees import AGGREGATES, LEAF, MEMBER, MODES
from gpuonnx.ops.registry import op

DOMAIN = "ai.onnx.ml"
MODES_5 = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
AGGREGATES_5 = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS_5 = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
Numbers = Sequence[Any] | np.ndarray | None


class Forest:
    """Nodes of all trees in one table: mode, feature, threshold, next node if true, if false, missing goes to true.

    Leaves keep the range of their (target, weight) entries in `true` and `false`; members of a set theirs likewise."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.thresholds: list[float] = []
        self.targets: list[int] = []
        self.weights: list[float] = []
        self.members: list[float] = []
        self.roots: list[int] = []

    def tables(self) -> list[Tensor]:
        """Constants in the order the kernel reads them."""
        return [constant(np.array(self.rows or [(LEAF, 0, 0, 0, 0)], np.int32)), constant(np.array(self.thresholds or [0.0]), self.dtype),
                constant(np.array(self.roots, np.int32)), constant(np.array(self.targets or [0], np.int32)),
                constant(np.array(self.weights or [0.0]), self.dtype), constant(np.array(self.members or [0.0]), self.dtype)]


def scores(x: Tensor, forest: Forest, targets: int, aggregate: str) -> Tensor:
    """[N, targets]: leaves of all trees, aggregated."""
    if x.rank == 1:
        x = x.unsqueeze([0])
    features = [row[1] for row in forest.rows if row[0] != LEAF]
    if min(features, default=0) < 0 or min(forest.targets, default=0) < 0 or max(forest.targets, default=0) >= targets:
        raise ModelError(f"{builder().origin}: a feature or target number of the trees is out of range")
    builder().require(x.shape[1] - (max(features, default=-1) + 1), f"the trees ask for feature {max(features, default=0)}")
    flat = x.cast(forest.dtype)
    out = Spec(forest.dtype, (x.shape[0], targets))
    return call("trees", flat, *forest.tables(), out=out, aggregate=AGGREGATES.index(aggregate), trees=len(forest.roots))  # type: ignore[no-any-return]


def given(values: Numbers, tensor: np.ndarray | None) -> list[Any]:
    """An attribute that newer versions may give as a tensor."""
    return list(tensor.ravel().tolist()) if tensor is not None and tensor.size else list(values if values is not None else ())


def old_forest(x: Tensor, attrs: dict[str, Any], prefix: str, double: bool) -> Forest:
    """The nodes_* and {class,target}_* attributes of versions 1 and 3."""
    forest = Forest("f64" if double else "f32")
    a = attrs
    key = list(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))
    number = {k: n for n, k in enumerate(key)}
    leaves: dict[tuple[int, int], list[tuple[int, float]]] = {}
    weights = given(a[f"{prefix}_weights"], a[f"{prefix}_weights_as_tensor"])
    for tree, node, target, weight in zip(a[f"{prefix}_treeids"], a[f"{prefix}_nodeids"], a[f"{prefix}_ids"], weights, strict=True):
        leaves.setdefault((tree, node), []).append((target, weight))
    values = given(a["nodes_values"], a["nodes_values_as_tensor"]) or [0.0] * len(key)
    missing = list(a["nodes_missing_value_tracks_true"] or [0] * len(key))
    children: set[int] = set()
    for n, k in enumerate(key):
        mode = a["nodes_modes"][n]
        if mode == "LEAF":
            first = len(forest.targets)
            for target, weight in leaves.get(k, ()):
                forest.targets.append(target)
                forest.weights.append(weight)
            forest.rows.append((LEAF, 0, first, len(forest.targets), 0))
            forest.thresholds.append(0.0)
            continue
        if mode not in MODES:
            raise ModelError(f"{builder().origin}: node mode {mode!r} is none of {', '.join(MODES)}")
        try:
            yes, no = (number[k[0], a[f"nodes_{way}nodeids"][n]] for way in ("true", "false"))
        except KeyError as error:
            raise ModelError(f"{builder().origin}: tree {k[0]}, node {k[1]} leads to node {error.args[0][1]}, which is not there") from error
        children.update((yes, no))
        forest.rows.append((MODES.index(mode), int(a["nodes_featureids"][n]), yes, no, int(missing[n])))
        forest.thresholds.append(values[n])
    forest.roots = [n for n in range(len(key)) if n not in children]
    checked(forest)
    return forest


def checked(forest: Forest) -> None:
    """Every walk ends: no node is reached twice."""
    seen = bytearray(len(forest.rows))
    stack = list(forest.roots)
    while stack:
        n = stack.pop()
        if seen[n]:
            raise ModelError(f"{builder().origin}: node {n} is reached in two ways: this is no tree")
        seen[n] = 1
        mode, _, yes, no, _ = forest.rows[n]
        if mode != LEAF:
            stack += [yes, no]


def with_base(t: Tensor, base: list[Any]) -> Tensor:
    return t + constant(np.array(base), t.dtype) if base else t


def transformed(t: Tensor, name: str) -> Tensor:
    """post_transform over the last axis."""
    match name:
        case "NONE" | "": return t
        case "LOGISTIC": return sigmoid(t)
        case "SOFTMAX": return softmax(t)
        case "SOFTMAX_ZERO":
            zero = tensor_map(t.shape, t.dtype, lambda *i: cast(equal(t.at(*i), 0.0), t.dtype))
            e = exp(t - t.max([-1], keepdims=True)) * (1.0 - zero)
            return e / e.sum([-1], keepdims=True)
        case "PROBIT": return probit(t)
    raise ModelError(f"{builder().origin}: post_transform {name!r} is not known")


def softmax(t: Tensor) -> Tensor:
    e = exp(t - t.max([-1], keepdims=True))
    return e / e.sum([-1], keepdims=True)


def probit(t: Tensor) -> Tensor:
    """sqrt(2) * erfinv(2 t - 1), erfinv by Winitzki's formula, as ONNX Runtime has it."""
    from gpuonnx.ir.formula import log, sign, sqrt
    x = t * 2.0 - 1.0
    y = log((1.0 - x) * (1.0 + x))
    v = y * 0.5 + 2.0 / (np.pi * 0.147)
    w = y * (1 / 0.147)
    return sign(x) * sqrt(sqrt(v * v - w) - v) * float(np.sqrt(2.0))


def labelled(index: Tensor, ints: Sequence[int] | None, strings: Sequence[str] | None) -> Tensor:
    """Class labels by position."""
    table = constant(np.array(list(strings), object)) if strings else constant(np.array(list(ints or ()), np.int64))
    return tensor_map(index.shape, table.dtype, lambda *i: table.at(cast(index.at(*i), "ix")))


@op("TreeEnsembleRegressor", since=1, domain=DOMAIN)
def tree_ensemble_regressor(X: Tensor, *, aggregate_function: str = "SUM", base_values: Numbers = None, base_values_as_tensor: Any = None,
                            n_targets: int = 1, nodes_falsenodeids: Numbers = None, nodes_featureids: Numbers = None,
                            nodes_hitrates: Numbers = None, nodes_hitrates_as_tensor: Any = None,
                            nodes_missing_value_tracks_true: Numbers = None, nodes_modes: Sequence[str] | None = None,
                            nodes_nodeids: Numbers = None, nodes_treeids: Numbers = None, nodes_truenodeids: Numbers = None,
                            nodes_values: Numbers = None, nodes_values_as_tensor: Any = None, post_transform: str = "NONE",
                            target_ids: Numbers = None, target_nodeids: Numbers = None, target_treeids: Numbers = None,
                            target_weights: Numbers = None, target_weights_as_tensor: Any = None) -> Tensor:
    attrs = dict(locals())
    forest = old_forest(X, attrs, "target", X.dtype == "f64")
    total = scores(X, forest, n_targets, aggregate_function)
    y = transformed(with_base(total, given(base_values, base_values_as_tensor)), post_transform)
    return y.cast("f32")


@op("TreeEnsembleClassifier", since=1, domain=DOMAIN)
def tree_ensemble_classifier(X: Tensor, *, base_values: Numbers = None, base_values_as_tensor: Any = None, class_ids: Numbers = None,
                             class_nodeids: Numbers = None, class_treeids: Numbers = None, class_weights: Numbers = None,
                             class_weights_as_tensor: Any = None, classlabels_int64s: Sequence[int] | None = None,
                             classlabels_strings: Sequence[str] | None = None, nodes_falsenodeids: Numbers = None,
                             nodes_featureids: Numbers = None, nodes_hitrates: Numbers = None, nodes_hitrates_as_tensor: Any = None,
                             nodes_missing_value_tracks_true: Numbers = None, nodes_modes: Sequence[str] | None = None,
                             nodes_nodeids: Numbers = None, nodes_treeids: Numbers = None, nodes_truenodeids: Numbers = None,
                             nodes_values: Numbers = None, nodes_values_as_tensor: Any = None,
                             post_transform: str = "NONE") -> tuple[Tensor, Tensor]:
    """Two classes may have the scores of one: then the other's follow from it (as in ONNX Runtime)."""
    attrs = dict(locals())
    forest = old_forest(X, attrs, "class", X.dtype == "f64")
    count = len(classlabels_strings or classlabels_int64s or ())
    base = given(base_values, base_values_as_tensor)
    single = count == 2 and len(set(forest.targets)) == 1
    if not single:
        total = with_base(scores(X, forest, count, "SUM"), base)
        label = labelled(total.fold("argmax", [1]), classlabels_int64s, classlabels_strings)
        return label, transformed(total, post_transform).cast("f32")
    only, positive = forest.targets[0], all(w >= 0 for w in forest.weights)
    forest.targets = [0] * len(forest.targets)
    score = scores(X, forest, 1, "SUM")
    if base:
        score = score + float(base[-1] if len(base) == 2 else base[0])
    return binary(score, only, positive, post_transform, classlabels_int64s, classlabels_strings)


def binary(score: Tensor, only: int, positive: bool, post_transform: str, ints: Sequence[int] | None,
           strings: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """Label and both scores from the score of one class, the first or second that the leaves name; softmax leaves them (as in ONNX Runtime)."""
    limit = 0.5 if positive else 0.0
    chosen = tensor_map((score.shape[0],), "i64", lambda n: select(greater(score.at(n, _zero()), limit), _i64(1), _i64(0)))
    label = labelled(chosen, ints, strings)
    if only == 1:
        return label, transformed(concat([score * 0.0, score], 1), post_transform).cast("f32")
    if post_transform == "PROBIT":
        p = probit(score)
        return label, concat([1.0 - p, p], 1).cast("f32")
    if post_transform == "LOGISTIC":
        return label, concat([sigmoid(-score), sigmoid(score)], 1).cast("f32")
    return label, concat([1.0 - score if positive else -score, score], 1).cast("f32")


def _zero() -> Any:
    from gpuonnx.ir.build import dim
    return dim(0)


def _i64(value: int) -> Any:
    from gpuonnx.ir.build import const
    return const(value, "i64")


@op("TreeEnsemble", since=5, domain=DOMAIN)
def tree_ensemble(X: Tensor, *, aggregate_function: int = 1, leaf_targetids: Sequence[int], leaf_weights: np.ndarray,
                  membership_values: np.ndarray | None = None, n_targets: int | None = None, nodes_falseleafs: Sequence[int],
                  nodes_falsenodeids: Sequence[int], nodes_featureids: Sequence[int], nodes_hitrates: Any = None,
                  nodes_missing_value_tracks_true: Sequence[int] | None = None, nodes_modes: np.ndarray, nodes_splits: np.ndarray,
                  nodes_truenodeids: Sequence[int], nodes_trueleafs: Sequence[int], post_transform: int = 0,
                  tree_roots: Sequence[int]) -> Tensor:
    """Nodes and leaves stand in tables of their own; a set of members is a run of values that ends with NaN."""
    forest = Forest("f64" if X.dtype == "f64" else "f32")
    leaf = len(nodes_splits)
    sets = member_sets(membership_values)
    missing = list(nodes_missing_value_tracks_true or [0] * leaf)
    for n in range(leaf):
        mode = MODES_5[int(nodes_modes.ravel()[n])]
        yes = nodes_truenodeids[n] + (leaf if nodes_trueleafs[n] else 0)
        no = nodes_falsenodeids[n] + (leaf if nodes_falseleafs[n] else 0)
        split = float(nodes_splits.ravel()[n])
        if mode == "BRANCH_MEMBER":
            members = sets.pop(0)
            split = float(len(forest.members))
            forest.members += [float(len(members)), *members]
        forest.rows.append((MEMBER if mode == "BRANCH_MEMBER" else MODES.index(mode), int(nodes_featureids[n]), yes, no, int(missing[n])))
        forest.thresholds.append(split)
    for n, (target, weight) in enumerate(zip(leaf_targetids, leaf_weights.ravel().tolist(), strict=True)):
        forest.rows.append((LEAF, 0, n, n + 1, 0))
        forest.thresholds.append(0.0)
        forest.targets.append(target)
        forest.weights.append(weight)
    lone = [_is_lone_leaf(r, nodes_trueleafs, nodes_falseleafs, nodes_truenodeids, nodes_falsenodeids) for r in tree_roots]
    forest.roots = [nodes_truenodeids[r] + leaf if alone else r for r, alone in zip(tree_roots, lone, strict=True)]
    if any(not 0 <= n < len(forest.rows) for row in forest.rows if row[0] != LEAF for n in row[2:4]):
        raise ModelError(f"{builder().origin}: a node leads to one that is not there")
    for target in forest.targets:
        if not 0 <= target < (n_targets or 1):
            raise ModelError(f"{builder().origin}: leaf target {target} of {n_targets or 1}")
    y = scores(X, forest, n_targets or 1, AGGREGATES_5[aggregate_function])
    return transformed(y, TRANSFORMS_5[post_transform]).cast(X.dtype)


def _is_lone_leaf(root: int, yes_leaf: Sequence[int], no_leaf: Sequence[int], yes: Sequence[int], no: Sequence[int]) -> bool:
    """A tree of one leaf is a node whose two ways lead to the same leaf."""
    return bool(yes_leaf[root] and no_leaf[root] and yes[root] == no[root])


def member_sets(values: np.ndarray | None) -> list[list[float]]:
    sets: list[list[float]] = [[]]
    for v in (values.ravel().tolist() if values is not None else ()):
        if v != v:
            sets.append([])
        else:
            sets[-1].append(float(v))
    return sets


