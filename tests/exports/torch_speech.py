"""PyTorch: speech: frames of any number, their lengths, caches of streams, what becomes of durations and of blanks."""
from __future__ import annotations

import math
from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torch.nn import functional as F


@network()
def labels_collapsed() -> Made:
    """Connectionist classification, best path: repeats and blanks taken out, so that the run alone knows the length."""
    def f(body: nn.Module, x: torch.Tensor) -> Any:
        logs = body(x.transpose(1, 2)).transpose(1, 2).log_softmax(-1)
        best, score = logs[0].argmax(-1), logs[0].amax(-1)
        fresh = torch.cat([torch.ones(1, dtype=torch.bool), best[1:] != best[:-1]]) & (best != 0)
        return logs, best[fresh], score[fresh].exp(), fresh.nonzero()[:, 0]
    return Fn(f, nn.Conv1d(5, 6, 3, 2, 1)), [t(1, 20, 5), t(1, 33, 5)]


class Relative(nn.Module):
    """Attention with a table of distances, shifted into place as in Transformer-XL."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.at, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.u, self.v = nn.Parameter(t(heads, 1, self.size)), nn.Parameter(t(heads, 1, self.size))

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        n, s, c = x.shape
        q, k, v = (z.view(n, s, self.heads, self.size).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        away = torch.arange(s - 1, -s, -1)[:, None].float() * torch.exp(torch.arange(0, c, 2) * (-4.0 / c))
        p = self.at(torch.stack([away.sin(), away.cos()], -1).flatten(1)).view(2 * s - 1, self.heads, self.size).transpose(0, 1)
        far = F.pad((q + self.v) @ p.transpose(-2, -1), (1, 0)).view(n, self.heads, 2 * s, s)[:, :, 1:].view(n, self.heads, s, 2 * s - 1)[..., :s]
        scores = (((q + self.u) @ k.transpose(-2, -1)) + far) / math.sqrt(self.size)
        weights = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1).masked_fill(~seen[:, None, None], 0.0)
        return self.out((weights @ v).transpose(1, 2).reshape(n, s, c))


@network()
def conformer_lengths() -> Made:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sub = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU())
            self.into, self.attend, self.norm, self.head = nn.Linear(4 * 4, 16), Relative(16, 2), nn.LayerNorm(16), nn.Linear(16, 7)
            self.up, self.depth, self.out = nn.Conv1d(16, 32, 1), nn.Conv1d(16, 16, 5, padding=2, groups=16), nn.Conv1d(16, 16, 1)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
            y = self.sub(x[:, None])
            y = self.into(y.transpose(1, 2).flatten(2))
            lengths = ((lengths - 1) // 2 - 1) // 2
            seen = torch.arange(y.shape[1])[None] < lengths[:, None]
            y = y + self.attend(self.norm(y), seen)
            z = F.glu(self.up(y.transpose(1, 2)), 1).masked_fill(~seen[:, None], 0.0)
            return self.head(y + self.out(F.silu(self.depth(z))).transpose(1, 2)).log_softmax(-1), lengths
    return Encoder(), [(t(2, 40, 19), torch.tensor([40, 23])), (t(3, 29, 19), torch.tensor([29, 11, 20]))]


@network()
def stream_cached() -> Made:
    """One chunk of a stream: the cache of attention is cut to a size, that of the convolution holds its left edge."""
    class Chunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.conv, self.head = nn.Linear(8, 24), nn.Conv1d(8, 8, 4, groups=8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor, kv: torch.Tensor, left: torch.Tensor, done: torch.Tensor) -> Any:
            q, k, v = self.qkv(x).chunk(3, -1)
            kv = torch.cat([kv, torch.stack([k, v])], 2)
            at = torch.arange(kv.shape[2])
            empty = at[None] < (kv.shape[2] - x.shape[1] - done)[:, None]
            scores = (q @ kv[0].transpose(-2, -1)).masked_fill(empty[:, None], -1e9)
            y = torch.cat([left, (x + scores.softmax(-1) @ kv[1]).transpose(1, 2)], 2)
            return self.head(F.silu(self.conv(y)).transpose(1, 2)), kv[:, :, -10:], y[:, :, -3:], done + x.shape[1]
    return Chunk(), [(t(n, s, 8), t(2, n, 10, 8), t(n, 8, 3), torch.tensor(done)) for n, s, done in ((2, 4, [0, 8]), (1, 6, [10]))]


@network()
def transducer() -> Made:
    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.predict, self.encode = nn.Embedding(9, 6), nn.LSTM(6, 8, batch_first=True), nn.GRU(5, 8, bidirectional=True, batch_first=True)
            self.left, self.right, self.out = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 9)

        def forward(self, sound: torch.Tensor, labels: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
            y, state = self.predict(self.embed(labels), (h, c))
            both = self.left(self.encode(sound)[0])[:, :, None] + self.right(y)[:, None]
            return self.out(both.tanh()).log_softmax(-1), *state
    return Joint(), [(t(n, s, 5), ints(9, n, u), t(1, n, 8), t(1, n, 8)) for n, s, u in ((2, 6, 3), (1, 9, 4))]


@network()
def durations_expanded() -> Made:
    """Each symbol repeated as long as it is said to last: the length is a sum of values."""
    def f(x: torch.Tensor, durations: torch.Tensor) -> Any:
        return torch.repeat_interleave(x[0], durations, 0)
    return Fn(f), [(t(1, 5, 3), torch.tensor([2, 0, 3, 1, 4])), (t(1, 3, 3), torch.tensor([1, 1, 5]))]


@network()
def durations_to_paths() -> Made:
    def f(x: torch.Tensor, logs: torch.Tensor, frames: torch.Tensor) -> Any:
        ends = logs.exp().ceil().cumsum(-1)
        at = torch.arange(frames.shape[0]).float()
        before = (at[None, None] < ends[..., None]).float()
        path = before - F.pad(before, (0, 0, 1, 0))[:, :-1]
        return path, path.transpose(1, 2) @ x, ends[:, -1].clamp(max=frames.shape[0]).long()
    return Fn(f), [(t(2, 5, 3), t(2, 5), t(14)), (t(1, 4, 3), t(1, 4), t(9))]


@network()
def attention_of_places() -> Made:
    """One step of a decoder whose attention sees where it looked before."""
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.place, self.conv, self.score = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(3, 8), nn.Conv1d(2, 3, 5, padding=2, bias=False), nn.Linear(8, 1)
            self.cell, self.stop = nn.LSTMCell(4 + 2, 6), nn.Linear(10, 1)

        def forward(self, frame: torch.Tensor, memory: torch.Tensor, h: torch.Tensor, c: torch.Tensor, weights: torch.Tensor, total: torch.Tensor, lengths: torch.Tensor) -> Any:
            context = (weights[:, None] @ memory)[:, 0]
            h, c = self.cell(torch.cat([frame, context], -1), (h, c))
            place = self.place(self.conv(torch.stack([weights, total], 1)).transpose(1, 2))
            e = self.score((self.q(h)[:, None] + self.k(memory) + place).tanh())[..., 0]
            weights = e.masked_fill(torch.arange(e.shape[1]) >= lengths[:, None], -1e4).softmax(-1)
            return self.stop(torch.cat([h, context], -1)).sigmoid() > 0.5, h, c, weights, total + weights
    return Step(), [(t(n, 2), t(n, s, 4), t(n, 6), t(n, 6), t(n, s).softmax(-1), t(n, s).abs(), torch.tensor(lengths)) for n, s, lengths in ((2, 5, [5, 3]), (1, 8, [7]))]


@network()
def sources_separated() -> Made:
    class Separator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Conv1d(1, 12, 8, 4, bias=False), nn.ConvTranspose1d(12, 1, 8, 4, bias=False)
            self.norm, self.into, self.mask = nn.GroupNorm(1, 12), nn.Conv1d(12, 8, 1), nn.Sequential(nn.PReLU(), nn.Conv1d(8, 24, 1))
            self.layers = nn.ModuleList(nn.Sequential(nn.Conv1d(8, 8, 3, padding=2 ** k, dilation=2 ** k, groups=8), nn.PReLU(), nn.GroupNorm(1, 8), nn.Conv1d(8, 8, 1)) for k in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            over = (4 - (x.shape[-1] - 8) % 4) % 4
            w = self.encode(F.pad(x, (0, over))[:, None]).relu()
            y = self.into(self.norm(w))
            for layer in self.layers:
                y = y + layer(y)
            masks = self.mask(y).view(x.shape[0], 2, 12, -1).sigmoid()
            return self.decode((masks * w[:, None]).flatten(0, 1)).view(x.shape[0], 2, -1)[..., :x.shape[-1]]
    return Separator(), [t(2, 64), t(1, 93)]


@network()
def wave_made() -> Made:
    class Snake(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.rand(1, c, 1) + 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Conv1d(6, 8, 7, padding=3)), Snake(8), norm(nn.ConvTranspose1d(8, 4, 8, 4, 2)), Snake(4), norm(nn.Conv1d(4, 1, 7, padding=3)), nn.Tanh()), [t(2, 6, 17), t(1, 6, 10)]


@network()
def voice_activity() -> Made:
    class Voice(nn.Module):
        """A short-time transform written as a convolution, then a cell with its state."""

        def __init__(self) -> None:
            super().__init__()
            angle = 2 * math.pi * torch.arange(9)[:, None] * torch.arange(16)[None] / 16
            self.register_buffer("basis", (torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(16))[:, None])
            self.body, self.cell, self.head = nn.Conv1d(9, 8, 3, 2, 1), nn.LSTMCell(8, 8), nn.Linear(8, 1)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> Any:
            real, imaginary = F.conv1d(F.pad(x[:, None], (8, 8), mode="reflect"), self.basis, stride=8).chunk(2, 1)
            y = self.body((real.square() + imaginary.square() + 1e-9).sqrt().log1p()).relu()
            h, c = self.cell(y.mean(-1), (state[0], state[1]))
            return self.head(h.relu()).sigmoid(), torch.stack([h, c])
    return Voice(), [(t(3, 80), t(2, 3, 8)), (t(1, 64), t(2, 1, 8))]


@network()
def speaker_embedding() -> Made:
    """Squeeze, statistics weighted by attention over valid frames, a unit vector."""
    class Speaker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attend, self.out = nn.Conv1d(5, 8, 5, padding=2), nn.Sequential(nn.Conv1d(24, 4, 1), nn.ReLU(), nn.Conv1d(4, 8, 1)), nn.Linear(16, 6)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            y = self.conv(x).relu()
            valid = (torch.arange(x.shape[-1]) < (lengths * x.shape[-1]).round()[:, None]).float()[:, None]
            share = valid / valid.sum(-1, keepdim=True)
            mean = (y * share).sum(-1, keepdim=True)
            spread = ((y - mean).square() * share).sum(-1, keepdim=True).clamp(min=1e-9).sqrt()
            w = self.attend(torch.cat([y, mean.expand_as(y), spread.expand_as(y)], 1)).masked_fill(valid == 0, float("-inf")).softmax(-1)
            mean = (y * w).sum(-1)
            return F.normalize(self.out(torch.cat([mean, ((y.square() * w).sum(-1) - mean.square()).clamp(min=1e-9).sqrt()], -1)), dim=-1)
    return Speaker(), [(t(2, 5, 12), torch.tensor([1.0, 0.5])), (t(1, 5, 31), torch.tensor([0.8]))]
