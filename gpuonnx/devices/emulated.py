"""The device `emulated-cuda`: the CUDA kernels, compiled for this CPU and run thread by thread. Slow, checked, needs no GPU."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpuonnx.codegen.cuda import build_node, unsupported
from gpuonnx.devices.cuda_text import symbol_of, texts
from gpuonnx.devices.emulation.machine import FORWARD, PLAIN, Function, Machine, Memory
from gpuonnx.devices.kernel_error import explain
from gpuonnx.ir.graph import Node
from gpuonnx.kernels.contract import CTX_WORDS, Build, Kernel, Layout


class EmulatedCuda:
    """`level`: 0 plain, 1 bounds, 2 races too; `order`: 0 forward, 1 reverse, 2 shuffled, 3 unfair."""

    name = "emulated-cuda"
    language = "cuda"

    def __init__(self, level: int = PLAIN, order: int = FORWARD, seed: int = 0) -> None:
        self.machine = Machine(level, order, seed)
        self._functions: dict[str, Function] = {}
        self._ctx = self.empty(8 * CTX_WORDS)
        self._ctx.bytes[:] = 0
        self.compiled = 0

    def supports(self, node: Node, inputs: tuple[Layout, ...] = (), outputs: tuple[Layout, ...] = (),
                 constants: Mapping[int, np.ndarray] | None = None) -> str | None:
        """None, or why this device cannot run the node."""
        return unsupported(node, inputs, outputs, constants or {})

    def build(self, node: Node, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...], constants: Mapping[int, np.ndarray] | None = None) -> Build:
        return build_node(node, inputs, outputs, constants or {})

    def compile(self, kernels: Iterable[Kernel]) -> list[Function]:
        """A handle for each kernel; what is missing compiles together."""
        wanted = list(kernels)
        missing = texts(k for k in wanted if symbol_of(k) not in self._functions)
        if missing:
            self._functions |= self.machine.load(missing)
            self.compiled += len(missing)
        return [self._functions[symbol_of(k)] for k in wanted]

    def empty(self, nbytes: int) -> Memory:
        return Memory(self.machine, nbytes)

    def copy_in(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer.bytes[offset:offset + flat.size] = flat

    def copy_out(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        """Fill a contiguous array."""
        flat = array.reshape(-1).view(np.uint8)
        flat[:] = buffer.bytes[offset:offset + flat.size]

    def launch(self, handle: Function, grid: int, threads: int, shared: int, args: np.ndarray | int) -> None:
        """`args`: int64 words, or the address in device memory where they lie."""
        if grid <= 0:
            return
        if isinstance(args, int):
            self.machine.launch(handle, grid, threads, shared, self._ctx.address, args)
            return
        words = self.empty(args.size * 8)
        self.copy_in(words, 0, args)
        self.machine.launch(handle, grid, threads, shared, self._ctx.address, words.address)

    def synchronize(self) -> None:
        """Launches run at once: nothing is ever outstanding."""

    def check(self) -> None:
        """Raise DeviceError if a kernel left an error record, and clear it."""
        record = self._ctx.bytes.view(np.int64)
        if record[0]:
            found: Any = record.copy()
            record[:] = 0
            explain(found)
