"""Nests that step, clamp, reflect or interleave along the lanes, against their meaning in NumPy."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codegen_cpu import at, check, random, value

from gpuonnx.codegen.nest import arrange, as_nest
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Space
from gpuonnx.ir.expr import apply, cast, const, dim, folded, guard, index, load
from gpuonnx.ir.types import compute
from gpuonnx.kernels.contract import Layout

I = index(1)


def arranged(node):
    return arrange(as_nest(node), *([Layout.dense(v.dtype, v.dims) for v in vs] for vs in (node.inputs, node.outputs)))


def form_of(node):
    return arranged(node)[0]


@pytest.mark.parametrize("dtype", ["f32", "f16", "f64", "u8", "i64", "bool"])
@pytest.mark.parametrize("step", [-1, 2, 3, 4, 5, -2])
def test_lanes_some_elements_apart(dtype, step):
    for size in (1, 3, 8, 17, 41):
        span = (size - 1) * abs(step) + 1
        first = 0 if step > 0 else span - 1
        x = random(dtype, (3, span))
        check(g.Map((value(dtype, *x.shape),), (value(dtype, 3, size),), expr=load(0, dtype, (index(0), I * step + first))), [x])


@pytest.mark.parametrize("dtype", ["f32", "f16", "u8", "f64"])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_values_side_by_side(dtype, count):
    """Channels last: what is far apart comes together."""
    for size in (1, 5, 16, 19, 67):
        x = random(dtype, (2, count, size))
        node = g.Map((value(dtype, *x.shape),), (value(dtype, 2, size, count),), expr=load(0, dtype, at(0, 2, 1)))
        check(node, [x])
        assert form_of(node).weave == (count if count < 5 and size > 1 else 0)


def clamped(k, n): return apply("max", apply("min", k, dim(n - 1)), 0)
def reflected(k, n): return apply("min", k % apply("max", dim((n - 1) * 2), 1), dim((n - 1) * 2) - k % apply("max", dim((n - 1) * 2), 1))
def wrapped(k, n): return k % dim(n)
def turned(k, n): return (k + dim(n)) % dim(n)


@pytest.mark.parametrize("how", [clamped, reflected, wrapped, turned])
@pytest.mark.parametrize("symbolic", [False, True])
@settings(max_examples=8, deadline=None)
@given(size=st.integers(1, 70), before=st.integers(0, 20), after=st.integers(0, 20))
def test_piecewise_indices(how, symbolic, size, before, after):
    space = Space()
    n = space.sym("n", 1) if symbolic else size
    x = random("f32", (2, size))
    node = g.Map((value("f32", 2, n),), (value("f32", 2, n + (before + after)),), expr=load(0, "f32", (index(0), how(I - before, n))))
    check(node, [x], {"n": size}, symbolic=symbolic)


@pytest.mark.parametrize("how", [clamped, reflected, wrapped, turned])
def test_an_interior_has_plain_addresses(how):
    node = g.Map((value("f32", 2, 50),), (value("f32", 2, 60),), expr=load(0, "f32", (index(0), how(I - 5, 50))))
    form = form_of(node)
    assert form.interior is not None and [a.strides[form.lane] for a in form.accesses if not a.terms] == [1]
    assert {(b.slope, arranged(node)[1][b.offset]) for b in form.interior.bounds} >= {(1, -5)}


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 40), kernel=st.integers(1, 4), step=st.integers(1, 3), apart=st.integers(1, 3), before=st.integers(0, 5), after=st.integers(0, 5),
       fold=st.sampled_from(["max", "sum", "prod", "argmax"]), dtype=st.sampled_from(["f32", "i32"]))
def test_windows(size, kernel, step, apart, before, after, fold, dtype):
    span = size + before + after - (kernel - 1) * apart - 1
    if span < 0:
        return
    out = span // step + 1
    x = random(dtype, (2, size, size))
    places = [index(1 + k) * step + index(3 + k) * apart - before for k in range(2 if fold != "argmax" else 1)]
    inside = const(True, "bool")
    for place in places:
        inside = apply("and", inside, apply("and", apply("less_equal", dim(0), place), apply("less", place, dim(size))))
    identity = {"max": -np.inf if dtype == "f32" else -2**31, "sum": 0, "prod": 1, "argmax": -np.inf if dtype == "f32" else -2**31}[fold]
    if fold == "argmax":
        element = load(0, dtype, (index(0), places[0], index(2)))
        ranges, over, shape = (2, out, size, kernel), (3,), (2, out, size)
    else:
        element = load(0, dtype, (index(0), *places))
        ranges, over, shape = (2, out, out, kernel, kernel), (3, 4), (2, out, out)
    kind = "i64" if fold == "argmax" else dtype
    check(g.Reduce((value(dtype, *x.shape),), (value(kind, *shape),), ranges=ranges, over=over, fold=fold,
                   expr=guard(inside, element, const(identity, dtype))), [x], tolerance=1e-5)


def test_windows_of_two_rows_side_by_side():
    """Places that are stored together share the loops of their folds, which no condition of one of them may shorten."""
    x = random("f32", (2, 9, 2))
    place = index(2) + index(3)
    inside = apply("and", apply("less_equal", dim(0), place), apply("less", place, dim(2)))
    node = g.Reduce((value("f32", 2, 9, 2),), (value("f32", 2, 9, 2),), ranges=(2, 9, 2, 2), over=(3,), fold="max",
                    expr=guard(inside, load(0, "f32", (index(0), I, place)), const(-np.inf, "f32")))
    assert form_of(node).weave == 2
    check(node, [x])


def test_what_no_lane_may_touch():
    """A guard that no lane passes keeps its load from happening, hoisted or not."""
    x, few = random("f32", (4, 40)), np.zeros((0,), np.float32)
    expr = guard(apply("less", I, dim(0)), load(1, "f32", (const(0, "ix"),)), load(0, "f32", at(0, 1)))
    check(g.Map((value("f32", 4, 40), value("f32", 0)), (value("f32", 4, 40),), expr=expr), [x, few])


def test_folds_whose_loops_are_short():
    """A condition on a folded axis alone shortens its loop, to nothing where it never holds."""
    x = random("f32", (6, 30))
    keep = apply("less_equal", index(2) + 3, index(0))
    expr = guard(keep, load(0, "f32", (index(2), I)), const(0, "f32"))
    node = g.Reduce((value("f32", 6, 30),), (value("f32", 6, 30),), ranges=(6, 30, 6), over=(2,), fold="sum", expr=expr)
    check(node, [x])
    assert form_of(node).clips
    total = g.Nest((value("f32", 6, 30),), (value("f32", 6, 30),), ranges=(6, 30, 6), over=frozenset({2}),
                   stages=((g.Fold("max", guard(keep, load(0, "f32", (index(2), I)), const(-np.inf, "f32"))),),
                           (g.Store(0, at(0, 1), folded(0, 0, "f32") + cast(index(0), "f32")),)))
    check(total, [x])


@pytest.mark.parametrize("op", ["less", "less_equal", "greater", "greater_equal"])
@pytest.mark.parametrize("step", [-3, -1, 1, 2])
def test_indices_compared(op, step):
    expr = apply("where", apply(op, I * step + index(0), dim(9) - I * 0), const(1, "f32"), load(0, "f32", at(0, 1)))
    x = random("f32", (5, 45))
    check(g.Map((value("f32", 5, 45),), (value("f32", 5, 45),), expr=expr), [x])


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16"])
def test_indices_and_reals(dtype):
    """To reals and back, negative ones and multiples among them."""
    x = random(dtype, (3, 50))
    there = cast(apply("floor", cast(I - 20, "f64") / 3.0), "ix") + 10
    expr = load(0, dtype, (index(0), there)) + cast((I - 25) // dim(7), dtype) + cast((I - 25) % dim(7), dtype)
    check(g.Map((value(dtype, 3, 50),), (value(dtype, 3, 50),), expr=expr), [x])


@pytest.mark.parametrize("dtype", ["f32", "f16", "u8"])
@settings(max_examples=6, deadline=None)
@given(size=st.integers(1, 40), by=st.integers(2, 5), offset=st.integers(-3, 3), tap=st.integers(-2, 2), symbolic=st.booleans())
def test_coordinates_divided(dtype, size, by, offset, tap, symbolic):
    """As resizing by a whole factor does: clamped neighbours of (i + a) // k, weighted by what (i + a) % k says."""
    n = Space().sym("n", 1) if symbolic else size
    first, rest = (I + offset) // dim(by), (I + offset) % dim(by)
    kind = compute(dtype)
    total = load(0, dtype, (index(0), clamped(first, n))) + load(0, dtype, (index(0), clamped(first + tap, n))) * cast(rest, kind)
    x = random(dtype, (2, size))
    node = g.Map((value(dtype, 2, n),), (value(dtype, 2, n * by),), expr=total)
    check(node, [x], {"n": size}, symbolic=symbolic, tolerance=2e-3 if dtype == "f16" else 2e-6)
    if size > 8 and by < 5 and symbolic:
        assert form_of(node).weave == by


def test_a_fold_beside_a_split_axis():
    expr = load(0, "f32", (index(2), apply("min", (I + 1) // dim(2), dim(19)))) * cast(I % dim(2), "f32")
    x = random("f32", (5, 20))
    check(g.Reduce((value("f32", 5, 20),), (value("f32", 3, 40),), ranges=(3, 40, 5), over=(2,), fold="sum", expr=expr), [x], tolerance=1e-5)
