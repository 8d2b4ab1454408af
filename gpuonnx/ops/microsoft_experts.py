"""com.microsoft: mixtures of experts."""
from __future__ import annotations

import math
from dataclasses import dataclass

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Tensor, builder, dim, product, tensor_map, tensor_reduce
from gpuonnx.ir.expr import Expr, apply, cast, const
from gpuonnx.ir.formula import both, either, equal, less, log, maximum, minimum, relu, select, sigmoid
from gpuonnx.ir.types import compute
from gpuonnx.ops.activation import softmax
from gpuonnx.ops.matmul import matrix_product, transposed
from gpuonnx.ops.microsoft import fast_gelu, microsoft
from gpuonnx.ops.microsoft_quantize import bits_of

FLOAT4 = {"fp4": 32, "nvfp4": 16}
"""Kinds of 4-bit floats, and how many of them have a scale in common."""
Weights = tuple[Tensor, Tensor | None]


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


def gated(gate: Tensor, value: Tensor, alpha: float, beta: float, limit: float | None, after: bool) -> Tensor:
    """SwiGLU; the gate has its upper bound before its activation, or after it."""
    if limit is None:
        return gate * sigmoid(gate * alpha) * (value + beta)
    gate = gate if after else minimum(gate, limit)
    active = gate * sigmoid(gate * alpha)
    return (minimum(active, limit) if after else active) * (minimum(maximum(value, -limit), limit) + beta)


@dataclass(frozen=True)
class Experts:
    """How rows go through their experts."""

    activation: str
    alpha: float
    beta: float
    limit: float | None
    fusion: int
    limit_after: bool

    def run(self, x: Tensor, shares: Tensor, first: Weights, second: Weights, third: Weights | None) -> Tensor:
        """Every row of x[.., K] through all experts, summed by its shares[T, E]."""
        rows = x if x.rank == 2 else x.reshape(x.shape[0] * x.shape[1], x.shape[2])
        tokens = rows.unsqueeze([0]).expand((first[0].shape[0], *rows.shape))
        hidden = expert_layer(tokens, *first)
        value = None if third is None else expert_layer(tokens, *third)
        if self.activation == "swiglu":
            if value is None:
                hidden, value = halves(hidden, interleaved=self.fusion == 1)
            hidden = gated(hidden, value, self.alpha, self.beta, self.limit, self.limit_after)
        else:
            hidden = expert_activation(hidden, self.activation)
            hidden = hidden if value is None else hidden * value
        made = expert_layer(hidden, *second)
        return (made.wide() * transposed(shares).unsqueeze([2])).sum([0]).cast(x.dtype).reshape(x.shape)


def refuse_mixer(use_sparse_mixer: int) -> None:
    if use_sparse_mixer:
        raise ModelError(f"{builder().origin}: use_sparse_mixer is not supported (ONNX Runtime heeds it on GPUs only); export the model without it")


@microsoft("MoE")
def mixture_of_experts(x: Tensor, router_probs: Tensor, fc1: Tensor, fc1_bias: Tensor | None, fc2: Tensor, fc2_bias: Tensor | None = None,
                       fc3: Tensor | None = None, fc3_bias: Tensor | None = None, *, activation_alpha: float = 1.0, activation_beta: float = 0.0,
                       activation_type: str = "relu", k: int = 1, normalize_routing_weights: int = 0, swiglu_fusion: int = 0,
                       swiglu_limit: float | None = None, swiglu_limit_after_activation: int = 0, use_sparse_mixer: int = 0) -> Tensor:
    """Every row through the `k` experts that its router scores prefer, summed by their shares."""
    refuse_mixer(use_sparse_mixer)
    experts = Experts(activation_type, activation_alpha, activation_beta, swiglu_limit, swiglu_fusion, bool(swiglu_limit_after_activation))
    shares = routing(router_probs, k, bool(normalize_routing_weights))
    return experts.run(x, shares, (fc1, fc1_bias), (fc2, fc2_bias), None if fc3 is None else (fc3, fc3_bias))


def integer_weights(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, block: int, dtype: str, dealt: bool) -> Tensor:
    """codes[E, N, K * bits / 8] as (code - zero) * scale, [E, N, K]; one scale and zero point a row, or a block of it. `dealt`: 32 columns of 4
    bits lie in the order in which ONNX Runtime's CPU kernel reads them."""
    wide, columns = compute(dtype), d.floordiv(codes.shape[2] * 8, bits)

    def weight(e: Expr, n: Expr, k: Expr) -> Expr:
        row, part = ((e, n), k // dim(block)) if block else ((e,), n)
        zero = const(2.0 ** (bits - 1), wide) if zeros is None else cast(bits_of(zeros, bits, row, part), wide)
        return (cast(bits_of(codes, bits, (e, n), dealt_place(k) if dealt and bits == 4 else k), wide) - zero) * cast(scales.at(*row, part), wide)
    return tensor_map((codes.shape[0], codes.shape[1], columns), dtype, weight)


def dealt_place(k: Expr) -> Expr:
    """Where column k stands: of 32, columns j, j + 8, j + 16, j + 24 are four in a row."""
    return k // 32 * 32 + k % 8 * 4 + k % 32 // 8


def float4_weights(codes: Tensor, scales: Tensor, factors: Tensor, dtype: str, block: int, by_column: bool) -> Tensor:
    """Two E2M1 numbers a byte as [E, N, K], a scale for each block of a row and one for each expert. by_column: codes[E, K, N / 2], else
    [E, N, K / 2], whatever the axes say."""
    wide, (experts, rows, blocks) = compute(dtype), scales.shape
    columns = blocks * block
    packed = codes if by_column else codes.reshape(experts, rows, d.floordiv(columns, 2))

    def weight(e: Expr, n: Expr, k: Expr) -> Expr:
        code = cast(bits_of(packed, 4, (e, k), n) if by_column else bits_of(packed, 4, (e, n), k), "i32")
        power, half = apply("bit_and", apply("shr", code, 1), 3), apply("bit_and", code, 1)
        size = select(equal(power, 0), cast(half, wide) * 0.5, cast(apply("shl", half + 2, power), wide) * 0.25)
        value = select(less(code, 8), size, -size)
        return value * cast(scales.at(e, n, k // dim(block)), wide) * cast(factors.at(e), wide)
    return tensor_map((experts, rows, columns), dtype, weight)


def float8_weights(codes: Tensor, scales: Tensor, block: int, dtype: str) -> Tensor:
    """codes[E, N, K] of 8-bit floats, a scale for each square of `block` by `block`."""
    wide = compute(dtype)
    return tensor_map(codes.shape, dtype, lambda e, n, k: cast(codes.at(e, n, k), wide) * cast(scales.at(e, n // dim(block), k // dim(block)), wide))


@microsoft("QMoE")
def quantized_mixture_of_experts(
        x: Tensor, router_probs: Tensor, fc1: Tensor, fc1_scales: Tensor | None, fc1_bias: Tensor | None, fc2: Tensor,
        fc2_scales: Tensor | None, fc2_bias: Tensor | None = None, fc3: Tensor | None = None, fc3_scales: Tensor | None = None,
        fc3_bias: Tensor | None = None, fc1_zero_points: Tensor | None = None, fc2_zero_points: Tensor | None = None,
        fc3_zero_points: Tensor | None = None, router_weights: Tensor | None = None, fc1_global_scale: Tensor | None = None,
        fc2_global_scale: Tensor | None = None, fc1_act_scale: Tensor | None = None, fc2_act_scale: Tensor | None = None,
        fc1_act_block_scale: Tensor | None = None, fc2_act_block_scale: Tensor | None = None, *, accuracy_level: int = 0,
        activation_alpha: float = 1.0, activation_beta: float = 0.0, activation_type: str = "relu", block_size: int = 0,
        expert_weight_bits: int = 4, fc1_expert_weight_bits: int | None = None, fc2_expert_weight_bits: int | None = None,
        fc3_expert_weight_bits: int | None = None, k: int = 1, normalize_routing_weights: int = 0, quant_type: str = "int",
        swiglu_fusion: int = 0, swiglu_limit: float | None = None, swiglu_limit_after_activation: int = 0, use_sparse_mixer: int = 0,
        weights_prepacked: int = -1) -> Tensor:
    """As MoE, with weights of 2, 3, 4 or 8 bits (lowest bits first), or of floats of 8 bits (scaled by squares) or 4. ONNX Runtime's shares always
    have the sum 1 here, but for 3 bits, for 4-bit floats and for those that `router_weights` gives."""
    refuse_mixer(use_sparse_mixer)
    if any(t is not None for t in (fc1_act_scale, fc2_act_scale, fc1_act_block_scale, fc2_act_block_scale)):
        raise ModelError(f"{builder().origin}: scales of activations are not supported")

    def weights(codes: Tensor | None, scales: Tensor | None, zeros: Tensor | None, own: int | None, whole: Tensor | None = None) -> Tensor | None:
        bits = own or expert_weight_bits
        if codes is None or scales is None:
            return None
        if quant_type == "fp8" and block_size > 0:
            return float8_weights(codes, scales, block_size, x.dtype)
        if quant_type in FLOAT4 and whole is not None:
            return float4_weights(codes, scales, whole, x.dtype, FLOAT4[quant_type], quant_type == "nvfp4" and weights_prepacked != 1)
        if quant_type != "int" or bits not in (2, 3, 4, 8):
            raise ModelError(f"{builder().origin}: weights of quant_type {quant_type}, {bits} bits, with{'out' if whole is None else ''} scales of "
                             "experts; int of 2, 3, 4 or 8 bits, fp8 with block_size, or fp4 and nvfp4 with scales of experts are expected")
        return integer_weights(codes, scales, zeros, bits, max(block_size, 0), x.dtype, weights_prepacked == 1)
    first = weights(fc1, fc1_scales, fc1_zero_points, fc1_expert_weight_bits, fc1_global_scale)
    second = weights(fc2, fc2_scales, fc2_zero_points, fc2_expert_weight_bits, fc2_global_scale)
    third = weights(fc3, fc3_scales, fc3_zero_points, fc3_expert_weight_bits)
    if first is None or second is None:
        raise ModelError(f"{builder().origin}: fc1_scales and fc2_scales are missing")
    if router_weights is None:
        narrow = 3 in (fc1_expert_weight_bits or expert_weight_bits, fc2_expert_weight_bits or expert_weight_bits)
        shares = routing(router_probs, k, bool(normalize_routing_weights) if narrow or quant_type in FLOAT4 else True)
    else:
        shares = given_shares(router_probs, router_weights, k, bool(normalize_routing_weights))
    experts = Experts(activation_type, activation_alpha, activation_beta, swiglu_limit, swiglu_fusion, bool(swiglu_limit_after_activation))
    return experts.run(x, shares, (first, fc1_bias), (second, fc2_bias), None if third is None else (third, fc3_bias))


def given_shares(scores: Tensor, weights: Tensor, count: int, normalised: bool) -> Tensor:
    """`weights` of the experts that the scores choose, as they are or with sum 1."""
    kept, v = chosen(scores.wide(), count), weights.wide()
    shares = tensor_map(v.shape, v.dtype, lambda *i: select(kept.at(*i), v.at(*i), const(0, v.dtype)))
    return shares / shares.sum([1], keepdims=True) if normalised else shares


def halves(t: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Gate and value, alternating or one behind the other on the last axis."""
    half = t.shape[2] // 2
    return (t.slice(2, 0, half, 2), t.slice(2, 1, half, 2)) if interleaved else (t.slice(2, 0, half), t.slice(2, half, half))


def expert_activation(x: Tensor, name: str) -> Tensor:
    match name:
        case "relu": return relu(x)
        case "gelu": return fast_gelu(x)
        case "silu": return x * sigmoid(x)
        case "identity": return x
    raise ModelError(f"{builder().origin}: activation_type {name!r} is none of relu, gelu, silu, swiglu, identity")


@microsoft("MoEGroupRouter")
def moe_group_router(logits: Tensor, expert_bias: Tensor, projection_weight: Tensor | None = None, *, group_topk: int = 2, n_group: int = 1,
                     router_sentinel: float = -10000.0, top_k: int, topk_group: int = 1, outputs: int) -> tuple[Tensor, ...]:
    """Logarithms of the shares of the `top_k` best experts of the best groups [T, E], router_sentinel elsewhere; the shares with their bias; the
    shares. A group is as good as its group_topk best experts together."""
    flat = logits.reshape(product(logits.shape[:-1]), logits.shape[-1]).wide()
    shares = sigmoid(flat if projection_weight is None else matrix_product(flat, transposed(projection_weight.wide())))
    scores, (rows, experts) = shares + expert_bias, shares.shape
    if outputs > 1:
        return shares.cast(logits.dtype), scores, shares
    each = d.floordiv(experts, n_group)
    grouped = scores.reshape(rows * n_group, each)
    best = chosen(grouped, group_topk)
    worth = tensor_map(grouped.shape, "f32", lambda r, e: select(best.at(r, e), grouped.at(r, e), const(0.0, "f32"))).sum([1])
    groups = chosen(worth.reshape(rows, n_group), topk_group)
    open_to = tensor_map(scores.shape, "f32", lambda t, e: select(groups.at(t, e // dim(each)), scores.at(t, e), const(-math.inf, "f32")))
    kept = chosen(open_to, top_k)
    return (tensor_map(scores.shape, logits.dtype, lambda t, e: select(
        kept.at(t, e), log(maximum(shares.at(t, e), 1e-20)), const(router_sentinel, "f32"))),)
