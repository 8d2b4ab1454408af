"""PyTorch: one kind of layer each: activations, norms, pools, convolutions, padding, resizing."""
from __future__ import annotations

from typing import Any

import torch
from exports.torch_export import Fn, Made, ints, network, t
from torch import nn
from torch.nn import functional as F

SMOOTH = (nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.ELU, nn.SELU, nn.CELU, nn.GELU)
HARD = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold)


@network()
def smooth_activations() -> Made:
    return Fn(lambda *a: [f(a[-1]) for f in a[:-1]], *(kind() for kind in SMOOTH), nn.GELU("tanh")), [t(3, 17) * 3, t(2, 5) * 3]


@network()
def hard_activations() -> Made:
    made = [kind(0.3, -2.0) if kind is nn.Threshold else kind() for kind in HARD]
    return Fn(lambda *a: [f(a[-1]) for f in a[:-1]], *made, nn.PReLU()), [t(3, 17) * 3, t(2, 5) * 3]


@network()
def soft_functions() -> Made:
    def f(x: torch.Tensor) -> Any:
        return (x.softmax(1), x.log_softmax(-1), F.softmin(x, 2), F.glu(x, -1), F.normalize(x, dim=1), F.normalize(x, p=1, dim=2), torch.logsumexp(x, (1, 2)),
                F.cosine_similarity(x, x.flip(1), 1))
    return Fn(f), [t(2, 5, 6), t(3, 4, 6)]


@network()
def norms() -> Made:
    parts = [nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(6), nn.GroupNorm(3, 6), nn.GroupNorm(1, 6, affine=False), nn.LocalResponseNorm(3)]
    nn.init.normal_(parts[0].running_mean)
    return Fn(lambda *a: [f(a[-1]) for f in a[:-1]], *parts), [t(2, 6, 5, 7), t(1, 6, 9, 4)]


@network()
def layer_norms() -> Made:
    parts = [nn.LayerNorm(12), nn.LayerNorm((5, 12)), nn.LayerNorm(12, elementwise_affine=False), nn.LayerNorm(12, bias=False), nn.RMSNorm(12)]
    return Fn(lambda *a: [f(a[-1]) for f in a[:-1]], *parts), [t(2, 5, 12), t(7, 5, 12)]


@network()
def rms_norm_23() -> Made:
    return nn.Sequential(nn.Linear(8, 16), nn.RMSNorm(16), nn.GELU(), nn.LayerNorm(16)), [t(3, 8), t(5, 8)]


@network(exporters=("dynamo",), opset=23)
def opset_23_norms() -> Made:
    return Fn(lambda a, b, c, x: (a(x), b(x), c(x.transpose(1, 2))), nn.RMSNorm(16), nn.LayerNorm(16), nn.GroupNorm(4, 16)), [t(3, 5, 16), t(2, 6, 16)]


@network()
def batch_norm_1d_3d() -> Made:
    return Fn(lambda a, b, x: (a(x), b(x.unsqueeze(-1).unsqueeze(-1))), nn.BatchNorm1d(6), nn.BatchNorm3d(6, affine=False)), [t(2, 6, 5), t(3, 6, 4)]


@network()
def pools_2d() -> Made:
    parts = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d((2, 3), 1, dilation=2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True),
             nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.LPPool2d(2, 2)]
    return Fn(lambda *a: [f(a[-1].abs()) for f in a[:-1]], *parts), [t(2, 3, 11, 13), t(1, 3, 9, 8)]


@network()
def pools_1d_3d() -> Made:
    parts = [nn.MaxPool1d(3, 2), nn.AvgPool1d(3, 2, 1), nn.AdaptiveAvgPool1d(1), nn.LPPool1d(2, 3)]
    more = [nn.MaxPool3d(2), nn.AvgPool3d((2, 1, 2)), nn.AdaptiveAvgPool3d(1)]
    return Fn(lambda *a: [f(a[-2].abs()) for f in a[:4]] + [f(a[-1]) for f in a[4:7]], *parts, *more), [(t(2, 3, 11), t(1, 2, 4, 6, 6)), (t(1, 3, 9), t(2, 2, 5, 7, 4))]


@network()
def pool_indices() -> Made:
    return Fn(lambda x: (*F.max_pool2d(x, 2, return_indices=True), *F.max_pool1d(x[0], 3, return_indices=True))), [t(2, 3, 8, 8), t(1, 3, 6, 10)]


@network()
def adaptive_pools_static() -> Made:
    return Fn(lambda x: (F.adaptive_avg_pool2d(x, (2, 3)), F.adaptive_max_pool2d(x, 4), F.adaptive_avg_pool2d(x, (5, 7)))), [t(2, 3, 12, 12)]


@network()
def unpool_static() -> Made:
    def f(x: torch.Tensor) -> torch.Tensor:
        y, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(y, places, 2)
    return Fn(f), [t(2, 3, 8, 8)]


@network()
def convolutions() -> Made:
    parts = [nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(4, 6, 3, padding="valid"), nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.Conv2d(4, 4, 5, padding=2, groups=4),
             nn.Conv2d(4, 6, (1, 3), (2, 1), (0, 1)), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
             nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate")]
    return Fn(lambda *a: [f(a[-1]) for f in a[:-1]], *parts), [t(2, 4, 9, 11), t(1, 4, 12, 7)]


@network()
def transposed_convolutions() -> Made:
    parts = [nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.ConvTranspose2d(4, 4, 3, 2, groups=4), nn.ConvTranspose2d(4, 6, 3, dilation=2),
             nn.ConvTranspose2d(4, 6, (2, 4), (2, 1), bias=False)]
    return Fn(lambda *a: [f(a[-1]) for f in a[:-1]], *parts), [t(2, 4, 5, 6), t(1, 4, 7, 3)]


@network()
def convolution_1d_causal() -> Made:
    parts = [nn.Conv1d(4, 4, 3), nn.ConvTranspose1d(4, 2, 4, 2, 1), nn.Conv1d(4, 4, 4, groups=4)]
    return Fn(lambda a, b, c, x: (a(F.pad(x, (2, 0))), b(x), c(F.pad(x, (3, 0))))[:3], *parts), [t(2, 4, 20), t(1, 4, 31)]


@network()
def convolution_of_inputs() -> Made:
    return Fn(lambda x, w, b: (F.conv2d(x, w, b, padding=1), F.conv_transpose2d(x, w.transpose(0, 1)))), [(t(1, 3, 8, 8), t(4, 3, 3, 3), t(4)), (t(2, 3, 6, 9), t(4, 3, 3, 3), t(4))]


@network()
def bilinear_layer() -> Made:
    return Fn(lambda f, a, b: f(a, b), nn.Bilinear(3, 4, 5)), [(t(2, 3), t(2, 4)), (t(6, 3), t(6, 4))]


@network()
def pads() -> Made:
    def f(x: torch.Tensor) -> Any:
        return (F.pad(x, (1, 2, 0, 1)), F.pad(x, (1, 1, 2, 2), value=-3.5), F.pad(x, (2, 1, 1, 0), "reflect"), F.pad(x, (1, 2, 1, 1), "replicate"),
                F.pad(x, (1, 2, 2, 1), "circular"), F.pad(x, (-1, 1, 1, -1)))
    return Fn(f), [t(2, 3, 5, 6), t(1, 3, 4, 8)]


def resized(mode: str, more: Any = (1.5, 0.7), **options: Any) -> Made:
    """`more`: a second scale; with corners aligned it must give whole sizes, where ONNX divides by the exact ones less one and PyTorch by the rounded ones."""
    return Fn(lambda x: (F.interpolate(x, scale_factor=2, mode=mode, **options), F.interpolate(x, size=(7, 9), mode=mode, **options),
                         F.interpolate(x, scale_factor=more, mode=mode, **options))), [t(1, 2, 6, 8), t(2, 2, 5, 11)]


@network()
def resize_nearest() -> Made:
    return resized("nearest")


@network()
def resize_nearest_exact() -> Made:
    return resized("nearest-exact")


@network()
def resize_bilinear() -> Made:
    return resized("bilinear")


@network()
def resize_bilinear_corners() -> Made:
    return resized("bilinear", (3, 2), align_corners=True)


@network()
def resize_bicubic() -> Made:
    return resized("bicubic")


@network()
def resize_bicubic_corners() -> Made:
    return resized("bicubic", (3, 2), align_corners=True)


@network()
def resize_area_static() -> Made:
    return Fn(lambda x: F.interpolate(x, size=(3, 4), mode="area")), [t(1, 2, 6, 8)]


@network()
def resize_antialias() -> Made:
    return Fn(lambda x: (F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True), F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True))), [t(1, 2, 9, 12), t(1, 2, 8, 7)]


@network()
def resize_1d_3d() -> Made:
    return Fn(lambda x, y: (F.interpolate(x, scale_factor=2.0, mode="linear"), F.interpolate(x, size=5), F.interpolate(y, scale_factor=2.0, mode="trilinear"))), [
        (t(1, 2, 6), t(1, 2, 3, 4, 5)), (t(2, 2, 9), t(1, 2, 4, 3, 2))]


def sampled(**options: Any) -> Made:
    return Fn(lambda x, grid: F.grid_sample(x, grid, **options)), [(t(2, 3, 5, 6), t(2, 4, 7, 2)), (t(1, 3, 8, 4), t(1, 6, 3, 2))]


@network()
def grid_sample_bilinear() -> Made:
    return sampled(align_corners=False)


@network()
def grid_sample_nearest_border() -> Made:
    return sampled(mode="nearest", padding_mode="border", align_corners=True)


@network()
def grid_sample_bicubic_reflection() -> Made:
    return sampled(mode="bicubic", padding_mode="reflection", align_corners=False)


@network()
def spatial_transformer() -> Made:
    return Fn(lambda theta, x: F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)), [(t(2, 2, 3), t(2, 1, 6, 7))]


@network()
def shuffles() -> Made:
    return Fn(lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), F.channel_shuffle(x, 2))), [t(1, 8, 4, 6), t(2, 8, 2, 8)]


@network()
def unfold_fold_static() -> Made:
    return Fn(lambda x: (F.unfold(x, 3, padding=1), F.fold(F.unfold(x, 2, stride=2), (6, 8), 2, stride=2), x.unfold(2, 3, 2))), [t(2, 3, 6, 8)]


@network()
def unfold() -> Made:
    return Fn(lambda x: F.unfold(x, 3, padding=1, stride=2)), [t(2, 3, 6, 8), t(1, 3, 9, 7)]


@network()
def embedding_layers() -> Made:
    return Fn(lambda a, b, i: (a(i), b(i), F.one_hot(i, 10)), nn.Embedding(10, 4), nn.Embedding(10, 3, padding_idx=0)), [ints(10, 2, 5), ints(10, 3, 7)]


@network()
def embedding_bag() -> Made:
    return Fn(lambda a, b, i: (a(i), b(i)), nn.EmbeddingBag(10, 4, mode="sum"), nn.EmbeddingBag(10, 4, mode="mean")), [ints(10, 3, 5), ints(10, 2, 4)]


@network()
def embedding_bag_offsets() -> Made:
    return Fn(lambda a, i, o: a(i, o), nn.EmbeddingBag(10, 4, mode="sum")), [(ints(10, 9), torch.tensor([0, 2, 5]))]


@network()
def losses() -> Made:
    def f(x: torch.Tensor, target: torch.Tensor) -> Any:
        logits, label = x, target
        return (F.cross_entropy(logits, label), F.cross_entropy(logits, label, reduction="none"), F.nll_loss(logits.log_softmax(1), label, reduction="sum"), F.mse_loss(x, x.flip(0)),
                F.binary_cross_entropy_with_logits(x, (x > 0).float()), F.smooth_l1_loss(x, x * 0), F.kl_div(x.log_softmax(1), x.flip(1).softmax(1), reduction="batchmean"))
    return Fn(f), [(t(4, 5), ints(5, 4)), (t(7, 5), ints(5, 7))]
