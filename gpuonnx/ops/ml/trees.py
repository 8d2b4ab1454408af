"""Tree ensembles: flattened into tables while lowering; one kernel walks them and adds up leaves."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Spec, Tensor, builder, call, cast, concat, constant, tensor_map
from gpuonnx.ir.formula import equal, exp, greater, select, sigmoid
from gpuonnx.ops.ml.forest import AGGREGATES, LEAF, MEMBER, MODES, Forest, check_acyclic, check_tree
from gpuonnx.ops.registry import op

DOMAIN = "ai.onnx.ml"
MODES_5 = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
AGGREGATES_5 = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS_5 = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
Numbers = Sequence[Any] | np.ndarray | None


def scores(x: Tensor, forest: Forest, targets: int, aggregate: str) -> Tensor:
    """[N, targets]: leaves of all trees, aggregated."""
    if aggregate not in AGGREGATES:
        raise ModelError(f"{builder().origin}: aggregate_function {aggregate!r} is none of {', '.join(AGGREGATES)}")
    if x.rank == 1:
        x = x.unsqueeze([0])
    features = forest.features()
    forest.check_targets(targets)
    builder().require(x.shape[1] - features, f"the trees ask for feature {features - 1}")
    tables = map(constant, forest.tables())
    out = Spec(forest.dtype, (x.shape[0], targets))
    return call("trees", x.cast(forest.dtype), *tables, out=out, aggregate=AGGREGATES.index(aggregate))  # type: ignore[no-any-return]


def given(values: Numbers, tensor: np.ndarray | None) -> list[Any]:
    """An attribute that newer versions may give as a tensor."""
    return list(tensor.ravel().tolist()) if tensor is not None and tensor.size else list(values if values is not None else ())


def whole(values: Numbers) -> np.ndarray:
    return np.array(list(values if values is not None else ()), np.int64)


class Places:
    """Finds nodes by tree and number."""

    def __init__(self, trees: np.ndarray, nodes: np.ndarray) -> None:
        self.trees, self.nodes = trees, nodes
        self.tree_ids, tree = np.unique(trees, return_inverse=True)
        self.node_ids, node = np.unique(nodes, return_inverse=True)
        keys = tree * len(self.node_ids) + node
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        twice = np.flatnonzero(np.diff(self.keys) == 0)
        if twice.size:
            n = self.order[twice[0]]
            raise ModelError(f"{builder().origin}: tree {trees[n]} has two nodes {nodes[n]}")

    def find(self, trees: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """Their positions, -1 where there is no such node."""
        if not self.keys.size:
            return np.full(trees.shape, -1)
        tree, node = (np.minimum(np.searchsorted(ids, v), len(ids) - 1) for ids, v in ((self.tree_ids, trees), (self.node_ids, nodes)))
        key = tree * len(self.node_ids) + node
        at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        known = (self.tree_ids[tree] == trees) & (self.node_ids[node] == nodes) & (self.keys[at] == key)
        return np.where(known, self.order[at], -1)

    def children(self, ids: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        """Where one way leads from every node that is no leaf."""
        found = np.where(leaf, 0, self.find(self.trees, ids))
        lost = np.flatnonzero(found < 0)
        if lost.size:
            n = lost[0]
            raise ModelError(f"{builder().origin}: tree {self.trees[n]}, node {self.nodes[n]} leads to node {ids[n]}, which is not there")
        return found


def same_length(what: str, *columns: Any) -> None:
    if len({len(c) for c in columns}) > 1:
        raise ModelError(f"{builder().origin}: the attributes of {what} have different lengths: {', '.join(str(len(c)) for c in columns)}")


def old_forest(a: dict[str, Any], prefix: str, double: bool) -> Forest:
    """The nodes_* and {class,target}_* attributes of versions 1 and 3."""
    trees, nodes, features = (whole(a[f"nodes_{name}"]) for name in ("treeids", "nodeids", "featureids"))
    numbers = {name: n for n, name in enumerate(MODES) if n != MEMBER}
    try:
        mode = np.array([numbers[m] for m in a["nodes_modes"] or ()], np.int8)
    except KeyError as error:
        raise ModelError(f"{builder().origin}: node mode {error.args[0]!r} is none of {', '.join(numbers)}") from error
    leaf, count = mode == LEAF, len(mode)
    thresholds = given(a["nodes_values"], a["nodes_values_as_tensor"]) or [0.0] * count
    missing = list(a["nodes_missing_value_tracks_true"] or [0] * count)
    ways = [whole(a[f"nodes_{way}nodeids"]) for way in ("true", "false")]
    same_length("the nodes", mode, trees, nodes, features, thresholds, missing, *ways)
    targets, weights = whole(a[f"{prefix}_ids"]), np.array(given(a[f"{prefix}_weights"], a[f"{prefix}_weights_as_tensor"]))
    owners = [whole(a[f"{prefix}_{name}"]) for name in ("treeids", "nodeids")]
    same_length("the leaves", targets, weights, *owners)
    known = Places(trees, nodes)
    entry = known.find(*owners)
    sort = np.argsort(entry, kind="stable")
    sort = sort[entry[sort] >= 0]
    ends = np.searchsorted(entry[sort], [np.arange(count), np.arange(1, count + 1)])
    yes, no = (np.where(leaf, end, known.children(way, leaf)) for end, way in zip(ends, ways, strict=True))
    return check_tree(Forest("f64" if double else "f32", mode, features, np.array(thresholds), yes, no, np.array(missing, bool),
                             np.zeros(0, np.int64), targets[sort], weights[sort]))


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
    forest = old_forest(attrs, "target", X.dtype == "f64")
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
    forest = old_forest(attrs, "class", X.dtype == "f64")
    count = len(classlabels_strings or classlabels_int64s or ())
    base = given(base_values, base_values_as_tensor)
    single = count == 2 and len(np.unique(forest.targets)) == 1
    if not single:
        total = with_base(scores(X, forest, count, "SUM"), base)
        label = labelled(total.fold("argmax", [1]), classlabels_int64s, classlabels_strings)
        return label, transformed(total, post_transform).cast("f32")
    only, positive = int(forest.targets[0]), bool((forest.weights >= 0).all())
    score = scores(X, replace(forest, targets=np.zeros_like(forest.targets)), 1, "SUM")
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
    owner, count, leaves = builder().origin, len(nodes_splits.ravel()), len(leaf_targetids)
    modes = nodes_modes.ravel()
    if modes.size and not 0 <= int(modes.min()) <= int(modes.max()) < len(MODES_5):
        raise ModelError(f"{owner}: node mode {modes[(modes < 0) | (modes >= len(MODES_5))][0]} is none of {', '.join(MODES_5)}")
    first = np.arange(leaves)
    ways = []
    for ids, is_leaf, end in ((nodes_truenodeids, nodes_trueleafs, first), (nodes_falsenodeids, nodes_falseleafs, first + 1)):
        to_leaf = whole(is_leaf) != 0
        way = whole(ids) + count * to_leaf
        if ((way < count * to_leaf) | (way >= np.where(to_leaf, count + leaves, count))).any():
            raise ModelError(f"{owner}: a node leads to one that is not there")
        ways.append(np.concatenate([way, end]))
    nothing = np.zeros(leaves, np.int64)
    members = np.flatnonzero(modes == MEMBER).tolist()
    sets = member_sets(membership_values)
    if len(sets) < len(members):
        raise ModelError(f"{owner}: {len(members)} nodes ask for membership, membership_values has {len(sets)} sets")
    roots = whole(tree_roots)
    if roots.size and not 0 <= int(roots.min()) <= int(roots.max()) < count:
        raise ModelError(f"{owner}: a tree starts at a node that is not there")
    forest = Forest(
        "f64" if X.dtype == "f64" else "f32", mode=np.concatenate([modes.astype(np.int8), np.full(leaves, LEAF, np.int8)]),
        feature=np.concatenate([whole(nodes_featureids), nothing]), threshold=np.concatenate([nodes_splits.ravel(), nothing]),
        yes=ways[0], no=ways[1], missing=np.concatenate([whole(nodes_missing_value_tracks_true or [0] * count), nothing]) != 0,
        roots=roots, targets=whole(leaf_targetids), weights=leaf_weights.ravel(), sets=dict(zip(members, sets, strict=False)))
    y = scores(X, check_acyclic(forest), n_targets or 1, AGGREGATES_5[aggregate_function])
    return transformed(y, TRANSFORMS_5[post_transform]).cast(X.dtype)


def member_sets(values: np.ndarray | None) -> list[list[float]]:
    sets: list[list[float]] = [[]]
    for v in (values.ravel().tolist() if values is not None else ()):
        if v != v:
            sets.append([])
        else:
            sets[-1].append(float(v))
    return sets


