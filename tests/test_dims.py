"""Symbolic sizes: every normal form has the value that plain arithmetic gives, bounds hold, equal is identical."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuonnx.ir import dims as d
from gpuonnx.ir.sizes import evaluate

Pair = tuple[Any, Callable[[dict[str, int]], int]]
NAMES = ("n", "m", "k")


def both(op: str, a: Pair, b: Pair) -> Pair:
    """An operation on Dims beside the same one on numbers."""
    (x, f), (y, g) = a, b
    match op:
        case "+": return x + y, lambda e: f(e) + g(e)
        case "-": return x - y, lambda e: f(e) - g(e)
        case "*": return x * y, lambda e: f(e) * g(e)
        case "//": return d.floordiv(x, 3), lambda e: f(e) // 3
        case "%": return d.mod(x, 4), lambda e: f(e) % 4
        case "min": return d.dmin(x, y), lambda e: min(f(e), g(e))
        case "max": return d.dmax(x, y), lambda e: max(f(e), g(e))
        case "eq": return d.eq(x, y), lambda e: int(f(e) == g(e))
        case "lt": return d.lt(x, y), lambda e: int(f(e) < g(e))
    return d.select(d.lt(x, y), x, y), lambda e: min(f(e), g(e))


OPS = st.sampled_from(["+", "-", "*", "//", "%", "min", "max", "eq", "lt", "select"])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Pair, dict[str, int]]:
    space = d.Space()
    leaves: list[Pair] = [(space.sym(name), lambda e, name=name: e[name]) for name in NAMES]
    leaves += [(v, lambda e, v=v: v) for v in (-2, 0, 1, 2, 5)]
    pool = list(leaves)
    for _ in range(draw(st.integers(1, 6))):
        pool.append(both(draw(OPS), draw(st.sampled_from(pool)), draw(st.sampled_from(pool))))
    return pool[-1], {name: draw(st.integers(0, 9)) for name in NAMES}


@given(pairs())
@settings(max_examples=300, deadline=None)
def test_values_and_bounds(case: tuple[Pair, dict[str, int]]) -> None:
    (dim, f), binding = case
    want = f(binding)
    assert evaluate([dim], binding)[0] == want
    low, high = d.bounds(dim)
    assert low <= want <= high


def test_equal_polynomials_are_one_object() -> None:
    space = d.Space()
    n, m = space.sym("n"), space.sym("m")
    assert (n + m) * (n + m) is n * n + m * n * 2 + m * m
    assert d.floordiv(n * 4 + 8, 4) is n + 2
    assert d.floordiv(d.floordiv(n, 2) + 1, 2) is d.floordiv(n + 2, 4)
    assert d.divide_exactly(n * m * 6, m * 2) is n * 3


def test_one_symbol_of_two_spaces_is_two() -> None:
    assert d.Space().sym("n") is not d.Space().sym("n")


def test_broadcast_sizes() -> None:
    space = d.Space()
    n = space.sym("n")
    assert d.bcast(n, 1) is n and d.bcast(n, n) is n and d.bcast(n, 7) == 7
    assert evaluate([d.bcast(n, space.sym("m"))], {"n": 1, "m": 5})[0] == 5


def test_reals_round_as_float32() -> None:
    space = d.Space()
    scale = space.real("s")
    size = d.rounded("floor", d.real_op("mul", d.real(space.sym("n")), scale))
    assert evaluate([size], {"n": 10, "s": 0.7})[0] == 7
    assert d.rounded("floor", d.real_op("mul", d.real(space.sym("n")), 2.0)) is space.sym("n") * 2


def test_the_truth_of_a_size_is_not_guessed() -> None:
    with pytest.raises(TypeError, match="depends on its binding"):
        bool(d.Space().sym("n"))
