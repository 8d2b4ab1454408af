"""Product, softmax, product as one kernel: against float64, whatever stands between the products and however the operands lie."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpuonnx

RNG = np.random.default_rng(0)


def softmax(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True))


def quantised(p: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(p * 255), 0, 255) / 255


BETWEEN: dict[str, tuple[list[tuple[str, list[str], list[str], dict[str, Any]]], Any]] = {
    "plain": ([("Softmax", ["s"], ["p"], {})], lambda s, m: softmax(s)),
    "scaled": ([("Mul", ["s", "scale"], ["t"], {}), ("Softmax", ["t"], ["p"], {})], lambda s, m: softmax(s * 0.125)),
    "masked": ([("Mul", ["s", "scale"], ["t"], {}), ("Add", ["t", "m"], ["u"], {}), ("Softmax", ["u"], ["p"], {})],
               lambda s, m: softmax(s * 0.125 + m)),
    "guarded": ([("Add", ["s", "m"], ["u"], {}), ("Softmax", ["u"], ["w"], {}), ("IsNaN", ["w"], ["n"], {}), ("Where", ["n", "zero", "w"], ["p"], {})],
                lambda s, m: np.nan_to_num(softmax(s + m))),
    "capped": ([("Mul", ["s", "scale"], ["t"], {}), ("Tanh", ["t"], ["u"], {}), ("Softmax", ["u"], ["p"], {})], lambda s, m: softmax(np.tanh(s * 0.125))),
    "quantised": ([("Softmax", ["s"], ["w"], {}), ("QuantizeLinear", ["w", "step", "point"], ["r"], {}),
                   ("DequantizeLinear", ["r", "step", "point"], ["p"], {})], lambda s, m: quantised(softmax(s))),
    "no softmax": ([("ReduceSum", ["s", "axis"], ["t"], {}), ("Div", ["s", "t"], ["p"], {})], lambda s, m: s / s.sum(-1, keepdims=True)),
}


def model(between: str, dtype: type, lead: list[Any], sizes: list[Any], swapped: bool, named: bool) -> bytes:
    """y = between(q @ k) @ v; `swapped`: k comes as [..., T, D]."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    high, wide, depth, out = sizes
    first = ["S", "T", depth, out] if named else sizes
    rank = len(lead)

    def info(name: str, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)
    nodes = [helper.make_node("Transpose", ["k"], ["kt"], perm=[*range(rank), rank + 1, rank])] if swapped else []
    nodes.append(helper.make_node("MatMul", ["q", "kt" if swapped else "k"], ["s"]))
    steps, _ = BETWEEN[between]
    nodes += [helper.make_node(op, ins, outs, **attrs) for op, ins, outs, attrs in steps]
    nodes.append(helper.make_node("MatMul", ["p", "v"], ["y"]))
    inputs = [info("q", *lead, first[0], depth), info("k", *lead, *((first[1], depth) if swapped else (depth, first[1]))),
              info("v", *lead, first[1], out)]
    if any("m" in ins for _, ins, _, _ in steps):
        inputs.append(info("m", first[0], first[1]))
    known = {"scale": dtype(0.125), "zero": dtype(0), "step": dtype(1 / 255), "point": np.uint8(0), "axis": np.array([-1])}
    used = {i for n in nodes for i in n.input}
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", kind, None)],
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in known.items() if k in used])
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10).SerializeToString()
    return made


def feeds(between: str, dtype: type, lead: list[int], sizes: list[int], swapped: bool) -> dict[str, np.ndarray]:
    high, wide, depth, out = sizes
    made = {"q": RNG.standard_normal((*lead, high, depth)), "k": RNG.standard_normal((*lead, depth, wide)), "v": RNG.standard_normal((*lead, wide, out))}
    if between == "no softmax":
        made["q"], made["k"] = abs(made["q"]) + 0.1, abs(made["k"]) + 0.1
    if between in ("masked", "guarded"):
        made["m"] = np.where(RNG.random((high, wide)) < 0.3, -np.inf, RNG.standard_normal((high, wide)))
        made["m"][:, :1] = 0
        if between == "guarded":
            made["m"][:1] = -np.inf
    if swapped:
        made["k"] = made["k"].swapaxes(-1, -2)
    return {k: np.ascontiguousarray(v, dtype) for k, v in made.items()}


def expected(between: str, feed: dict[str, np.ndarray], swapped: bool) -> np.ndarray:
    wide = {k: v.astype(np.float64) for k, v in feed.items()}
    with np.errstate(invalid="ignore"):
        scores = wide["q"] @ (wide["k"].swapaxes(-1, -2) if swapped else wide["k"])
        return np.asarray(BETWEEN[between][1](scores, wide.get("m")) @ wide["v"])


def check(between: str, sizes: list[int], lead: list[int], dtype: type = np.float32, swapped: bool = True, named: bool = True) -> None:
    session = gpuonnx.load(model(between, dtype, list(lead), sizes, swapped, named), device="cpu", threads=2)
    feed = feeds(between, dtype, lead, sizes, swapped)
    got, wanted = session.run(feed)["y"], expected(between, feed, swapped)
    assert "attention" in session.explain("kernels")
    tolerance = 2 / 255 if between == "quantised" else 2e-5 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("sizes", [[1, 33, 16, 24], [3, 8, 5, 16], [7, 40, 24, 9], [50, 17, 32, 32]], ids=str)
def test_what_stands_between_the_products(between: str, sizes: list[int]) -> None:
    check(between, sizes, [2, 3])


@pytest.mark.parametrize("lead", [[], [3], [2, 1, 3]], ids=str)
def test_any_rank(lead: list[int]) -> None:
    check("masked", [9, 21, 16, 16], lead)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("high", [1, 4, 5, 70])
def test_operands_as_they_lie_and_packed(dtype: type, swapped: bool, high: int) -> None:
    check("scaled", [high, 37, 16, 16], [2], dtype, swapped)
    check("scaled", [high, 37, 10, 11], [2], dtype, swapped, named=False)


def test_scores_that_a_stack_would_not_hold() -> None:
    check("plain", [7, 30000, 4, 8], [1])


@pytest.mark.parametrize("sizes", [[0, 5, 8, 8], [3, 1, 8, 8], [4, 6, 1, 1]], ids=str)
def test_small_sizes(sizes: list[int]) -> None:
    check("plain", sizes, [2])


def test_new_sizes_compile_nothing() -> None:
    session = gpuonnx.load(model("masked", np.float32, [2], [0, 0, 16, 16], True, True), device="cpu")
    for number, (high, wide) in enumerate([(6, 9), (1, 30), (4, 100), (200, 3)]):
        feed = feeds("masked", np.float32, [2], [high, wide, 16, 16], True)
        np.testing.assert_allclose(session.run(feed)["y"], expected("masked", feed, True), rtol=2e-5, atol=2e-5)
        if number == 0:
            compiled = session.stats.compiled
    assert session.stats.compiled == compiled and session.stats.variants == 1


def test_the_pass_can_be_switched_off() -> None:
    made = model("masked", np.float32, [2], [9, 9, 16, 16], True, False)
    feed = feeds("masked", np.float32, [2], [9, 9, 16, 16], True)
    with_it, without = gpuonnx.load(made, device="cpu"), gpuonnx.load(made, device="cpu", passes={"attention": False})
    np.testing.assert_allclose(with_it.run(feed)["y"], without.run(feed)["y"], rtol=1e-5, atol=1e-5)
    assert "attention" not in without.explain("kernels")


def test_the_attention_operator_is_one_kernel_with_shared_heads() -> None:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", h, t, 16]) for n, h, t in (("q", 6, "S"), ("k", 2, "T"), ("v", 2, "T"))]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    session = gpuonnx.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString(), device="cpu")
    feed = {n: RNG.standard_normal((2, h, 11, 16)).astype(np.float32) for n, h in (("q", 6), ("k", 2), ("v", 2))}
    wide = {n: np.repeat(v.astype(np.float64), 6 // v.shape[1], 1) for n, v in feed.items()}
    scores = np.where(np.tril(np.ones((11, 11), bool)), wide["q"] @ wide["k"].swapaxes(-1, -2) / 4, -np.inf)
    np.testing.assert_allclose(session.run(feed)["y"], softmax(scores) @ wide["v"], rtol=2e-5, atol=2e-5)
    assert "attention" in session.explain("kernels")
