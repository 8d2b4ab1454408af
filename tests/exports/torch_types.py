"""PyTorch: networks in float16, bfloat16 and float64, and inputs of small integer types."""
from __future__ import annotations

from typing import Any

import torch
from exports import torch_attention, torch_images, torch_layers, torch_recurrent
from exports.torch_export import Fn, Made, ints, network, shaped, t
from torch import nn

HALF = {"rtol": 2e-2, "atol": 1e-2}
BRAIN = {"rtol": 6e-2, "atol": 4e-2}


def in_type(made: Made, dtype: torch.dtype) -> Made:
    """The network and its floating inputs in another type."""
    module, sets = made
    return module.to(dtype), [shaped(args, lambda x: x.to(dtype) if x.is_floating_point() else x) for args in sets]


@network(**HALF)
def resnet_half() -> Made:
    return in_type(torch_images.resnet(), torch.float16)


@network(**HALF)
def mobilenet_half() -> Made:
    return in_type(torch_images.mobilenet_v3(), torch.float16)


@network(one_size=("torchscript",), **HALF)
def encoder_half() -> Made:
    return in_type(torch_attention.transformer_encoder(), torch.float16)


@network(**HALF)
def gpt_half() -> Made:
    return in_type(torch_attention.gpt_cached(), torch.float16)


@network(**HALF)
def gru_half() -> Made:
    return in_type(torch_recurrent.gru(), torch.float16)


@network(**HALF)
def layer_norm_half() -> Made:
    return in_type(torch_layers.layer_norms(), torch.float16)


@network(**HALF)
def resize_half() -> Made:
    return in_type(torch_layers.resize_bilinear(), torch.float16)


@network(exporters=("dynamo",), broken={"dynamo": "its weights stayed float32 beside inputs in bfloat16"}, **BRAIN)
def resnet_bfloat() -> Made:
    return in_type(torch_images.resnet(), torch.bfloat16)


@network(**BRAIN)
def mlp_bfloat() -> Made:
    return in_type((nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4), nn.Softmax(-1)), [t(3, 8), t(5, 8)]), torch.bfloat16)


@network()
def resnet_double() -> Made:
    return in_type(torch_images.resnet(), torch.float64)


@network()
def unet_double() -> Made:
    return in_type(torch_images.unet_transposed(), torch.float64)


@network(one_size=("torchscript",))
def encoder_double() -> Made:
    return in_type(torch_attention.transformer_encoder(), torch.float64)


@network()
def lstm_double() -> Made:
    return in_type(torch_recurrent.lstm_states(), torch.float64)


@network()
def activations_double() -> Made:
    return in_type(torch_layers.smooth_activations(), torch.float64)


@network()
def pools_double() -> Made:
    return in_type(torch_layers.pools_2d(), torch.float64)


@network(**HALF)
def mixed_precision() -> Made:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8).half(), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.b(self.a(x.half()).relu().float()).softmax(-1).half(), x.double().sum(1)
    return Mixed(), [t(3, 8), t(5, 8)]


@network()
def bytes_image() -> Made:
    def f(conv: nn.Module, x: torch.Tensor) -> Any:
        y = conv((x.permute(0, 3, 1, 2).float() / 255 - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.2)
        return (y.sigmoid() * 255).clamp(0, 255).to(torch.uint8) // 8
    return Fn(f, nn.Conv2d(3, 2, 3)), [ints(255, 1, 12, 14, 3).to(torch.uint8), ints(255, 2, 9, 9, 3).to(torch.uint8)]


@network()
def small_integers() -> Made:
    def f(a: torch.Tensor, b: torch.Tensor) -> Any:
        return a + b, a * b, a.float() * 0.5, (a > b), a.long().sum(), torch.where(a > b, a, b), a[b.long() % a.shape[0]], a.max(), a.flip(0)
    return Fn(f), [(ints(100, 5).to(torch.int8) - 50, ints(100, 5).to(torch.int8)), (ints(100, 9).to(torch.int8) - 50, ints(100, 9).to(torch.int8))]


@network()
def int32_indices() -> Made:
    return Fn(lambda e, i: (e(i), i * 2, i.float().mean(1)), nn.Embedding(10, 4)), [ints(10, 2, 3).int(), ints(10, 4, 5).int()]


@network()
def bool_inputs() -> Made:
    return Fn(lambda x, m: (x.masked_fill(m, 0.0), m.sum(1), m & (x > 0), m.float() @ x.transpose(-2, -1), ~m, m.any(0), m.long().cumsum(1))), [(t(3, 4), t(3, 4) > 0), (t(2, 6), t(2, 6) > 0)]


@network()
def complex_multiply() -> Made:
    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        z = torch.view_as_complex(x) * torch.view_as_complex(y)
        return torch.view_as_real(z), z.abs(), z.real, z.imag
    return Fn(f), [(t(3, 4, 2), t(3, 4, 2)), (t(5, 4, 2), t(5, 4, 2))]
