"""PyTorch: networks exported in training mode, and networks quantised while they train."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Fn, Made, network, t
from torch import nn
from torch.ao.quantization import FakeQuantize, default_per_channel_weight_fake_quant
from torch.ao.quantization.fx import _decomposed  # noqa: F401
from torch.nn import functional as F

STATISTICS = "it writes normalisation by the batch's statistics as that by the statistics kept"


@network(training=True, differs={"dynamo": "its optimiser makes one dropout of two that have the same input"})
def dropout() -> Made:
    """What is left is twice what came; about half is; another run drops others; noise is of the size asked for."""
    def f(drop: nn.Module, x: torch.Tensor) -> Any:
        y = drop(x)
        left = (y != 0).float().mean()
        return (y * (y - 2 * x)).abs().amax(), (left > 0.45) & (left < 0.55), (drop(x) != y).any()
    return Fn(f, nn.Dropout(0.5)), [t(64, 64) + 9, t(80, 64) + 9]


@network(training=True)
def alpha_dropout() -> Made:
    def f(drop: nn.Module, x: torch.Tensor) -> Any:
        y = drop(x)
        return (y.mean() - x.mean()).abs() < 0.2, (y.std() - x.std()).abs() < 0.2
    return Fn(f, nn.AlphaDropout(0.2)), [t(64, 64), t(80, 64)]


@network(training=True, differs={"dynamo": STATISTICS})
def batch_statistics() -> Made:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)), [t(4, 3, 9, 9), t(2, 3, 12, 8)]


@network(training=True)
def instance_statistics() -> Made:
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.InstanceNorm1d(8, affine=True), nn.GELU(), nn.Linear(7, 4)), [t(2, 3, 9), t(5, 3, 9)]


@network(training=True, differs={"dynamo": STATISTICS})
def loss_of_classes() -> Made:
    return Fn(lambda body, x, y: (F.cross_entropy(body(x), y), F.cross_entropy(body(x), y, label_smoothing=0.1), F.nll_loss(body(x).log_softmax(-1), y, reduction="sum")),
              nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))), [(t(4, 6), torch.tensor([0, 4, 2, 2])), (t(3, 6), torch.tensor([1, 1, 3]))]


@network()
def random_values() -> Made:
    """Uniform and normal values by their moments."""
    def f(x: torch.Tensor) -> Any:
        u, n, c = torch.rand_like(x), torch.randn_like(x), torch.bernoulli(torch.full_like(x, 0.3))
        return (u.mean() - 0.5).abs() < 0.02, (u >= 0).all() & (u < 1).all(), n.mean().abs() < 0.05, (n.std() - 1).abs() < 0.05, (c.mean() - 0.3).abs() < 0.02, (c * (c - 1)).abs().amax()
    return Fn(f), [t(100, 100), t(120, 100)]


class Quantised(nn.Module):
    """A convolution and a linear layer with fake quantisation at every edge, as after quantisation-aware training."""

    def __init__(self, low: int, high: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.marks = nn.ModuleList(FakeQuantize(quant_min=low, quant_max=high, dtype=dtype, qscheme=torch.per_tensor_affine) for _ in range(3))
        self.weights = nn.ModuleList(default_per_channel_weight_fake_quant() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.marks[0](x)
        y = F.conv2d(y, self.weights[0](self.conv.weight), self.conv.bias, padding=1)
        y = self.marks[1](y.relu())
        return self.marks[2](F.linear(y.mean((2, 3)), self.weights[1](self.linear.weight), self.linear.bias))


def trained(low: int, high: int, dtype: torch.dtype) -> Made:
    network, sets = Quantised(low, high, dtype), [t(2, 3, 8, 8), t(1, 3, 12, 6)]
    for x in sets:
        network(x)
    for mark in (*network.marks, *network.weights):
        mark.disable_observer()
    return network, sets


@network(rtol=2e-2, atol=2e-2)
def quantised_unsigned() -> Made:
    return trained(0, 255, torch.quint8)


@network(rtol=2e-2, atol=2e-2)
def quantised_signed() -> Made:
    return trained(-128, 127, torch.qint8)


@network()
def fake_quantised() -> Made:
    def f(x: torch.Tensor, scale: torch.Tensor) -> Any:
        return (torch.fake_quantize_per_tensor_affine(x, 0.1, 128, 0, 255), torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127),
                torch.fake_quantize_per_channel_affine(x, torch.tensor([0.1, 0.2, 0.05, 0.3]), torch.zeros(4, dtype=torch.int32), 1, -128, 127), x * scale)
    return Fn(f), [(t(3, 4), torch.tensor(2.0)), (t(5, 4), torch.tensor(0.5))]


class Decomposed(nn.Module):
    """What quantisation after training writes: every edge rounded to bytes and back, the weights as bytes."""

    def __init__(self, low: int, high: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.range, self.point = (low, high, dtype), (low + high + 1) // 2
        self.linear, self.bias = nn.Linear(8, 16), nn.Parameter(t(4))
        self.register_buffer("weight", torch.randint(-127, 128, (4, 16), dtype=torch.int8))

    def edge(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        q = torch.ops.quantized_decomposed
        return q.dequantize_per_tensor(q.quantize_per_tensor(x, scale, self.point, *self.range), scale, self.point, *self.range)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.edge(self.linear(self.edge(x, 0.03)).relu(), 0.05)
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(self.weight, torch.arange(1, 5) * 0.01, torch.zeros(4, dtype=torch.int64), 0, -127, 127, torch.int8)
        return self.edge(F.linear(y, weight, self.bias), 0.1)


@network(exporters=("dynamo",), rtol=2e-2, atol=2e-2)
def decomposed_unsigned() -> Made:
    return Decomposed(0, 255, torch.uint8), [t(3, 8), t(5, 8)]


@network(exporters=("dynamo",), rtol=2e-2, atol=2e-2)
def decomposed_signed() -> Made:
    return Decomposed(-128, 127, torch.int8), [t(3, 8), t(5, 8)]
