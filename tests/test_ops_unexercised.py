"""Operators that no case of the official suite runs: against NumPy, the standard's reference evaluator or a loop written out here."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from op_runner import node_model, official_cases

import gpuonnx

RNG = np.random.default_rng(17)
ML = "ai.onnx.ml"


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def outputs(op_type: str, inputs: list[Any], domain: str = "", opset: int = 1, count: int = 1, **attributes: Any) -> list[np.ndarray]:
    model = node_model(op_type, inputs, opset, count, domain, **attributes)
    return list(gpuonnx.load(model, device="cpu", threads=1).run({f"x{k}": x for k, x in enumerate(inputs)}).values())


def as_reference(op_type: str, inputs: list[Any], domain: str = ML, opset: int = 1, count: int = 1, **attributes: Any) -> None:
    model = node_model(op_type, inputs, opset, count, domain, **attributes)
    theirs = ReferenceEvaluator(model).run(None, {f"x{k}": x for k, x in enumerate(inputs)})
    for a, b in zip(outputs(op_type, inputs, domain, opset, count, **attributes), theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


TESTED_ELSEWHERE = frozenset(
    "ConcatFromSequence MaxRoiPool Multinomial RandomNormalLike RandomUniform SequenceAt SequenceConstruct Gradient TreeEnsembleClassifier SVMClassifier "
    "SVMRegressor LinearClassifier LinearRegressor ZipMap CastMap DictVectorizer CategoryMapper FeatureVectorizer".split())
HERE = frozenset("GlobalLpPool Optional RandomNormal SequenceErase RandomUniformLike Imputer Normalizer OneHotEncoder Scaler "
                 "TreeEnsembleRegressor".split())


def test_the_lists_are_whole() -> None:
    ran: set[str] = set()
    stack = [case.model.graph for case in official_cases() if case.model is not None]
    while stack:
        graph = stack.pop()
        for node in graph.node:
            ran.add(node.op_type)
            stack += [a.g for a in node.attribute if a.HasField("g")]
    schemas = onnx.defs.get_all_schemas()
    missing = {s.name for s in schemas if not s.deprecated and s.name not in ran and not s.has_function and not s.has_context_dependent_function}
    assert missing - TESTED_ELSEWHERE - HERE == set()


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool(p: int) -> None:
    x = floats(2, 3, 4, 5)
    expected = (np.abs(x.astype(np.float64)) ** p).sum((2, 3), keepdims=True) ** (1 / p)
    np.testing.assert_allclose(outputs("GlobalLpPool", [x], opset=21, p=p)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["RandomNormal", "RandomUniform"])
@pytest.mark.parametrize("dtype", [1, 10, 11])
def test_random_numbers(name: str, dtype: int) -> None:
    """Mean and deviation; the same numbers for the same seed, and for the operator that takes its shape from a tensor."""
    given = {"mean": 2.0, "scale": 0.5} if name == "RandomNormal" else {"low": 1.0, "high": 3.0}
    (first,) = outputs(name, [], opset=21, shape=[100, 200], seed=4.0, dtype=dtype, **given)
    (second,) = outputs(name + "Like", [np.zeros((100, 200), np.int32)], opset=21, seed=4.0, dtype=dtype, **given)
    assert first.dtype == helper.tensor_dtype_to_np_dtype(dtype) and first.shape == (100, 200)
    np.testing.assert_array_equal(first, second)
    wide = first.astype(np.float64)
    assert abs(wide.mean() - 2) < 0.02 and abs(wide.std() - (0.5 if name == "RandomNormal" else 2 / np.sqrt(12))) < 0.02


@pytest.mark.parametrize("position", [0, 1, 2, -1, -3, None])
def test_sequence_erase(position: int | None) -> None:
    parts = [floats(2), floats(3), floats(4)]
    nodes = [helper.make_node("SequenceConstruct", ["a", "b", "c"], ["s"]),
             helper.make_node("SequenceErase", ["s"] if position is None else ["s", "p"], ["e"]),
             helper.make_node("ConcatFromSequence", ["e"], ["y"], axis=0)]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None]) for n in "abc"] + [helper.make_tensor_value_info("p", TensorProto.INT64, [])]
    model = helper.make_model(helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]),
                              opset_imports=[helper.make_opsetid("", 21)])
    feeds = dict(zip("abc", parts, strict=True)) | {"p": np.array(position or 0)}
    kept = [part for k, part in enumerate(parts) if k != (-1 if position is None else position) % 3]
    np.testing.assert_array_equal(gpuonnx.run(model, feeds)["y"], np.concatenate(kept))


def test_optional() -> None:
    nodes = [helper.make_node("Optional", ["x"], ["o"]), helper.make_node("OptionalHasElement", ["o"], ["has"]),
             helper.make_node("OptionalGetElement", ["o"], ["y"]),
             helper.make_node("Optional", [], ["n"], type=helper.make_tensor_type_proto(TensorProto.FLOAT, [2])),
             helper.make_node("OptionalHasElement", ["n"], ["has_not"])]
    infos = [helper.make_tensor_value_info(n, k, None) for n, k in (("has", TensorProto.BOOL), ("y", TensorProto.FLOAT), ("has_not", TensorProto.BOOL))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])], infos)
    x = floats(3)
    got = gpuonnx.run(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), {"x": x})
    assert got["has"] and not got["has_not"]
    np.testing.assert_array_equal(got["y"], x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
def test_scaler(dtype: Any) -> None:
    x = (floats(3, 4) * 5).astype(dtype)
    for offset, scale in (([1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 3.0, 1.0]), ([1.0], [2.0])):
        (ours,) = outputs("Scaler", [x], ML, offset=offset, scale=scale)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, (x - np.array(offset)) * np.array(scale), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm: str) -> None:
    x = floats(3, 4)
    x[1] = 0
    divisor = {"MAX": x.max(1), "L1": np.abs(x).sum(1), "L2": np.sqrt((x * x).sum(1))}[norm]
    (ours,) = outputs("Normalizer", [x], ML, norm=norm)
    np.testing.assert_allclose(ours, x / np.where(divisor == 0, 1, divisor)[:, None], rtol=1e-6)


def test_imputer() -> None:
    x = floats(3, 2)
    x[0, 0] = x[2, 1] = np.nan
    as_reference("Imputer", [x], imputed_value_floats=[7.0, 8.0], replaced_value_float=float("nan"))
    as_reference("Imputer", [np.array([[1, -1], [-1, 4]])], imputed_value_int64s=[9], replaced_value_int64=-1)


def test_one_hot_encoder() -> None:
    x = np.array([[1, 3], [7, 1]])
    as_reference("OneHotEncoder", [x], cats_int64s=[1, 3, 5])
    words = np.array(["b", "x", "a"], object)
    (ours,) = outputs("OneHotEncoder", [words], ML, cats_strings=["a", "b"])
    assert ours.tolist() == [[0, 1], [0, 0], [1, 0]]
    (ours,) = outputs("OneHotEncoder", [np.float32([3, 1])], ML, cats_int64s=[1, 3], zeros=0)
    assert ours.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(gpuonnx.GpuOnnxError, match="OneHotEncoder"):
        outputs("OneHotEncoder", [x], ML, cats_int64s=[1, 3, 5], zeros=0)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("mode", ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"])
def test_tree_ensemble_regressor(aggregate: str, mode: str) -> None:
    """Two trees of depth 1 over values that meet the thresholds."""
    x = np.float32([[0.0, 1.0], [1.0, 2.0], [2.0, 0.0], [0.5, 0.5]])
    thresholds, leaves = [1.0, 0.5], [[10.0, 20.0], [1.0, 5.0]]
    compare = {"BRANCH_LEQ": np.less_equal, "BRANCH_LT": np.less, "BRANCH_GTE": np.greater_equal, "BRANCH_GT": np.greater, "BRANCH_EQ": np.equal,
               "BRANCH_NEQ": np.not_equal}[mode]
    found = np.stack([np.where(compare(x[:, t], thresholds[t]), *leaves[t]) for t in (0, 1)])
    expected = {"SUM": found.sum(0), "AVERAGE": found.mean(0), "MIN": found.min(0), "MAX": found.max(0)}[aggregate] + 0.25
    (ours,) = outputs("TreeEnsembleRegressor", [x], ML, 3, n_targets=1, aggregate_function=aggregate, base_values=[0.25],
                      nodes_treeids=[0, 0, 0, 1, 1, 1], nodes_nodeids=[0, 1, 2, 0, 1, 2], nodes_featureids=[0, 0, 0, 1, 0, 0],
                      nodes_modes=[mode, "LEAF", "LEAF"] * 2, nodes_values=[1.0, 0.0, 0.0, 0.5, 0.0, 0.0], nodes_truenodeids=[1, 0, 0] * 2,
                      nodes_falsenodeids=[2, 0, 0] * 2, target_treeids=[0, 0, 1, 1], target_nodeids=[1, 2, 1, 2], target_ids=[0, 0, 0, 0],
                      target_weights=[10.0, 20.0, 1.0, 5.0])
    np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-6)
