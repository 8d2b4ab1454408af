"""com.microsoft: channels-last convolutions and pools, group normalisation, mixtures of experts."""
from __future__ import annotations

import math

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, builder, tensor_map, tensor_reduce
from gpuonnx.ir.expr import Expr, apply, cast, const
from gpuonnx.ir.formula import both, either, equal, less, maximum, minimum, relu, select, sigmoid
from gpuonnx.ops import conv as standard_conv
from gpuonnx.ops import normalize, pool
from gpuonnx.ops.activation import softmax
from gpuonnx.ops.matmul import matrix_product, transposed
from gpuonnx.ops.microsoft import gelu_exact, microsoft
from gpuonnx.ops.microsoft_quantize import channels_behind, channels_first
from gpuonnx.ops.window import Ints, Window, spatial


@microsoft("NhwcConv")
def nhwc_conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
              kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    """x[N, H, W, C], w[O, kH, kW, C / group]"""
    return channels_behind(standard_conv.conv(channels_first(x), channels_first(w), b, auto_pad=auto_pad, dilations=dilations, group=group,
                                              kernel_shape=kernel_shape, pads=pads, strides=strides))


@microsoft("NhwcMaxPool")
def nhwc_max_pool(x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints = None, kernel_shape: list[int], pads: Ints = None,
                  strides: Ints = None) -> Tensor:
    v = channels_first(x)
    return channels_behind(pool.pooled(v, Window.of(spatial(v), kernel_shape, auto_pad, dilations, pads, strides, ceil_mode), "max"))


@microsoft("GroupNorm")
def group_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, activation: int, channels_last: int = 1, epsilon: float = 1e-5, groups: int) -> Tensor:
    """activation 1: SiLU."""
    v = channels_first(x) if channels_last else x
    y = normalize.standardized(normalize.grouped(v.wide(), groups), [2], epsilon).reshape(v.shape)
    y = y * normalize.per_channel(gamma.wide(), v) + normalize.per_channel(beta.wide(), v)
    y = y * sigmoid(y) if activation else y
    return (channels_behind(y) if channels_last else y).cast(x.dtype)


@microsoft("SkipGroupNorm")
def skip_group_norm(x: Tensor, gamma: Tensor, beta: Tensor, skip: Tensor, bias: Tensor | None = None, *, activation: int, channels_last: int = 1,
                    epsilon: float = 1e-5, groups: int) -> tuple[Tensor, Tensor]:
    """skip: as x, or [N, C]. Also gives the sum that was normalised."""
    per_channel = [1, 2] if channels_last else [2, 3]
    total = x + (skip.unsqueeze(per_channel) if skip.rank == 2 else skip)
    if bias is not None:
        total = total + (bias if channels_last else bias.unsqueeze([1, 2]))
    return group_norm(total, gamma, beta, activation=activation, channels_last=channels_last, epsilon=epsilon, groups=groups), total


def chosen(scores: Tensor, count: int) -> Tensor:
    """bool[T, E]: the `count` largest of each row, the first among equals."""
    experts = scores.shape[1]

    def ahead(t: Expr, e: Expr, other: Expr) -> Expr:
        ours, theirs = scores.at(t, e), scores.at(t, other)
        first = either(less(ours, theirs), both(equal(ours, theirs), less(other, e)))
        return select(first, const(1, "i64"), const(0, "i64"))
    place = tensor_reduce((*scores.shape, experts), [2], "sum", "i64", ahead)
    return place < count


def routing(logits: Tensor, count: int, normalised: bool) -> Tensor:
    """The share [T, E] of each expert in each row: 0 for those not among the `count` best."""
    v = logits.wide()
    kept = chosen(v, count)
    low = tensor_map(v.shape, v.dtype, lambda *i: apply("where", kept.at(*i), v.at(*i), const(-math.inf, v.dtype)))
    if normalised:
        return softmax(low, axis=1)
    shares = softmax(v, axis=1)
    return tensor_map(v.shape, v.dtype, lambda *i: cast(kept.at(*i), v.dtype) * shares.at(*i))


def expert_layer(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """x[E | 1, T, K] with weights[E, N, K], bias[E, N], as [E, T, N]"""
    y = matrix_product(x, transposed(weights))
    return y if bias is None else y + bias.unsqueeze([1])


def gated(gate: Tensor, value: Tensor, alpha: float, beta: float, limit: float | None) -> Tensor:
    """SwiGLU with bounds."""
    if limit is not None:
        gate, value = minimum(gate, limit), minimum(maximum(value, -limit), limit)
    return gate * sigmoid(gate * alpha) * (value + beta)


@microsoft("MoE")
def mixture_of_experts(x: Tensor, router_probs: Tensor, fc1: Tensor, fc1_bias: Tensor | None, fc2: Tensor, fc2_bias: Tensor | None = None,
                       fc3: Tensor | None = None, fc3_bias: Tensor | None = None, *, activation_alpha: float = 1.0, activation_beta: float = 0.0,
                       activation_type: str = "relu", k: int = 1, normalize_routing_weights: int = 0, swiglu_fusion: int = 0,
                       swiglu_limit: float | None = None, swiglu_limit_after_activation: int = 0, use_sparse_mixer: int = 0) -> Tensor:
    """Every row through the `k` experts that its router scores prefer, summed by their shares."""
    if use_sparse_mixer or swiglu_limit_after_activation:
        raise ModelError(f"{builder().origin}: use_sparse_mixer and swiglu_limit_after_activation are not supported")
    rows = x if x.rank == 2 else x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    tokens = rows.unsqueeze([0]).expand((fc1.shape[0], *rows.shape))
    hidden = expert_layer(tokens, fc1, fc1_bias)
    value = None if fc3 is None else expert_layer(tokens, fc3, fc3_bias)
    if activation_type == "swiglu":
        if value is None:
            hidden, value = halves(hidden, interleaved=swiglu_fusion == 1)
        hidden = gated(hidden, value, activation_alpha, activation_beta, swiglu_limit)
    else:
        hidden = expert_activation(hidden, activation_type)
        hidden = hidden if value is None else hidden * value
    made = expert_layer(hidden, fc2, fc2_bias)
    shares = transposed(routing(router_probs, k, bool(normalize_routing_weights))).unsqueeze([2])
    return (made.wide() * shares).sum([0]).cast(x.dtype).reshape(x.shape)


def halves(t: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Gate and value, alternating or one behind the other on the last axis."""
    half = t.shape[2] // 2
    return (t.slice(2, 0, half, 2), t.slice(2, 1, half, 2)) if interleaved else (t.slice(2, 0, half), t.slice(2, half, half))


def expert_activation(x: Tensor, name: str) -> Tensor:
    match name:
        case "relu": return relu(x)
        case "gelu": return gelu_exact(x)
        case "silu": return x * sigmoid(x)
        case "identity": return x
    raise ModelError(f"{builder().origin}: activation_type {name!r} is none of relu, gelu, silu, swiglu, identity")
