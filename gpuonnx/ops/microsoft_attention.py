"""com.microsoft: attention and what stands around it. A mask hides by adding `mask_filter_value`, as ONNX Runtime has it."""
from __future__ import annotations

from dataclasses import dataclass

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Tensor, builder, concat, dim, from_end, full, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, const, guard
from gpuonnx.ir.formula import both, equal, less, less_equal, minimum, rsqrt, select
from gpuonnx.ir.types import compute
from gpuonnx.ops import normalize
from gpuonnx.ops import quantize as q
from gpuonnx.ops.attention import Rule, at_positions, attended, packed, rotated, rows_before, unpacked, windowed
from gpuonnx.ops.matmul import integer_product, matrix_product, one_or_many
from gpuonnx.ops.microsoft import microsoft
from gpuonnx.ops.microsoft_cache import Codes, Place, Steps
from gpuonnx.ops.registry import Dims

HIDDEN = -10000.0


def refuse(what: str, *given: object) -> None:
    """What ONNX Runtime's own generation loops use is no part of these definitions."""
    if any(given):
        raise ModelError(f"{builder().origin}: {what} is not supported; export the model without it")


def is_size(a: Dim, b: Dim) -> bool:
    return a == b or bool(builder().ask(d.eq(a, b)))


def mask_bias(mask: Tensor, rows: Dim, columns: Dim, past: Dim, batch: Dim, hidden: float, dtype: str) -> Tensor:
    """A mask in any of its forms as [B, 1, S, T] to add: `hidden` where a column does not count.

    [B]: how many columns count; [2 B]: ends, then begins; [B, T], [B, S, T], [B, 1, M, M]: 0 hides."""
    if mask.rank == 1 and not is_size(mask.shape[0], batch) and not is_size(mask.shape[0], batch * 2):
        raise ModelError(f"{builder().origin}: a mask of shape {list(mask.shape)} is none of the forms known")
    ends_and_begins = mask.rank == 1 and not is_size(mask.shape[0], batch)

    def counts(b: Expr, i: Expr, j: Expr) -> Expr:
        if mask.rank == 1:
            before_end = less(j, cast(mask.at(b), "ix"))
            return both(before_end, less_equal(cast(mask.at(b + dim(batch)), "ix"), j)) if ends_and_begins else before_end
        at = {2: (b, j), 3: (b, i, j), 4: (b, dim(0), i + dim(past), j)}[mask.rank]
        return less(const(0, compute(mask.dtype)), mask.at(*at))
    zero, low = const(0.0, compute(dtype)), const(hidden, compute(dtype))
    return tensor_map((batch, 1, rows, columns), dtype, lambda b, _, i, j: select(counts(b, i, j), zero, low))


def joined(past: Tensor | None, t: Tensor) -> Tensor:
    return t if past is None else concat([past, t], 2)


def self_attention(qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, before: Dim, bias: Tensor | None, causal: int, scale: float | None,
                   hidden: float) -> tuple[Tensor, Tensor]:
    """Heads in, the first `before` columns from the past; [B, S, H * E] out, and the weights."""
    query, key, value = qkv
    if mask is not None:
        more = mask_bias(mask, query.shape[2], key.shape[2], before, query.shape[0], hidden, query.dtype)
        bias = more if bias is None else more + bias
    rules: list[Rule] = [rows_before(lambda b: dim(before))] if causal else []
    made = attended(query, key, value, scale or None, bias, rules)
    return packed(made.y), made.weights


def projected_attention(qkv: Tensor, sizes: list[Dim], heads: int, mask: Tensor | None, past: Tensor | None, bias: Tensor | None, causal: int,
                        scale: float | None, hidden: float, outputs: int, filled: Dims | None = None) -> tuple[Tensor, ...]:
    """qkv[B, S, sum(sizes)]; past (a buffer, where `filled` says of how many columns) and, where it is asked for, present: [2, B, H, P, D]."""
    starts: list[Dim] = [0, sizes[0], sizes[0] + sizes[1]]
    query, key, value = (unpacked(qkv.slice(2, start, size), heads) for start, size in zip(starts, sizes, strict=True))
    pasts = [None if past is None else past.slice(0, k, 1).squeeze([0]) for k in range(2)]
    kept = Memory.of(pasts[0], pasts[1], key, value, filled)
    y, _ = self_attention((query, *kept.held), mask, kept.before, bias, causal, scale, hidden)
    return (y, concat([t.unsqueeze([0]) for t in kept.presents], 0)) if outputs > 1 else (y,)


@microsoft("Attention")
def attention(x: Tensor, weights: Tensor, bias: Tensor | None = None, mask_index: Tensor | None = None, past: Tensor | None = None,
              attention_bias: Tensor | None = None, past_sequence_length: Dims | None = None, *, do_rotary: int = 0,
              mask_filter_value: float = HIDDEN, num_heads: int, past_present_share_buffer: int = 0, qkv_hidden_sizes: list[int] | None = None,
              rotary_embedding_dim: int = 0, scale: float | None = None, unidirectional: int = 0, outputs: int) -> tuple[Tensor, ...]:
    refuse("rotation", do_rotary)
    qkv = matrix_product(x, weights)
    sizes: list[Dim] = list(qkv_hidden_sizes or [d.floordiv(weights.shape[1], 3)] * 3)
    return projected_attention(qkv if bias is None else qkv + bias, sizes, num_heads, mask_index, past, attention_bias, unidirectional, scale,
                               mask_filter_value, outputs, past_sequence_length if past_present_share_buffer else None)


@microsoft("QAttention")
def qattention(x: Tensor, weight: Tensor, bias: Tensor, input_scale: Tensor, weight_scale: Tensor, mask_index: Tensor | None = None,
               input_zero_point: Tensor | None = None, weight_zero_point: Tensor | None = None, past: Tensor | None = None, *, do_rotary: int = 0,
               mask_filter_value: float = HIDDEN, num_heads: int, past_present_share_buffer: int = 0, scale: float | None = None,
               unidirectional: int = 0, outputs: int) -> tuple[Tensor, ...]:
    refuse("rotation or a shared buffer", do_rotary, past_present_share_buffer)
    zeros = (None if z is None else one_or_many(z) for z in (input_zero_point, weight_zero_point))
    total = integer_product(x, weight, *zeros)
    qkv = q.dequantized(total, input_scale.reshape() * q.spread(weight_scale, total, 2), None, bias.dtype) + bias
    sizes: list[Dim] = [d.floordiv(weight.shape[1], 3)] * 3
    return projected_attention(qkv, sizes, num_heads, mask_index, past, None, unidirectional, scale, mask_filter_value, outputs)


def parts_of(query: Tensor, key: Tensor | None, value: Tensor | None, heads: int) -> list[Tensor]:
    """Queries, keys, values as heads, from separate tensors or from [B, S, H, 3, D], [B, T, H, 2, D]."""
    def part(t: Tensor, k: int) -> Tensor:
        return t.slice(3, k, 1).squeeze([3]).transpose([0, 2, 1, 3])
    if key is None:
        return [part(query, k) for k in range(3)]
    if value is None:
        return [unpacked(query, heads), part(key, 0), part(key, 1)]
    return [unpacked(t, heads) for t in (query, key, value)]


@microsoft("MultiHeadAttention")
def multi_head_attention(query: Tensor, key: Tensor | None = None, value: Tensor | None = None, bias: Tensor | None = None,
                         key_padding_mask: Tensor | None = None, attention_bias: Tensor | None = None, past_key: Tensor | None = None,
                         past_value: Tensor | None = None, past_sequence_length: Dims | None = None,
                         cache_indirection: Tensor | None = None, *, mask_filter_value: float = HIDDEN, num_heads: int,
                         scale: float | None = None, unidirectional: int = 0, outputs: int) -> tuple[Tensor, ...]:
    """With past_sequence_length the past is a buffer that holds so many columns, and the new ones are written behind them; cache_indirection
    [B, beams, columns] names the beam that each column of a beam is read from."""
    parts = parts_of(query, key, value, num_heads)
    if bias is not None:
        cached = key is not None and key.rank == 4
        start: Dim = 0
        for k, t in enumerate(parts):
            size = t.shape[1] * t.shape[3]
            if not (cached and k):
                parts[k] = t + bias.slice(0, start, size).reshape(t.shape[1], 1, t.shape[3])
            start = start + size
    kept = Memory.of(past_key, past_value, parts[1], parts[2], past_sequence_length)
    keys, values = (of_beams(t, cache_indirection, kept.before) for t in kept.held)
    y, weights = self_attention((parts[0], keys, values), key_padding_mask, kept.before, attention_bias, unidirectional, scale, mask_filter_value)
    return (y, *kept.presents, weights)[:outputs]


@microsoft("DecoderMaskedMultiHeadAttention")
def decoder_masked_multi_head_attention(
        query: Tensor, key: Tensor | None = None, value: Tensor | None = None, mask_index: Tensor | None = None,
        attention_bias: Tensor | None = None, past_key: Tensor | None = None, past_value: Tensor | None = None,
        past_sequence_length: Dims | None = None, beam_width: Tensor | None = None, cache_indirection: Tensor | None = None,
        bias: Tensor | None = None, *, mask_filter_value: float = HIDDEN, num_heads: int, output_qk: int = 0, past_present_share_buffer: int = 0,
        scale: float | None = None, outputs: int) -> tuple[Tensor, ...]:
    """MultiHeadAttention of one new column, with the inputs in another order; query may hold all three, one behind the other."""
    if key is None:
        size = d.floordiv(query.shape[2], 3)
        query, key, value = (query.slice(2, size * k, size) for k in range(3))
    return multi_head_attention(
        query, key, value, bias, mask_index, attention_bias, past_key, past_value, past_sequence_length if past_present_share_buffer else None,
        cache_indirection, mask_filter_value=mask_filter_value, num_heads=num_heads, scale=scale, outputs=outputs)


@dataclass(frozen=True)
class Memory:
    """Keys and values after a step, as they are handed on and as they are read; `before` columns stood there before."""

    presents: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    before: Dim

    @staticmethod
    def of(past_key: Tensor | None, past_value: Tensor | None, key: Tensor, value: Tensor, filled: Dims | None) -> Memory:
        """With `filled`, pasts are buffers that hold so many columns, and the new ones are written behind them."""
        if past_key is None or past_value is None:
            return Memory((key, value), (key, value), 0)
        if filled is None:
            both_joined = joined(past_key, key), joined(past_value, value)
            return Memory(both_joined, both_joined, past_key.shape[2])
        before, columns = filled[0], past_key.shape[2]
        builder().require(columns - before - key.shape[2], f"past_sequence_length and the new columns must be at most {columns}, those of the buffer")
        presents = tuple(appended(past, t, lambda b: dim(before), columns) for past, t in ((past_key, key), (past_value, value)))
        held = tuple(t.slice(2, 0, before + key.shape[2]) for t in presents)
        return Memory((presents[0], presents[1]), (held[0], held[1]), before)


def of_beams(t: Tensor, beams: Tensor | None, filled: Dim) -> Tensor:
    """t[B * beams, N, columns, D] where the first `filled` columns come from the beams that beams[B, beams, ..] names."""
    if beams is None:
        return t
    count = beams.shape[1]

    def element(r: Expr, n: Expr, j: Expr, e: Expr) -> Expr:
        entry = r // dim(count)
        beam = guard(less(j, dim(filled)), cast(beams.at(entry, r % dim(count), j), "ix"), r % dim(count))
        return t.at(entry * dim(count) + beam, n, j, e)
    return tensor_map(t.shape, t.dtype, element)


def appended(past: Tensor | None, t: Tensor, before: Place, length: Dim, valid: Place | None = None) -> Tensor:
    """The first `valid` rows of t[B, N, S, D] (default: all) written behind `before` columns of past[B, N, P, D], as [B, N, length, D]."""
    def element(b: Expr, n: Expr, j: Expr, e: Expr) -> Expr:
        place, rows = j - before(b), dim(t.shape[2]) if valid is None else valid(b)
        old = const(0, compute(t.dtype)) if past is None else guard(less(j, dim(past.shape[2])), past.at(b, n, j, e), const(0, compute(t.dtype)))
        return guard(both(less_equal(dim(0), place), less(place, rows)), t.at(b, n, place, e), old)
    return tensor_map((t.shape[0], t.shape[1], length, t.shape[3]), t.dtype, element)


def head_norm(t: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    if weight is None:
        return t
    v = t.wide()
    return (v * rsqrt((v * v).mean([3], keepdims=True) + epsilon) * weight.wide()).cast(t.dtype)


@microsoft("GroupQueryAttention")
def group_query_attention(query: Tensor, key: Tensor | None, value: Tensor | None, past_key: Tensor | None, past_value: Tensor | None,
                          seqlens_k: Tensor, total_sequence_length: Dims, cos_cache: Tensor | None = None, sin_cache: Tensor | None = None,
                          position_ids: Tensor | None = None, attention_bias: Tensor | None = None, head_sink: Tensor | None = None,
                          k_scale: Tensor | None = None, v_scale: Tensor | None = None, q_norm_weight: Tensor | None = None,
                          k_norm_weight: Tensor | None = None, query_seqlens: Tensor | None = None, *, causal: int = 1, do_rotary: int = 0,
                          k_norm_epsilon: float | None = None, k_quant_type: str = "NONE", kv_cache_bit_width: int = 0, kv_num_heads: int,
                          local_window_size: int = -1, num_heads: int, q_norm_epsilon: float | None = None, qk_norm_epsilon: float = 1e-6,
                          qk_output: int = 0, rotary_interleaved: int = 0, scale: float | None = None, sliding_window_cache: int = 0,
                          smooth_softmax: int = -1, softcap: float = 0.0, v_quant_type: str = "NONE", outputs: int) -> tuple[Tensor, ...]:
    """Entry b holds seqlens_k[b] + 1 columns after this step; where all of them are new it is a prompt, padded on the right. The cache may hold
    8 or 4 bits (`Codes`), or the last columns only (`Window`)."""
    total = total_sequence_length[0]
    query, keys, values = grouped_parts(query, key, value, num_heads, kv_num_heads)
    query = head_norm(query, q_norm_weight, q_norm_epsilon or qk_norm_epsilon)
    keys = head_norm(keys, k_norm_weight, k_norm_epsilon or qk_norm_epsilon)
    steps = Steps.of(query.shape[2], seqlens_k.reshape(query.shape[0]), query_seqlens, total)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        places = position_ids
        if places is None:
            places = tensor_map((query.shape[0], query.shape[2]), "i64", lambda b, s: cast(steps.before(b) + s, "i64"))
        cosines, sines = at_positions(cos_cache, places), at_positions(sin_cache, places)
        query, keys = (rotated(t, cosines, sines, bool(rotary_interleaved), cos_cache.shape[1] * 2) for t in (query, keys))
    kept = [Codes.of(kind, kv_cache_bit_width, factor, t) for kind, factor, t in ((k_quant_type, k_scale, keys), (v_quant_type, v_scale, values))]
    pasts = [None if past is None else codes.read(past) for codes, past in zip(kept, (past_key, past_value), strict=True)]
    news = [codes.quantised(t) for codes, t in zip(kept, (keys, values), strict=True)]
    offset: Place = steps.before
    if sliding_window_cache:
        if past_key is None or local_window_size < 1:
            raise ModelError(f"{builder().origin}: sliding_window_cache needs a past and local_window_size")
        window = steps.windowed(past_key.shape[2], local_window_size)
        offset = window.resident
        wholes = [appended(past, t, window.resident, window.columns, steps.valid) for past, t in zip(pasts, news, strict=True)]
        presents, held = [window.kept(t) for t in wholes], wholes
        attention_bias = None if attention_bias is None else window.shifted(attention_bias, query.shape[0])
    else:
        length = total if past_key is None else d.dmax(past_key.shape[2], total)
        presents = [appended(past, t, steps.before, length, steps.valid) for past, t in zip(pasts, news, strict=True)]
        held = [t.slice(2, 0, total) for t in presents]
    filled = seqlens_k.reshape(query.shape[0])
    rules: list[Rule] = [rows_before(offset)] if causal else [lambda b, i, j: less_equal(j, cast(filled.at(b), "ix"))]
    rules += windowed(offset, local_window_size - 1 if local_window_size > 0 else -1, -1)
    sink = head_sink if head_sink is not None else full([num_heads], 0, query.dtype) if smooth_softmax == 1 else None
    made = attended(query, kept[0].restored(held[0]), kept[1].restored(held[1]), scale or None, attention_bias, rules, softcap, sink=sink)
    weights = made.weights if qk_output == 2 else made.masked
    return (packed(made.y), *(codes.written(t) for codes, t in zip(kept, presents, strict=True)), weights.cast(query.dtype))[:outputs]


def grouped_parts(query: Tensor, key: Tensor | None, value: Tensor | None, heads: int, kv_heads: int) -> list[Tensor]:
    """Heads of separate tensors, or of [B, S, (heads + 2 kv_heads) * D]."""
    if key is not None and value is not None:
        return [unpacked(query, heads), unpacked(key, kv_heads), unpacked(value, kv_heads)]
    every = unpacked(query, heads + 2 * kv_heads)
    return [every.slice(1, 0, heads), every.slice(1, heads, kv_heads), every.slice(1, heads + kv_heads, kv_heads)]


@microsoft("RotaryEmbedding")
def rotary_embedding(x: Tensor, position_ids: Tensor, cos_cache: Tensor, sin_cache: Tensor, *, interleaved: int = 0, is_packed_batching: int = 0,
                     num_heads: int = 0, rotary_embedding_dim: int = 0, scale: float = 1.0) -> Tensor:
    """position_ids: [B, S], or [1] for the first of consecutive ones."""
    heads = num_heads or (0 if x.rank == 4 else int(builder().ask(d.floordiv(x.shape[2], cos_cache.shape[1] * 2))))
    t = unpacked(x, heads)
    places = position_ids
    if places.rank == 1:
        places = tensor_map((1, t.shape[2]), "i64", lambda _, s: position_ids.at(0) + cast(s, "i64"))
    y = rotated(t, at_positions(cos_cache, places), at_positions(sin_cache, places), bool(interleaved), rotary_embedding_dim or t.shape[3])
    return packed(y) if x.rank == 3 else y


def looked_up(table: Tensor, ids: Tensor) -> Tensor:
    """table[W, D] at ids[..]"""
    return tensor_map((*ids.shape, table.shape[1]), table.dtype, lambda *i: table.at(from_end(ids.at(*i[:-1]), table.shape[0]), i[-1]))


@microsoft("EmbedLayerNormalization")
def embed_layer_normalization(input_ids: Tensor, segment_ids: Tensor | None, word_embedding: Tensor, position_embedding: Tensor,
                              segment_embedding: Tensor | None, gamma: Tensor, beta: Tensor, mask: Tensor | None = None,
                              position_ids: Tensor | None = None, *, epsilon: float = 1e-12, mask_index_type: int = 0,
                              outputs: int) -> tuple[Tensor, ...]:
    """Also gives how many ones the mask has (0 without a mask), and the sum of the embeddings."""
    total = looked_up(word_embedding, input_ids)
    rows = position_embedding.slice(0, 0, input_ids.shape[1]) if position_ids is None else looked_up(position_embedding, position_ids)
    total = total + rows
    if segment_ids is not None and segment_embedding is not None:
        total = total + looked_up(segment_embedding, segment_ids)
    y = normalize.layer_normalization(total, gamma, beta, epsilon=epsilon)[0]
    if mask is None:
        ones = full([input_ids.shape[0]], 0, "i32")
    else:
        ones = tensor_map(mask.shape, "i32", lambda *i: select(equal(mask.at(*i), 1), const(1, "i32"), const(0, "i32"))).sum([1])
    return (y, ones, total)[:outputs]


@microsoft("QEmbedLayerNormalization")
def q_embed_layer_normalization(
        input_ids: Tensor, segment_ids: Tensor | None, word: Tensor, place: Tensor, segment: Tensor | None, gamma: Tensor, beta: Tensor,
        mask: Tensor | None, word_scale: Tensor, place_scale: Tensor, segment_scale: Tensor | None, gamma_scale: Tensor, beta_scale: Tensor,
        word_zero: Tensor, place_zero: Tensor, segment_zero: Tensor | None, gamma_zero: Tensor, beta_zero: Tensor, *,
        epsilon: float = 1e-12) -> tuple[Tensor, ...]:
    """EmbedLayerNormalization of tables and weights in 8 bits."""
    def real(t: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        return q.dequantized(t, scale.reshape(), None if zero is None else zero.reshape(), "f32")
    segments = None if segment is None or segment_scale is None else real(segment, segment_scale, segment_zero)
    return embed_layer_normalization(
        input_ids, segment_ids, real(word, word_scale, word_zero), real(place, place_scale, place_zero), segments,
        real(gamma, gamma_scale, gamma_zero), real(beta, beta_scale, beta_zero), mask, epsilon=epsilon, outputs=2)


@microsoft("SparseAttention")
def sparse_attention(query: Tensor, key: Tensor | None, value: Tensor | None, past_key: Tensor, past_value: Tensor, block_row_indices: Tensor,
                     block_col_indices: Tensor, total_sequence_length: Dims, key_total_sequence_lengths: Tensor, cos_cache: Tensor | None = None,
                     sin_cache: Tensor | None = None, *, do_rotary: int = 0, kv_num_heads: int, num_heads: int, rotary_interleaved: int = 0,
                     scale: float | None = None, sparse_block_size: int) -> tuple[Tensor, ...]:
    """GroupQueryAttention where a block of rows sees some blocks of columns: those block_col_indices[layout, n] with n from
    block_row_indices[layout, row] on, up to those of the next row. Heads take the layouts in turn."""
    layouts, blocks = block_row_indices.shape[0], block_row_indices.shape[1] - 1

    def named(layout: Expr, row: Expr, column: Expr, n: Expr) -> Expr:
        inside = both(less_equal(cast(block_row_indices.at(layout, row), "ix"), n), less(n, cast(block_row_indices.at(layout, row + 1), "ix")))
        return both(inside, equal(cast(block_col_indices.at(layout, n), "ix"), column))
    seen = tensor_reduce((layouts, blocks, blocks, block_col_indices.shape[1]), [3], "any", "bool", named)
    filled, total, rows = key_total_sequence_lengths, total_sequence_length[0], query.shape[1]
    steps = Steps.of(rows, filled - 1, None, total)
    last = dim(blocks - 1)

    def hidden(b: Expr, n: Expr, i: Expr, j: Expr) -> Expr:
        row, column = (minimum(place // dim(sparse_block_size), last) for place in (i + steps.before(b), j))
        return select(seen.at(n % dim(layouts), row, column), const(0.0, compute(query.dtype)), const(float("-inf"), compute(query.dtype)))
    bias = tensor_map((query.shape[0], num_heads, rows, total), query.dtype, hidden)
    return group_query_attention(
        query, key, value, past_key, past_value, filled - 1, total_sequence_length, cos_cache, sin_cache, None, bias, do_rotary=do_rotary,
        kv_num_heads=kv_num_heads, num_heads=num_heads, rotary_interleaved=rotary_interleaved, scale=scale, outputs=3)
