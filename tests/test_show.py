"""The text of sizes: Python that gives the size, one text for one size, names that are no words in quotes."""
from __future__ import annotations

import numpy as np
import pytest

from gpuonnx.ir import dims as d
from gpuonnx.ir.show import answer, shape, size
from gpuonnx.ir.sizes import evaluate

BINDING = ({"H": 5, "W": 3}, {"H": 2, "W": 8}, {"H": 1, "W": 1})


def random_size(random: np.random.Generator, space: d.Space, depth: int) -> d.Dim:
    if depth == 0:
        return [space.sym("H", 1), space.sym("W", 1), int(random.integers(-3, 4))][int(random.integers(3))]
    a, b = (random_size(random, space, depth - 1) for _ in range(2))
    c = int(random.integers(2, 5))
    made: list[d.Dim] = [a + b, a - b, a * b, d.floordiv(a, c), d.mod(a, c), d.dmin(a, b), d.dmax(a, b), d.lt(a, b), d.eq(a, b), a * -c]
    return made[int(random.integers(len(made)))]


@pytest.mark.parametrize("seed", range(40))
def test_the_text_is_python_for_the_size(seed: int) -> None:
    random, space = np.random.default_rng(seed), d.Space()
    sizes = [random_size(random, space, depth) for depth in (1, 2, 2, 3, 3, 4)]
    for binding in BINDING:
        for one in sizes:
            assert eval(size(one), {**binding}) == evaluate([one], binding)[0], size(one)
    assert len({size(s) for s in sizes}) == len(set(sizes))


def test_what_people_write() -> None:
    space = d.Space()
    h, w = space.sym("H", 1), space.sym("W", 1)
    half = d.floordiv(h + 1, 2)
    assert shape([h, 2 * w, h - 1, half, half * 3, h - w, -1 * h]) == "[H, 2*W, H - 1, (H + 1)//2, 3*((H + 1)//2), H - W, -H]"
    assert shape([d.dmin(w, 7), d.floordiv(half, w), d.mod(h, 4) + 1]) == "[min(W, 7), ((H + 1)//2)//W, H - 4*(H//4) + 1]"
    assert shape([]) == "[]"


def test_a_name_that_is_no_word_stands_in_quotes() -> None:
    space = d.Space()
    assert size(space.sym("past + 1")) == "'past + 1'" and size(space.sym("past") + 1) == "past + 1"
    assert size(space.sym("7")) == "'7'" and size(space.sym("loop.0.0[1]")) == "loop.0.0[1]"


def test_answers() -> None:
    space = d.Space()
    m, n = space.sym("M"), space.sym("N")
    assert answer(d.eq(m, 1), 1) == "M == 1 is true" and answer(d.lt(m, n), 0) == "M < N is false"
    assert answer(m, 3) == "M = 3" and answer(m * d.eq(n, 1), 0) == "M*(N == 1) = 0"
