"""Values on demand: the elements of small integer and float32 tensors as expressions over symbols.

Nothing is carried along while lowering. When somebody asks, the question is pulled back through the nodes: a Map is
evaluated element by element with the `dim` column of the scalar table, Views, Assembles and small Reduces likewise.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.expr import Expr, postorder

if TYPE_CHECKING:
    from gpuonnx.ir.build import Builder

LIMIT = 64


class NotCarried(Exception):
    """No Dim stands for this element."""


def elements(owner: Builder, value: g.Value) -> np.ndarray | None:
    """An object array of Dims (truth values as 0 and 1, float32 as Reals) in the value's shape, or None."""
    stack = [value]
    known = owner.known_elements
    while stack:
        top = stack[-1]
        if top in known:
            stack.pop()
            continue
        node = owner.producers.get(top)
        waiting = [v for v in (node.inputs if node and small(top) else ()) if v not in known]
        if waiting and isinstance(node, (g.View, g.Map, g.Assemble, g.Reduce)):
            stack.extend(waiting)
            continue
        known[top] = _compute(owner, top, node)
        stack.pop()
    found: np.ndarray | None = known[value]
    return found


def small(value: g.Value) -> bool:
    """Whether elements may be carried: a known, small shape and a type that Dims can stand for."""
    if value.shape is None or not d.known(*value.shape):
        return False
    return (types.kind(value.dtype) in "iub" or value.dtype == "f32") and int(np.prod(np.array(value.shape, np.int64))) <= LIMIT


def _compute(owner: Builder, value: g.Value, node: g.Node | None) -> np.ndarray | None:
    if value in owner.constants:
        return from_array(owner.constants[value]) if small(value) else None
    if value in owner.input_elements and small(value):
        return owner.name_elements(value, tuple(s for s in value.dims if isinstance(s, int)))
    if node is None or not small(value):
        return None
    try:
        match node:
            case g.View(): return _view(owner, node)
            case g.Map(): return _map(owner, node)
            case g.Assemble(): return _assemble(owner, node)
            case g.Reduce(): return _reduce(owner, node)
    except (NotCarried, ZeroDivisionError, OverflowError, TypeError, ValueError):
        return None
    return None


def from_array(array: np.ndarray) -> np.ndarray:
    out = np.empty(array.shape, object)
    out[...] = array.astype(float if array.dtype.kind == "f" else int).astype(object)
    return out


def _filled(shape: tuple[int, ...], at: Callable[[tuple[int, ...]], Any]) -> np.ndarray:
    out = np.empty(shape, object)
    for position in itertools.product(*map(range, shape)):
        out[position] = at(position)
    return out


def _input(owner: Builder, value: g.Value) -> np.ndarray:
    found = owner.known_elements.get(value)
    if found is None:
        if value in owner.constants and value.dtype in ("i64", "i32", "bool", "f32") and owner.constants[value].size <= 4096:
            return from_array(owner.constants[value])
        raise NotCarried
    there: np.ndarray = found
    return there


def _view(owner: Builder, node: g.View) -> np.ndarray:
    source = _input(owner, node.inputs[0])
    shape: Any = node.out.shape
    index = node.index
    if index is None:
        return source.reshape(shape)
    return _filled(shape, lambda at: source[tuple(_number(evaluate(e, at, [])) for e in index)])


def _map(owner: Builder, node: g.Map) -> np.ndarray:
    sources = _Lazy(owner, node)
    shape: Any = node.out.shape
    return _filled(shape, lambda at: evaluate(node.expr, at, sources))


class _Lazy:
    """Inputs fetched when a load needs them: an unknown input of an untaken select does no harm."""

    def __init__(self, owner: Builder, node: g.Node) -> None:
        self.owner, self.node = owner, node

    def __getitem__(self, number: int) -> np.ndarray:
        return _input(self.owner, self.node.inputs[number])


def _assemble(owner: Builder, node: g.Assemble) -> np.ndarray:
    return np.concatenate([_input(owner, v) for v in node.inputs], axis=node.axis)


def _reduce(owner: Builder, node: g.Reduce) -> np.ndarray:
    if not d.known(*node.ranges):
        raise NotCarried
    ranges = tuple(int(str(r)) for r in node.ranges)
    if math.prod(ranges) > LIMIT:
        raise NotCarried
    sources = _Lazy(owner, node)
    full = _filled(ranges, lambda at: evaluate(node.expr, at, sources))
    pair = {"sum": lambda a, b: a + b, "prod": lambda a, b: a * b, "max": d.dmax, "min": d.dmin,
            "any": lambda a, b: a + b - a * b, "all": lambda a, b: a * b}.get(node.fold)
    if pair is None or full.size == 0:
        raise NotCarried
    for axis in sorted(node.over, reverse=True):
        full = np.asarray(np.frompyfunc(_only_dims(pair), 2, 1).reduce(full, axis=axis), object)
    return full


def _only_dims(f: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any) -> Any:
        if any(isinstance(a, (d.Real, float)) for a in args):
            raise NotCarried
        return f(*args)
    return checked


def _number(x: Any) -> int:
    if not isinstance(x, int):
        raise NotCarried
    return x


def evaluate(e: Expr, at: tuple[int, ...], sources: Any) -> Any:
    """One element as a Dim or Real; raises NotCarried where none stands for it."""
    from gpuonnx.ir.scalar import SCALARS
    done: dict[Expr, Any] = {}
    for x in postorder((e,)):
        try:
            done[x] = _one(x, [done[a] for a in x.args], at, sources, SCALARS)
        except NotCarried:
            done[x] = NotCarried
    if done[e] is NotCarried:
        raise NotCarried
    return done[e]


def _one(x: Expr, args: list[Any], at: tuple[int, ...], sources: Any, table: Any) -> Any:
    if x.op in ("where", "guard") and isinstance(args[0], int):
        return args[1] if args[0] else args[2]
    if any(a is NotCarried for a in args):
        raise NotCarried
    match x.op:
        case "const": return x.value if isinstance(x.value, float) else int(x.value)
        case "dim": return x.value
        case "index": return at[x.value]
        case "load":
            source = sources[x.value]
            place = tuple(map(_number, args))
            if any(not 0 <= p < s for p, s in zip(place, source.shape, strict=True)):
                raise NotCarried
            return source[place]
        case "cast": return converted(args[0], x.dtype)
        case "guard": return d.select(*args)
    row = table[x.op]
    if row.dim is None or x.dtype not in ("f32", "bool", "ix") and types.kind(x.dtype) not in "iub":
        raise NotCarried
    return row.dim(*args)


def converted(x: Any, dtype: str) -> Any:
    """A cast of one element; whole numbers stay as they are (an index never overflows its type in a shape)."""
    if types.kind(dtype) == "f":
        if dtype != "f32":
            raise NotCarried
        return d.real(x)
    if dtype == "bool":
        return int(x != 0) if isinstance(x, float) else 1 - d.eq(x, 0)
    return d.rounded("trunc", x) if isinstance(x, (float, d.Real)) else x
