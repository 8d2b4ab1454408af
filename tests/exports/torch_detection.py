"""PyTorch: detection heads: anchors, boxes, what to keep."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import INDEX_ADD, Fn, Made, network, t
from torch import nn


class Head(nn.Module):
    """Boxes and scores on a grid of any size, as one-stage detectors decode them."""

    def __init__(self, anchors: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.anchors, self.classes = anchors, classes
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.SiLU(), nn.Conv2d(8, anchors * (5 + classes), 1))
        self.register_buffer("sizes", torch.rand(anchors, 2) * 20 + 5)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.body(x)
        n, _, h, w = y.shape
        y = y.view(n, self.anchors, 5 + self.classes, h, w).permute(0, 1, 3, 4, 2).sigmoid()
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([xs, ys], -1).float()
        centre = (y[..., :2] * 2 - 0.5 + grid) * 4
        size = (y[..., 2:4] * 2) ** 2 * self.sizes.view(1, -1, 1, 1, 2)
        boxes = torch.cat([centre - size / 2, centre + size / 2], -1).view(n, -1, 4)
        return boxes, (y[..., 4:5] * y[..., 5:]).reshape(n, -1, self.classes)


@network()
def anchor_head() -> Made:
    return Head(), [t(1, 3, 32, 32), t(2, 3, 24, 40)]


@network()
def anchor_head_top() -> Made:
    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head()

        def forward(self, x: torch.Tensor) -> Any:
            boxes, scores = self.head(x)
            best, label = scores.max(-1)
            best, order = best.topk(20, 1)
            return boxes.gather(1, order[..., None].expand(-1, -1, 4)), best, label.gather(1, order)
    return Top(), [t(1, 3, 32, 32), t(2, 3, 24, 40)]


@network()
def ssd_head_static() -> Made:
    class Ssd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.box, self.score = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.body(x).relu()
            n, _, h, w = y.shape
            move = self.box(y).permute(0, 2, 3, 1).reshape(n, -1, 4)
            scores = self.score(y).permute(0, 2, 3, 1).reshape(n, -1, 3).softmax(-1)
            ys, xs = torch.meshgrid((torch.arange(h, dtype=torch.float32) + 0.5) / h, (torch.arange(w, dtype=torch.float32) + 0.5) / w, indexing="ij")
            prior = torch.stack([xs, ys, torch.full_like(xs, 0.2), torch.full_like(xs, 0.3)], -1).view(-1, 1, 4).repeat(1, 2, 1).view(-1, 4)
            centre, size = prior[:, :2] + move[..., :2] * 0.1 * prior[:, 2:], prior[:, 2:] * (move[..., 2:] * 0.2).exp()
            return torch.cat([centre - size / 2, centre + size / 2], -1), scores
    return Ssd(), [t(2, 3, 32, 32)]


@network()
def centre_net_peaks() -> Made:
    def f(heat: torch.Tensor) -> Any:
        heat = heat.sigmoid()
        peak = (torch.nn.functional.max_pool2d(heat, 3, 1, 1) == heat).float() * heat
        n, c, h, w = heat.shape
        score, at = peak.view(n, -1).topk(5)
        return score, at // (h * w), (at % (h * w)) // w, at % w
    return Fn(f), [t(1, 3, 8, 8), t(2, 3, 6, 10)]


@network()
def box_overlaps() -> Made:
    def f(a: torch.Tensor, b: torch.Tensor) -> Any:
        def boxes(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :2], x[:, :2] + x[:, 2:].abs()], 1)
        a, b = boxes(a), boxes(b)
        size = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0)
        both = size[..., 0] * size[..., 1]
        area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
        return both / (area_a[:, None] + area_b - both)
    return Fn(f), [(t(4, 4), t(6, 4)), (t(3, 4), t(2, 4))]


@network()
def thresholded_scores() -> Made:
    def f(boxes: torch.Tensor, scores: torch.Tensor) -> Any:
        best, label = scores.max(1)
        keep = best > 0.5
        return boxes[keep], best[keep], label[keep], keep.nonzero().squeeze(1)
    return Fn(f), [(t(8, 4), t(8, 3)), (t(20, 4), t(20, 3)), (t(3, 4), t(3, 3) - 9)]


@network()
def distribution_boxes() -> Made:
    def f(x: torch.Tensor) -> Any:
        n, _, a = x.shape
        side = (x.view(n, 4, 8, a).transpose(1, 2).softmax(1) * torch.arange(8, dtype=torch.float32).view(1, 8, 1, 1)).sum(1)
        return torch.cat([-side[:, :2], side[:, 2:]], 1)
    return Fn(f), [t(1, 32, 10), t(2, 32, 21)]


@network()
def rotated_boxes() -> Made:
    def f(x: torch.Tensor) -> Any:
        c, s = x[:, 4].cos(), x[:, 4].sin()
        turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
        corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) * 0.5
        return (corners * x[:, None, 2:4]) @ turn.transpose(-2, -1) + x[:, None, :2]
    return Fn(f), [t(3, 5), t(7, 5)]


@network(one_size=("torchscript", "dynamo"))
def query_decoder() -> Made:
    class Detr(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.queries = nn.Conv2d(3, 16, 8, 8), nn.Parameter(t(1, 6, 16))
            self.decode = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
            self.label, self.box = nn.Linear(16, 5), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

        def forward(self, x: torch.Tensor) -> Any:
            memory = self.body(x).flatten(2).transpose(1, 2)
            y = self.decode(self.queries.expand(x.shape[0], -1, -1), memory)
            return self.label(y).softmax(-1)[..., :-1], self.box(y).sigmoid()
    return Detr(), [t(1, 3, 32, 32), t(2, 3, 24, 40)]


@network()
def mask_prototypes() -> Made:
    def f(prototypes: torch.Tensor, weights: torch.Tensor, boxes: torch.Tensor) -> Any:
        masks = torch.einsum("chw,kc->khw", prototypes, weights).sigmoid()
        ys, xs = torch.arange(masks.shape[1])[None, :, None], torch.arange(masks.shape[2])[None, None]
        x0, y0, x1, y1 = (b[:, None, None] for b in boxes.unbind(1))
        return (masks * (xs >= x0) * (xs < x1) * (ys >= y0) * (ys < y1)) > 0.5
    return Fn(f), [(t(4, 8, 9), t(3, 4), torch.tensor([[0.0, 0, 5, 5], [2, 2, 8, 7], [1, 0, 9, 8]])), (t(4, 6, 5), t(2, 4), torch.tensor([[0.0, 0, 5, 5], [2, 2, 8, 7]]))]


@network(differs={"torchscript": INDEX_ADD})
def points_to_grid() -> Made:
    """Points with features summed into the cells of a grid, as detectors on lidar do."""
    def f(points: torch.Tensor, features: torch.Tensor) -> Any:
        cell = ((points.clamp(-1.99, 1.99) + 2) * 2).long()
        at = cell[:, 0] * 8 + cell[:, 1]
        return torch.zeros(64, 3).index_add(0, at, features).view(8, 8, 3).permute(2, 0, 1)
    return Fn(f), [(t(20, 2), t(20, 3)), (t(7, 2), t(7, 3))]
