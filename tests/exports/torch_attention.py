"""PyTorch: attention and transformers written by hand, with caches that grow."""
from __future__ import annotations

import math
from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torch.nn import functional as F


@network(one_size=("torchscript",))
def multi_head_attention() -> Made:
    return Fn(lambda f, x, y: f(x, y, y), nn.MultiheadAttention(16, 4, batch_first=True)), [(t(2, 5, 16), t(2, 7, 16)), (t(3, 4, 16), t(3, 6, 16))]


@network(one_size=("torchscript",))
def multi_head_attention_masked() -> Made:
    def f(layer: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        padding = torch.arange(x.shape[1])[None] >= lengths[:, None]
        return layer(x, x, x, key_padding_mask=padding, need_weights=False)[0]
    return Fn(f, nn.MultiheadAttention(16, 2, batch_first=True)), [(t(2, 5, 16), torch.tensor([5, 3])), (t(3, 7, 16), torch.tensor([2, 7, 5]))]


@network(one_size=("torchscript",))
def transformer_encoder() -> Made:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False), [t(2, 5, 16), t(3, 9, 16)]


@network(one_size=("torchscript",))
def transformer_encoder_norm_first() -> Made:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", norm_first=True), 2, enable_nested_tensor=False), [t(5, 2, 16), t(8, 1, 16)]


@network(one_size=("torchscript",))
def transformer_decoder() -> Made:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1), [(t(2, 5, 16), t(2, 7, 16)), (t(1, 3, 16), t(1, 4, 16))]


@network(one_size=("torchscript",))
def transformer() -> Made:
    class Translate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(30, 16), nn.Transformer(16, 2, 1, 1, 32, batch_first=True), nn.Linear(16, 30)

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> Any:
            size = target.shape[1]
            causal = torch.triu(torch.full((size, size), float("-inf")), 1)
            return self.head(self.body(self.embed(source), self.embed(target), tgt_mask=causal))
    return Translate(), [(ints(30, 2, 6), ints(30, 2, 4)), (ints(30, 3, 5), ints(30, 3, 7))]


def attended(**options: Any) -> Made:
    return Fn(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)), [(t(2, 4, 6, 8), t(2, 4, 6, 8), t(2, 4, 6, 8)), (t(1, 4, 9, 8), t(1, 4, 9, 8), t(1, 4, 9, 8))]


@network()
def dot_product_attention() -> Made:
    return attended()


@network()
def dot_product_attention_causal() -> Made:
    return attended(is_causal=True)


@network()
def dot_product_attention_scaled() -> Made:
    return attended(scale=0.2)


@network(exporters=("dynamo",), opset=23)
def attention_23() -> Made:
    return attended(is_causal=True)


@network(exporters=("dynamo",), opset=24)
def attention_24_masked() -> Made:
    return Fn(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m > 0)), [(t(2, 4, 6, 8), t(2, 4, 7, 8), t(2, 4, 7, 8), t(6, 7) + 2), (t(1, 4, 9, 8), t(1, 4, 5, 8), t(1, 4, 5, 8), t(9, 5) + 2)]


@network()
def dot_product_attention_masked() -> Made:
    return Fn(lambda q, k, v, m: (F.scaled_dot_product_attention(q, k, v, m), F.scaled_dot_product_attention(q, k, v, m > 0))), [
        (t(2, 4, 6, 8), t(2, 4, 7, 8), t(2, 4, 7, 8), t(6, 7) + 2), (t(1, 4, 9, 8), t(1, 4, 5, 8), t(1, 4, 5, 8), t(9, 5) + 2)]


@network()
def dot_product_attention_grouped() -> Made:
    return Fn(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)), [(t(2, 4, 6, 8), t(2, 2, 6, 8), t(2, 2, 6, 8)), (t(1, 4, 3, 8), t(1, 2, 5, 8), t(1, 2, 5, 8))]


class Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6).to(x.dtype) * self.weight


class Block(nn.Module):
    """A pre-norm decoder block whose keys and values are appended to a cache."""

    def __init__(self, width: int, heads: int, groups: int = 0, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.groups, self.size, self.rotary = heads, groups or heads, width // heads, rotary
        kind = Rms if rotary else nn.LayerNorm
        self.norm1, self.norm2 = kind(width), kind(width)
        self.qkv = nn.Linear(width, (heads + 2 * self.groups) * self.size)
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 2 * width * (2 if rotary else 1)), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor, past_k: torch.Tensor, past_v: torch.Tensor) -> Any:
        n, s, _ = x.shape
        h, g, d = self.heads, self.groups, self.size
        q, k, v = self.qkv(self.norm1(x)).split([h * d, g * d, g * d], -1)
        q, k, v = q.view(n, s, h, d).transpose(1, 2), k.view(n, s, g, d).transpose(1, 2), v.view(n, s, g, d).transpose(1, 2)
        past = past_k.shape[2]
        at = torch.arange(s) + past
        if self.rotary:
            q, k = rotate(q, at), rotate(k, at)
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        seen = torch.arange(past + s)[None] <= at[:, None]
        wide = [z.repeat_interleave(h // g, 1) for z in (k, v)] if g < h else [k, v]
        scores = (q @ wide[0].transpose(-2, -1) / math.sqrt(d)).masked_fill(~seen, torch.finfo(x.dtype).min)
        x = x + self.out((scores.softmax(-1) @ wide[1]).transpose(1, 2).reshape(n, s, h * d))
        y = self.up(self.norm2(x))
        if self.rotary:
            a, b = y.chunk(2, -1)
            return x + self.down(F.silu(a) * b), k, v
        return x + self.down(F.gelu(y, approximate="tanh")), k, v


def rotate(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    angle = at[:, None].float() * (10000.0 ** (-torch.arange(half) / half))
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Decoder(nn.Module):
    def __init__(self, groups: int = 0, rotary: bool = False) -> None:
        super().__init__()
        self.embed, self.place, self.head = nn.Embedding(40, 16), nn.Embedding(32, 16), nn.Linear(16, 40, bias=False)
        self.blocks = nn.ModuleList(Block(16, 4, groups, rotary) for _ in range(2))
        self.norm, self.rotary = nn.LayerNorm(16), rotary

    def forward(self, tokens: torch.Tensor, *cache: torch.Tensor) -> Any:
        x = self.embed(tokens)
        if not self.rotary:
            x = x + self.place(torch.arange(tokens.shape[1]) + cache[0].shape[2])
        made = []
        for k, block in enumerate(self.blocks):
            x, key, value = block(x, cache[2 * k], cache[2 * k + 1])
            made += [key, value]
        return self.head(self.norm(x)), *made


def decoding(groups: int = 0, rotary: bool = False) -> Made:
    heads = groups or 4
    return Decoder(groups, rotary), [(ints(40, n, s), *(t(n, heads, past, 4) for _ in range(4))) for n, s, past in ((2, 3, 5), (1, 7, 0), (2, 1, 8), (2, 1, 9))]


@network()
def gpt_cached() -> Made:
    return decoding()


@network()
def llama_cached() -> Made:
    return decoding(2, True)


@network()
def gpt_prompt() -> Made:
    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Decoder()

        def forward(self, tokens: torch.Tensor) -> Any:
            empty = torch.zeros(tokens.shape[0], 4, 0, 4)
            return self.body(tokens, empty, empty, empty, empty)[0][:, -1].softmax(-1)
    return Prompt(), [ints(40, 2, 6), ints(40, 1, 11)]


@network()
def vision_transformer() -> Made:
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.token, self.place = nn.Conv2d(3, 16, 8, 8), nn.Parameter(t(1, 1, 16)), nn.Parameter(t(1, 17, 16))
            self.body, self.head = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation=F.gelu), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.patch(x).flatten(2).transpose(1, 2)
            y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.place
            return self.head(self.body(y)[:, 0])
    return Vit(), [t(1, 3, 32, 32), t(4, 3, 32, 32)]


@network()
def window_attention() -> Made:
    class Swin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.bias = nn.Linear(8, 24), nn.Parameter(t(2, 16, 16))

        def forward(self, x: torch.Tensor) -> Any:
            n, h, w, c = x.shape
            y = torch.roll(x, (-2, -2), (1, 2)).view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
            q, k, v = self.qkv(y).view(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = ((q @ k.transpose(-2, -1) * 0.5 + self.bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 4, c)
            y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
            return torch.roll(y, (2, 2), (1, 2))
    return Swin(), [t(1, 8, 8, 8), t(2, 12, 16, 8)]


@network()
def relative_position_bias() -> Made:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 2)

        def forward(self, q: torch.Tensor, k: torch.Tensor) -> Any:
            away = torch.arange(k.shape[1])[None] - torch.arange(q.shape[1])[:, None]
            near = away.abs() < 4
            far = (4 + (away.abs().clamp(min=1).float().log() * 2).long()).clamp(max=7)
            return (q @ k.transpose(-2, -1))[:, None] + self.table(torch.where(near, away.abs(), far)).permute(2, 0, 1)
    return Bias(), [(t(2, 5, 4), t(2, 7, 4)), (t(1, 9, 4), t(1, 3, 4))]


@network()
def linear_attention() -> Made:
    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return torch.einsum("nsd,nde->nse", q, torch.einsum("nsd,nse->nde", k, v)) / torch.einsum("nsd,nd->ns", q, k.sum(1))[..., None]
    return Fn(f), [(t(2, 5, 4), t(2, 5, 4), t(2, 5, 3)), (t(1, 8, 4), t(1, 8, 4), t(1, 8, 3))]


@network()
def mixture_of_experts() -> Made:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 4), nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(4))

        def forward(self, x: torch.Tensor) -> Any:
            weight, which = self.gate(x).softmax(-1).topk(2, -1)
            share = torch.zeros(x.shape[0], 4).scatter(1, which, weight)
            return sum(share[:, k:k + 1] * expert(x) for k, expert in enumerate(self.experts))
    return Experts(), [t(5, 8), t(2, 8)]


@network()
def state_space_scan_static() -> Made:
    def f(x: torch.Tensor, a: torch.Tensor) -> Any:
        state, out = torch.zeros(x.shape[0], x.shape[2]), []
        for step in range(x.shape[1]):
            state = state * a.sigmoid() + x[:, step]
            out.append(state)
        return torch.stack(out, 1)
    return Fn(f), [(t(2, 12, 4), t(4))]


@network()
def conformer_block() -> Made:
    class Conformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
            self.point, self.depth, self.batch, self.out = nn.Conv1d(16, 32, 1), nn.Conv1d(16, 16, 7, padding=3, groups=16), nn.BatchNorm1d(16), nn.Conv1d(16, 16, 1)

        def forward(self, x: torch.Tensor) -> Any:
            x = x + self.attend(self.norm(x), self.norm(x), self.norm(x))[0]
            y = F.glu(self.point(x.transpose(1, 2)), 1)
            return x + self.out(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
    return Conformer(), [t(2, 10, 16), t(1, 17, 16)]
