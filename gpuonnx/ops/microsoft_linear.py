"""com.microsoft: linear attention and causal convolution with the states of several steps, and the gates that stand around them."""
from __future__ import annotations

from collections.abc import Callable

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Spec, Tensor, builder, call, concat, dim, product, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, const, guard
from gpuonnx.ir.formula import absolute, both, exp, less, less_equal, maximum, minimum, rsqrt, select, sigmoid, sign, sqrt
from gpuonnx.ir.types import compute
from gpuonnx.ops import activation as act
from gpuonnx.ops import attention as standard
from gpuonnx.ops.attention import RULES, at_positions, packed, root_scale, rotated, unpacked
from gpuonnx.ops.microsoft import microsoft
from gpuonnx.ops.microsoft_attention import refuse


def latest(window: int, states: Tensor) -> Tensor:
    """What a state of several steps [window, B, ...] says of the last; one step has no axis for them."""
    return states.slice(0, window - 1, 1).squeeze([0]) if window else states


def slot(state: Tensor, steps: Dim) -> Tensor:
    """A state after so many steps as one of a window [1, B, ...]: zeros where there was none."""
    zero = const(0, compute(state.dtype))
    return tensor_map((1, *state.shape), state.dtype, lambda _, *i: select(less(dim(0), dim(steps)), state.at(*i), zero))


@microsoft("LinearAttention")
def linear_attention(query: Tensor, key: Tensor, value: Tensor, past_state: Tensor | None = None, decay: Tensor | None = None,
                     beta: Tensor | None = None, *, chunk_size: int = 64, kv_num_heads: int, q_num_heads: int, scale: float = 0.0,
                     state_window: int = 0, update_rule: str = "gated_delta") -> tuple[Tensor, Tensor]:
    """As of ai.onnx; heads of keys may share one of queries too. With a window, states [W, B, N, K, E] after the last W steps."""
    query, heads = several(query, q_num_heads, kv_num_heads), max(q_num_heads, kv_num_heads)
    past, length = None if past_state is None else latest(state_window, past_state), query.shape[1]
    done: Dim = 0
    made, slots = [], []
    for k in range(max(state_window, 1)):
        until = d.dmax(length - max(state_window, 1) + 1 + k, 0)
        q, key_rows, value_rows = (t.slice(1, done, until - done) for t in (query, key, value))
        gates = [None if t is None else t.slice(1, done, until - done) for t in (decay, beta)]
        y, past = standard.linear_attention(q, key_rows, value_rows, past, *gates, chunk_size=chunk_size, kv_num_heads=kv_num_heads,
                                            q_num_heads=heads, scale=scale, update_rule=update_rule)
        made.append(y)
        slots.append(slot(past, until) if state_window else past)
        done = until
    return concat(made, 1), concat(slots, 0)


def several(t: Tensor, heads: int, wanted: int) -> Tensor:
    """t[B, T, heads * size] with each head as often as it takes to have those wanted, if it has fewer."""
    if heads < 1 or wanted <= heads or wanted % heads:
        return t
    size, times = d.floordiv(t.shape[2], heads), wanted // heads
    return tensor_map((*t.shape[:2], wanted * size), t.dtype, lambda b, i, e: t.at(b, i, e // dim(size * times) * dim(size) + e % dim(size)))


@microsoft("CausalConvWithState")
def causal_conv_with_state(x: Tensor, weight: Tensor, bias: Tensor | None = None, past_state: Tensor | None = None, *, activation: str = "none",
                           channels_last: int = 0, dilation: int = 1, input_channel_offset: int = 0, input_channels: int = 0, ndim: int = 1,
                           state_channels_last: int = -1, state_length: int = 0, state_update_capacity: int = 0,
                           state_window: int = 0) -> tuple[Tensor, Tensor]:
    """As of ai.onnx, with gaps between taps, channels last (on any number of axes), and states [W, B, C, (k - 1) * gap] after the last W steps."""
    refuse("more than one axis, a choice of channels, a state of another length or layout", ndim != 1, input_channel_offset, input_channels,
           state_channels_last not in (-1, channels_last), state_length, state_update_capacity)
    rest, window = x.shape[2:], state_window
    before = (weight.shape[2] - 1) * dilation

    def inward(t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:2], product(rest)).transpose([0, 2, 1]) if channels_last else t

    def outward(t: Tensor) -> Tensor:
        return t.transpose([0, 2, 1]).reshape(t.shape[0], t.shape[2], *rest) if channels_last else t
    past = None if past_state is None else inward(latest(window, past_state))
    first = inward(x)
    y, joined = standard.causal_convolution(first, weight, bias, past, activation, dilation)
    steps = [d.dmax(first.shape[2] - window + 1 + k, 0) for k in range(window)]
    if not window:
        return outward(y), outward(joined.slice(2, first.shape[2], before))
    return outward(y), concat([slot(outward(joined.slice(2, s, before)), s) for s in steps], 0)


@microsoft("LinearAttentionGate")
def linear_attention_gate(a: Tensor, dt_bias: Tensor, decay_scale: Tensor, b: Tensor | None = None) -> tuple[Tensor | None, ...]:
    decay = decay_scale * act.softplus(a.wide() + dt_bias)
    return decay.cast(a.dtype), None if b is None else sigmoid(b.wide()).cast(b.dtype)


@microsoft("GatedDeltaNet")
def gated_delta_net(query: Tensor, key: Tensor | None, value: Tensor | None, cu_seqlens: Tensor | None = None, decay: Tensor | None = None,
                    beta: Tensor | None = None, initial_state: Tensor | None = None, a_log: Tensor | None = None, dt_bias: Tensor | None = None,
                    capture_count: Tensor | None = None, state_update_active: Tensor | None = None, *, beta_activation: str = "none",
                    chunk_size: int = 64, gate_activation: str = "none", gate_lower_bound: float = -5.0, qk_l2_norm: int = 0, scale: float = 0.0,
                    state_update_capacity: int = 0, update_rule: str = "gated_delta") -> tuple[Tensor, Tensor]:
    """Rows of all batch entries one behind the other, [rows, heads, size], or [B, S, heads, size]; states [B, heads, E, K]."""
    refuse("state_update_capacity", state_update_capacity)
    if update_rule not in RULES:
        raise ModelError(f"{builder().origin}: update_rule {update_rule!r} is none of {', '.join(RULES)}")
    if key is None or value is None:
        query, key, value = split_rows(query, initial_state)
    lead, wide = query.shape[:-2], [flat_rows(t, 2).wide() for t in (query, key, value)]
    rows, heads, size, out = wide[0].shape[0], wide[2].shape[1], wide[0].shape[2], wide[2].shape[2]
    if qk_l2_norm:
        wide[:2] = (t * rsqrt((t * t).sum([2], keepdims=True) + 1e-12) for t in wide[:2])
    with_decay, with_beta = RULES[update_rule]
    gates = None if decay is None or not with_decay else gate(flat_rows(decay, decay.rank - len(lead)).wide(), gate_activation, a_log, dt_bias,
                                                              gate_lower_bound)
    rates = None if beta is None or not with_beta else flat_rows(beta, 1).wide()
    rates = sigmoid(rates) if rates is not None and beta_activation == "sigmoid" else rates
    batch = cu_seqlens.shape[0] - 1 if cu_seqlens is not None else initial_state.shape[0] if initial_state is not None else lead[0]
    ragged = Ragged(cu_seqlens, batch, rows)
    q, k = (ragged.split(shared(t, heads), 0.0) for t in wide[:2])
    factors = None if gates is None else exp(ragged.split(gates if gates.rank == 3 else gates.unsqueeze([2]).expand((rows, heads, size)), 0.0))
    steps = None if rates is None else ragged.split(rates.unsqueeze([2]), 0.0).squeeze([3])
    past = None if initial_state is None else initial_state.transpose([0, 1, 3, 2])
    y, last = call("linear_attention", q, k, ragged.split(wide[2], 0.0), past, factors, steps,
                   out=[Spec("f32", (batch, ragged.longest, heads, out)), Spec("f32", (batch, heads, size, out))])
    y = ragged.joined(y * (scale or root_scale(size, "f32"))).cast(query.dtype)
    return y.reshape(*lead, heads, out), last.transpose([0, 1, 3, 2])


def flat_rows(t: Tensor, kept: int) -> Tensor:
    """All but the last axes as one."""
    return t.reshape(product(t.shape[:t.rank - kept]), *t.shape[t.rank - kept:])


def split_rows(qkv: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Heads of queries, keys, values, from rows of all of them; the state tells how many values there are, and of which size."""
    if state is None:
        raise ModelError(f"{builder().origin}: rows of queries, keys and values need initial_state")
    heads, out, size = state.shape[1:]
    count = d.floordiv(qkv.shape[-1] - heads * out, size * 2)
    starts: list[Dim] = [0, count * size, count * size * 2]
    shapes = ((count, size), (count, size), (heads, out))
    parts = [qkv.slice(-1, s, n * e).reshape(*qkv.shape[:-1], n, e) for s, (n, e) in zip(starts, shapes, strict=True)]
    return parts[0], parts[1], parts[2]


def shared(t: Tensor, heads: Dim) -> Tensor:
    """t[rows, N, K] with each head as often as it takes to have so many."""
    times = d.floordiv(heads, t.shape[1])
    return tensor_map((t.shape[0], heads, t.shape[2]), t.dtype, lambda r, n, e: t.at(r, n // dim(times), e))


def gate(decay: Tensor, kind: str, a_log: Tensor | None, bias: Tensor | None, low: float) -> Tensor:
    """The logarithm of the decay, [rows, N] or [rows, N, K]."""
    if kind == "none":
        return decay
    if kind not in ("softplus", "qwen", "sigmoid", "kda") or a_log is None:
        raise ModelError(f"{builder().origin}: gate_activation {kind!r} with{'out' if a_log is None else ''} a_log; none, or softplus, sigmoid "
                         "(kda) with a_log is expected")
    rate = exp(a_log if decay.rank == 2 else a_log.unsqueeze([1]))
    if bias is not None:
        full_size = decay.rank == 3 and (bias.rank == 2 or bool(builder().ask(d.eq(bias.shape[0], decay.shape[1] * decay.shape[2]))))
        decay = decay + (bias.reshape(*decay.shape[1:]) if full_size else bias if decay.rank == 2 else bias.unsqueeze([1]))
    return -rate * act.softplus(decay) if kind in ("softplus", "qwen") else sigmoid(rate * decay) * low


class Ragged:
    """Rows of `batch` entries: those of each are begins[b] to begins[b + 1], or all entries have the same number of them."""

    def __init__(self, begins: Tensor | None, batch: Dim, rows: Dim) -> None:
        self.begins, self.batch, self.rows = begins, batch, rows
        self.longest = rows if begins is not None else d.floordiv(rows, d.dmax(batch, 1))

    def begin(self, b: Expr) -> Expr:
        return b * dim(self.longest) if self.begins is None else cast(self.begins.at(b), "ix")

    def split(self, t: Tensor, beyond: float) -> Tensor:
        """t[rows, N, E] as [B, N, longest, E], `beyond` behind the rows of an entry."""
        return tensor_map((self.batch, t.shape[1], self.longest, t.shape[2]), t.dtype, lambda b, n, i, e: guard(
            less(self.begin(b) + i, self.begin(b + 1)), t.at(self.begin(b) + i, n, e), const(beyond, t.dtype)))

    def joined(self, y: Tensor) -> Tensor:
        """y[B, longest, N, E] as [rows, N, E]"""
        entry = self.entries()
        return tensor_map((self.rows, *y.shape[2:]), y.dtype, lambda r, n, e: y.at(entry(r), r - self.begin(entry(r)), n, e))

    def entries(self) -> Callable[[Expr], Expr]:
        """The entry that a row belongs to."""
        if self.begins is None:
            return lambda r: r // dim(self.longest)
        owner = tensor_reduce((self.rows, self.batch), [1], "sum", "i64", lambda r, b: cast(less_equal(self.begin(b + 1), r), "i64"))
        return lambda r: cast(owner.at(r), "ix")


@microsoft("VarlenCausalConvWithState")
def varlen_causal_conv_with_state(x: Tensor, weight: Tensor, cumulative_sequence_length: Tensor, bias: Tensor | None, initial_state: Tensor,
                                  capture_count: Tensor | None = None, kernel_delta: Tensor | None = None, previous_mask: Tensor | None = None, *,
                                  activation: str = "none", delta_offset: int = 0, dilation: int = 1, group_size: int = 1,
                                  state_update_capacity: int = 0) -> tuple[Tensor, ...]:
    """CausalConvWithState of entries whose rows x[rows, C] stand one behind the other; also gives the first rows of each, as many as are counted,
    [B, capacity, C]."""
    refuse("kernel_delta (which ONNX Runtime knows on CUDA only)", kernel_delta is not None or previous_mask is not None)
    if activation not in ("none", "silu", "swish"):
        raise ModelError(f"{builder().origin}: activation {activation!r} is none of none, silu, swish")
    (rows, channels), taps, before, wide = x.shape, weight.shape[2], initial_state.shape[2], compute(x.dtype)
    ragged = Ragged(cumulative_sequence_length, initial_state.shape[0], rows)
    entry = ragged.entries()

    def seen(b: Expr, place: Expr, c: Expr) -> Expr:
        """The element at a place of an entry; what is before its rows is its state."""
        return guard(less(place, dim(0)), initial_state.at(b, c, place + dim(before)), x.at(ragged.begin(b) + place, c))

    def length(b: Expr) -> Expr:
        return ragged.begin(b + 1) - ragged.begin(b)

    def term(r: Expr, c: Expr, j: Expr) -> Expr:
        place = r - ragged.begin(entry(r)) - (dim(taps - 1) - j) * dilation
        return cast(seen(entry(r), place, c), wide) * cast(weight.at(c, 0, j), wide)
    y = tensor_reduce((rows, channels, taps), [2], "sum", wide, term)
    y = y if bias is None else y + bias.wide()
    y = (y if activation == "none" else y * sigmoid(y)).cast(x.dtype)
    last = tensor_map(initial_state.shape, x.dtype, lambda b, c, i: seen(b, length(b) - dim(before) + i, c))

    def captured(b: Expr, k: Expr, c: Expr) -> Expr:
        count = dim(0) if capture_count is None else cast(capture_count.at(b), "ix")
        return guard(less(k, minimum(count, length(b))), x.at(ragged.begin(b) + k, c), const(0, wide))
    return y, last, tensor_map((initial_state.shape[0], state_update_capacity, channels), x.dtype, captured)


def mean_square(t: Tensor, epsilon: float) -> Tensor:
    """t over the root of the mean of its squares on the last axis, in float32."""
    v = t.wide()
    return v * rsqrt((v * v).mean([-1], keepdims=True) + epsilon)


@microsoft("GatedRMSNorm")
def gated_rms_norm(x: Tensor, scale: Tensor, gate: Tensor, *, activation: str = "silu", epsilon: float = 1e-5) -> Tensor:
    """Over each group of as many columns as there are scales."""
    if activation not in ("silu", "swish", "sigmoid"):
        raise ModelError(f"{builder().origin}: activation {activation!r} is none of silu, swish, sigmoid")
    groups = x.reshape(*x.shape[:-1], d.floordiv(x.shape[-1], scale.shape[0]), scale.shape[0])
    z = gate.wide()
    y = (mean_square(groups, epsilon) * scale.wide()).reshape(*x.shape)
    return (y * (sigmoid(z) if activation == "sigmoid" else z * sigmoid(z))).cast(x.dtype)


@microsoft("GatedAdd")
def gated_add(x: Tensor, y: Tensor, gate: Tensor, gate_weight: Tensor | None = None) -> Tensor:
    refuse("gate_weight (which ONNX Runtime knows on CUDA only)", gate_weight is not None)
    return x + y * gate


@microsoft("ScaledSiLU")
def scaled_silu(x: Tensor, scale: Tensor | None = None, *, alpha: float = 1.0) -> Tensor:
    z = (x.wide() * (alpha if scale is None else scale.reshape().wide())).cast(x.dtype)
    return z * sigmoid(z.wide()).cast(x.dtype)


def branches(t: Tensor, count: int) -> Tensor:
    """[..., C, H], or [..., C * H] where there is a count, as the first."""
    return t.reshape(*t.shape[:-1], count, d.floordiv(t.shape[-1], count)) if count else t


@microsoft("BranchwiseRMSNorm")
def branchwise_rms_norm(x: Tensor, scale: Tensor | None = None, *, epsilon: float = 1e-5, num_branches: int = 0) -> Tensor:
    t = branches(x, num_branches)
    y = mean_square(t, epsilon)
    if scale is not None:
        one = scale.rank == 1 and bool(builder().ask(d.eq(scale.shape[0], t.shape[-1])))
        y = y * (scale if one else scale.reshape(*t.shape[-2:])).wide()
    return y.reshape(*x.shape).cast(x.dtype)


def mix(gates: Tensor, t: Tensor) -> Tensor:
    """Gates of branches, [..., C], [..., C, 1], [..., C, H] or [..., C * H], as they meet t[..., C, H]."""
    if gates.rank == t.rank:
        return gates.wide()
    one = bool(builder().ask(d.eq(gates.shape[-1], t.shape[-2])))
    return (gates.unsqueeze([-1]) if one else gates.reshape(*t.shape)).wide()


@microsoft("HyperConnectionPreMix")
def hyper_connection_pre_mix(streams: Tensor, pre_mix: Tensor, *, num_branches: int = 0, reduction_scale: float = 1.0) -> Tensor:
    t = branches(streams, num_branches)
    return ((t.wide() * mix(pre_mix, t)).sum([-2]) * reduction_scale).cast(streams.dtype)


@microsoft("HyperConnectionPostMix")
def hyper_connection_post_mix(streams: Tensor, block_output: Tensor, post_mix: Tensor, stream_mix: Tensor | None = None, *,
                              num_branches: int = 0) -> Tensor:
    t = branches(streams, num_branches)
    old = t.wide() if stream_mix is None else (stream_mix.wide().unsqueeze([-1]) * t.wide().unsqueeze([-2])).sum([-3])
    return (old + mix(post_mix, t) * block_output.wide().unsqueeze([-2])).cast(streams.dtype).reshape(*streams.shape)


@microsoft("EngramGate")
def engram_gate(key: Tensor, query: Tensor, value: Tensor, key_norm_scale: Tensor, query_norm_scale: Tensor,
                conv_norm_scale: Tensor | None = None, *, epsilon: float = 1e-5) -> tuple[Tensor | None, ...]:
    """key, query [B, S, C, H], value [B, S, H] behind a gate of each [B, S, C]; and that normalised."""
    keys, queries = mean_square(key, epsilon) * key_norm_scale.wide(), mean_square(query, epsilon) * query_norm_scale.wide()
    likeness = (keys * queries).sum([-1], keepdims=True) * root_scale(key.shape[-1], "f32")
    opened = sigmoid(sign(likeness) * sqrt(maximum(absolute(likeness), 1e-6)))
    gated = opened * value.wide().unsqueeze([2])
    return gated.cast(key.dtype), None if conv_norm_scale is None else (mean_square(gated, epsilon) * conv_norm_scale.wide()).cast(key.dtype)


@microsoft("MRotaryEmbedding")
def m_rotary_embedding(x: Tensor, position_ids: Tensor, cos_cache: Tensor, sin_cache: Tensor, *, interleaved: int = 0, is_packed_batching: int = 0,
                       mrope_layout: int = 0, mrope_section: list[int], num_heads: int = 0, rotary_embedding_dim: int = 0,
                       scale: float = 1.0) -> Tensor:
    """Of three position streams [3, B, S]: each pair of columns is turned by one of them, in sections or in turn."""
    heads = num_heads or (0 if x.rank == 4 else int(builder().ask(d.floordiv(x.shape[2], cos_cache.shape[1] * 2))))
    t, (first, second, third) = unpacked(x, heads), mrope_section

    def turns(cache: Tensor) -> Tensor:
        rows = [at_positions(cache, position_ids.slice(0, k, 1).squeeze([0])) for k in range(3)]

        def element(b: Expr, h: Expr, s: Expr, e: Expr) -> Expr:
            own = [row.at(b, h, s, e) for row in rows]
            if mrope_layout == 0:
                return select(less(e, first), own[0], select(less(e, first + second), own[1], own[2]))
            in_turn = [both(less(e % 3, k + 1), both(less_equal(dim(k), e % 3), less(e, size * 3))) for k, size in ((1, second), (2, third))]
            return select(in_turn[0], own[1], select(in_turn[1], own[2], own[0]))
        return tensor_map(rows[0].shape, cache.dtype, element)
    y = rotated(t, turns(cos_cache), turns(sin_cache), bool(interleaved), rotary_embedding_dim or t.shape[3])
    return packed(y) if x.rank == 3 else y
