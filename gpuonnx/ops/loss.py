"""Losses."""
from __future__ import annotations

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Expr, Tensor, cast, const, tensor_map
from gpuonnx.ir.expr import guard
from gpuonnx.ir.formula import not_equal
from gpuonnx.ops.activation import log_softmax
from gpuonnx.ops.registry import op


@op("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None,
                                 reduction: str = "mean") -> Tensor:
    """-x[n, target[n, d...], d...] * weight[target]; the mean divides by the sum of the weights. Ignored targets count nothing."""
    if x.rank < 2 or target.rank != x.rank - 1 or weight is not None and weight.rank != 1:
        raise ModelError(f"scores of rank {x.rank} need targets of rank {x.rank - 1} (here {target.rank}) and weights of rank 1")
    for axis, size in zip((0, *range(2, x.rank)), target.shape, strict=True):
        x.builder.meet(x.shape[axis], size)
    if weight is not None:
        x.builder.meet(x.shape[1], weight.shape[0])
    v = x.wide()
    scale = None if weight is None else weight.cast(v.dtype)
    one, zero = const(1, v.dtype), const(0, v.dtype)

    def counted(*i: Expr, what: Expr) -> Expr:
        return what if ignore_index is None else guard(not_equal(target.at(*i), ignore_index), what, zero)

    def weight_at(*i: Expr) -> Expr:
        return one if scale is None else scale.at(cast(target.at(*i), "ix"))
    loss = tensor_map(target.shape, v.dtype, lambda *i: counted(*i, what=-v.at(i[0], cast(target.at(*i), "ix"), *i[1:]) * weight_at(*i)))
    if reduction == "none":
        return loss.cast(x.dtype)
    if reduction == "sum":
        return loss.sum().cast(x.dtype)
    if reduction != "mean":
        raise ModelError(f"the reduction is none, sum or mean, here {reduction!r}")
    if scale is None and ignore_index is None:
        return loss.mean().cast(x.dtype)
    return (loss.sum() / tensor_map(target.shape, v.dtype, lambda *i: counted(*i, what=weight_at(*i))).sum()).cast(x.dtype)


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(scores: Tensor, labels: Tensor, weights: Tensor | None = None, *, ignore_index: int | None = None,
                               reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """Also gives the logarithms of the probabilities."""
    log_prob = log_softmax(scores.wide(), axis=1)
    loss = negative_log_likelihood_loss(log_prob, labels, weights, ignore_index=ignore_index, reduction=reduction)
    return loss.cast(scores.dtype), log_prob.cast(scores.dtype)
