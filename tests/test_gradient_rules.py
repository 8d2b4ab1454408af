"""Every scalar function, every kernel and every fold has a derivative, or a reason why there is none."""
from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from gradient_runner import TRAINING, check, doubles, model, one
from onnx import helper

import gpuonnx
from gpuonnx.ir.build import Tensor, elementwise, tensor_prefix, tensor_scatter
from gpuonnx.ir.derivative import FLAT, RULES
from gpuonnx.ir.expr import Expr, cast
from gpuonnx.ir.scalar import FOLDS, SCALARS
from gpuonnx.ops import gradient, gradient_nodes, registry
from gpuonnx.ops.recurrent import GATES
from gpuonnx.ops.registry import op

pytestmark = pytest.mark.usefixtures("same_numbers")

OWN = "own.gradient"
WHOLE_NUMBERS = {"bit_and", "bit_or", "bit_xor", "bit_not", "shl", "shr", "popcount", "philox"}
ARGUMENTS = {"where": 0, **dict.fromkeys(("add", "sub", "mul", "div", "floordiv", "floormod", "truncmod", "pow", "max", "min", "fmax", "fmin"), 2)}
RANGES = {"acosh": (1.2, 3.0), "lgamma": (0.05, 6.0), "sign": (0.1, 1.0)}


@op("Scalar", domain=OWN)
def scalar(*xs: Tensor, function: str) -> Tensor:
    return elementwise(function, *xs)


@op("Prefix", domain=OWN)
def prefix(x: Tensor, *, fold: str, exclusive: int, reverse: int) -> Tensor:
    return tensor_prefix(x, 1, fold, bool(exclusive), bool(reverse))


@op("Written", domain=OWN)
def written(x: Tensor, places: Tensor, u: Tensor, *, combine: str) -> Tensor:
    def place(i: Expr) -> list[Expr]:
        return [cast(places.at(i), "ix")]
    return tensor_scatter(x, u.shape, place, lambda i: u.at(i) * u.at(i), combine or None)


def test_every_scalar_function_has_a_rule_or_a_reason() -> None:
    """Truth values and whole numbers have no slope; steps have slope 0 wherever they have one."""
    truth = {name for name, row in SCALARS.items() if row.dtype == "bool"}
    groups = [set(RULES) & set(SCALARS), FLAT, truth, WHOLE_NUMBERS]
    assert set(SCALARS) == set().union(*groups)
    assert sum(map(len, groups)) == len(SCALARS)
    assert set(RULES) - set(SCALARS) == {"guard", "cast", "round"}


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
@pytest.mark.parametrize("name", sorted((set(RULES) | FLAT) & set(SCALARS) - {"where"}))
def test_a_scalar_function(name: str, device: str) -> None:
    low, high = RANGES.get(name, (0.15, 0.85))
    xs = [doubles(7, low=low + 1, high=high + 1), doubles(7, low=0.4, high=0.45)] if ARGUMENTS.get(name, 1) == 2 else [doubles(9, low=low, high=high)]
    given = {f"x{k}": x for k, x in enumerate(xs)}
    check([helper.make_node("Scalar", list(given), ["y"], domain=OWN, function=name)], given, device=device)


def test_lgamma_left_of_zero_and_its_second_derivative() -> None:
    x = np.array([-0.4, -1.3, -2.7, 0.6, 2.0, 30.0])
    check([helper.make_node("Scalar", ["x"], ["y"], domain=OWN, function="lgamma")], {"x": x})
    nodes = [helper.make_node("Scalar", ["x"], ["l"], domain=OWN, function="lgamma"),
             helper.make_node("Gradient", ["x"], ["y"], domain=TRAINING, xs=["x"], y="l")]
    check(nodes, {"x": x})
    found = gpuonnx.run(model(nodes, {"x": np.ones(1)}, ["y"], {}), {"x": np.ones(1)})["y"]
    np.testing.assert_allclose(found, -0.57721566490153286, rtol=1e-13)


def kernels_called() -> set[str]:
    """The names in `call("...")` in the definitions of operators, and the recurrent cells."""
    found = set(GATES)
    for path in Path(gradient.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "call" and isinstance(node.args[0], ast.Constant):
                found.add(node.args[0].value)
    return found


def test_every_kernel_has_a_rule_or_a_reason() -> None:
    registry.load_all()
    registry.load("gpuonnx.importer.gradients")
    assert kernels_called() == set(gradient.KERNELS) | set(gradient.WITHOUT)
    assert not set(gradient.KERNELS) & set(gradient.WITHOUT)


def test_every_fold_has_a_rule_or_a_reason() -> None:
    assert set(FOLDS) - set(gradient_nodes.FOLDS) == {"any", "all", "argmax", "argmin"}
    assert set(gradient_nodes.PREFIXES) == {"add", "mul", "max", "min"}
    assert set(gradient_nodes.SCATTERS) == {"last", "add", "mul", "max", "min"}


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
@pytest.mark.parametrize("fold", ["add", "mul", "max", "min"])
def test_prefixes(fold: str, device: str) -> None:
    x = doubles(4, 6)
    if fold == "mul":
        x[0, 2] = x[1, 1] = x[1, 4] = x[2, 0] = x[3, 5] = 0
    for exclusive, backwards in ((0, 0), (0, 1), (1, 0), (1, 1)):
        nodes = [helper.make_node("Prefix", ["x"], ["p"], domain=OWN, fold=fold, exclusive=exclusive, reverse=backwards),
                 helper.make_node("Clip", ["p", "low", "high"], ["y"])]
        check(nodes, {"x": x}, {"low": np.array(-99.0), "high": np.array(99.0)}, device=device)


@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_cumulated_products(attributes: dict[str, int]) -> None:
    x = doubles(3, 5)
    x[0, 2] = x[1, 0] = x[1, 3] = 0
    one("CumProd", x, constants={1: np.array(1)}, opset=26, **attributes)
    one("CumProd", x, constants={1: np.array(0)}, opset=26, **attributes)


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
@pytest.mark.parametrize("combine", ["", "add", "mul", "max", "min"])
def test_scatters_to_the_same_places(combine: str, device: str) -> None:
    x, u, places = doubles(6), doubles(5), np.array([1, 4, 1, 2, 1])
    if combine == "mul":
        x[1] = u[3] = 0
    check([helper.make_node("Written", ["x", "i", "u"], ["y"], domain=OWN, combine=combine)], {"x": x, "i": places, "u": u}, device=device)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction: str) -> None:
    one("ScatterElements", doubles(4, 3), np.array([[1, 0, 2], [1, -1, 2]]), doubles(2, 3), axis=0, reduction=reduction)
    one("ScatterND", doubles(4, 2), np.array([[1], [3], [1]]), doubles(3, 2), reduction=reduction)


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
def test_determinants(device: str) -> None:
    for x in (doubles(1, 1), doubles(3, 3), doubles(2, 2, 4, 4), np.array([[1.0, 2, 3], [2, 4, 6], [0, 1, 5]]), np.zeros((2, 2))):
        one("Det", x, device=device)


def test_the_second_derivative_of_a_determinant() -> None:
    nodes = [helper.make_node("Det", ["x"], ["o"]), helper.make_node("Gradient", ["x"], ["y"], domain=TRAINING, xs=["x"], y="o")]
    check(nodes, {"x": doubles(3, 3)}, tolerance=1e-4)


def test_coupled_probabilities() -> None:
    """Against the exact solution, which the kernel stops short of."""
    @op("Coupled", domain=OWN)
    def coupled(r: Tensor, *, classes: int) -> Tensor:
        from gpuonnx.ir.build import Spec, call
        made: Tensor = call("coupling", r, out=Spec("f32", (r.shape[0], classes)))
        return made

    def solution(r: np.ndarray, classes: int) -> np.ndarray:
        wins, pair = np.zeros((classes, classes)), 0
        for i in range(classes):
            for j in range(i + 1, classes):
                wins[i, j], wins[j, i] = r[pair], 1 - r[pair]
                pair += 1
        q = np.diag((wins ** 2).sum(0)) - wins * wins.T
        p = np.linalg.solve(np.block([[q, np.ones((classes, 1))], [np.ones((1, classes)), np.zeros((1, 1))]]), np.eye(classes + 1)[-1])
        return p[:classes]
    for classes in (2, 3, 4):
        r, weights = doubles(2, classes * (classes - 1) // 2, low=0.2, high=0.8), doubles(classes)
        nodes = [helper.make_node("Coupled", ["r"], ["p"], domain=OWN, classes=classes), helper.make_node("Mul", ["p", "w"], ["y"]),
                 helper.make_node("Gradient", ["r"], ["d"], domain=TRAINING, xs=["r"], y="y")]
        given = {"r": r.astype(np.float32)}
        found = gpuonnx.run(model(nodes, given, ["d", "p"], {"w": weights.astype(np.float32)}), given)
        np.testing.assert_allclose(found["p"], [solution(row, classes) for row in r], atol=0.01)
        for n, k in np.ndindex(r.shape):
            ends = [solution(r[n] + sign * 1e-5 * np.eye(r.shape[1])[k], classes) @ weights for sign in (1, -1)]
            assert math.isclose(found["d"][n, k], (ends[0] - ends[1]) / 2e-5, rel_tol=1e-3, abs_tol=1e-4)


def test_a_forest_has_slope_zero() -> None:
    nodes = [helper.make_node("TreeEnsembleRegressor", ["x"], ["t"], domain="ai.onnx.ml", n_targets=1, nodes_falsenodeids=[2, 0, 0], nodes_featureids=[0, 0, 0],
                              nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_nodeids=[0, 1, 2], nodes_treeids=[0, 0, 0],
                              nodes_truenodeids=[1, 0, 0], nodes_values=[0.5, 0.0, 0.0], target_ids=[0, 0], target_nodeids=[1, 2],
                              target_treeids=[0, 0], target_weights=[1.0, 2.0]),
             helper.make_node("Mul", ["t", "x"], ["y"]), helper.make_node("Gradient", ["x"], ["d"], domain=TRAINING, xs=["x"], y="y")]
    inputs = {"x": np.array([[0.25], [0.75]], np.float32)}
    assert gpuonnx.run(model(nodes, inputs, ["d"], {}), inputs)["d"].tolist() == [[1], [2]]


def refusal(*nodes: onnx.NodeProto) -> str:
    last = helper.make_node("Gradient", ["x"], ["d"], name="G", domain=TRAINING, xs=["x"], y="y")
    inputs = {"x": doubles(2, 4)}
    with pytest.raises(gpuonnx.UnsupportedOp, match="Gradient G: y depends on 'x' through") as error:
        gpuonnx.run(model([*nodes, last], inputs, ["d"], {"k": np.array([2])}), inputs)
    return str(error.value)


def test_places_and_truth_values_have_no_derivative() -> None:
    to_double = helper.make_node("Cast", ["i"], ["y"], to=11)
    assert "TopK T (a result has the type i64)" in refusal(helper.make_node("TopK", ["x", "k"], ["v", "i"], name="T"), to_double)
    assert "ArgMax A (a result has the type i64)" in refusal(helper.make_node("ArgMax", ["x"], ["i"], name="A"), to_double)
    assert "Cast C (a result has the type i64)" in refusal(helper.make_node("Cast", ["x"], ["i"], name="C", to=7), to_double)
    assert "IsNaN N (a result has the type bool)" in refusal(helper.make_node("IsNaN", ["x"], ["i"], name="N"), to_double)
    assert "Unique U (it finds places)" in refusal(helper.make_node("Unique", ["x"], ["v", "i"], name="U"), to_double)


def test_a_choice_by_truth_values_is_no_obstacle() -> None:
    check([helper.make_node("Greater", ["x", "k"], ["c"]), helper.make_node("Where", ["c", "x", "k"], ["y"])], {"x": doubles(5)}, {"k": np.array(0.1)})


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
@pytest.mark.parametrize("name", ["Sqrt", "Log", "Reciprocal", "Acosh", "Asin", "Exp"])
def test_what_a_choice_leaves_out_has_no_part(name: str, device: str) -> None:
    """Where the other branch has no finite value, or no finite slope."""
    x = np.array([-800.0, -0.5, 0.4, 0.6]) if name != "Exp" else np.array([800.0, 1.5, -0.4, -0.6])
    wanted = helper.make_node("Less" if name == "Exp" else "Greater", ["x", "zero"], ["c"])
    if name == "Acosh":
        x = x + 1
    nodes = [wanted, helper.make_node(name, ["x"], ["f"]), helper.make_node("Mul", ["f", "x"], ["p"]), helper.make_node("Where", ["c", "p", "x"], ["y"])]
    check(nodes, {"x": x}, {"zero": np.array(1.0 if name == "Acosh" else 0.0)}, device=device)


def test_the_second_derivative_at_a_minimum() -> None:
    nodes = [helper.make_node("Sqrt", ["x"], ["s"]), helper.make_node("Sub", ["s", "one"], ["e"]), helper.make_node("Mul", ["e", "e"], ["o"]),
             helper.make_node("Gradient", ["x"], ["y"], domain=TRAINING, xs=["x"], y="o")]
    check(nodes, {"x": np.array([1.0, 4.0])}, {"one": np.array(1.0)})
