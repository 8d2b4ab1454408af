"""The device `emulated-cuda`: the CUDA kernel texts compiled for the CPU and run thread by thread. Slow, checked, needs no GPU."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpuonnx.codegen.cuda import build_node, unsupported
from gpuonnx.devices.cuda_text import symbol_of, texts
from gpuonnx.devices.device import Wishes
from gpuonnx.devices.emulation.machine import FORWARD, PLAIN, Function, Machine, Memory
from gpuonnx.devices.kernel_error import explain
from gpuonnx.ir.graph import Node
from gpuonnx.kernels.contract import CTX_CODE, CTX_WORDS, Build, Kernel, Layout


class EmulatedCuda:
    """`level`: 0 plain, 1 bounds, 2 races too; `order`: 0 forward, 1 reverse, 2 shuffled, 3 unfair."""

    name = "emulated-cuda"
    host = False

    def __init__(self, level: int = PLAIN, order: int = FORWARD, seed: int = 0) -> None:
        self.machine = Machine(level, order, seed)
        self._functions: dict[str, Function] = {}
        self.compiled = 0
        self._context = self.empty(8 * CTX_WORDS)
        self._context.bytes[:] = 0

    def supports(self, node: Node) -> str | None:
        """None, or why this device cannot run the node."""
        return unsupported(node)

    def choose(self, node: Node, constants: Mapping[int, np.ndarray]) -> Node:
        """One kernel for each Call: nothing to choose."""
        return node

    def wishes(self, node: Node) -> Wishes:
        """CUDA kernels read any strides."""
        return Wishes()

    def build(self, node: Node, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...], constants: Mapping[int, np.ndarray]) -> Build:
        return build_node(node, inputs, outputs, constants)

    def compile(self, kernels: Iterable[Kernel]) -> list[Any]:
        """A handle for each kernel; what is missing compiles together."""
        wanted = list(kernels)
        symbols = [symbol_of(kernel) for kernel in wanted]
        missing = texts(k for k, symbol in zip(wanted, symbols, strict=True) if symbol not in self._functions)
        if missing:
            self._functions |= self.machine.load(missing)
            self.compiled += len(missing)
        return [self._functions[symbol] for symbol in symbols]

    def empty(self, nbytes: int) -> Memory:
        return Memory(self.machine, nbytes)

    def copy_in(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        """The bytes of `array`, in C order, from byte `offset` on."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer.bytes[offset:offset + flat.size] = flat

    def copy_out(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        """Fill a C-contiguous array."""
        flat = array.reshape(-1).view(np.uint8)
        flat[:] = buffer.bytes[offset:offset + flat.size]

    def launch(self, handle: Function, grid: int, threads: int, shared: int, args: int) -> None:
        """`args`: the address in this device's memory of the kernel's words. A grid of 0 runs nothing."""
        if grid > 0:
            self.machine.launch(handle, grid, threads, shared, self._context.address, args)

    def synchronize(self) -> None:
        """Launches run at once: nothing is ever outstanding."""

    def check(self) -> None:
        """Raise DeviceError if a kernel left an error record, and forget it."""
        record = self._context.bytes.view(np.int64).copy()
        if record[CTX_CODE]:
            self._context.bytes[:] = 0
            explain(record)
