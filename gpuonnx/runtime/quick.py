"""A run like the last one: same names, shapes and types, one native stretch. Only addresses change, so only those are written."""
from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.kernels.contract import CTX_CODE
from gpuonnx.kernels.cpu.executor import SLICE_NS
from gpuonnx.planner.place import HOST
from gpuonnx.planner.program import Run
from gpuonnx.runtime.frame import Frame

if TYPE_CHECKING:
    from gpuonnx.runtime.variants import Context, Variant

MOST_BYTES = 1 << 20
Tensor = tuple[str, tuple[int, ...], np.dtype, tuple[tuple[int, int], ...]]
Read = tuple[str, tuple[int, ...], np.dtype, tuple[tuple[int, int], ...], tuple[tuple[int, Any], ...]]


class Quick:
    """`run` gives None where the call is not like the one it was made for; then the usual way has to be taken."""

    def __init__(self, variant: Variant, context: Context, frame: Frame, inputs: Sequence[Read], outputs: Sequence[Tensor],
                 views: Mapping[str, np.ndarray]) -> None:
        """inputs: with the elements whose values sizes or the variant hang on. views: outputs that are parts of the arena, which every run
        copies."""
        program = variant.loaded.program
        self.frame, self.inputs, self.outputs, self.views = frame, tuple(inputs), tuple(outputs), dict(views)
        self.words: Any = memoryview(frame.words)  # type: ignore[arg-type]
        self.lock = threading.Lock()
        self.pool, self.native, self.stats = context.pool, context.executor.run_steps, context.stats
        self.last = len(program.sides[HOST].step_kernels)

    @staticmethod
    def of(variant: Variant, context: Context, names: Sequence[str], values: Sequence[Any], results: Mapping[str, Any]) -> Quick | None:
        """For calls like the one that was just made with `values`; None where there is more to a run than kernels."""
        program = variant.loaded.program
        plain = all(isinstance(s, Run) and s.side == HOST for s in program.segments) and len(program.segments) == 1
        if not plain or variant.rest is not None or context.accelerator is not None or program.objects or program.peak > MOST_BYTES:
            return None
        read = {(s.input, s.element or 0) for s in program.symbols if s.axis is None}
        read |= {(number, element) for number, _, element in variant.compiled.sources.values() if element is not None}
        if any(number < 0 for number, _ in read) or not all(type(v) is np.ndarray and v.flags.aligned for v in values):
            return None
        frame = Frame(variant.loaded)
        frame.inputs = list(values)
        frame.bind(0, program.symbols, values)
        side = program.sides[HOST]
        parts = {k: ref for k, ref in enumerate(program.outputs) if frame.outputs[k] is None}
        if any(side.bases[ref.base][0] != "arena" or variant.loaded.twins[k] is not None for k, ref in parts.items()):
            return None
        slots: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for position, (base, register) in enumerate(zip(side.word_bases, side.word_registers, strict=True)):
            kind, number = side.bases[base]
            slots.setdefault((kind, number), []).append((position, int(frame.registers[register])))
        inputs: list[Read] = [(name, v.shape, v.dtype, tuple(slots.get(("input", k), ())), tuple((e, v.item(e)) for n, e in read if n == k))
                              for k, (name, v) in enumerate(zip(names, values, strict=True))]
        outputs = [(name, r.shape, r.dtype, tuple(slots.get(("output", k), ()))) for k, (name, r) in enumerate(results.items())]
        views = {list(results)[k]: frame.array(ref) for k, ref in parts.items()}
        return Quick(variant, context, frame, inputs, outputs, views)

    def run(self, given: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        if len(given) != len(self.inputs) or not self.pool.started or not self.lock.acquire(False):
            return None
        try:
            words, results = self.words, {}
            for name, shape, dtype, slots, read in self.inputs:
                array = given.get(name)
                if type(array) is not np.ndarray or array.shape != shape or array.dtype is not dtype or not array.flags.carray:
                    return None
                if read and any(array.item(element) != value for element, value in read):
                    return None
                address = array.__array_interface__["data"][0]
                for slot, offset in slots:
                    words[slot] = address + offset
            for name, shape, dtype, slots in self.outputs:
                results[name] = made = np.empty(shape, dtype)
                address = made.__array_interface__["data"][0]
                for slot, offset in slots:
                    words[slot] = address + offset
            if not self._steps():
                return None
            for name, view in self.views.items():
                results[name] = view.copy()
            return results
        finally:
            self.lock.release()

    def _steps(self) -> bool:
        """Run the kernels; false where one reports an error, which the usual way then meets again and explains."""
        at, frame = 0, self.frame
        while at < self.last:
            at = self.native(self.pool.address, frame.context_address, frame.steps_address, at, self.last, SLICE_NS)
            if at < 0:
                frame.context[CTX_CODE] = 0
                return False
        self.stats.ran()
        return True
