"""PyTorch: detectors from picture to kept boxes, with torchvision's suppression and pooling of regions, on pictures of any size."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_detection import Head
from exports.torch_export import Fn, Made, network, t
from exports.torch_vision import boxes
from torch import nn
from torchvision import ops


@network()
def one_stage_kept() -> Made:
    """Every picture of a batch: boxes of its classes, suppressed, with the number of the picture."""
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head()

        def forward(self, x: torch.Tensor) -> Any:
            found, scores = self.head(x)
            best, label = scores.max(-1)
            n, count = best.shape
            picture = torch.arange(n)[:, None].expand(n, count).flatten()
            found, best, label = found.flatten(0, 1), best.flatten(), label.flatten()
            good = (best > 0.2).nonzero()[:, 0]
            found, best, label, picture = found[good], best[good], label[good], picture[good]
            kept = ops.batched_nms(found, best, label + 10 * picture, 0.5)[:50]
            return torch.cat([picture[kept, None].float(), found[kept], best[kept, None], label[kept, None].float()], 1)
    return Kept(), [t(2, 3, 24, 40), t(1, 3, 32, 32)]


@network()
def two_stages() -> Made:
    """Proposals of the best places, pooled at two levels, classified, refined, suppressed."""
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.next = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 2, 1)
            self.score, self.move = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 9, 16), nn.ReLU(), nn.Linear(16, 3 + 4))

        def forward(self, x: torch.Tensor) -> Any:
            y = self.body(x).relu()
            z = self.next(y).relu()
            h, w = y.shape[2:]
            ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            centre = torch.stack([xs, ys], -1).view(-1, 2).float() * 4 + 2
            move = self.move(y)[0].flatten(1).T
            centre, size = centre + move[:, :2] * 4, (move[:, 2:].clamp(max=2).exp()) * 10
            found = ops.clip_boxes_to_image(torch.cat([centre - size / 2, centre + size / 2], 1), (x.shape[2], x.shape[3]))
            score, at = self.score(y).flatten().sigmoid().topk(20)
            kept = ops.nms(found[at], score, 0.3)
            found = found[at][kept]
            area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
            rois = torch.cat([torch.zeros_like(found[:, :1]), found], 1)
            pooled = torch.where((area < 120)[:, None, None, None], ops.roi_align(y, rois, 3, 0.25, 2, True), ops.roi_align(z, rois, 3, 0.125, 2, True))
            logits, refine = self.head(pooled).split([3, 4], 1)
            best, label = logits.softmax(1)[:, 1:].max(1)
            found = found + refine
            kept = ops.batched_nms(found, best, label, 0.5)
            return found[kept], best[kept], label[kept]
    return Two(), [t(1, 3, 32, 32), t(1, 3, 40, 56)]


@network()
def levels_assigned() -> Made:
    """Each box pooled from the level of its size, and put back in its place."""
    def f(fine: torch.Tensor, coarse: torch.Tensor, b: torch.Tensor) -> Any:
        rois = torch.cat([torch.zeros_like(b[:, :1]), b], 1)
        level = (4 + (((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])).sqrt() / 10 + 1e-6).log2()).floor().clamp(3, 4).long() - 3
        made = torch.zeros(b.shape[0], fine.shape[1], 2, 2)
        for k, (x, scale) in enumerate(((fine, 0.5), (coarse, 0.25))):
            at = (level == k).nonzero()[:, 0]
            made = made.index_put((at,), ops.roi_align(x, rois[at], 2, scale, 2, False))
        return made
    return Fn(f), [(t(1, 3, 16, 16), t(1, 3, 8, 8), boxes(6, 20)), (t(1, 3, 12, 20), t(1, 3, 6, 10), boxes(9, 18)), (t(1, 3, 12, 20), t(1, 3, 6, 10), boxes(2, 1))]


@network()
def deformed_groups() -> Made:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.conv = nn.Conv2d(4, 2 * 2 * 9, 3, 2, 2, dilation=2), ops.DeformConv2d(4, 6, 3, 2, 2, 2, groups=2)

        def forward(self, x: torch.Tensor) -> Any:
            return self.conv(x, self.offset(x))
    return Deformed(), [t(2, 4, 9, 9), t(1, 4, 7, 12)]
