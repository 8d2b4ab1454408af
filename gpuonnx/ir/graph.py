"""The IR: values in SSA form and the few kinds of nodes that define them.

`index(k)` in an expression is axis k of the node's ranges; `load(i, dtype, indices)` reads input i of the node, one index
for each axis of that input. Nodes are frozen; a pass builds new ones. Every node carries the names of the ONNX nodes it
comes from (`origins`).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr


class Value:
    """One tensor. `shape` is None for a sequence, optional or map, whose `dtype` then reads like `seq(f32)`."""

    __slots__ = ("dtype", "shape", "name")

    def __init__(self, dtype: str, shape: tuple[Dim, ...] | None, name: str = "") -> None:
        self.dtype, self.shape, self.name = dtype, shape, name

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The shape of a value that is known to be a tensor."""
        assert self.shape is not None, self
        return self.shape

    @property
    def rank(self) -> int:
        return len(self.dims)

    def __repr__(self) -> str:
        shape = "" if self.shape is None else "[" + ", ".join(map(str, self.shape)) + "]"
        return f"{self.name or hex(id(self))}: {self.dtype}{shape}"


@dataclass(frozen=True, eq=False)
class Node:
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    origins: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def out(self) -> Value:
        return self.outputs[0]

    def moved(self, values: Mapping[Value, Value]) -> Node:
        """The same node with inputs replaced."""
        inputs = tuple(values.get(v, v) for v in self.inputs)
        return self if inputs == self.inputs else replace(self, inputs=inputs)


@dataclass(frozen=True, eq=False)
class View(Node):
    """Nothing runs: out[i] = in[index(i)] with affine index expressions, or (index None) the same elements in
    row-major order under another shape."""

    index: tuple[Expr, ...] | None = None


@dataclass(frozen=True, eq=False)
class Map(Node):
    """out[i] = expr; the ranges are the output's shape. A float narrower than its compute type is rounded by the store."""

    expr: Expr = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Reduce(Node):
    """out = fold of expr over the axes `over` of `ranges`; the output's axes are the others, in order.

    fold: sum prod max min any all argmax argmin (first position of the extreme, int64; one axis in `over`)."""

    ranges: tuple[Dim, ...] = field(kw_only=True)
    over: tuple[int, ...] = field(kw_only=True)
    fold: str = field(kw_only=True)
    expr: Expr = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Prefix(Node):
    """out[.., k, ..] = fold of expr over positions <= k of `axis` (< k if exclusive; from the end if reverse)."""

    axis: int = field(kw_only=True)
    fold: str = field(kw_only=True)
    expr: Expr = field(kw_only=True)
    exclusive: bool = False
    reverse: bool = False


@dataclass(frozen=True, eq=False)
class Scatter(Node):
    """A copy of inputs[0] in which element index(i) becomes expr(i), for i in ranges in row-major order;
    with `combine` (add mul max min) the old element and expr(i) are combined."""

    ranges: tuple[Dim, ...] = field(kw_only=True)
    index: tuple[Expr, ...] = field(kw_only=True)
    expr: Expr = field(kw_only=True)
    combine: str | None = None


@dataclass(frozen=True, eq=False)
class Assemble(Node):
    """The inputs one after another along `axis`."""

    axis: int = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Call(Node):
    """A named kernel. The last `operands` inputs belong to the epilogue (kernels/contract.py says what it means)."""

    kernel: str = field(kw_only=True)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    epilogue: Expr | None = None
    operands: int = 0


@dataclass(frozen=True, eq=False)
class Host(Node):
    """A registered Python function (`runtime/host.py`), for sequences, optionals, maps, strings; `why` says so."""

    name: str = field(kw_only=True)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


class Body(Protocol):
    """A sub-graph of If or Loop: closed (captures are inputs) and lowered once for each variant of its inputs."""

    name: str

    @property
    def input_names(self) -> Sequence[str]: ...


@dataclass(frozen=True, eq=False)
class If(Node):
    """inputs[0] chooses a body. inputs[1:] feed them: `captures[k]` gives the positions (in inputs) of body k's inputs."""

    bodies: tuple[Body, Body] = field(kw_only=True)
    captures: tuple[tuple[int, ...], tuple[int, ...]] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Loop(Node):
    """ONNX Loop. inputs: trip count and condition (those present, see flags), `carried` values, then captures.

    body inputs: iteration number (i64 scalar), condition, carried, captures; body outputs: condition, carried, scans.
    outputs: carried, then each scan output stacked on a new first axis."""

    body: Body = field(kw_only=True)
    carried: int = field(kw_only=True)
    has_trip: bool = True
    has_condition: bool = True


@dataclass(frozen=True)
class Fold:
    """One folding action of a stage; its result is `folded(stage, action)`."""

    op: str
    expr: Expr

    @property
    def roots(self) -> tuple[Expr, ...]:
        return (self.expr,)


@dataclass(frozen=True)
class Store:
    """outputs[output][indices] = expr, for every index of the ranges (those of `over` only if indices mention them)."""

    output: int
    indices: tuple[Expr, ...]
    expr: Expr

    @property
    def roots(self) -> tuple[Expr, ...]:
        return (self.expr, *self.indices)


@dataclass(frozen=True, eq=False)
class Nest(Node):
    """Fused Maps and Reduces: one loop nest of stages, run one after another for each index of the axes not in `over`."""

    ranges: tuple[Dim, ...] = field(kw_only=True)
    over: frozenset[int] = field(kw_only=True)
    stages: tuple[tuple[Fold | Store, ...], ...] = field(kw_only=True)

    @property
    def roots(self) -> tuple[Expr, ...]:
        """The expressions of all actions, in order."""
        return tuple(e for stage in self.stages for action in stage for e in action.roots)


@dataclass(frozen=True)
class Rows:
    """What an attention does between its products: `score` of the first one's elements, then `stages` of folds along each row, then `result` in
    place of every element. load(0) is the element (to `score`, the product; None leaves it), load(k) input 2 + k of the Call."""

    score: Expr | None
    stages: tuple[tuple[Fold, ...], ...]
    result: Expr

    @property
    def expressions(self) -> tuple[Expr, ...]:
        """All but `score`, in order."""
        return (*(f.expr for stage in self.stages for f in stage), self.result)


@dataclass(frozen=True, eq=False)
class Copy(Node):
    """Moves a value between devices, or into another layout; made by the planner."""

    why: str = ""


@dataclass(frozen=True)
class Source:
    """Where a run-time symbol comes from: an `axis` of an input or Host output, or a flat `element` of an integer or
    float32 tensor."""

    value: Value
    axis: int | None = None
    element: int | None = None


@dataclass(frozen=True)
class Requirement:
    """`dim` must be >= 0 (or == 0 if `equal`) in every binding; `origin` names the ONNX node, `text` says what it means."""

    dim: Dim
    equal: bool
    origin: str
    text: str


@dataclass
class Graph:
    """Nodes in an order of execution. `constants` maps values to arrays (memory-mapped ones stay so)."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: list[Node]
    constants: dict[Value, np.ndarray] = field(default_factory=dict)
    symbols: dict[str, Source] = field(default_factory=dict)
    requirements: list[Requirement] = field(default_factory=list)

    def producers(self) -> dict[Value, Node]:
        return {out: node for node in self.nodes for out in node.outputs}

    def users(self) -> dict[Value, list[Node]]:
        """Nodes that read each value (a node that reads it twice stands twice)."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                found.setdefault(value, []).append(node)
        return found
