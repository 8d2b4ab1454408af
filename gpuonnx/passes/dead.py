"""dead: nodes, constants, symbols and requirements that nothing needs go; cse: equal nodes become one."""
from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr
from gpuonnx.passes.rewrite import Edit, Trace, merged


def run(graph: g.Graph, trace: Trace) -> g.Graph:
    """Keep what the outputs need. A symbol is needed where a live node's sizes name it; then so is its source."""
    live = _Live(graph)
    gone = [n for n in graph.nodes if not any(o in live.values for o in n.outputs)]
    if gone and not trace.allow("unused", merged(*(n.origins for n in gone)), f"{len(gone)} node{'s' * (len(gone) != 1)}"):
        return graph
    nodes = [n for n in graph.nodes if any(o in live.values for o in n.outputs)]
    sources = {name: s for name, s in graph.symbols.items() if name in live.symbols or s.value in live.values}
    constants = {v: a for v, a in graph.constants.items() if v in live.values}
    requirements = [r for r in graph.requirements if d.symbols(r.dim) <= sources.keys()]
    return g.Graph(graph.inputs, graph.outputs, nodes, constants, sources, requirements)


class _Live:
    """Values and symbols reached from the outputs."""

    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.values: set[g.Value] = set()
        self.symbols: set[str] = set()
        self._sizes: set[int] = set()
        self._exprs: set[Expr] = set()
        self._stack: list[g.Value] = [*graph.outputs, *graph.inputs]
        producers = graph.producers()
        while self._stack:
            value = self._stack.pop()
            if value in self.values:
                continue
            self.values.add(value)
            self.sizes(value.shape or ())
            if value in producers:
                self.node(producers[value])

    def node(self, node: g.Node) -> None:
        self._stack.extend(node.inputs)
        for out in node.outputs:
            self.sizes(out.shape or ())
        self.sizes(getattr(node, "ranges", ()))
        self.exprs(expressions(node))
        if isinstance(node, g.Call):
            self.sizes(attribute_dims(node.attrs))

    def sizes(self, sizes: Iterable[Any]) -> None:
        for size in sizes:
            if isinstance(size, (d.Poly, d.Real)) and id(size) not in self._sizes:
                self._sizes.add(id(size))
                for name in d.symbols(size) - self.symbols:
                    self.symbols.add(name)
                    if name in self.graph.symbols:
                        self._stack.append(self.graph.symbols[name].value)

    def exprs(self, roots: Iterable[Expr]) -> None:
        stack = list(roots)
        while stack:
            e = stack.pop()
            if e not in self._exprs:
                self._exprs.add(e)
                stack.extend(e.args)
                if e.op == "dim":
                    self.sizes((e.value,))


def expressions(node: g.Node) -> tuple[Expr, ...]:
    """All root expressions of a node."""
    match node:
        case g.View(): return node.index or ()
        case g.Map() | g.Reduce() | g.Prefix(): return (node.expr,)
        case g.Scatter(): return (node.expr, *node.index)
        case g.Call(): return (node.epilogue,) if node.epilogue is not None else ()
        case g.Nest(): return node.roots
    return ()


def attribute_dims(value: Any) -> list[Any]:
    """Dims anywhere inside attributes."""
    if isinstance(value, (d.Poly, d.Real)):
        return [value]
    if isinstance(value, dict):
        return [x for v in value.values() for x in attribute_dims(v)]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [x for v in value for x in attribute_dims(v)]
    if hasattr(value, "__dataclass_fields__"):
        return [x for name in value.__dataclass_fields__ for x in attribute_dims(getattr(value, name))]
    return []


def cse(graph: g.Graph, trace: Trace) -> g.Graph:
    """Equal nodes over equal inputs become one; so do equal small constants."""
    edit = Edit(graph, trace)
    same_constants(edit)
    seen: dict[Hashable, g.Node] = {}
    for old in graph.nodes:
        node = edit.take(old)
        key = identity(node)
        first = seen.get(key) if key is not None else None
        if first is not None and trace.allow("equal nodes", merged(first.origins, node.origins)):
            for a, b in zip(node.outputs, first.outputs, strict=True):
                edit.replace(a, b)
            continue
        if key is not None:
            seen.setdefault(key, node)
        edit.emit(node)
    return edit.finish()


def same_constants(edit: Edit, limit: int = 256) -> None:
    seen: dict[Hashable, g.Value] = {}
    for value, array in edit.graph.constants.items():
        if array.nbytes > limit or array.dtype.kind == "O" or value in edit.graph.outputs:
            continue
        key = (value.dtype, array.shape, array.tobytes())
        first = seen.setdefault(key, value)
        if first is not value:
            edit.renamed[value] = first


def identity(node: g.Node) -> Hashable | None:
    """What makes two nodes compute the same, or None where that is not said."""
    shapes = tuple((o.dtype, sizes_key(o.shape)) for o in node.outputs)
    match node:
        case g.View(): return ("view", node.inputs, node.index, shapes)
        case g.Map(): return ("map", node.inputs, node.expr, shapes)
        case g.Reduce(): return ("reduce", node.inputs, node.expr, sizes_key(node.ranges), node.over, node.fold, shapes)
        case g.Prefix(): return ("prefix", node.inputs, node.expr, node.axis, node.fold, node.exclusive, node.reverse, shapes)
        case g.Assemble(): return ("assemble", node.inputs, node.axis, shapes)
        case g.Scatter(): return ("scatter", node.inputs, sizes_key(node.ranges), node.index, node.expr, node.combine, shapes)
    return None


def sizes_key(sizes: Iterable[Any] | None) -> Hashable:
    return None if sizes is None else tuple(s if isinstance(s, int) else ("dim", id(s)) for s in sizes)
