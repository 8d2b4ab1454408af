"""What every pass is made of: a forward walk that emits nodes, renames values and records each rewrite in a Trace."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, postorder


@dataclass(frozen=True)
class Event:
    """One rewrite: the pass and its rule, the ONNX nodes it touched, and what it did."""

    pass_name: str
    rule: str
    origins: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.rule}: {', '.join(self.origins) or '-'}{': ' if self.text else ''}{self.text}"


@dataclass
class Trace:
    """The rewrites done so far; `limit` stops them after that many, for bisecting."""

    limit: int | None = None
    events: list[Event] = field(default_factory=list)
    current: str = ""

    def __str__(self) -> str:
        """A line for each rewrite; like ones that follow each other share one."""
        runs = [(line, sum(1 for _ in same)) for line, same in groupby(map(str, self.events))]
        return "\n".join(line if count == 1 else f"{line} ({count} times)" for line, count in runs) or "nothing was rewritten"

    @property
    def stopped(self) -> bool:
        return self.limit is not None and len(self.events) >= self.limit

    def allow(self, rule: str, origins: Sequence[str], text: str = "") -> bool:
        """Record a rewrite and answer True, or False once the limit is reached: then leave the node as it is."""
        if self.stopped:
            return False
        self.events.append(Event(self.current, rule, tuple(origins), text))
        return True


class Edit:
    """A graph being rewritten from front to back: `take` a node, then `emit` it, others, or `replace` its outputs."""

    def __init__(self, graph: g.Graph, trace: Trace) -> None:
        self.graph, self.trace = graph, trace
        self.nodes: list[g.Node] = []
        self.constants = dict(graph.constants)
        self.makers: dict[g.Value, g.Node] = {}
        self.renamed: dict[g.Value, g.Value] = {}

    def current(self, value: g.Value) -> g.Value:
        return self.renamed.get(value, value)

    def take(self, node: g.Node) -> g.Node:
        """The node with its inputs as they are now."""
        return node.moved(self.renamed)

    def emit(self, node: g.Node) -> None:
        self.nodes.append(node)
        for out in node.outputs:
            self.makers[out] = node

    def replace(self, old: g.Value, new: g.Value) -> None:
        """Everything after reads `new` (already emitted, a constant or an input) where it read `old`."""
        new = self.current(new)
        self.renamed[old] = new
        if not new.name:
            new.name = old.name

    def finish(self) -> g.Graph:
        return regraph(self.graph, self.nodes, self.constants, self.renamed)


def regraph(graph: g.Graph, nodes: list[g.Node], constants: dict[g.Value, np.ndarray], renamed: Mapping[g.Value, g.Value]) -> g.Graph:
    """The same inputs, outputs, symbols and requirements over other nodes."""
    symbols = {name: s if s.value not in renamed else g.Source(renamed[s.value], s.axis, s.element) for name, s in graph.symbols.items()}
    outputs = tuple(renamed.get(v, v) for v in graph.outputs)
    return g.Graph(graph.inputs, outputs, nodes, constants, symbols, graph.requirements)


def kept(graph: g.Graph) -> set[g.Value]:
    """Values that somebody outside the nodes reads: outputs, and where symbols come from."""
    return set(graph.outputs) | {s.value for s in graph.symbols.values()}


def readers(graph: g.Graph) -> dict[g.Value, int]:
    """How many nodes (and outputs, and symbols) read each value."""
    count: dict[g.Value, int] = dict.fromkeys(kept(graph), 1)
    for node in graph.nodes:
        for value in set(node.inputs):
            count[value] = count.get(value, 0) + 1
    return count


def merged(*origins: Iterable[str]) -> tuple[str, ...]:
    """Origins of several nodes, each once."""
    return tuple(dict.fromkeys(o for some in origins for o in some))


def change_leaves(e: Expr, leaf: Callable[[Expr], Expr | None], done: dict[Expr, Expr] | None = None) -> Expr:
    """Replace leaves and loads (whose indices are changed first). `done` carries answers from call to call."""
    if done is None:
        done = {}
    for x in _pending(e, done):
        if x.args:
            args = tuple([done[a] for a in x.args])
            new = x if args == x.args else Expr(x.op, args, x.dtype, x.value)
        else:
            new = x
        if not new.args or new.op == "load":
            new = leaf(new) or new
        done[x] = new
    return done[e]


def _pending(e: Expr, done: Mapping[Expr, Expr]) -> list[Expr]:
    """Post-order of what `done` does not hold yet."""
    out: list[Expr] = []
    stack: list[tuple[Expr, bool]] = [(e, False)]
    seen: set[Expr] = set()
    while stack:
        x, ready = stack.pop()
        if ready:
            out.append(x)
        elif x not in seen and x not in done:
            seen.add(x)
            if not x.args:
                out.append(x)
                continue
            stack.append((x, True))
            stack.extend([(a, False) for a in x.args[::-1]])
    return out


pending = _pending


def at_indices(e: Expr, indices: Sequence[Expr]) -> Expr:
    """`e` with index(k) replaced by indices[k]."""
    if all(i.op == "index" and i.value == k for k, i in enumerate(indices)):
        return e
    return change_leaves(e, lambda x: indices[x.value] if x.op == "index" else None)


def named(e: Expr, inputs: Sequence[g.Value]) -> Expr:
    """Loads name their value instead of the input's number: the form in which expressions of several nodes mix."""
    return change_leaves(e, lambda x: Expr("load", x.args, x.dtype, inputs[x.value]) if x.op == "load" else None)


def numbered(roots: Sequence[Expr], inputs: Sequence[g.Value] = ()) -> tuple[tuple[g.Value, ...], tuple[Expr, ...]]:
    """The way back: the inputs (those given first) and the expressions over their numbers."""
    numbers: dict[g.Value, int] = {v: k for k, v in enumerate(inputs)}
    done: dict[Expr, Expr] = {}

    def leaf(x: Expr) -> Expr | None:
        return Expr("load", x.args, x.dtype, numbers.setdefault(x.value, len(numbers))) if x.op == "load" else None

    exprs = tuple([change_leaves(r, leaf, done) for r in roots])
    return tuple(numbers), exprs


def loads(*roots: Expr) -> list[Expr]:
    """Distinct loads in `roots`, in post-order."""
    return [x for x in postorder(roots) if x.op == "load"]
