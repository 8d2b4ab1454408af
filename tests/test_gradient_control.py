"""The derivatives of If, Loop, Scan and recurrent cells, against central differences."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from gradient_runner import TRAINING, check, doubles, model
from onnx import TensorProto, helper

import gpuonnx

pytestmark = pytest.mark.usefixtures("same_numbers")

DOUBLE, WHOLE, TRUTH = TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL


def value(name: str, kind: int = DOUBLE, rank: int | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None if rank is None else [None] * rank)


def turn(nodes: list[onnx.NodeProto], carried: dict[str, str], scans: list[str], rank: int | None = None, going: str = "c") -> onnx.GraphProto:
    """A Loop's body: iteration i, condition c; `carried` maps what goes in to what comes out."""
    inputs = [value("i", WHOLE, 0), value("c", TRUTH, 0), *(value(n, rank=rank) for n in carried)]
    return helper.make_graph(nodes, "turn", inputs, [value(going, TRUTH, 0), *(value(n) for n in (*carried.values(), *scans))])


def squared(names: list[str]) -> list[onnx.NodeProto]:
    """y = the sum of the squares of all of them, the k-th with weight k."""
    nodes = []
    for k, name in enumerate(names):
        nodes += [helper.make_node("ReduceSumSquare", [name], [f"square{k}"], keepdims=0), helper.make_node("Sum", [f"square{k}"] * (k + 1), [f"part{k}"])]
    return [*nodes, helper.make_node("Sum", [f"part{k}" for k in range(len(names))], ["y"])]


TANH_LAYER = [helper.make_node("MatMul", ["h", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["s"]), helper.make_node("Tanh", ["s"], ["h2"]),
              helper.make_node("ReduceSum", ["h2"], ["z"], keepdims=0)]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
def test_a_loop_with_scans_and_captures(count: int, device: str) -> None:
    nodes = [helper.make_node("Loop", ["n", "", "h0"], ["hn", "zs"], body=turn(TANH_LAYER, {"h": "h2"}, ["z"])), *squared(["hn", "zs"])]
    check(nodes, {"h0": doubles(2, 3), "w": doubles(3, 3), "b": doubles(3), "n": np.array(count)}, device=device)


def test_a_loop_that_stops_by_its_condition() -> None:
    inside = [helper.make_node("Mul", ["h", "x"], ["h2"]), helper.make_node("ReduceMax", ["h2"], ["top"], keepdims=0),
              helper.make_node("Less", ["top", "limit"], ["on"])]
    nodes = [helper.make_node("Loop", ["", "always", "h0"], ["hn"], body=turn(inside, {"h": "h2"}, [], going="on")), *squared(["hn"])]
    check(nodes, {"h0": doubles(3, low=1, high=1.2), "x": doubles(3, low=1.3, high=1.5)}, {"limit": np.array(9.0), "always": np.array(True)})


def test_a_loop_that_uses_its_iteration_number() -> None:
    inside = [helper.make_node("Gather", ["x", "i"], ["row"], axis=0), helper.make_node("Cast", ["i"], ["f"], to=DOUBLE),
              helper.make_node("Mul", ["row", "f"], ["p"]), helper.make_node("Mul", ["p", "h"], ["q"]), helper.make_node("Add", ["q", "row"], ["h2"])]
    nodes = [helper.make_node("Loop", ["n", "", "h0"], ["hn"], body=turn(inside, {"h": "h2"}, [])), *squared(["hn"])]
    check(nodes, {"h0": doubles(3), "x": doubles(4, 3), "n": np.array(4)})


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_loop_whose_carried_value_grows(count: int) -> None:
    inside = [helper.make_node("Concat", ["h", "x"], ["m"], axis=0), helper.make_node("Mul", ["m", "m"], ["h2"]),
              helper.make_node("ReduceSum", ["h"], ["z"], keepdims=0)]
    nodes = [helper.make_node("Loop", ["n", "", "h0"], ["hn", "zs"], body=turn(inside, {"h": "h2"}, ["z"], rank=1)), *squared(["hn", "zs"])]
    check(nodes, {"h0": doubles(2), "x": doubles(2, low=-1, high=1), "n": np.array(count)}, tolerance=1e-4)


def test_loops_and_choices_within_loops() -> None:
    branch = helper.make_node("If", ["up"], ["k"], then_branch=helper.make_graph([helper.make_node("Mul", ["g", "x"], ["t"])], "t", [], [value("t")]),
                              else_branch=helper.make_graph([helper.make_node("Sin", ["g"], ["e"])], "e", [], [value("e")]))
    inner = helper.make_graph([helper.make_node("ReduceSum", ["g"], ["total"], keepdims=0), helper.make_node("Less", ["total", "zero"], ["up"]),
                               branch, helper.make_node("Add", ["k", "h"], ["g2"])], "inner",
                              [value("j", WHOLE, 0), value("d", TRUTH, 0), value("g")], [value("d", TRUTH, 0), value("g2")])
    outer = turn([helper.make_node("Loop", ["m", "", "h"], ["g3"], body=inner), helper.make_node("Tanh", ["g3"], ["h2"])], {"h": "h2"}, [])
    nodes = [helper.make_node("Loop", ["n", "", "h0"], ["hn"], body=outer), *squared(["hn"])]
    check(nodes, {"h0": doubles(3), "x": doubles(3), "n": np.array(3), "m": np.array(2)}, {"zero": np.array(0.0)})


@pytest.mark.parametrize("directions", [[0, 0], [1, 0]])
def test_scan(directions: list[int]) -> None:
    inside = [helper.make_node("Mul", ["u", "v"], ["p"]), helper.make_node("MatMul", ["h", "w"], ["m"]), helper.make_node("Add", ["m", "p"], ["s"]),
              helper.make_node("Sigmoid", ["s"], ["h2"]), helper.make_node("Mul", ["h2", "u"], ["o"])]
    body = helper.make_graph(inside, "b", [value(n) for n in "huv"], [value("h2"), value("o")])
    nodes = [helper.make_node("Scan", ["h0", "us", "vs"], ["hn", "os"], body=body, num_scan_inputs=2, scan_input_axes=[0, 1],
                              scan_input_directions=directions, scan_output_axes=[1], scan_output_directions=[1]), *squared(["hn", "os"])]
    check(nodes, {"h0": doubles(2, 3), "us": doubles(4, 2, 3), "vs": doubles(2, 4, 3), "w": doubles(3, 3)})


@pytest.mark.parametrize("sign", [1, -1])
def test_a_choice_made_in_the_run(sign: int) -> None:
    """What only one branch reads has no part in the other's result; what it takes in twice is summed."""
    nodes = [helper.make_node("Identity", ["a"], ["same"]), helper.make_node("ReduceSum", ["a"], ["s"], keepdims=0),
             helper.make_node("Greater", ["s", "zero"], ["c"]),
             helper.make_node("If", ["c"], ["p", "q"],
                              then_branch=helper.make_graph([helper.make_node("Mul", ["a", "same"], ["m"]), helper.make_node("Mul", ["m", "b"], ["t"]),
                                                             helper.make_node("Exp", ["b"], ["t2"])], "t", [], [value("t"), value("t2")]),
                              else_branch=helper.make_graph([helper.make_node("Sin", ["a"], ["e"]), helper.make_node("Mul", ["d", "d"], ["e2"])],
                                                            "e", [], [value("e"), value("e2")])), *squared(["p", "q"])]
    check(nodes, {"a": sign * np.abs(doubles(3)), "b": doubles(3), "d": doubles(2)}, {"zero": np.array(0.0)})


def test_the_second_derivative_through_a_loop() -> None:
    layer = [helper.make_node("Mul", ["h", "w"], ["m"]), helper.make_node("Sin", ["m"], ["h2"])]
    nodes = [helper.make_node("Loop", ["n", "", "h0"], ["hn"], body=turn(layer, {"h": "h2"}, [])),
             helper.make_node("ReduceSum", ["hn"], ["o"], keepdims=0),
             helper.make_node("Gradient", ["h0", "w", "n"], ["dh", "dw"], domain=TRAINING, xs=["h0", "w"], zs=["n"], y="o"), *squared(["dh", "dw"])]
    check(nodes, {"h0": doubles(3), "w": doubles(3), "n": np.array(3)}, tolerance=1e-4)


def test_a_branch_that_makes_nothing() -> None:
    constant = helper.make_graph([], "t", [], [value("k")], [helper.make_tensor("k", DOUBLE, [2], [1.0, 2.0])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=constant, else_branch=helper.make_graph([helper.make_node("Exp", ["x"], ["e"])], "e", [],
                                                                                                     [value("e")]))
    for way in (True, False):
        check([choice], {"x": doubles(2), "c": np.array(way)})


def test_carried_values_that_change_places() -> None:
    inside = [helper.make_node("Add", ["g", "h"], ["s"]), helper.make_node("Mul", ["s", "x"], ["t"])]
    nodes = [helper.make_node("Loop", ["n", "", "g0", "h0"], ["gn", "hn", "hs"], body=turn(inside, {"g": "h", "h": "t"}, ["g"])),
             *squared(["gn", "hn", "hs"])]
    check(nodes, {"g0": doubles(3), "h0": doubles(3), "x": doubles(3), "n": np.array(3)}, {})


def test_by_an_initializer_that_a_body_captures() -> None:
    layer = [helper.make_node("Mul", ["h", "w"], ["m"]), helper.make_node("Sin", ["m"], ["h2"])]
    choice = helper.make_node("If", ["c"], ["y"], then_branch=helper.make_graph([helper.make_node("Mul", ["hn", "w"], ["t"])], "t", [], [value("t")]),
                              else_branch=helper.make_graph([helper.make_node("Add", ["hn", "w"], ["e"])], "e", [], [value("e")]))
    nodes = [helper.make_node("Loop", ["n", "", "h0"], ["hn"], body=turn(layer, {"h": "h2"}, [])), choice,
             helper.make_node("Gradient", ["w", "h0", "n", "c"], ["d"], domain=TRAINING, xs=["w"], zs=["h0", "n", "c"], y="y")]
    w, h0 = doubles(3), doubles(3)

    def result(w: np.ndarray, way: bool) -> np.ndarray:
        h = np.sin(np.sin(h0 * w) * w)
        return h * w if way else h + w
    for way in (True, False):
        inputs = {"h0": h0, "n": np.array(2), "c": np.array(way)}
        found = gpuonnx.run(model(nodes, inputs, ["d"], {"w": w}), inputs)["d"]
        np.testing.assert_allclose(found, (result(w + 1e-6, way) - result(w - 1e-6, way)) / 2e-6, rtol=1e-7, atol=1e-7)


def test_two_gradients_of_one_loop() -> None:
    layer = [helper.make_node("Mul", ["h", "w"], ["m"]), helper.make_node("Sin", ["m"], ["h2"])]
    nodes = [helper.make_node("Loop", ["n", "", "h0"], ["y"], body=turn(layer, {"h": "h2"}, [])),
             helper.make_node("Gradient", ["h0", "w", "n"], ["dh"], domain=TRAINING, xs=["h0"], zs=["w", "n"], y="y"),
             helper.make_node("Gradient", ["h0", "w", "n"], ["eh", "ew"], domain=TRAINING, xs=["h0", "w"], zs=["n"], y="y")]
    inputs = {"h0": doubles(3), "w": doubles(3), "n": np.array(3)}
    found = gpuonnx.run(model(nodes, inputs, ["dh", "eh", "ew", "y"], {}), inputs)
    np.testing.assert_allclose(found["dh"], found["eh"])
    h, slope = inputs["h0"], np.ones(3)
    for _ in range(3):
        slope, h = slope * inputs["w"] * np.cos(h * inputs["w"]), np.sin(h * inputs["w"])
    np.testing.assert_allclose(found["dh"], slope)
    np.testing.assert_allclose(found["y"], h)


def test_a_loop_that_carries_a_sequence_is_refused_by_name() -> None:
    body = helper.make_graph([helper.make_node("Mul", ["h", "x"], ["h2"]), helper.make_node("SequenceInsert", ["s", "h"], ["s2"])], "b",
                             [value("i", WHOLE, 0), value("c", TRUTH, 0), value("h"), helper.make_tensor_sequence_value_info("s", DOUBLE, None)],
                             [value("c", TRUTH, 0), value("h2"), helper.make_tensor_sequence_value_info("s2", DOUBLE, None)])
    nodes = [helper.make_node("SequenceEmpty", [], ["s0"], dtype=DOUBLE), helper.make_node("Loop", ["n", "", "x", "s0"], ["y", "list"], name="L", body=body),
             helper.make_node("Gradient", ["x", "n"], ["d"], name="G", domain=TRAINING, xs=["x"], zs=["n"], y="y")]
    inputs = {"x": doubles(2), "n": np.array(3)}
    with pytest.raises(gpuonnx.UnsupportedOp, match=r"Gradient G cannot go through Loop L: .*seq\(f64\)"):
        gpuonnx.run(model(nodes, inputs, ["d"], {}), inputs)


def cell(kind: str, direction: str = "forward", lens: list[int] | None = None, bias: bool = True, start: bool = True, peepholes: bool = False,
         device: str = "cpu", sizes: tuple[int, int, int, int] = (3, 2, 2, 3), **attributes: Any) -> None:
    """Every float input of an RNN, GRU or LSTM of sizes (time, batch, input, hidden), through all outputs."""
    length, batch, width, hidden = sizes
    both, rows = 2 if direction == "bidirectional" else 1, {"RNN": 1, "GRU": 3, "LSTM": 4}[kind] * hidden
    first = (batch, length, width) if attributes.get("layout") else (length, batch, width)
    state = (batch, both, hidden) if attributes.get("layout") else (both, batch, hidden)
    given: dict[str, np.ndarray | None] = {
        "x": doubles(*first), "w": doubles(both, rows, width), "r": doubles(both, rows, hidden),
        "b": doubles(both, 2 * rows) if bias else None, "lens": None if lens is None else np.array(lens, np.int32),
        "h0": doubles(*state) if start else None}
    if kind == "LSTM":
        given |= {"c0": doubles(*state) if start else None, "p": doubles(both, 3 * hidden) if peepholes else None}
    outputs = ["all", "last", "cell"][:3 if kind == "LSTM" else 2]
    nodes = [helper.make_node(kind, [n if t is not None else "" for n, t in given.items()], outputs, direction=direction, hidden_size=hidden,
                              **attributes), *squared(outputs)]
    check(nodes, {n: t for n, t in given.items() if t is not None}, device=device)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lens", [None, [3, 1]])
def test_cells(kind: str, direction: str, lens: list[int] | None) -> None:
    cell(kind, direction, lens)


def test_more_of_cells() -> None:
    cell("LSTM", peepholes=True, bias=False, start=False)
    cell("LSTM", "bidirectional", peepholes=True, clip=0.7, input_forget=1)
    cell("LSTM", "bidirectional", layout=1)
    cell("GRU", linear_before_reset=1)
    cell("GRU", "reverse", bias=False, start=False, linear_before_reset=1, layout=1)
    cell("RNN", sizes=(1, 1, 1, 1))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_cells_on_the_emulated_gpu(kind: str) -> None:
    cell(kind, "reverse", [2, 1], device="emulated-cuda", sizes=(2, 2, 1, 2))


ACTIVATIONS = ["Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_cells(name: str) -> None:
    cell("RNN", activations=[name], activation_alpha=[0.5], activation_beta=[0.7], sizes=(2, 1, 1, 3))


def test_cells_in_float32() -> None:
    inputs = {"x": doubles(5, 2, 3).astype(np.float32), "w": doubles(1, 16, 3).astype(np.float32), "r": doubles(1, 16, 4).astype(np.float32)}
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["all"], hidden_size=4), helper.make_node("ReduceSum", ["all"], ["y"], keepdims=0),
             helper.make_node("Gradient", ["x", "w", "r"], ["dx", "dw", "dr"], domain=TRAINING, xs=["x", "w", "r"], y="y")]
    narrow = gpuonnx.run(model(nodes, inputs, ["dx", "dw", "dr"], {}), inputs)
    wide = {n: t.astype(np.float64) for n, t in inputs.items()}
    exact = gpuonnx.run(model(nodes, wide, ["dx", "dw", "dr"], {}), wide)
    for name, t in narrow.items():
        assert t.dtype == np.float32
        np.testing.assert_allclose(t, exact[name], rtol=1e-4, atol=1e-5)


def test_a_quantized_cell_is_refused_by_name() -> None:
    codes = {n: np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8) for n, shape in (("w", (1, 2, 8)), ("r", (1, 2, 8)))}
    constants = {**codes, "ws": np.array([0.1], np.float32), "wz": np.array([3], np.uint8), "rs": np.array([0.1], np.float32), "rz": np.array([3], np.uint8)}
    nodes = [helper.make_node("DynamicQuantizeLSTM", ["x", "w", "r", "", "", "h", "c", "", "ws", "wz", "rs", "rz"], ["y"], name="Q",
                              domain="com.microsoft", hidden_size=2),
             helper.make_node("Gradient", ["x", "h", "c"], ["d"], name="G", domain=TRAINING, xs=["x"], zs=["h", "c"], y="y")]
    inputs = {"x": doubles(2, 1, 2).astype(np.float32), "h": np.zeros((1, 1, 2), np.float32), "c": np.zeros((1, 1, 2), np.float32)}
    with pytest.raises(gpuonnx.UnsupportedOp, match="Gradient G cannot go through DynamicQuantizeLSTM Q: its state goes through 8 bits"):
        gpuonnx.run(model(nodes, inputs, ["d"], constants), inputs)


def test_sequences_that_only_the_run_knows() -> None:
    """Pieces of an axis without a declared size; places that are inputs."""
    nodes = [helper.make_node("SplitToSequence", ["x"], ["rows"], axis=0, keepdims=0), helper.make_node("SequenceAt", ["rows", "p"], ["a"]),
             helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("SequenceInsert", ["rows", "b", "q"], ["more"]),
             helper.make_node("SequenceErase", ["more", "p"], ["fewer"]), helper.make_node("SequenceInsert", ["fewer", "z"], ["all"]),
             helper.make_node("ConcatFromSequence", ["all"], ["stacked"], axis=1, new_axis=1), helper.make_node("Mul", ["stacked", "stacked"], ["y"])]
    for p, q in ((0, 2), (-1, -2), (1, -1)):
        check(nodes, {"x": doubles(4, 3), "z": doubles(3), "p": np.array(p), "q": np.array(q)})


def test_pieces_of_given_sizes_and_elements_of_several_shapes() -> None:
    nodes = [helper.make_node("SplitToSequence", ["x", "parts"], ["pieces"], axis=1), helper.make_node("SequenceAt", ["pieces", "p"], ["a"]),
             helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("SequenceErase", ["pieces"], ["fewer"]),
             helper.make_node("ConcatFromSequence", ["fewer"], ["joined"], axis=1), helper.make_node("Mul", ["joined", "joined"], ["c"]),
             helper.make_node("ReduceSum", ["b"], ["d"], keepdims=0), helper.make_node("ReduceSum", ["c"], ["e"], keepdims=0),
             helper.make_node("Add", ["d", "e"], ["y"])]
    check(nodes, {"x": doubles(2, 6), "parts": np.array([2, 1, 3]), "p": np.array(1)})
    nodes = [helper.make_node("SequenceConstruct", ["x", "z"], ["s"]), helper.make_node("SequenceAt", ["s", "p"], ["a"]), helper.make_node("Mul", ["a", "a"], ["y"])]
    check(nodes, {"x": doubles(2, 3), "z": doubles(1, 4), "p": np.array(-1)})
