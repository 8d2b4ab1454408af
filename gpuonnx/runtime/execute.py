"""Running programs: segments in order, native stretches in one call each, bodies and late parts as procedures of their own."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import Cancelled, DeviceError, GpuOnnxError, MemoryLimitError, ShapeError
from gpuonnx.importer.procedure import is_tensor
from gpuonnx.ir import types
from gpuonnx.kernels.contract import CTX_CODE, CTX_LIMIT, CTX_STEP, CTX_VALUE, ERROR_CANCELLED, ERROR_DIVIDE, ERROR_INDEX
from gpuonnx.planner import program as p
from gpuonnx.planner.program import HOST
from gpuonnx.runtime.deadline import current_deadline
from gpuonnx.runtime.frame import Frame, check_out, room
from gpuonnx.runtime.host_text import HOST_FUNCTIONS
from gpuonnx.runtime.link import FOREVER
from gpuonnx.runtime.resident import Resident, on_host
from gpuonnx.runtime.turns import FEWEST_TURNS, Stack, State

if TYPE_CHECKING:
    from gpuonnx.runtime.variants import Context, Executable, Variant


class Runner:
    """One run of one program in a leased frame."""

    def __init__(self, variant: Variant, frame: Frame, context: Context, held: int = 0) -> None:
        """held: bytes of working memory of the runs that this one is part of."""
        self.variant, self.frame, self.context, self.held = variant, frame, context, held
        self.program = variant.loaded.program

    def run(self, values: Sequence[Any], out: Mapping[int, np.ndarray]) -> list[Any]:
        frame, program = self.frame, self.program
        values = [self._lying(ref, value) for ref, value in zip(program.inputs, values, strict=True)]
        frame.inputs, frame.out_buffers, frame.held = list(values), out, self.held
        for ref, value in zip(program.inputs, values, strict=True):
            if ref.object >= 0:
                frame.objects[ref.object] = value
        self._bind(0, program.symbols, values)
        for segment in program.segments:
            self._segment(segment)
        deadline = current_deadline.get()
        if deadline is not None:
            deadline.check()
        return [self._output(k, ref) for k, ref in enumerate(program.outputs)]

    def _lying(self, ref: p.TensorRef, value: Any) -> Any:
        """An input on the side that the program reads it on."""
        if ref.side == HOST or isinstance(value, Resident):
            return on_host(value) if ref.side == HOST else value
        assert self.context.accelerator is not None
        return Resident(self.context.accelerator, value.shape, value.dtype, value)

    def _bind(self, epoch: int, symbols: Sequence[p.SymbolRef], values: Sequence[Any] | None) -> None:
        if self.frame.bind(epoch, symbols, values):
            self.context.stats.bound(self.held + self.frame.used)

    def _output(self, k: int, ref: p.TensorRef) -> Any:
        made = self.frame.outputs[k]
        if made is not None:
            return made
        twin = self.variant.loaded.twins[k]
        if twin is None:
            value = self.frame.value(ref)
        else:
            value = (self.frame.inputs if twin[1] else self.frame.outputs)[twin[0]]
        if not isinstance(value, np.ndarray):
            return value if isinstance(value, Resident) else owned(value)
        given = self.frame.out_buffers.get(k)
        if given is None:
            given = room(value.shape, value.dtype, f"output {ref.name!r}")
        check_out(ref.name, given, value.shape, value.dtype)
        given[...] = value
        return given

    def _segment(self, segment: p.Segment) -> None:
        match segment:
            case p.Run(): self._native(segment) if segment.side == HOST else self._launches(segment)
            case p.Bind(): self._bind(segment.epoch, segment.symbols, None)
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
            raise ShapeError(f"{name}: integer division by zero")
        raise DeviceError(f"{name}: the kernel reported error {code} (value {value}, limit {limit}, step {int(record[CTX_STEP])})")

    def _launches(self, segment: p.Run) -> None:
        frame, accelerator, side = self.frame, self.context.accelerator, self.variant.loaded.device
        assert accelerator is not None and side is not None
        table, deadline = side.side, current_deadline.get()
        with self.context.device_lock:
            for step in range(segment.first, segment.last):
                grid = int(frame.registers[table.step_tasks[step]])
                if grid > 0:
                    words = frame.device_words.address + 8 * table.step_words[step]
                    shared = int(frame.registers[table.step_shared[step]])
                    accelerator.launch(side.handles[step], grid, table.step_threads[step], shared, words)
                    if deadline is not None:
                        deadline.check()
            accelerator.synchronize()
            self._device_errors(segment)

    def _device_errors(self, segment: p.Run) -> None:
        accelerator, side = self.context.accelerator, self.variant.loaded.device
        assert accelerator is not None and side is not None
        try:
            accelerator.check()
        except DeviceError as error:
            nodes = (self.program.nodes[side.side.step_nodes[s]] for s in range(segment.first, segment.last))
            names = list(dict.fromkeys(o for node in nodes for o in node.origins))
            raise ShapeError(f"{', '.join(names[:4])}{'...' if len(names) > 4 else ''}: {error}") from error

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
            self.frame.objects[number] = own_tensor(result, dtype) if is_tensor(dtype) else result
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
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
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
        except (IndexError, ValueError, ArithmeticError) as error:
            raise ShapeError(f"{', '.join(self.program.nodes[segment.node].origins)}: {error}") from error
        except MemoryError as error:
            raise MemoryLimitError(f"{', '.join(self.program.nodes[segment.node].origins)}: {error}") from error
        self._store(segment.outputs, segment.dtypes, results, segment.node)

    def _branch(self, segment: p.Branch) -> None:
        side = 0 if self._single(self.frame.value(segment.condition), "the condition", segment.node) else 1
        values = [self._lent(t) for t in segment.inputs[side]]
        body = self.variant.bodies[segment.bodies[side]]
        body.how = body.how or "chosen by Python"
        results = body.run(values, held=self.held + self.frame.used)
        self._store(segment.outputs, segment.dtypes, results, segment.node)
        self._sized(segment)

    def _lent(self, ref: p.TensorRef) -> Any:
        """A value as a body gets it: contiguous."""
        value = self.frame.value(ref)
        return tensor(value, ref.dtype) if isinstance(value, np.ndarray) else value

    def _single(self, value: Any, what: str, node: int) -> Any:
        """The only element of what may have no others."""
        array = np.asarray(value)
        if array.size != 1:
            raise ShapeError(f"{', '.join(self.program.nodes[node].origins)}: {what} has {array.size} elements, not 1")
        return array.reshape(()).item()

    def _loop(self, segment: p.Repeat) -> None:
        body = self.variant.bodies[segment.body]
        limit = None if segment.trip is None else int(self._single(self.frame.value(segment.trip), "the number of iterations", segment.node))
        going = segment.condition is None or bool(self._single(self.frame.value(segment.condition), "the condition", segment.node))
        captures = [self._lent(t) for t in segment.captures]
        count, infos = len(segment.carried), body.procedure.output_infos
        at = State(0, FOREVER if limit is None else limit, going, [self._lent(t) for t in segment.carried],
                   [Stack(info) for info in infos[1 + count:]])
        if self.context.accelerator is not None:
            at.carried, captures = list(map(self._shared, at.carried)), list(map(self._shared, captures))
        self._turns(segment, body, at, captures)
        stacked = [stack.result(dtype, self._sizes(registers)[1:])
                   for stack, dtype, registers in zip(at.scans, segment.dtypes[count:], segment.shapes[count:], strict=True)]
        self._store(segment.outputs, segment.dtypes, [*map(on_host, at.carried), *stacked], segment.node)
        self._sized(segment)

    def _shared(self, value: Any) -> Any:
        """A value that turns may read on either side, copied once."""
        if self.context.accelerator is None or not isinstance(value, np.ndarray) or value.dtype.hasobject:
            return value
        return Resident(self.context.accelerator, value.shape, value.dtype, value)

    def _sizes(self, registers: Sequence[int] | None) -> list[int | None]:
        return [None if r < 0 else int(self.frame.registers[r]) for r in registers or ()]

    def _sized(self, segment: p.Branch | p.Repeat) -> None:
        """What a body gave has the sizes that everything after it counts on."""
        for number, registers in zip(segment.outputs, segment.shapes, strict=True):
            shape = getattr(self.frame.objects[number], "shape", None)
            if registers and shape is not None and any(s not in (None, d) for s, d in zip(self._sizes(registers), shape, strict=True)):
                raise ShapeError(f"{', '.join(self.program.nodes[segment.node].origins)}: it gave {list(shape)} where {self._sizes(registers)} "
                                 "was expected")

    def _turns(self, segment: p.Repeat, body: Executable, at: State, captures: list[Any]) -> None:
        """Natively as far as that goes, else one by one; what cannot go natively is tried again after ever more turns."""
        deadline, held, count = current_deadline.get(), self.held + self.frame.used, len(at.carried)
        again, wait, alone = 0, 1, 0
        while at.more:
            values = [np.array(at.turn, np.int64), np.array(True), *at.carried, *captures]
            if at.turn >= again:
                first, turns = at.turn, body.lease_turns(values, count, held, at.limit - at.turn >= FEWEST_TURNS)
                if turns is not None:
                    body.how = "natively"
                    turns.run(at, captures)
                    body.give_back_turns(values, turns)
                    values[:2 + count] = np.array(at.turn, np.int64), values[1], *at.carried
                wait = 1 if at.turn > first else 2 * wait
                again = at.turn + wait
            if deadline is not None:
                deadline.check()
            if not at.more:
                break
            if at.turn >= self.context.loop_limit:
                raise ShapeError(f"{', '.join(self.program.nodes[segment.node].origins)}: more than {self.context.loop_limit} iterations")
            results = body.run(values, held=held)
            going = self._single(results[0], "the condition that the body gives", segment.node)
            at.going, at.carried = bool(going), results[1:1 + count]
            for stack, value in zip(at.scans, results[1 + count:], strict=True):
                stack.append(value, at.limit - at.turn)
            at.turn, alone = at.turn + 1, alone + 1
        if alone and body.how == "natively":
            body.how = f"natively, but for {alone} of {at.turn} turns in the last run"


def tensor(value: Any, dtype: str) -> np.ndarray:
    """Contiguous, aligned, of the declared element type."""
    array, wanted = np.asarray(value), types.numpy_dtype(dtype)
    if array.ndim and array.dtype == wanted and array.flags.carray:
        return array
    if array.dtype != wanted:
        array = array.astype(wanted)
    return np.require(array, requirements=["C", "A"]) if array.ndim else np.array(array, wanted)


def own_tensor(value: Any, dtype: str) -> np.ndarray:
    """As `tensor`, in memory that nothing else will write: what Python made may be a view of an arena."""
    array = tensor(value, dtype)
    return array if array.flags.owndata else array.copy()


def owned(value: Any) -> Any:
    """A sequence, map or optional whose tensors are the caller's own."""
    if isinstance(value, list):
        return [owned(v) for v in value]
    return value.copy() if isinstance(value, np.ndarray) else value
