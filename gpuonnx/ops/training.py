"""One step of an optimizer (ai.onnx.preview.training)."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Tensor, where
from gpuonnx.ir.formula import greater, less, power, sqrt
from gpuonnx.ops.registry import op

DOMAIN = "ai.onnx.preview.training"


def groups(xs: Sequence[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """X1..Xn, G1..Gn, ... as one tuple a variable."""
    if len(xs) % count:
        raise ModelError(f"{len(xs)} tensors cannot be {count} for each variable")
    n = len(xs) // count
    return [tuple(xs[k::n]) for k in range(n)]


def interleaved(rows: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [t for column in zip(*rows, strict=True) for t in column]


@op("Adagrad", domain=DOMAIN)
def adagrad(rate: Tensor, count: Tensor, *xs: Tensor, decay_factor: float = 0.0, epsilon: float = 1e-6,
            norm_coefficient: float = 0.0) -> list[Tensor]:
    """X, gradient, accumulated squared gradient -> X, accumulated squared gradient."""
    def step(x: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        factor = rate.cast(x.dtype) / (count.cast(x.dtype) * decay_factor + 1)
        g = x * norm_coefficient + g
        h = h + g * g
        return x - factor * g / (sqrt(h) + epsilon), h
    return interleaved([step(*v) for v in groups(xs, 3)])


@op("Adam", domain=DOMAIN)
def adam(rate: Tensor, count: Tensor, *xs: Tensor, alpha: float = 0.9, beta: float = 0.999, epsilon: float = 1e-6,
         norm_coefficient: float = 0.0, norm_coefficient_post: float = 0.0) -> list[Tensor]:
    """X, gradient, mean gradient, mean squared gradient -> X, mean gradient, mean squared gradient."""
    def step(x: Tensor, g: Tensor, v: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        r, t = rate.cast(x.dtype), count.cast(x.dtype)
        g = x * norm_coefficient + g
        v = v * alpha + g * (1 - alpha)
        h = h * beta + g * g * (1 - beta)
        adjusted = where(greater(t, 0.0), r * sqrt(1 - power(beta, t)) / (1 - power(alpha, t)), r)
        return (x - adjusted * v / (sqrt(h) + epsilon)) * (1 - norm_coefficient_post), v, h
    return interleaved([step(*v) for v in groups(xs, 4)])


@op("Momentum", domain=DOMAIN)
def momentum(rate: Tensor, count: Tensor, *xs: Tensor, alpha: float, beta: float, mode: str, norm_coefficient: float) -> list[Tensor]:
    """X, gradient, momentum -> X, momentum."""
    if mode not in ("standard", "nesterov"):
        raise ModelError(f"the mode is standard or nesterov, here {mode!r}")

    def step(x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        r, first = rate.cast(x.dtype), less(count, 1).cast(x.dtype)
        g = x * norm_coefficient + g
        v = v * alpha + (first * (1 - beta) + beta) * g
        return x - r * (g + v * alpha if mode == "nesterov" else v), v
    return interleaved([step(*v) for v in groups(xs, 3)])
