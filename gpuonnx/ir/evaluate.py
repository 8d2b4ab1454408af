"""Nodes by NumPy: what every renderer must agree with, what folds constants, and the way out for what no kernel runs."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuonnx.errors import DeviceError, UnsupportedType
from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, postorder, reached, sure
from gpuonnx.ir.scalar import FOLDS, SCALARS
from gpuonnx.ir.sizes import evaluate as evaluate_dims
from gpuonnx.ir.types import INDEX, compute, kind, numpy_dtype

Binding = Mapping[str, int | float]
DIVISIONS = ("div", "truncmod", "floordiv", "floormod")


def evaluate(node: g.Node, arrays: Sequence[np.ndarray], binding: Binding) -> list[np.ndarray]:
    """The outputs of a node, in their stored types.

    arrays: the inputs; binding: the values of the symbols in its sizes and expressions.
    Raises DeviceError for an index out of range or an integer division by zero, UnsupportedType for a Call."""
    with np.errstate(all="ignore"):
        match node:
            case g.View(index=None): return [arrays[0].reshape(_sizes(node.out.dims, binding))]
            case g.View(): return [_map(node, node.index, arrays, binding)]
            case g.Map(): return [_expression(node.expr, _sizes(node.out.dims, binding), node, arrays, binding, node.out.dtype)]
            case g.Reduce(): return [_reduce(node, arrays, binding)]
            case g.Prefix(): return [_prefix(node, arrays, binding)]
            case g.Scatter(): return [_scatter(node, arrays, binding)]
            case g.Assemble(): return [np.concatenate(list(arrays), axis=node.axis)]
            case g.Copy(): return [np.array(arrays[0])]
            case g.Nest(): return _nest(node, arrays, binding)
    what = f"kernel {node.kernel!r}" if isinstance(node, g.Call) else type(node).__name__
    raise UnsupportedType(f"{', '.join(node.origins)}: {what} has no kernel for "
                          f"{', '.join(v.dtype for v in node.inputs)} on this device, and no NumPy form")


def evaluable(node: g.Node) -> bool:
    return not isinstance(node, (g.Call, g.Host, g.If, g.Loop))


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """To a stored or compute type: integers wrap, floats saturate at the ends of an integer type (NaN gives 0), float8,
    float6 and float4 saturate at their largest value (an infinity stays one in f8e5m2, which has it), the rest rounds to nearest even."""
    to = numpy_dtype(dtype)
    if array.dtype == to:
        return array
    if kind(dtype) == "s" or array.dtype.kind == "O":
        return _cast_text(array, to)
    if kind(dtype) in "iu" and _is_float(array):
        return _float_to_integer(array, to)
    if dtype.startswith(("f8e4", "f8e5", "f4", "f6")) and _is_float(array):
        import ml_dtypes
        most = float(ml_dtypes.finfo(to).max)  # type: ignore[no-untyped-call]
        wide = array.astype(np.float32)
        kept = np.isnan(wide) | np.isinf(wide) if dtype == "f8e5m2" else np.isnan(wide)
        return np.where(kept, wide, np.clip(wide, -most, most)).astype(to)
    return array.astype(to)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))


def _float_to_integer(array: np.ndarray, to: np.dtype) -> np.ndarray:
    if to.kind not in "iu":
        return _float_to_integer(array, np.dtype(np.int64)).astype(to)
    info = np.iinfo(to)
    clean = np.nan_to_num(np.trunc(array.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
    high, low = clean >= float(info.max), clean <= float(info.min)
    middle = np.where(high | low, 0.0, clean).astype(to)
    return np.where(high, to.type(info.max), np.where(low, to.type(info.min), middle)).astype(to)


def _cast_text(array: np.ndarray, to: np.dtype) -> np.ndarray:
    if to.kind == "O":
        return array.astype(object)
    return np.array([to.type(x) for x in array.ravel()], to).reshape(array.shape)


def _sizes(shape: Sequence[Any], binding: Binding) -> tuple[int, ...]:
    return tuple(int(s) for s in evaluate_dims(shape, binding)) if shape else ()


class Evaluation:
    """One walk over expressions; arrays keep size 1 along axes that they do not depend on."""

    def __init__(self, node: g.Node, ranges: tuple[int, ...], arrays: Sequence[np.ndarray], binding: Binding) -> None:
        self.node, self.ranges, self.arrays, self.binding = node, ranges, arrays, binding
        self.done: dict[Expr, np.ndarray] = {}
        self.folded: dict[tuple[int, int], np.ndarray] = {}

    def value(self, root: Expr) -> np.ndarray:
        checked = _unguarded(root)
        for e in postorder((root,)):
            if e not in self.done:
                self.done[e] = self._one(e, e in checked)
        return self.done[root]

    def full(self, root: Expr) -> np.ndarray:
        return np.broadcast_to(self.value(root), self.ranges)

    def _one(self, e: Expr, checked: bool) -> np.ndarray:
        args = [self.done[a] for a in e.args]
        match e.op:
            case "const": return np.asarray(e.value, numpy_dtype(e.dtype))
            case "dim": return np.asarray(evaluate_dims([e.value], self.binding)[0], np.int64)
            case "index": return self._index(e.value)
            case "folded": return self.folded[e.value]
            case "load": return self._load(e, args, checked)
            case "guard": return np.where(args[0], args[1], args[2])
            case "cast": return cast(args[0], e.dtype)
            case "round": return cast(cast(args[0], e.value), e.dtype)
        if checked and e.op in DIVISIONS and kind(e.dtype) in "iu" and e.dtype != INDEX and (args[1] == 0).any():
            raise DeviceError(f"{', '.join(self.node.origins)}: integer division by zero")
        return np.asarray(SCALARS[e.op].numpy(*args)).astype(numpy_dtype(e.dtype), copy=False)

    def _index(self, axis: int) -> np.ndarray:
        shape = [1] * len(self.ranges)
        shape[axis] = self.ranges[axis]
        return np.arange(self.ranges[axis], dtype=np.int64).reshape(shape)

    def _load(self, e: Expr, places: list[np.ndarray], checked: bool) -> np.ndarray:
        source = self.arrays[e.value]
        plain = [k for k, p in enumerate(e.args) if p.op == "index"]
        if len(plain) == len(e.args) and [e.args[k].value for k in plain] == list(range(len(self.ranges))) and source.shape == self.ranges:
            return cast(source, e.dtype)
        if source.size == 0:
            if checked and 0 not in self.ranges:
                raise DeviceError(f"{', '.join(self.node.origins)}: an element of an empty tensor {source.shape} is read")
            return np.zeros([1 if s else 0 for s in self.ranges], numpy_dtype(e.dtype))
        inside = []
        for size, place in zip(source.shape, places, strict=True):
            if checked and place.size and (place.min() < 0 or place.max() >= size):
                worst = int(place.min()) if place.min() < 0 else int(place.max())
                raise DeviceError(f"{', '.join(self.node.origins)}: index {worst} is out of range: the axis has {size} elements")
            inside.append(place if checked else np.clip(place, 0, size - 1))
        return cast(np.asarray(source[tuple(inside)]), e.dtype)


def _unguarded(root: Expr) -> set[Expr]:
    """What is computed at every index, not only where a guard holds."""
    return set(reached([root], sure))


def _expression(root: Expr, shape: tuple[int, ...], node: g.Node, arrays: Sequence[np.ndarray], binding: Binding, dtype: str) -> np.ndarray:
    full = Evaluation(node, shape, arrays, binding).full(root)
    return np.ascontiguousarray(cast(full, dtype)).reshape(shape)


def _map(node: g.View, index: tuple[Expr, ...] | None, arrays: Sequence[np.ndarray], binding: Binding) -> np.ndarray:
    assert index is not None
    shape = _sizes(node.out.dims, binding)
    walk = Evaluation(node, shape, arrays, binding)
    if 0 in shape:
        return np.zeros(shape, arrays[0].dtype)
    return np.broadcast_to(arrays[0][tuple(walk.value(e) for e in index)], shape)


def folded_over(fold: str, full: np.ndarray, over: tuple[int, ...], dtype: str, keep: bool = False) -> np.ndarray:
    """Fold a broadcast array over axes; an empty fold gives the identity."""
    if fold.startswith("arg"):
        (axis,) = over
        return np.asarray(FOLDS[fold].numpy(full, axis=axis, keepdims=keep), np.int64)
    row = FOLDS[fold]
    if any(full.shape[a] == 0 for a in over):
        shape = [1 if a in over else s for a, s in enumerate(full.shape) if keep or a not in over]
        return np.full(shape, row.identity(dtype), numpy_dtype(dtype))
    return np.asarray(row.numpy(full, axis=over, keepdims=keep), numpy_dtype(dtype))


def _reduce(node: g.Reduce, arrays: Sequence[np.ndarray], binding: Binding) -> np.ndarray:
    ranges = _sizes(node.ranges, binding)
    full = Evaluation(node, ranges, arrays, binding).full(node.expr)
    return cast(folded_over(node.fold, full, node.over, node.expr.dtype), node.out.dtype)


ACCUMULATE: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _prefix(node: g.Prefix, arrays: Sequence[np.ndarray], binding: Binding) -> np.ndarray:
    shape = _sizes(node.out.dims, binding)
    full = Evaluation(node, shape, arrays, binding).full(node.expr)
    axis, name = node.axis, node.fold if node.fold in ACCUMULATE else FOLDS[node.fold].combine
    if node.reverse:
        full = np.flip(full, axis)
    out = np.asarray(ACCUMULATE[name].accumulate(full, axis=axis, dtype=full.dtype))
    if node.exclusive and shape[axis]:
        fold = next(f for f in FOLDS.values() if f.combine == name)
        edge = np.full([1 if a == axis else s for a, s in enumerate(shape)], fold.identity(node.expr.dtype), full.dtype)
        out = np.concatenate([edge, np.take(out, range(shape[axis] - 1), axis)], axis)
    return cast(np.flip(out, axis) if node.reverse else out, node.out.dtype)


def _scatter(node: g.Scatter, arrays: Sequence[np.ndarray], binding: Binding) -> np.ndarray:
    ranges = _sizes(node.ranges, binding)
    walk = Evaluation(node, ranges, arrays, binding)
    places = [walk.full(e) for e in node.index]
    values = walk.full(node.expr)
    for size, place in zip(arrays[0].shape, places, strict=True):
        if place.size and (place.min() < 0 or place.max() >= size):
            worst = int(place.min()) if place.min() < 0 else int(place.max())
            raise DeviceError(f"{', '.join(node.origins)}: index {worst} is out of range: the axis has {size} elements")
    if node.combine is None:
        out = np.array(arrays[0])
        out[tuple(places)] = cast(values, node.out.dtype)
        return out
    wide = np.array(cast(arrays[0], compute(node.out.dtype)))
    if wide.ndim:
        ACCUMULATE[node.combine].at(wide, tuple(places), values)
    else:
        for v in values.ravel():
            wide = np.asarray(ACCUMULATE[node.combine](wide, v))
    return cast(wide, node.out.dtype)


def _nest(node: g.Nest, arrays: Sequence[np.ndarray], binding: Binding) -> list[np.ndarray]:
    ranges = _sizes(node.ranges, binding)
    walk = Evaluation(node, ranges, arrays, binding)
    over = tuple(sorted(node.over))
    outs = [np.zeros(_sizes(v.dims, binding), numpy_dtype(v.dtype)) for v in node.outputs]
    for number, stage in enumerate(node.stages):
        for position, action in enumerate(stage):
            if isinstance(action, g.Fold):
                walk.folded[number, position] = folded_over(action.op, walk.full(action.expr), over, action.expr.dtype, keep=True)
            else:
                _store(walk, action, over, outs[action.output], node.outputs[action.output].dtype)
    return outs


def _store(walk: Evaluation, action: g.Store, over: tuple[int, ...], out: np.ndarray, dtype: str) -> None:
    mentioned = {e.value for e in postorder(action.indices) if e.op == "index"}
    first = tuple(slice(0, 1) if a in over and a not in mentioned else slice(None) for a in range(len(walk.ranges)))
    places = tuple(walk.full(e)[first] for e in action.indices)
    value = cast(walk.full(action.expr)[first], dtype)
    out[places] = value if places else value.reshape(())


