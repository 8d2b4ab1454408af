"""simplify: views compose and are read through, expressions get simpler, nodes that do nothing disappear."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir.affine import affine
from gpuonnx.ir.expr import Expr, const, dim, index
from gpuonnx.ir.types import compute, numpy_dtype
from gpuonnx.passes.algebra import Algebra, Algebras
from gpuonnx.passes.rewrite import Edit, Trace, change_leaves, merged
from gpuonnx.passes.views import is_identity, is_reshape, one, same_shape, source_indices, split_index


def run(graph: g.Graph, trace: Trace) -> g.Graph:
    return Simplify(graph, trace).run()


class Simplify:
    """State of one run: the graph being built, what is known of values that are the same everywhere."""

    def __init__(self, graph: g.Graph, trace: Trace) -> None:
        self.edit = Edit(graph, trace)
        self.trace = trace
        self.algebras = Algebras()
        self.uniform: dict[g.Value, Expr] = {}

    def run(self) -> g.Graph:
        for old in self.edit.graph.nodes:
            node = self.edit.take(old)
            match node:
                case g.View(): self.view(node)
                case g.Map(): self.map(node)
                case g.Reduce(): self.reduce(node)
                case g.Scatter(): self.scatter(node)
                case g.Prefix(): self.edit.emit(self.prefix(node))
                case g.Assemble(): self.assemble(node)
                case _: self.edit.emit(node)
        return self.edit.finish()

    # views
    def view(self, node: g.View) -> None:
        self.emit_view(self.composed(self.canonical(node)))

    def emit_view(self, node: g.View) -> None:
        source = node.inputs[0]
        if same_shape(source.dims, node.out.dims) and (node.index is None or is_identity(node.index, source.dims)):
            if self.trace.allow("identity view", node.origins):
                self.edit.replace(node.out, source)
                return
        if source in self.uniform and node.out.dtype == source.dtype:
            self.uniform[node.out] = self.uniform[source]
        self.edit.emit(node)

    def canonical(self, node: g.View) -> g.View:
        """Simplified indices; a reshape that only splits axes becomes an index view."""
        shape = node.out.dims
        index = split_index(node.inputs[0].dims, shape) if node.index is None else node.index
        if index is None:
            return node
        algebra = self.algebras.over(shape)
        index = tuple([algebra.simplify(e) for e in index])
        if index == node.index or not self.trace.allow("view index", node.origins):
            return node
        return replace(node, index=index)

    def composed(self, node: g.View) -> g.View:
        """A view of a view reads the first one's input."""
        while isinstance(inner := self.edit.makers.get(node.inputs[0]), g.View):
            both = self.joined(node, inner)
            if both is None or not self.trace.allow("view of a view", merged(inner.origins, node.origins)):
                break
            node = both
        return node

    def joined(self, node: g.View, inner: g.View) -> g.View | None:
        shape, origins = node.out.dims, merged(inner.origins, node.origins)
        algebra = self.algebras.over(shape)
        if node.index is not None:
            index = tuple([algebra.simplify(e) for e in source_indices(inner, node.index)])
            if all(affine(e) is not None for e in index):
                return replace(node, inputs=inner.inputs, index=index, origins=origins)
        if is_reshape(node) and is_reshape(inner):
            split = split_index(inner.inputs[0].dims, shape)
            index_ = None if split is None else tuple([algebra.simplify(e) for e in split])
            return replace(node, inputs=inner.inputs, index=index_, origins=origins)
        return None

    # maps and reductions
    def expression(self, e: Expr, node: g.Node, ranges: tuple[d.Dim, ...]) -> tuple[tuple[g.Value, ...], Expr]:
        """The expression with views read through and simplified, and the inputs it still has."""
        inputs = list(node.inputs)
        numbers: dict[g.Value, int] = {v: k for k, v in enumerate(inputs)}
        algebra = self.algebras.over(ranges)

        def leaf(x: Expr) -> Expr | None:
            return self.read(x, inputs, numbers, algebra) if x.op == "load" else None

        new = e
        for _ in range(4):
            old, new = new, algebra.simplify(change_leaves(new, leaf))
            if new is old:
                break
        return self.compact(new, inputs)

    def read(self, x: Expr, inputs: list[g.Value], numbers: dict[g.Value, int], algebra: Algebra) -> Expr | None:
        value = inputs[x.value]
        if value in self.uniform:
            return self.uniform[value]
        maker = self.edit.makers.get(value)
        if not isinstance(maker, g.View):
            return None
        indices = self.through(maker, x.args, algebra)
        if indices is None:
            return None
        source = maker.inputs[0]
        number = numbers.get(source)
        if number is None:
            number = numbers[source] = len(inputs)
            inputs.append(source)
        return Expr("load", indices, x.dtype, number)

    @staticmethod
    def through(view: g.View, indices: tuple[Expr, ...], algebra: Algebra) -> tuple[Expr, ...] | None:
        """Indices into the view's input; None where a merge of axes would need divisions."""
        found = source_indices(view, indices)
        if view.index is None:
            found = tuple([algebra.simplify(e) for e in found])
            if any(x.op in ("floordiv", "floormod") for e in found for x in e.walk()):
                return None
        return found

    @staticmethod
    def compact(e: Expr, inputs: list[g.Value]) -> tuple[tuple[g.Value, ...], Expr]:
        """Drop inputs that nothing loads; number the others in their order of use."""
        numbers: dict[g.Value, int] = {}

        def leaf(x: Expr) -> Expr | None:
            if x.op != "load":
                return None
            number = numbers.setdefault(inputs[x.value], len(numbers))
            return x if number == x.value else Expr("load", x.args, x.dtype, number)

        new = change_leaves(e, leaf)
        return tuple(numbers), new

    def map(self, node: g.Map) -> None:
        inputs, expr = self.expression(node.expr, node, node.out.dims)
        if (expr is not node.expr or inputs != node.inputs) and self.trace.allow("expression", node.origins):
            node = replace(node, inputs=inputs, expr=expr)
        if self.bare(node) and self.trace.allow("load is a view", node.origins):
            self.view(g.View(node.inputs, node.outputs, node.expr.args, origins=node.origins))
            return
        if not node.inputs and not any(x.op == "index" or x.op == "philox" for x in node.expr.walk()) and node.out.dtype != "str":
            self.note_uniform(node)
        self.edit.emit(node)

    def note_uniform(self, node: g.Map) -> None:
        stored = node.out.dtype
        if compute(stored) == stored:
            self.uniform[node.out] = node.expr
        elif node.expr.op == "const":
            self.uniform[node.out] = const(np.asarray(node.expr.value).astype(numpy_dtype(stored)).item(), compute(stored))

    @staticmethod
    def bare(node: g.Map) -> bool:
        """Whether the Map only moves elements, by affine indices."""
        e = node.expr
        if e.op != "load" or node.inputs[e.value].dtype != node.out.dtype or len(node.inputs) != 1:
            return False
        return all(affine(i) is not None for i in e.args)

    def reduce(self, node: g.Reduce) -> None:
        inputs, expr = self.expression(node.expr, node, node.ranges)
        if (expr is not node.expr or inputs != node.inputs) and self.trace.allow("expression", node.origins):
            node = replace(node, inputs=inputs, expr=expr)
        single = [a for a in node.over if one(node.ranges[a])]
        if single and self.trace.allow("reduction of size 1", node.origins):
            smaller = without_axes(node, single)
            if isinstance(smaller, g.Map):
                self.map(smaller)
                return
            node = smaller
        self.edit.emit(node)

    def scatter(self, node: g.Scatter) -> None:
        if any(one_ == 0 and isinstance(one_, int) for one_ in node.ranges) and self.trace.allow("empty scatter", node.origins):
            self.edit.replace(node.out, node.inputs[0])
            return
        self.edit.emit(node)

    def prefix(self, node: g.Prefix) -> g.Prefix:
        inputs, expr = self.expression(node.expr, node, node.out.dims)
        if (expr is node.expr and inputs == node.inputs) or not self.trace.allow("expression", node.origins):
            return node
        return replace(node, inputs=inputs, expr=expr)

    def assemble(self, node: g.Assemble) -> None:
        parts = [v for v in node.inputs if not (isinstance(v.dims[node.axis], int) and v.dims[node.axis] == 0)]
        if len(parts) == 1 and same_shape(parts[0].dims, node.out.dims) and self.trace.allow("join of one", node.origins):
            self.edit.replace(node.out, parts[0])
            return
        if parts and len(parts) < len(node.inputs) and self.trace.allow("empty parts", node.origins):
            node = replace(node, inputs=tuple(parts))
        self.edit.emit(node)


def without_axes(node: g.Reduce, gone: list[int]) -> g.Reduce | g.Map:
    """The reduction without some folded axes of size 1."""
    left = [a for a in range(len(node.ranges)) if a not in gone]
    position = {a: k for k, a in enumerate(left)}
    expr = change_leaves(node.expr, lambda x: None if x.op != "index" else index(position[x.value]) if x.value in position else dim(0))
    over = tuple([position[a] for a in node.over if a in position])
    if over:
        return g.Reduce(node.inputs, node.outputs, ranges=tuple([node.ranges[a] for a in left]), over=over, fold=node.fold, expr=expr,
                        origins=node.origins)
    if node.fold.startswith("arg"):
        return g.Map((), node.outputs, expr=const(0, compute(node.out.dtype)), origins=node.origins)
    target = compute(node.out.dtype)
    return g.Map(node.inputs, node.outputs, expr=expr if expr.dtype == target else Expr("cast", (expr,), target), origins=node.origins)
