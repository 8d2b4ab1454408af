"""Contractions of few rows, for which a B that is no constant is read where it lies: packing it would take longer than the product.

`lines`: B's columns are neighbours, and the tiles of micro.py read them. `dots`: its k are, and a row's element is a dot product of two lines.
"""
from __future__ import annotations

from typing import Any

from gpuonnx.kernels.cpu.lanes import I64, PTR
from gpuonnx.kernels.cpu.micro import Code, Renderer, internal


class Dots(Renderer):
    """One row at a time; a vector of results at a time, each summed in a vector of its own."""

    def render_tile(self, m: int) -> Any:
        """void tile(args, frame, a, b, first row, first column)"""
        b, function, (frame, a, panel, first, column) = internal(
            self.module, f"{self.prefix}tile{m}", self.width, self.form.names, [PTR, PTR, PTR, I64, I64])
        last = b.sub(b.sub(b.word("columns"), column), I64(1))
        self.close_tile(b, m, [[self.vector(b, a, panel, last, j) for j in range(self.vectors)]], frame, first, column)
        b.ret_void()
        return function

    def vector(self, b: Code, a: Any, panel: Any, last: Any, j: int) -> Any:
        length, whole = b.word("run"), b.and_(b.word("run"), I64(-self.width))
        lines = [b.shifted(panel, b.mul(b.least(I64(j * self.width + k), last), b.word("b.line"))) for k in range(self.width)]

        def some(k: Any, sums: list[Any], mask: Any) -> list[Any]:
            offset = b.mul(k, I64(self.dot.unit))
            left = b.read(b.shifted(a, offset), self.form.dtype, mask)
            return [b.madd(left, b.read(b.shifted(line, offset), self.form.dtype, mask), total) for line, total in zip(lines, sums, strict=True)]
        sums = b.carry(I64(0), whole, self.width, [self.dot.zero(b)] * self.width, lambda k, carried: some(k, carried, None))
        sums = b.carry(whole, length, self.width, sums, lambda k, carried: some(k, carried, b.lanes_below(b.sub(length, k))))
        sums = b.transpose(sums)
        while len(sums) > 1:
            sums = [b.fadd(x, y) for x, y in zip(sums[::2], sums[1::2], strict=True)]
        return sums[0]


def renderer(way: str) -> type[Renderer]:
    """Who renders contractions whose B lies like that."""
    return Dots if way == "dots" else Renderer
