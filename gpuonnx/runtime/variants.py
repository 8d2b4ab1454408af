"""Procedures with the variants compiled so far, and which of them serves a call."""
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import CompileError, ShapeError
from gpuonnx.importer.procedure import Argument, Procedure
from gpuonnx.ir import types
from gpuonnx.ir.sizes import SizeProgram
from gpuonnx.kernels.cpu.executor import Executor
from gpuonnx.planner.program import Program
from gpuonnx.runtime.execute import Runner
from gpuonnx.runtime.frame import Frame
from gpuonnx.runtime.loaded import LoadedProgram
from gpuonnx.runtime.moving import Unlinkable
from gpuonnx.runtime.parts import Shape
from gpuonnx.runtime.quick import MOST_BYTES, Quicks
from gpuonnx.runtime.resident import Resident
from gpuonnx.runtime.saved import Compiled, Library
from gpuonnx.runtime.turns import Turns

if TYPE_CHECKING:
    from gpuonnx.devices.device import Accelerator

SMALL_ELEMENTS = 64
MOST_RECENT = 256
MOST_VARIANTS = 64
MOST_GROWING = 4


@dataclass
class Stats:
    """Counters of a session: variants of procedures ready to run, kernels compiled here and found in the cache, new sizes
    bound, calls of `run`, and the most working memory that one run has taken, in bytes (inputs and outputs apart)."""

    variants: int = 0
    compiled: int = 0
    cache_hits: int = 0
    bindings: int = 0
    runs: int = 0
    peak_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def bound(self, used: int) -> None:
        """New sizes, with the working memory that they need."""
        with self._lock:
            self.bindings += 1
            self.peak_bytes = max(self.peak_bytes, used)

    def ran(self) -> None:
        with self._lock:
            self.runs += 1

    def took(self, variants: int) -> None:
        with self._lock:
            self.variants += variants


@dataclass
class Context:
    """What all procedures of a session share."""

    executor: Executor
    pool: Any
    compile: Callable[[Procedure, Sequence[Argument]], Compiled]
    load: Callable[[Program], LoadedProgram]
    accelerator: Accelerator | None
    stats: Stats
    loop_limit: int = 1 << 31
    library: Library | None = None
    memory_limit: int | None = None
    device_lock: threading.Lock = field(default_factory=threading.Lock)


class Variant:
    """One compiled variant of a procedure, ready to run: its program, its bodies, and what runs after it."""

    def __init__(self, compiled: Compiled, loaded: LoadedProgram, owner: Executable) -> None:
        self.compiled, self.loaded = compiled, loaded
        self.path = path = f"{owner.path}/{compiled.identity}"
        self.questions = SizeProgram()
        self.questions.slots = compiled.questions
        self.shapes = [None if s is None else tuple(x if isinstance(x, int) else None for x in s) for s in compiled.shapes]
        self.frames: list[Frame] = []
        self.how = ""
        self.lock = threading.Lock()
        self._hot: Compiled | None = None
        self.by_shape = all(element is None for _, _, element in compiled.sources.values())
        asked = [(s.input, s.axis) for s in compiled.program.symbols] + [(number, axis) for number, axis, _ in compiled.sources.values()]
        self.late = (-1, None) in asked
        self.read_inputs = sorted({number for number, axis in asked if axis is None and number >= 0})
        self._owner = owner
        context = owner.context
        bodies = enumerate(compiled.program.procedures)
        self.bodies = [Executable(body, context, f"{path}/body {k}", partial(self._hot_body, k)) for k, body in bodies]
        self.rest = None if compiled.rest is None else Executable(compiled.rest, context, f"{path}/rest", self._hot_rest)

    @property
    def key(self) -> str:
        return self.compiled.key_text

    @property
    def texts(self) -> Mapping[str, Any]:
        """The IR by stage; of a variant from the cache it is made again."""
        return self.compiled.texts or self.hot().texts

    def hot(self) -> Compiled:
        """Compiled again from the model, for procedures that came from the cache without their nodes."""
        if self._hot is None:
            self._hot = self._owner.context.compile(self._owner.hot(), self.compiled.arguments)
        return self._hot

    def _hot_body(self, number: int) -> Procedure:
        body: Procedure = self.hot().program.procedures[number]
        return body

    def _hot_rest(self) -> Procedure:
        rest = self.hot().rest
        assert rest is not None
        return rest

    def fits(self, arguments: Sequence[Argument], exact: bool = True) -> bool:
        """Whether a call's types, ranks, fixed sizes and answers are those of this variant (but for answers that hang on values)."""
        for argument, shape, first in zip(arguments, self.shapes, self.compiled.arguments, strict=True):
            if (argument.shape is None) != (shape is None) or argument.dtype != first.dtype:
                return False
            if shape is not None and argument.shape is not None:
                if len(shape) != len(argument.shape) or any(s is not None and s != a for s, a in zip(shape, argument.shape, strict=True)):
                    return False
        if not self._repeated(arguments):
            return False
        if not self.compiled.answers:
            return True
        binding = {name: _given(source, arguments) for name, source in self.compiled.sources.items()}
        if any(v is None for v in binding.values()):
            return not exact
        try:
            values = self.questions.run(binding)  # type: ignore[arg-type]
        except ShapeError:
            return False
        return all(values[r] == answer for r, answer in self.compiled.answers)

    def _repeated(self, arguments: Sequence[Argument]) -> bool:
        """One symbol on several axes: the sizes must agree."""
        seen: dict[str, int] = {}
        for argument, shape in zip(arguments, self.compiled.shapes, strict=True):
            for size, symbol in zip(argument.shape or (), shape or (), strict=True):
                if isinstance(symbol, str) and seen.setdefault(symbol, size) != size:
                    return False
        return True

    def lease(self) -> Frame:
        with self.lock:
            if self.frames:
                return self.frames.pop()
        return Frame(self.loaded)

    def forget_frames(self) -> None:
        """Give back the working memory that no run holds."""
        with self.lock:
            self.frames = []

    def give_back(self, frame: Frame) -> None:
        frame.release()
        with self.lock:
            self.frames.append(frame)


def _given(source: tuple[int, int | None, int | None], arguments: Sequence[Argument]) -> int | float | None:
    number, axis, element = source
    argument = arguments[number]
    if axis is not None:
        return (argument.shape or ())[axis]
    if argument.elements is None or element is None or argument.elements.size <= element:
        return None
    item = argument.elements.ravel()[element]
    return float(item) if types.kind(argument.dtype) == "f" else int(item)


def argument_of(value: Any, dtype: str) -> Argument:
    """What lowering may know of an input."""
    if isinstance(value, Resident):
        value = value.host() if prod(value.shape) <= SMALL_ELEMENTS else np.broadcast_to(np.zeros((), value.dtype), value.shape)
    if not isinstance(value, np.ndarray):
        return Argument(dtype, None)
    dtype = types.of_numpy(value.dtype) if dtype == "undefined" else dtype
    small = value.size <= SMALL_ELEMENTS and (value.dtype.kind in "iubf" or value.dtype.name == "bfloat16")
    return Argument(dtype, tuple(value.shape), value if small else None)


class Executable:
    """A procedure with the variants compiled so far; `restore` gives it its nodes where the cache left them out."""

    def __init__(self, procedure: Procedure, context: Context, path: str = "main", restore: Callable[[], Procedure] | None = None) -> None:
        self.procedure, self.context, self.path, self.restore = procedure, context, path, restore
        self.variants: list[Variant] = []
        self.recent: dict[tuple[Any, ...], Variant] = {}
        self.lock = threading.RLock()
        self.quicks = Quicks()
        self.how = ""
        self._turns: dict[Any, list[Turns]] = {}
        self._growing: list[Turns] = []
        self._searched, self._saved = False, 0

    def hot(self) -> Procedure:
        """The procedure with its nodes."""
        if self.procedure.cold and self.restore is not None:
            self.procedure = self.restore()
        return self.procedure

    def variant(self, values: Sequence[Any]) -> Variant:
        """The variant for these inputs, compiled if it is new. One that hangs on shapes alone is remembered by them."""
        signature = tuple([(v.shape, v.dtype) if isinstance(v, (np.ndarray, Resident)) else None for v in values])
        found = self.recent.get(signature)
        if found is None:
            found = self._find(values)
            if found.by_shape:
                if len(self.recent) >= MOST_RECENT:
                    self.recent = {}
                self.recent[signature] = found
        return found

    def _find(self, values: Sequence[Any]) -> Variant:
        if any(isinstance(v, Resident) for v in values):
            blind = [Argument(dtype_of(v, info.dtype), getattr(v, "shape", None)) for v, info in zip(values, self.procedure.inputs, strict=True)]
            found = next((v for v in self.variants if v.by_shape and v.fits(blind)), None)
            if found is not None:
                return found
        arguments = [argument_of(v, dtype_of(v, info.dtype)) for v, info in zip(values, self.procedure.inputs, strict=True)]
        known = self._known(arguments)
        if known is not None:
            return known
        with self.lock:
            self.search()
            known = self._known(arguments)
            return known if known is not None else self._compile(arguments)

    def _known(self, arguments: Sequence[Argument]) -> Variant | None:
        variants = self.variants
        for k, known in enumerate(variants):
            if known.fits(arguments):
                if k:
                    with self.lock:
                        self.variants = [known, *(v for v in self.variants if v is not known)]
                return known
        return None

    def _compile(self, arguments: Sequence[Argument]) -> Variant:
        """A thread writes the variant down while its kernels are compiled."""
        from concurrent.futures import ThreadPoolExecutor
        compiled, library = self.context.compile(self.hot(), arguments), self.context.library
        with ThreadPoolExecutor(1) as writer:
            kept = writer.submit(library.keep, self.path, self._saved, compiled) if library is not None else None
            made = Variant(compiled, self.context.load(compiled.program), self)
        if kept is not None:
            kept.result()
            self._saved += 1
        if len(self.variants) >= MOST_VARIANTS:
            self.recent = {}
        self.variants = [made, *self.variants[:MOST_VARIANTS - 1]]
        self.context.stats.took(1)
        return made

    def search(self) -> None:
        """Take over, once, what earlier processes compiled."""
        if self._searched or self.context.library is None:
            return
        self._searched = True
        for compiled in self.context.library.variants(self.path):
            try:
                loaded = self.context.load(compiled.program)
            except CompileError:
                break
            self.variants = [*self.variants, Variant(compiled, loaded, self)]
            self._saved += 1
            self.context.stats.took(1)

    def at_shapes(self, shapes: Sequence[Shape]) -> Variant | None:
        """The variant that serves these shapes, if there is one; others may where it hangs on values."""
        found = self.recent.get(tuple(shapes))
        if found is None:
            arguments = [Argument(types.of_numpy(dtype), shape) for shape, dtype in shapes]
            with self.lock:
                self.search()
            found = next((v for v in self.variants if v.fits(arguments, exact=False)), None)
        return found

    def lease_turns(self, values: Sequence[Any], carried: int, held: int, make: bool = True) -> Turns | None:
        """For a Loop's body: its turns linked at these shapes (now, if `make`); None where they go one by one, which `how` then explains."""
        if self.context.accelerator is not None:
            self.how = "turn by turn: what the device makes stays there"
            return None
        if not all(type(v) is np.ndarray and not v.dtype.hasobject for v in values):
            self.how = "turn by turn: it takes values that are no tensors"
            return None
        key = tuple([(v.shape, v.dtype) for v in values])
        with self.lock:
            free = self._turns.get(key, [])
            while free:
                turns = free.pop()
                if turns.serves(values) and not turns.stale:
                    return turns
            for turns in self._growing:
                if turns.serves(values) and not turns.stale:
                    self._growing = [t for t in self._growing if t is not turns]
                    return turns
        if not make:
            return None
        try:
            made = Turns(self.context, self.variant(values), values, carried, held)
        except Unlinkable as no:
            self.how = f"turn by turn: {no}"
            return None
        self.context.stats.bound(held + made.bytes)
        return made

    def give_back_turns(self, values: Sequence[Any], turns: Turns) -> None:
        """Kept for the next run if it is small."""
        if turns.bytes <= MOST_BYTES or turns.turning.growing and turns.bytes <= 16 * MOST_BYTES:
            with self.lock:
                if turns.turning.growing:
                    self._growing = [turns, *self._growing[:MOST_GROWING - 1]]
                    return
                if len(self._turns) >= MOST_RECENT:
                    self._turns = {}
                self._turns.setdefault(tuple([(v.shape, v.dtype) for v in values]), []).append(turns)

    def run(self, values: Sequence[Any], out: Mapping[int, np.ndarray] | None = None, held: int = 0) -> list[Any]:
        """Outputs in order. Arrays must be C-contiguous, aligned and of the declared types. held: see Runner."""
        done = None if out else self.quicks.run(values)
        if done is not None:
            return done
        variant = self.variant(values)
        frame = variant.lease()
        try:
            outputs = Runner(variant, frame, self.context, held).run(values, {} if variant.rest is not None else out or {})
        finally:
            variant.give_back(frame)
        if variant.rest is not None:
            return variant.rest.run(outputs, out, held)
        if not out and self.context.accelerator is None:
            self.quicks.note(variant, self.context, values)
        return outputs


def dtype_of(value: Any, declared: str) -> str:
    return types.of_numpy(value.dtype) if isinstance(value, (np.ndarray, Resident)) else declared
