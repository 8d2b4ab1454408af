"""Runs one node on a CUDA device (emulated, or real) through the device protocol, for tests."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuonnx.devices.device import Accelerator
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.graph import Node
from gpuonnx.ir.sizes import evaluate
from gpuonnx.ir.types import numpy_dtype, size
from gpuonnx.kernels.contract import Build, Layout, Ref


def dense(value: Any) -> Layout:
    return Layout.dense(value.dtype, value.dims)


def extent(layout: Layout, binding: Mapping[str, int]) -> int:
    """Elements from the first to the last, for non-negative strides."""
    shape, strides = evaluate(layout.shape, binding), evaluate(layout.strides, binding)
    return 0 if 0 in shape else 1 + sum((s - 1) * t for s, t in zip(shape, strides, strict=True))


def strided(buffer: np.ndarray, layout: Layout, binding: Mapping[str, int]) -> np.ndarray:
    shape, strides = evaluate(layout.shape, binding), evaluate(layout.strides, binding)
    raw = buffer.view(f"u{buffer.itemsize}") if buffer.dtype.kind not in "cb" and buffer.itemsize <= 8 else buffer
    return np.lib.stride_tricks.as_strided(raw, shape, [t * buffer.itemsize for t in strides]).view(buffer.dtype)


def run(device: Accelerator, build: Build, inputs: Sequence[tuple[Layout, np.ndarray]], outputs: Sequence[Layout],
        binding: Mapping[str, int] | None = None, operands: int = 0) -> list[np.ndarray]:
    """Arrays in logical shape in, arrays in logical shape out; the last `operands` inputs are those of an epilogue."""
    bound = binding or {}
    memory: dict[tuple[str, int], Any] = {}
    for k, (layout, array) in enumerate(inputs):
        flat = np.zeros(extent(layout, bound), numpy_dtype(layout.dtype))
        strided(flat, layout, bound)[...] = array
        memory["in", k] = device.empty(max(flat.nbytes, 0))
        device.copy_in(memory["in", k], 0, flat)
    for k in range(operands):
        memory["extra", k] = memory["in", len(inputs) - operands + k]
    for k, layout in enumerate(outputs):
        memory["out", k] = device.empty(extent(layout, bound) * size(layout.dtype))
    for k, nbytes in enumerate(evaluate(build.work, bound)):
        memory["work", k] = device.empty(nbytes)
    for k, packed in enumerate(build.packed):
        array = packed.make()
        memory["packed", k] = device.empty(array.nbytes)
        device.copy_in(memory["packed", k], 0, array)
    launch_all(device, build, memory, bound)
    device.synchronize()
    device.check()
    results = []
    for k, layout in enumerate(outputs):
        flat = np.zeros(extent(layout, bound), numpy_dtype(layout.dtype))
        device.copy_out(memory["out", k], 0, flat)
        results.append(strided(flat, layout, bound).copy())
    return results


def launch_all(device: Accelerator, build: Build, memory: Mapping[tuple[str, int], Any], binding: Mapping[str, int]) -> None:
    handles = device.compile([step.kernel for step in build.steps])
    for step, handle in zip(build.steps, handles, strict=True):
        def word(arg: Dim | Ref) -> int:
            if isinstance(arg, Ref):
                return int(memory[arg.space, arg.number].address + evaluate([arg.offset], binding)[0])
            return int(evaluate([arg], binding)[0])
        args = np.array([word(a) for a in step.args], np.int64)
        words = device.empty(args.nbytes)
        device.copy_in(words, 0, args)
        grid, shared = evaluate([step.tasks, step.shared], binding)
        device.launch(handle, int(grid), step.threads, int(shared), words.address)


def run_node(device: Accelerator, node: Node, arrays: Sequence[np.ndarray], binding: Mapping[str, int] | None = None,
             inputs: Sequence[Layout] | None = None, outputs: Sequence[Layout] | None = None,
             constants: Mapping[int, np.ndarray] | None = None) -> list[np.ndarray]:
    """Layouts default to dense ones."""
    reads = list(inputs or map(dense, node.inputs))
    writes = list(outputs or map(dense, node.outputs))
    return run(device, device.build(node, tuple(reads), tuple(writes), constants or {}), list(zip(reads, arrays, strict=True)), writes, binding,
               getattr(node, "operands", 0))
