"""The legal forms of a graph, written down once: `verify` raises IllegalGraph at the first node that has none.

Order: a value is defined once, before it is read, and a symbol's source before the sizes and expressions that name the symbol.
Expressions: a load gives one index for each axis of an input of the node, in its compute type; `index` names an axis of the
node's ranges; View indices are affine; `folded` names an earlier stage of the same Nest.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gpuonnx.errors import GpuOnnxError
from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir.affine import affine
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, postorder
from gpuonnx.ir.scalar import FOLDS, SCALARS
from gpuonnx.ir.types import INDEX, compute, numpy_dtype

LEAVES = ("load", "index", "const", "dim", "folded")
COMBINES = (None, "add", "mul", "max", "min")


class IllegalGraph(GpuOnnxError):
    """A graph that no pass may make; the message names the node and the rule it breaks."""


def verify(graph: g.Graph) -> None:
    """Raises IllegalGraph."""
    _Check(graph).run()


class _Check:
    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.defined: set[g.Value] = set()
        self.node: g.Node | None = None
        self.sizes_seen: set[int] = set()
        self.exprs_seen: set[tuple[Expr, int]] = set()

    def need(self, holds: bool, rule: str, *about: Any) -> None:
        if not holds:
            where = "graph" if self.node is None else f"{type(self.node).__name__} {', '.join(self.node.origins) or self.node.outputs}"
            raise IllegalGraph(f"{where}: {rule}" + "".join(f", {a}" for a in about))

    def run(self) -> None:
        graph = self.graph
        for value in graph.inputs:
            self.define(value)
        for value, array in graph.constants.items():
            self.define(value)
            self.need(array.shape == value.shape, "a constant has its value's shape", value, array.shape)
            self.need(array.dtype == numpy_dtype(value.dtype), "a constant has its value's type", value, array.dtype)
        for value in (*graph.inputs, *graph.constants):
            self.sizes(value.shape or (), everywhere=True)
        for node in graph.nodes:
            self.node = node
            self.one(node)
            for value in node.outputs:
                self.define(value)
        self.node = None
        for value in graph.outputs:
            self.need(value in self.defined, "an output is defined", value)
        for name, source in graph.symbols.items():
            self.need(source.value in self.defined, f"the source of symbol {name} is defined", source.value)

    def define(self, value: g.Value) -> None:
        self.need(value not in self.defined, "a value is defined once", value)
        self.defined.add(value)

    # sizes
    def sizes(self, sizes: Iterable[Any], everywhere: bool = False) -> None:
        """Symbols in sizes are known, and (unless `everywhere`) their source is computed by now."""
        for size in sizes:
            if isinstance(size, int) or id(size) in self.sizes_seen:
                continue
            self.sizes_seen.add(id(size))
            for name in sorted(d.symbols(size)):
                source = self.graph.symbols.get(name)
                self.need(source is not None, f"symbol {name} has a source", size)
                assert source is not None
                self.need(everywhere or source.value in self.defined or source.value in self.node_outputs(), f"symbol {name} is bound by now", size)

    def node_outputs(self) -> tuple[g.Value, ...]:
        """A Host or control node names the sizes of its own results."""
        return self.node.outputs if isinstance(self.node, (g.Host, g.If, g.Loop)) else ()

    def same(self, a: Sequence[Dim], b: Sequence[Dim], rule: str) -> None:
        self.need(len(a) == len(b) and all(d.prove_equal(x, y) is not False for x, y in zip(a, b, strict=True)), rule, tuple(a), tuple(b))

    # expressions
    def expression(self, root: Expr, axes: int, inputs: Sequence[g.Value | None], folds: Sequence[int] = ()) -> None:
        """`axes`: how many the ranges have; `inputs`: what load(k) may read; `folds`: actions of each earlier stage."""
        for e in postorder((root,)):
            match e.op:
                case "index": self.need(e.dtype == INDEX and 0 <= e.value < axes, "an index names an axis of the ranges", e)
                case "load": self.load(e, inputs)
                case "folded": self.need(e.value[0] < len(folds) and e.value[1] < folds[e.value[0]], "folded names an earlier stage", e)
                case "dim": self.sizes((e.value,))
                case "const": self.need(e.dtype == INDEX or compute(e.dtype) == e.dtype, "a constant has a compute type", e)
                case _: self.function(e)

    def load(self, e: Expr, inputs: Sequence[g.Value | None]) -> None:
        self.need(isinstance(e.value, int) and 0 <= e.value < len(inputs) and inputs[e.value] is not None, "a load names an input", e)
        value = inputs[e.value]
        assert value is not None
        self.need(len(e.args) == value.rank, "a load has one index for each axis", e, value)
        self.need(all(a.dtype == INDEX for a in e.args), "an index has the index type", e)
        self.need(e.dtype == compute(value.dtype), "a load has its input's compute type", e, value)

    def function(self, e: Expr) -> None:
        if e.op == "guard":
            self.need(len(e.args) == 3 and e.args[0].dtype == "bool" and e.args[1].dtype == e.args[2].dtype == e.dtype,
                      "a guard chooses between equals", e)
        elif e.op in ("cast", "round"):
            self.need(len(e.args) == 1 and (e.op == "cast" or e.value is None or compute(e.value) == e.dtype == e.args[0].dtype),
                      "a conversion has one argument", e)
        else:
            self.need(e.op in SCALARS, "a function is a row of the scalar table", e.op)
            self.need(bool(e.args) and e.dtype == (SCALARS[e.op].dtype or e.args[-1].dtype), "a function has its row's type", e, e.dtype)
            if e.op == "where":
                self.need(e.args[0].dtype == "bool" and e.args[1].dtype == e.args[2].dtype, "a choice is between equals", e)

    # nodes
    def one(self, node: g.Node) -> None:
        for value in node.inputs:
            self.need(value in self.defined, "an input is defined before it is read", value)
        self.need(bool(node.outputs), "a node has outputs")
        self.need(len(set(node.outputs)) == len(node.outputs), "outputs are different values")
        for out in node.outputs:
            self.sizes(out.shape or ())
        self.sizes(getattr(node, "ranges", ()))
        match node:
            case g.View(): self.view(node)
            case g.Map(): self.map(node)
            case g.Reduce(): self.reduce(node)
            case g.Prefix(): self.prefix(node)
            case g.Scatter(): self.scatter(node)
            case g.Assemble(): self.assemble(node)
            case g.Call(): self.call(node)
            case g.Nest(): self.nest(node)
            case g.Copy(): self.same(node.inputs[0].shape or (), node.out.shape or (), "a copy keeps the shape")

    def view(self, node: g.View) -> None:
        (source,) = node.inputs
        self.need(source.dtype == node.out.dtype, "a view keeps the type", source, node.out)
        if node.index is None:
            counts = []
            for dims in (source.dims, node.out.dims):
                total: Dim = 1
                for size in dims:
                    total = total * size
                counts.append(total)
            self.same(counts[:1], counts[1:], "a reshape keeps the number of elements")
            return
        self.need(len(node.index) == source.rank, "a view has one index for each axis of its input")
        for e in node.index:
            self.expression(e, node.out.rank, ())
            self.need(affine(e) is not None, "a view's index is affine", e)

    def map(self, node: g.Map) -> None:
        self.expression(node.expr, node.out.rank, node.inputs)
        self.need(node.expr.dtype == compute(node.out.dtype), "an expression has the output's compute type", node.expr.dtype, node.out.dtype)

    def reduce(self, node: g.Reduce) -> None:
        self.expression(node.expr, len(node.ranges), node.inputs)
        self.need(node.fold in FOLDS, "a fold is a row of the table", node.fold)
        self.need(bool(node.over) and all(0 <= a < len(node.ranges) for a in node.over) and len(set(node.over)) == len(node.over),
                  "folded axes are axes of the ranges", node.over)
        self.need(not node.fold.startswith("arg") or len(node.over) == 1, "argmax folds one axis")
        self.same([s for a, s in enumerate(node.ranges) if a not in node.over], node.out.dims, "the output has the other axes")

    def prefix(self, node: g.Prefix) -> None:
        self.expression(node.expr, node.out.rank, node.inputs)
        self.need(0 <= node.axis < node.out.rank, "the axis is one of the output's", node.axis)

    def scatter(self, node: g.Scatter) -> None:
        self.same(node.inputs[0].dims, node.out.dims, "a scatter keeps the shape")
        self.need(len(node.index) == node.out.rank, "a scatter has one index for each axis")
        self.need(node.combine in COMBINES, "a scatter's way to combine", node.combine)
        for e in (*node.index, node.expr):
            self.expression(e, len(node.ranges), node.inputs)

    def assemble(self, node: g.Assemble) -> None:
        total: Dim = 0
        for part in node.inputs:
            self.need(part.rank == node.out.rank and part.dtype == node.out.dtype, "a part has the result's rank and type", part)
            self.same(_without(part.dims, node.axis), _without(node.out.dims, node.axis), "parts agree on the other axes")
            total = total + part.dims[node.axis]
        self.same([total], [node.out.dims[node.axis]], "the parts make up the whole")

    def call(self, node: g.Call) -> None:
        own = len(node.inputs) - node.operands
        self.need(0 <= node.operands and own >= 0, "operands are among the inputs")
        self.need((node.epilogue is not None) or not node.operands, "operands belong to an epilogue")
        if "rows" in node.attrs:
            self.rows(node, node.attrs["rows"], own)
        if node.epilogue is None:
            return
        self.need(len(node.outputs) == 1, "an epilogue has one result")
        result = next((e.dtype for e in postorder((node.epilogue,)) if e.op == "load" and e.value == 0), compute(node.out.dtype))
        self.expression(node.epilogue, node.out.rank, (g.Value(result, node.out.shape), *node.inputs[own:]))
        self.need(node.epilogue.dtype == compute(node.out.dtype), "an epilogue has the output's compute type", node.epilogue.dtype, node.out.dtype)

    def rows(self, node: g.Call, rows: g.Rows, own: int) -> None:
        """What an attention does between its products reads the scores and the inputs behind the third."""
        scores = g.Value(compute(node.inputs[0].dtype), (*node.out.dims[:-1], node.inputs[1].dims[-1]))
        values, folds = (scores, *node.inputs[3:own]), list[int]()
        if rows.score is not None:
            self.expression(rows.score, node.out.rank, values)
        for stage in rows.stages:
            for fold in stage:
                self.expression(fold.expr, node.out.rank, values, folds)
                self.need(fold.op in FOLDS, "a fold is a row of the table", fold.op)
            folds.append(len(stage))
        self.expression(rows.result, node.out.rank, values, folds)

    def nest(self, node: g.Nest) -> None:
        axes, stored, folds = len(node.ranges), set[int](), list[int]()
        self.need(all(0 <= a < axes for a in node.over), "folded axes are axes of the ranges", node.over)
        for stage in node.stages:
            for action in stage:
                self.expression(action.expr, axes, node.inputs, folds)
                if isinstance(action, g.Store):
                    self.store(node, action)
                    self.need(action.output not in stored, "an output is stored once", action.output)
                    stored.add(action.output)
                else:
                    self.need(action.op in FOLDS and bool(node.over), "a fold is a row of the table over some axis", action.op)
            folds.append(len(stage))
        self.need(stored == set(range(len(node.outputs))), "every output is stored", stored)

    def store(self, node: g.Nest, action: g.Store) -> None:
        self.need(0 <= action.output < len(node.outputs), "a store names an output", action.output)
        out = node.outputs[action.output]
        self.need(len(action.indices) == out.rank, "a store has one index for each axis", out)
        self.need(action.expr.dtype == compute(out.dtype), "a store has the output's compute type", action.expr.dtype, out.dtype)
        for e in action.indices:
            self.expression(e, len(node.ranges), ())
        named = {e.value for e in postorder(action.indices) if e.op == "index"}
        if not named & node.over:
            read = {e.value for e in postorder((action.expr,)) if e.op == "index"}
            self.need(not read & node.over, "what is stored once hangs on no folded axis")
        self.same([node.ranges[e.value] for e in action.indices if e.op == "index"],
                  [s for s, e in zip(out.dims, action.indices, strict=True) if e.op == "index"], "a store covers its output")


def _without(sizes: Sequence[Dim], axis: int) -> list[Dim]:
    return [s for k, s in enumerate(sizes) if k != axis]
