"""A run like an earlier one of the same procedure: same shapes and types, the same values where sizes or the variant hang on them, one
native stretch. Only addresses change, so only those are written. Sessions, and the bodies of If and Loop, try this first."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.ir.types import numpy_dtype
from gpuonnx.kernels.contract import CTX_CODE
from gpuonnx.kernels.cpu.executor import SLICE_NS
from gpuonnx.planner.program import HOST, Run, TensorRef
from gpuonnx.runtime.address import address
from gpuonnx.runtime.deadline import current_deadline
from gpuonnx.runtime.frame import Frame, memory

if TYPE_CHECKING:
    from gpuonnx.runtime.variants import Context, Variant

MOST_BYTES, MOST, SEEN = 1 << 20, 8, 64
Slots = tuple[tuple[int, int], ...]
Input = tuple[tuple[int, ...], np.dtype, Slots, bytes | None]
Output = tuple[tuple[int, ...], np.dtype, Slots, "Lies | None"]


@dataclass(frozen=True)
class Lies:
    """Where an output that no kernel writes lies when they are done: a view of working memory or of a constant, or of what was given
    or made under a number."""

    view: np.ndarray
    given: int = -1
    made: int = -1
    offset: int = 0

    def of(self, given: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> np.ndarray:
        if self.given < 0 and self.made < 0:
            return self.view
        owner = given[self.given] if self.given >= 0 else results[self.made]
        return np.ndarray(self.view.shape, self.view.dtype, memory(owner), self.offset, self.view.strides)


class Quick:
    """`run` gives None where the call is not like the one it was made for; then the usual way has to be taken."""

    def __init__(self, variant: Variant, context: Context, frame: Frame, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
        """An input is (shape, dtype, where its address goes, its bytes if sizes hang on them); an output has in their place where it
        lies when the kernels are done, if not in memory of its own."""
        self.frame, self.inputs, self.outputs = frame, tuple(inputs), tuple(outputs)
        self.words: Any = memoryview(frame.words)  # type: ignore[arg-type]
        self.lock = threading.Lock()
        self.pool = context.pool
        self.native = partial(context.executor.run_steps, context.pool.address, frame.context_address, frame.steps_address)
        self.last = len(variant.loaded.program.sides[HOST].step_kernels)
        self.copied = any(output[3] is not None for output in outputs)

    @staticmethod
    def of(variant: Variant, context: Context, values: Sequence[Any]) -> Quick | None:
        """For calls like one with `values`; None where there is more to a run than kernels."""
        program = variant.loaded.program
        plain = all(isinstance(s, Run) and s.side == HOST for s in program.segments) and len(program.segments) == 1
        if not plain or variant.rest is not None or context.accelerator is not None or program.objects or program.peak > MOST_BYTES:
            return None
        known = variant.read_inputs
        if variant.late or not all(type(v) is np.ndarray and v.flags.aligned for v in values):
            return None
        frame = Frame(variant.loaded)
        frame.inputs = list(values)
        frame.bind(0, program.symbols, values)
        side = program.sides[HOST]
        lies = [None if made is not None else _place(frame, ref) for ref, made in zip(program.outputs, frame.outputs, strict=True)]
        slots: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for position, (base, register) in enumerate(zip(side.word_bases, side.word_registers, strict=True)):
            kind, number = side.bases[base]
            slots.setdefault((kind, number), []).append((position, int(frame.registers[register])))
        inputs = [(v.shape, v.dtype, tuple(slots.get(("input", k), ())), v.tobytes() if k in known else None) for k, v in enumerate(values)]
        outputs = [(frame.shape(ref), numpy_dtype(ref.dtype), tuple(slots.get(("output", k), ())), place)
                   for k, (ref, place) in enumerate(zip(program.outputs, lies, strict=True))]
        frame.release()
        return Quick(variant, context, frame, inputs, outputs)

    def run(self, given: Sequence[Any]) -> list[np.ndarray] | None:
        if not self.pool.started or not self.lock.acquire(False):
            return None
        try:
            words, results = self.words, []
            for array, (shape, dtype, slots, value) in zip(given, self.inputs, strict=True):
                if type(array) is not np.ndarray or array.shape != shape or array.dtype is not dtype:
                    return None
                flags = array.flags
                if not (flags.carray or flags.c_contiguous and flags.aligned):
                    return None
                if value is not None and array.tobytes() != value:
                    return None
                start = address(array)
                for slot, offset in slots:
                    words[slot] = start + offset
            for shape, dtype, slots, _ in self.outputs:
                made = np.empty(shape, dtype)
                results.append(made)
                start = address(made)
                for slot, offset in slots:
                    words[slot] = start + offset
            if not self.steps():
                return None
            if self.copied:
                for result, output in zip(results, self.outputs, strict=True):
                    if output[3] is not None:
                        result[...] = output[3].of(given, results)
            return results
        finally:
            self.lock.release()

    def steps(self) -> bool:
        """Run the kernels; false where one reports an error, which the usual way then meets again and explains."""
        at, last = self.native(0, self.last, SLICE_NS), self.last
        while 0 <= at < last:
            deadline = current_deadline.get()
            if deadline is not None:
                deadline.check()
            at = self.native(at, last, SLICE_NS)
        if at < 0:
            self.frame.context[CTX_CODE] = 0
        return at >= 0


def _place(frame: Frame, ref: TensorRef) -> Lies:
    kind, which = frame.loaded.program.sides[HOST].bases[ref.base]
    view, offset = frame.array(ref), int(frame.registers[ref.offset])
    return Lies(view, which if kind == "input" else -1, which if kind == "output" else -1, offset if kind in ("input", "output") else 0)


class Quicks:
    """The last few shapes that a procedure was called with more than once, the latest first."""

    def __init__(self) -> None:
        self._ready: tuple[Quick, ...] = ()
        self._seen: dict[Any, bool] = {}

    def run(self, given: Sequence[Any]) -> list[np.ndarray] | None:
        ready = self._ready
        for number, quick in enumerate(ready):
            done = quick.run(given)
            if done is not None:
                if number:
                    self._ready = (quick, *ready[:number], *ready[number + 1:])
                return done
        return None

    def note(self, variant: Variant, context: Context, values: Sequence[Any]) -> None:
        """A call has gone the usual way: the second one of its shapes, with the same values where sizes hang on them, is made ready."""
        shapes = (id(variant), *[getattr(v, "shape", None) for v in values], *[values[k].tobytes() for k in variant.read_inputs])
        if self._seen.pop(shapes, False):
            made = Quick.of(variant, context, values)
            if made is not None:
                self._ready = (made, *self._ready[:MOST - 1])
                variant.forget_frames()
            return
        if len(self._seen) >= SEEN:
            self._seen = {}
        self._seen[shapes] = True
