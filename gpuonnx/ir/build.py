"""Constructors of the IR: a `Builder` collects nodes, a `Tensor` is a value one can compute with.

Types and shapes are inferred here, once, and not in the operators. What lowering must know of a run-time value is asked
of the builder: `ask` answers from the binding the variant is made for and remembers the answer as part of its key.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir import elements as carried
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.dims import Dim, Poly, Real, Space
from gpuonnx.ir.expr import Expr, apply, cast, const, dim, index, load, substitute
from gpuonnx.ir.sizes import evaluate

_current: ContextVar[Builder] = ContextVar("builder")


class NeedsRun(Exception):
    """Lowering asked for something that is only known once `value` has been computed."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


@dataclass(frozen=True)
class Spec:
    """Type and shape of a value to be made."""

    dtype: str
    shape: tuple[Dim, ...] | None


@dataclass
class Builder:
    """The graph under construction, its symbols, and the questions asked so far."""

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
        value = g.Value(types.of_numpy(array.dtype), tuple(int(s) for s in array.shape), name)
        self.constants[value] = array
        return Tensor(value, self)

    @property
    def origins(self) -> tuple[str, ...]:
        return (self.origin,) if self.origin else ()

    # symbols and questions
    def symbol(self, name: str, source: g.Source, lo: float = 0) -> Dim:
        self.symbols.setdefault(name, source)
        return self.space.sym(name, lo)

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
            return d.bcast(a, b)
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
        for i in range(count):
            name = f"{value.name or 'v%d' % len(self.producers)}[{i}]"
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
        kept = [r for r in self.requirements.values() if r.equal or d.interval(r.dim)[0] < 0]
        return g.Graph(tuple(inputs), tuple(outputs), self.nodes, constants, self.symbols, kept)


def builder() -> Builder:
    return _current.get()


class Tensor:
    """A value under construction. Arithmetic broadcasts as NumPy's; indexing helpers make Views or Maps."""

    __slots__ = ("value", "builder")

    def __init__(self, value: g.Value, owner: Builder) -> None:
        self.value, self.builder = value, owner

    dtype = property(lambda self: self.value.dtype)
    shape: Any = property(lambda self: self.value.dims)
    rank = property(lambda self: len(self.value.dims))
    kind = property(lambda self: types.kind(self.value.dtype))
    is_tensor = property(lambda self: self.value.shape is not None)

    def __repr__(self) -> str:
        return f"Tensor({self.value})"

    def __add__(self, o: Operand) -> Tensor: return elementwise("add", self, o)
    def __radd__(self, o: Operand) -> Tensor: return elementwise("add", o, self)
    def __sub__(self, o: Operand) -> Tensor: return elementwise("sub", self, o)
    def __rsub__(self, o: Operand) -> Tensor: return elementwise("sub", o, self)
    def __mul__(self, o: Operand) -> Tensor: return elementwise("mul", self, o)
    def __rmul__(self, o: Operand) -> Tensor: return elementwise("mul", o, self)
    def __truediv__(self, o: Operand) -> Tensor: return elementwise("div", self, o)
    def __rtruediv__(self, o: Operand) -> Tensor: return elementwise("div", o, self)
    def __floordiv__(self, o: Operand) -> Tensor: return elementwise("floordiv", self, o)
    def __mod__(self, o: Operand) -> Tensor: return elementwise("floormod", self, o)
    def __pow__(self, o: Operand) -> Tensor: return elementwise("pow", self, o)
    def __neg__(self) -> Tensor: return elementwise("neg", self)
    def __lt__(self, o: Operand) -> Tensor: return elementwise("less", self, o)
    def __le__(self, o: Operand) -> Tensor: return elementwise("less_equal", self, o)
    def __gt__(self, o: Operand) -> Tensor: return elementwise("greater", self, o)
    def __ge__(self, o: Operand) -> Tensor: return elementwise("greater_equal", self, o)
    def __and__(self, o: Operand) -> Tensor: return elementwise("and" if self.dtype == "bool" else "bit_and", self, o)
    def __or__(self, o: Operand) -> Tensor: return elementwise("or" if self.dtype == "bool" else "bit_or", self, o)
    def __invert__(self) -> Tensor: return elementwise("not" if self.dtype == "bool" else "bit_not", self)

    def at(self, *indices: Expr | int) -> Expr:
        """An element, for the functions given to `tensor_map` and friends; indices count from 0, none is negative."""
        if len(indices) != self.rank:
            raise ModelError(f"{self.builder.origin}: {len(indices)} indices into rank {self.rank}")
        return _load(self.value, indices)

    def like(self, *shape: Dim) -> Spec:
        return Spec(self.dtype, tuple(shape))

    def axis(self, axis: int) -> int:
        """A possibly negative axis, checked."""
        if not -self.rank <= axis < max(self.rank, 1):
            raise ShapeError(f"{self.builder.origin}: axis {axis} of a tensor of rank {self.rank}")
        return axis % max(self.rank, 1)

    def axes(self, axes: Sequence[int] | np.ndarray | int | None) -> tuple[int, ...]:
        """Sorted non-negative axes; None is all of them."""
        if axes is None:
            return tuple(range(self.rank))
        return tuple(sorted({self.axis(int(a)) for a in np.atleast_1d(np.asarray(axes, np.int64))}))

    # types
    def cast(self, dtype: str) -> Tensor:
        """Convert; floats to integers saturate at run time of the kernel's own rule, narrow floats round to nearest even."""
        if dtype == self.dtype:
            return self
        return tensor_map(self.shape, dtype, lambda *i: cast(self.at(*i), dtype))

    # views
    def view(self, shape: Sequence[Dim], at: Callable[..., Sequence[Expr | int]]) -> Tensor:
        """out[i] = self[at(i)], affine indices: nothing runs."""
        expressions = tuple(e if isinstance(e, Expr) else dim(e) for e in at(*map(index, range(len(shape)))))
        return make(lambda out: g.View((self.value,), (out,), expressions, origins=self.builder.origins), self.like(*shape))

    def reshape(self, *shape: Dim) -> Tensor:
        """The same elements in row-major order; the number of elements is checked at binding."""
        flat = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else tuple(shape)
        if flat == self.shape:
            return self
        here, there = product(self.shape), product(flat)
        if not (here is there or here == there):
            self.builder.require(here - there, f"a reshape of {here} elements to {there}", equal=True)
        return make(lambda out: g.View((self.value,), (out,), None, origins=self.builder.origins), self.like(*flat))

    def flatten(self, axis: int = 1) -> Tensor:
        """A matrix split at `axis`; a negative axis counts from the rank."""
        axis = axis + self.rank if axis < 0 else axis
        return self.reshape(product(self.shape[:axis]), product(self.shape[axis:]))

    def transpose(self, permutation: Sequence[int]) -> Tensor:
        p = [self.axis(a) for a in permutation]
        if sorted(p) != list(range(self.rank)):
            raise ShapeError(f"{self.builder.origin}: {list(permutation)} does not permute {self.rank} axes")
        if p == list(range(self.rank)):
            return self
        return self.view([self.shape[a] for a in p], lambda *i: [i[p.index(a)] for a in range(self.rank)])

    def squeeze(self, axes: Sequence[int]) -> Tensor:
        gone = set(self.axes(list(axes)))
        for a in gone:
            self.builder.meet(self.shape[a], 1)
        kept = [a for a in range(self.rank) if a not in gone]
        return self.view([self.shape[a] for a in kept], lambda *i: [0 if a in gone else i[kept.index(a)] for a in range(self.rank)])

    def unsqueeze(self, axes: Sequence[int]) -> Tensor:
        rank = self.rank + len(axes)
        new = {int(a) % rank for a in axes}
        if len(new) != len(axes):
            raise ShapeError(f"{self.builder.origin}: axes {list(axes)} repeat")
        old = [a for a in range(rank) if a not in new]
        shape = [1 if a in new else self.shape[old.index(a)] for a in range(rank)]
        return self.view(shape, lambda *i: [i[a] for a in old])

    def expand(self, shape: Sequence[Dim]) -> Tensor:
        """Broadcast with `shape`, as ONNX Expand: a 1 on either side stretches."""
        wanted = self.builder.broadcast(self.shape, shape)
        if wanted == self.shape:
            return self
        lead = len(wanted) - self.rank
        return self.view(wanted, lambda *i: [self.builder.along(s, wanted[lead + a], lead + a) for a, s in enumerate(self.shape)])

    def slice(self, axis: int, start: Dim, size: Dim, step: int = 1) -> Tensor:
        """`size` elements of `axis` from `start` (non-negative, in range) by `step` (any sign)."""
        axis = self.axis(axis)
        shape = [size if a == axis else s for a, s in enumerate(self.shape)]
        if shape == list(self.shape) and step == 1:
            return self
        return self.view(shape, lambda *i: [i[a] * dim(step) + dim(start) if a == axis else i[a] for a in range(self.rank)])

    # reductions
    def fold(self, name: str, axes: Sequence[int] | int | None = None, keepdims: bool = False, dtype: str | None = None) -> Tensor:
        """Fold axes (None: all). argmax and argmin give int64."""
        over = self.axes(axes)
        out = tensor_reduce(self.shape, over, name, dtype or ("i64" if name.startswith("arg") else self.dtype), lambda *i: self.at(*i))
        return out.unsqueeze(over) if keepdims and over else out

    def sum(self, axes: Any = None, keepdims: bool = False) -> Tensor: return self.fold("sum", axes, keepdims)
    def max(self, axes: Any = None, keepdims: bool = False) -> Tensor: return self.fold("max", axes, keepdims)
    def min(self, axes: Any = None, keepdims: bool = False) -> Tensor: return self.fold("min", axes, keepdims)
    def prod(self, axes: Any = None, keepdims: bool = False) -> Tensor: return self.fold("prod", axes, keepdims)

    def mean(self, axes: Any = None, keepdims: bool = False) -> Tensor:
        """sum / count in the compute type; integers divide towards zero."""
        count = product([self.shape[a] for a in self.axes(axes)])
        return self.sum(axes, keepdims) / size_scalar(count, self.dtype)


Operand = Tensor | int | float | bool


def _load(value: g.Value, indices: Sequence[Expr | int]) -> Expr:
    return Expr("load", tuple(i if isinstance(i, Expr) else dim(i) for i in indices), types.compute(value.dtype), value)


def product(sizes: Sequence[Dim]) -> Dim:
    return reduce(lambda a, b: a * b, sizes, 1)


def make(node: Callable[[g.Value], g.Node], spec: Spec) -> Tensor:
    """Add a node with one output."""
    owner = builder()
    out = g.Value(spec.dtype, spec.shape)
    owner.add(node(out))
    return Tensor(out, owner)


def tensor_map(shape: Sequence[Dim], dtype: str, expression: Callable[..., Expr]) -> Tensor:
    """out[i] = expression(i...), elements read by `Tensor.at`."""
    exprs = [expression(*map(index, range(len(shape))))]
    inputs, (expr,) = _number(exprs)
    return make(lambda out: g.Map(inputs, (out,), expr=expr, origins=builder().origins), Spec(dtype, tuple(shape)))


def _number(roots: Sequence[Expr]) -> tuple[tuple[g.Value, ...], list[Expr]]:
    """Loads name values while an expression is written; in a node they name inputs by number."""
    inputs: dict[g.Value, int] = {}

    def leaf(e: Expr) -> Expr | None:
        if e.op != "load" or not isinstance(e.value, g.Value):
            return None
        return Expr("load", e.args, e.dtype, inputs.setdefault(e.value, len(inputs)))

    done = [substitute(r, leaf) for r in roots]
    return tuple(inputs), done


def tensor_reduce(ranges: Sequence[Dim], over: Sequence[int], fold: str, dtype: str, expression: Callable[..., Expr]) -> Tensor:
    """Fold expression(i...) over the axes `over` of `ranges`; the other axes remain, in order."""
    inputs, (expr,) = _number([expression(*map(index, range(len(ranges))))])
    shape = tuple(s for a, s in enumerate(ranges) if a not in set(over))
    if not over:
        return tensor_map(ranges, dtype, lambda *i: const(0, "i64") if fold.startswith("arg") else expression(*i))
    return make(lambda out: g.Reduce(inputs, (out,), ranges=tuple(ranges), over=tuple(sorted(over)), fold=fold, expr=expr,
                                     origins=builder().origins), Spec(dtype, shape))


def tensor_prefix(x: Tensor, axis: int, fold: str = "add", exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Fold of the elements up to each position of `axis` (add mul max min)."""
    inputs, (expr,) = _number([x.at(*map(index, range(x.rank)))])
    return make(lambda out: g.Prefix(inputs, (out,), axis=x.axis(axis), fold=fold, expr=expr, exclusive=exclusive, reverse=reverse,
                                     origins=builder().origins), x.like(*x.shape))


def tensor_scatter(into: Tensor, ranges: Sequence[Dim], at: Callable[..., Sequence[Expr]], expression: Callable[..., Expr],
                   combine: str | None = None) -> Tensor:
    """A copy of `into` where element at(i...) becomes expression(i...), or is combined with it (add mul max min)."""
    axes = tuple(map(index, range(len(ranges))))
    places = tuple(e if isinstance(e, Expr) else dim(e) for e in at(*axes))
    seed = _load(into.value, [0] * into.rank)
    inputs, (_, expr, *where) = _number([seed, expression(*axes), *places])
    return make(lambda out: g.Scatter(inputs, (out,), ranges=tuple(ranges), index=tuple(where), expr=expr, combine=combine,
                                      origins=builder().origins), into.like(*into.shape))


def concat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """One after another along `axis`; the other sizes must agree."""
    first, owner = tensors[0], builder()
    axis = first.axis(axis)
    if len(tensors) == 1:
        return first
    if any(t.rank != first.rank for t in tensors):
        raise ShapeError(f"{owner.origin}: ranks {[t.rank for t in tensors]} cannot be joined")
    shape = [reduce(owner.meet, [t.shape[a] for t in tensors]) for a in range(first.rank) if a != axis]
    shape.insert(axis, reduce(lambda a, b: a + b, [t.shape[axis] for t in tensors]))
    return make(lambda out: g.Assemble(tuple(t.value for t in tensors), (out,), axis=axis, origins=owner.origins), first.like(*shape))


def call(kernel: str, *inputs: Tensor | None, out: Spec | Sequence[Spec], **attrs: Any) -> Any:
    """A named kernel; inputs that are None are left out and listed in attrs["absent"]. A list of Specs gives a tuple."""
    owner = builder()
    specs = [out] if isinstance(out, Spec) else list(out)
    outs = tuple(g.Value(s.dtype, s.shape) for s in specs)
    absent = tuple(i for i, t in enumerate(inputs) if t is None)
    values = tuple(t.value for t in inputs if t is not None)
    owner.add(g.Call(values, outs, kernel=kernel, attrs=attrs | ({"absent": absent} if absent else {}), origins=owner.origins))
    made = tuple(Tensor(o, owner) for o in outs)
    return made[0] if isinstance(out, Spec) else made


def host(name: str, *inputs: Tensor | None, out: Spec | Sequence[Spec], why: str, **attrs: Any) -> Any:
    """A registered Python function (`@host_function(name)`); a dimension given as None in a Spec is known after it ran."""
    owner = builder()
    specs = [out] if isinstance(out, Spec) else list(out)
    outs = tuple(g.Value(s.dtype, None, f"{name}.{len(owner.producers)}.{k}") for k, s in enumerate(specs))
    for value, spec in zip(outs, specs, strict=True):
        if spec.shape is not None:
            value.shape = tuple(owner.symbol(f"{value.name}.{a}", g.Source(value, axis=a)) if s is None else s
                                for a, s in enumerate(spec.shape))
    absent = tuple(i for i, t in enumerate(inputs) if t is None)
    values = tuple(t.value for t in inputs if t is not None)
    owner.add(g.Host(values, outs, name=name, attrs=attrs | ({"absent": absent} if absent else {}), why=why, origins=owner.origins))
    made = tuple(Tensor(o, owner) for o in outs)
    return made[0] if isinstance(out, Spec) else made


def elementwise(name: str, *operands: Operand, dtype: str | None = None) -> Tensor:
    """A scalar function of broadcast tensors; Python numbers take the type of the tensors. Result type from the table."""
    from gpuonnx.ir.scalar import SCALARS
    tensors = [o for o in operands if isinstance(o, Tensor)]
    stored = next(t.dtype for t in tensors[::-1])
    shape = builder().broadcast(*(t.shape for t in tensors))

    def one(o: Operand) -> Expr:
        if not isinstance(o, Tensor):
            return const(o, types.compute(stored))
        return broadcast_at(o, shape)

    result = dtype or SCALARS[name].dtype or stored
    return tensor_map(shape, result, lambda *_: apply(name, *map(one, operands)))


def broadcast_at(t: Tensor, shape: Sequence[Dim]) -> Expr:
    """The element of `t` that the current index of a Map over `shape` broadcasts from."""
    lead = len(shape) - t.rank
    return t.at(*(t.builder.along(s, shape[lead + a], lead + a) for a, s in enumerate(t.shape)))


def where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """Broadcast select; a and b have one type."""
    return elementwise("where", condition, a, b)


def constant(array: Any, dtype: str | None = None) -> Tensor:
    """A constant from an array or number."""
    return builder().constant(np.asarray(array, types.numpy_dtype(dtype) if dtype else None))


def full(shape: Sequence[Dim], value: bool | int | float, dtype: str) -> Tensor:
    """A tensor of one value."""
    return tensor_map(shape, dtype, lambda *_: const(value, types.compute(dtype)))


def size_scalar(size: Dim, dtype: str = "i64") -> Tensor:
    """A Dim as a scalar tensor."""
    return tensor_map((), dtype, lambda: cast(dim(size), types.compute(dtype)))


def sizes(values: Sequence[Dim], dtype: str = "i64") -> Tensor:
    """Dims as a 1-D tensor."""
    if d.known(*values):
        return constant(np.array(list(values), types.numpy_dtype(dtype)))
    return concat([size_scalar(v, dtype).unsqueeze([0]) for v in values], 0)


__all__ = ["Builder", "Dim", "Expr", "Mapping", "NeedsRun", "Operand", "Poly", "Real", "Spec", "Tensor", "apply", "broadcast_at",
           "builder", "call", "cast", "concat", "const", "constant", "dim", "elementwise", "full", "host", "index", "load", "make",
           "product", "size_scalar", "sizes", "tensor_map", "tensor_prefix", "tensor_reduce", "tensor_scatter", "where"]
