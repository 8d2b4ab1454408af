"""A device behind the protocol that runs what NVRTC emits, in the interpreter of PTX."""
from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from nvrtc import compiled
from ptx import Memory, launch
from ptx_text import Entry, parse

from gpuonnx.codegen.cuda import build_node, unsupported
from gpuonnx.devices.cuda_text import symbol_of, texts, whole
from gpuonnx.ir.graph import Node
from gpuonnx.kernels.contract import CTX_WORDS, Build, Kernel, Layout


class Span:
    """Bytes of the interpreter's memory."""

    def __init__(self, memory: Memory, nbytes: int) -> None:
        self.address, self.size = memory.empty(nbytes), nbytes


class PtxDevice:
    """`architecture` of the PTX; `entries` are the kernels seen so far, `instructions` what ran."""

    name = "ptx"
    host = False

    def __init__(self, architecture: int) -> None:
        self.architecture, self.memory, self.instructions = architecture, Memory(), 0
        self.entries: dict[str, Entry] = {}
        self.context = self.empty(8 * CTX_WORDS)
        self.copy_in(self.context, 0, np.zeros(CTX_WORDS, np.int64))

    def supports(self, node: Node) -> str | None:
        return unsupported(node)

    def build(self, node: Node, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...], constants: Mapping[int, np.ndarray]) -> Build:
        return build_node(node, inputs, outputs, constants)

    def compile(self, kernels: Iterable[Kernel]) -> list[Entry]:
        wanted = list(kernels)
        for symbol, text in texts(wanted).items():
            if symbol not in self.entries:
                self.entries[symbol] = parse(compiled(whole(text), (f"-arch=compute_{self.architecture}",))[1])
        return [self.entries[symbol_of(k)] for k in wanted]

    def empty(self, nbytes: int) -> Span:
        return Span(self.memory, nbytes)

    def copy_in(self, buffer: Span, offset: int, array: np.ndarray) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.memory.bytes[buffer.address + offset:buffer.address + offset + raw.size] = raw

    def copy_out(self, buffer: Span, offset: int, array: np.ndarray) -> None:
        flat = array.reshape(-1).view(np.uint8)
        flat[:] = self.memory.bytes[buffer.address + offset:buffer.address + offset + flat.size]

    def launch(self, handle: Entry, grid: int, threads: int, shared: int, args: int) -> None:
        if grid > 0:
            self.instructions += launch(handle, self.memory, grid, threads, shared, [self.context.address, args])

    def synchronize(self) -> None:
        """Launches run at once."""

    def check(self) -> None:
        record = np.zeros(CTX_WORDS, np.int64)
        self.copy_out(self.context, 0, record)
        assert not record.any(), f"the kernel left the record {record.tolist()}"
