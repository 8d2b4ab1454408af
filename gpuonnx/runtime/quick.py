"""A run like an earlier one of the same procedure: same shapes and types, the same values where sizes or the variant hang on them, one
native stretch. Only addresses change, so only those are written. Sessions, and the bodies of If and Loop, try this first."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.runtime.address import address
from gpuonnx.runtime.link import Linker
from gpuonnx.runtime.moving import Unlinkable
from gpuonnx.runtime.unit import Unit

if TYPE_CHECKING:
    from gpuonnx.runtime.variants import Context, Variant

MOST_BYTES, MOST, SEEN = 1 << 20, 8, 64


class Quick(Unit):
    """`run` gives None where the call is not like the one it was made for; then the usual way has to be taken."""

    def __init__(self, variant: Variant, context: Context, values: Sequence[Any]) -> None:
        """For calls like one with `values`. Raises Unlinkable."""
        known = {k: values[k] for k in variant.read_inputs}
        if variant.loaded.program.peak > MOST_BYTES or not all(type(v) is np.ndarray and v.flags.aligned for v in values):
            raise Unlinkable("it is large" if known else "it takes values that are no tensors")
        linker = Linker(context)
        linker.row(linker.steps["link"], 0)
        part = linker.part(variant, [(v.shape, v.dtype) for v in values], known)
        linker.finish(part)
        ports = [*part.inputs, *part.outputs]
        links = [(word, number, more) for number, port in enumerate(ports) for word, more in port.slots]
        places, words = linker.words(len(ports))
        linker.rows[0][1], args = linker.words(2 + 3 * len(links))
        args[:2], args[2:] = (len(links), places), np.array(links, np.int64).reshape(-1)
        if linker.bytes > MOST_BYTES:
            raise Unlinkable("it is large")
        super().__init__(linker)
        self.places: Any = memoryview(words)  # type: ignore[arg-type]
        self.inputs = [(v.shape, v.dtype, v.tobytes() if k in known else None) for k, v in enumerate(values)]
        self.outputs = [(port.shape or (), port.dtype) for port in part.outputs]
        self.lock = threading.Lock()

    def run(self, given: Sequence[Any]) -> list[np.ndarray] | None:
        if not self.pool.started or not self.lock.acquire(False):
            return None
        try:
            places, results, number = self.places, [], 0
            for array, (shape, dtype, value) in zip(given, self.inputs, strict=True):
                if type(array) is not np.ndarray or array.shape != shape or array.dtype is not dtype:
                    return None
                flags = array.flags
                if not (flags.carray or flags.c_contiguous and flags.aligned):
                    return None
                if value is not None and array.tobytes() != value:
                    return None
                places[number] = address(array)
                number += 1
            for shape, dtype in self.outputs:
                made = np.empty(shape, dtype)
                results.append(made)
                places[number] = address(made)
                number += 1
            return results if self.steps() or self.grow() and self.steps() else None
        finally:
            self.lock.release()


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
            if quick.stale:
                self._ready = tuple(q for q in self._ready if q is not quick)
        return None

    def note(self, variant: Variant, context: Context, values: Sequence[Any]) -> None:
        """A call has gone the usual way: the second one of its shapes, with the same values where sizes hang on them, is made ready."""
        shapes = (id(variant), *[getattr(v, "shape", None) for v in values], *[values[k].tobytes() for k in variant.read_inputs])
        again = self._seen.pop(shapes, None)
        if len(self._seen) >= SEEN:
            self._seen = {}
        if not again:
            self._seen[shapes] = again is None
            return
        try:
            self._ready = (Quick(variant, context, values), *self._ready[:MOST - 1])
            variant.forget_frames()
            variant.how = "one native run"
        except Unlinkable as no:
            self._seen[shapes] = no.later
            variant.how = f"segment by segment: {no}"
