"""The CPU's nests against their meaning in NumPy."""
from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import Bound

from gpuonnx.codegen import cpu
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Space
from gpuonnx.ir.evaluate import cast as to_type
from gpuonnx.ir.evaluate import evaluate
from gpuonnx.ir.expr import apply, cast, const, dim, folded, guard, index, load
from gpuonnx.ir.types import TYPES, compute, kind, numpy_dtype, size
from gpuonnx.kernels.contract import Layout

RNG = np.random.default_rng(5)
NUMBERS = [t for t in TYPES if TYPES[t].kind in "fiub"]


def random(dtype, shape):
    if kind(dtype) == "b":
        return RNG.integers(0, 2, shape).astype(bool)
    if kind(dtype) == "f":
        return to_type(RNG.uniform(0.1 if dtype == "f8e8m0" else -2, 2, shape).astype(np.float64), dtype)
    low = 0 if kind(dtype) == "u" else -2
    return RNG.integers(low, 2, shape).astype(numpy_dtype(dtype))


def layout_of(value, array):
    item = size(value.dtype)
    return Layout(value.dtype, value.dims, tuple(s // item for s in array.strides))


def run(node, arrays, binding=None, symbolic=False, reverse=False):
    """The outputs of `node`; symbolic: dense layouts from the values' own Dims. Returns (outputs, ctx)."""
    binding = binding or {}
    assert cpu.supports(node) is None
    from gpuonnx.ir.sizes import evaluate as sizes
    outs = [np.full(tuple(map(int, sizes(v.dims, binding))), 0 if kind(v.dtype) == "b" else 3).astype(numpy_dtype(v.dtype)) for v in node.outputs]
    if isinstance(node, g.Scatter):
        outs = [np.array(arrays[0])]
        arrays = [outs[0], *arrays[1:]]
    if symbolic:
        layouts = [Layout.dense(v.dtype, v.dims) for v in (*node.inputs, *node.outputs)]
    else:
        layouts = [layout_of(v, a) for v, a in zip((*node.inputs, *node.outputs), (*arrays, *outs), strict=True)]
    build = cpu.build(node, tuple(layouts[:len(arrays)]), tuple(layouts[len(arrays):]))
    bound = Bound(build, arrays, outs, binding_of=binding)
    bound.run(reverse)
    return outs, bound.ctx


def check(node, arrays, binding=None, tolerance=2e-6, **how):
    wanted = evaluate(node, arrays, binding or {})
    found, ctx = run(node, [np.array(a) if isinstance(node, g.Scatter) else a for a in arrays], binding, **how)
    assert not ctx.any()
    for f, w, v in zip(found, wanted, node.outputs, strict=True):
        if kind(v.dtype) == "f":
            f, w = np.asarray(f, np.float64), np.asarray(w, np.float64)
            np.testing.assert_allclose(f, w, rtol={"f64": 1e-14}.get(v.dtype, tolerance), atol=tolerance)
        else:
            np.testing.assert_array_equal(f, w)


def value(dtype, *shape):
    return g.Value(dtype, shape)


def at(*axes):
    return tuple(index(a) if isinstance(a, int) else a for a in axes)


@pytest.mark.parametrize("shapes", [((3, 5), (3, 5)), ((7, 33), (33,)), ((2, 3, 40), (3, 1)), ((1, 70), (4, 1)), ((), ()), ((0, 4), (4,)), ((130,), (1,)), ((4, 0), (4, 1))])
def test_broadcast(shapes):
    out = np.broadcast_shapes(*shapes)
    arrays = [random("f32", s) for s in shapes]
    loads = [load(k, "f32", tuple(const(0, "ix") if n == 1 else index(a + len(out) - len(s)) for a, n in enumerate(s))) for k, s in enumerate(shapes)]
    check(g.Map(tuple(value("f32", *s) for s in shapes), (value("f32", *out),), expr=loads[0] * loads[1] + 1), arrays)


def test_symbolic_sizes_share_a_kernel():
    space = Space()
    n, c = space.sym("n"), space.sym("c")
    node = g.Map((value("f32", n, c, 4), value("f32", c, 1)), (value("f32", n, c, 4),), expr=load(0, "f32", at(0, 1, 2)) + load(1, "f32", (index(1), const(0, "ix"))))
    for sizes in ((1, 1), (3, 17), (0, 4)):
        binding = {"n": sizes[0], "c": sizes[1]}
        check(node, [random("f32", (*sizes, 4)), random("f32", (sizes[1], 1))], binding, symbolic=True)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_type_is_read_and_written(dtype):
    x = random(dtype, (5, 37))
    c = compute(dtype)
    check(g.Map((value(dtype, 5, 37),), (value(dtype, 37, 5),), expr=load(0, dtype, at(1, 0))), [x])
    if kind(dtype) != "b":
        check(g.Map((value(dtype, 5, 37),), (value("f32", 5, 37),), expr=cast(load(0, dtype, at(0, 1)), "f32") + const(1, "f32")), [x])
        check(g.Map((value("f32", 5, 37),), (value(dtype, 5, 37),), expr=cast(load(0, "f32", at(0, 1)), c)), [abs(random("f32", (5, 37)))])


@pytest.mark.parametrize("fold", ["sum", "prod", "max", "min", "argmax", "argmin", "any", "all"])
@pytest.mark.parametrize("over", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_folds(fold, over):
    if fold.startswith("arg") and len(over) > 1:
        over = over[:1]
    for shape in ((3, 5, 41), (2, 1, 3), (65, 2, 100)):
        for dtype in ("bool",) if fold in ("any", "all") else ("f32", "i32"):
            x = random(dtype, shape)
            if fold == "prod" and dtype == "f32":
                x = np.exp(x * 0.01).astype(np.float32)
            kept = [shape[a] for a in range(3) if a not in over]
            out = "i64" if fold.startswith("arg") else dtype
            check(g.Reduce((value(dtype, *shape),), (value(out, *kept),), ranges=shape, over=over, fold=fold, expr=load(0, dtype, at(0, 1, 2))), [x], tolerance=2e-5)


def test_the_first_extreme_and_nan():
    x = np.array([[1, 3, 3, 2] * 20, [np.nan] * 80, [1] * 41 + [np.nan, 5] * 19 + [7]], np.float32)
    for over, shape in (((1,), (3,)), ((0,), (80,))):
        for fold in ("argmax", "argmin"):
            check(g.Reduce((value("f32", 3, 80),), (value("i64", *shape),), ranges=(3, 80), over=over, fold=fold, expr=load(0, "f32", at(0, 1))), [x])


def test_softmax_rows_and_columns():
    for axis, shape in ((1, (9, 70)), (0, (70, 9)), (1, (3, 1)), (1, (40, 8))):
        x = load(0, "f32", at(0, 1))
        e = apply("exp", x - folded(0, 0, "f32"))
        node = g.Nest((value("f32", *shape),), (value("f32", *shape),), ranges=shape, over=frozenset({axis}),
                      stages=((g.Fold("max", x),), (g.Fold("sum", e),), (g.Store(0, at(0, 1), e / folded(1, 0, "f32")),)))
        check(node, [random("f32", shape)])


def test_strides_of_any_kind():
    base = random("f32", (6, 80, 3))
    for x in (base[::2, ::-1], base.transpose(2, 1, 0), base[:, :, ::-1], np.broadcast_to(base[:1], base.shape)):
        shape = x.shape
        check(g.Map((value("f32", *shape),), (value("f32", *shape),), expr=load(0, "f32", at(0, 1, 2)) * 2), [x])
        check(g.Reduce((value("f32", *shape),), (value("f32", shape[1]),), ranges=shape, over=(0, 2), fold="sum", expr=load(0, "f32", at(0, 1, 2))), [x])


def test_windows_pad_and_resize():
    x = random("f32", (2, 19, 23))
    row, column = index(1) - 2, index(2) - 1
    inside = apply("and", apply("and", apply("greater_equal", row, 0), apply("less", row, 19)), apply("and", apply("greater_equal", column, 0), apply("less", column, 23)))
    check(g.Map((value("f32", 2, 19, 23),), (value("f32", 2, 23, 26),), expr=guard(inside, load(0, "f32", (index(0), row, column)), const(7.0))), [x])
    check(g.Map((value("f32", 2, 19, 23),), (value("f32", 2, 57, 46),), expr=load(0, "f32", (index(0), index(1) // dim(3), index(2) // dim(2)))), [x])
    check(g.Map((value("f32", 2, 19, 23),), (value("f32", 2, 38, 46),), expr=load(0, "f32", (index(0), index(1) % dim(19), index(2) % dim(23)))), [x])
    place = index(2) * dim(2) + index(3) - 1
    held = apply("and", apply("greater_equal", place, 0), apply("less", place, 23))
    pooled = g.Reduce((value("f32", 2, 19, 23),), (value("f32", 2, 19, 12),), ranges=(2, 19, 12, 3), over=(3,), fold="max",
                      expr=guard(held, load(0, "f32", (index(0), index(1), place)), const(-np.inf)))
    check(pooled, [x])


def test_gather_rows_and_elements():
    x = random("f32", (50, 35))
    rows = RNG.integers(0, 50, (4, 6))
    row = apply("where", apply("less", load(1, "i64", at(0, 1)), 0), load(1, "i64", at(0, 1)) + 50, load(1, "i64", at(0, 1)))
    check(g.Map((value("f32", 50, 35), value("i64", 4, 6)), (value("f32", 4, 6, 35),), expr=load(0, "f32", (cast(row, "ix"), index(2)))), [x, rows])
    columns = RNG.integers(0, 35, (50, 20))
    check(g.Map((value("f32", 50, 35), value("i64", 50, 20)), (value("f32", 50, 20),), expr=load(0, "f32", (index(0), cast(load(1, "i64", at(0, 1)), "ix")))), [x, columns])


@pytest.mark.parametrize("whole", [0, 1])
def test_a_value_that_is_kept_serves_every_store(whole):
    """exp is kept in the output that rounds nothing; the other store needs it too."""
    x, e = value("f64", 9, 20), apply("exp", load(0, "f64", at(0, 1)))
    share = apply("div", e, folded(0, 0, "f64"))
    outs = [value("f32", 9, 20), value("f32", 9, 20)]
    outs[whole] = value("f64", 9, 20)
    stores = tuple(g.Store(k, at(0, 1), share if v.dtype == "f64" else cast(share, v.dtype)) for k, v in enumerate(outs))
    check(g.Nest((x,), tuple(outs), ranges=(9, 20), over=frozenset({1}), stages=((g.Fold("sum", e),), stores)), [random("f64", (9, 20))])


def test_an_index_out_of_range_is_reported():
    x, rows = random("f32", (50, 35)), np.array([3, 50, 2])
    node = g.Map((value("f32", 50, 35), value("i64", 3)), (value("f32", 3, 35),), expr=load(0, "f32", (cast(load(1, "i64", at(0)), "ix"), index(1))))
    _, ctx = run(node, [x, rows])
    assert list(ctx[[0, 2, 3]]) == [1, 50, 50]
    other = g.Map((value("f32", 50, 35), value("i64", 3)), (value("f32", 35, 3),), expr=load(0, "f32", (cast(load(1, "i64", at(1)), "ix"), index(0))))
    _, ctx = run(other, [x, np.array([3, 2, -(1 << 62)])])
    assert list(ctx[[0, 2, 3]]) == [1, -(1 << 62), 50]


def test_a_guard_keeps_bad_indices_away():
    x, rows = random("f32", (50,)), np.array([3, -1, 49, 1 << 40] * 10)
    place = cast(load(1, "i64", at(0)), "ix")
    good = apply("and", apply("greater_equal", place, 0), apply("less", place, 50))
    node = g.Map((value("f32", 50), value("i64", 40)), (value("f32", 40),), expr=guard(good, load(0, "f32", (place,)), const(1.5)))
    check(node, [x, rows])


@pytest.mark.parametrize("fold", ["sum", "prod", "max", "min"])
def test_prefixes(fold):
    for shape, axis in (((70,), 0), ((5, 33), 1), ((33, 21), 0), ((2, 4, 3), 1), ((1,), 0), ((3, 0), 1)):
        for exclusive in (False, True):
            for reverse in (False, True):
                for dtype in ("f32", "i64"):
                    node = g.Prefix((value(dtype, *shape),), (value(dtype, *shape),), axis=axis, fold=fold, expr=load(0, dtype, at(*range(len(shape)))), exclusive=exclusive, reverse=reverse)
                    check(node, [random(dtype, shape)], tolerance=1e-5)


@pytest.mark.parametrize("combine", [None, "add", "mul", "max", "min"])
def test_scatters(combine):
    x = random("f32", (9, 40))
    rows, updates = RNG.integers(0, 9, (12,)), random("f32", (12, 40))
    row = cast(load(1, "i64", at(0)), "ix")
    check(g.Scatter((value("f32", 9, 40), value("i64", 12), value("f32", 12, 40)), (value("f32", 9, 40),), ranges=(12, 40), index=(row, index(1)), expr=load(2, "f32", at(0, 1)), combine=combine), [x, rows, updates])
    places = RNG.integers(0, 40, (9, 50))
    updates = random("f32", (9, 50))
    column = cast(load(1, "i64", at(0, 1)), "ix")
    check(g.Scatter((value("f32", 9, 40), value("i64", 9, 50), value("f32", 9, 50)), (value("f32", 9, 40),), ranges=(9, 50), index=(index(0), column), expr=load(2, "f32", at(0, 1)), combine=combine), [x, places, updates])
    flat, n = random("i32", (7,)), RNG.integers(0, 7, (30,))
    check(g.Scatter((value("i32", 7), value("i64", 30), value("i32", 30)), (value("i32", 7),), ranges=(30,), index=(row,), expr=load(2, "i32", at(0)), combine=combine), [flat, n, random("i32", (30,))])


def test_a_scatter_outside_is_reported_and_does_not_write():
    node = g.Scatter((value("f32", 4), value("i64", 3), value("f32", 3)), (value("f32", 4),), ranges=(3,), index=(cast(load(1, "i64", at(0)), "ix"),), expr=load(2, "f32", at(0)))
    (out,), ctx = run(node, [np.zeros(4, np.float32), np.array([0, 4, 3]), np.ones(3, np.float32)])
    assert list(out) == [1, 0, 0, 1]
    assert list(ctx[[0, 2, 3]]) == [1, 4, 4]


def test_many_tasks_in_any_order():
    x = random("f32", (300, 500))
    node = g.Map((value("f32", 300, 500), value("f32", 500)), (value("f32", 300, 500),), expr=load(0, "f32", at(0, 1)) + load(1, "f32", at(1)))
    check(node, [x, random("f32", (500,))], reverse=True)
    total = g.Reduce((value("f32", 300, 500),), (value("f32", 500),), ranges=(300, 500), over=(0,), fold="sum", expr=load(0, "f32", at(0, 1)))
    check(total, [x], reverse=True, tolerance=1e-5)
    everything = g.Reduce((value("f32", 300, 500),), (value("f32"),), ranges=(300, 500), over=(0, 1), fold="sum", expr=load(0, "f32", at(0, 1)))
    check(everything, [x], tolerance=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i8", "i64", "bool"])
def test_transposes(dtype):
    for shape in ((64, 48), (33, 70), (3, 40), (17, 8), (2, 19, 35)):
        order = tuple(reversed(range(len(shape))))
        out = tuple(shape[a] for a in order)
        x, y = random(dtype, shape), random(dtype, out)
        check(g.Map((value(dtype, *shape),), (value(dtype, *out),), expr=load(0, dtype, at(*order))), [x], symbolic=True)
        if dtype == "f32":
            mixed = load(0, dtype, at(*order)) * load(1, dtype, at(*range(len(out)))) + cast(index(0) + index(len(out) - 1), "f32")
            check(g.Map((value(dtype, *shape), value(dtype, *out)), (value(dtype, *out),), expr=mixed), [x, y])


def test_a_value_kept_in_an_output_is_not_read_once_the_output_is_written():
    """Softmax and, behind it, a sum that needs its exp again."""
    x, out, total = value("f32", 3, 20), value("f32", 3, 20), value("f32", 3)
    e = apply("exp", load(0, "f32", at(0, 1)) - folded(0, 0, "f32"))
    share = e / folded(1, 0, "f32")
    stages = ((g.Fold("max", load(0, "f32", at(0, 1))),), (g.Fold("sum", e),), (g.Store(0, at(0, 1), share), g.Fold("sum", e * share)),
              (g.Fold("sum", e * 2.0),), (g.Store(1, at(0), folded(2, 1, "f32") + folded(3, 0, "f32")),))
    check(g.Nest((x,), (out, total), ranges=(3, 20), over=frozenset({1}), stages=stages), [random("f32", (3, 20))])
