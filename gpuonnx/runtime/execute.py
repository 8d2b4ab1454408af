"""Running programs: segments in order, native stretches in one call each, bodies and late parts as procedures of their own."""
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpuonnx.devices.device import Accelerator
from gpuonnx.errors import Cancelled, CompileError, DeviceError, GpuOnnxError, MemoryLimitError, ShapeError
from gpuonnx.importer.procedure import Argument, Procedure, is_tensor
from gpuonnx.ir import types
from gpuonnx.ir.sizes import SizeProgram
from gpuonnx.kernels.contract import CTX_CODE, CTX_LIMIT, CTX_STEP, CTX_VALUE, ERROR_CANCELLED, ERROR_DIVIDE, ERROR_INDEX
from gpuonnx.kernels.cpu.executor import Executor
from gpuonnx.planner import program as p
from gpuonnx.planner.place import HOST
from gpuonnx.planner.program import Program
from gpuonnx.runtime.deadline import current_deadline
from gpuonnx.runtime.frame import Frame, LoadedProgram
from gpuonnx.runtime.host import HOST_FUNCTIONS
from gpuonnx.runtime.saved import Compiled, Library

SMALL_ELEMENTS = 64
@dataclass
class Stats:
    """Counters of a session. `compiled` and `cache_hits` count kernels, `bindings` new sizes, `peak_bytes` working memory."""

    variants: int = 0
    compiled: int = 0
    cache_hits: int = 0
    bindings: int = 0
    runs: int = 0
    peak_bytes: int = 0


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


class Variant:
    """One compiled variant of a procedure, ready to run: its program, its bodies, and what runs after it."""

    def __init__(self, compiled: Compiled, loaded: LoadedProgram, owner: Executable, path: str) -> None:
        self.compiled, self.loaded, self.path = compiled, loaded, path
        self.questions = SizeProgram()
        self.questions.slots = compiled.questions
        self.shapes = [None if s is None else tuple(x if isinstance(x, int) else None for x in s) for s in compiled.shapes]
        self.frames: list[Frame] = []
        self.lock = threading.Lock()
        self._hot: Compiled | None = None
        self._owner = owner
        context = owner.context
        self.bodies = [Executable(body, context, f"{path}/body {k}", partial(self._hot_body, k)) for k, body in enumerate(compiled.program.procedures)]
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

    def fits(self, arguments: Sequence[Argument]) -> bool:
        """Whether a call's ranks, fixed sizes and answers are those of this variant."""
        for argument, shape in zip(arguments, self.shapes, strict=True):
            if (argument.shape is None) != (shape is None):
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
            return False
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
    return float(item) if argument.elements.dtype.kind == "f" else int(item)


def argument_of(value: Any, dtype: str) -> Argument:
    """What lowering may know of an input."""
    if not isinstance(value, np.ndarray):
        return Argument(dtype, None)
    small = value.size <= SMALL_ELEMENTS and (value.dtype.kind in "iub" or value.dtype == np.float32)
    return Argument(dtype, tuple(value.shape), value if small else None)


class Executable:
    """A procedure with the variants compiled so far; `restore` gives it its nodes where the cache left them out."""

    def __init__(self, procedure: Procedure, context: Context, path: str = "main", restore: Callable[[], Procedure] | None = None) -> None:
        self.procedure, self.context, self.path, self.restore = procedure, context, path, restore
        self.variants: list[Variant] = []
        self.lock = threading.RLock()
        self._searched = False

    def hot(self) -> Procedure:
        """The procedure with its nodes."""
        if self.procedure.cold and self.restore is not None:
            self.procedure = self.restore()
        return self.procedure

    def variant(self, values: Sequence[Any]) -> Variant:
        """The variant for these inputs, compiled if it is new."""
        arguments = [argument_of(v, dtype_of(v, info.dtype)) for v, info in zip(values, self.procedure.inputs, strict=True)]
        known = self._known(arguments)
        if known is not None:
            return known
        with self.lock:
            self.search()
            known = self._known(arguments)
            return known if known is not None else self._compile(arguments)

    def _known(self, arguments: Sequence[Argument]) -> Variant | None:
        for k, known in enumerate(self.variants):
            if known.fits(arguments):
                if k:
                    with self.lock:
                        if known in self.variants:
                            self.variants.remove(known)
                            self.variants.insert(0, known)
                return known
        return None

    def _compile(self, arguments: Sequence[Argument]) -> Variant:
        compiled = self.context.compile(self.hot(), arguments)
        number = len(self.variants)
        made = Variant(compiled, self.context.load(compiled.program), self, f"{self.path}/{number}")
        self.variants.insert(0, made)
        self.context.stats.variants += 1
        if self.context.library is not None:
            self.context.library.keep(self.path, number, compiled)
        return made

    def search(self) -> None:
        """Take over, once, what earlier processes compiled."""
        if self._searched or self.context.library is None:
            return
        self._searched = True
        for number, compiled in enumerate(self.context.library.variants(self.path)):
            try:
                loaded = self.context.load(compiled.program)
            except CompileError:
                break
            self.variants.append(Variant(compiled, loaded, self, f"{self.path}/{number}"))
            self.context.stats.variants += 1

    def run(self, values: Sequence[Any], out: Mapping[int, np.ndarray] | None = None) -> list[Any]:
        """Outputs in order. Arrays must be C-contiguous, aligned and of the declared types."""
        variant = self.variant(values)
        frame = variant.lease()
        try:
            outputs = Runner(variant, frame, self.context).run(values, {} if variant.rest is not None else out or {})
        finally:
            variant.give_back(frame)
        return variant.rest.run(outputs, out) if variant.rest is not None else outputs


def dtype_of(value: Any, declared: str) -> str:
    return types.of_numpy(value.dtype) if isinstance(value, np.ndarray) else declared


class Runner:
    """One run of one program in a leased frame."""

    def __init__(self, variant: Variant, frame: Frame, context: Context) -> None:
        self.variant, self.frame, self.context = variant, frame, context
        self.program = variant.loaded.program

    def run(self, values: Sequence[Any], out: Mapping[int, np.ndarray]) -> list[Any]:
        frame, program = self.frame, self.program
        frame.inputs, frame.out_buffers = list(values), out
        for ref, value in zip(program.inputs, values, strict=True):
            if ref.object >= 0:
                frame.objects[ref.object] = value
        frame.bind(0, program.symbols, values)
        for segment in program.segments:
            self._segment(segment)
        return [self._output(k, ref) for k, ref in enumerate(program.outputs)]

    def _output(self, k: int, ref: p.TensorRef) -> Any:
        made = self.frame.outputs[k]
        if made is not None:
            return made
        value = self.frame.value(ref)
        if isinstance(value, np.ndarray):
            given = self.frame.out_buffers.get(k)
            if given is not None:
                given[...] = value
                return given
            return value.copy()
        return value

    def _segment(self, segment: p.Segment) -> None:
        match segment:
            case p.Run(): self._native(segment) if segment.side == HOST else self._launches(segment)
            case p.Bind(): self.frame.bind(segment.epoch, segment.symbols, None)
            case p.HostCall(): self._host(segment)
            case p.Interpret(): self._interpret(segment)
            case p.Branch(): self._branch(segment)
            case p.Repeat(): self._loop(segment)
            case p.Transfer(): self._transfer(segment)

    def _native(self, segment: p.Run) -> None:
        frame, executor, deadline = self.frame, self.context.executor, current_deadline.get()
        frame.context[CTX_CODE] = 0
        if deadline is None:
            at = executor.run(self.context.pool, frame.context_address, frame.steps_address, segment.first, segment.last)
        else:
            with deadline.watching(frame.context):
                at = executor.run(self.context.pool, frame.context_address, frame.steps_address, segment.first, segment.last, deadline.check)
        if at < 0:
            self._fail(int(frame.steps[-1 - at, 3]), frame.context)

    def _fail(self, number: int, record: np.ndarray) -> None:
        node = self.program.nodes[number]
        name = ", ".join(node.origins) or node.kind
        code, value, limit = int(record[CTX_CODE]), int(record[CTX_VALUE]), int(record[CTX_LIMIT])
        if code == ERROR_CANCELLED:
            deadline = current_deadline.get()
            raise Cancelled(f"the run took longer than its timeout of {deadline.seconds:g} s; it was at {name}" if deadline is not None
                            else f"the run was cancelled at {name}")
        if code == ERROR_INDEX:
            raise ShapeError(f"{name}: index {value} is out of range for an axis of size {limit}; check the indices given to the model")
        if code == ERROR_DIVIDE:
            raise ShapeError(f"{name}: an integer is divided by zero")
        raise DeviceError(f"{name}: the kernel reported error {code} (value {value}, limit {limit}, step {int(record[CTX_STEP])})")

    def _launches(self, segment: p.Run) -> None:
        frame, accelerator, side = self.frame, self.context.accelerator, self.variant.loaded.device
        assert accelerator is not None and side is not None
        table, deadline = side.side, current_deadline.get()
        for step in range(segment.first, segment.last):
            grid = int(frame.registers[table.step_tasks[step]])
            if grid > 0:
                words = frame.device_words.address + 8 * table.step_words[step]
                shared = int(frame.registers[table.step_shared[step]])
                accelerator.launch(side.handles[step], grid, table.step_threads[step], shared, words)
                if deadline is not None:
                    deadline.check()
        accelerator.synchronize()
        try:
            accelerator.check()
        except DeviceError as error:
            names = dict.fromkeys(o for s in range(segment.first, segment.last) for o in self.program.nodes[table.step_nodes[s]].origins)
            shown = list(names)[:4]
            raise ShapeError(f"{', '.join(shown)}{'...' if len(names) > 4 else ''}: {error}") from error

    def _transfer(self, segment: p.Transfer) -> None:
        frame, accelerator = self.frame, self.context.accelerator
        assert accelerator is not None
        if segment.source.side == HOST:
            array = np.ascontiguousarray(frame.value(segment.source))
            buffer, offset = frame.device_address(segment.target)
            if array.size:
                accelerator.copy_in(buffer, offset, array)
            return
        buffer, offset = frame.device_address(segment.source)
        target = frame.array(segment.target)
        dense = np.empty(target.shape, target.dtype)
        if dense.size:
            accelerator.copy_out(buffer, offset, dense)
            target[...] = dense

    # what Python does
    def _store(self, numbers: Sequence[int], dtypes: Sequence[str], results: Sequence[Any], node: int) -> None:
        if len(results) < len(numbers):
            raise GpuOnnxError(f"{self.program.nodes[node].origins}: {len(results)} results for {len(numbers)} outputs")
        for number, dtype, result in zip(numbers, dtypes, results, strict=False):
            self.frame.objects[number] = tensor(result, dtype) if is_tensor(dtype) else result
            if is_tensor(dtype) and result is not None:
                self.frame.rebase(number)

    def _host(self, segment: p.HostCall) -> None:
        values = [self.frame.value(t) for t in segment.inputs]
        for k in segment.attrs.get("absent", ()):
            values.insert(k, None)
        attrs = {k: v for k, v in segment.attrs.items() if k != "absent"}
        try:
            results = HOST_FUNCTIONS[segment.name](values, attrs)
        except GpuOnnxError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise ShapeError(f"{', '.join(self.program.nodes[segment.node].origins)}: {error}") from error
        except MemoryError as error:
            raise MemoryLimitError(f"{', '.join(self.program.nodes[segment.node].origins)}: {error}") from error
        self._store(segment.outputs, segment.dtypes, results, segment.node)

    def _interpret(self, segment: p.Interpret) -> None:
        from gpuonnx.ir.evaluate import evaluate
        try:
            results = evaluate(segment.ir_node, [self.frame.value(t) for t in segment.inputs], self.frame.binding())
        except DeviceError as error:
            raise ShapeError(str(error)) from error
        except (IndexError, ValueError) as error:
            raise ShapeError(f"{', '.join(self.program.nodes[segment.node].origins)}: {error}") from error
        except MemoryError as error:
            raise MemoryLimitError(f"{', '.join(self.program.nodes[segment.node].origins)}: {error}") from error
        self._store(segment.outputs, segment.dtypes, results, segment.node)

    def _branch(self, segment: p.Branch) -> None:
        condition = np.asarray(self.frame.value(segment.condition))
        if condition.size != 1:
            raise ShapeError(f"{', '.join(self.program.nodes[segment.node].origins)}: the condition has {condition.size} elements, not 1")
        side = 0 if bool(condition.reshape(())) else 1
        values = [self._lent(t) for t in segment.inputs[side]]
        results = self.variant.bodies[segment.bodies[side]].run(values)
        self._store(segment.outputs, segment.dtypes, results, segment.node)

    def _lent(self, ref: p.TensorRef) -> Any:
        """A value as a body gets it: contiguous."""
        value = self.frame.value(ref)
        return tensor(value, ref.dtype) if isinstance(value, np.ndarray) else value

    def _loop(self, segment: p.Repeat) -> None:
        body = self.variant.bodies[segment.body]
        limit = None if segment.trip is None else int(np.asarray(self.frame.value(segment.trip)).reshape(()))
        going = True if segment.condition is None else bool(np.asarray(self.frame.value(segment.condition)).reshape(()))
        captures = [self._lent(t) for t in segment.captures]
        state = [self._lent(t) for t in segment.carried]
        count = len(state)
        scans: list[list[Any]] = [[] for _ in segment.outputs[count:]]
        turn, deadline = 0, current_deadline.get()
        while going and (limit is None or turn < limit):
            if turn >= self.context.loop_limit:
                raise ShapeError(f"{', '.join(self.program.nodes[segment.node].origins)}: more than {self.context.loop_limit} iterations")
            results = body.run([np.array(turn, np.int64), np.array(going), *state, *captures])
            going = bool(np.asarray(results[0]).reshape(()))
            state = results[1:1 + count]
            for column, value in zip(scans, results[1 + count:], strict=True):
                column.append(value)
            turn += 1
            if deadline is not None:
                deadline.check()
        infos = body.procedure.output_infos[1 + count:]
        stacked = [self._stacked(c, dtype, info) for c, dtype, info in zip(scans, segment.dtypes[count:], infos, strict=True)]
        self._store(segment.outputs, segment.dtypes, [*state, *stacked], segment.node)

    def _stacked(self, column: list[Any], dtype: str, info: Any) -> np.ndarray:
        if column:
            if len({c.shape for c in column}) > 1:
                raise ShapeError(f"scan output {info.name}: its shape differs between iterations, {column[0].shape} and {column[-1].shape}")
            return np.stack(column)
        dims = [d if isinstance(d, int) else 0 for d in (info.dims or ())]
        return np.empty((0, *dims), types.numpy_dtype(dtype))


def tensor(value: Any, dtype: str) -> np.ndarray:
    """Contiguous, aligned, of the declared element type."""
    array = np.asarray(value)
    wanted = types.numpy_dtype(dtype)
    if array.dtype != wanted:
        array = array.astype(wanted)
    return np.require(array, requirements=["C", "A"]) if array.ndim else np.array(array, wanted)
