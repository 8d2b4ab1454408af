"""8-bit products by vpdpbusd (VNNI): out = sum of u8 * s8 in i32, four k a step, as the contraction of `micro.py`.

With a_u = a + 128 (or a, if unsigned) and b_s = b - 128 (or b, if signed) and zero points moved alike,
sum (a - za)(b - zb) = sum a_u b_s - za_u colsum(b_s) - zb_s (rowsum(a_u) - K za_u): the corrections are operands of the epilogue.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, cast, const, dim, index, load, substitute
from gpuonnx.kernels.contract import Build, Epilogue, Layout, Packed, Ref, Spec, Step
from gpuonnx.kernels.cpu.emit import Affine, Plan, analyse
from gpuonnx.kernels.cpu.gemm import Axis, Problem, contraction
from gpuonnx.kernels.cpu.pairs import Words

LINE = 32


def available() -> bool:
    """Whether this machine has the instruction at full width."""
    from gpuonnx.kernels.cpu.micro import target
    return target().vnni


class Bytes(Words):
    """The arithmetic: one k is four bytes of A. `flip`: A is signed, its sign bits are turned."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip, self.key = flip, ("bytes", flip)

    def dot(self, b: Any, a: Any, column: Any, total: Any) -> Any:
        if self.flip:
            a = b.xor(a, b.const(-0x7F7F7F80, "i32"))
        return b.intrinsic("llvm.x86.avx512.vpdpbusd.512", total, a, column, overload=False)


def panels(matrix: np.ndarray) -> np.ndarray:
    """[groups, K, N] in 8 bits -> s8 [groups, N / 32, K / 4, 32, 4], zero padded; unsigned ones moved by -128."""
    groups, k, n = matrix.shape
    signed = (matrix.astype(np.int16) - 128).astype(np.int8) if matrix.dtype == np.uint8 else matrix
    wide = np.zeros((groups, k, -(-n // LINE) * LINE), np.int8)
    wide[..., :n] = signed
    return np.ascontiguousarray(wide.reshape(groups, k // 4, 4, -1, LINE).transpose(0, 3, 1, 4, 2))


def columns(matrix: np.ndarray) -> np.ndarray:
    """Column sums of the moved matrix, int32 [groups * N]."""
    moved = matrix.astype(np.int32) - (128 if matrix.dtype == np.uint8 else 0)
    sums: np.ndarray = moved.sum(1, dtype=np.int32).reshape(-1)
    return sums


def padded_rows(matrix: np.ndarray) -> np.ndarray:
    """K filled up to a multiple of 4 with the value that is 0 once moved."""
    missing = -matrix.shape[1] % 4
    fill = 128 if matrix.dtype == np.uint8 else 0
    return np.pad(matrix, ((0, 0), (0, missing), (0, 0)), constant_values=fill) if missing else matrix


def zero_of(call: Spec, position: int) -> Layout | None:
    return call.inputs[position] if len(call.inputs) > position else None


def weight_zero(call: Spec, signed: bool) -> np.ndarray | None:
    """The moved zero point of B where it is constant and not zero, else None; raises KeyError where it is not constant."""
    if zero_of(call, 3) is None:
        return None if signed else np.array([-128], np.int32)
    moved = call.constants[3].astype(np.int32).reshape(-1) - (0 if signed else 128)
    return moved if moved.any() else None


def reason(call: Spec) -> str | None:
    """None where this path serves, else why not."""
    if not available():
        return "the host has no vpdpbusd"
    a, b = call.inputs[0], call.inputs[1]
    if a is None or b is None or 1 not in call.constants:
        return "the second operand is no constant"
    if zero_of(call, 3) is not None and 3 not in call.constants:
        return "its zero point is no constant"
    za = zero_of(call, 2)
    return None if za is None or not za.shape else "the first operand has several zero points"


class Product:
    """One integer product in the making: A's geometry is given, the corrections become the epilogue."""

    def __init__(self, call: Spec, matrix: np.ndarray, a: Ref, axes: Sequence[Axis], taps: Sequence[tuple[Dim, Dim]], run: Dim,
                 forms: Sequence[Affine], depth: Dim, live: np.ndarray | None = None) -> None:
        """`matrix` [1, K, N] 8 bits; `live` [K] says which k are more than filling (all, if None)."""
        layout = call.inputs[0]
        assert layout is not None
        self.call, self.a, self.axes, self.taps, self.run, self.forms, self.depth = call, a, tuple(axes), tuple(taps), run, list(forms), depth
        self.dot = Bytes(layout.dtype == "i8")
        self.matrix = padded_rows(matrix)
        ones = np.ones(matrix.shape[1], np.int8) if live is None else live.astype(np.int8)
        self.ones = np.pad(ones, (0, self.matrix.shape[1] - len(ones)))[None, :, None]
        self.packed = [Packed(("bytes",), lambda: panels(self.matrix)), Packed(("bytes columns",), lambda: columns(self.matrix))]
        self.work: list[Dim] = []
        self.columns = matrix.shape[2]

    def build(self, before: Sequence[Step] = (), work: Sequence[Dim] = ()) -> Build:
        """The steps; `before` and `work` come first (a copy of A)."""
        self.work = list(work)
        out = self.call.outputs[0]
        signed = self.matrix.dtype == np.int8
        zero = weight_zero(self.call, signed)
        steps = list(before)
        operands, refs = [Layout("i32", (len(self.matrix) * self.columns,), (1,))], [Ref("packed", 1)]
        channel = self.channel(len(out.shape))
        za = self.first_zero(operands, refs)
        total: Expr = load(0, "i32", tuple(map(index, range(len(out.shape)))))
        total = total - za * load(1, "i32", (channel,))
        if zero is not None:
            rows = self.row_sums(steps)
            operands.append(Layout("i32", out.shape, rows[1]))
            refs.append(rows[0])
            here = tuple(map(index, range(len(out.shape))))
            sums = load(len(operands), "i32", here)
            total = total - (sums - za * cast(dim(self.depth), "i32")) * self.zeros(zero, channel, operands, refs)
        own = len(operands)
        if self.call.epilogue is not None:
            total = substitute(self.call.epilogue.expr, lambda e: None if e.op != "load" else total if e.value == 0 else Expr(
                "load", e.args, e.dtype, e.value + own))
            operands += self.call.epilogue.operands
        plan = analyse(out, Epilogue(total, tuple(operands)), "i32", self.forms)
        plan = replace(plan, operands=tuple(self.moved(o, own, refs) for o in plan.operands))
        steps.append(self.step(self.columns, Ref("packed", 0), plan))
        return Build(tuple(steps), tuple(self.work), tuple(self.packed), self.call.in_place())

    def channel(self, rank: int) -> Expr:
        """The output's column: its last axis (a product) or its second (a convolution)."""
        return index(1) if "kernel" in self.call.attrs else index(rank - 1)

    def first_zero(self, operands: list[Layout], refs: list[Ref]) -> Expr:
        """za, moved like A."""
        extra, layout = const(128 if self.dot.flip else 0, "i32"), zero_of(self.call, 2)
        if layout is None:
            return extra
        operands.append(layout)
        refs.append(Ref("in", 2))
        return cast(load(len(operands), layout.dtype, ()), "i32") + extra

    def zeros(self, zero: np.ndarray, channel: Expr, operands: list[Layout], refs: list[Ref]) -> Expr:
        """zb, moved like B: a number, or one a column."""
        if zero.size == 1:
            return const(int(zero[0]), "i32")
        operands.append(Layout("i32", (zero.size,), (1,)))
        refs.append(Ref("packed", len(self.packed)))
        self.packed.append(Packed((), lambda: zero))
        return load(len(operands), "i32", (channel,))

    def row_sums(self, steps: list[Step]) -> tuple[Ref, tuple[Dim, ...]]:
        """A step that sums A along k for every row: a product with a column of ones, 0 where k is filling (a turned 0 is 128)."""
        out = self.call.outputs[0]
        conv = "kernel" in self.call.attrs
        lane = 1 if conv else len(out.shape) - 1
        strides: list[Dim] = [0] * len(out.shape)
        count: Dim = 1
        for a in range(len(out.shape) - 1, -1, -1):
            if a != lane:
                strides[a] = count
                count = count * out.shape[a]
        room = Ref("work", len(self.work))
        self.work.append(count * 4)
        ones = Ref("packed", len(self.packed))
        self.packed.append(Packed(("bytes ones", self.ones.tobytes()), lambda: panels(self.ones)))
        plan = analyse(Layout("i32", tuple(1 if a == lane else s for a, s in enumerate(out.shape)), tuple(strides)), None, "i32", self.forms)
        plan = replace(plan, operands=tuple(replace(o, ref=room) for o in plan.operands))
        steps.append(self.step(1, ones, plan))
        return room, tuple(strides)

    def step(self, count: Dim, right: Ref, plan: Plan) -> Step:
        return contraction(Problem("i32", self.a, right, self.axes, count, self.taps, self.run, plan), self.dot)

    @staticmethod
    def moved(o: Any, own: int, refs: Sequence[Ref]) -> Any:
        """Operand references from the epilogue's numbering to where they are."""
        if o.ref is None or o.ref.space != "extra":
            return o
        if o.ref.number < own:
            return replace(o, ref=replace(refs[o.ref.number], offset=o.ref.offset))
        return replace(o, ref=replace(o.ref, number=o.ref.number - own))
