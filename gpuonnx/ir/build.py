"""Constructors of the IR: a `Tensor` is a value one can compute with; the nodes go to the current `Builder`.

Types and shapes are inferred here, once, and not in the operators.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.builder import Builder, NeedsRun, builder
from gpuonnx.ir.dims import Dim, Poly, Real
from gpuonnx.ir.expr import Expr, apply, cast, const, dim, index, load, substitute


@dataclass(frozen=True)
class Spec:
    """Type and shape of a value to be made."""

    dtype: str
    shape: tuple[Dim, ...] | None


class Tensor:
    """A value under construction. Arithmetic broadcasts as NumPy's; indexing helpers make Views or Maps."""

    __slots__ = ("value", "builder")

    def __init__(self, value: g.Value, owner: Builder) -> None:
        self.value, self.builder = value, owner

    dtype = property(lambda self: self.value.dtype)
    rank = property(lambda self: len(self.shape))
    kind = property(lambda self: types.kind(self.value.dtype))
    is_tensor = property(lambda self: self.value.shape is not None)

    @property
    def shape(self) -> Any:
        """Raises NeedsRun where only the run tells how many axes there are."""
        if self.value.shape is None:
            raise NeedsRun(f"{self.builder.origin}: the number of axes of {self.value.name or 'a value'}")
        return self.value.dims

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
    def __abs__(self) -> Tensor: return elementwise("abs", self)
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
        return axis % max(len(self.value.dims), 1)

    def axes(self, axes: Sequence[int] | np.ndarray | int | None) -> tuple[int, ...]:
        """Sorted non-negative axes; None is all of them."""
        if axes is None:
            return tuple(range(self.rank))
        found = [self.axis(int(a)) for a in np.atleast_1d(np.asarray(axes, np.int64))]
        if len(set(found)) != len(found):
            raise ShapeError(f"{self.builder.origin}: axes {np.ravel(axes).tolist()} repeat")
        return tuple(sorted(found))

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
        if not -self.rank <= axis <= self.rank:
            raise ShapeError(f"{self.builder.origin}: axis {axis} splits no tensor of rank {self.rank}")
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
        if any(not -rank <= a < rank for a in axes):
            raise ShapeError(f"{self.builder.origin}: axes {list(axes)} of a result of rank {rank}")
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

    def kept_to(self, shape: Sequence[Dim]) -> Tensor:
        """Itself; where an operand stretched what must keep `shape`, an error."""
        if self.rank != len(shape):
            raise ShapeError(f"{self.builder.origin}: {list(self.shape)} has more axes than {list(shape)}")
        for got, wanted in zip(self.shape, shape, strict=True):
            self.builder.meet(got, wanted)
        return self

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
        wide = types.compute(self.dtype)
        return (self.fold("sum", axes, keepdims, wide) / size_scalar(count, wide)).cast(self.dtype)

    def wide(self) -> Tensor:
        """In the type that expressions compute in: float32 for narrower floats."""
        return self.cast(types.compute(self.dtype))


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


def call(name: str, /, *inputs: Tensor | None, out: Spec | Sequence[Spec], **attrs: Any) -> Any:
    """A named kernel; inputs that are None are left out and listed in attrs["absent"]. A list of Specs gives a tuple."""
    owner = builder()
    specs = [out] if isinstance(out, Spec) else list(out)
    outs = tuple(g.Value(s.dtype, s.shape) for s in specs)
    absent = tuple(i for i, t in enumerate(inputs) if t is None)
    values = tuple(t.value for t in inputs if t is not None)
    owner.add(g.Call(values, outs, kernel=name, attrs=attrs | ({"absent": absent} if absent else {}), origins=owner.origins))
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


def pointwise(f: Callable[..., Expr], *operands: Tensor, dtype: str | None = None) -> Tensor:
    """f on the elements of broadcast tensors, each in its compute type, as one Map; `dtype` is the last one's by default."""
    shape = builder().broadcast(*(t.shape for t in operands))
    return tensor_map(shape, dtype or operands[-1].dtype, lambda *_: f(*(broadcast_at(t, shape) for t in operands)))


def broadcast_at(t: Tensor, shape: Sequence[Dim]) -> Expr:
    """The element of `t` that the current index of a Map over `shape` broadcasts from."""
    lead = len(shape) - t.rank
    return t.at(*(t.builder.along(s, shape[lead + a], lead + a) for a, s in enumerate(t.shape)))


def from_end(place: Expr, size: Dim) -> Expr:
    """An index from data: a negative one counts from the end, once."""
    at = cast(place, "ix")
    return apply("where", apply("less", at, 0), at + dim(size), at)


def positions(condition: Tensor) -> Tensor:
    """Where a bool vector is true, ascending, as i64; how many is known during the run (before it for a constant)."""
    owner = builder()
    if condition.value in owner.constants:
        return constant(np.flatnonzero(owner.constants[condition.value]), "i64")
    flags = condition.cast("i64")
    count = owner.read(flags.sum()).item()
    before = tensor_prefix(flags, 0, exclusive=True)

    def place(i: Expr) -> Sequence[Expr]:
        return [apply("where", condition.at(i), cast(before.at(i), "ix"), dim(count))]
    return tensor_scatter(full([count + 1], 0, "i64"), condition.shape, place, lambda i: cast(i, "i64")).slice(0, 0, count)


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
           "builder", "call", "cast", "concat", "const", "constant", "dim", "elementwise", "from_end", "full", "host", "index",
           "load", "make", "pointwise", "positions", "product", "size_scalar", "sizes", "tensor_map", "tensor_prefix",
           "tensor_reduce", "tensor_scatter", "where"]
