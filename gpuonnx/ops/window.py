"""Sliding windows: what Conv, the pools and their kin have in common."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Expr, Tensor, builder, dim
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import const
from gpuonnx.ir.formula import both, less, less_equal

Ints = Sequence[int] | None
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """Spatial axes only: kernel, strides, dilations, padding before and after, output sizes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Dim, ...]
    after: tuple[Dim, ...]
    out: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def extents(self) -> tuple[int, ...]:
        """Input elements that one window spans."""
        return tuple((k - 1) * s + 1 for k, s in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> tuple[int, ...]:
        """All begins, then all ends, as numbers (they are asked for where sizes decide them)."""
        return tuple(int(builder().ask(p)) for p in (*self.before, *self.after))

    @staticmethod
    def of(sizes: Sequence[Dim], kernel: Sequence[int], auto_pad: str = "NOTSET", dilations: Ints = None, pads: Ints = None,
           strides: Ints = None, ceil_mode: int = 0) -> Window:
        """The window over spatial `sizes`; auto_pad: NOTSET, VALID, SAME_UPPER, SAME_LOWER."""
        rank = len(kernel)
        if auto_pad not in AUTO_PADS:
            raise ModelError(f"{builder().origin}: auto_pad is one of {', '.join(AUTO_PADS)}, here {auto_pad!r}")
        strides, dilations = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        given = tuple(pads or (0,) * (2 * rank))
        if not rank == len(sizes) == len(strides) == len(dilations) == len(given) // 2:
            raise ModelError(f"{builder().origin}: kernel {list(kernel)}, strides {list(strides)}, dilations {list(dilations)} and pads "
                             f"{list(given)} do not fit {len(sizes)} spatial axes")
        if min((*kernel, *strides, *dilations), default=1) < 1:
            raise ModelError(f"{builder().origin}: kernel {list(kernel)}, strides {list(strides)} and dilations {list(dilations)} must be positive")
        before, after, out = [], [], []
        for a, size in enumerate(sizes):
            extent, stride = (kernel[a] - 1) * dilations[a] + 1, strides[a]
            low: Dim = given[a]
            high: Dim = given[rank + a]
            if auto_pad == "VALID":
                low = high = 0
            elif auto_pad.startswith("SAME"):
                total = d.dmax((d.floordiv(size + stride - 1, stride) - 1) * stride + extent - size, 0)
                small = d.floordiv(total, 2)
                low, high = (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)
            span = size + low + high - extent
            builder().require(span, "a window must fit into the padded input")
            count = d.floordiv(span, stride) + 1
            if ceil_mode and stride > 1:
                rounded = d.floordiv(span + stride - 1, stride) + 1
                starts_inside = d.lt((rounded - 1) * stride, size + low)
                count = rounded - (1 - starts_inside)
            before.append(low)
            after.append(high)
            out.append(count)
        return Window(tuple(kernel), strides, dilations, tuple(before), tuple(after), tuple(out))

    def places(self, at: Sequence[Expr], tap: Sequence[Expr]) -> list[Expr]:
        """Input positions of window `at`, element `tap`; negative or too large in the padding."""
        return [o * dim(s) + k * dim(step) - dim(p)
                for o, k, s, step, p in zip(at, tap, self.strides, self.dilations, self.before, strict=True)]

    def inside(self, places: Sequence[Expr], sizes: Sequence[Dim]) -> Expr:
        """Whether positions lie in the input; axes without padding need no test."""
        condition: Expr = const(True, "bool")
        for k, (place, size) in enumerate(zip(places, sizes, strict=True)):
            if self._never_outside(k, size):
                continue
            condition = both(condition, both(less_equal(dim(0), place), less(place, dim(size))))
        return condition

    def _never_outside(self, axis: int, size: Dim) -> bool:
        last = (self.out[axis] - 1) * self.strides[axis] + self.extents[axis] - 1
        return self.before[axis] == 0 and d.at_most(last, size - 1)


def spatial(x: Tensor) -> tuple[Dim, ...]:
    """The sizes after batch and channels."""
    if x.rank < 2:
        raise ShapeError(f"{builder().origin}: an image has a batch and channels first, here there are {x.rank} axes")
    return tuple(x.shape[2:])
