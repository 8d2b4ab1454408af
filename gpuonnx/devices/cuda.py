"""The device `cuda`: kernel texts compiled by NVRTC through CuPy and launched on one stream."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from gpuonnx.codegen.cuda import build_node, unsupported
from gpuonnx.devices.cuda_text import symbol_of, texts, whole
from gpuonnx.devices.device import Wishes
from gpuonnx.devices.kernel_error import explain
from gpuonnx.errors import CompileError, DeviceError
from gpuonnx.ir.graph import Node
from gpuonnx.kernels.contract import CTX_CODE, CTX_WORDS, Build, Kernel, Layout

OPTIONS = ("--std=c++17",)
OPT_IN_SHARED = 48 << 10


class Memory:
    """One allocation of CuPy's pool."""

    def __init__(self, cupy: Any, nbytes: int) -> None:
        self.pointer = cupy.cuda.alloc(max(nbytes, 1))
        self.size = nbytes

    @property
    def address(self) -> int:
        return int(self.pointer.ptr)


class Cuda:
    """One GPU. Raises DeviceError, with the cause and the mend, where there is none that works."""

    host = False

    def __init__(self, number: int = 0) -> None:
        self.cupy = _cupy()
        count = _devices(self.cupy)
        if number >= count:
            raise DeviceError(f"there is no device cuda:{number}; this machine has {count}: use device='cuda:{count - 1}' or lower")
        self.name, self.number, self.compiled = f"cuda:{number}", number, 0
        self._functions: dict[str, Any] = {}
        with self._here():
            self.stream = self.cupy.cuda.Stream(non_blocking=True)
            self._context = self.empty(8 * CTX_WORDS)
            self._context.pointer.memset_async(0, 8 * CTX_WORDS, self.stream)

    def _here(self) -> Any:
        return self.cupy.cuda.Device(self.number)

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
        """A function for each kernel; CuPy keeps the cubins on disk. Raises CompileError."""
        wanted = list(kernels)
        symbols = [symbol_of(kernel) for kernel in wanted]
        missing = texts(k for k, symbol in zip(wanted, symbols, strict=True) if symbol not in self._functions)
        with self._here():
            for symbol, text in missing.items():
                try:
                    module = self.cupy.RawModule(code=whole(text), options=OPTIONS)
                    self._functions[symbol] = module.get_function(symbol)
                except self.cupy.cuda.compiler.CompileException as error:
                    raise CompileError(f"kernel {symbol}: {error}") from error
                self.compiled += 1
        return [self._functions[symbol] for symbol in symbols]

    def empty(self, nbytes: int) -> Memory:
        with self._here():
            return Memory(self.cupy, nbytes)

    def copy_in(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        """The bytes of `array`, in C order, from byte `offset` on; through pinned memory."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if not flat.size:
            return
        with self._here(), self.stream:
            pinned = self.cupy.cuda.alloc_pinned_memory(flat.size)
            staged = np.frombuffer(pinned, np.uint8, flat.size)
            staged[:] = flat
            (buffer.pointer + offset).copy_from_host_async(pinned.ptr, flat.size)
            self.stream.synchronize()

    def copy_out(self, buffer: Memory, offset: int, array: np.ndarray) -> None:
        """Fill a C-contiguous array."""
        if array.size:
            with self._here(), self.stream:
                (buffer.pointer + offset).copy_to_host_async(array.ctypes.data, array.nbytes)
                self.stream.synchronize()

    def launch(self, handle: Any, grid: int, threads: int, shared: int, args: int) -> None:
        """`args`: the address in device memory of the kernel's words. A grid of 0 runs nothing."""
        if grid > 0:
            with self._here(), self.stream:
                if shared > OPT_IN_SHARED and handle.max_dynamic_shared_size_bytes < shared:
                    handle.max_dynamic_shared_size_bytes = shared
                handle((grid,), (threads,), (np.int64(self._context.address), np.int64(args)), shared_mem=shared)

    def synchronize(self) -> None:
        """Wait for all launches."""
        self.stream.synchronize()

    def check(self) -> None:
        """Raise DeviceError if a kernel left an error record, and forget it."""
        record = np.zeros(CTX_WORDS, np.int64)
        self.copy_out(self._context, 0, record)
        if record[CTX_CODE]:
            self._context.pointer.memset_async(0, 8 * CTX_WORDS, self.stream)
            explain(record)


def _cupy() -> Any:
    try:
        return import_module("cupy")
    except ModuleNotFoundError as error:
        raise DeviceError("device 'cuda' needs CuPy, which is not installed: pip install 'gpuonnx[cuda13]' (driver 580 or newer) or "
                          "pip install 'gpuonnx[cuda12]'; device='cpu' and device='emulated-cuda' need neither") from error
    except ImportError as error:
        raise DeviceError(f"CuPy is installed but cannot be imported ({error}); install the build for your CUDA: "
                          "pip install 'gpuonnx[cuda12]' or 'gpuonnx[cuda13]'") from error


def _devices(cupy: Any) -> int:
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        raise DeviceError(f"CuPy finds no working GPU ({error}); check that `nvidia-smi` lists one and that its driver is new enough, or use "
                          "device='cpu'") from error
    if not count:
        raise DeviceError("this machine has no NVIDIA GPU; use device='cpu' or device='emulated-cuda'")
    return count
