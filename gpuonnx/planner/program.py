"""The Program: plain data that the runtime executes. No closures, no IR; kernels by key, host functions by name."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuonnx.kernels.contract import Kernel

HOST, DEVICE = "host", "device"


@dataclass(frozen=True)
class TensorRef:
    """A tensor that Python touches: pointer = bases[base] + registers[offset]; sizes and byte strides by register.

    `base` is -1 for a value that is not a tensor, found under `object` instead."""

    dtype: str
    side: str
    base: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    object: int = -1
    name: str = ""

    @property
    def memory(self) -> tuple[Any, ...]:
        """What two references to the same elements have in common."""
        return (self.dtype, self.side, self.base, self.offset, self.shape, self.strides)


@dataclass(frozen=True)
class SymbolRef:
    """Register `register` holds axis `axis` or element `element` of a tensor (of input number `input` if >= 0)."""

    register: int
    name: str
    input: int
    tensor: TensorRef | None
    axis: int | None
    element: int | None
    real: bool


@dataclass(frozen=True)
class Run:
    """Steps first..last-1 of one side's table."""

    side: str
    first: int
    last: int


@dataclass(frozen=True)
class Bind:
    """Symbols that only now are known; then the sizes that follow from them, checks, and the arenas of that epoch."""

    epoch: int
    symbols: tuple[SymbolRef, ...]


@dataclass(frozen=True)
class HostCall:
    """A registered Python function."""

    name: str
    inputs: tuple[TensorRef, ...]
    outputs: tuple[int, ...]
    dtypes: tuple[str, ...]
    attrs: Mapping[str, Any]
    node: int


@dataclass(frozen=True)
class Interpret:
    """A node that no kernel can run, by NumPy; `graph node` is kept for it."""

    ir_node: Any
    inputs: tuple[TensorRef, ...]
    outputs: tuple[int, ...]
    dtypes: tuple[str, ...]
    node: int


@dataclass(frozen=True)
class Branch:
    """If: `bodies` are numbers of procedures; `shapes`, registers of the sizes of each output, -1 for one that is known when it has run
    (None: so is the rank)."""

    condition: TensorRef
    bodies: tuple[int, int]
    inputs: tuple[tuple[TensorRef, ...], tuple[TensorRef, ...]]
    outputs: tuple[int, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    node: int


@dataclass(frozen=True)
class Repeat:
    """Loop; `shapes` as in Branch."""

    body: int
    trip: TensorRef | None
    condition: TensorRef | None
    carried: tuple[TensorRef, ...]
    captures: tuple[TensorRef, ...]
    outputs: tuple[int, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    node: int


@dataclass(frozen=True)
class Transfer:
    """Between the memories of host and device; the device side is dense."""

    source: TensorRef
    target: TensorRef
    node: int


Segment = Run | Bind | HostCall | Interpret | Branch | Repeat | Transfer


@dataclass(frozen=True)
class Check:
    """registers[register] must be >= 0 (== 0 if `equal`)."""

    register: int
    equal: bool
    epoch: int
    message: str


@dataclass
class Side:
    """What one memory's steps need. `bases` names where each base pointer comes from; words = bases[b] + registers[r]."""

    bases: list[tuple[str, int]] = field(default_factory=lambda: [("zero", 0)])
    word_bases: list[int] = field(default_factory=list)
    word_registers: list[int] = field(default_factory=list)
    step_kernels: list[int] = field(default_factory=list)
    step_words: list[int] = field(default_factory=list)
    step_tasks: list[int] = field(default_factory=list)
    step_nodes: list[int] = field(default_factory=list)
    step_threads: list[int] = field(default_factory=list)
    step_shared: list[int] = field(default_factory=list)
    arena_registers: list[int] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class NodeInfo:
    """For errors, explain and profile: what runs, from which ONNX nodes, where and why."""

    kind: str
    origins: tuple[str, ...]
    side: str
    why: str
    text: str
    bytes: int = 0


@dataclass
class Program:
    """`quiet` names the ONNX nodes for which nothing runs: views, and concatenations whose parts are made in place."""

    slots: list[tuple[str, Any]]
    epochs: list[int]
    symbols: list[SymbolRef]
    checks: list[Check]
    segments: list[Segment]
    sides: dict[str, Side]
    inputs: list[TensorRef]
    outputs: list[TensorRef]
    objects: int
    nodes: list[NodeInfo]
    procedures: list[Any]
    peak: int
    declared: list[tuple[int, ...]] = field(default_factory=list)
    quiet: list[str] = field(default_factory=list)
