"""PyTorch: places in pictures: warps, correlations, windows, matches, boxes; of any size and number."""
from __future__ import annotations

import math
from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torch.nn import functional as F


def sampled(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """[N,C,H,W] at pixels [N,H2,W2,2]."""
    size = torch.tensor([x.shape[3] - 1, x.shape[2] - 1])
    return F.grid_sample(x, 2 * at / size - 1, align_corners=True)


def grid(n: int, h: int, w: int) -> torch.Tensor:
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([xs, ys], -1).float()[None].expand(n, h, w, 2)


@network(one_size=("torchscript",))
def flow_looked_up() -> Made:
    """Optical flow: all pairs correlated, a pyramid of them sampled round where the flow points, the flow made finer by weights."""
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.change, self.mask = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(2 * 9 + 2, 2, 3, padding=1), nn.Conv2d(20, 9 * 4, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
            a, b = self.body(a), self.body(b)
            n, c, h, w = a.shape
            pairs = (a.flatten(2).transpose(1, 2) @ b.flatten(2) / math.sqrt(c)).view(n * h * w, 1, h, w)
            near = grid(1, 3, 3)[0] - 1
            flow = torch.zeros(n, h, w, 2)
            for _ in range(2):
                at = (grid(n, h, w) + flow).reshape(n * h * w, 1, 1, 2)
                looked = [sampled(level, at / 2 ** k + near) for k, level in enumerate((pairs, F.avg_pool2d(pairs, 2)))]
                y = torch.cat([*(z.view(n, h, w, 9) for z in looked), flow], -1).permute(0, 3, 1, 2)
                flow = flow + self.change(y).permute(0, 2, 3, 1)
            weights = self.mask(y).view(n, 1, 9, 2, 2, h, w).softmax(2)
            fine = F.unfold(2 * flow.permute(0, 3, 1, 2), 3, padding=1).view(n, 2, 9, 1, 1, h, w)
            return (weights * fine).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(n, 2, 2 * h, 2 * w)
    return Flow(), [(t(2, 3, 32, 16), t(2, 3, 32, 16)), (t(1, 3, 24, 32), t(1, 3, 24, 32))]


@network(one_size=("torchscript",))
def attention_deformed() -> Made:
    """Each query samples a few places on maps of two sizes."""
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.move, self.weight, self.out = nn.Linear(8, 8), nn.Linear(8, 2 * 2 * 3 * 2), nn.Linear(8, 2 * 2 * 3), nn.Linear(8, 8)

        def forward(self, q: torch.Tensor, at: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor) -> Any:
            n, s, _ = q.shape
            move, weight = self.move(q).view(n, s, 2, 2, 3, 2), self.weight(q).view(n, s, 2, 6).softmax(-1)
            seen = []
            for k, level in enumerate((fine, coarse)):
                h, w = level.shape[2:]
                value = self.value(level.flatten(2).transpose(1, 2)).view(n, h * w, 2, 4).permute(0, 2, 3, 1).reshape(n * 2, 4, h, w)
                places = at[:, :, None, None] + move[:, :, :, k] / torch.tensor([w, h])
                seen.append(F.grid_sample(value, (2 * places - 1).transpose(1, 2).flatten(0, 1), align_corners=False))
            mixed = torch.stack(seen, -2).flatten(-2) * weight.transpose(1, 2).reshape(n * 2, 1, s, 6)
            return self.out(mixed.sum(-1).view(n, 8, s).transpose(1, 2))
    return Deformed(), [(t(n, s, 8), torch.rand(n, s, 2), t(n, 8, h, w), t(n, 8, h // 2, w // 2)) for n, s, h, w in ((2, 5, 8, 6), (1, 7, 6, 10))]


@network()
def windows_of_any_size() -> Made:
    """Shifted windows on a picture padded to whole ones, with the mask that its size gives."""
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.bias = nn.Linear(8, 24), nn.Parameter(t(1, 2, 16, 16))

        def forward(self, x: torch.Tensor) -> Any:
            n, h, w, c = x.shape
            x = F.pad(x, (0, 0, 0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
            high, wide = x.shape[1:3]
            region = torch.zeros(1, high, wide, 1)
            for k, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
                for m, columns in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
                    region[:, rows, columns] = 3 * k + m
            region = self.cut(region)[..., 0]
            mask = (region[:, None] != region[:, :, None]) * -100.0
            q, k, v = self.qkv(self.cut(torch.roll(x, (-2, -2), (1, 2)))).view(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            scores = (q @ k.transpose(-2, -1) / 2 + self.bias).view(n, -1, 2, 16, 16) + mask[None, :, None]
            y = (scores.softmax(-1).flatten(0, 1) @ v).transpose(1, 2).reshape(n, high // 4, wide // 4, 4, 4, c)
            return torch.roll(y.permute(0, 1, 3, 2, 4, 5).reshape(n, high, wide, c), (2, 2), (1, 2))[:, :h, :w]

        def cut(self, x: torch.Tensor) -> torch.Tensor:
            n, h, w, c = x.shape
            return x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    return Windows(), [t(2, 13, 9, 8), t(1, 8, 12, 8)]


@network()
def positions_resized() -> Made:
    """A vision transformer whose table of positions is made for another grid."""
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.token, self.place, self.head = nn.Conv2d(3, 8, 4, 4), nn.Parameter(t(1, 1, 8)), nn.Parameter(t(1, 17, 8)), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.patch(x)
            place = self.place[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
            place = F.interpolate(place, size=y.shape[2:], mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
            y = torch.cat([self.token.expand(y.shape[0], -1, -1), y.flatten(2).transpose(1, 2)], 1) + torch.cat([self.place[:, :1], place], 1)
            y = y[:, None]
            return self.head(F.scaled_dot_product_attention(y, y, y)[:, 0, 0])
    return Vit(), [t(2, 3, 16, 24), t(1, 3, 28, 20), t(1, 3, 16, 16)]


@network(one_size=("torchscript",))
def interest_points() -> Made:
    """Corners of cells, the best of their neighbours, above a threshold; a unit vector sampled at each."""
    class Points(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.score, self.words = nn.Conv2d(1, 8, 3, 4, 1), nn.Conv2d(8, 17, 1), nn.Conv2d(8, 6, 1)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.body(x).relu()
            heat = F.pixel_shuffle(self.score(y).softmax(1)[:, :-1], 4)[0, 0]
            best = F.max_pool2d(heat[None, None], 5, 1, 2)[0, 0]
            at = ((heat == best) & (heat > 0.06)).nonzero()
            score = heat[at[:, 0], at[:, 1]]
            xy = at.flip(1).float()
            size = torch.tensor([x.shape[3], x.shape[2]])
            words = F.grid_sample(self.words(y), ((xy + 0.5) / size * 2 - 1)[None, None], align_corners=False)
            return xy, score, F.normalize(words[0, :, 0].T, dim=-1)
    return Points(), [t(1, 1, 32, 24), t(1, 1, 40, 48)]


@network()
def matches_mutual() -> Made:
    def f(a: torch.Tensor, b: torch.Tensor) -> Any:
        pairs = torch.einsum("nc,mc->nm", a, b) * 3
        share = pairs.softmax(0) * pairs.softmax(1)
        good = (share > 0.02) & (share == share.amax(0, keepdim=True)) & (share == share.amax(1, keepdim=True))
        i, j = good.nonzero(as_tuple=True)
        return torch.stack([i, j], 1), share[i, j]
    return Fn(f), [(t(6, 4), t(8, 4)), (t(10, 4), t(5, 4))]


@network()
def transport_balanced() -> Made:
    """Matches by turns of normalising rows and columns, with a bin for what has no partner."""
    def f(scores: torch.Tensor) -> Any:
        m, n = scores.shape[1:]
        scores = F.pad(scores, (0, 1, 0, 1), value=1.0)
        rows = torch.cat([torch.zeros(m), torch.tensor([math.log(1.0)]) + math.log(float(n))])
        columns = torch.cat([torch.zeros(n), torch.tensor([math.log(1.0)]) + math.log(float(m))])
        u, v = torch.zeros_like(scores[:, :, 0]), torch.zeros_like(scores[:, 0])
        for _ in range(4):
            u = rows - (scores + v[:, None]).logsumexp(2)
            v = columns - (scores + u[:, :, None]).logsumexp(1)
        return scores + u[:, :, None] + v[:, None]
    return Fn(f), [t(1, 5, 7)]


@network()
def stereo_cost() -> Made:
    class Stereo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.cost = nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv3d(8, 4, 3, 1, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 1, 3, 1, 1))

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
            a, b = self.body(left), self.body(right)
            volume = torch.stack([torch.cat([a[..., k:], b[..., :b.shape[3] - k]], 1) if k == 0 else F.pad(torch.cat([a[..., k:], b[..., :-k]], 1), (k, 0)) for k in range(4)], 2)
            cost = F.interpolate(self.cost(volume), scale_factor=2, mode="trilinear", align_corners=False)[:, 0]
            return ((-cost).softmax(1) * torch.arange(8).view(1, -1, 1, 1)).sum(1)
    return Stereo(), [(t(2, 3, 12, 16), t(2, 3, 12, 16)), (t(1, 3, 8, 20), t(1, 3, 8, 20))]


@network()
def pyramid_weighted() -> Made:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.mix = nn.Parameter(torch.rand(3, 3)), nn.ModuleList(nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.Conv2d(6, 6, 1)) for _ in range(3))

        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Any:
            w = self.w.relu()
            w = w / (w.sum(1, keepdim=True) + 1e-4)
            middle = self.mix[0](F.silu(w[0, 0] * b + w[0, 1] * F.interpolate(c, size=b.shape[2:])))
            low = self.mix[1](F.silu(w[1, 0] * a + w[1, 1] * F.interpolate(middle, size=a.shape[2:])))
            return low, self.mix[2](F.silu(w[2, 0] * b + w[2, 1] * middle + w[2, 2] * F.max_pool2d(low, 3, 2, 1)))
    return Fused(), [(t(n, 6, h, w), t(n, 6, h // 2, w // 2), t(n, 6, h // 4, w // 4)) for n, h, w in ((2, 12, 20), (1, 16, 8))]


@network(one_size=("torchscript",))
def masks_prompted() -> Made:
    """Points become waves, tokens and picture attend to each other, each token's weights make a mask of the picture's own size."""
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waves, self.kinds, self.tokens, self.patch = nn.Parameter(t(2, 4)), nn.Embedding(3, 8), nn.Parameter(t(3, 8)), nn.Conv2d(3, 8, 4, 4)
            self.to_picture, self.to_tokens = nn.MultiheadAttention(8, 2, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)
            self.up, self.hyper = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2), nn.GELU()), nn.Linear(8, 4)

        def waved(self, xy: torch.Tensor) -> torch.Tensor:
            z = (2 * xy - 1) @ self.waves * (2 * math.pi)
            return torch.cat([z.sin(), z.cos()], -1)

        def forward(self, x: torch.Tensor, points: torch.Tensor, kinds: torch.Tensor) -> Any:
            y = self.patch(x)
            n, c, h, w = y.shape
            places = self.waved((grid(1, h, w) + 0.5) / torch.tensor([w, h])).flatten(1, 2)
            told = self.waved(points / torch.tensor([x.shape[3], x.shape[2]])) * (kinds >= 0)[..., None] + self.kinds(kinds + 1)
            told = torch.cat([self.tokens.expand(n, -1, -1), told], 1)
            seen = y.flatten(2).transpose(1, 2)
            told = told + self.to_picture(told, seen + places, seen, need_weights=False)[0]
            seen = seen + self.to_tokens(seen + places, told, told, need_weights=False)[0]
            fine = self.up(seen.transpose(1, 2).view(n, c, h, w))
            masks = torch.einsum("nkc,nchw->nkhw", self.hyper(told[:, :3]), fine)
            return F.interpolate(masks, size=x.shape[2:], mode="bilinear", align_corners=False) > 0, masks
    return Masks(), [(t(1, 3, h, w), torch.rand(1, k, 2) * 16, ints(3, 1, k) - 1) for h, w, k in ((16, 16, 2), (24, 16, 3))]


@network()
def homography_warped() -> Made:
    """The matrix that moves four corners, solved for; the picture through its inverse."""
    def f(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
        n = x.shape[0]
        one, none = torch.ones(n, 4, 1), torch.zeros(n, 4, 3)
        rows = torch.cat([torch.cat([a, one, none, -b[..., :1] * a], -1), torch.cat([none, a, one, -b[..., 1:] * a], -1)], 1)
        m = torch.cat([(torch.linalg.inv(rows) @ torch.cat([b[..., 0], b[..., 1]], 1)[..., None])[..., 0], torch.ones(n, 1)], 1).view(n, 3, 3)
        xy = grid(n, 5, 6).reshape(n, 30, 2)
        moved = torch.cat([xy, torch.ones(n, 30, 1)], -1) @ torch.linalg.inv(m).transpose(1, 2)
        return m, sampled(x, (moved[..., :2] / moved[..., 2:]).view(n, 5, 6, 2))
    corners = torch.tensor([[0.0, 0], [5, 0], [5, 4], [0, 4]])
    return Fn(f), [(t(n, 2, h, w), corners.expand(n, 4, 2), corners + t(n, 4, 2) * 0.2) for n, h, w in ((2, 7, 8), (1, 5, 9))]


@network()
def crops_straightened() -> Made:
    """A crop of fixed size for each of the turned boxes that the run has."""
    def f(x: torch.Tensor, boxes: torch.Tensor) -> Any:
        c, s = boxes[:, 4].cos(), boxes[:, 4].sin()
        w, h = x.shape[3], x.shape[2]
        rows = [boxes[:, 2] / w * c, -boxes[:, 3] / w * s, 2 * boxes[:, 0] / w - 1, boxes[:, 2] / h * s, boxes[:, 3] / h * c, 2 * boxes[:, 1] / h - 1]
        return F.grid_sample(x.expand(boxes.shape[0], -1, -1, -1), F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [boxes.shape[0], x.shape[1], 4, 8], align_corners=False), align_corners=False)
    return Fn(f), [(t(1, 3, 20, 30), torch.rand(k, 5) * 10 + 2) for k in (3, 5, 2)]


@network()
def equalised() -> Made:
    """A histogram, its running sum as a table, and blurs by a kernel made in the graph."""
    def f(x: torch.Tensor, sigma: torch.Tensor) -> Any:
        flat = x.flatten().long()
        counts = torch.zeros(256, dtype=torch.int64).scatter_add(0, flat, torch.ones_like(flat))
        sums = counts.cumsum(0)
        table = ((sums - sums[0]) * 255 // (sums[-1] - sums[0]).clamp(min=1)).clamp(0, 255)
        line = torch.exp(-(torch.arange(-2, 3).float() / sigma).square() / 2)
        kernel = (line / line.sum())[None, None, :, None] * (line / line.sum())
        return table[x.long()].to(torch.uint8), F.conv2d(F.pad(x.float()[None, None], (2, 2, 2, 2), mode="replicate"), kernel)
    return Fn(f), [(torch.randint(20, 200, (h, w), dtype=torch.uint8), torch.tensor(1.2)) for h, w in ((8, 9), (13, 5))]


@network()
def kernels_predicted() -> Made:
    """A kernel for every place, and kernels mixed by attention."""
    class Involution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.choose, self.bank = nn.Conv2d(4, 2 * 9, 1), nn.Linear(4, 3), nn.Parameter(t(3, 4, 4, 3, 3))

        def forward(self, x: torch.Tensor) -> Any:
            n, c, h, w = x.shape
            around = F.unfold(x, 3, padding=1).view(n, 2, 2, 9, h, w)
            y = (self.make(x).view(n, 2, 1, 9, h, w) * around).sum(3).view(n, c, h, w)
            weight = torch.einsum("nk,koihw->noihw", self.choose(y.mean((2, 3))).softmax(-1), self.bank)
            return y, F.conv2d(y, weight[0], padding=1)
    return Involution(), [t(1, 4, 6, 6), t(1, 4, 5, 9)]


@network(differs={"torchscript": "it writes an index_put that accumulates as ScatterND with no reduction"})
def pixels_voted() -> Made:
    """Panoptic: pixels to the nearest centre of those found, and the kind that most of a segment's pixels have."""
    def f(heat: torch.Tensor, move: torch.Tensor, kinds: torch.Tensor) -> Any:
        h, w = heat.shape
        peaks = heat * (F.max_pool2d(heat[None, None], 3, 1, 1)[0, 0] == heat)
        score, at = peaks.flatten().topk(4)
        centre = torch.stack([at % w, at // w], -1).float()
        to = (grid(1, h, w)[0] + move.permute(1, 2, 0)).view(-1, 1, 2)
        which = (to - centre).square().sum(-1).argmin(-1)
        votes = torch.zeros(4, kinds.shape[0]).index_put((which,), kinds.flatten(1).T, accumulate=True)
        return score, which.view(h, w), votes.argmax(-1)[which].view(h, w)
    return Fn(f), [(t(h, w), t(2, h, w), t(3, h, w).softmax(0)) for h, w in ((6, 8), (9, 5))]
