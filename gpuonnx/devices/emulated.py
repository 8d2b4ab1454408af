"""The device `emulated-cuda`: the CUDA kernels, compiled for this CPU and run thread by thread. Slow, checked, needs no GPU."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpuonnx.codegen.cuda import build_node, unsupported
from gpuonnx.devices.cuda_text import symbol_of, texts
from gpuonnx.devices.emulation.machine import FORWARD, PLAIN, Function, Machine, Memory
from gpuonnx.ir.graph import Node
from gpuonnx.kernels.contract import Build, Kernel, Layout


class EmulatedCuda:
    """`level`: 0 plain, 1 bounds, 2 races too; `order`: 0 forward, 1 reverse, 2 shuffled, 3 unfair."""

    name = "emulated-cuda"
    host = False

    def __init__(self, level: int = PLAIN, order: int = FORWARD, seed: int = 0) -> None:
        self.machine = Machine(level, order, seed)
        self._functions: dict[str, Function] = {}
        self.compiled = 0

    def supports(self, node: Node) -> str | None:
        """None, or why this device cannot run the node."""
        return unsupported(node)

    def build(self, node: Node, inputs: Sequence[Layout], outputs: Sequence[Layout], constants: Mapping[int, np.ndarray] | None = None) -> Build:
        return build_node(node, inputs, outputs, constants or {})

    def compile(self, kernels: Iterable[Kernel]) -> dict[Kernel, Function]:
        """A handle for each kernel; what is missing compiles together."""
        symbols = {kernel: symbol_of(kernel) for kernel in kernels}
        missing = texts(k for k, symbol in symbols.items() if symbol not in self._functions)
        if missing:
            self._functions |= self.machine.load(missing)
            self.compiled += len(missing)
        return {kernel: self._functions[symbol] for kernel, symbol in symbols.items()}

    def empty(self, size: int) -> Memory:
        return Memory(self.machine, size)

    def copy_in(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        """The bytes of `array`, in C order, from byte `offset` on."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer.bytes[offset:offset + flat.size] = flat

    def copy_out(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        """Fill a C-contiguous array."""
        flat = array.reshape(-1).view(np.uint8)
        flat[:] = buffer.bytes[offset:offset + flat.size]

    def launch(self, handle: Function, grid: int, threads: int, shared: int, words: int, context: int) -> None:
        """`words` and `context`: addresses in this device's memory of the kernel's words and of ctx. A grid of 0 runs nothing."""
        if grid > 0:
            self.machine.launch(handle, grid, threads, shared, context, words)

    def synchronize(self) -> None:
        """Launches run at once: nothing is ever outstanding."""
