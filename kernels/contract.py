"""What a hand-written kernel is told and what it answers; the same words on every device.

A kernel module (`kernels/cpu/<name>.py`, `kernels/cuda/<name>.py`) has

    def supports(call: Spec) -> str | None     # None: it can; else the reason why not
    def build(call: Spec) -> Build             # pure: structure in, steps out; nothing is compiled or run

Sizes and strides are Dims (ints or symbolic): they reach the kernel as run-time arguments. What a `Kernel.key` contains
is compiled in, so it holds structure only (types, tile, epilogue, window), never an extent.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, index, postorder
from gpuonnx.ir.inplace import only_at


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory: stored type, shape and strides (in elements) by logical axis."""

    dtype: str
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]

    @staticmethod
    def dense(dtype: str, shape: tuple[Dim, ...]) -> Layout:
        strides: list[Dim] = []
        step: Dim = 1
        for size in reversed(shape):
            strides.insert(0, step)
            step = step * size
        return Layout(dtype, tuple(shape), tuple(strides))


@dataclass(frozen=True)
class Ref:
    """A pointer argument: `space` is in, out, extra (an epilogue operand), work or packed; offset in bytes."""

    space: str
    number: int
    offset: Dim = 0


Arg = Dim | Ref


@dataclass(frozen=True)
class Epilogue:
    """out = expr, where `load(0, ...)` is the kernel's own result (in its compute type) at the output's index and
    `load(k, indices)`, k >= 1, is operand k - 1; `index(axis)` is the output's logical axis."""

    expr: Expr
    operands: tuple[Layout, ...] = ()

    def in_place(self) -> tuple[tuple[Ref, int], ...]:
        """Operands that each element of output 0 alone reads, at its own index: a kernel that has its whole sum when it comes
        to the epilogue may write over them."""
        rank = next((len(e.args) for e in postorder((self.expr,)) if e.op == "load" and e.value == 0), 0)
        own = tuple(map(index, range(rank)))
        return tuple((Ref("extra", k), 0) for k in range(len(self.operands)) if only_at((self.expr,), k + 1, own))


@dataclass(frozen=True)
class Spec:
    """One Call: `constants[i]` is the array of input i where it is known when compiling (a weight)."""

    inputs: tuple[Layout | None, ...]
    outputs: tuple[Layout, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, np.ndarray] = field(default_factory=dict)
    epilogue: Epilogue | None = None

    def in_place(self) -> tuple[tuple[Ref, int], ...]:
        return self.epilogue.in_place() if self.epilogue is not None else ()


@dataclass(frozen=True)
class Kernel:
    """Code to compile. language llvm: `make(symbol)` gives the text of an LLVM module that defines `symbol`;
    numba: a Python function for @cfunc; cuda: the text of a translation unit that defines `symbol`.
    CPU entry points are `void symbol(int64* ctx, int64* args, int64 task)`."""

    name: str
    key: tuple[Any, ...]
    language: str
    make: Callable[[str], Any] = field(compare=False)


@dataclass(frozen=True)
class Step:
    """`tasks` calls of a CPU kernel, or one CUDA launch of `tasks` blocks of `threads` with `shared` dynamic bytes."""

    kernel: Kernel
    args: tuple[Arg, ...]
    tasks: Dim
    threads: int = 0
    shared: Dim = 0


@dataclass(frozen=True)
class Packed:
    """A constant made from a weight when the program is built; `key` says how, `make` does it."""

    key: tuple[Any, ...]
    make: Callable[[], np.ndarray] = field(compare=False)


@dataclass(frozen=True)
class Build:
    """The steps of one Call in order, the bytes of each workspace (`Ref("work", k)`), the packed constants; in_place:
    (operand, output) pairs that may be one memory if both lie alike in it."""

    steps: tuple[Step, ...]
    work: tuple[Dim, ...] = ()
    packed: tuple[Packed, ...] = ()
    in_place: tuple[tuple[Ref, int], ...] = ()


# ctx, an int64 array shared by the tasks of one run. A kernel that meets an error stores value, limit, then code. On the CPU a kernel may
# share out work of its own: run(pool, function, ctx, args, tasks), whose address is in CTX_RUN and 0 where everything is serial.
CTX_CODE, CTX_STEP, CTX_VALUE, CTX_LIMIT, CTX_CANCEL, CTX_POOL, CTX_RUN = 0, 1, 2, 3, 4, 5, 6
CTX_WORDS = 8
ERROR_INDEX, ERROR_DIVIDE, ERROR_CANCELLED, ERROR_DOMAIN, REFUSED = 1, 2, 3, 4, 5
