"""nests: Reduces and the Maps around them over the same ranges become one Nest: softmax, layer norm and their kin."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, folded, index, postorder
from gpuonnx.ir.types import compute, kind
from gpuonnx.passes.inline import cost, count
from gpuonnx.passes.rewrite import Trace, change_leaves, kept, merged
from gpuonnx.passes.views import one, same_shape

if TYPE_CHECKING:
    from gpuonnx.planner.place import Placement

MOST_COST, MOST_NODES, FEW = 60, 160, 4096


@dataclass
class Member:
    """A node of a group: its value over the group's axes, and the stage that it is complete after (0: before any fold)."""

    node: g.Node
    expr: Expr
    level: int
    full: bool


@dataclass
class Group:
    ranges: tuple[Dim, ...]
    over: tuple[int, ...]
    members: dict[g.Value, Member] = field(default_factory=dict)
    folds: list[list[tuple[g.Value, g.Fold]]] = field(default_factory=list)
    inputs: list[g.Value] = field(default_factory=list)
    tainted: set[g.Value] = field(default_factory=set)

    @property
    def alone(self) -> bool:
        """Whether there is one result only: then the loops over all elements are better apart, where they have many tasks."""
        return all(one(self.ranges[a]) for a in self.kept)

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.ranges)) if a not in self.over)


def small(ranges: tuple[Dim, ...]) -> bool:
    total = count(ranges)
    return isinstance(total, int) and total <= FEW


def run(placement: Placement, trace: Trace) -> Placement:
    return Grouping(placement, trace).run()


class Grouping:
    """Greedy, in order: the first Reduce that is free opens a group, which takes in what follows over the same ranges."""

    def __init__(self, placement: Placement, trace: Trace) -> None:
        self.placement, self.graph, self.trace = placement, placement.graph, trace
        self.users, self.kept = self.graph.users(), kept(self.graph)
        self.makers = self.graph.producers()
        self.sources = {s.value for s in self.graph.symbols.values()}
        self.position = {n: k for k, n in enumerate(self.graph.nodes)}
        self.taken: dict[g.Node, g.Nest] = {}
        self.last: dict[g.Node, g.Nest] = {}

    def run(self) -> Placement:
        for node in self.graph.nodes:
            if isinstance(node, g.Reduce) and node not in self.taken and self.free(node) and not node.fold.startswith("arg"):
                self.open(node)
        nodes: list[g.Node] = []
        for node in self.graph.nodes:
            if node in self.last:
                nodes.append(self.last[node])
            elif node not in self.taken:
                nodes.append(node)
        graph = self.graph
        self.placement.graph = g.Graph(graph.inputs, graph.outputs, nodes, graph.constants, graph.symbols, graph.requirements)
        return self.placement

    def free(self, node: g.Node) -> bool:
        return node not in self.placement.interpreted and node not in self.taken and not any(v in self.sources for v in node.outputs) and not any(
            v.shape is None or kind(v.dtype) in "sc" for v in (*node.inputs, *node.outputs))

    def open(self, first: g.Reduce) -> None:
        group, side = Group(first.ranges, first.over), self.placement.side[first]
        self.backward(group, first, side)
        if not self.add(group, first):
            return
        horizon = self.position[first]
        for node in self.graph.nodes[horizon + 1:horizon + 400]:
            if any(v in group.tainted for v in node.inputs):
                group.tainted.update(node.outputs)
                continue
            if not any(v in group.members for v in node.inputs):
                if isinstance(node, g.Reduce) and self.sibling(group, node, side):
                    self.add(group, node)
                continue
            if self.free(node) and self.placement.side[node] == side and isinstance(node, (g.Map, g.Reduce)) and self.add(group, node):
                continue
            group.tainted.update(node.outputs)
        self.close(group, side)

    def sibling(self, group: Group, node: g.Reduce, side: str) -> bool:
        """Whether another fold of what the group reads may join without holding up who reads the group (max and min of one tensor)."""
        if not self.free(node) or self.placement.side[node] != side or group.alone and side != "host":
            return False
        if not set(node.inputs) & set(group.inputs):
            return False
        here, members = self.position[node], {m.node for m in group.members.values()}
        return all(u in members or self.position[u] > here for v in group.members for u in self.users.get(v, ()))

    def backward(self, group: Group, first: g.Reduce, side: str) -> None:
        """The cheap Map that the first Reduce reads at its own index joins in front."""
        for value in first.inputs:
            maker = self.makers.get(value)
            if not isinstance(maker, g.Map) or not self.free(maker) or self.placement.side[maker] != side:
                continue
            readers = self.users.get(value, [])
            if len(readers) > 1 and cost(maker.expr) <= MOST_COST // 3 and same_shape(maker.out.dims, group.ranges):
                self.add(group, maker)

    def add(self, group: Group, node: g.Node) -> bool:
        """Take a node in if its ranges and what it reads of the group fit."""
        if isinstance(node, g.Reduce):
            if not same_shape(node.ranges, group.ranges) or node.over != group.over or node.fold.startswith("arg"):
                return False
            axes: tuple[int, ...] = tuple(range(len(group.ranges)))
        else:
            assert isinstance(node, g.Map)
            found = self.axes(group, node.out.dims)
            if found is None:
                return False
            axes = found
        full = isinstance(node, g.Reduce) or same_shape(node.out.dims, group.ranges)
        if full and isinstance(node, g.Map) and group.alone and not small(group.ranges):
            return False
        expr = self.composed(group, node, axes)
        if expr is None or len(postorder((expr,))) > MOST_NODES or cost(expr) > MOST_COST:
            return False
        level = max((x.value[0] + 1 for x in postorder((expr,)) if x.op == "folded"), default=0)
        if isinstance(node, g.Map):
            if not full and any(x.op == "index" and x.value in group.over for x in postorder((expr,))):
                return False
            group.members[node.out] = Member(node, cast(expr, node.out.dtype), level, full)
            return True
        while len(group.folds) <= level:
            group.folds.append([])
        stage = group.folds[level]
        result = folded(level, len(stage), expr.dtype)
        stage.append((node.out, g.Fold(node.fold, expr)))
        kind_out = compute(node.out.dtype)
        value = result if result.dtype == kind_out else cast(result, kind_out)
        group.members[node.out] = Member(node, cast(value, node.out.dtype), level + 1, False)
        return True

    @staticmethod
    def axes(group: Group, dims: tuple[Dim, ...]) -> tuple[int, ...] | None:
        """The group's axis of each axis of a Map, or None: all of them, or the kept ones, or those with sizes of 1."""
        if same_shape(dims, group.ranges):
            return tuple(range(len(group.ranges)))
        if same_shape(dims, tuple(group.ranges[a] for a in group.kept)):
            return group.kept
        if len(dims) == len(group.ranges) and all(one(d) if a in group.over else d is group.ranges[a] or d == group.ranges[a]
                                                  for a, d in enumerate(dims)):
            return tuple(range(len(group.ranges)))
        return None

    def composed(self, group: Group, node: g.Map | g.Reduce, axes: tuple[int, ...]) -> Expr | None:
        """The node's expression over the group's axes, members written out; None where one is read elsewhere."""
        bad = False
        dims = node.ranges if isinstance(node, g.Reduce) else node.out.dims
        shrunk = {k for k, d in enumerate(dims) if one(d)}

        def leaf(e: Expr) -> Expr | None:
            nonlocal bad
            if e.op == "index":
                if e.value in shrunk and not one(group.ranges[axes[e.value]]):
                    return Expr("const", (), "ix", 0)
                return index(axes[e.value])
            if e.op != "load":
                return None
            value = node.inputs[e.value]
            member = group.members.get(value)
            if member is None:
                if value in group.tainted:
                    bad = True
                    return e
                if value not in group.inputs:
                    group.inputs.append(value)
                return Expr("load", e.args, e.dtype, group.inputs.index(value))
            if not self.here(group, value, e.args):
                bad = True
                return e
            return member.expr
        expr = change_leaves(node.expr, leaf)
        return None if bad else expr

    def here(self, group: Group, value: g.Value, args: tuple[Expr, ...]) -> bool:
        """Whether a member is read at the position that the group is at."""
        axes = self.axes(group, value.dims)
        if axes is None:
            return False
        return all(one(size) and a.op in ("const", "index") or a.op == "index" and a.value == axis
                   for a, axis, size in zip(args, axes, value.dims, strict=True))

    def close(self, group: Group, side: str) -> None:
        """Turn the group into a Nest, if it has more than one node and its order allows one place for all."""
        nodes = [m.node for m in group.members.values()]
        stored = [(v, m) for v, m in group.members.items() if v in self.kept or any(u not in nodes for u in self.users.get(v, ()))]
        if len(nodes) < 2 or not stored:
            return
        last = max(nodes, key=lambda n: self.position[n])
        first_reader = min((self.position[u] for v, _ in stored for u in self.users.get(v, ()) if u not in nodes), default=len(self.graph.nodes))
        if first_reader < self.position[last]:
            nodes = self.shortened(group, first_reader)
            group, whole = Group(group.ranges, group.over), nodes
            if len(nodes) < 2 or not all(self.add(group, n) for n in whole):
                return
            stored = [(v, m) for v, m in group.members.items() if v in self.kept or any(u not in nodes for u in self.users.get(v, ()))]
            if not stored:
                return
            last = max(nodes, key=lambda n: self.position[n])
        origins = merged(*(n.origins for n in nodes))
        if not self.trace.allow("one nest", origins, f"{len(nodes)} nodes"):
            return
        nest = self.nest(group, nodes, stored, origins)
        self.placement.side[nest], self.placement.why[nest] = side, self.placement.why[last]
        for n in nodes:
            self.taken[n] = nest
        self.last[last] = nest

    def shortened(self, group: Group, limit: int) -> list[g.Node]:
        """Only the members before `limit`, for which the nest can stand at one place."""
        while True:
            nodes = [m.node for m in group.members.values() if self.position[m.node] < limit]
            stored = [(v, m) for v, m in group.members.items() if m.node in nodes
                      and (v in self.kept or any(u not in nodes for u in self.users.get(v, ())))]
            if not nodes:
                return []
            last = max(self.position[n] for n in nodes)
            reader = min((self.position[u] for v, _ in stored for u in self.users.get(v, ()) if u not in nodes), default=len(self.graph.nodes))
            if reader > last:
                return sorted(nodes, key=lambda n: self.position[n])
            limit = min(limit - 1, reader)

    def nest(self, group: Group, nodes: list[g.Node], stored: list[tuple[g.Value, Member]], origins: tuple[str, ...]) -> g.Nest:
        stages: list[list[g.Fold | g.Store]] = [[fold for _, fold in stage] for stage in group.folds]
        stages.append([])
        present = [v for v, _ in stored]
        for value, member in stored:
            axes = self.axes(group, value.dims)
            assert axes is not None
            at = tuple(Expr("const", (), "ix", 0) if one(d) and not one(group.ranges[a]) else index(a) for a, d in zip(axes, value.dims, strict=True))
            stored_kind = compute(value.dtype)
            expr = member.expr if member.expr.dtype == stored_kind else cast(member.expr, stored_kind)
            stages[min(member.level, len(stages) - 1)].append(g.Store(present.index(value), at, expr))
        used = sorted({x.value for stage in stages for a in stage for x in postorder((a.expr,)) if x.op == "load"})
        number = {old: new for new, old in enumerate(used)}

        def renumber(e: Expr) -> Expr:
            return change_leaves(e, lambda x: Expr("load", x.args, x.dtype, number[x.value]) if x.op == "load" else None)

        def action(a: g.Fold | g.Store) -> g.Fold | g.Store:
            return g.Fold(a.op, renumber(a.expr)) if isinstance(a, g.Fold) else g.Store(a.output, a.indices, renumber(a.expr))
        final = tuple(tuple(map(action, stage)) for stage in stages)
        return g.Nest(tuple(group.inputs[k] for k in used), tuple(present), ranges=group.ranges, over=frozenset(group.over), stages=final,
                      origins=origins)
