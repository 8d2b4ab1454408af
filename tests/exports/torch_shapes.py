"""PyTorch: reshaping, arithmetic, reductions, einsum, linear algebra, Fourier transforms, on free sizes."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch.nn import functional as F


@network()
def reshapes() -> Made:
    def f(x: torch.Tensor) -> Any:
        n, c, h = x.shape
        return (x.view(n, -1), x.reshape(c, n * h), x.flatten(1), x.permute(2, 0, 1), x.transpose(0, 2), x.unsqueeze(1).squeeze(1), x[:, None].expand(n, 3, c, h),
                x.reshape(-1, 2, c // 2, h).sum(1), x.unflatten(1, (2, -1)), x.movedim(0, -1), x.transpose(-2, -1), torch.atleast_3d(x[0, 0]))
    return Fn(f), [t(2, 4, 5), t(3, 6, 2)]


@network()
def joins_and_splits() -> Made:
    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        return (torch.cat([x, y], 1), torch.stack([x, x * 2], -1), *x.chunk(2, 0), *x.split([2, x.shape[1] - 2], 1), *torch.tensor_split(x, 2, 0), *x.unbind(0)[:1], x.repeat(2, 1, 2),
                torch.hstack([x, y]), torch.vstack([x, x]), x.repeat_interleave(2, 1), torch.tile(y, (1, 2, 1)))
    return Fn(f), [(t(4, 5, 3), t(4, 2, 3)), (t(4, 7, 3), t(4, 3, 3))]


@network()
def made_tensors() -> Made:
    def f(x: torch.Tensor) -> Any:
        n, m = x.shape
        return (torch.zeros(n, m), torch.ones_like(x), torch.full((m, n), 2.5), torch.arange(n), torch.arange(0, m, 2), torch.linspace(0, 1, 5), torch.eye(m),
                torch.zeros_like(x, dtype=torch.int64), x.new_ones(n, 2), torch.arange(n)[:, None] * torch.arange(m), torch.full_like(x, 7), torch.empty_like(x).fill_(3))
    return Fn(f), [t(3, 4), t(5, 2)]


@network()
def triangles() -> Made:
    return Fn(lambda x: (x.tril(), x.triu(1), x.tril(-1), torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).tril(), torch.diagonal(x, 0, -2, -1), x.diag_embed() if x.dim() < 2 else x,
                         torch.diag(x[0]))), [t(4, 4), t(6, 6)]


@network()
def arithmetic() -> Made:
    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        return (x + y, x - 2 * y, x * y, x / y, torch.div(x, y, rounding_mode="floor"), x % y, torch.fmod(x, y), torch.remainder(x, -y), x.pow(2), x.abs().pow(0.3), 2 ** x, torch.maximum(x, y), torch.minimum(x, y),
                torch.atan2(x, y), torch.hypot(x, y), torch.clamp(x, -0.5, 0.5), x.clamp(min=0), torch.lerp(x, y, 0.3), torch.addcmul(x, x, y, value=0.5),
                torch.addcdiv(x, x, y), torch.where(x > y, x, y), torch.logaddexp(x, y), torch.copysign(x, y), torch.xlogy(x.abs(), y.abs()))
    return Fn(f), [(t(3, 4), t(3, 4)), (t(2, 5), t(2, 5))]


@network()
def broadcasts() -> Made:
    return Fn(lambda x, y: (x + y, x[:, None] * y, torch.where(x > 0, y, 0.0), x.expand(4, -1, -1), torch.broadcast_to(y, (2, 3, x.shape[-1])))), [(t(3, 4), t(1, 4)), (t(3, 6), t(1, 6))]


@network()
def unary_functions() -> Made:
    def f(x: torch.Tensor) -> Any:
        p = x.abs() + 0.1
        return (x.sin(), x.cos(), x.tan(), x.sinh(), x.cosh(), x.tanh(), p.log(), p.log2(), p.log10(), p.log1p(), x.exp(), x.exp2(), x.expm1(), p.sqrt(), p.rsqrt(), p.reciprocal(), x.erf(), x.erfc(),
                torch.asinh(x), torch.acosh(p + 1), torch.atanh(x.tanh() * 0.9), torch.asin(x.tanh()), torch.acos(x.tanh()), x.atan(), x.sign(), x.floor(), x.ceil(), x.round(), x.trunc(), x.frac(),
                x.square(), x.neg(), torch.nan_to_num(x / 0), x.isnan(), torch.isinf(x / 0), x.sigmoid().logit(), torch.deg2rad(x), torch.sgn(x), torch.signbit(x), torch.round(x, decimals=1))
    return Fn(f), [t(3, 5), t(2, 9)]


@network()
def special_functions() -> Made:
    return Fn(lambda x: (torch.special.i0(x), torch.lgamma(x.abs() + 1), torch.special.entr(x.sigmoid()), torch.special.log_ndtr(x))), [t(4, 4), t(2, 3)]


@network()
def integer_arithmetic() -> Made:
    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        z = y + 1
        return (x + y, x * y, x // z, x % z, torch.div(x - 5, z, rounding_mode="floor"), torch.div(x - 5, z, rounding_mode="trunc"), torch.remainder(x - 5, z), x & y, x | y, x ^ y, ~x, x << 2, x >> 1,
                x == y, x != y, x >= y, x.bool() & y.bool(), x.float() / 2, (x / z), x.to(torch.int32), x.to(torch.uint8), x.sum(), x.sum(0), x.prod(1), torch.bitwise_not(x), -x, x.abs())
    return Fn(f), [(ints(10, 3, 4), ints(10, 3, 4)), (ints(10, 5, 2), ints(10, 5, 2))]


@network()
def reductions() -> Made:
    def f(x: torch.Tensor) -> Any:
        return (x.sum(), x.sum(1), x.mean((0, 2)), x.mean(-1, keepdim=True), x.prod(1), x.amax((1, 2)), x.amin(0), x.max(), x.min(), *x.max(1), *x.min(2), x.argmax(), x.argmin(1), x.var(1), x.std(),
                x.var(1, unbiased=False), *torch.var_mean(x, 2), x.norm(), x.norm(dim=1), x.norm(p=1, dim=2), torch.linalg.vector_norm(x, float("inf"), 1), (x > 0).any(), (x > 0).all(1), (x > 0).sum(),
                torch.count_nonzero(x > 0, 1), *torch.aminmax(x, dim=1))
    return Fn(f), [t(3, 4, 5), t(2, 6, 3)]


@network()
def medians() -> Made:
    return Fn(lambda x: (x.median(1)[0], x.kthvalue(2, 1)[0], x.quantile(0.5, 1))), [t(3, 5), t(2, 5)]


@network()
def cumulative() -> Made:
    return Fn(lambda x: (x.cumsum(1), x.cumsum(0), x.cumprod(1), x.flip(1).cumsum(1).flip(1), x.logcumsumexp(1), x.cummax(1)[0], x.cummin(1)[0], (x > 0).long().cumsum(1), x.diff(dim=1))), [t(3, 5), t(2, 8)]


@network()
def sums_so_far() -> Made:
    return Fn(lambda x, i: (x.cumsum(1), (x > 0).long().cumsum(1), i.cumsum(0), torch.cumsum(x, -1, dtype=torch.float64), x.diff(dim=1))), [(t(3, 5), ints(9, 3)), (t(2, 8), ints(9, 2))]


@network()
def products() -> Made:
    def f(x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> Any:
        return (x @ y, x[0] @ y[0], torch.bmm(x, y), x @ v, v @ v, torch.outer(v, v), torch.matmul(x[:, None], y[:, None]), F.linear(x, y.transpose(1, 2)[0]), torch.addmm(x[0] @ y[0], x[0], y[0], beta=0.5, alpha=2),
                torch.baddbmm(x @ y, x, y), torch.mv(x[0], v), torch.inner(v, v), torch.kron(x[0, :2, :2], y[0, :2, :2]), torch.tensordot(x, y, dims=([2], [1])), x.transpose(-2, -1) @ x, torch.chain_matmul(x[0], y[0]))
    return Fn(f), [(t(2, 3, 4), t(2, 4, 5), t(4)), (t(2, 6, 3), t(2, 3, 2), t(3))]


@network()
def einsums() -> Made:
    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        e = torch.einsum
        return (e("bij,bjk->bik", x, y), e("bij->bji", x), e("bij->b", x), e("bij,bjk->b", x, y), e("bij,cjk->bcik", x, y), e("bii->bi", x @ x.transpose(-2, -1)), e("...ij,...jk->...ik", x, y), e("bij,bij->bi", x, x),
                e("i,j->ij", x[0, 0], y[0, 0]), e("bij,bjk,bkl->bil", x, y, y.transpose(-2, -1)))
    return Fn(f), [(t(2, 3, 4), t(2, 4, 5)), (t(3, 2, 6), t(3, 6, 2))]


@network()
def algebra_static() -> Made:
    def f(x: torch.Tensor) -> Any:
        m = x @ x.transpose(-2, -1) + torch.eye(4)
        return m.det(), m.logdet(), m.trace(), torch.linalg.cross(x[:, :3], x[:, 1:4])
    return Fn(f), [t(4, 5)]


@network()
def inverses() -> Made:
    return Fn(lambda x: (torch.linalg.inv(x), torch.linalg.det(x))), [t(2, 3, 3) + 3 * torch.eye(3), t(4, 3, 3) + 3 * torch.eye(3)]


@network()
def fourier() -> Made:
    def f(x: torch.Tensor) -> Any:
        z = torch.fft.rfft(x)
        return torch.view_as_real(z), torch.fft.irfft(z, n=16), z.abs()
    return Fn(f), [t(2, 16), t(3, 16)]


@network()
def fourier_2d() -> Made:
    return Fn(lambda x: torch.view_as_real(torch.fft.fft2(x.to(torch.complex64)))), [t(2, 8, 12), t(3, 8, 12)]


@network()
def spectrogram() -> Made:
    def f(x: torch.Tensor) -> Any:
        z = torch.stft(x, 16, 8, 16, torch.hann_window(16), return_complex=True, center=True)
        return torch.view_as_real(z)
    return Fn(f), [t(2, 64), t(3, 64)]


@network()
def mel_features() -> Made:
    bank = torch.rand(9, 5)

    def f(x: torch.Tensor) -> Any:
        z = torch.view_as_real(torch.stft(x, 16, 8, 16, torch.hann_window(16), return_complex=True, center=False))
        return torch.log((z.square().sum(-1).transpose(1, 2) @ bank).clamp(min=1e-5))
    return Fn(f), [t(2, 64), t(3, 64)]


@network()
def comparisons() -> Made:
    return Fn(lambda x, y: (x > y, x <= y, x == y, x.ne(y), torch.logical_and(x > 0, y > 0), torch.logical_xor(x > 0, y > 0), ~(x > 0), torch.isclose(x, y), x.isfinite(), torch.equal(x, x) and x)), [
        (t(3, 4), t(3, 4)), (t(2, 2), t(2, 2))]


@network()
def casts() -> Made:
    def f(x: torch.Tensor) -> Any:
        y = x * 5
        return (y.to(torch.int32), y.long(), y.half(), y.double(), y.bool(), y.to(torch.int8), y.abs().to(torch.uint8), y.half().float(), y.to(torch.bfloat16).float(), y.int().float(), (y > 0).float(), y.short())
    return Fn(f), [t(3, 4), t(2, 7)]


@network()
def size_arithmetic() -> Made:
    def f(x: torch.Tensor) -> Any:
        n, c, h, w = x.shape
        return (x.reshape(n * c, (h * w) // 2, 2), F.pad(x, (0, w % 4, 0, 1)), x[:, :, : h // 2, w // 2:], torch.zeros(n, h + w), x.mean() * h, torch.tensor([1.0, 2.0]) * h, x.view(n, c, -1)[..., : h * w - 1])
    return Fn(f), [t(1, 2, 4, 6), t(2, 2, 8, 6)]


@network()
def empty_batches() -> Made:
    return Fn(lambda x: (x * 2, x.sum(1), torch.cat([x, x]), x @ x.transpose(-2, -1))), [t(3, 4), t(0, 4), t(1, 4)]


@network()
def scalars() -> Made:
    return Fn(lambda x, s: (x * s, x + s.exp(), s * s, torch.stack([s, s + 1]), x.sum() / s, torch.where(s > 0, x, -x))), [(t(3), torch.tensor(1.5)), (t(5), torch.tensor(-2.0))]
