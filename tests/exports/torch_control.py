"""PyTorch: branches and loops in the file."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torch._higher_order_ops.map import map as mapped
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

SCRIPTED = ("torchscript",)
TRACED = ("dynamo",)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos() - 1, (x,))


@network(exporters=TRACED)
def cond() -> Made:
    return Branch(), [t(3, 4).abs(), -t(3, 4).abs(), t(5, 4).abs()]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def inner(x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.max() > 1, lambda x: self.a(x) * 2, lambda x: self.b(x), (x,))
        return torch.cond(x.mean() > 0, inner, lambda x: x - 1, (x,))


@network(exporters=TRACED)
def cond_nested() -> Made:
    return Nested(), [t(3, 4).abs() * 3, t(3, 4).abs() * 0.1, -t(3, 4).abs()]


class Chosen(nn.Module):
    def forward(self, x: torch.Tensor, flag: torch.Tensor) -> Any:
        return torch.cond(flag, lambda x: (x + 1, x.sum(0)), lambda x: (x * x, x.amax(0)), (x,))


@network(exporters=TRACED)
def cond_on_input() -> Made:
    return Chosen(), [(t(3, 4), torch.tensor(True)), (t(3, 4), torch.tensor(False)), (t(6, 4), torch.tensor(False))]


@torch.jit.script
def power(x: torch.Tensor, times: int) -> torch.Tensor:
    y = torch.ones_like(x)
    for _ in range(times):
        y = y * x
    return y


@torch.jit.script
def halved(x: torch.Tensor) -> torch.Tensor:
    while bool(x.abs().max() > 1.0):
        x = x / 2
    return x


@torch.jit.script
def rows_summed(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(x[0])
    for k in range(x.size(0)):
        if k % 2 == 0:
            total = total + x[k]
        else:
            total = total - x[k] * 0.5
    return total


@torch.jit.script
def rows_collected(x: torch.Tensor) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    for k in range(x.size(0)):
        rows.append(x[k] * k)
    return torch.stack(rows)


@torch.jit.script
def rows_joined(x: torch.Tensor) -> torch.Tensor:
    y = x[:1]
    for k in range(x.size(0)):
        y = torch.cat([y, x[k: k + 1] + y.sum(0, keepdim=True)], 0)
    return y


@torch.jit.script
def signed(x: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        y = x + 1
        if bool(x.max() > 1):
            y = y * 2
    else:
        y = -x
    return y


@torch.jit.script
def greedy(logits: torch.Tensor, steps: int) -> torch.Tensor:
    token = torch.zeros(1, dtype=torch.long)
    seen = token
    for _ in range(steps):
        token = (logits[token[-1]] - logits[seen].mean(0)).argmax().unsqueeze(0)
        seen = torch.cat([seen, token])
    return seen


class Scripted(nn.Module):
    """Calls a scripted function inside a traced network."""

    def __init__(self, function: Any, *more: Any) -> None:
        super().__init__()
        self.function, self.more = function, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.more)


@network(exporters=SCRIPTED)
def loop_for() -> Made:
    return Scripted(power, 3), [t(2, 3), t(4, 3)]


@network(exporters=SCRIPTED)
def loop_while() -> Made:
    return Scripted(halved), [t(2, 3) * 9, t(4, 3) * 0.1, t(3, 3) * 100]


@network(exporters=SCRIPTED)
def loop_with_branch() -> Made:
    return Scripted(rows_summed), [t(4, 3), t(7, 3), t(1, 3)]


@network(exporters=SCRIPTED)
def loop_sequence() -> Made:
    return Scripted(rows_collected), [t(4, 3), t(7, 3), t(1, 3)]


@network(exporters=SCRIPTED)
def loop_growing() -> Made:
    return Scripted(rows_joined), [t(4, 3), t(2, 3)]


@network(exporters=SCRIPTED)
def branches() -> Made:
    return Scripted(signed), [t(4, 3).abs() * 3, t(4, 3).abs() * 0.1, -t(4, 3).abs(), t(6, 3)]


@network(exporters=SCRIPTED)
def loop_greedy() -> Made:
    return Scripted(greedy, 5), [t(6, 6), t(9, 9)]


class Beam(nn.Module):
    """A step of a beam search."""

    def forward(self, scores: torch.Tensor, totals: torch.Tensor) -> Any:
        n, k, v = scores.shape
        best, at = (totals[..., None] + scores.log_softmax(-1)).view(n, k * v).topk(k)
        return best, at // v, at % v


@network()
def beam_step() -> Made:
    return Beam(), [(t(2, 3, 10), t(2, 3)), (t(1, 3, 7), t(1, 3))]


@network()
def unrolled_refinement() -> Made:
    class Refine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> Any:
            y = torch.zeros_like(x)
            for _ in range(8):
                y = y + self.step(torch.cat([x, y], -1)).tanh() * 0.5
            return y
    return Refine(), [t(3, 4), t(5, 4)]


@network()
def euler_steps() -> Made:
    def f(layer: nn.Module, x: torch.Tensor, span: torch.Tensor) -> Any:
        for k in range(5):
            x = x + layer(torch.cat([x, (span * k / 5).expand(x.shape[0], 1)], 1)) * span / 5
        return x
    return Fn(f, nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))), [(t(3, 3), torch.tensor(1.0)), (t(7, 3), torch.tensor(0.3))]


@network()
def sampled_by_uniform() -> Made:
    def f(logits: torch.Tensor, u: torch.Tensor) -> Any:
        return (logits.softmax(-1).cumsum(-1) < u).sum(-1)
    return Fn(f), [(t(3, 6), torch.rand(3, 1)), (t(5, 4), torch.rand(5, 1))]


@network()
def mel_decoder_step() -> Made:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.memory, self.score, self.cell = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 1), nn.GRUCell(4, 6)

        def forward(self, h: torch.Tensor, memory: torch.Tensor, lengths: torch.Tensor) -> Any:
            e = self.score((self.query(h)[:, None] + self.memory(memory)).tanh()).squeeze(-1)
            e = e.masked_fill(torch.arange(memory.shape[1])[None] >= lengths[:, None], float("-inf"))
            w = e.softmax(-1)
            return self.cell((w[..., None] * memory).sum(1), h), w
    return Step(), [(t(2, 6), t(2, 5, 4), ints(4, 2) + 1), (t(3, 6), t(3, 7, 4), ints(6, 3) + 1)]


class Halving(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return while_loop(lambda k, x: x.abs().max() > 1, lambda k, x: (k + 1, x / 2), (torch.tensor(0), x))


@network(exporters=TRACED)
def while_halved() -> Made:
    return Halving(), [t(2, 3) * 9, t(4, 3) * 0.1, t(3, 3) * 100]


class Newton(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> Any:
        def body(k: torch.Tensor, x: torch.Tensor) -> Any:
            return k + 1, x + torch.cond(k % 2 == 0, lambda x: self.layer(x).tanh(), lambda x: -x * 0.1, (x,))
        return while_loop(lambda k, x: k < steps, body, (torch.tensor(0), x))[1]


@network(exporters=TRACED)
def while_with_branch() -> Made:
    return Newton(), [(t(2, 4), torch.tensor(3)), (t(5, 4), torch.tensor(0)), (t(5, 4), torch.tensor(6))]


class Searching(nn.Module):
    """Greedy decoding until a stop token, into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)

    def forward(self, first: torch.Tensor) -> Any:
        def body(k: torch.Tensor, token: torch.Tensor, seen: torch.Tensor) -> Any:
            token = self.head(self.embed(token)).argmax(-1)
            place = (torch.arange(6) == k)[None]
            return k + 1, token, torch.where(place, token[:, None], seen)
        return while_loop(lambda k, token, seen: (k < 6) & (token != 3).any(), body, (torch.tensor(0), first, torch.zeros(first.shape[0], 6, dtype=torch.long)))


@network(exporters=TRACED)
def while_decoding() -> Made:
    return Searching(), [ints(10, 2), ints(10, 4)]


class Scanned(nn.Module):
    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.layer, self.reverse = nn.Linear(7, 4), reverse

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:
        def step(h: torch.Tensor, x: torch.Tensor) -> Any:
            h = self.layer(torch.cat([x, h], -1)).tanh()
            return h, h * 2
        return scan(step, h, x, dim=0, reverse=self.reverse)


@network(exporters=TRACED)
def scanned() -> Made:
    return Scanned(False), [(t(5, 2, 3), t(2, 4)), (t(9, 3, 3), t(3, 4))]


@network(exporters=TRACED)
def scanned_backwards() -> Made:
    return Scanned(True), [(t(5, 2, 3), t(2, 4)), (t(9, 3, 3), t(3, 4))]


class StateSpace(nn.Module):
    """A selective state-space layer, its state carried by a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.mix, self.log = nn.Linear(6, 6), nn.Linear(6, 8), nn.Parameter(torch.rand(6, 4))

    def forward(self, x: torch.Tensor) -> Any:
        def step(h: torch.Tensor, now: Any) -> Any:
            x, rate, b, c = now
            h = h * (-rate[..., None] * self.log.exp()).exp() + (rate * x)[..., None] * b[:, None]
            return h, (h * c[:, None]).sum(-1)
        b, c = self.mix(x).chunk(2, -1)
        return scan(step, torch.zeros(x.shape[1], 6, 4), (x, nn.functional.softplus(self.rate(x)), b, c), dim=0)


@network(exporters=TRACED)
def scanned_state_space() -> Made:
    return StateSpace(), [t(7, 2, 6), t(4, 3, 6)]


class Mapped(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return mapped(lambda x, y: (x * y).cumsum(0), x, y)


@network(exporters=TRACED)
def mapped_rows() -> Made:
    return Mapped(), [(t(3, 4), t(4)), (t(5, 4), t(4))]
