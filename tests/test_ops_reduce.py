"""Reductions."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from op_runner import Execution, cases_of, check_case, compare, lowered, node_model, procedure, run_node

RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", cases_of("reduce"), ids=lambda c: c.name)
def test_official(case: Any) -> None:
    check_case(case, free=False)
    check_case(case, free=True)


REFERENCE = {
    "ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod,
    "ReduceL1": lambda x, **k: np.abs(x).sum(**k), "ReduceL2": lambda x, **k: np.sqrt((x * x).sum(**k)),
    "ReduceSumSquare": lambda x, **k: (x * x).sum(**k), "ReduceLogSum": lambda x, **k: np.log(x.sum(**k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.exp(x).sum(**k)),
}


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize(("axes", "keepdims"), [((0,), 1), ((1, 2), 0), ((-1,), 0), (None, 1), (None, 0)])
def test_axes_as_attribute_and_as_input(name: str, axes: tuple[int, ...] | None, keepdims: int) -> None:
    x = np.abs(floats(2, 3, 4)) + 0.1
    expected = np.asarray(REFERENCE[name](x, axis=axes, keepdims=bool(keepdims)))
    old = {} if axes is None else {"axes": [a % 3 for a in axes]}
    compare(run_node(name, [x], 11, keepdims=keepdims, **old)[0], expected)
    new = [] if axes is None else [np.int64(axes)]
    compare(run_node(name, [x, *new], 18, keepdims=keepdims)[0], expected)


@pytest.mark.parametrize("name", REFERENCE)
def test_no_axes_may_mean_none(name: str) -> None:
    x = np.abs(floats(2, 3)) + 0.1
    ours = run_node(name, [x, np.int64([])], 18, noop_with_empty_axes=1)[0]
    compare(ours, REFERENCE[name](x[..., None], axis=-1))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sums_of_halves_are_wide(dtype: Any) -> None:
    x = np.full((1, 100_000), 3, dtype)
    assert float(run_node("ReduceMean", [x, np.int64([1])], 18)[0].item()) == 3
    assert abs(float(run_node("ReduceL2", [x, np.int64([1])], 18)[0].item()) - 3 * 100_000**0.5) < 8


def test_integers_and_bools() -> None:
    x = np.int32([[1, -2], [4, 7]])
    compare(run_node("ReduceMean", [x, np.int64([1])], 18)[0], np.int32([[0], [5]]))
    compare(run_node("ReduceL2", [x, np.int64([1])], 18, keepdims=0)[0], np.int32([2, 8]))
    b = np.array([[True, False], [False, False]])
    compare(run_node("ReduceMax", [b, np.int64([1])], 20, keepdims=0)[0], b.any(1))
    compare(run_node("ReduceMin", [b, np.int64([1])], 20, keepdims=0)[0], b.all(1))


def test_log_sum_exp_of_extremes() -> None:
    x = np.float32([[1000, 1000], [-np.inf, -np.inf], [np.inf, 0]])
    compare(run_node("ReduceLogSumExp", [x, np.int64([1])], 18, keepdims=0)[0], np.float32([1000 + np.log(2), -np.inf, np.inf]))


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
def test_the_first_or_last_extreme(name: str, last: int) -> None:
    x = np.float32([[1, 3, 3, 1], [2, 2, 2, 2]])
    want = (x == (x.max(1) if name == "ArgMax" else x.min(1))[:, None])
    expected = 3 - want[:, ::-1].argmax(1) if last else want.argmax(1)
    compare(run_node(name, [x], 13, axis=-1, keepdims=0, select_last_index=last)[0], expected)


def test_one_variant_serves_every_size() -> None:
    work = procedure(node_model("ReduceMean", [floats(2, 3)], 13, axes=[1]))
    variant = lowered(work, [floats(2, 3)])
    for shape in [(2, 3), (5, 1), (1, 9)]:
        x = floats(*shape)
        compare(Execution(variant.graph, [x]).run()[0], x.mean(1, keepdims=True))
