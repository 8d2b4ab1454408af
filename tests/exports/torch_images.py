"""PyTorch: small networks on images, of the shapes that well-known ones have."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Made, network, t
from torch import nn
from torch.nn import functional as F


def block(i: int, o: int, k: int = 3, s: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    norm = nn.BatchNorm2d(o)
    nn.init.normal_(norm.running_mean, std=0.1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False), norm, act())


class Residual(nn.Module):
    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(i, o, 3, s), nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o))
        self.skip: nn.Module = nn.Conv2d(i, o, 1, s) if s > 1 or i != o else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.skip(x))


@network()
def resnet() -> Made:
    stem = nn.Sequential(block(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(stem, Residual(16, 16, 1), Residual(16, 32, 2), head), [t(2, 3, 64, 64), t(1, 3, 96, 64), t(3, 3, 33, 57)]


@network()
def resnet_static() -> Made:
    return resnet()[0], [t(1, 3, 64, 64)]


class Squeeze(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    def __init__(self, c: int, act: type[nn.Module], squeeze: bool, k: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(block(c, 2 * c, 1, act=act), block(2 * c, 2 * c, k, groups=2 * c, act=act),
                                  Squeeze(2 * c) if squeeze else nn.Identity(), nn.Conv2d(2 * c, c, 1), nn.BatchNorm2d(c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def classifier(*body: nn.Module, c: int, classes: int = 7) -> nn.Sequential:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))


@network()
def mobilenet_v2() -> Made:
    return classifier(block(3, 16, 3, 2, act=nn.ReLU6), Inverted(16, nn.ReLU6, False), block(16, 24, 3, 2), c=24), [t(1, 3, 48, 48), t(4, 3, 32, 40)]


@network()
def mobilenet_v3() -> Made:
    return classifier(block(3, 16, 3, 2, act=nn.Hardswish), Inverted(16, nn.Hardswish, True, 5), Inverted(16, nn.ReLU, True), c=16), [t(2, 3, 32, 32), t(1, 3, 50, 30)]


@network()
def efficientnet() -> Made:
    return classifier(block(3, 16, 3, 2, act=nn.SiLU), Inverted(16, nn.SiLU, True), Inverted(16, nn.SiLU, True, 5), c=16), [t(2, 3, 32, 32), t(1, 3, 64, 48)]


class Dense(nn.Module):
    def __init__(self, c: int, grow: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(c + k * grow), nn.ReLU(), nn.Conv2d(c + k * grow, grow, 3, 1, 1)) for k in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


@network()
def densenet() -> Made:
    return classifier(nn.Conv2d(3, 12, 3, 1, 1), Dense(12, 6, 3), nn.Conv2d(30, 16, 1), nn.AvgPool2d(2), Dense(16, 6, 2), c=28), [t(1, 3, 32, 32), t(2, 3, 24, 28)]


class UNet(nn.Module):
    def __init__(self, up: str) -> None:
        super().__init__()
        self.a, self.b, self.c = block(1, 8), block(8, 16), block(16, 32)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, 2) if up == "transposed" else nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(32, 16, 1))
        self.up2 = nn.ConvTranspose2d(16, 8, 4, 2, 1) if up == "transposed" else nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(16, 8, 1))
        self.d1, self.d2, self.out = block(32, 16), block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d1(torch.cat([b, self.up1(c)], 1))
        return self.out(self.d2(torch.cat([a, self.up2(d)], 1)))


@network()
def unet_transposed() -> Made:
    return UNet("transposed"), [t(1, 1, 32, 32), t(2, 1, 48, 64)]


@network()
def unet_nearest() -> Made:
    return UNet("nearest"), [t(1, 1, 32, 32), t(2, 1, 48, 64)]


@network()
def unet_bilinear() -> Made:
    return UNet("bilinear"), [t(1, 1, 32, 32), t(2, 1, 48, 40)]


class Inception(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = block(c, 8, 1), nn.Sequential(block(c, 8, 1), block(8, 12, 3))
        self.c, self.d = nn.Sequential(block(c, 4, 1), block(4, 8, 5)), block(c, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(F.max_pool2d(x, 3, 1, 1))], 1)


@network()
def inception() -> Made:
    return classifier(block(3, 16, 3, 2), Inception(16), Inception(32), nn.Dropout(0.4), c=32), [t(2, 3, 32, 32), t(1, 3, 47, 35)]


class Shuffle(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(c // 2, c // 2, 1), nn.Conv2d(c // 2, c // 2, 3, 1, 1, groups=c // 2), nn.BatchNorm2d(c // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.body(right)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@network()
def shufflenet() -> Made:
    return classifier(block(3, 16, 3, 2), Shuffle(16), Shuffle(16), c=16), [t(2, 3, 32, 32), t(1, 3, 40, 24)]


class ConvNext(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.up, self.down, self.scale = nn.Linear(c, 4 * c), nn.Linear(4 * c, c), nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@network()
def convnext() -> Made:
    return classifier(nn.Conv2d(3, 16, 4, 4), ConvNext(16), ConvNext(16), c=16), [t(1, 3, 32, 32), t(2, 3, 48, 64)]


class Ghost(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.a, self.b = block(i, o // 2, 1), block(o // 2, o // 2, 3, groups=o // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return torch.cat([y, self.b(y)], 1)


@network()
def ghostnet() -> Made:
    return classifier(Ghost(3, 16), nn.MaxPool2d(2), Ghost(16, 24), c=24), [t(1, 3, 32, 32), t(3, 3, 20, 22)]


@network()
def vgg_static() -> Made:
    return nn.Sequential(block(3, 8), block(8, 8), nn.MaxPool2d(2), block(8, 16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 64, 32), nn.ReLU(),
                         nn.Dropout(), nn.Linear(32, 10), nn.LogSoftmax(1)), [t(2, 3, 32, 32)]


class Pyramid(nn.Module):
    """Features of three levels, summed from the top down at whatever sizes they have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, 8, 3, 2), block(8, 16, 3, 2), block(16, 32, 3, 2)
        self.sides = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (8, 16, 32))

    def forward(self, x: torch.Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        c = self.c(b)
        top = self.sides[2](c)
        middle = self.sides[1](b) + F.interpolate(top, size=b.shape[-2:], mode="nearest")
        low = self.sides[0](a) + F.interpolate(middle, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return low, middle, top


@network()
def feature_pyramid() -> Made:
    return Pyramid(), [t(1, 3, 64, 64), t(2, 3, 50, 70)]


class Aspp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, 3, 2)
        self.branches = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=r, dilation=r) for r in (1, 2, 4))
        self.pool, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        pooled = F.interpolate(self.pool(y.mean((2, 3), keepdim=True)), size=y.shape[-2:], mode="bilinear", align_corners=True)
        y = self.head(torch.cat([*(b(y) for b in self.branches), pooled], 1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True).argmax(1)


@network()
def deeplab() -> Made:
    return Aspp(), [t(1, 3, 32, 32), t(2, 3, 40, 48)]


@network()
def super_resolution() -> Made:
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.PReLU(16), nn.Conv2d(16, 9, 3, padding=1), nn.PixelShuffle(3)), [t(1, 1, 16, 16), t(2, 1, 20, 12)]


@network()
def autoencoder() -> Made:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.ReLU(),
                         nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ELU(), nn.ConvTranspose2d(8, 3, 3, 2, 1, output_padding=1), nn.Tanh()), [t(1, 3, 32, 32), t(3, 3, 16, 48)]


@network()
def style_transfer() -> Made:
    return nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(3, 8, 9), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Upsample(scale_factor=2),
                         nn.ReflectionPad2d(1), nn.Conv2d(8, 3, 3)), [t(1, 3, 24, 24), t(2, 3, 32, 20)]


@network()
def generator() -> Made:
    return nn.Sequential(nn.Linear(16, 128), nn.Unflatten(1, (8, 4, 4)), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()), [t(1, 16), t(5, 16)]


@network()
def video_3d() -> Made:
    return nn.Sequential(nn.Conv3d(3, 8, 3, 1, 1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 8, 3, groups=8), nn.AdaptiveAvgPool3d(1),
                         nn.Flatten(), nn.Linear(8, 4)), [t(1, 3, 8, 16, 16), t(2, 3, 10, 12, 20)]


@network()
def unet_3d() -> Made:
    return nn.Sequential(nn.Conv3d(1, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.ConvTranspose3d(8, 1, 2, 2)), [t(1, 1, 8, 16, 16), t(1, 1, 4, 8, 12)]


@network()
def audio_1d() -> Made:
    return nn.Sequential(nn.Conv1d(1, 16, 10, 5, bias=False), nn.GroupNorm(16, 16), nn.GELU(), nn.Conv1d(16, 16, 3, 2), nn.GELU(),
                         nn.Conv1d(16, 16, 3, padding=4, dilation=4, groups=4)), [t(1, 1, 400), t(2, 1, 333)]


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 4, 1)
        self.filters = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2 ** k) for k in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for k, layer in enumerate(self.filters):
            a, b = layer(F.pad(x, (2 ** k, 0))).chunk(2, 1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
        return self.last(x)


@network()
def wavenet() -> Made:
    return WaveNet(), [t(1, 1, 64), t(2, 1, 101)]


@network()
def keypoints() -> Made:
    class Heat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(block(3, 8, 3, 2), nn.Conv2d(8, 5, 1))

        def forward(self, x: torch.Tensor) -> Any:
            heat = self.body(x)
            n, k, h, w = heat.shape
            place = heat.view(n, k, -1).argmax(-1)
            soft = heat.view(n, k, -1).softmax(-1).view(n, k, h, w)
            expected = (soft.sum(2) * torch.arange(w, dtype=torch.float32)).sum(-1)
            return torch.stack([place % w, place // w], -1), expected
    return Heat(), [t(1, 3, 32, 32), t(2, 3, 24, 40)]
