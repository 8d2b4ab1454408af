"""fold: what can be computed now is. Big results are left alone, and so is whatever a later rule wants to see."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, const, postorder
from gpuonnx.ir.scalar import SCALARS
from gpuonnx.ir.types import compute, kind
from gpuonnx.passes.rewrite import Edit, Trace, change_leaves, numbered

LIMIT = 16 << 20
SMALL = 4096
MOST_UNIFORM = 1 << 28
FEW = 32
COMMON = 3


def run(graph: g.Graph, trace: Trace) -> g.Graph:
    """Before the other passes: quantised weights stay as they are, so that `recognise` sees them."""
    return Folding(graph, trace, False).run()


def weights(graph: g.Graph, trace: Trace) -> g.Graph:
    """After `recognise`: what is still computed from weights alone."""
    return Folding(graph, trace, True).run()


class Folding:
    def __init__(self, graph: g.Graph, trace: Trace, all_weights: bool) -> None:
        self.edit, self.trace, self.all_weights = Edit(graph, trace), trace, all_weights
        self.common, self.users = common_scalars(graph), graph.users()

    def run(self) -> g.Graph:
        for old in self.edit.graph.nodes:
            node = self.scalars(self.edit.take(old))
            arrays = self.result(node)
            if arrays is not None and self.trace.allow("constant", node.origins):
                for out, array in zip(node.outputs, arrays, strict=True):
                    self.edit.constants[out] = array
            else:
                self.edit.emit(node)
        return self.edit.finish()

    # scalars that become part of an expression
    def scalars(self, node: g.Node) -> g.Node:
        if not isinstance(node, (g.Map, g.Reduce, g.Prefix, g.Scatter)) or not any(self.is_small(v) for v in node.inputs):
            return node
        roots = (node.expr, *node.index) if isinstance(node, g.Scatter) else (node.expr,)
        in_index = index_loads(roots)
        done: dict[Expr, Expr] = {}

        def leaf(x: Expr) -> Expr | None:
            if x.op != "load":
                return None
            value = node.inputs[x.value]
            inlined = self.inlined(value, x, x in in_index)
            return inlined if inlined is not None else Expr("load", x.args, x.dtype, value)

        new = [change_leaves(r, leaf, done) for r in roots]
        if not all(certain(x.args, done[x].args, node.inputs[x.value]) for x in postorder(roots) if x.op == done[x].op == "load"):
            return node
        if isinstance(node, g.Scatter) and not certain(node.index, new[1:], node.inputs[0]):
            return node
        first = node.inputs[:1] if isinstance(node, g.Scatter) else ()
        inputs, exprs = numbered(new, first)
        if inputs == node.inputs or not self.trace.allow("scalar constant", node.origins):
            return node
        if isinstance(node, g.Scatter):
            return replace(node, inputs=inputs, expr=exprs[0], index=exprs[1:])
        return replace(node, inputs=inputs, expr=exprs[0])

    def is_small(self, value: g.Value) -> bool:
        array = self.edit.constants.get(value)
        return array is not None and array.size <= SMALL and array.dtype.kind in "fiubV"

    def inlined(self, value: g.Value, load: Expr, in_index: bool) -> Expr | None:
        """The element as a constant, if it is one that many kernels may share: a kernel is compiled for its constants. Zero
        points of 8 bits other than 0 come as data."""
        array = self.edit.constants.get(value)
        if array is None or array.size > SMALL or kind(value.dtype) not in "fiub":
            return None
        if any(a.op != "const" for a in load.args) and (array.size != 1 or any(map(from_data, load.args))):
            return None
        at = tuple([a.value for a in load.args]) if array.size != 1 else (0,) * array.ndim
        if any(not 0 <= k < s for k, s in zip(at, array.shape, strict=True)):
            return None
        number = array[at].item() if array.dtype.kind in "fiub" else float(array[at])
        if in_index or value.dtype in ("i64", "i32", "bool"):
            return const(number, compute(value.dtype))
        shared = not number if value.dtype in ("u8", "i8") else plain(number) or self.common[key_of(number, value.dtype)] >= COMMON
        return const(number, compute(value.dtype)) if shared else None

    # whole nodes
    def result(self, node: g.Node) -> tuple[np.ndarray, ...] | None:
        constants = self.edit.constants
        if not node.outputs or not all(v in constants for v in node.inputs):
            return None
        match node:
            case g.View(): return self.view(node)
            case g.Map() | g.Reduce() | g.Assemble() | g.Prefix() | g.Scatter(): return self.computed(node)
        return None

    def view(self, node: g.View) -> tuple[np.ndarray, ...] | None:
        array = self.edit.constants[node.inputs[0]]
        if not d.known(*node.out.dims):
            return None
        shape = tuple(cast(int, s) for s in node.out.dims)
        if node.index is None:
            return (array.reshape(shape),) if array.size == int(np.prod(shape)) else None
        if int(np.prod(shape)) > max(array.size, SMALL):
            return None
        return strided(array, node, shape)

    def computed(self, node: Any) -> tuple[np.ndarray, ...] | None:
        from gpuonnx.ir.evaluate import evaluate
        shape, constants = node.out.shape, self.edit.constants
        ranges = getattr(node, "ranges", shape)
        if shape is None or not d.known(*shape, *ranges) or not fixed(node):
            return None
        arrays = [constants[v] for v in node.inputs]
        read = sum(a.nbytes for a in arrays)
        count = int(np.prod([int(s) for s in shape], dtype=np.int64))
        if isinstance(node, g.Map) and not node.inputs and count > SMALL:
            return self.uniform(node, count)
        if count * 8 > max(LIMIT, 8 * read) or int(np.prod([int(r) for r in ranges], dtype=np.int64)) > 8 * max(LIMIT, read):
            return None
        if not self.all_weights and read > FEW and any(a.dtype.itemsize == 1 and a.dtype.kind != "b" for a in arrays) \
                and isinstance(node, g.Map) and kind(node.out.dtype) == "f":
            return None
        return guarded(lambda: evaluate(node, arrays, {}))


    def uniform(self, node: g.Map, count: int) -> tuple[np.ndarray, ...] | None:
        """One value everywhere, as an operand of kernels, which pack it once: a constant that takes no memory."""
        readers = self.users.get(node.out, [])
        if not self.all_weights or count > MOST_UNIFORM or not readers or not all(isinstance(n, (g.Call, g.View)) for n in readers):
            return None
        if any(x.op == "index" for x in postorder((node.expr,))):
            return None
        from gpuonnx.ir.evaluate import evaluate
        one = g.Map((), (g.Value(node.out.dtype, ()),), expr=node.expr)
        made = guarded(lambda: evaluate(one, [], {}))
        return None if made is None else (np.broadcast_to(made[0], tuple(cast(int, s) for s in node.out.dims)),)


def guarded(compute_it: Callable[[], Any]) -> tuple[np.ndarray, ...] | None:
    """What fails now (a bad index, an unknown row) is left to fail, or not, when it runs."""
    try:
        return tuple([np.asarray(a) for a in compute_it()])
    except (ArithmeticError, LookupError, TypeError, ValueError, NotImplementedError):
        return None


def fixed(node: Any) -> bool:
    """Whether the node's expressions hang on no symbol and no random number."""
    roots: tuple[Any, ...] = (node.expr,) if hasattr(node, "expr") else ()
    roots += tuple(node.index) if isinstance(node, g.Scatter) else ()
    return not any(x.op == "dim" and not d.known(x.value) or "philox" in x.op or "random" in x.op for x in postorder(roots))


def strided(array: np.ndarray, node: g.View, shape: tuple[int, ...]) -> tuple[np.ndarray, ...] | None:
    """An index view of a constant as a NumPy view (the memory map stays one)."""
    from gpuonnx.ir.affine import strides_of
    assert node.index is not None
    if any(t < 0 for t in array.strides) and array.nbytes <= LIMIT:
        array = np.ascontiguousarray(array)
    found = strides_of(node.index, array.strides, len(shape))
    if found is None or not d.known(found[0], *found[1]) or 0 in shape:
        return None
    offset, strides = cast(int, found[0]), tuple(cast(int, s) for s in found[1])
    ends = [(min(0, t * (s - 1)), max(0, t * (s - 1))) for s, t in zip(shape, strides, strict=True)]
    low, high = offset + sum(e[0] for e in ends), offset + sum(e[1] for e in ends)
    limit = sum(abs(t) * (s - 1) for s, t in zip(array.shape, array.strides, strict=True))
    if low < 0 or high > limit or any(t < 0 for t in array.strides):
        return None
    start = origin(array, offset)
    return None if start is None else (np.lib.stride_tricks.as_strided(start, shape, strides, writeable=False),)


def origin(array: np.ndarray, offset: int) -> np.ndarray | None:
    """The part of `array` that starts `offset` bytes after its first element."""
    if array.ndim == 0:
        return array
    at = []
    for size, step in sorted(zip(array.shape, array.strides, strict=True), key=lambda p: -p[1]):
        k = min(offset // step, size - 1) if step > 0 else 0
        offset -= k * step
        at.append((step, k))
    if offset:
        return None
    order = sorted(range(array.ndim), key=lambda a: -array.strides[a])
    starts = dict(zip(order, [k for _, k in at], strict=True))
    return array[tuple(slice(starts[a], None) for a in range(array.ndim))]


def index_loads(roots: tuple[Expr, ...]) -> set[Expr]:
    """Loads whose value takes part in an index of another load, or in an index expression."""
    found: set[Expr] = set()
    for x in postorder(roots):
        if x.op == "load":
            found.update(y for y in postorder(x.args) if y.op == "load")
    return found


def from_data(e: Expr) -> bool:
    return any(x.op == "load" for x in postorder((e,)))


def certain(before: Sequence[Expr], after: Sequence[Expr], value: g.Value) -> bool:
    """Whether indices into `value` that were data and are now constants are surely in range: what is not stays data, which
    kernels check."""
    for old, new, size in zip(before, after, value.dims, strict=True):
        if old is new or not from_data(old) or from_data(new):
            continue
        place = dim_of(new)
        if place is None or not (d.at_most(0, place) and d.at_most(place, size - 1)):
            return False
    return True


def dim_of(e: Expr) -> Any:
    """The Dim that an expression without loads and indices is; None where it is none."""
    done: dict[Expr, Any] = {}
    for x in postorder((e,)):
        row = SCALARS.get(x.op)
        if x.op in ("const", "dim"):
            done[x] = x.value
        elif x.op == "cast":
            done[x] = done[x.args[0]]
        elif row is None or row.dim is None or any(done[a] is None for a in x.args):
            done[x] = None
        else:
            done[x] = row.dim(*(done[a] for a in x.args))
    return done[e]


def common_scalars(graph: g.Graph) -> Counter[tuple[str, str]]:
    """How many nodes read each value that one-element constants have."""
    count: Counter[tuple[str, str]] = Counter()
    for node in graph.nodes:
        for value in node.inputs:
            array = graph.constants.get(value)
            if array is not None and array.size == 1 and array.dtype.kind in "fiub":
                count[key_of(array.ravel()[0].item(), value.dtype)] += 1
    return count


def key_of(number: Any, dtype: str) -> tuple[str, str]:
    return repr(number), dtype


def plain(number: Any) -> bool:
    """A number that is worth a kernel of its own: a small whole number, or a few binary places, or infinite."""
    if isinstance(number, float) and not np.isfinite(number):
        return True
    scaled = float(number) * 64
    return scaled == int(scaled) and abs(scaled) <= 64 * 64
