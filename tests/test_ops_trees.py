"""Tree ensembles against walks written out here: every mode, missing values, aggregates, entries of leaves, sizes of forest and batch."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import on_devices
import onnx
import pytest
from onnx import TensorProto, helper
from op_runner import node_model

import gpuonnx

pytestmark = pytest.mark.usefixtures("every_device")

MODES: dict[str, Callable[[Any, Any], Any]] = {
    "BRANCH_LEQ": np.less_equal, "BRANCH_LT": np.less, "BRANCH_GTE": np.greater_equal, "BRANCH_GT": np.greater, "BRANCH_EQ": np.equal,
    "BRANCH_NEQ": np.not_equal}
VALUES = [-np.inf, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, np.inf, np.nan]
FEATURES = 7


class Grower:
    """Random trees as the attributes of versions 1 and 3 have them, and their answers."""

    def __init__(self, seed: int, trees: int, depth: int, targets: int, entries: tuple[int, int], modes: list[str]) -> None:
        self.rng = np.random.default_rng(seed)
        self.trees, self.targets, self.entries, self.modes = trees, targets, entries, modes
        self.nodes: list[tuple[Any, ...]] = []
        self.leaves: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for tree in range(trees):
            self.count = 0
            self.grow(tree, depth)

    def grow(self, tree: int, depth: int) -> int:
        number, row = self.count, len(self.nodes)
        self.count += 1
        self.nodes.append(())
        if depth == 0 or self.rng.random() < 0.15:
            chosen = self.rng.choice(self.targets, self.rng.integers(*self.entries), replace=False)
            self.leaves[tree, number] = [(int(c), float(np.float32(self.rng.normal()))) for c in chosen]
            self.nodes[row] = (tree, number, "LEAF", 0, 0.0, 0, 0, 0)
        else:
            mode = self.modes[self.rng.integers(len(self.modes))]
            ways = self.grow(tree, depth - 1), self.grow(tree, depth - 1)
            self.nodes[row] = (tree, number, mode, int(self.rng.integers(FEATURES)), float(self.rng.choice(VALUES)), *ways, int(self.rng.random() < 0.5))
        return number

    def attributes(self) -> dict[str, Any]:
        names = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")
        out: dict[str, Any] = {f"nodes_{n}": list(column) for n, column in zip(names, zip(*self.nodes, strict=True), strict=True)}
        entries = [(tree, node, *e) for (tree, node), leaf in self.leaves.items() for e in leaf]
        self.rng.shuffle(entries)
        names = ("treeids", "nodeids", "ids", "weights")
        types = (int, int, int, float)
        return out | {f"target_{n}": [t(e[k]) for e in entries] for k, (n, t) in enumerate(zip(names, types, strict=True)) if entries}

    def answer(self, x: np.ndarray, aggregate: str) -> np.ndarray:
        table = {(tree, number): (mode, feature, value, yes, no, missing) for tree, number, mode, feature, value, yes, no, missing in self.nodes}
        found: list[list[list[float]]] = [[[] for _ in range(self.targets)] for _ in x]
        for r, row in enumerate(x):
            for tree in range(self.trees):
                node = 0
                while table[tree, node][0] != "LEAF":
                    mode, feature, value, yes, no, missing = table[tree, node]
                    v = row[feature]
                    node = yes if MODES[mode](v, x.dtype.type(value)) or np.isnan(v) and missing else no
                for target, weight in self.leaves[tree, node]:
                    found[r][target].append(weight)
        fold: Any = {"SUM": sum, "AVERAGE": lambda w: sum(w) / self.trees, "MIN": lambda w: min(w, default=0), "MAX": lambda w: max(w, default=0)}[aggregate]
        return np.array([[fold(w) for w in row] for row in found]).reshape(len(x), self.targets)


def rows(seed: int, count: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng(seed).choice([*VALUES, -0.3, 0.7], (count, FEATURES)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("trees", "depth", "targets", "entries"), [
    (1, 0, 1, (1, 2)), (9, 5, 1, (1, 2)), (9, 4, 3, (3, 4)), (5, 4, 6, (0, 3)), (11, 4, 40, (1, 2)), (300, 3, 2, (0, 3))])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("modes", [["BRANCH_LEQ"], list(MODES)], ids=["leq", "all"])
def test_regressor(dtype: Any, trees: int, depth: int, targets: int, entries: tuple[int, int], aggregate: str, modes: list[str]) -> None:
    """Batches of none, of a few (one row, many trees), of whole groups and with a rest."""
    grower = Grower(trees + depth, trees, depth, targets, entries, modes)
    x = rows(1, 0, dtype)
    model = node_model("TreeEnsembleRegressor", [x], 3, 1, "ai.onnx.ml", aggregate_function=aggregate, n_targets=targets, **grower.attributes())
    session = gpuonnx.load(model, device=on_devices.current)
    for count in (0, 1, 3, 4, 16, 37) if trees < 100 else (2, 9):
        x = rows(count, count, dtype)
        np.testing.assert_allclose(session.run({"x0": x})["y0"], grower.answer(x, aggregate), rtol=1e-5, atol=2e-5)


def test_a_row_has_one_answer_in_every_batch() -> None:
    """Bit for bit: sums go by segments of trees, whatever the batch and the threads."""
    trees, most = (700, 3000) if on_devices.current == "cpu" else (70, 4200)
    grower = Grower(5, trees, 4, 1, (1, 2), ["BRANCH_LEQ"])
    x = np.random.default_rng(0).standard_normal((most, FEATURES)).astype(np.float32)
    model = node_model("TreeEnsembleRegressor", [x], 3, 1, "ai.onnx.ml", n_targets=1, **grower.attributes())
    whole = gpuonnx.load(model, device=on_devices.current, threads=1).run({"x0": x})["y0"]
    session = gpuonnx.load(model, device=on_devices.current, threads=2)
    for count in (1, 2, 5, 8, 30, 100, 700, most):
        assert session.run({"x0": x[:count].copy()})["y0"].tobytes() == whole[:count].tobytes()


def ensemble(x: np.ndarray, splits: list[float], modes: list[int], members: list[float], true: list[tuple[int, int]], false: list[tuple[int, int]],
             weights: list[float], missing: list[int]) -> Any:
    """TreeEnsemble 5 of one tree: ways as (number, whether a leaf)."""
    kind = TensorProto.DOUBLE if x.dtype == np.float64 else TensorProto.FLOAT

    def tensor(name: str, values: list[Any], dtype: int = kind) -> onnx.TensorProto:
        return helper.make_tensor(name, dtype, [len(values)], values)
    model = node_model(
        "TreeEnsemble", [x], 5, 1, "ai.onnx.ml", n_targets=1, nodes_splits=tensor("splits", splits), nodes_featureids=[0] * len(splits),
        nodes_modes=tensor("modes", modes, TensorProto.UINT8), nodes_truenodeids=[n for n, _ in true], nodes_trueleafs=[k for _, k in true],
        nodes_falsenodeids=[n for n, _ in false], nodes_falseleafs=[k for _, k in false], leaf_targetids=[0] * len(weights),
        leaf_weights=tensor("weights", weights), tree_roots=[0], nodes_missing_value_tracks_true=missing,
        membership_values=tensor("members", members))
    return gpuonnx.run(model, {"x0": x}, device=on_devices.current)["y0"].ravel()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("members", [[3.0], [1.0, 2.0, 5.0], [-np.inf, 0.0], [np.inf, 7.0, 8.0, 9.0, 11.0], []], ids=str)
def test_membership(dtype: Any, missing: int, members: list[float]) -> None:
    x = np.array([-np.inf, -1, 0, 1, 1.5, 2, 3, 5, 6, 7, 8, 9, 10, 11, np.inf, np.nan], dtype)
    got = ensemble(x[:, None], [0.0], [6], [*members, np.nan], [(0, 1)], [(1, 1)], [10.0, 20.0], [missing])
    inside = np.isin(x, members) | np.isnan(x) & bool(missing)
    np.testing.assert_array_equal(got, np.where(inside, 10.0, 20.0))


def test_leaves_may_be_shared() -> None:
    x = np.array([[-1.0], [0.5], [3.0]], np.float32)
    got = ensemble(x, [0.0, 1.0], [0, 0], [], [(0, 1), (1, 1)], [(1, 0), (0, 1)], [10.0, 20.0], [0, 0])
    np.testing.assert_array_equal(got, [10.0, 20.0, 10.0])


def test_nodes_in_a_circle_are_refused() -> None:
    with pytest.raises(gpuonnx.ModelError, match="circle"):
        ensemble(np.zeros((1, 1), np.float32), [0.0, 1.0], [0, 0], [], [(1, 0), (0, 0)], [(0, 1), (0, 1)], [10.0], [0, 0])


@pytest.mark.parametrize(("change", "message"), [
    ({"nodes_nodeids": [0, 1, 1]}, "two nodes 1"), ({"nodes_truenodeids": [7, 0, 0]}, "leads to node 7"), ({"nodes_falsenodeids": [1, 0, 0]}, "two ways"),
    ({"nodes_modes": ["BRANCH", "LEAF", "LEAF"]}, "BRANCH"), ({"nodes_values": [0.0]}, "different lengths"), ({"target_ids": [0, 4]}, "target 4"),
    ({"nodes_featureids": [-1, 0, 0]}, "feature -1"), ({"aggregate_function": "MEAN"}, "MEAN")])
def test_bad_trees(change: dict[str, Any], message: str) -> None:
    attributes = {"nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3, "nodes_values": [0.0] * 3,
                  "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
                  "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0], **change}
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(gpuonnx.GpuOnnxError, match=message):
        gpuonnx.run(node_model("TreeEnsembleRegressor", [x], 3, 1, "ai.onnx.ml", n_targets=1, **attributes), {"x0": x}, device=on_devices.current)
