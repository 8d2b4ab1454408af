"""Each legal form, broken on purpose."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from passes_oracle import built

from gpuonnx import passes
from gpuonnx.ir import build as b
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Space
from gpuonnx.ir.expr import Expr, apply, const, dim, folded, index, load
from gpuonnx.ir.verify import IllegalGraph, verify

X, Y = g.Value("f32", (2, 3), "x"), g.Value("f32", (2, 3), "y")
HERE = load(0, "f32", (index(0), index(1)))


def graph_of(*nodes: g.Node, **more: Any) -> g.Graph:
    return g.Graph((X,), (nodes[-1].outputs[0],), list(nodes), **more)


def value(dtype: str, *shape: Any) -> g.Value:
    return g.Value(dtype, shape)


def nest(*stages: tuple[g.Fold | g.Store, ...], out: g.Value = Y) -> g.Nest:
    return g.Nest((X,), (out,), ranges=(2, 3), over=frozenset({1}), stages=stages)


SYMBOL = Space().sym("N")
STORE = g.Store(0, (index(0), index(1)), HERE)
BROKEN: dict[str, g.Graph] = {
    "an input is defined": graph_of(g.Map((Y,), (value("f32", 2, 3),), expr=HERE)),
    "a value is defined once": graph_of(g.Map((X,), (Y,), expr=HERE), g.Map((X,), (Y,), expr=HERE)),
    "an output is defined": g.Graph((X,), (Y,), []),
    "a constant has its value's shape": graph_of(g.Map((X,), (Y,), expr=HERE), constants={value("f32", 2): np.zeros(3, np.float32)}),
    "a constant has its value's type": graph_of(g.Map((X,), (Y,), expr=HERE), constants={value("f32", 2): np.zeros(2)}),
    "a load names an input": graph_of(g.Map((X,), (Y,), expr=load(1, "f32", (index(0), index(1))))),
    "one index for each axis": graph_of(g.Map((X,), (Y,), expr=load(0, "f32", (index(0),)))),
    "its input's compute type": graph_of(g.Map((X,), (value("i32", 2, 3),), expr=load(0, "i32", (index(0), index(1))))),
    "an index names an axis": graph_of(g.Map((X,), (Y,), expr=load(0, "f32", (index(0), index(2))))),
    "an index has the index type": graph_of(g.Map((X,), (Y,), expr=load(0, "f32", (index(0), const(0, "i64"))))),
    "the output's compute type": graph_of(g.Map((X,), (Y,), expr=const(0, "i32"))),
    "a function is a row": graph_of(g.Map((X,), (Y,), expr=Expr("frobnicate", (HERE,), "f32"))),
    "a function has its row's type": graph_of(g.Map((X,), (value("i32", 2, 3),), expr=Expr("add", (HERE, HERE), "i32"))),
    "a guard chooses": graph_of(g.Map((X,), (Y,), expr=Expr("guard", (HERE, HERE, HERE), "f32"))),
    "a view's index is affine": graph_of(g.View((X,), (Y,), (index(0) * index(1), index(1)))),
    "a view has one index": graph_of(g.View((X,), (Y,), (index(0),))),
    "a view keeps the type": graph_of(g.View((X,), (value("i32", 2, 3),), (index(0), index(1)))),
    "keeps the number of elements": graph_of(g.View((X,), (value("f32", 7),))),
    "the output has the other axes": graph_of(g.Reduce((X,), (value("f32", 3),), ranges=(2, 3), over=(1,), fold="sum", expr=HERE)),
    "argmax folds one axis": graph_of(g.Reduce((X,), (value("i64"),), ranges=(2, 3), over=(0, 1), fold="argmax", expr=HERE)),
    "a fold is a row": graph_of(g.Reduce((X,), (value("f32", 2),), ranges=(2, 3), over=(1,), fold="median", expr=HERE)),
    "the axis is one of": graph_of(g.Prefix((X,), (Y,), axis=2, fold="add", expr=HERE)),
    "a scatter has one index": graph_of(g.Scatter((X,), (Y,), ranges=(2,), index=(index(0),), expr=const(0.0))),
    "the parts make up": graph_of(g.Assemble((X, X), (value("f32", 2, 5),), axis=1)),
    "operands belong": graph_of(g.Call((X, X), (Y,), kernel="gemm", operands=1)),
    "folded names an earlier": graph_of(nest((replace(STORE, expr=folded(0, 0, "f32")), g.Fold("sum", HERE)))),
    "an output is stored once": graph_of(nest((STORE, STORE))),
    "every output is stored": graph_of(nest((g.Fold("sum", HERE),))),
    "stored once hangs on": graph_of(nest((g.Store(0, (index(0),), HERE),), out=value("f32", 2))),
    "a store covers": graph_of(nest((g.Store(0, (index(1), index(0)), HERE),))),
    "has a source": graph_of(g.Map((X,), (value("f32", SYMBOL),), expr=const(0.0))),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_form_is_named(rule: str) -> None:
    with pytest.raises(IllegalGraph, match=rule):
        verify(BROKEN[rule])


def test_a_symbol_is_named_after_its_source_is_computed() -> None:
    count = value("i64")
    read = g.Map((X,), (count,), expr=const(2, "i64"))
    late = g.Map((X,), (value("f32", SYMBOL),), expr=const(0.0))
    symbols = {"N": g.Source(count, element=0)}
    verify(graph_of(read, late, symbols=symbols))
    with pytest.raises(IllegalGraph, match="symbol N is bound by now"):
        verify(g.Graph((X,), (count,), [late, read], symbols=symbols))
    named = g.Map((X,), (Y,), expr=b.cast(dim(SYMBOL), "f32"))
    with pytest.raises(IllegalGraph, match="symbol N is bound by now"):
        verify(g.Graph((X,), (count,), [named, read], symbols=symbols))


def test_a_pass_that_breaks_a_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: g.Graph, _: passes.Trace) -> g.Graph:
        return g.Graph(graph.inputs, graph.outputs, [])
    graph = built({"x": ("f32", (2, 3))}, lambda x: [x + 1.0])
    monkeypatch.setattr("gpuonnx.passes.simplify.run", broken)
    passes.run_pipeline(graph, ("simplify",), (), None, passes.Trace())
    monkeypatch.setenv(passes.VERIFY_VARIABLE, "1")
    with pytest.raises(IllegalGraph, match="after simplify: graph: an output is defined"):
        passes.run_pipeline(graph, ("simplify",), (), None, passes.Trace())


def test_where_and_functions_of_wrong_arguments() -> None:
    bad = Expr("where", (apply("less", HERE, 0.0), HERE, const(1, "i32")), "i32")
    with pytest.raises(IllegalGraph, match="a choice is between equals"):
        verify(graph_of(g.Map((X,), (value("i32", 2, 3),), expr=bad)))
