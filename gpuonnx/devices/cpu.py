"""The CPU: nests rendered to LLVM IR, named kernels from kernels/cpu, compiled through one cache."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

from gpuonnx.codegen.cache import KernelCache
from gpuonnx.devices.device import Wish, Wishes
from gpuonnx.errors import UnsupportedOp
from gpuonnx.ir.graph import Call, Node
from gpuonnx.kernels.contract import Build, Epilogue, Kernel, Layout, Spec

INTEGER = ("gemm_integer", "conv_integer")
CONVOLUTIONS = ("conv", "conv_depthwise", "conv_winograd", "conv_integer")


def spec_of(node: Call, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...], constants: Mapping[int, np.ndarray]) -> Spec:
    """A Call as its kernel sees it: absent inputs are None again, the epilogue's operands stand apart."""
    count = len(node.inputs) - node.operands
    absent = set(node.attrs.get("absent", ()))
    numbers = iter(range(count))
    where = [None if k in absent else next(numbers) for k in range(count + len(absent))]
    attrs = {k: v for k, v in node.attrs.items() if k != "absent"}
    epilogue = Epilogue(node.epilogue, inputs[count:]) if node.epilogue is not None else None
    return Spec(tuple(None if n is None else inputs[n] for n in where), outputs, attrs,
                {k: constants[n] for k, n in enumerate(where) if n is not None and n in constants}, epilogue)


def renumbered(build: Build, node: Call) -> Build:
    """`Ref("in", k)` of a kernel counts absent inputs; the planner's inputs do not."""
    absent = set(node.attrs.get("absent", ()))
    if not absent:
        return build
    def fix(arg: Any) -> Any:
        if getattr(arg, "space", "") != "in":
            return arg
        return replace(arg, number=arg.number - sum(k < arg.number for k in absent))
    return replace(build, steps=tuple(replace(s, args=tuple(map(fix, s.args))) for s in build.steps))


def dense(node: Node) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
    return (tuple(Layout.dense(v.dtype, v.dims) for v in node.inputs), tuple(Layout.dense(v.dtype, v.dims) for v in node.outputs))


class Cpu:
    """Kernels see the memory that NumPy sees. `cache` keeps object code on disk."""

    name = "cpu"
    host = True

    def __init__(self, cache: KernelCache, winograd: str = "auto") -> None:
        self.cache, self.winograd = cache, winograd

    def supports(self, node: Node) -> str | None:
        if any(v.shape is None or v.dtype == "str" for v in (*node.inputs, *node.outputs)):
            return "strings and sequences live in Python"
        if not isinstance(node, Call):
            from gpuonnx.codegen import cpu as nests
            return nests.supports(node)
        if node.kernel in INTEGER:
            return None
        reason: str | None = self._module(node.kernel).supports(spec_of(node, *dense(node), {}))
        return reason

    def _module(self, kernel: str) -> Any:
        try:
            return import_module(f"gpuonnx.kernels.cpu.{kernel.removeprefix('conv_') if kernel in ('conv_depthwise', 'conv_winograd') else kernel}")
        except ModuleNotFoundError as error:
            raise UnsupportedOp(f"no CPU kernel is called {kernel!r}") from error

    def choose(self, node: Node, constants: Mapping[int, np.ndarray]) -> Node:
        if not isinstance(node, Call) or node.kernel != "conv":
            return node
        weights = node.inputs[1].dims
        group = node.attrs["group"]
        if group > 1 and weights[1] == 1 and isinstance(weights[0], int) and weights[0] % group == 0:
            return replace(node, kernel="conv_depthwise")
        tile = self._tile(node, 1 in constants)
        return replace(node, kernel="conv_winograd", attrs={**node.attrs, "tile": tile}) if tile else node

    def _tile(self, node: Call, constant: bool) -> int:
        """Winograd's tile for a convolution, or 0 where the direct kernel runs it."""
        from gpuonnx.kernels.cpu import winograd
        out, channels, *_ = node.inputs[1].dims
        if self.winograd == "off" or not constant or not isinstance(channels, int) or not isinstance(out, int):
            return 0
        batch, _, *image = node.outputs[0].dims
        number = batch if isinstance(batch, int) else 1
        sizes = [n for n in image if isinstance(n, int)]
        known = len(sizes) == len(image)
        most = winograd.preferred_tile(channels, out, (lambda m: number * prod(-(-n // m) for n in sizes)) if known else None)
        tile = min(most, 2) if self.winograd == "f2" else most
        chosen = replace(node, kernel="conv_winograd", attrs={**node.attrs, "tile": tile})
        return 0 if winograd.supports(spec_of(chosen, *dense(chosen), {})) is not None else tile

    def wishes(self, node: Node) -> Wishes:
        if not isinstance(node, Call) or node.kernel not in CONVOLUTIONS:
            return Wishes()
        rank, pads = node.inputs[0].rank, tuple(node.attrs["pads"])
        order = (0, *range(2, rank), 1)
        reach = node.attrs["tile"] - 1 if node.kernel == "conv_winograd" else 0
        halo = ((0, 0), (0, 0), *((before, after + reach) for before, after in zip(pads[:rank - 2], pads[rank - 2:], strict=True)))
        fill = None
        if node.kernel == "conv_integer" and 2 not in node.attrs.get("absent", ()):
            fill = 2
        return Wishes({0: Wish(order, halo, fill)}, {0: Wish(order, ((0, 0),) * rank)})

    def build(self, node: Node, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...], constants: Mapping[int, np.ndarray]) -> Build:
        from gpuonnx.codegen import cpu as nests
        from gpuonnx.codegen import depthwise, integer, integer_dot, integer_pairs
        if not isinstance(node, Call):
            return nests.build(node, inputs, outputs)
        spec = spec_of(node, inputs, outputs, constants)
        if node.kernel == "conv_depthwise" or node.kernel == "conv_integer" and depthwise.serves(spec):
            from gpuonnx.kernels.cpu import depthwise as written_out
            return renumbered((written_out if written_out.supports(spec) is None else depthwise).build(spec), node)
        if node.kernel in INTEGER:
            ways = (integer_dot, integer_pairs, integer)
            return renumbered(next(filter(None, (way.build(node.kernel, spec) for way in ways))), node)
        module = self._module(node.kernel)
        reason = module.supports(spec)
        if reason is not None:
            raise UnsupportedOp(f"{', '.join(node.origins)}: {reason}")
        return renumbered(module.build(spec), node)

    def compile(self, kernels: Iterable[Kernel]) -> list[int]:
        """Addresses of entry points; what this process has not loaded yet is compiled and loaded together."""
        return self.cache.addresses(list(kernels))
