"""com.microsoft: what GroupQueryAttention keeps of keys and values: how many columns, which of them, in how many bits."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims as d
from gpuonnx.ir.build import Tensor, broadcast_at, builder, dim, tensor_map
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, apply, cast, const, guard
from gpuonnx.ir.formula import both, equal, less, less_equal, maximum, minimum, select
from gpuonnx.ir.types import compute

Place = Callable[[Expr], Expr]
"""A number (of columns, of rows) of a batch entry."""


@dataclass(frozen=True)
class Steps:
    """What a step adds to batch entry b: its first valid(b) of `rows` rows, behind before(b) columns."""

    rows: Dim
    after: Place
    valid: Place
    before: Place

    @staticmethod
    def of(rows: Dim, filled: Tensor, queries: Tensor | None, total: Dim) -> Steps:
        """filled[B]: columns after the step, less one. Without queries[B], the rows of an entry, a step of as many rows as there are columns in
        `total` is a prompt, whose rows may end early; any other has all its rows."""
        def after(b: Expr) -> Expr:
            return cast(filled.at(b), "ix") + 1
        if queries is not None:
            given = queries.reshape(filled.shape[0])
            return Steps(rows, after, lambda b: cast(given.at(b), "ix"), lambda b: after(b) - cast(given.at(b), "ix"))
        later = dim(1 - d.eq(total, rows))
        return Steps(rows, after, lambda b: dim(rows), lambda b: (after(b) - dim(rows)) * later)

    def windowed(self, capacity: Dim, window: int) -> Window:
        builder().require(capacity - window, f"the cache must have the {window} columns of the window at least")
        return Window(self, capacity, window)


@dataclass(frozen=True)
class Window:
    """A cache of `capacity` columns that drops the oldest ones, several at once, but never those of the window. A step reads the columns that
    stood there and all new ones."""

    steps: Steps
    capacity: Dim
    window: int

    @property
    def columns(self) -> Dim:
        return self.capacity + self.steps.rows

    def held(self, count: Expr) -> Expr:
        """How many of `count` columns are kept."""
        at_once = dim(self.capacity - self.window + 1)
        over = maximum(count - dim(self.capacity), dim(0))
        return count - (over + at_once - 1) // at_once * at_once

    def resident(self, b: Expr) -> Expr:
        return self.held(self.steps.before(b))

    def first(self, b: Expr) -> Expr:
        """The position of column 0 of a step."""
        return self.steps.before(b) - self.resident(b)

    def kept(self, t: Tensor) -> Tensor:
        """Of the columns of a step [B, N, columns, D] those that stay, [B, N, capacity, D]."""
        def element(b: Expr, n: Expr, i: Expr, e: Expr) -> Expr:
            after = self.steps.after(b)
            column = i + (after - self.held(after)) - self.first(b)
            return guard(less(column, dim(self.columns)), t.at(b, n, column, e), const(0, compute(t.dtype)))
        return tensor_map((*t.shape[:2], self.capacity, t.shape[3]), t.dtype, element)

    def shifted(self, bias: Tensor, batch: Dim) -> Tensor:
        """A bias by position, [B | 1, N | 1, S, total], by column."""
        width = bias.shape[3]

        def element(b: Expr, n: Expr, i: Expr, j: Expr) -> Expr:
            position = j + self.first(b)
            inside = both(less_equal(dim(0), position), less(position, dim(width)))
            return guard(inside, bias.at(bias.builder.along(bias.shape[0], batch, 0), n, i, position), const(0, compute(bias.dtype)))
        return tensor_map((batch, *bias.shape[1:3], self.columns), bias.dtype, element)


@dataclass(frozen=True)
class Codes:
    """How columns are stored: as they are (bits 0), or in 8 or 4 bits with scales [1], or [N * D] in any shape; two of 4 bits a byte, the low
    ones first, 8 more than they stand for."""

    bits: int = 0
    scales: Tensor | None = None
    dtype: str = "f32"

    @staticmethod
    def of(kind: str, bits: int, scale: Tensor | None, t: Tensor) -> Codes:
        if kind == "NONE":
            return Codes(dtype=t.dtype)
        if kind not in ("PER_TENSOR", "PER_CHANNEL") or bits not in (4, 8) or scale is None:
            raise ModelError(f"{builder().origin}: a cache of quantisation {kind!r}, {bits} bits, {'a' if scale is not None else 'no'} scale; "
                             "PER_TENSOR or PER_CHANNEL, 4 or 8 bits and a scale are expected")
        shape = (1, 1, 1, 1) if kind == "PER_TENSOR" else (1, t.shape[1], 1, t.shape[3])
        return Codes(bits, scale.reshape(*shape), t.dtype)

    def quantised(self, t: Tensor) -> Tensor:
        if self.scales is None:
            return t
        scales, low = self.scales, float(-(1 << (self.bits - 1)))

        def element(*i: Expr) -> Expr:
            scale = broadcast_at(scales, t.shape)
            code = select(equal(scale, 0.0), const(0.0, "f32"), apply("rint", cast(t.at(*i), "f32") / scale))
            return cast(minimum(maximum(code, const(low, "f32")), const(-low - 1, "f32")), "i32")
        return tensor_map(t.shape, "i8", element)

    def restored(self, t: Tensor) -> Tensor:
        if self.scales is None:
            return t
        return (t.cast("f32") * self.scales).cast(self.dtype)

    def read(self, past: Tensor) -> Tensor:
        """A cache [B, N, P, D], or [B, N, P, D / 2] of bytes, as codes [B, N, P, D]."""
        if self.bits != 4:
            return past

        def element(b: Expr, n: Expr, j: Expr, e: Expr) -> Expr:
            pair = cast(past.at(b, n, j, e // 2), "i32")
            return select(equal(e % 2, 0), apply("bit_and", pair, 15), apply("shr", pair, 4)) - 8
        return tensor_map((*past.shape[:3], past.shape[3] * 2), "i8", element)

    def written(self, t: Tensor) -> Tensor:
        """Codes as the cache stores them."""
        if self.bits != 4:
            return t
        return tensor_map((*t.shape[:3], d.floordiv(t.shape[3], 2)), "u8", lambda b, n, j, e: cast(
            cast(t.at(b, n, j, e * 2), "i32") + 8 + (cast(t.at(b, n, j, e * 2 + 1), "i32") + 8) * 16, "i32"))
