"""Reductions, running folds, normalisations, and what sorts: axes of every kind, empty ones included."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from every_operator.draw import Case, Draw, kind
from every_operator.oracle import native
from every_operator.row import Row

I64 = np.int64


def wide(x: np.ndarray) -> np.ndarray:
    """Floats in float64; other types as they are."""
    x = native(x)
    return x.astype(np.float64) if kind(x.dtype) == "f" else x


def log_sum_exp(x: Any, axis: Any) -> Any:
    most = np.max(x, axis, keepdims=True, initial=-np.inf)
    shift = np.where(np.isinf(most), 0, most)
    return np.log(np.sum(np.exp(x - shift), axis, keepdims=True)) + shift


def extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis: function(x, axis, keepdims=True)


FOLDS: dict[str, Callable[..., Any]] = {
    "ReduceSum": lambda x, axis: np.sum(x, axis, keepdims=True, dtype=x.dtype), "ReduceProd": lambda x, axis: np.prod(x, axis, keepdims=True, dtype=x.dtype),
    "ReduceMax": extreme(np.max), "ReduceMin": extreme(np.min), "ReduceL1": lambda x, axis: np.sum(np.abs(x), axis, keepdims=True, dtype=x.dtype),
    "ReduceMean": lambda x, axis: np.mean(x, axis, keepdims=True), "ReduceL2": lambda x, axis: np.sqrt(np.sum(x.astype(np.float64)**2, axis, keepdims=True)),
    "ReduceSumSquare": lambda x, axis: np.sum(x * x, axis, keepdims=True, dtype=x.dtype),
    "ReduceLogSum": lambda x, axis: np.log(np.sum(x.astype(np.float64), axis, keepdims=True)),
    "ReduceLogSumExp": lambda x, axis: log_sum_exp(x.astype(np.float64), axis),
}


def reduction(d: Draw) -> Case:
    name = d.schema.name
    x = d.array(d.shape(0, 4, 1 if name in ("ReduceMax", "ReduceMin", "ReduceMean") else 0), d.type("T"), d.special and name in ("ReduceMax", "ReduceMin", "ReduceSum"),
                *((0.125, 4) if "Log" in name else ()))
    axes = d.axes(x.ndim) if d.flag() else None
    if axes is not None and d.schema.since_version < 11:
        axes = [a % x.ndim for a in axes]
    more = {"keepdims": d.pick(0, 1)} if d.flag() else {}
    if d.has("axes"):
        return d.case(x, axes=axes or None, **more)
    noop = {"noop_with_empty_axes": 1} if d.flag() else {}
    return d.case(x, *([] if axes is None else [np.array(axes, I64)]), **more, **noop, constant=(1,))


def reduced(case: Case) -> list[Any]:
    name, attributes = case.model.graph.node[-1].op_type, case.attributes
    axes = case.inputs[1] if len(case.inputs) > 1 else attributes.get("axes")
    axes = () if axes is None else tuple(int(a) for a in axes)
    x = wide(case.inputs[0])
    over = axes if axes or attributes.get("noop_with_empty_axes") else tuple(range(x.ndim))
    with np.errstate(all="ignore"):
        y = FOLDS[name](x, over)
        y = y if attributes.get("keepdims", 1) else np.squeeze(y, over)
        return [y if kind(case.inputs[0].dtype) == "f" else np.trunc(y).astype(x.dtype)]


def arg(d: Draw) -> Case:
    x = d.array(d.shape(1, 4, 1), d.type("T"), False)
    axis = d.axis(x.ndim) if d.schema.since_version >= 11 else d.integer(0, x.ndim - 1)
    last = {"select_last_index": d.pick(0, 1)} if d.has("select_last_index") and d.flag() else {}
    return d.case(x, axis=axis, keepdims=d.pick(None, 0, 1), **last)


def arg_of(case: Case) -> list[Any]:
    x, a = wide(case.inputs[0]), case.attributes
    find = np.argmax if case.model.graph.node[-1].op_type == "ArgMax" else np.argmin
    axis = a["axis"]
    found = x.shape[axis] - 1 - find(np.flip(x, axis), axis) if a.get("select_last_index") else find(x, axis)
    return [np.expand_dims(found, axis) if a.get("keepdims", 1) else found]


def running(d: Draw) -> Case:
    x = d.array(d.shape(1, 4), d.type("T"), False)
    axis = np.array(d.axis(x.ndim), d.type("T2"))
    return d.case(x, axis if d.flag() or d.schema.name == "CumProd" else axis.reshape(1), exclusive=d.pick(None, 0, 1), reverse=d.pick(None, 0, 1), constant=(1,))


def ran(case: Case) -> list[Any]:
    x, a = wide(case.inputs[0]), case.attributes
    axis = int(np.asarray(case.inputs[1]).reshape(-1)[0])
    product = case.model.graph.node[-1].op_type == "CumProd"
    x = np.flip(x, axis) if a.get("reverse") else x
    if a.get("exclusive"):
        first = np.full([1 if k == axis % x.ndim else s for k, s in enumerate(x.shape)], product, x.dtype)
        x = np.concatenate([first, x], axis).take(range(x.shape[axis]), axis)
    y = (np.cumprod if product else np.cumsum)(x, axis, dtype=x.dtype)
    return [np.flip(y, axis) if a.get("reverse") else y]


def along(d: Draw) -> Case:
    """Softmax and its like: an axis, -inf among the values."""
    x = d.array(d.shape(1, 4), d.type("T" if d.schema.name != "RMSNormalization" else "V"), False)
    if d.special and x.size and d.schema.name != "Hardmax":
        x = np.where(d.random.random(x.shape) < 0.2, np.asarray(-np.inf, x.dtype), x)
    low = -x.ndim if d.schema.since_version >= 11 else 0
    return d.case(x, axis=d.integer(low, x.ndim - 1) if d.flag() or d.schema.since_version < 13 and x.ndim < 2 else None)


def softly(case: Case) -> list[Any]:
    node, opset = case.model.graph.node[-1].op_type, case.model.opset_import[0].version
    x = wide(case.inputs[0])
    axis = case.attributes.get("axis", -1 if opset >= 13 else 1) % x.ndim
    shape = x.shape
    flat = x if opset >= 13 else x.reshape(int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
    along = axis if opset >= 13 else 1
    with np.errstate(all="ignore"):
        if not flat.size:
            return [x]
        if node == "Hardmax":
            y = np.zeros_like(flat)
            np.put_along_axis(y, np.expand_dims(flat.argmax(along), along), 1, along)
        else:
            z = flat - flat.max(along, keepdims=True)
            y = z - np.log(np.exp(z).sum(along, keepdims=True)) if node == "LogSoftmax" else np.exp(z) / np.exp(z).sum(along, keepdims=True)
    return [y.reshape(shape)]


def channels(d: Draw, least: int = 3, most: int = 4) -> np.ndarray:
    return d.array(d.shape(least, most, 1, 4), d.type("T"), False)


def layer(d: Draw) -> Case:
    x = d.array(d.shape(1, 4, 1), d.type("T"), False)
    axis = d.axis(x.ndim)
    shape = x.shape[axis % x.ndim:]
    if d.schema.name == "RMSNormalization":
        return d.case(x, d.array(d.broadcast(shape), d.type("V"), False), axis=axis, epsilon=d.pick(None, 1e-3))
    bias = [d.array(shape, x.dtype, False)] if d.flag() else []
    return d.case(x, d.array(shape, x.dtype, False), *bias, axis=axis, epsilon=d.pick(None, 1e-3), outputs=d.integer(1, 3))


def group(d: Draw) -> Case:
    groups, size = d.integer(1, 3), d.integer(1, 2)
    x = d.array((d.integer(1, 3), groups * size, *d.shape(1, 2, 1)), d.type("T"), False)
    count = groups if d.schema.since_version == 18 else groups * size
    return d.case(x, d.array((count,), x.dtype, False), d.array((count,), x.dtype, False), num_groups=groups, epsilon=d.pick(None, 1e-2))


def instance(d: Draw) -> Case:
    x = channels(d)
    return d.case(x, *(d.array(x.shape[1:2], x.dtype, False) for _ in range(2)), epsilon=d.pick(None, 1e-2))


def batch(d: Draw) -> Case:
    x = d.array(d.shape(2, 4, 1, 4), d.type("T"), False)
    t1, t2 = (d.type(d.schema.inputs[k].type_str) for k in (1, 3))
    c = x.shape[1:2]
    values = [d.array(c, t1, False), d.array(c, t1, False), d.array(c, t2, False), d.array(c, t2, False, 0.125, 4)]
    training = d.schema.since_version >= 14 and d.flag()
    more = {"is_test": 1} if d.has("is_test") else {"training_mode": 1} if training else {}
    return d.case(x, *values, epsilon=d.pick(None, 1e-2), momentum=d.pick(None, 0.5), outputs=3 if training else 1, constant=(1, 2, 3, 4), **more)


def batch_of(case: Case) -> list[Any]:
    x, scale, bias, mean, var = map(wide, case.inputs)
    a, over = case.attributes, tuple(k for k in range(x.ndim) if k != 1)
    momentum, used = a.get("momentum", np.float32(0.9)), (mean, var)
    if a.get("training_mode"):
        used = (x.mean(over), x.var(over))
    side = [-1, *[1] * (x.ndim - 2)]
    y = (x - used[0].reshape(side)) / np.sqrt(used[1].reshape(side) + a.get("epsilon", 1e-5)) * scale.reshape(side) + bias.reshape(side)
    running = [old * momentum + new * (1 - momentum) for old, new in zip((mean, var), used, strict=True)]
    return [y, *running][:len(case.model.graph.output)]


def lrn(d: Draw) -> Case:
    return d.case(channels(d, 3), size=d.pick(1, 3, 5), alpha=d.pick(None, 0.5), beta=d.pick(None, 0.5), bias=d.pick(None, 2.0))


def lrn_of(case: Case) -> list[Any]:
    x, a = wide(case.inputs[0]), case.attributes
    size = a["size"]
    sums = np.stack([(x[:, max(0, c - (size - 1) // 2):c + -(-(size - 1) // 2) + 1]**2).sum(1) for c in range(x.shape[1])], 1)
    return [x / (a.get("bias", 1.0) + a.get("alpha", 1e-4) / size * sums)**a.get("beta", 0.75)]


def lp(d: Draw) -> Case:
    x = d.array(d.shape(1, 4, 1), d.type("T"), False, 0.125, 4)
    return d.case(x, axis=d.axis(x.ndim) if d.flag() else None, p=d.pick(None, 1, 2))


def mvn(d: Draw) -> Case:
    return d.case(d.array(d.shape(4, 4, 1), d.type("T"), False))


def mvn_of(case: Case) -> list[Any]:
    x = wide(case.inputs[0])
    return [(x - x.mean((0, 2, 3), keepdims=True)) / (x.std((0, 2, 3), keepdims=True) + 1e-9)]


def top_k(d: Draw) -> Case:
    x = d.array(d.shape(1, 3, 1), d.type("T"), False)
    axis = d.axis(x.ndim) if d.schema.since_version >= 11 else d.integer(0, x.ndim - 1)
    k = d.integer(0, x.shape[axis])
    if d.has("k"):
        return d.case(x, axis=axis, k=max(k, 1), outputs=2)
    more = {"largest": d.pick(0, 1)} if d.has("largest") else {}
    return d.case(x, np.array([k]), axis=axis, **more, outputs=2, constant=(1,))


def top_of(case: Case) -> list[Any]:
    x, a = wide(case.inputs[0]), case.attributes
    k = int(case.inputs[1][0]) if len(case.inputs) > 1 else a["k"]
    keys = x.astype(object) if x.dtype.kind in "iu" else x
    order = np.argsort(-keys if a.get("largest", 1) else keys, axis=a["axis"], kind="stable").take(range(k), a["axis"])
    return [np.take_along_axis(native(case.inputs[0]), order, a["axis"]), order]


def unique(d: Draw) -> Case:
    x = d.array(d.shape(1, 3, 1), d.type("T", "fiubs"), False)
    return d.case(x, axis=d.axis(x.ndim) if d.flag() else None, sorted=d.pick(0, 1), outputs=4)


def unique_of(case: Case) -> list[Any]:
    x, a = native(case.inputs[0]), case.attributes
    axis = a.get("axis")
    lines = list(x.ravel()) if axis is None else [np.take(x, k, axis) for k in range(x.shape[axis])]
    keys = [v if axis is None else tuple(v.ravel().tolist()) for v in lines]
    first = [k for k, v in enumerate(keys) if v not in keys[:k]]
    first = sorted(first, key=lambda k: keys[k]) if a.get("sorted", 1) else first
    order = [keys[k] for k in first]
    inverse = [order.index(v) for v in keys]
    counts = [keys.count(v) for v in order]
    values = x.ravel()[first] if axis is None else np.take(x, first, axis)
    return [values, np.array(first, I64), np.array(inverse, I64), np.array(counts, I64)]


def non_zero(d: Draw) -> Case:
    return d.case(d.array(d.shape(0, 4), d.type("T", "fiubs")))


def non_zeros(case: Case) -> list[Any]:
    x = native(case.inputs[0])
    return [np.array(np.nonzero(np.atleast_1d(x != "") if x.dtype == object else np.atleast_1d(x)), I64).reshape(x.ndim or 1, -1)[:x.ndim]]


def loss(d: Draw) -> Case:
    n, c, rest = d.integer(1, 3), d.integer(1, 4), d.shape(0, 2, 1, 3)
    scores = d.array((n, c, *rest), d.type("T"), False)
    target = d.random.integers(0, c, (n, *rest)).astype(d.type("Tind"))
    weight = [d.array((c,), scores.dtype, False, 0.125, 2)] if d.flag() else []
    outputs = d.integer(1, 2) if d.schema.name == "SoftmaxCrossEntropyLoss" else 1
    ignored = {"ignore_index": d.integer(0, c - 1)} if d.flag() and c > 1 else {}
    return d.case(scores, target, *weight, reduction=d.pick(None, "none", "sum", "mean"), outputs=outputs, **ignored)


ROWS: dict[str, Row] = {
    **{n: Row(reduction, reduced, sums=1, slack=2) for n in FOLDS}, "ArgMax": Row(arg, arg_of), "ArgMin": Row(arg, arg_of),
    "CumSum": Row(running, ran, sums=1), "CumProd": Row(running, ran, slack=4),
    **{n: Row(along, softly, floor=0.1, slack=2) for n in ("Softmax", "LogSoftmax", "Hardmax")}, "LayerNormalization": Row(layer, single=True, sums=2, floor=1, slack=4),
    "RMSNormalization": Row(layer, single=True, slack=2), "GroupNormalization": Row(group, single=True, sums=2, floor=1, slack=4), "InstanceNormalization": Row(instance, single=True, sums=2, floor=1, slack=4, since=6),
    "BatchNormalization": Row(batch, batch_of, sums=2, slack=2, since=7), "LRN": Row(lrn, lrn_of), "LpNormalization": Row(lp), "MeanVarianceNormalization": Row(mvn, mvn_of, floor=4, sums=2),
    "TopK": Row(top_k, top_of), "Unique": Row(unique, unique_of), "NonZero": Row(non_zero, non_zeros),
    "NegativeLogLikelihoodLoss": Row(loss, sums=1), "SoftmaxCrossEntropyLoss": Row(loss, sums=1, floor=0.1),
}
