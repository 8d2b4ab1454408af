"""Attention, rotary embeddings, causal convolutions with a state.

q[B, H, S, D], k[B, N, T, D], v[B, N, T, E]: N divides H, and query head h reads key head h // (H / N) through a View.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Spec, Tensor, broadcast_at, builder, call, concat, dim, from_end, full, size_scalar, tensor_map
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, const, guard, substitute
from gpuonnx.ir.formula import equal, exp, less, less_equal, rsqrt, select, sigmoid, tanh
from gpuonnx.ir.types import BY_ONNX, compute
from gpuonnx.ops.conv import convolution
from gpuonnx.ops.matmul import matrix_product, transposed
from gpuonnx.ops.registry import INTERNAL, Body, op
from gpuonnx.ops.window import Window

Rule = Callable[[Expr, Expr, Expr], Expr]
"""Whether in batch entry b row i may see column j."""


@dataclass(frozen=True)
class Attended:
    """The result [B, H, S, E] and the scores [B, H, S, T] at each stage; what nobody reads is never made."""

    y: Tensor
    raw: Tensor
    capped: Tensor
    masked: Tensor
    weights: Tensor


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Tensor | None = None, rules: Sequence[Rule] = (),
             softcap: float = 0.0, precision: str | None = None, sink: Tensor | None = None) -> Attended:
    """softmax(softcap(q @ k^T * scale) + bias where all rules hold) @ v; a row that may see nothing gives zeros."""
    heads = split_heads(q, k)
    factor = root_scale(q.shape[3], compute(q.dtype)) if scale is None else scale
    raw = matrix_product(heads.wide() * factor, transposed(shared(k, heads)))
    capped = tanh(raw / softcap) * softcap if softcap > 0 else raw
    masked = masked_scores(capped, bias, rules)
    wide = masked if precision is None or compute(precision) == masked.dtype else masked.cast("f64")
    weights = probabilities(wide, bias is not None or bool(rules), sink)
    y = matrix_product(weights.cast(raw.dtype), shared(v, heads))
    return Attended(*(merged_heads(t) for t in (y.cast(v.dtype), raw, capped, masked, weights)))


def root_scale(size: Dim, dtype: str) -> Tensor | float:
    """1 / sqrt(size)"""
    return 1 / math.sqrt(size) if isinstance(size, int) else rsqrt(size_scalar(size, dtype))


def split_heads(t: Tensor, k: Tensor) -> Tensor:
    """[B, H, ...] as [B, N, H / N, ...]"""
    group = d.floordiv(t.shape[1], k.shape[1])
    builder().require(t.shape[1] - group * k.shape[1], "the number of query heads must be a multiple of that of keys", equal=True)
    return t.view((t.shape[0], k.shape[1], group, *t.shape[2:]), lambda b, n, g, *i: [b, n * dim(group) + g, *i])


def merged_heads(t: Tensor) -> Tensor:
    return t.reshape(t.shape[0], t.shape[1] * t.shape[2], *t.shape[3:])


def shared(t: Tensor, heads: Tensor) -> Tensor:
    """One key or value head for all query heads that read it."""
    return t.wide().unsqueeze([2]).expand((t.shape[0], t.shape[1], heads.shape[2], *t.shape[2:]))


def masked_scores(scores: Tensor, bias: Tensor | None, rules: Sequence[Rule]) -> Tensor:
    """Scores [B, N, H / N, S, T] plus a bias, or where a bool mask is true; a mask that ends early hides the rest."""
    if bias is None and not rules:
        return scores
    low = const(-math.inf, scores.dtype)
    batch, keys, group, high, width = scores.shape
    short = bias is not None and not same_or_one(bias.shape[-1], width)
    wanted: tuple[Dim, ...] = ()
    if bias is not None:
        wanted = builder().broadcast((batch, keys * group, high, bias.shape[-1] if short else width), bias.shape)

    def element(b: Expr, n: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        value = scores.at(b, n, h, i, j)
        for rule in rules:
            value = select(rule(b, i, j), value, low)
        if bias is None:
            return value
        given = substitute(broadcast_at(bias, wanted), lambda e: (b, n * dim(group) + h, i, j)[e.value] if e.op == "index" else None)
        value = select(given, value, low) if bias.dtype == "bool" else value + cast(given, scores.dtype)
        return guard(less(j, dim(bias.shape[-1])), value, low) if short else value
    return tensor_map(scores.shape, scores.dtype, element)


def same_or_one(size: Dim, wanted: Dim) -> bool:
    return size == wanted or bool(builder().ask(d.eq(size, wanted))) or bool(builder().ask(d.eq(size, 1)))


def probabilities(scores: Tensor, guarded: bool, sink: Tensor | None = None) -> Tensor:
    """Softmax of rows [B, N, H / N, S, T]; `guarded`: a row of -inf becomes zeros. `sink`: [H], one more score a row that has no value."""
    most = scores.max([-1], keepdims=True)
    extra = sink.cast(scores.dtype).reshape(*scores.shape[1:3], 1, 1) if sink is not None else None
    if extra is not None:
        most = select(most < extra, extra, most)
    if guarded:
        most = select(equal(most, -math.inf), 0.0, most)
    e = exp(scores - most)
    total = e.sum([-1], keepdims=True)
    if extra is not None:
        total = total + exp(extra - most)
    return e / (select(equal(total, 0.0), 1.0, total) if guarded else total)


def rows_before(offset: Callable[[Expr], Expr]) -> Rule:
    """Causal: row i sees columns up to i + offset."""
    return lambda b, i, j: less_equal(j, i + offset(b))


def windowed(offset: Callable[[Expr], Expr], left: int, right: int) -> list[Rule]:
    """Row i, at p = i + offset, sees p - left ... p + right; -1 is no bound."""
    rules: list[Rule] = []
    if left >= 0:
        rules.append(lambda b, i, j: less_equal(i + offset(b), j + dim(left)))
    if right >= 0:
        rules.append(lambda b, i, j: less_equal(j, i + offset(b) + dim(right)))
    return rules


def unpacked(t: Tensor, heads: int) -> Tensor:
    """[B, S, H * D] as [B, H, S, D]; a tensor of rank 4 is so already."""
    if t.rank == 4:
        return t
    if not heads or t.rank != 3:
        raise ModelError(f"{builder().origin}: a tensor of rank {t.rank} with {heads} heads; rank 3 and a number of heads, or rank 4, is expected")
    builder().require(t.shape[2] % heads, f"the last axis must be a multiple of {heads} heads", equal=True)
    size = d.floordiv(t.shape[2], heads)
    return t.view((t.shape[0], heads, t.shape[1], size), lambda b, h, s, e: [b, s, h * dim(size) + e])


def packed(t: Tensor) -> Tensor:
    """[B, H, S, E] as [B, S, H * E]"""
    return t.transpose([0, 2, 1, 3]).reshape(t.shape[0], t.shape[2], t.shape[1] * t.shape[3])


@op("Attention", since=25)
def attention(Q: Tensor, K: Tensor, V: Tensor, attn_mask: Tensor | None = None, past_key: Tensor | None = None, past_value: Tensor | None = None,
              nonpad_kv_seqlen: Tensor | None = None, *, is_causal: int = 0, kv_num_heads: int | None = None, left_window_size: int = -1,
              q_num_heads: int | None = None, qk_matmul_output_mode: int = 0, right_window_size: int = -1, scale: float | None = None,
              softcap: float = 0.0, softmax_precision: int | None = None) -> tuple[Tensor, ...]:
    """Y, the keys and values with the past before them, and the scores at the stage that qk_matmul_output_mode names."""
    q, k, v = unpacked(Q, q_num_heads or 0), unpacked(K, kv_num_heads or 0), unpacked(V, kv_num_heads or 0)
    if past_key is not None and past_value is not None:
        k, v = concat([past_key, k], 2), concat([past_value, v], 2)
    offset = first_row(q, past_key, nonpad_kv_seqlen)
    rules = windowed(offset, left_window_size, right_window_size) + ([rows_before(offset)] if is_causal else [])
    if nonpad_kv_seqlen is not None:
        filled = nonpad_kv_seqlen
        rules.append(lambda b, i, j: less(j, cast(filled.at(b), "ix")))
    made = attended(q, k, v, scale, attn_mask, rules, softcap, BY_ONNX[softmax_precision] if softmax_precision else None)
    shown = (made.raw, made.capped, made.masked, made.weights)[qk_matmul_output_mode].cast(Q.dtype)
    return (packed(made.y) if Q.rank == 3 else made.y), k, v, shown


def first_row(q: Tensor, past: Tensor | None, filled: Tensor | None) -> Callable[[Expr], Expr]:
    """Where the first query row of a batch entry stands among the columns."""
    if past is not None:
        return lambda b: dim(past.shape[2])
    if filled is not None:
        return lambda b: cast(filled.at(b), "ix") - dim(q.shape[2])
    return lambda b: dim(0)


@op("Attention", since=23)
def attention_23(Q: Tensor, K: Tensor, V: Tensor, attn_mask: Tensor | None = None, past_key: Tensor | None = None,
                 past_value: Tensor | None = None, nonpad_kv_seqlen: Tensor | None = None, *, is_causal: int = 0, kv_num_heads: int | None = None,
                 q_num_heads: int | None = None, qk_matmul_output_mode: int = 0, scale: float | None = None, softcap: float = 0.0,
                 softmax_precision: int | None = None) -> tuple[Tensor, ...]:
    """Without windows."""
    made: tuple[Tensor, ...] = attention(
        Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen, is_causal=is_causal, kv_num_heads=kv_num_heads, q_num_heads=q_num_heads,
        qk_matmul_output_mode=qk_matmul_output_mode, scale=scale, softcap=softcap, softmax_precision=softmax_precision)
    return made


def rotated(x: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool, size: Dim) -> Tensor:
    """x[B, H, S, D] with its first `size` columns turned as pairs; cosines, sines: [B | 1, 1, S, size / 2]."""
    half = d.floordiv(size, 2)
    step = 2 if interleaved else 1
    first, second = x.slice(3, 0, half, step), x.slice(3, 1 if interleaved else half, half, step)
    real, imaginary = cosines * first - sines * second, sines * first + cosines * second
    if interleaved:
        turned = concat([real.unsqueeze([4]), imaginary.unsqueeze([4])], 4).reshape(*x.shape[:3], half * 2)
    else:
        turned = concat([real, imaginary], 3)
    return turned if size == x.shape[3] else concat([turned, x.slice(3, size, x.shape[3] - size)], 3)


def at_positions(cache: Tensor, positions: Tensor) -> Tensor:
    """Rows of cache[P, W] at positions[B, S], as [B, 1, S, W]."""
    shape = (positions.shape[0], 1, positions.shape[1], cache.shape[1])
    return tensor_map(shape, cache.dtype, lambda b, h, s, e: cache.at(from_end(positions.at(b, s), cache.shape[0]), e))


@op("RotaryEmbedding", since=23)
def rotary_embedding(X: Tensor, cos_cache: Tensor, sin_cache: Tensor, position_ids: Tensor | None = None, *, interleaved: int = 0,
                     num_heads: int | None = None, rotary_embedding_dim: int = 0) -> Tensor:
    x = unpacked(X, num_heads or 0)
    cosines, sines = (c.unsqueeze([1]) if position_ids is None else at_positions(c, position_ids) for c in (cos_cache, sin_cache))
    y = rotated(x, cosines, sines, bool(interleaved), rotary_embedding_dim or x.shape[3])
    return packed(y) if X.rank == 3 else y


@op("CausalConvWithState", since=27)
def causal_conv_with_state(x: Tensor, weight: Tensor, bias: Tensor | None = None, past_state: Tensor | None = None, *,
                           activation: str = "none") -> tuple[Tensor, Tensor]:
    """x[B, C, L] after the state [B, C, k - 1], each channel with its own weights [C, 1, k]; also gives the next state."""
    y, joined = causal_convolution(x, weight, bias, past_state, activation, 1)
    return y, joined.slice(2, x.shape[2], weight.shape[2] - 1)


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, activation: str, gap: int) -> tuple[Tensor, Tensor]:
    """x[B, C, L] behind its past [B, C, (k - 1) * gap] (default: zeros), and both joined."""
    if activation not in ("none", "silu", "swish"):
        raise ModelError(f"{builder().origin}: activation {activation!r} is none of none, silu, swish")
    before, channels = (weight.shape[2] - 1) * gap, x.shape[1]
    joined = concat([full([x.shape[0], channels, before], 0, x.dtype) if past is None else past, x], 2)
    kernel = int(builder().ask(weight.shape[2]))
    y = convolution(joined, weight, Window.of(joined.shape[2:], [kernel], dilations=[gap]), int(builder().ask(channels)))
    y = y if bias is None else y + bias.unsqueeze([1])
    return (y if activation == "none" else (y.wide() * sigmoid(y.wide())).cast(x.dtype)), joined


RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}


@op("LinearAttention", since=27)
def linear_attention(query: Tensor, key: Tensor, value: Tensor, past_state: Tensor | None = None, decay: Tensor | None = None,
                     beta: Tensor | None = None, *, chunk_size: int = 64, kv_num_heads: int, q_num_heads: int, scale: float = 0.0,
                     update_rule: str = "gated_delta") -> tuple[Tensor, Tensor]:
    """[B, T, heads * size] each: a state [B, N, K, E] that is read and written at every t, in float32; also gives the last state."""
    if update_rule not in RULES:
        raise ModelError(f"{builder().origin}: update_rule {update_rule!r} is none of {', '.join(RULES)}")
    for name, t, wanted in zip(("decay", "beta"), (decay, beta), RULES[update_rule], strict=True):
        if (t is not None) != wanted:
            raise ModelError(f"{builder().origin}: update_rule {update_rule!r} {'needs' if wanted else 'takes no'} {name}")
    if q_num_heads < 1 or kv_num_heads < 1 or q_num_heads % kv_num_heads:
        raise ModelError(f"{builder().origin}: {q_num_heads} query heads are no multiple of {kv_num_heads} heads of keys and values")
    q, (k, v) = unpacked(query, q_num_heads).wide(), (unpacked(t, kv_num_heads).wide() for t in (key, value))
    meet = builder().meet
    batch, length, size = meet(meet(q.shape[0], k.shape[0]), v.shape[0]), meet(meet(q.shape[2], k.shape[2]), v.shape[2]), meet(q.shape[3], k.shape[3])
    state = (batch, kv_num_heads, size, v.shape[3])
    if past_state is not None:
        for have, want in zip(past_state.shape, state, strict=True):
            meet(have, want)
    factors = None if decay is None else exp(unpacked(decay, kv_num_heads).wide()).expand((batch, kv_num_heads, length, size))
    rates = None if beta is None else beta.wide().transpose([0, 2, 1]).expand((batch, kv_num_heads, length))
    y, present = call("linear_attention", q, k, v, None if past_state is None else past_state.wide(), factors, rates,
                      out=[Spec("f32", (batch, length, q_num_heads, v.shape[3])), Spec("f32", state)])
    y = (y * (scale or root_scale(size, "f32"))).cast(query.dtype)
    return y.reshape(batch, length, y.shape[2] * y.shape[3]), present.cast(query.dtype if past_state is None else past_state.dtype)


@op("LinearStep", domain=INTERNAL)
def linear_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, factors: Tensor | None = None, rates: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One step of the kernel linear_attention: the state [B, N, K, E] after it, and what it says to the queries q[B, M, K], as [B, M, E]."""
    kept = state if factors is None else state * factors.unsqueeze([3])
    news = v if rates is None else (v - (kept * k.unsqueeze([3])).sum([2])) * rates.unsqueeze([2])
    after = kept + k.unsqueeze([3]) * news.unsqueeze([2])
    batch, heads, size = k.shape
    asked = q.reshape(batch, heads, d.floordiv(q.shape[1], heads), size)
    said = (asked.unsqueeze([4]) * after.unsqueeze([2])).sum([3])
    return after, said.reshape(batch, q.shape[1], v.shape[2])


@op("FlexAttention", since=1, domain="ai.onnx.preview")
def flex_attention(Q: Tensor, K: Tensor, V: Tensor, *, prob_mod: Body | None = None, scale: float | None = None, score_mod: Body | None = None,
                   softmax_precision: int | None = None) -> Tensor:
    """prob_mod(softmax(score_mod(Q @ K^T * scale))) @ V; a row of -inf gives NaN, as Softmax does."""
    heads, wide = split_heads(Q, K), compute(Q.dtype)
    precision = BY_ONNX[softmax_precision] if softmax_precision else wide
    factor = root_scale(Q.shape[3], wide) if scale is None else scale
    raw = merged_heads(matrix_product(heads.wide() * factor, transposed(shared(K, heads))))
    scores = modified("score_mod", score_mod, raw.cast(precision))
    weights = modified("prob_mod", prob_mod, probabilities(scores.wide(), guarded=False).cast(precision))
    y = matrix_product(split_heads(weights.wide(), K), shared(V.cast(precision), heads))
    return merged_heads(y).cast(Q.dtype)


def modified(name: str, body: Body | None, t: Tensor) -> Tensor:
    """What a sub-graph makes of t: one tensor of the same shape and type."""
    if body is None:
        return t
    results = body(t)
    if len(results) != 1 or not results[0].is_tensor or results[0].rank != t.rank or results[0].dtype != t.dtype:
        found = ", ".join(f"{r.dtype}{list(r.shape) if r.is_tensor else ''}" for r in results)
        raise ModelError(f"{builder().origin}: {name} gives {found}; {t.dtype}{list(t.shape)} is needed")
    for have, want in zip(results[0].shape, t.shape, strict=True):
        builder().meet(have, want)
    return results[0]
