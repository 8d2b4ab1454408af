"""Reductions over axes."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpuonnx.ir.build import Tensor, size_scalar
from gpuonnx.ir.formula import absolute, exp, isinf, log, select, sqrt
from gpuonnx.ops.registry import Const, op

Fold = Callable[[Tensor, Sequence[int]], Tensor]


def reduce_sum(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.sum(axes, keepdims=True)


def reduce_mean(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.mean(axes, keepdims=True)


def reduce_prod(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.prod(axes, keepdims=True)


def reduce_max(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.fold("any" if x.dtype == "bool" else "max", axes, keepdims=True)


def reduce_min(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.fold("all" if x.dtype == "bool" else "min", axes, keepdims=True)


def reduce_l1(x: Tensor, axes: Sequence[int]) -> Tensor:
    return absolute(x).sum(axes, keepdims=True)


def reduce_l2(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Of integers: in float64, cut."""
    v = x.wide() if x.kind == "f" else x.cast("f64")
    return sqrt((v * v).sum(axes, keepdims=True)).cast(x.dtype)


def reduce_sum_square(x: Tensor, axes: Sequence[int]) -> Tensor:
    v = x.wide()
    return (v * v).sum(axes, keepdims=True).cast(x.dtype)


def reduce_log_sum(x: Tensor, axes: Sequence[int]) -> Tensor:
    v = x.wide() if x.kind == "f" else x.cast("f64")
    return log(v.sum(axes, keepdims=True)).cast(x.dtype)


def reduce_log_sum_exp(x: Tensor, axes: Sequence[int]) -> Tensor:
    """log(sum(exp(x))), shifted by the maximum so that exp cannot overflow."""
    v = x.wide() if x.kind == "f" else x.cast("f64")
    most = v.max(axes, keepdims=True)
    shift = select(isinf(most), 0.0, most)
    return (log(exp(v - shift).sum(axes, keepdims=True)) + shift).cast(x.dtype)


FOLDS: dict[str, Fold] = {
    "ReduceSum": reduce_sum, "ReduceMean": reduce_mean, "ReduceProd": reduce_prod, "ReduceMax": reduce_max, "ReduceMin": reduce_min,
    "ReduceL1": reduce_l1, "ReduceL2": reduce_l2, "ReduceSumSquare": reduce_sum_square, "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
}


def declare(name: str, fold: Fold) -> None:
    """`axes` is an attribute first, and an input from opset 18 on (13 for ReduceSum)."""
    @op(name, since=13 if name == "ReduceSum" else 18)
    def reduced(x: Tensor, axes: Const | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        over = () if axes is None else x.axes(axes.ravel())
        if not over and not noop_with_empty_axes:
            over = tuple(range(x.rank))
        y = fold(x, over)
        return y if keepdims or not over else y.squeeze(over)

    @op(name, since=1)
    def reduced_1(x: Tensor, *, axes: list[int] | None = None, keepdims: int = 1) -> Tensor:
        return reduced(x, None if axes is None else np.array(axes, np.int64), keepdims=keepdims)


for _name, _fold in FOLDS.items():
    declare(_name, _fold)


def extreme(fold: str, x: Tensor, axis: int, keepdims: int, last: int) -> Tensor:
    """The position of the first (or last) extreme along `axis`."""
    axis = x.axis(axis)
    size = x.shape[axis]
    if last:
        place = -x.slice(axis, size - 1, size, -1).fold(fold, axis, keepdims=bool(keepdims))
        return place + size_scalar(size - 1)
    return x.fold(fold, axis, keepdims=bool(keepdims))


@op("ArgMax", since=1)
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return extreme("argmax", x, axis, keepdims, select_last_index)


@op("ArgMin", since=1)
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return extreme("argmin", x, axis, keepdims, select_last_index)
