"""The graph under construction: nodes, symbols, and the questions that lowering has asked.

What lowering must know of a run-time value is asked of the builder: `ask` answers from the binding the variant is made
for and remembers the answer as part of its key.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir import elements as carried
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.dims import Dim, Space
from gpuonnx.ir.expr import Expr, dim, index
from gpuonnx.ir.sizes import evaluate

if TYPE_CHECKING:
    from gpuonnx.ir.build import Tensor

_current: ContextVar[Builder] = ContextVar("builder")


class NeedsRun(Exception):
    """Lowering asked for something that is only known once `value` has been computed."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


@dataclass
class Builder:
    """The graph under construction, its symbols, and the questions asked so far; `held`: what sequences and optionals are known to hold,
    `element_ranks`: the rank of a sequence's elements where all have the same; `repeats`: results of a size that the data decide, with the nodes
    that make them, by kind and question."""

    space: Space = field(default_factory=Space)
    binding: dict[str, int | float] = field(default_factory=dict)
    nodes: list[g.Node] = field(default_factory=list)
    constants: dict[g.Value, np.ndarray] = field(default_factory=dict)
    symbols: dict[str, g.Source] = field(default_factory=dict)
    predicates: dict[Any, int | float] = field(default_factory=dict)
    requirements: dict[Any, g.Requirement] = field(default_factory=dict)
    producers: dict[g.Value, g.Node] = field(default_factory=dict)
    known_elements: dict[g.Value, Any] = field(default_factory=dict)
    input_elements: dict[g.Value, np.ndarray] = field(default_factory=dict)
    held: dict[g.Value, list[Tensor | None]] = field(default_factory=dict)
    element_ranks: dict[g.Value, int] = field(default_factory=dict)
    repeats: dict[Any, dict[Any, tuple[slice, list[g.Node], Any]]] = field(default_factory=dict)
    origin: str = ""

    @contextmanager
    def active(self) -> Iterator[Builder]:
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    # values and nodes
    def add(self, node: g.Node) -> None:
        self.nodes.append(node)
        for out in node.outputs:
            self.producers[out] = node
            for size in out.shape or ():
                self.require(size, "a size is never negative")

    def constant(self, array: np.ndarray, name: str = "") -> Tensor:
        from gpuonnx.ir.build import Tensor
        value = g.Value(types.of_numpy(array.dtype), tuple(int(s) for s in array.shape), name)
        self.constants[value] = array
        return Tensor(value, self)

    def repeated(self, kind: Any, question: Any) -> Any:
        """What `remember` was told for this question, its nodes now of this origin too; None where it was told nothing."""
        told = self.repeats.get(kind, {}).get(question)
        if question is None or told is None or self.nodes[told[0]] != told[1]:
            return None
        where, nodes, results = told
        nodes = [replace(n, origins=tuple(dict.fromkeys((*n.origins, *self.origins)))) for n in nodes]
        self.nodes[where] = nodes
        self.producers.update((out, n) for n in nodes for out in n.outputs)
        self.repeats[kind][question] = where, nodes, results
        return results

    def remember(self, kind: Any, question: Any, start: int, results: Any) -> None:
        """The nodes from number `start` on give these results to that question."""
        where = slice(start, len(self.nodes))
        self.repeats.setdefault(kind, {})[question] = where, self.nodes[where], results

    @property
    def origins(self) -> tuple[str, ...]:
        return (self.origin,) if self.origin else ()

    # symbols and questions
    def symbol(self, name: str, source: g.Source, lo: float = 0) -> Dim:
        self.symbols.setdefault(name, source)
        made: Dim = self.space.sym(name, lo)
        return made

    def ask(self, question: Any) -> Any:
        """The value of a Dim (or Real) in this variant; it becomes part of the variant's key.

        Raises NeedsRun where it hangs on a value that is only computed during the run."""
        if d.known(question):
            return question
        if not d.symbols(question) <= self.binding.keys():
            raise NeedsRun(f"{self.origin}: {question}")
        if question not in self.predicates:
            self.predicates[question] = evaluate([question], self.binding)[0]
        return self.predicates[question]

    def answerable(self, question: Any) -> bool:
        return d.symbols(question) <= self.binding.keys()

    def require(self, size: Dim, text: str, equal: bool = False) -> None:
        """`size` >= 0 (or == 0) in every binding; a number that breaks it is an error now."""
        if isinstance(size, int):
            if size < 0 or equal and size:
                raise ShapeError(f"{self.origin}: {text}, here {size}")
        elif equal or size.lo < 0:
            self.requirements.setdefault((size, equal), g.Requirement(size, equal, self.origin, text))
            if not equal:
                d.assume_not_negative(size)

    def meet(self, a: Dim, b: Dim) -> Dim:
        """The common size of two that must agree (1 does not stretch)."""
        if a is b or a == b:
            return a
        self.require(a - b, f"sizes {a} and {b} must agree", equal=True)
        return min(a, b, key=lambda x: (not d.known(x), len(str(x))))

    def broadcast(self, *shapes: Sequence[Dim]) -> tuple[Dim, ...]:
        rank = max(map(len, shapes), default=0)
        padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
        return tuple(reduce(self._stretch, column) for column in zip(*padded, strict=True))

    def _stretch(self, a: Dim, b: Dim) -> Dim:
        if a is b or a == b:
            return a
        for one, other in ((a, b), (b, a)):
            if one == 1 and isinstance(one, int):
                return other
        if isinstance(a, int) and isinstance(b, int):
            raise ShapeError(f"{self.origin}: sizes {a} and {b} do not broadcast")
        if not (self.answerable(a) and self.answerable(b)):
            wider: Dim = d.bcast(a, b)
            return wider
        if self.ask(d.eq(a, b)):
            return min(a, b, key=lambda x: (not d.known(x), len(str(x))))
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, int) and self.ask(d.eq(one, 1)):
                return other
        raise ShapeError(f"{self.origin}: sizes {a} and {b} do not broadcast in {self.binding}")

    def along(self, size: Dim, wanted: Dim, axis: int) -> Expr:
        """The index into an axis of `size` that is broadcast to `wanted`."""
        if size is wanted or size == wanted:
            return index(axis)
        if isinstance(size, int) and size == 1:
            return dim(0)
        if d.eq(size, 1) in self.predicates and self.predicates[d.eq(size, 1)]:
            return dim(0)
        if self.predicates.get(d.eq(size, wanted)) or isinstance(size, int):
            return index(axis)
        if self.answerable(size):
            return dim(0) if self.ask(d.eq(size, 1)) else index(axis)
        return index(axis) * dim(1 - d.eq(size, 1))

    # small values
    def elements(self, value: g.Value) -> np.ndarray | None:
        """The elements of a small integer (or float32) value as an object array of Dims (Reals), or None."""
        return carried.elements(self, value)

    def read(self, t: Tensor, limit: int = 64) -> np.ndarray:
        """As `elements`, but a value only known during the run becomes one symbol an element."""
        found = self.elements(t.value)
        if found is not None:
            return found
        shape = tuple(int(self.ask(s)) for s in t.shape)
        count = int(np.prod(shape, dtype=np.int64))
        if types.kind(t.dtype) not in "iubf" or count > limit:
            raise ModelError(f"{self.origin}: {count} elements of {t.dtype} are needed before the run; at most {limit} can be")
        return self.name_elements(t.value, shape)

    def name_elements(self, value: g.Value, shape: tuple[int, ...]) -> np.ndarray:
        """One symbol an element; those of inputs are bound already."""
        count = int(np.prod(shape, dtype=np.int64))
        given = self.input_elements.get(value)
        out = np.empty(count, object)
        label = value.name or f"v{len(self.producers)}"
        while count and (taken := self.symbols.get(f"{label}[0]")) is not None and taken.value is not value:
            label += "'"
        for i in range(count):
            name = f"{label}[{i}]"
            self.symbols.setdefault(name, g.Source(value, element=i))
            real = types.kind(value.dtype) == "f"
            out[i] = self.space.real(name) if real else self.space.sym(name, 0 if types.kind(value.dtype) in "ub" else -d.INF)
            if given is not None:
                self.binding[name] = float(given.ravel()[i]) if real else int(given.ravel()[i])
        self.known_elements[value] = out = out.reshape(shape)
        return out

    def numbers(self, t: Tensor) -> np.ndarray:
        """The value of a Const parameter: from a constant, or asked element by element."""
        if t.value in self.constants:
            return self.constants[t.value]
        asked = [self.ask(x) for x in self.read(t).ravel()]
        return np.array(asked, types.numpy_dtype(t.dtype)).reshape([int(self.ask(s)) for s in t.shape])

    def finish(self, inputs: Sequence[g.Value], outputs: Sequence[g.Value]) -> g.Graph:
        needed = {d_.value for d_ in self.symbols.values()} | set(outputs) | {v for n in self.nodes for v in n.inputs}
        constants = {v: a for v, a in self.constants.items() if v in needed}
        return g.Graph(tuple(inputs), tuple(outputs), self.nodes, constants, self.symbols, self._kept_requirements())

    def _kept_requirements(self) -> list[g.Requirement]:
        """Those that do not follow from the others: of the ones about a single atom, the strictest."""
        strictest: dict[d.Atom, tuple[int, g.Requirement]] = {}
        for r in self.requirements.values():
            bound = None if r.equal else d.least_atom(r.dim)
            if bound is not None and (bound[0] not in strictest or strictest[bound[0]][0] < bound[1]):
                strictest[bound[0]] = (bound[1], r)
        chosen = {id(r) for _, r in strictest.values()}
        return [r for r in self.requirements.values() if r.equal or id(r) in chosen or d.interval(r.dim)[0] < 0]


def builder() -> Builder:
    return _current.get()
