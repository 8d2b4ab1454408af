"""ai.onnx.ml and the optimisers: features, categories, linear models, support vectors, forests of random trees."""
from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from every_operator.draw import WORDS, Case, Draw, kind
from every_operator.oracle import native, reference
from every_operator.row import Row
from onnx import TensorProto, helper, numpy_helper

F32 = np.float32


def table(d: Draw, name: str = "T", least: int = 1) -> np.ndarray:
    """Rows of features."""
    return d.array(d.shape(2, 2, least, 5), d.type(name, "fiu"), False)


def plain(d: Draw, count: int) -> list[float]:
    return [float(v) for v in d.array((count,), F32, False)]


def picked(d: Draw) -> Case:
    x = d.array(d.shape(1, 3, 1), d.type("T"))
    return d.case(x, d.random.integers(0, x.shape[-1], (1, d.integer(1, 4))), constant=(1,))


def picked_of(case: Case) -> list[Any]:
    x, at = case.inputs
    y = x.take(at.ravel(), -1)
    return [y.reshape(1, -1) if x.ndim == 1 else y]


def binarizer(d: Draw) -> Case:
    return d.case(d.array(d.shape(1, 3), d.type("T"), d.special and kind(d.type("T")) == "f"), threshold=d.pick(None, 0.5, -1.0))


def binarized(case: Case) -> list[Any]:
    x = native(case.inputs[0])
    return [(x > case.attributes.get("threshold", 0.0)).astype(x.dtype)]


def feature_vectorizer(d: Draw) -> Case:
    n, dtype = d.integer(1, 4), d.type("T1")
    widths = [d.integer(1, 3) for _ in range(d.integer(1, 3))]
    return d.case(*(d.array((n, w), dtype, False) for w in widths), inputdimensions=widths)


def imputer(d: Draw) -> Case:
    x = table(d)
    name, missing = ("imputed_value_floats", "replaced_value_float") if kind(x.dtype) == "f" else ("imputed_value_int64s", "replaced_value_int64")
    gone = float("nan") if kind(x.dtype) == "f" and d.flag() else 1
    if gone != gone and x.size:
        x = np.where(d.random.random(x.shape) < 0.3, np.asarray(np.nan, x.dtype), x)
    values = [3, 4, 5, 6, 7][:x.shape[1] if d.flag() else 1]
    return d.case(x, **{name: [float(v) for v in values] if name.endswith("floats") else values, missing: float(gone) if name.endswith("floats") else gone})


def label_encoder(d: Draw) -> Case:
    """Keys and values as attributes of the kind of the type, or as tensors."""
    version = d.schema.since_version
    if version == 1:
        x = d.array(d.shape(1, 2), d.pick(np.int64, object))
        return d.case(x, classes_strings=["a", "b", "beta"], default_string="none", default_int64=-3)
    names = {np.dtype(np.int64): "int64s", np.dtype(F32): "floats", np.dtype(object): "strings"}
    source, target = d.pick(*names), d.pick(*names)
    keys: dict[str, Any] = {"int64s": [0, 1, -2], "floats": [0.5, 1.0, -1.0], "strings": ["a", "b", "beta"]}
    values: dict[str, Any] = {"int64s": [10, 11, 12], "floats": [0.5, 1.5, -1.0], "strings": ["x", "y", "β"]}
    x = d.array(d.shape(1, 3), source, False)
    if version == 4 and kind(source) != "s" and d.flag():
        out = np.dtype(d.pick(np.int16, np.float64, np.int64, F32))
        return d.case(x, keys_tensor=numpy_helper.from_array(np.array(keys[names[source]], source), "k"), values_tensor=numpy_helper.from_array(np.array([1, 2, 3], out), "v"),
                      default_tensor=numpy_helper.from_array(np.array([7], out), "d"))
    default = {"int64s": {"default_int64": -7}, "floats": {"default_float": 9.5}, "strings": {"default_string": "?"}}[names[target]]
    return d.case(x, **{f"keys_{names[source]}": keys[names[source]], f"values_{names[target]}": values[names[target]]}, **(default if d.flag() else {}))


def encoded(case: Case) -> list[Any]:
    x, a = native(case.inputs[0]), case.attributes
    if "classes_strings" in a:
        classes = a["classes_strings"]
        if x.dtype == object:
            return [np.array([classes.index(v) if v in classes else a["default_int64"] for v in x.ravel()], np.int64).reshape(x.shape)]
        return [np.array([classes[v] if 0 <= v < len(classes) else a["default_string"] for v in x.ravel()], object).reshape(x.shape)]
    array = lambda v: numpy_helper.to_array(v) if isinstance(v, TensorProto) else v
    keys, values = (next(array(v) for k, v in a.items() if k.startswith(side)) for side in ("keys", "values"))
    kinds = {"values_int64s": (np.int64, -1), "values_floats": (F32, -0.0), "values_strings": (object, "_Unused")}
    name = next(k for k in a if k.startswith("values"))
    dtype, default = kinds.get(name, (getattr(values, "dtype", None), None))
    default = next((array(v) for k, v in a.items() if k.startswith("default")), default)
    found = dict(zip(list(keys), list(values), strict=True))
    return [np.array([found.get(v, np.ravel(default)[0] if name == "values_tensor" else default) for v in x.ravel()], dtype).reshape(x.shape)]


def category_mapper(d: Draw) -> Case:
    x = d.array(d.shape(1, 2), d.type("T1"), False)
    return d.case(x, cats_strings=["a", "b", "beta"], cats_int64s=[1, 2, -3], default_string="none", default_int64=-9)


def mapped(case: Case) -> list[Any]:
    x, a = case.inputs[0], case.attributes
    pairs = list(zip(a["cats_strings"], a["cats_int64s"], strict=True))
    found: dict[Any, Any] = dict(pairs) if x.dtype == object else {v: k for k, v in pairs}
    default, dtype = (a["default_int64"], np.int64) if x.dtype == object else (a["default_string"], object)
    return [np.array([found.get(v, default) for v in x.ravel().tolist()], dtype).reshape(x.shape)]


def normalizer(d: Draw) -> Case:
    return d.case(table(d), norm=d.pick(None, "MAX", "L1", "L2"))


def normalized(case: Case) -> list[Any]:
    x = case.inputs[0].astype(np.float64)
    norm = {"MAX": lambda v: v.max(-1), "L1": lambda v: np.abs(v).sum(-1), "L2": lambda v: np.sqrt((v * v).sum(-1))}[case.attributes.get("norm", "MAX")](x)
    return [(x / np.where(norm == 0, 1, norm)[..., None]).astype(F32)]


def one_hot_encoder(d: Draw) -> Case:
    x = d.array(d.shape(1, 2), d.type("T"), False)
    cats = {"cats_strings": ["a", "b", "beta"]} if x.dtype == object else {"cats_int64s": [0, 1, -2]}
    if kind(x.dtype) == "f":
        x = np.rint(x.astype(np.float64)).astype(x.dtype)
    return d.case(x, **cats)


def one_hot_encoded(case: Case) -> list[Any]:
    cats = case.attributes.get("cats_strings", case.attributes.get("cats_int64s"))
    return [(case.inputs[0][..., None] == np.array(cats, object if isinstance(cats[0], str) else None)).astype(F32)]


def scaler(d: Draw) -> Case:
    x = table(d)
    n = x.shape[1] if d.flag() else 1
    return d.case(x, offset=plain(d, n), scale=plain(d, n))


def scaled(case: Case) -> list[Any]:
    return [((case.inputs[0].astype(np.float64) - np.array(case.attributes["offset"])) * np.array(case.attributes["scale"])).astype(F32)]


def classes(d: Draw, count: int) -> dict[str, Any]:
    return {"classlabels_strings": ["a", "b", "c", "β"][:count]} if d.flag() else {d.pick(*(n for n in ("classlabels_ints", "classlabels_int64s") if d.has(n))): [4, 7, -1, 9][:count]}


def transform(d: Draw) -> Any:
    return d.pick(None, "NONE", "LOGISTIC", "SOFTMAX")


def linear_classifier(d: Draw) -> Case:
    x, count = table(d, "T1"), d.integer(2, 4)
    return d.case(x, coefficients=plain(d, count * x.shape[1]), intercepts=plain(d, count), post_transform=transform(d), outputs=2, **classes(d, count))


def linear_regressor(d: Draw) -> Case:
    x, count = table(d), d.integer(1, 3)
    return d.case(x, coefficients=plain(d, count * x.shape[1]), intercepts=plain(d, count) if d.flag() else None, targets=count, post_transform=d.pick(None, "NONE"))


def regressed(case: Case) -> list[Any]:
    x, a = case.inputs[0].astype(np.float64), case.attributes
    return [(x @ np.array(a["coefficients"]).reshape(a["targets"], -1).T + np.array(a.get("intercepts", 0))).astype(F32)]


def kernel(d: Draw) -> dict[str, Any]:
    return {"kernel_type": d.pick("LINEAR", "POLY", "RBF", "SIGMOID"), "kernel_params": [0.25, 0.5, 2.0]}


def svm_regressor(d: Draw) -> Case:
    x, count = table(d), d.integer(1, 4)
    return d.case(x, coefficients=plain(d, count), support_vectors=plain(d, count * x.shape[1]), n_supports=count, rho=[0.5], **kernel(d))


def svm_classifier(d: Draw) -> Case:
    x, count = table(d, "T1"), d.integer(2, 3)
    each = [d.integer(1, 2) for _ in range(count)]
    total, pairs = sum(each), count * (count - 1) // 2
    return d.case(x, coefficients=plain(d, total * (count - 1)), support_vectors=plain(d, total * x.shape[1]), vectors_per_class=each, rho=plain(d, pairs), outputs=2,
                  classlabels_ints=[4, 7, -1][:count], **kernel(d))


MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


class Forest:
    """Random binary trees: nodes in order, leaves at any depth."""

    def __init__(self, d: Draw, features: int) -> None:
        self.columns: dict[str, list[Any]] = {n: [] for n in ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")}
        self.leaves: list[tuple[int, int]] = []
        mode = d.pick(*MODES)
        for tree in range(d.integer(1, 4)):
            self.grow(d, tree, features, mode, d.integer(0, 3))

    def grow(self, d: Draw, tree: int, features: int, mode: str, depth: int) -> None:
        waiting, number = [(0, depth)], 1
        while waiting:
            node, left = waiting.pop(0)
            leaf = left == 0
            row = {"treeids": tree, "nodeids": node, "featureids": 0 if leaf else d.integer(0, features - 1), "modes": "LEAF" if leaf else mode,
                   "values": 0.0 if leaf else float(d.random.integers(-16, 17) / 8), "truenodeids": 0 if leaf else number, "falsenodeids": 0 if leaf else number + 1,
                   "missing_value_tracks_true": 0 if leaf else int(d.flag())}
            for k, v in row.items():
                self.columns[k].append(v)
            if leaf:
                self.leaves.append((tree, node))
            else:
                waiting += [(number, left - 1), (number + 1, d.integer(0, left - 1))]
                number += 2

    def attributes(self, d: Draw, side: str, outputs: int) -> dict[str, Any]:
        found = {f"nodes_{k}": v for k, v in self.columns.items()}
        ids = [d.integer(0, outputs - 1) for _ in self.leaves]
        return {**found, f"{side}_treeids": [t for t, _ in self.leaves], f"{side}_nodeids": [n for _, n in self.leaves], f"{side}_ids": ids, f"{side}_weights": plain(d, len(ids))}


def trees_input(d: Draw, name: str) -> np.ndarray:
    x = table(d, name)
    return np.where(d.random.random(x.shape) < 0.15, np.asarray(np.nan, x.dtype), x) if d.special and kind(x.dtype) == "f" else x


def forest_regressor(d: Draw) -> Case:
    x, count = trees_input(d, "T"), d.integer(1, 2)
    return d.case(x, n_targets=count, aggregate_function=d.pick(None, "SUM", "AVERAGE", "MIN", "MAX"), base_values=plain(d, count) if d.flag() else None,
                  **Forest(d, x.shape[1]).attributes(d, "target", count))


def forest_classifier(d: Draw) -> Case:
    x, count = trees_input(d, "T1"), 3
    forest = Forest(d, x.shape[1])
    return d.case(x, **classes(d, count), **forest.attributes(d, "class", count), base_values=plain(d, count) if d.flag() else None, outputs=2)


def walked(case: Case) -> np.ndarray:
    """The sums, means or extremes that the trees give each row."""
    a, x = case.attributes, case.inputs[0].astype(F32 if case.inputs[0].dtype != np.float64 else np.float64)
    side = "target" if "target_ids" in a else "class"
    count = a.get("n_targets") or len(a.get("classlabels_strings", a.get("classlabels_ints", a.get("classlabels_int64s"))))
    rows = {(t, n): k for k, (t, n) in enumerate(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))}
    leaves = {(t, n): (i, w) for t, n, i, w in zip(*(a[f"{side}_{k}"] for k in ("treeids", "nodeids", "ids", "weights")), strict=True)}
    tests = dict(zip(MODES, (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal), strict=True))
    how, trees = a.get("aggregate_function", "SUM"), sorted(set(a["nodes_treeids"]))
    y = np.zeros((len(x), count))
    for r, row in enumerate(x):
        given: list[list[float]] = [[] for _ in range(count)]
        for tree in trees:
            node = 0
            while a["nodes_modes"][rows[tree, node]] != "LEAF":
                k = rows[tree, node]
                v = row[a["nodes_featureids"][k]]
                yes = bool(tests[a["nodes_modes"][k]](v, F32(a["nodes_values"][k]))) or np.isnan(v) and bool(a["nodes_missing_value_tracks_true"][k])
                node = a["nodes_truenodeids" if yes else "nodes_falsenodeids"][k]
            target, weight = leaves[tree, node]
            given[target].append(weight)
        fold = {"SUM": sum, "AVERAGE": lambda v: sum(v) / len(trees), "MIN": min, "MAX": max}[how]
        y[r] = [fold(g) if g else 0.0 for g in given]
    return y + np.array(a.get("base_values", 0.0))


def forest_classified(case: Case) -> list[Any]:
    """Three classes: the label is that of the largest score, the first of equal ones."""
    scores, a = walked(case).astype(F32), case.attributes
    labels = a.get("classlabels_strings", a.get("classlabels_int64s"))
    return [np.array([labels[k] for k in scores.argmax(1)], object if isinstance(labels[0], str) else np.int64), scores]


def support(x: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    """The kernel of every row with every support vector."""
    vectors = np.array(a["support_vectors"]).reshape(-1, x.shape[1])
    gamma, offset, degree = a["kernel_params"]
    if a["kernel_type"] == "RBF":
        return np.exp(-gamma * ((x[:, None] - vectors[None])**2).sum(2))
    dot = x @ vectors.T
    return {"LINEAR": dot, "POLY": (gamma * dot + offset)**degree, "SIGMOID": np.tanh(gamma * dot + offset)}[a["kernel_type"]]


def svm_regressed(case: Case) -> list[Any]:
    a = case.attributes
    return [(support(case.inputs[0].astype(np.float64), a) @ np.array(a["coefficients"]) + a["rho"][0]).reshape(-1, 1).astype(F32)]


def forest_regressed(case: Case) -> list[Any]:
    return [walked(case).astype(F32)]


def ensemble(d: Draw) -> Case:
    """Version 5: inner nodes and leaves in lists of their own."""
    x = trees_input(d, "T")
    how = d.integer(0, 3)
    count = d.integer(1, 2) if how < 2 else 1
    inner: dict[str, list[int]] = {n: [] for n in ("featureids", "truenodeids", "falsenodeids", "trueleafs", "falseleafs")}
    leaves, roots = [0], []

    def grow(depth: int) -> int:
        me = len(inner["featureids"])
        for column in inner.values():
            column.append(0)
        inner["featureids"][me] = d.integer(0, x.shape[1] - 1)
        for side in ("true", "false"):
            leaf = depth == 0 or d.flag()
            inner[f"{side}leafs"][me] = int(leaf)
            inner[f"{side}nodeids"][me] = leaves[0] if leaf else grow(depth - 1)
            leaves[0] += leaf
        return me

    for _ in range(d.integer(1, 3)):
        roots.append(grow(d.integer(0, 2)))
    nodes, total = len(inner["featureids"]), leaves[0]
    modes = np.full(nodes, d.integer(0, 5), np.uint8)
    return d.case(x, **{f"nodes_{k}": v for k, v in inner.items()}, nodes_modes=numpy_helper.from_array(modes, "m"), tree_roots=roots, n_targets=count, aggregate_function=how,
                  nodes_splits=numpy_helper.from_array(d.array((nodes,), x.dtype, False, -2, 2), "s"), leaf_targetids=[d.integer(0, count - 1) for _ in range(total)],
                  leaf_weights=numpy_helper.from_array(d.array((total,), x.dtype, False), "w"), nodes_missing_value_tracks_true=[int(d.flag()) for _ in range(nodes)])


def optimizer(d: Draw) -> Case:
    count, shape = d.integer(1, 2), d.shape(0, 3, 1)
    dtype = d.type("T3")
    kinds = {"Adagrad": 1, "Momentum": 1, "Adam": 2}[d.schema.name]
    xs, gs = ([d.array(shape, dtype, False) for _ in range(count)] for _ in range(2))
    states = [d.array(shape, dtype, False, 0.125, 2) for _ in range(count * kinds)]
    more: dict[str, Any] = {"Adagrad": {"decay_factor": d.pick(None, 0.1), "epsilon": 1e-3}, "Adam": {"norm_coefficient_post": d.pick(None, 0.5), "epsilon": 1e-3},
                            "Momentum": {"mode": d.pick("standard", "nesterov"), "alpha": 0.9, "beta": 0.5}}[d.schema.name]
    more["norm_coefficient"] = 0.01
    return d.case(np.array(0.125, d.type("T1")), np.array(d.integer(0, 3)), *xs, *gs, *states, outputs=count * (1 + kinds), **more)


def of_map(d: Draw, key: int, value: int, given: dict[Any, Any], **attributes: Any) -> Case:
    x = helper.make_value_info("x0", helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, None)))
    node = helper.make_node(d.schema.name, ["x0"], ["y0"], "tried", domain=d.schema.domain, **attributes)
    graph = helper.make_graph([node], "g", [x], [onnx.ValueInfoProto(name="y0")])
    return Case(helper.make_model(graph, opset_imports=d.opsets(), ir_version=13), {"x0": given}, [given], attributes)


def cast_map(d: Draw) -> Case:
    keys = sorted({d.integer(0, 6) for _ in range(d.integer(1, 4))})
    sparse = {"map_form": "SPARSE", "max_map": 7} if d.flag() else {}
    return of_map(d, TensorProto.INT64, TensorProto.FLOAT, {k: float(d.integer(-9, 9)) for k in keys}, cast_to=d.pick("TO_FLOAT", "TO_INT64"), **sparse)


def map_cast(case: Case) -> list[Any]:
    given, a = case.inputs[0], case.attributes
    dtype = F32 if a["cast_to"] == "TO_FLOAT" else np.int64
    values = [given.get(k, 0) for k in range(7)] if "max_map" in a else [given[k] for k in sorted(given)]
    return [np.array([values], dtype)]


def dict_vectorizer(d: Draw) -> Case:
    given = {w: d.integer(-9, 9) for w in WORDS[1:] if d.flag()}
    return of_map(d, TensorProto.STRING, TensorProto.INT64, given, string_vocabulary=["a", "b", "nowhere", "β"])


def dict_vectorized(case: Case) -> list[Any]:
    return [np.array([[case.inputs[0].get(w, 0) for w in case.attributes["string_vocabulary"]]], np.int64)]


def zip_map(d: Draw) -> Case:
    x = d.array((d.integer(1, 3), 3), F32, False)
    return d.case(x, **({"classlabels_strings": ["a", "b", "β"]} if d.flag() else {"classlabels_int64s": [5, -1, 9]}))


def zipped(case: Case) -> list[Any]:
    labels = case.attributes.get("classlabels_strings", case.attributes.get("classlabels_int64s"))
    return [[dict(zip(labels, row.tolist(), strict=True)) for row in case.inputs[0]]]


ML_ROWS: dict[str, Row] = {
    "ArrayFeatureExtractor": Row(picked, picked_of), "Binarizer": Row(binarizer, binarized), "FeatureVectorizer": Row(feature_vectorizer), "Imputer": Row(imputer),
    "LabelEncoder": Row(label_encoder, encoded), "CategoryMapper": Row(category_mapper, mapped), "Normalizer": Row(normalizer, normalized),
    "OneHotEncoder": Row(one_hot_encoder, one_hot_encoded), "Scaler": Row(scaler, scaled), "LinearClassifier": Row(linear_classifier, floor=1, sums=1),
    "LinearRegressor": Row(linear_regressor, regressed, sums=1), "SVMRegressor": Row(svm_regressor, svm_regressed, sums=2, slack=4), "SVMClassifier": Row(svm_classifier, sums=2, slack=4),
    "TreeEnsembleRegressor": Row(forest_regressor, forest_regressed, sums=1), "TreeEnsembleClassifier": Row(forest_classifier, forest_classified, sums=1),
    "TreeEnsemble": Row(ensemble, partial(reference, widen=False), sums=1), "CastMap": Row(cast_map, map_cast), "DictVectorizer": Row(dict_vectorizer, dict_vectorized), "ZipMap": Row(zip_map, zipped),
}
TRAINING_ROWS: dict[str, Row] = {n: Row(optimizer, single=True, sums=1, floor=1, slack=2) for n in ("Adagrad", "Adam", "Momentum")}
