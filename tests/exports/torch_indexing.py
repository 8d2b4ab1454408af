"""PyTorch: slices, gathers, scatters, masks, sorting, and what has a size that the data decides."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import INDEX_ADD, Fn, Made, ints, network, t


@network()
def slices() -> Made:
    return Fn(lambda x: (x[0], x[:, 1], x[..., -1], x[:, 1:3], x[:, ::2], x[:, -2:], x[:, :-1], x[None, :, 0], x[1:, 1:, 1:], x.narrow(1, 1, 2), x.select(2, -1), x.flip(1), x.roll(1, 2), x.rot90(1, (1, 2)))), [
        t(3, 5, 4), t(2, 6, 7)]


@network()
def advanced_indexing() -> Made:
    def f(x: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> Any:
        return (x[i], x[:, i], x[i, j], x[i, :, j], x[:, i, j], x[i[:, None], j[None, :]], x[..., i], x[i, 1:3], x[None, i], x[-1, i])
    return Fn(f), [(t(4, 4, 4), ints(4, 5), ints(4, 5)), (t(5, 4, 6), ints(4, 3), ints(4, 3))]


@network()
def negative_indices() -> Made:
    return Fn(lambda x, i: (x[i], x[:, i], torch.index_select(x, 0, i % 3), x.take(i % 5))), [(t(3, 4), ints(6, 5) - 3), (t(3, 6), ints(6, 2) - 3)]


@network()
def gathers() -> Made:
    return Fn(lambda x, i: (x.gather(1, i), torch.take_along_dim(x, i, 1), x.index_select(1, i[0]), torch.take(x, i[0]))), [(t(3, 5), ints(5, 3, 2)), (t(2, 5), ints(5, 2, 4))]


@network()
def scatters() -> Made:
    def f(x: torch.Tensor, i: torch.Tensor, s: torch.Tensor) -> Any:
        return (x.scatter(1, i, s), x.scatter_add(1, i, s), x.scatter(1, i[:, :1], 2.5), x.scatter_reduce(1, i, s, "amax"), x.scatter_reduce(1, i, s, "sum"), x.scatter_reduce(1, i, s, "prod"))
    place = torch.stack([torch.randperm(5)[:3] for _ in range(4)])
    return Fn(f), [(t(4, 5), place, t(4, 3)), (t(4, 5), place.flip(0)[:, :2].clone(), t(4, 2))]


@network(differs={"dynamo": "it writes a mean of scattered values as ScatterElements with no reduction"})
def scatter_means() -> Made:
    return Fn(lambda x, i, s: (x.scatter_reduce(0, i, s, "amin"), x.scatter_reduce(0, i, s, "amax", include_self=False), x.scatter_reduce(0, i, s, "mean"))), [(t(4, 5), ints(4, 6, 5), t(6, 5))]


@network()
def index_writes() -> Made:
    def f(x: torch.Tensor, i: torch.Tensor, v: torch.Tensor) -> Any:
        a, b, c = x.clone(), x.clone(), x.clone()
        a[:, 1] = 5.0
        b[1:3, ::2] = b[1:3, ::2] * 2
        c[i] = v
        return a, b, c, x.index_add(0, i, v), x.index_copy(0, i, v), x.index_fill(0, i, 3.0), torch.index_put(x, (i, i), v[:, 0]), torch.index_put(x, (i,), v, accumulate=True)
    return Fn(f), [(t(4, 5), torch.tensor([2, 0]), t(2, 5)), (t(6, 5), torch.tensor([3, 1, 5 - 1]), t(3, 5))]


@network()
def masks() -> Made:
    def f(x: torch.Tensor) -> Any:
        m = x > 0
        y = x.clone()
        y[m] = 0
        z = x.masked_fill(~m, float("-inf")).softmax(-1)
        return x.masked_fill(m, -1.0), torch.where(m, x, -x), y, z.nan_to_num(), (x * m).sum(1) / m.sum(1).clamp(min=1), m.float().mean()
    return Fn(f), [t(3, 6), t(5, 4)]


@network()
def boolean_selection() -> Made:
    return Fn(lambda x: (x[x > 0], torch.masked_select(x, x < 0.5), x[(x > 0).any(1)])), [t(4, 6), t(3, 5)]


@network()
def nonzero() -> Made:
    return Fn(lambda x: ((x > 0).nonzero(), x.relu().nonzero(), torch.nonzero(x > 0, as_tuple=True)[1], (x > 9).nonzero())), [t(4, 5), t(3, 3)]


@network()
def masked_scatter() -> Made:
    return Fn(lambda x, s: x.masked_scatter(x > 0, s)), [(t(3, 4), t(12)), (t(2, 4), t(12))]


@network()
def sorts() -> Made:
    return Fn(lambda x: (*x.sort(1), *x.sort(0, descending=True), x.argsort(1), x.argsort(-1, descending=True), *x.topk(3, 1), *x.topk(2, 0, largest=False), *x.sort(dim=1, stable=True))), [t(4, 6), t(3, 5)]


@network()
def topk_of_size() -> Made:
    return Fn(lambda x: x.topk(min(4, x.shape[1]) if isinstance(x.shape[1], int) else 4, 1)[0].sum(1)), [t(4, 6), t(3, 9)]


@network()
def uniques() -> Made:
    return Fn(lambda x: torch.unique(x, return_inverse=True, return_counts=True)), [ints(5, 12), ints(7, 9)]


@network()
def bucketize() -> Made:
    return Fn(lambda x, edges: (torch.bucketize(x, edges), torch.searchsorted(edges, x, right=True))), [(t(3, 4), torch.tensor([-1.0, 0.0, 0.7])), (t(2, 6), torch.tensor([-1.0, 0.0, 0.7]))]


@network()
def meshgrids() -> Made:
    def f(x: torch.Tensor) -> Any:
        h, w = x.shape[-2:]
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        return torch.stack([xs, ys], -1).float() * x.mean(), torch.cartesian_prod(torch.arange(3), torch.arange(2)) + x.sum().long()
    return Fn(f), [t(3, 4), t(5, 2)]


@network()
def sequence_masks() -> Made:
    def f(x: torch.Tensor, lengths: torch.Tensor) -> Any:
        m = torch.arange(x.shape[1])[None] < lengths[:, None]
        last = x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return (x * m[..., None]).sum(1) / lengths[:, None], last, x.masked_fill(~m[..., None], -1e9).max(1)[0], x[torch.arange(x.shape[0]), lengths - 1]
    return Fn(f), [(t(2, 5, 3), torch.tensor([5, 2])), (t(3, 7, 3), torch.tensor([1, 7, 4]))]


@network()
def greedy_decoding() -> Made:
    def f(logits: torch.Tensor) -> Any:
        best = logits.argmax(-1)
        keep = torch.cat([torch.ones_like(best[:, :1], dtype=torch.bool), best[:, 1:] != best[:, :-1]], 1) & (best != 0)
        return best, keep, keep.sum(1)
    return Fn(f), [t(2, 10, 5), t(3, 7, 5)]


@network()
def top_p_filter() -> Made:
    def f(logits: torch.Tensor) -> Any:
        ranked, order = logits.softmax(-1).sort(-1, descending=True)
        dropped = (ranked.cumsum(-1) - ranked) > 0.8
        return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), float("-inf")).softmax(-1)
    return Fn(f), [t(2, 10), t(3, 6)]


@network()
def repeated_by_data() -> Made:
    return Fn(lambda x, n: x.repeat_interleave(n, 0)), [(t(3, 4), torch.tensor([2, 0, 3])), (t(2, 4), torch.tensor([1, 4]))]


@network(differs={"torchscript": INDEX_ADD})
def bincount() -> Made:
    return Fn(lambda x: (torch.zeros(6, dtype=torch.int64).index_add(0, x, torch.ones_like(x)), torch.nn.functional.one_hot(x, 6).sum(0))), [ints(6, 20), ints(6, 5)]
