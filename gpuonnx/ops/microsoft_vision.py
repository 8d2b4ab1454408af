"""com.microsoft: channels-last convolutions and pools, group normalisation."""
from __future__ import annotations

from gpuonnx.ir.build import Tensor
from gpuonnx.ir.formula import sigmoid
from gpuonnx.ops import conv as standard_conv
from gpuonnx.ops import normalize, pool
from gpuonnx.ops.microsoft import microsoft
from gpuonnx.ops.microsoft_quantize import channels_behind, channels_first
from gpuonnx.ops.window import Ints, Window, spatial


@microsoft("NhwcConv")
def nhwc_conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
              kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None) -> Tensor:
    """x[N, H, W, C], w[O, kH, kW, C / group]"""
    return channels_behind(standard_conv.conv(channels_first(x), channels_first(w), b, auto_pad=auto_pad, dilations=dilations, group=group,
                                              kernel_shape=kernel_shape, pads=pads, strides=strides))


@microsoft("NhwcMaxPool")
def nhwc_max_pool(x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints = None, kernel_shape: list[int], pads: Ints = None,
                  strides: Ints = None) -> Tensor:
    v = channels_first(x)
    return channels_behind(pool.pooled(v, Window.of(spatial(v), kernel_shape, auto_pad, dilations, pads, strides, ceil_mode), "max"))


@microsoft("GroupNorm")
def group_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, activation: int, channels_last: int = 1, epsilon: float = 1e-5, groups: int) -> Tensor:
    """activation 1: SiLU."""
    v = channels_first(x) if channels_last else x
    y = normalize.standardized(normalize.grouped(v.wide(), groups), [2], epsilon).reshape(v.shape)
    y = y * normalize.per_channel(gamma.wide(), v) + normalize.per_channel(beta.wide(), v)
    y = y * sigmoid(y) if activation else y
    return (channels_behind(y) if channels_last else y).cast(x.dtype)


@microsoft("SkipGroupNorm")
def skip_group_norm(x: Tensor, gamma: Tensor, beta: Tensor, skip: Tensor, bias: Tensor | None = None, *, activation: int, channels_last: int = 1,
                    epsilon: float = 1e-5, groups: int) -> tuple[Tensor, Tensor]:
    """skip: as x, or [N, C]. Also gives the sum that was normalised."""
    per_channel = [1, 2] if channels_last else [2, 3]
    total = x + (skip.unsqueeze(per_channel) if skip.rank == 2 else skip)
    if bias is not None:
        total = total + (bias if channels_last else bias.unsqueeze([1, 2]))
    return group_norm(total, gamma, beta, activation=activation, channels_last=channels_last, epsilon=epsilon, groups=groups), total
