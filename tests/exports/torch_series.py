"""PyTorch: series, tables, fields and searches: what neither pictures nor language models hold."""
from __future__ import annotations

import math
from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torch.nn import functional as F


@network()
def series_normalised_in_patches() -> Made:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(8, 16), nn.Linear(16, 4)
            self.body = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x: torch.Tensor) -> Any:
            mean, spread = x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            y = F.pad(((x - mean) / spread).transpose(1, 2), (0, 4), mode="replicate").unfold(-1, 8, 4)
            n, c, p, _ = y.shape
            y = self.out(self.body(self.into(y).flatten(0, 1))).view(n, c, p, 4).mean(2)
            return y.transpose(1, 2) * spread + mean
    return Patches(), [t(2, 24, 3)]


@network()
def stacks_of_residuals() -> Made:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6)) for _ in range(3))
            angle = 2 * math.pi * torch.arange(3)[:, None] * torch.linspace(0, 1, 16)[None]
            self.register_buffer("waves", torch.cat([angle.cos(), angle.sin()]))

        def forward(self, x: torch.Tensor) -> Any:
            ahead = torch.zeros(x.shape[0], 4)
            for layer in self.layers:
                y = layer(x) @ self.waves
                x, ahead = x - y[:, :12], ahead + y[:, 12:]
            return ahead, x
    return Blocks(), [t(2, 12), t(5, 12)]


@network()
def series_trend_taken() -> Made:
    """Moving averages, the strongest lags of a correlation, values rolled by them."""
    def f(x: torch.Tensor) -> Any:
        trend = F.avg_pool1d(F.pad(x, (2, 2), mode="replicate"), 5, 1)
        y = x - trend
        n = y.shape[-1]
        lags = torch.stack([(y * torch.roll(y, k, -1)).mean((1, 2)) for k in range(1, 5)], 1)
        weight, at = lags.topk(2, 1)
        index = (torch.arange(n)[None, None] + at[:, :, None] + 1) % n
        rolled = torch.gather(y[:, None].expand(-1, 2, -1, -1), 3, index[:, :, None].expand(-1, -1, y.shape[1], -1))
        return trend, (rolled * weight.softmax(1)[..., None, None]).sum(1)
    return Fn(f), [t(2, 3, 12), t(1, 3, 17)]


@network()
def rows_made_sparse() -> Made:
    """Sparsemax by sort and running sums; the masks of a network for tables."""
    def f(a: nn.Module, b: nn.Module, x: torch.Tensor) -> Any:
        prior, made = torch.ones_like(x), []
        for layer in (a, b):
            z = layer(x) * prior
            s = z.sort(-1, descending=True).values
            k = torch.arange(1, z.shape[-1] + 1)
            c = s.cumsum(-1)
            size = (1 + k * s > c).sum(-1, keepdim=True)
            mask = (z - (c.gather(-1, size - 1) - 1) / size).clamp(min=0)
            prior = prior * (1.3 - mask)
            made.append(mask)
        return made[0], made[1], (x * made[1]).sum(-1)
    return Fn(f, nn.Linear(6, 6), nn.Linear(6, 6)), [t(3, 6), t(8, 6)]


@network()
def splines_learned() -> Made:
    """Activations as B-splines on a grid of knots, by the recursion of de Boor."""
    class Splines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("knots", torch.linspace(-3, 3, 12))
            self.weight, self.base = nn.Parameter(t(5, 4, 8)), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> Any:
            k, z = self.knots, x[..., None]
            b = ((z >= k[:-1]) & (z < k[1:])).to(x.dtype)
            for p in range(1, 4):
                b = (z - k[:-p - 1]) / (k[p:-1] - k[:-p - 1]) * b[..., :-1] + (k[p + 1:] - z) / (k[p + 1:] - k[1:-p]) * b[..., 1:]
            return self.base(F.silu(x)) + torch.einsum("nik,oik->no", b, self.weight)
    return Splines(), [t(3, 4), t(7, 4)]


@network()
def rays_rendered() -> Made:
    """A field of density and colour along rays: waves of places, products of what light is left."""
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3 * 8, 16), nn.ReLU(), nn.Linear(16, 4))

        def forward(self, origin: torch.Tensor, way: torch.Tensor, at: torch.Tensor) -> Any:
            place = origin[:, None] + way[:, None] * at[..., None]
            angle = place[..., None] * 2.0 ** torch.arange(4)
            density, colour = self.body(torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)).split([1, 3], -1)
            step = torch.cat([at[:, 1:] - at[:, :-1], torch.full_like(at[:, :1], 1e10)], 1) * way.norm(dim=-1, keepdim=True)
            alpha = 1 - (-F.relu(density[..., 0]) * step).exp()
            left = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], 1), 1)[:, :-1]
            weight = alpha * left
            return (weight[..., None] * colour.sigmoid()).sum(1), (weight * at).sum(1), weight.sum(1)
    return Field(), [(t(r, 3), t(r, 3), torch.rand(r, s).sort(-1).values) for r, s in ((4, 6), (3, 9))]


@network()
def field_in_frequencies() -> Made:
    """A layer of a Fourier neural operator: the low frequencies through a complex product."""
    class Operator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.real, self.imaginary, self.skip = nn.Parameter(t(3, 3, 4)), nn.Parameter(t(3, 3, 4)), nn.Conv1d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> Any:
            z = torch.view_as_real(torch.fft.rfft(x))[:, :, :4]
            a, b = z.unbind(-1)
            made = torch.stack([torch.einsum("nim,iom->nom", a, self.real) - torch.einsum("nim,iom->nom", b, self.imaginary),
                                torch.einsum("nim,iom->nom", a, self.imaginary) + torch.einsum("nim,iom->nom", b, self.real)], -1)
            full = torch.cat([made, torch.zeros(x.shape[0], 3, 5, 2)], 2)
            return F.gelu(torch.fft.irfft(torch.view_as_complex(full), n=16) + self.skip(x))
    return Operator(), [t(2, 3, 16), t(5, 3, 16)]


@network()
def state_step() -> Made:
    """RWKV's mixing of time for one token, with its state; the running maximum keeps exponentials small."""
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.k, self.v, self.out = (nn.Linear(6, 6, bias=False) for _ in range(4))
            self.mix, self.decay, self.first = nn.Parameter(torch.rand(3, 6)), nn.Parameter(t(6)), nn.Parameter(t(6))

        def forward(self, x: torch.Tensor, before: torch.Tensor, a: torch.Tensor, b: torch.Tensor, most: torch.Tensor) -> Any:
            r, k, v = (layer(x * m + before * (1 - m)) for layer, m in zip((self.r, self.k, self.v), self.mix, strict=True))
            top = torch.maximum(most, self.first + k)
            e, f = (most - top).exp(), (self.first + k - top).exp()
            y = self.out(r.sigmoid() * (e * a + f * v) / (e * b + f))
            kept = most - self.decay.exp()
            top = torch.maximum(kept, k)
            e, f = (kept - top).exp(), (k - top).exp()
            return y, x, e * a + f * v, e * b + f, top
    return Step(), [(t(n, 6), t(n, 6), t(n, 6), t(n, 6).abs(), t(n, 6)) for n in (2, 5)]


@network()
def chunks_of_states() -> Made:
    """A state-space layer by chunks: sums of logarithms below the diagonal, then what passes from chunk to chunk."""
    def f(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Any:
        n, s, h, p = x.shape
        x, b, c = (z.reshape(n, s // 4, 4, *z.shape[2:]) for z in (x, b, c))
        a = -F.softplus(a).reshape(n, s // 4, 4, h).permute(0, 3, 1, 2)
        sums = a.cumsum(-1)
        lower = (sums[..., :, None] - sums[..., None, :]).masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), float("-inf")).exp()
        near = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, lower, x)
        states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, (sums[..., -1:] - sums).exp(), x)
        total = F.pad(sums[..., -1], (1, 0)).cumsum(-1)
        m = total.shape[-1]
        between = (total[..., :, None] - total[..., None, :]).masked_fill(~torch.ones(m, m, dtype=torch.bool).tril(), float("-inf")).exp()
        passed = torch.einsum("bhzc,bchpn->bzhpn", between, torch.cat([torch.zeros_like(states[:, :1]), states], 1))
        far = torch.einsum("bclhn,bchpn,bhcl->bclhp", c, passed[:, :-1], sums.exp())
        return (near + far).reshape(n, s, h, p), passed[:, -1]
    return Fn(f), [(t(n, s, 2, 3), t(n, s, 2), t(n, s, 2, 5), t(n, s, 2, 5)) for n, s in ((2, 8), (1, 16))]


@network()
def attention_in_blocks() -> Made:
    """Sequences in overlapping blocks, a few global tokens, and keys that were hashed to buckets and sorted."""
    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        n, s, c = q.shape
        near_k, near_v = (F.pad(z, (0, 0, 4, 4)).unfold(1, 12, 4).transpose(-2, -1) for z in (k, v))
        blocks = q.view(n, s // 4, 4, c)
        scores = torch.cat([torch.einsum("nbqc,nbkc->nbqk", blocks, near_k), torch.einsum("nbqc,ngc->nbqg", blocks, k[:, :2])], -1).softmax(-1)
        y = torch.einsum("nbqk,nbkc->nbqc", scores[..., :12], near_v) + torch.einsum("nbqg,ngc->nbqc", scores[..., 12:], v[:, :2])
        bucket = torch.cat([k[..., :2], -k[..., :2]], -1).argmax(-1)
        order = (bucket * s + torch.arange(s)).argsort(-1)
        back = order.argsort(-1)
        kv = torch.gather(k, 1, order[..., None].expand_as(k)).view(n, s // 4, 4, c)
        z = (kv @ kv.transpose(-2, -1)).softmax(-1) @ kv
        return y.view(n, s, c), torch.gather(z.reshape(n, s, c), 1, back[..., None].expand_as(k))
    return Fn(f), [(t(2, 8, 6), t(2, 8, 6), t(2, 8, 6)), (t(1, 16, 6), t(1, 16, 6), t(1, 16, 6))]


@network()
def tokens_chosen() -> Made:
    """What follows the logits: penalties for what was said, temperature, the best few by sum, one by its number; and a proposal's tokens checked."""
    def f(logits: torch.Tensor, said: torch.Tensor, u: torch.Tensor, proposed: torch.Tensor) -> Any:
        seen = logits.gather(1, said)
        logits = logits.scatter(1, said, torch.where(seen < 0, seen * 1.2, seen / 1.2)) / 0.7
        values, at = logits.sort(-1, descending=True)
        share = values.softmax(-1)
        values = values.masked_fill(share.cumsum(-1) - share > 0.8, float("-inf"))
        pick = (values.softmax(-1).cumsum(-1) < u[:, None]).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1)
        good = (proposed == at[:, :proposed.shape[1]]).long().cumprod(1).sum(1)
        return at.gather(1, pick), good
    return Fn(f), [(t(n, 20), ints(20, n, s), torch.rand(n), ints(20, n, 3)) for n, s in ((2, 5), (4, 9))]


@network()
def beams_advanced() -> Made:
    """One step of a beam search: scores of all beams, the best of them, their caches put in order, finished ones padded."""
    def f(logits: torch.Tensor, scores: torch.Tensor, tokens: torch.Tensor, cache: torch.Tensor, ended: torch.Tensor) -> Any:
        n, b, v = logits.shape
        step = torch.where(ended[..., None], torch.where(torch.arange(v) == 0, 0.0, float("-inf")), logits.log_softmax(-1))
        best, at = (scores[..., None] + step).view(n, b * v).topk(b, -1)
        beam, token = torch.div(at, v, rounding_mode="floor"), at % v
        rows = (torch.arange(n)[:, None] * b + beam).flatten()
        tokens = torch.cat([tokens.flatten(0, 1)[rows].view(n, b, -1), token[..., None]], -1)
        return best, tokens, cache.index_select(1, rows), ended.gather(1, beam) | (token == 0)
    return Fn(f), [(t(n, 3, 7), t(n, 3), ints(7, n, 3, s), t(2, n * 3, 2, s, 4), torch.rand(n, 3) > 0.7) for n, s in ((2, 4), (1, 6))]


@network()
def sentences_pooled() -> Made:
    """Embeddings of sentences: means over what is not padding, weights by place, the greatest of logarithms, late interaction."""
    def f(x: torch.Tensor, mask: torch.Tensor, query: torch.Tensor) -> Any:
        m = mask[..., None].to(x.dtype)
        mean = (x * m).sum(1) / m.sum(1).clamp(min=1e-9)
        place = m * torch.arange(1, x.shape[1] + 1)[None, :, None]
        last = x[torch.arange(x.shape[0]), mask.sum(1) - 1]
        sparse = ((x.relu() + 1).log() * m).amax(1)
        late = torch.einsum("qac,ndc->qnad", F.normalize(query, dim=-1), F.normalize(x, dim=-1)).masked_fill(mask[None, :, None] == 0, -1e4).amax(-1).sum(-1)
        return F.normalize(mean, p=2.0, dim=1), (x * place).sum(1) / place.sum(1), last, sparse, late
    return Fn(f), [(t(2, 5, 6), torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]), t(3, 4, 6)), (t(1, 7, 6), torch.tensor([[1] * 6 + [0]]), t(2, 2, 6))]


@torch.jit.script
def best_path(emit: torch.Tensor, change: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    score = start + emit[0]
    history = torch.zeros(0, emit.size(1), dtype=torch.long)
    for k in range(1, emit.size(0)):
        best = (score[:, None] + change + emit[k][None]).max(0)
        score = best[0]
        history = torch.cat([history, best[1][None]], 0)
    at = score.argmax(0)
    path = at[None]
    for k in range(history.size(0)):
        at = history[history.size(0) - 1 - k][at]
        path = torch.cat([at[None], path], 0)
    return score.max(), path


@network(exporters=("torchscript",))
def labels_decoded() -> Made:
    """The best path through a field of conditional scores."""
    return Fn(lambda body, x, change, start: best_path(body(x), change, start), nn.Linear(4, 5)), [(t(s, 4), t(5, 5), t(5)) for s in (6, 3, 1)]


@network()
def filter_step() -> Made:
    """A Kalman filter's prediction and correction."""
    def f(x: torch.Tensor, p: torch.Tensor, z: torch.Tensor) -> Any:
        a = torch.eye(4) + torch.diag(torch.ones(2), 2)
        h = torch.eye(2, 4)
        x, p = x @ a.T, a @ p @ a.T + 0.1 * torch.eye(4)
        gain = p @ h.T @ torch.linalg.inv(h @ p @ h.T + torch.eye(2))
        return x + (gain @ (z - x @ h.T)[..., None])[..., 0], (torch.eye(4) - gain @ h) @ p
    return Fn(f), [(t(n, 4), torch.eye(4).expand(n, 4, 4) * 2, t(n, 2)) for n in (3, 1)]


@network()
def joints_to_places() -> Made:
    """A body: turns from vectors to matrices, down a chain of parents, skin by weighted joints."""
    def f(turns: torch.Tensor, shape: torch.Tensor, skin: torch.Tensor, weight: torch.Tensor) -> Any:
        angle = (turns + 1e-8).norm(dim=-1, keepdim=True)
        x, y, z = (turns / angle).unbind(-1)
        zero = torch.zeros_like(x)
        k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(*x.shape, 3, 3)
        r = torch.eye(3) + angle.sin()[..., None] * k + (1 - angle.cos())[..., None] * (k @ k)
        m = torch.cat([F.pad(r, (0, 0, 0, 1)), F.pad(shape, (0, 1), value=1.0)[..., None]], -1)
        chain = [m[:, 0]]
        for j, parent in enumerate((0, 1, 1), 1):
            chain.append(chain[parent] @ m[:, j])
        m = torch.stack(chain, 1)
        moved = torch.einsum("vj,njab->nvab", weight.softmax(-1), m) @ F.pad(skin, (0, 1), value=1.0)[None, ..., None]
        return m[:, :, :3, 3], moved[..., :3, 0]
    return Fn(f), [(t(n, 4, 3), t(n, 4, 3), t(v, 3), t(v, 4)) for n, v in ((2, 5), (1, 8))]
