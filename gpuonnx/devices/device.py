"""The device protocol: a device in a handful of questions. Three stand behind it: cpu, cuda and emulated-cuda."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gpuonnx.ir.dims import Dim
from gpuonnx.ir.graph import Node
from gpuonnx.kernels.contract import Build, Kernel, Layout


class Buffer(Protocol):
    """Memory of a device; `address` is what kernels get."""

    @property
    def address(self) -> int: ...


@dataclass(frozen=True)
class Wish:
    """How a node wants a tensor to lie: axes from outermost to innermost in memory, and how many readable elements stand
    before and after each logical axis (the halo), filled with zeros or with the scalar input number `fill`."""

    order: tuple[int, ...]
    halo: tuple[tuple[Dim, Dim], ...]
    fill: int | None = None


@dataclass(frozen=True)
class Wishes:
    inputs: Mapping[int, Wish] = field(default_factory=dict)
    outputs: Mapping[int, Wish] = field(default_factory=dict)


class Device(Protocol):
    """`host` is true where kernels read the memory that NumPy reads, so that nothing is copied."""

    name: str
    host: bool

    def supports(self, node: Node) -> str | None:
        """None where the device can run the node, else the reason why not."""
        ...

    def choose(self, node: Node, constants: Mapping[int, np.ndarray]) -> Node:
        """The same node with the kernel that this device runs it by (direct, depthwise, Winograd...)."""
        ...

    def wishes(self, node: Node) -> Wishes:
        """The layouts that the node's kernel asks for; nothing asked means any strides."""
        ...

    def build(self, node: Node, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...], constants: Mapping[int, np.ndarray]) -> Build:
        """The steps that run a node; nothing is compiled yet. `constants` by input number."""
        ...

    def compile(self, kernels: Iterable[Kernel]) -> list[Any]:
        """Launchable handles, many at once; on the CPU addresses."""
        ...


class Accelerator(Device, Protocol):
    """A device with memory of its own."""

    def empty(self, nbytes: int) -> Buffer: ...
    def copy_in(self, buffer: Any, offset: int, array: np.ndarray) -> None: ...
    def copy_out(self, buffer: Any, offset: int, array: np.ndarray) -> None: ...
    def launch(self, handle: Any, grid: int, threads: int, shared: int, args: int) -> None: ...
    def synchronize(self) -> None: ...

    def check(self) -> None:
        """Raise DeviceError if a kernel left an error record."""
        ...
