"""A procedure at one set of shapes as one native table: its steps, the bodies of its Ifs and Loops between branches, and copies of what
no kernel writes. Only the addresses of what goes in and out are left open."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import MemoryLimitError, ShapeError
from gpuonnx.importer.procedure import is_tensor
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.kernels.cpu import control
from gpuonnx.kernels.cpu.executor import BRANCH
from gpuonnx.planner import program as p
from gpuonnx.planner.program import HOST
from gpuonnx.runtime.address import address
from gpuonnx.runtime.frame import ALIGNMENT, Frame, physical_memory
from gpuonnx.runtime.moving import Growing, Moving, Unlinkable, changing_axes, moved_symbols
from gpuonnx.runtime.parts import Part, Port, Shape, Turning, dense, lies_dense

if TYPE_CHECKING:
    from gpuonnx.runtime.variants import Context, Executable, Variant

FOREVER = (1 << 63) - 1


class Linker:
    """Writes one table. Raises Unlinkable."""

    def __init__(self, context: Context, held: int = 0) -> None:
        """held: bytes of working memory of the runs that this one is part of."""
        self.context, self.held, self.bytes = context, held, 0
        self.rows: list[list[int]] = []
        self.keep: list[Any] = []
        self.missing: list[tuple[Executable, Sequence[Shape]]] = []
        self.moving: list[Moving | Growing] = []
        self.tables: list[tuple[np.ndarray, int]] = []
        self.steps = context.executor.control
        at, one = self.words(3)
        one[0], one[2], self.zero, self.true, self.forever = 1, FOREVER, at + 8, at, at + 16

    # memory and rows
    def words(self, count: int) -> tuple[int, np.ndarray]:
        made = np.zeros(max(count, 1), np.int64)
        self.keep.append(made)
        return address(made), made

    def room(self, shape: tuple[int, ...], dtype: np.dtype) -> Port:
        """Memory for a tensor."""
        count = prod(shape) * dtype.itemsize
        self._fits(count)
        made = np.empty(count + ALIGNMENT, np.uint8)
        self.keep.append(made)
        return Port(shape, dtype, start=-(-address(made) // ALIGNMENT) * ALIGNMENT)

    def may(self, count: int) -> bool:
        """Whether the session's memory_limit leaves so many bytes, which are then taken."""
        limit, wanted = self.context.memory_limit, self.held + self.bytes + count
        if wanted > physical_memory() or limit is not None and wanted > limit:
            return False
        self.bytes += count
        return True

    def _fits(self, count: int) -> None:
        if not self.may(count):
            raise Unlinkable("memory_limit leaves no room for it", later=True)

    def row(self, function: int, args: int, tasks: int = 1, node: int = 0) -> int:
        self.rows.append([function, args, tasks, node])
        return len(self.rows) - 1

    def copy(self, shape: tuple[int, ...], dtype: np.dtype, target: tuple[Port, int], source: tuple[Port, int], strides: Sequence[int]) -> None:
        """A step that fills a dense tensor from a strided one."""
        if 0 in shape:
            return
        run = step = dtype.itemsize
        axes: list[list[int]] = []
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            if size != 1 and not axes and stride == run:
                run *= size
            elif size != 1 and axes and stride == axes[-1][0] * axes[-1][2]:
                axes[-1][0] *= size
            elif size != 1:
                axes.append([size, step, stride])
            step *= size
        at, words = self.words(4 + 3 * len(axes))
        words[2:] = [run, len(axes), *(x for axis in reversed(axes) for x in axis)]
        if source[0].wanders:
            known, move = self.words(4)
            move[:] = 1, at + 8, *source[0].wanders
            self.row(self.steps["move"], known)
        for number, (port, more) in enumerate((target, source)):
            port.lead([(at + 8 * number, 0)] if not port.wanders else [], more)
        self.row(self.steps["copy"], at)

    # procedures
    def part(self, variant: Variant, shapes: Sequence[Shape], known: Mapping[int, np.ndarray] | None = None,
             now: Sequence[np.ndarray] | None = None, carried: int = 0) -> Part:
        """The steps of a variant. known: by number, inputs that are the same in every run; now: the inputs of the first turn, for a body
        whose first `carried` values may change their sizes."""
        program, known = variant.loaded.program, known or {}
        if variant.rest is not None or variant.late:
            raise Unlinkable("what it does hangs on values that it makes")
        if self.context.accelerator is not None or any(ref.object >= 0 for ref in program.inputs):
            raise Unlinkable("it takes values that are no tensors" if self.context.accelerator is None else "it runs on a device")
        for segment in program.segments:
            if not isinstance(segment, (p.Run, p.Branch, p.Repeat)):
                raise Unlinkable(_said(segment, program))
        part = self._framed(variant, shapes, known if now is None else dict(enumerate(now)))
        if now is not None:
            part.changing = changing_axes(program, part.frame.registers, carried)
        values = set(range(len(shapes))) - set(known)
        asked = any(axis is None and n in values for n, axis, _ in variant.compiled.sources.values())
        if part.changing or asked or moved_symbols(program, (), values):
            self.moving.append(Moving(self, part, part.changing, known))
            part.moving = self.moving[-1]  # type: ignore[assignment]
        self._slots(part)
        tasks = variant.loaded.host.tasks
        for segment in program.segments:
            match segment:
                case p.Run():
                    for step, row in enumerate(part.frame.steps[segment.first:segment.last].tolist(), segment.first):
                        if row[2] > 0 or part.moving is not None:
                            part.steps.append((len(self.rows), int(tasks[step])))
                            self.rows.append(row)
                case p.Branch(): self._branch(part, segment)
                case p.Repeat(): self._loop(part, segment)
        if any(port.shape is None for port in part.outputs):
            raise Unlinkable("an output has no known shape")
        return part

    def _framed(self, variant: Variant, shapes: Sequence[Shape], values: Mapping[int, np.ndarray]) -> Part:
        frame, program = Frame(variant.loaded), variant.loaded.program
        given = [values[k] if k in values else np.broadcast_to(np.zeros((), dtype), shape) for k, (shape, dtype) in enumerate(shapes)]
        frame.inputs, frame.held = given, self.held + self.bytes
        try:
            frame.bind(0, program.symbols, given)
        except (ShapeError, MemoryLimitError) as error:
            raise Unlinkable(str(error), later=True) from error
        self.keep.append(frame)
        self._fits(frame.used)
        outputs = [Port(None if ref.object >= 0 else frame.shape(ref), numpy_dtype(ref.dtype)) for ref in program.outputs if _tensor(ref.dtype)]
        direct = [made is not None for made in frame.outputs]
        loose = [(k, ref) for k, ref in enumerate(program.outputs) if not direct[k]]
        frame.release()
        return Part(variant, frame, [Port(*s) for s in shapes], outputs, loose, {})

    def _slots(self, part: Part) -> None:
        """The words with addresses of inputs, outputs and what Ifs and Loops give: those that steps read, or the bases they are bound from."""
        frame, side = part.frame, part.program.sides[HOST]
        if part.moving is not None:
            words = [(frame.bases_address + 8 * base, base, 0) for base in range(len(side.bases))]
        else:
            bound = zip(side.word_bases, side.word_registers, strict=True)
            words = [(frame.words_address + 8 * k, base, int(frame.registers[register])) for k, (base, register) in enumerate(bound)]
        for word, base, more in words:
            kind, number = side.bases[base]
            if kind in ("input", "output"):
                (part.inputs if kind == "input" else part.outputs)[number].slots.append((word, more))
            elif kind == "object":
                part.waiting.setdefault(number, []).append((word, more))
            elif kind == "arena" and part.moving is not None:
                part.arena.slots.append((word, more))
                part.arena.start = int(frame.bases[base])

    def _limits(self, part: Part, moving: Moving) -> None:
        """Outputs that change their sizes: only carried values may, into buffers that grow."""
        for k, ref in enumerate(part.program.outputs):
            if ref.object < 0 and k not in {number - 1 for number, _ in part.changing}:
                moving.stays(ref.shape)
            elif ref.object < 0 and any(moving.moved[r] for r in ref.shape):
                if k in dict(part.loose):
                    raise Unlinkable("what it gives changes its size from turn to turn")
                part.limits[k] = moving.limit(moving.bytes_of(ref.shape, part.outputs[k].dtype.itemsize))

    def _place(self, part: Part, ref: p.TensorRef) -> tuple[Port, int]:
        """As `Part.locate`, for a copy from there."""
        port, more = part.locate(ref)
        if not part.wanders(ref):
            return port, more
        assert part.moving is not None
        word, _ = self.words(1)
        port.lead([(word, 0)])
        return Port(None, port.dtype, wanders=(word, address(part.moving.registers) + 8 * ref.offset)), 0

    def finish(self, part: Part, skip: Collection[int] = ()) -> None:
        """Copies of the outputs that no kernel writes; then all that a moving part must check is known."""
        for k, ref in part.loose:
            port = part.outputs[k]
            if k not in skip and (ref.object < 0 or part.objects[ref.object] is not port):
                shape = part.shape(ref)
                self.copy(shape, port.dtype, (port, 0), self._place(part, ref), part.strides(ref))
        if part.moving is not None:
            self._limits(part, part.moving)
            part.moving.close(part.steps)

    def _object(self, part: Part, number: int, shape: tuple[int, ...], dtype: np.dtype) -> Port:
        """Where what an If or a Loop gives lies: straight in an output, else in memory of its own."""
        port = part.objects.get(number)
        if port is None:
            port = next((part.outputs[k] for k, ref in part.loose if ref.object == number), None) or self.room(shape, dtype)
            port.shape = shape
            port.lead(part.waiting.get(number, ()))
            for k, ref in part.loose:
                if ref.object == number:
                    part.outputs[k].shape = shape
            part.objects[number] = port
        if port.shape != shape or port.dtype != dtype:
            raise Unlinkable("what it gives differs in shape or type")
        return port

    def _lent(self, part: Part, ref: p.TensorRef) -> tuple[Shape, tuple[Port, int]]:
        """A value as a body gets it: dense."""
        if not _tensor(ref.dtype):
            raise Unlinkable("it takes values that are no tensors")
        shape, dtype, strides = part.shape(ref), numpy_dtype(ref.dtype), part.strides(ref)
        place = self._place(part, ref)
        if not lies_dense(shape, strides, dtype.itemsize) or part.wanders(ref):
            target = (self.room(shape, dtype), 0)
            self.copy(shape, dtype, target, place, strides)
            place = target
        return (shape, dtype), place

    # If
    def _branch(self, part: Part, segment: p.Branch) -> None:
        (shape, _), (port, more) = self._lent(part, segment.condition)
        if prod(shape) != 1:
            raise Unlinkable("the condition is not one element")
        byte = port.start + more
        if not port.start or port is part.arena:
            byte, _ = self.words(1)
            self.copy((), np.dtype(np.bool_), (Port((), np.dtype(np.bool_), start=byte), 0), (port, more), ())
        choice = self.row(BRANCH, byte)
        there = [self._side(part, segment, 0)]
        end = self.row(BRANCH, self.zero)
        self.rows[choice][2] = len(self.rows)
        there.append(self._side(part, segment, 1))
        self.rows[end][2] = len(self.rows)
        if not any(there):
            raise Unlinkable("no branch was taken yet", later=True)

    def _side(self, part: Part, segment: p.Branch, side: int) -> bool:
        """False where the body has not run at these shapes yet: then the native run stops there."""
        body = part.variant.bodies[segment.bodies[side]]
        lent = [self._lent(part, ref) for ref in segment.inputs[side]]
        variant = self._known(body, [shape for shape, _ in lent])
        if variant is None:
            self.row(self.steps["refuse"], 0)
            return False
        inner = self.part(variant, [shape for shape, _ in lent])
        self.finish(inner)
        for port, (_, (source, more)) in zip(inner.inputs, lent, strict=True):
            source.lead(port.slots, more)
        self._give(part, segment.outputs, segment.dtypes, inner.outputs)
        return True

    def _known(self, body: Executable, shapes: Sequence[Shape]) -> Variant | None:
        variant = body.at_shapes(shapes)
        if variant is None:
            self.missing.append((body, shapes))
        else:
            body.how = "natively"
        return variant

    def _give(self, part: Part, numbers: Sequence[int], dtypes: Sequence[str], outputs: Sequence[Port]) -> None:
        for number, dtype, port in zip(numbers, dtypes, outputs, strict=True):
            if not _tensor(dtype) or numpy_dtype(dtype) != port.dtype:
                raise Unlinkable("it gives values that are no tensors")
            assert port.shape is not None
            self._object(part, number, port.shape, port.dtype).lead(port.slots)

    # Loop
    def _loop(self, part: Part, segment: p.Repeat) -> None:
        body, count = part.variant.bodies[segment.body], len(segment.carried)
        refs = [ref for ref in (segment.trip, segment.condition) if ref is not None]
        lent = [self._lent(part, ref) for ref in (*refs, *segment.carried, *segment.captures)]
        ends, rest = lent[:len(refs)], lent[len(refs):]
        shapes: list[Shape] = [((), np.dtype(np.int64)), ((), np.dtype(np.bool_)), *(shape for shape, _ in rest)]
        variant = self._known(body, shapes)
        if variant is None:
            raise Unlinkable("a Loop inside has not run yet", later=True)
        rows = [self._rows(part, segment, k) for k in range(count, len(segment.outputs))]
        turning = self.loop(variant, shapes, count, min([self.context.loop_limit, *(r[0] for r in rows)]))
        given = [None if segment.trip is None else ends[0], None if segment.condition is None else ends[-1], *rest]
        for number, (port, source) in enumerate(zip(turning.inputs, given, strict=True)):
            if source is None:
                port.fix(self.true if number else self.forever)
            else:
                source[1][0].lead(port.slots, source[1][1])
        for scan, row in zip(turning.outputs[count:], rows, strict=True):
            if scan.shape != row[1:]:
                raise Unlinkable("what it gives differs in shape or type")
            scan.shape = row
        self._give(part, segment.outputs, segment.dtypes, turning.outputs)

    def _rows(self, part: Part, segment: p.Repeat, number: int) -> tuple[int, ...]:
        """The shape of a scan output, which must be known before the Loop runs."""
        known = segment.shapes[number]
        if known is None or -1 in known:
            raise Unlinkable("how many rows it gives is known when it ends")
        return tuple(int(part.frame.registers[r]) for r in known)

    def loop(self, variant: Variant, shapes: Sequence[Shape], carried: int, most: int, known: Mapping[int, np.ndarray] | None = None,
             now: Sequence[np.ndarray] | None = None) -> Turning:
        """Turns of a body until its limit, its condition, or `most` turns, where the run stops unless it ends there.

        shapes: turn number, condition, carried values, captures; known and now: see `part`."""
        enter, check = self.row(self.steps["enter"], 0), self.row(BRANCH, 0)
        head = len(self.rows)
        inner = self.part(variant, shapes, known, now, carried)
        outputs, scans, grows = inner.outputs, len(inner.outputs) - 1 - carried, {number - 2 for number, _ in inner.changing}
        if prod(outputs[0].shape or ()) != 1 or outputs[0].dtype != np.bool_:
            raise Unlinkable("its condition is not one element")
        for k in range(carried):
            shape, dtype = shapes[2 + k]
            if outputs[1 + k].dtype != dtype or k not in grows and outputs[1 + k].shape != shape:
                raise Unlinkable("a carried value changes its shape")
        same = [k not in grows and inner.hands_on(k) for k in range(carried)]
        self.finish(inner, [1 + k for k in range(carried) if same[k]])
        self._hand_on_sizes(inner)
        turn, again = self.row(self.steps["turn"], 0), self.row(BRANCH, 0, head)
        self.rows[check][2] = len(self.rows)
        finals = [Port(port.shape, port.dtype) for port in outputs[1:1 + carried]]
        for k, (port, final) in enumerate(zip(inner.inputs[2:], finals, strict=False)):
            if k not in grows:
                self.copy(*shapes[2 + k], (final, 0), (port, 0), dense(shapes[2 + k][0], port.dtype.itemsize))
        changing = [k for k in range(carried) if not same[k]]
        at, block, growing = self._block(inner, changing, grows, scans, most)
        for row, word in ((enter, 0), (turn, 0), (check, control.MORE), (again, control.DONE)):
            self.rows[row][1] = at + 8 * word
        bases, sources, stacks, _ = control.parts(len(changing), scans)
        begin = [inner.inputs[2 + k] if same[k] else Port(*shapes[2 + k], [(at + 8 * (sources + 3 * changing.index(k)), 0)]) for k in range(carried)]
        ends = [Port((), np.dtype(np.int64), [(at + 8 * control.TRIP, 0)]), Port((), np.dtype(np.bool_), [(at + 8 * control.GOING, 0)])]
        starts = [Port(o.shape, o.dtype, [(at + 8 * (stacks + 2 * s), 0)]) for s, o in enumerate(outputs[1 + carried:])]
        current = [-1 if same[k] else bases + 2 * changing.index(k) for k in range(carried)]
        return Turning([*ends, *begin, *inner.inputs[2 + carried:]], [*finals, *starts], block, current, growing)

    def _hand_on_sizes(self, inner: Part) -> None:
        """A step after which the next turn reads the sizes of what this one made."""
        moving = inner.moving
        if moving is None or not inner.changing:
            return
        registers = address(moving.registers)
        pairs = [(word[0], registers + 8 * inner.program.outputs[number - 1].shape[axis], self.zero)
                 for (number, axis), word in moving.size_words.items()]
        at, words = self.words(1 + 3 * len(pairs))
        words[0], words[1:] = len(pairs), np.array(pairs, np.int64).reshape(-1)
        self.row(self.steps["move"], at)

    def _block(self, inner: Part, changing: Sequence[int], grows: Collection[int], scans: int,
               most: int) -> tuple[int, np.ndarray, dict[int, Growing]]:
        """The words of a Loop, see kernels/cpu/control.py, with all that does not change in place."""
        made = inner.outputs[len(inner.outputs) - scans:]
        by_base = [port.slots for k in changing for port in (inner.inputs[2 + k], inner.outputs[1 + k])]
        by_base += [port.slots for port in made]
        links = [(word, base, more) for base, slots in enumerate(by_base) for word, more in slots]
        at, block = self.words(control.block_words(len(changing), scans, len(links)))
        block[[control.MOST, control.CARRIED, control.SCANS, control.LINKS]] = most, len(changing), scans, len(links)
        _, sources, stacks, first = control.parts(len(changing), scans)
        growing: dict[int, Growing] = {}
        for n, k in enumerate(changing):
            shape, dtype, place = inner.outputs[1 + k].shape, inner.outputs[1 + k].dtype, sources + 3 * n + 1
            assert shape is not None
            if k in grows and inner.moving is not None:
                growing[k] = Growing(inner.moving, inner.limits[1 + k], 2 + k, block, place)
            else:
                block[place:place + 2] = [self.room(shape, dtype).start for _ in range(2)]
        self.moving += growing.values()
        for s, port in enumerate(made):
            block[stacks + 2 * s + 1] = prod(port.shape or ()) * port.dtype.itemsize
        block[first:] = np.array(links, np.int64).reshape(-1)
        inner.inputs[0].fix(at + 8 * control.TURN)
        inner.inputs[1].fix(self.true)
        inner.outputs[0].fix(at + 8 * control.CONDITION)
        return at, block, growing


def _tensor(dtype: str) -> bool:
    return is_tensor(dtype) and dtype not in ("str", "undefined")


def _said(segment: p.Segment, program: p.Program) -> str:
    if isinstance(segment, p.Bind):
        return f"{', '.join(s.name for s in segment.symbols)} is known only while it runs"
    node = getattr(segment, "node", None)
    return "it runs on a device" if node is None else f"{', '.join(program.nodes[node].origins)} runs in Python"
