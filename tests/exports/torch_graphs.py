"""PyTorch: networks on graphs: messages along edges, gathered by node."""
from __future__ import annotations

import math
from typing import Any

import torch
from exports.torch_export import INDEX_ADD, Fn, Made, ints, network, t
from torch import nn


def graphs(width: int, *more: int) -> list[Any]:
    """Nodes, edges [2,E], and a feature an edge for each width in `more`, in two sizes."""
    return [(t(n, width), torch.stack([ints(n, e), ints(n, e)]), *(t(e, m) for m in more)) for n, e in ((6, 14), (9, 30))]


class Convolution(nn.Module):
    """Messages divided by the root of both degrees."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.linear = nn.Linear(i, o)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        loops = torch.arange(x.shape[0])
        source, target = torch.cat([edges[0], loops]), torch.cat([edges[1], loops])
        degree = torch.zeros(x.shape[0]).index_add(0, target, torch.ones(target.shape[0]))
        scale = degree.clamp(min=1).rsqrt()
        return torch.zeros(x.shape[0], self.linear.out_features).index_add(0, target, self.linear(x)[source] * (scale[source] * scale[target])[:, None])


@network(differs={"torchscript": INDEX_ADD})
def graph_convolution() -> Made:
    class Gcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Convolution(5, 8), Convolution(8, 3)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> Any:
            return self.b(self.a(x, edges).relu(), edges).log_softmax(-1)
    return Gcn(), graphs(5)


@network(differs={"torchscript": INDEX_ADD})
def graph_attention() -> Made:
    class Gat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.a, self.b = nn.Linear(5, 8), nn.Parameter(t(8)), nn.Parameter(t(8))

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> Any:
            h, (source, target) = self.linear(x), edges.unbind(0)
            e = nn.functional.leaky_relu((h @ self.a)[source] + (h @ self.b)[target], 0.2)
            top = torch.full((x.shape[0],), -1e9).scatter_reduce(0, target, e, "amax")
            e = (e - top[target]).exp()
            total = torch.zeros(x.shape[0]).index_add(0, target, e)
            return torch.zeros(x.shape[0], 8).index_add(0, target, h[source] * (e / (total[target] + 1e-9))[:, None])
    return Gat(), graphs(5)


@network()
def sage_maximum() -> Made:
    class Sage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.other = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> Any:
            near = x[edges[0]]
            most = torch.full_like(x, -1e4).scatter_reduce(0, edges[1][:, None].expand(-1, x.shape[1]), near, "amax")
            return self.own(x) + self.other(torch.where(most > -1e4, most, 0.0))
    return Sage(), graphs(5)


@network()
def message_passing() -> Made:
    class Messages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.message, self.update = nn.Sequential(nn.Linear(5 + 5 + 2, 8), nn.ReLU(), nn.Linear(8, 6)), nn.GRUCell(6, 5)

        def forward(self, x: torch.Tensor, edges: torch.Tensor, features: torch.Tensor) -> Any:
            for _ in range(2):
                m = self.message(torch.cat([x[edges[0]], x[edges[1]], features], 1))
                x = self.update(torch.zeros(x.shape[0], 6).scatter_add(0, edges[1][:, None].expand_as(m), m), x)
            return x
    return Messages(), graphs(5, 2)


@network(differs={"torchscript": INDEX_ADD})
def graph_pooling() -> Made:
    def f(x: torch.Tensor, group: torch.Tensor) -> Any:
        count = torch.zeros(3).index_add(0, group, torch.ones(group.shape[0]))
        total = torch.zeros(3, x.shape[1]).index_add(0, group, x)
        return total, total / count.clamp(min=1)[:, None], count
    return Fn(f), [(t(7, 4), torch.tensor([0, 0, 1, 1, 1, 2, 2])), (t(4, 4), torch.tensor([0, 1, 1, 2]))]


@network()
def adjacency_dense() -> Made:
    def f(x: torch.Tensor, edges: torch.Tensor) -> Any:
        n = x.shape[0]
        a = torch.zeros(n * n).index_add(0, edges[0] * n + edges[1], torch.ones(edges.shape[1])).view(n, n).clamp(max=1)
        return a, (a + torch.eye(n)) @ x, a.sum(1)
    return Fn(f), graphs(4)


@network(differs={"torchscript": INDEX_ADD})
def equivariant_coordinates() -> Made:
    class Egnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edge, self.move = nn.Sequential(nn.Linear(9, 8), nn.SiLU()), nn.Linear(8, 1)

        def forward(self, h: torch.Tensor, edges: torch.Tensor, x: torch.Tensor) -> Any:
            d = x[edges[0]] - x[edges[1]]
            m = self.edge(torch.cat([h[edges[0]], h[edges[1]], d.square().sum(1, keepdim=True)], 1))
            return x.index_add(0, edges[0], d * self.move(m)), torch.zeros(h.shape[0], 8).index_add(0, edges[0], m)
    return Egnn(), [(t(n, 4), torch.stack([ints(n, e), ints(n, e)]), t(n, 3)) for n, e in ((6, 14), (9, 30))]


@network()
def point_net() -> Made:
    return Fn(lambda a, b, x: (b(a(x).max(1)[0]), torch.cdist(x, x).topk(3, -1, largest=False)[1]), nn.Sequential(nn.Linear(3, 16), nn.ReLU()), nn.Linear(16, 4)), [t(2, 10, 3), t(1, 15, 3)]


@network()
def recommender() -> Made:
    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item, self.head = nn.Embedding(20, 8), nn.Embedding(30, 8), nn.Sequential(nn.Linear(17, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> Any:
            u, v = self.user(user), self.item(item)
            return self.head(torch.cat([u, v, (u * v).sum(-1, keepdim=True)], -1)).sigmoid().squeeze(-1)
    return Factors(), [(ints(20, 4), ints(30, 4)), (ints(20, 9), ints(30, 9))]


@network()
def deep_and_wide() -> Made:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = nn.ModuleList(nn.Embedding(10, 4) for _ in range(3))
            self.bottom, self.top = nn.Linear(5, 4), nn.Linear(4 + 6, 1)

        def forward(self, dense: torch.Tensor, which: torch.Tensor) -> Any:
            z = torch.stack([self.bottom(dense), *(bag(which[:, k]) for k, bag in enumerate(self.bags))], 1)
            pairs = z @ z.transpose(-2, -1)
            i, j = torch.tril_indices(4, 4, -1)
            return self.top(torch.cat([z[:, 0], pairs[:, i, j]], 1)).sigmoid()
    return Wide(), [(t(3, 5), ints(10, 3, 3)), (t(8, 5), ints(10, 8, 3))]


@network(differs={"dynamo": "it writes the mean of scatter_reduce as ScatterElements with no reduction"})
def segments_by_softmax() -> Made:
    """Weights of edges that sum to one at each node, and the sums, means, greatest, least and products of what arrives."""
    def f(x: torch.Tensor, edges: torch.Tensor, score: torch.Tensor) -> Any:
        source, target = edges
        n = x.shape[0]
        top = torch.full((n, 1), float("-inf")).scatter_reduce(0, target[:, None], score, "amax")
        e = (score - top[target]).exp()
        share = e / (torch.zeros(n, 1).scatter_add(0, target[:, None], e)[target] + 1e-16)
        near, at = x[source], target[:, None].expand(-1, x.shape[1])
        kinds = [torch.ones_like(x).scatter_reduce(0, at, near, kind, include_self=False) for kind in ("sum", "mean", "amax", "amin", "prod")]
        return share, torch.zeros_like(x).scatter_add(0, at, near * share), *kinds
    return Fn(f), graphs(4, 1)


@network()
def graphs_to_rows() -> Made:
    """Nodes of several graphs laid out as rows of a padded batch, with a mask; the best of each by one feature."""
    def f(x: torch.Tensor, group: torch.Tensor) -> Any:
        count = torch.zeros(3, dtype=torch.int64).scatter_add(0, group, torch.ones_like(group))
        place = torch.arange(group.shape[0]) - (count.cumsum(0) - count)[group]
        dense = torch.zeros(3, 6, x.shape[1]).index_put((group, place), x)
        mask = torch.arange(6)[None] < count[:, None]
        order = dense[..., 0].masked_fill(~mask, -1e9).topk(2, 1).indices
        return dense, mask, torch.gather(dense, 1, order[..., None].expand(-1, -1, x.shape[1]))
    return Fn(f), [(t(7, 4), torch.tensor([0, 0, 1, 1, 1, 2, 2])), (t(4, 4), torch.tensor([0, 1, 1, 2]))]


@network()
def edges_of_kinds() -> Made:
    """A product by the weight of each edge's kind, and neighbours found in space with a smooth end."""
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.root = nn.Parameter(t(3, 4, 5)), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor, edges: torch.Tensor, kind: torch.Tensor, place: torch.Tensor) -> Any:
            message = torch.bmm(x[edges[0]][:, None], self.weight[kind])[:, 0]
            y = self.root(x).scatter_add(0, edges[1][:, None].expand_as(message), message)
            away = (place[:, None] - place[None]).square().sum(-1)
            i, j = ((away < 4) & ~torch.eye(place.shape[0], dtype=torch.bool)).nonzero(as_tuple=True)
            d = (place[i] - place[j]).norm(dim=-1)
            waves = torch.exp(-10 * (d[:, None] - torch.linspace(0, 2, 6)).square()) * (0.5 * ((d * math.pi / 2).cos() + 1))[:, None]
            return y, torch.zeros(x.shape[0], 6).scatter_add(0, i[:, None].expand_as(waves), waves)
    return Kinds(), [(t(n, 4), torch.stack([ints(n, e), ints(n, e)]), ints(3, e), t(n, 3)) for n, e in ((6, 14), (9, 30))]


@network()
def neighbours_in_features() -> Made:
    def f(body: nn.Module, x: torch.Tensor) -> Any:
        n, s, c = x.shape
        near = torch.cdist(x, x).topk(4, -1, largest=False).indices
        around = torch.gather(x[:, None].expand(-1, s, -1, -1), 2, near[..., None].expand(-1, -1, -1, c))
        return body(torch.cat([around - x[:, :, None], x[:, :, None].expand_as(around)], -1)).amax(2)
    return Fn(f, nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2))), [t(2, 10, 3), t(1, 7, 3)]


@network(differs={"dynamo": "it drops the sum with 1e-8, so that it divides by a distance of zero"})
def points_spread() -> Made:
    """Farthest points by turns, balls round them, features brought back by inverse distances."""
    def f(x: torch.Tensor) -> Any:
        n, s, _ = x.shape
        least, at, picked = torch.full((n, s), 1e10), torch.zeros(n, dtype=torch.int64), []
        for _ in range(4):
            picked.append(at)
            here = torch.gather(x, 1, at[:, None, None].expand(-1, 1, 3))
            least = torch.minimum(least, (x - here).square().sum(-1))
            at = least.argmax(-1)
        centre = torch.gather(x, 1, torch.stack(picked, 1)[..., None].expand(-1, -1, 3))
        away = (centre[:, :, None] - x[:, None]).square().sum(-1)
        group = torch.where(away > 1, s, torch.arange(s)).sort(-1).values[..., :3]
        group = torch.where(group == s, group[..., :1], group)
        d, near = away.transpose(1, 2).topk(2, -1, largest=False)
        w = 1 / (d + 1e-8)
        back = torch.gather(centre[:, None].expand(-1, s, -1, -1), 2, near[..., None].expand(-1, -1, -1, 3))
        return torch.stack(picked, 1), group, (back * (w / w.sum(-1, keepdim=True))[..., None]).sum(2)
    return Fn(f), [t(2, 10, 3), t(1, 17, 3)]
