"""ai.onnx.ml: linear models, support vector machines, maps and categories, against formulas and loops written out here."""
from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import on_devices
import onnx
import pytest
from onnx import TensorProto, helper
from op_runner import node_model

pytestmark = pytest.mark.usefixtures("every_device")
RNG = np.random.default_rng(11)
ML = "ai.onnx.ml"
X = RNG.standard_normal((6, 4)).astype(np.float32)


def outputs(op: str, inputs: list[Any], count: int = 1, **attributes: Any) -> list[Any]:
    feeds = {f"x{k}": x for k, x in enumerate(inputs)}
    got = on_devices.run(node_model(op, inputs, 1, count, ML, **attributes), feeds)
    return [got[f"y{k}"] for k in range(count)]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def plain(array: np.ndarray) -> list[float]:
    return [float(v) for v in array.ravel()]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_linear_classifier(transform: str) -> None:
    w, b = floats(3, 4), floats(3)
    label, scores = outputs("LinearClassifier", [X], 2, coefficients=plain(w), intercepts=plain(b), classlabels_ints=[4, 5, 7], post_transform=transform)
    raw = X @ w.T + b
    expected = {"NONE": raw, "LOGISTIC": 1 / (1 + np.exp(-raw)), "SOFTMAX": softmax(raw)}[transform]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert label.tolist() == [[4, 5, 7][k] for k in raw.argmax(1)]


def test_linear_classifier_of_one_row_of_coefficients() -> None:
    w, b = floats(4), floats(1)
    label, scores = outputs("LinearClassifier", [X], 2, coefficients=plain(w), intercepts=plain(b), classlabels_strings=["no", "yes"],
                            post_transform="LOGISTIC")
    p = 1 / (1 + np.exp(-(X @ w + b)))
    np.testing.assert_allclose(scores, np.stack([1 - p, p], 1), rtol=1e-5, atol=1e-6)
    assert label.tolist() == ["yes" if q > 0.5 else "no" for q in p]


def test_linear_regressor() -> None:
    w, b = floats(2, 4), floats(2)
    (y,) = outputs("LinearRegressor", [X], coefficients=plain(w), intercepts=plain(b), targets=2)
    np.testing.assert_allclose(y, X @ w.T + b, rtol=1e-5, atol=1e-6)


def kernel(x: np.ndarray, v: np.ndarray, kind: str, gamma: float, offset: float, degree: float) -> np.ndarray:
    if kind == "RBF":
        return np.exp(-gamma * ((x[:, None] - v[None]) ** 2).sum(2))
    dot = x @ v.T
    return {"LINEAR": dot, "POLY": (gamma * dot + offset) ** degree, "SIGMOID": np.tanh(gamma * dot + offset)}[kind]


@pytest.mark.parametrize("kind", ["LINEAR", "POLY", "RBF", "SIGMOID"])
def test_svm_regressor(kind: str) -> None:
    vectors, weights = floats(5, 4), floats(5)
    (y,) = outputs("SVMRegressor", [X], n_supports=5, coefficients=plain(weights), support_vectors=plain(vectors), rho=[0.25], kernel_type=kind,
                   kernel_params=[0.3, 0.2, 3.0])
    np.testing.assert_allclose(y[:, 0], kernel(X, vectors, kind, 0.3, 0.2, 3.0) @ weights + 0.25, rtol=1e-4, atol=1e-5)


SIZES = [2, 3, 2]


def machine() -> dict[str, Any]:
    return {"vectors": floats(7, 4), "weights": floats(2, 7), "rho": floats(3)}


def decisions(m: dict[str, Any]) -> np.ndarray:
    """Of every pair of classes, by the loops that libsvm has."""
    k, ends = kernel(X, m["vectors"], "RBF", 0.3, 0, 0), np.cumsum([0, *SIZES])
    out = np.zeros((len(X), 3))
    for pair, (i, j) in enumerate(combinations(range(3), 2)):
        for v in range(ends[i], ends[i + 1]):
            out[:, pair] += m["weights"][j - 1, v] * k[:, v]
        for v in range(ends[j], ends[j + 1]):
            out[:, pair] += m["weights"][i, v] * k[:, v]
    return out + m["rho"]


def classified(m: dict[str, Any], **more: Any) -> list[Any]:
    return outputs("SVMClassifier", [X], 2, classlabels_ints=[3, 4, 6], coefficients=plain(m["weights"]), support_vectors=plain(m["vectors"]),
                   vectors_per_class=SIZES, rho=plain(m["rho"]), kernel_type="RBF", kernel_params=[0.3, 0.0, 3.0], **more)


def test_svm_classifier_counts_votes() -> None:
    m = machine()
    label, scores = classified(m)
    expected = decisions(m)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    won = np.zeros((len(X), 3), int)
    for row, found in zip(won, expected, strict=True):
        for value, (i, j) in zip(found, combinations(range(3), 2), strict=True):
            row[i if value > 0 else j] += 1
    assert label.tolist() == [[3, 4, 6][k] for k in won.argmax(1)]


def test_svm_probabilities_are_the_fixed_point() -> None:
    """p solves Q p = (p' Q p) 1, up to libsvm's tolerance of 0.005 / classes."""
    m, a, b = machine(), [-1.0, -0.7, -0.4], [0.1, -0.2, 0.3]
    _, p = classified(m, prob_a=a, prob_b=b)
    r = 1 / (1 + np.exp(decisions(m) * a + b))
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    for row, wins in zip(p, r, strict=True):
        table = np.zeros((3, 3))
        for value, (i, j) in zip(wins, combinations(range(3), 2), strict=True):
            table[i, j], table[j, i] = value, 1 - value
        q = -table * table.T + np.diag((table.T ** 2).sum(1))
        assert np.abs(q @ row - row @ q @ row).max() < 0.005 / 3 + 1e-5


def test_zip_map() -> None:
    (y,) = outputs("ZipMap", [X[:2, :2]], classlabels_strings=["a", "b"])
    assert [list(row) for row in y] == [["a", "b"]] * 2
    np.testing.assert_array_equal([list(row.values()) for row in y], X[:2, :2])


def of_map(op: str, key: int, value: int, given: dict[Any, Any], **attributes: Any) -> np.ndarray:
    x = helper.make_value_info("x", helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, None)))
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=ML, **attributes)], "g", [x], [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)])
    return on_devices.run(model, {"x": given})["y"]


def test_cast_map() -> None:
    given = {5: 2.5, 1: -1.0}
    np.testing.assert_array_equal(of_map("CastMap", TensorProto.INT64, TensorProto.FLOAT, given, cast_to="TO_INT64"), [[-1, 2]])
    sparse = of_map("CastMap", TensorProto.INT64, TensorProto.FLOAT, given, map_form="SPARSE", max_map=7)
    np.testing.assert_array_equal(sparse, np.array([[0, -1, 0, 0, 0, 2.5, 0]], np.float32))


def test_dict_vectorizer() -> None:
    y = of_map("DictVectorizer", TensorProto.STRING, TensorProto.INT64, {"b": 4, "z": 9}, string_vocabulary=["a", "b", "c"])
    np.testing.assert_array_equal(y, [[0, 4, 0]])
    assert y.dtype == np.int64


def test_category_mapper() -> None:
    (numbers,) = outputs("CategoryMapper", [np.array([["a", "x"]], object)], cats_strings=["a", "b"], cats_int64s=[3, 4], default_int64=-7)
    assert numbers.tolist() == [[3, -7]]
    (texts,) = outputs("CategoryMapper", [np.array([4, 9])], cats_strings=["a", "b"], cats_int64s=[3, 4])
    assert texts.tolist() == ["b", "_Unused"]


def test_feature_vectorizer_cuts_and_fills() -> None:
    (y,) = outputs("FeatureVectorizer", [X, X], inputdimensions=[3, 6])
    np.testing.assert_array_equal(y, np.concatenate([X[:, :3], X, np.zeros((6, 2), np.float32)], 1))


def stump(leaves: list[float], of_class: int) -> dict[str, Any]:
    """One tree: feature 0 at most 0, or more."""
    return {"nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3, "nodes_values": [0.0] * 3,
            "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
            "class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [of_class] * 2, "class_weights": leaves}


@pytest.mark.parametrize(("leaves", "transform", "first"), [
    ([-1.0, 2.0], "NONE", lambda s: -s), ([0.25, 0.75], "NONE", lambda s: 1 - s), ([-1.0, 2.0], "LOGISTIC", lambda s: 1 / (1 + np.exp(s))),
    ([0.25, 0.75], "LOGISTIC", lambda s: 1 / (1 + np.exp(s)))])
def test_two_classes_from_the_scores_of_one(leaves: list[float], transform: str, first: Any) -> None:
    label, y = outputs("TreeEnsembleClassifier", [X], 2, classlabels_int64s=[3, 5], post_transform=transform, **stump(leaves, 0))
    score = np.where(X[:, 0] <= 0, *leaves)
    second = 1 / (1 + np.exp(-score)) if transform == "LOGISTIC" else score
    np.testing.assert_allclose(y, np.stack([first(score), second], 1), rtol=1e-5)
    assert label.tolist() == np.where(X[:, 0] <= 0, 3, 5).tolist()
