"""Resize and Upsample: one axis at a time, a Map (or, with antialiasing, a Reduce) for each axis that changes."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Tensor, builder, cast, const, dim, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, apply
from gpuonnx.ir.formula import absolute, both, greater, less, less_equal, maximum, minimum, select
from gpuonnx.ir.types import compute
from gpuonnx.ops.registry import Const, Dims, op

Weight = Callable[[Expr], Expr]
HALVES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")


@dataclass(frozen=True)
class Axis:
    """One axis that is resized. `factor` is the scale as a float64 expression, `number` the same where it is known."""

    size: Dim
    out: Dim
    factor: Expr
    number: float | None
    mode: str
    roi: tuple[float, float] = (0.0, 1.0)

    def source(self, at: Expr) -> Expr:
        """The position in the input of output index `at`, float64."""
        x, size, out = cast(at, "f64"), real(self.size), real(self.out)
        match self.mode:
            case "asymmetric": return x / self.factor
            case "half_pixel": return (x + 0.5) / self.factor - 0.5
            case "tf_half_pixel_for_nn": return (x + 0.5) / self.factor
            case "pytorch_half_pixel": return select(greater(out, 1.0), (x + 0.5) / self.factor - 0.5, const(0.0, "f64"))
            case "align_corners": return select(greater(out, 1.0), x * (size - 1.0) / (size * self.factor - 1.0), const(0.0, "f64"))
            case "half_pixel_symmetric":
                exact = size * self.factor
                return size / 2.0 * (1.0 - out / exact) + (x + 0.5) / self.factor - 0.5
            case "tf_crop_and_resize":
                first, last = self.roi
                many = first * (size - 1.0) + x * ((last - first) * (size - 1.0)) / maximum(out - 1.0, 1.0)
                return select(greater(out, 1.0), many, 0.5 * (first + last) * (size - 1.0))
        raise ModelError(f"{builder().origin}: coordinate_transformation_mode {self.mode!r} is not known")

    def whole(self) -> int:
        """The scale where it is an integer above 1 that positions follow exactly, else 0."""
        number = self.number or 0.0
        return int(number) if number >= 2 and number == int(number) and self.mode in (*HALVES, "asymmetric") else 0

    def parts(self, at: Expr) -> tuple[Expr, Expr]:
        """`source` as (whole part, index; the rest, float64)."""
        scale = self.whole()
        if not scale:
            position = self.source(at)
            first = apply("floor", position)
            return cast(first, "ix"), position - first
        before, behind = (scale // 2, 0.5 if scale % 2 == 0 else 0.0) if self.mode in HALVES else (0, 0.0)
        shifted = at - dim(before)
        return shifted // dim(scale), (cast(shifted % dim(scale), "f64") + behind) / float(scale)


def real(size: Dim) -> Expr:
    return cast(dim(size), "f64")


def nearest(axis: Axis, rounding: str, at: Expr) -> Expr:
    """The index of the nearest element."""
    whole = axis.number is not None and axis.number >= 1 and axis.number == int(axis.number)
    if whole and (axis.mode == "asymmetric" and rounding == "floor" or axis.mode == "half_pixel" and rounding.startswith("round")):
        return at // dim(int(axis.number or 1))
    x = axis.source(at)
    rounded = {"floor": lambda: apply("floor", x), "ceil": lambda: apply("ceil", x), "round_prefer_floor": lambda: apply("ceil", x - 0.5),
               "round_prefer_ceil": lambda: apply("floor", x + 0.5)}
    if rounding not in rounded:
        raise ModelError(f"{builder().origin}: nearest_mode {rounding!r} is none of {', '.join(rounded)}")
    return inside(cast(rounded[rounding](), "ix"), axis.size)


def inside(index: Expr, size: Dim) -> Expr:
    return minimum(maximum(index, dim(0)), dim(size - 1))


def triangle(distance: Expr) -> Expr:
    return maximum(1.0 - absolute(distance), 0.0)


def cubic(a: float, distance: Expr) -> Expr:
    """Keys' kernel."""
    x = absolute(distance)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return select(less_equal(x, 1.0), near, select(less(x, 2.0), far, const(0.0, "f64")))


def interpolated(x: Tensor, a: int, axis: Axis, weight: Weight, support: int, exclude_outside: bool) -> Tensor:
    """A weighted mean of the 2 * support elements around the position along axis `a`."""
    shape = [axis.out if k == a else s for k, s in enumerate(x.shape)]
    wide = compute(x.dtype)
    kind = "f64" if wide == "f64" else "f32"

    def element(*i: Expr) -> Expr:
        first, beyond = axis.parts(i[a])
        total = norm = None
        for tap in range(1 - support, support + 1):
            place = first + dim(tap)
            w = weight(beyond - float(tap))
            if exclude_outside:
                w = select(both(less_equal(dim(0), place), less(place, dim(axis.size))), w, const(0.0, "f64"))
                norm = w if norm is None else norm + w
            value = cast(x.at(*i[:a], inside(place, axis.size), *i[a + 1:]), kind) * cast(w, kind)
            total = value if total is None else total + value
        assert total is not None
        return cast(total if norm is None else total / cast(norm, kind), wide)
    return tensor_map(shape, x.dtype, element)


def antialiased(x: Tensor, a: int, axis: Axis, weight: Weight, support: int, exclude_outside: bool) -> Tensor:
    """As `interpolated`, the kernel stretched by 1 / scale where the axis shrinks."""
    if axis.number is None or axis.number >= 1:
        return interpolated(x, a, axis, weight, support, exclude_outside)
    scale = axis.number
    reach = math.ceil(support / scale) + 1
    wide = "f64" if compute(x.dtype) == "f64" else "f32"
    shape = [axis.out if k == a else s for k, s in enumerate(x.shape)]
    ranges = (*shape, 2 * reach)

    def parts(i: Sequence[Expr]) -> tuple[Expr, Expr]:
        position = axis.source(i[a])
        place = cast(apply("floor", position), "ix") + i[-1] - dim(reach - 1)
        w = weight((position - cast(place, "f64")) * scale)
        if exclude_outside:
            w = select(both(less_equal(dim(0), place), less(place, dim(axis.size))), w, const(0.0, "f64"))
        return cast(w, wide), inside(place, axis.size)

    def value(*i: Expr) -> Expr:
        w, place = parts(i)
        return w * cast(x.at(*i[:a], place, *i[a + 1:-1]), wide)
    last = [len(ranges) - 1]
    total = tensor_reduce(ranges, last, "sum", wide, value)
    norm = tensor_reduce(ranges, last, "sum", wide, lambda *i: parts(i)[0])
    return tensor_map(shape, x.dtype, lambda *i: cast(total.at(*i) / norm.at(*i), compute(x.dtype)))


def resized(x: Tensor, axes: dict[int, Axis], mode: str, rounding: str, cubic_a: float, antialias: bool, exclude_outside: bool,
            outside: float) -> Tensor:
    """Along every axis of `axes`; mode: nearest, linear or cubic."""
    y = x
    if mode == "nearest":
        shape = [axes[a].out if a in axes else s for a, s in enumerate(x.shape)]
        y = tensor_map(shape, x.dtype, lambda *i: x.at(*(nearest(axes[a], rounding, e) if a in axes else e for a, e in enumerate(i))))
    elif mode in ("linear", "cubic"):
        weight, support = (triangle, 1) if mode == "linear" else (partial(cubic, cubic_a), 2)
        for a, axis in axes.items():
            y = (antialiased if antialias else interpolated)(y, a, axis, weight, support, exclude_outside)
    else:
        raise ModelError(f"{builder().origin}: mode {mode!r} is none of nearest, linear, cubic")
    cropped = {a: axis for a, axis in axes.items() if axis.mode == "tf_crop_and_resize"}
    return extrapolated(y, cropped, outside) if cropped else y


def extrapolated(y: Tensor, axes: dict[int, Axis], value: float) -> Tensor:
    """`value` where the position lies outside the input."""
    def element(*i: Expr) -> Expr:
        within: Expr = const(True, "bool")
        for a, axis in axes.items():
            position = axis.source(i[a])
            within = both(within, both(less_equal(const(0.0, "f64"), position), less_equal(position, real(axis.size - 1))))
        return select(within, y.at(*i), const(value, compute(y.dtype)))
    return tensor_map(y.shape, y.dtype, element)


def known(value: object) -> float:
    return float(builder().ask(value))


def by_scale(size: Dim, scale: float, mode: str, roi: tuple[float, float]) -> Axis:
    out = d.rounded("floor", d.real_op("mul", d.real(size), scale * (roi[1] - roi[0]) if mode == "tf_crop_and_resize" else scale))
    return Axis(size, out, const(scale, "f64"), scale, mode, roi)


def by_size(size: Dim, out: Dim, mode: str, roi: tuple[float, float]) -> Axis:
    number = int(out) / int(size) if isinstance(out, int) and isinstance(size, int) and size else None
    return Axis(size, out, const(number, "f64") if number is not None else real(out) / real(size), number, mode, roi)


def keeping_ratio(sizes: list[Dim], wanted: list[Dim], policy: str) -> list[Dim]:
    """One scale for all axes: the least (not_larger) or the greatest (not_smaller) of those asked for."""
    ratios = [known(w) / known(s) for s, w in zip(sizes, wanted, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(known(s) * scale + 0.5) for s in sizes]


@op("Resize", since=11)
def resize(x: Tensor, roi: Const | None = None, scales: Dims | None = None, sizes: Dims | None = None, *, antialias: int = 0,
           axes: list[int] | None = None, coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
           exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest",
           nearest_mode: str = "round_prefer_floor") -> Tensor:
    chosen = [x.axis(a) for a in axes] if axes is not None else list(range(x.rank))
    crop = coordinate_transformation_mode
    regions = [(0.0, 1.0)] * len(chosen)
    if crop == "tf_crop_and_resize" and roi is not None and roi.size:
        half = len(roi) // 2
        regions = [(float(roi[k]), float(roi[half + k])) for k in range(half)]
    old = [x.shape[a] for a in chosen]
    if sizes:
        wanted = list(sizes) if keep_aspect_ratio_policy == "stretch" else keeping_ratio(old, list(sizes), keep_aspect_ratio_policy)
        if antialias:
            old, wanted = [int(known(s)) for s in old], [int(known(w)) for w in wanted]
        made = [by_size(s, w, crop, r) for s, w, r in zip(old, wanted, regions, strict=True)]
    elif scales:
        made = [by_scale(s, known(f), crop, r) for s, f, r in zip(old, scales, regions, strict=True)]
    else:
        raise ModelError(f"{builder().origin}: neither scales nor sizes are given")
    moved = {a: axis for a, axis in zip(chosen, made, strict=True) if not (axis.number == 1 and crop != "tf_crop_and_resize")}
    return resized(x, moved, mode, nearest_mode, cubic_coeff_a, bool(antialias), bool(exclude_outside), extrapolation_value)


@op("Resize", since=10)
def resize_10(x: Tensor, scales: Dims, *, mode: str = "nearest") -> Tensor:
    return resize(x, None, scales, coordinate_transformation_mode="asymmetric", mode=mode, nearest_mode="floor")


@op("Upsample", since=9)
def upsample(x: Tensor, scales: Dims, *, mode: str = "nearest") -> Tensor:
    return resize_10(x, scales, mode=mode)


def known_scales(scales: Sequence[float]) -> Any:
    """Scales from an attribute, as those that come in a tensor."""
    return list(scales)


@op("Upsample", since=7)
def upsample_7(x: Tensor, *, mode: str = "nearest", scales: list[float]) -> Tensor:
    return resize_10(x, known_scales(scales), mode=mode)


@op("Upsample", since=1)
def upsample_1(x: Tensor, *, height_scale: float, mode: str = "nearest", width_scale: float) -> Tensor:
    return resize_10(x, known_scales([1.0, 1.0, height_scale, width_scale]), mode="linear" if mode == "bilinear" else mode)
