"""PyTorch: parts of diffusion networks and of codebooks: noise levels, cross attention to a prompt, pictures of any size."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torch.nn import functional as F


def level(at: torch.Tensor, width: int) -> torch.Tensor:
    """[N] to the sines and cosines of a noise level, [N,width]."""
    angle = at[:, None].float() * torch.exp(-torch.arange(width // 2) * (9.2 / (width // 2)))
    return torch.cat([angle.sin(), angle.cos()], -1)


class Noisy(nn.Module):
    """A residual block that the noise level shifts and scales."""

    def __init__(self, i: int, o: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, i), nn.GroupNorm(4, o)
        self.conv1, self.conv2, self.move = nn.Conv2d(i, o, 3, 1, 1), nn.Conv2d(o, o, 3, 1, 1), nn.Linear(width, 2 * o)
        self.skip: nn.Module = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        scale, shift = self.move(F.silu(e))[:, :, None, None].chunk(2, 1)
        y = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(y))


class Looking(nn.Module):
    """Places of a picture attend to each other, then to a prompt."""

    def __init__(self, width: int, prompt: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.first, self.second = heads, nn.GroupNorm(4, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.q, self.kv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(prompt, 2 * width), nn.Linear(width, width)
        self.gate, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = self.norm(x).permute(0, 2, 3, 1).reshape(n, h * w, c)
        q, k, v = self.qkv(self.first(y)).chunk(3, -1)
        y = y + self.out(F.scaled_dot_product_attention(self.split(q), self.split(k), self.split(v)).transpose(1, 2).flatten(2))
        k, v = self.kv(prompt).chunk(2, -1)
        y = y + self.out(F.scaled_dot_product_attention(self.split(self.q(self.second(y))), self.split(k), self.split(v)).transpose(1, 2).flatten(2))
        a, b = self.gate(y).chunk(2, -1)
        y = y + self.down(a * F.gelu(b))
        return x + y.reshape(n, h, w, c).permute(0, 3, 1, 2)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.end = nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(8, 4, 3, 1, 1)
        self.embed = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.a, self.b, self.c, self.d = Noisy(8, 8, 16), Noisy(8, 16, 16), Noisy(16, 16, 16), Noisy(24, 8, 16)
        self.down, self.look, self.up = nn.Conv2d(8, 8, 3, 2, 1), Looking(16, 12, 2), nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x: torch.Tensor, at: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        e = self.embed(level(at, 8))
        a = self.a(self.stem(x), e)
        y = self.c(self.look(self.b(self.down(a), e), prompt), e)
        y = self.up(F.interpolate(y, size=a.shape[2:], mode="nearest"))
        return self.end(self.d(torch.cat([y, a], 1), e))


def noisy(*sizes: tuple[int, int, int, int]) -> list[Any]:
    return [(t(n, 4, h, w), ints(1000, n), t(n, words, 12)) for n, h, w, words in sizes]


@network()
def denoiser() -> Made:
    return Denoiser(), noisy((2, 8, 8, 5), (1, 12, 6, 7), (3, 7, 9, 5))


@network()
def guided_step() -> Made:
    class Guided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Denoiser()
            self.register_buffer("kept", torch.linspace(0.999, 0.01, 1000).cumprod(0).clamp(min=1e-4))

        def forward(self, x: torch.Tensor, at: torch.Tensor, prompt: torch.Tensor, scale: torch.Tensor) -> Any:
            with_prompt, without = self.net(torch.cat([x, x]), torch.cat([at, at]), torch.cat([prompt, torch.zeros_like(prompt)])).chunk(2)
            noise = without + scale * (with_prompt - without)
            a, b = (self.kept[i].view(-1, 1, 1, 1) for i in (at, (at - 20).clamp(min=0)))
            clean = ((x - (1 - a).sqrt() * noise) / a.sqrt()).clamp(-1, 1)
            return b.sqrt() * clean + (1 - b).sqrt() * noise
    return Guided(), [(*s, torch.tensor(7.5)) for s in noisy((2, 8, 8, 5), (1, 12, 6, 7))]


@network()
def picture_decoder() -> Made:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.qkv = nn.Conv2d(4, 8, 3, 1, 1), nn.GroupNorm(4, 8, 1e-6), nn.Conv2d(8, 24, 1)
            self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(2, 8, 1e-6), nn.SiLU(), nn.Conv2d(8, 3, 3, 1, 1))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            x = self.stem(z / 0.18215)
            q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
            x = x + (v @ (q.transpose(1, 2) @ k * 8 ** -0.5).softmax(-1).transpose(1, 2)).view_as(x)
            return ((self.up(x) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Decoder(), [t(1, 4, 4, 4), t(2, 4, 3, 5)]


@network()
def patches_modulated() -> Made:
    class Dit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.kinds, self.move = nn.Conv2d(4, 16, 2, 2), nn.Embedding(10, 16), nn.Linear(16, 96)
            self.norm, self.attend, self.out = nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 48), nn.Linear(16, 16)
            self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(approximate="tanh"), nn.Linear(32, 16))

        def forward(self, x: torch.Tensor, at: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
            n, _, h, w = x.shape
            h, w = h // 2, w // 2
            y = self.patch(x).flatten(2).transpose(1, 2)
            rows, columns = level(torch.arange(h), 8), level(torch.arange(w), 8)
            y = y + torch.cat([rows[:, None].expand(h, w, 8), columns[None].expand(h, w, 8)], -1).reshape(1, h * w, 16)
            s1, c1, g1, s2, c2, g2 = self.move(F.silu(level(at, 16) + self.kinds(kind)))[:, None].chunk(6, -1)
            q, k, v = (z.unflatten(-1, (2, 8)).transpose(1, 2) for z in self.attend(self.norm(y) * (1 + c1) + s1).chunk(3, -1))
            y = y + g1 * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            y = y + g2 * self.body(self.norm(y) * (1 + c2) + s2)
            return torch.einsum("nhwpqc->nchpwq", y.view(n, h, w, 2, 2, 4)).reshape(n, 4, 2 * h, 2 * w)
    return Dit(), [(t(2, 4, 8, 8), ints(1000, 2), ints(10, 2)), (t(1, 4, 6, 12), ints(1000, 1), ints(10, 1))]


@network()
def codebook() -> Made:
    def f(table: nn.Module, x: torch.Tensor) -> Any:
        flat = x.permute(0, 2, 3, 1)
        away = flat.square().sum(-1, keepdim=True) - 2 * flat @ table.weight.T + table.weight.square().sum(1)
        at = away.argmin(-1)
        return table(at).permute(0, 3, 1, 2), at
    return Fn(f, nn.Embedding(12, 5)), [t(2, 5, 4, 4), t(1, 5, 3, 7)]


@network()
def codebooks_of_residuals() -> Made:
    def f(*given: Any) -> Any:
        *tables, x = given
        total, codes = torch.zeros_like(x), []
        for table in tables:
            codes.append(torch.cdist(x - total, table.weight[None]).argmin(-1))
            total = total + table(codes[-1])
        return total, torch.stack(codes, 1)
    return Fn(f, *(nn.Embedding(9, 6) for _ in range(3))), [t(2, 7, 6), t(1, 11, 6)]


@network()
def levels_rounded() -> Made:
    def f(x: torch.Tensor) -> Any:
        levels = torch.tensor([8, 5, 5, 4])
        half = (levels - 1) / 2
        z = (x.tanh() * half + (levels % 2 == 0) * 0.5).round()
        return z / (levels // 2), ((z + levels // 2) * torch.cumprod(torch.tensor([1, 8, 5, 5]), 0)).sum(-1).long()
    return Fn(f), [t(2, 6, 4), t(3, 4, 4)]
