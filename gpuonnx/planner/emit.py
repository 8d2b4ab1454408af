"""Writes the tables of a Program from what the assembler decided."""
from __future__ import annotations

from typing import Any

from gpuonnx.errors import ModelError
from gpuonnx.ir import dims, types
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.show import shape as shown
from gpuonnx.ir.sizes import SizeProgram
from gpuonnx.kernels.contract import Arg, Kernel, Ref, Step
from gpuonnx.planner import memory
from gpuonnx.planner import program as p
from gpuonnx.planner.assemble import Action, Assembler, Place
from gpuonnx.planner.memory import Buffer
from gpuonnx.planner.program import DEVICE, HOST


class Emitter:
    """One use: `Emitter(assembler).program()`."""

    def __init__(self, made: Assembler) -> None:
        self.made, self.graph = made, made.graph
        self.sizes = SizeProgram()
        self.sides = {HOST: p.Side(), DEVICE: p.Side()}
        self.base_numbers: dict[tuple[str, str, int], int] = {}
        self.kernels: dict[tuple[str, tuple[Any, ...]], int] = {}
        self.slot_registers: dict[memory.Slot, int] = {}
        self.nodes: list[p.NodeInfo] = []
        self.procedures: list[Any] = []
        self.segments: list[p.Segment] = []

    def program(self) -> p.Program:
        slots = memory.assign(self.made.buffers, self.made.hint)
        for side, constants in self.made.constants.items():
            self.sides[side].constants = constants
        self._arenas(slots)
        pending = sorted((position, epoch) for epoch, (position, _) in self.made.binds.items())
        for action in self.made.actions:
            while pending and pending[0][0] < action.position:
                self._bind(pending.pop(0)[1])
            self._action(action)
        for _, epoch in pending:
            self._bind(epoch)
        checks = [p.Check(self.sizes.register(r.dim), r.equal, self.made.epoch(r.dim), f"{r.origin}: {_short(r.text)}")
                  for r in self.graph.requirements]
        inputs = [self._tensor(v, self._home(v)) for v in self.graph.inputs]
        outputs = [self._tensor(v, self._home(v)) for v in self.graph.outputs]
        given, all_read = set(self.graph.inputs), any(isinstance(s, p.Interpret) for s in self.segments)
        read = {arg for op, arg in self.sizes.slots if op == "sym"}
        symbols = [self._symbol(name, source) for name, source in self.graph.symbols.items()
                   if source.value in given and (source.axis is not None or all_read or name in read)]
        return p.Program(self.sizes.slots, self._slot_epochs(), symbols, checks, self.segments, self.sides, inputs, outputs,
                         len(self.made.objects), self.nodes, self.procedures, memory.used(slots), quiet=self._quiet())

    def _quiet(self) -> list[str]:
        loud = {o for info in self.nodes for o in info.origins}
        return list(dict.fromkeys(o for node in self.graph.nodes for o in node.origins if o not in loud))

    # registers
    def _symbol(self, name: str, source: g.Source) -> p.SymbolRef:
        real = types.kind(source.value.dtype) == "f" and source.element is not None
        register = self.sizes._slot("sym", name)
        if source.value in self.graph.inputs:
            return p.SymbolRef(register, name, self.graph.inputs.index(source.value), None, source.axis, source.element, real)
        return p.SymbolRef(register, name, -1, self._tensor(source.value, HOST), source.axis, source.element, real)

    def _slot_epochs(self) -> list[int]:
        """The epoch in which each register can be computed."""
        out: list[int] = []
        for op, arg in self.sizes.slots:
            if op == "sym":
                out.append(self.made.epoch_of_symbol.get(arg, 0))
            elif op.endswith("const"):
                out.append(0)
            else:
                out.append(max(out[r] for r in arg))
        return out

    def _arenas(self, slots: list[memory.Slot]) -> None:
        zero = self.sizes.register(0)
        epochs = 1 + max(self.made.binds, default=0)
        for each in self.sides.values():
            each.arena_registers += [zero] * epochs
        covered = {below for slot in slots for below in slot.below}
        ends: dict[memory.Slot, int] = {}
        for slot in slots:
            start = self.slot_registers[slot] = self.sizes.largest([ends[s] for s in slot.below] or [zero])
            ends[slot] = self.sizes.sum([start, self.sizes.register(slot.size)])
            if slot not in covered:
                side, epoch = slot.arena
                tops = self.sides[side].arena_registers
                tops[epoch] = self.sizes.largest([tops[epoch], ends[slot]])

    def _base(self, buffer: Buffer) -> int:
        kind, number = (buffer.kind, buffer.number) if buffer.kind != "arena" else ("arena", buffer.epoch)
        key = (buffer.side, kind, number)
        if key not in self.base_numbers:
            bases = self.sides[buffer.side].bases
            self.base_numbers[key] = len(bases)
            bases.append((kind, number))
        return self.base_numbers[key]

    def _pointer(self, buffer: Buffer, offset: Dim) -> tuple[int, int]:
        register = self.sizes.register(offset)
        if buffer.slot is not None:
            start = self.slot_registers[buffer.slot]
            register = start if isinstance(offset, int) and offset == 0 else self.sizes.sum([start, register])
        return self._base(buffer), register

    def _home(self, value: g.Value) -> str:
        place = self.made.places.get(value)
        return HOST if place is None else place.buffer.side

    def _tensor(self, value: g.Value, side: str) -> p.TensorRef:
        number = self.made.objects.get(value, -1)
        if value.shape is None or (number >= 0 and value not in self.graph.inputs):
            return p.TensorRef(value.dtype, HOST, -1, 0, (), (), number, value.name)
        return self._placed(value, self.made.place(value, side), side)

    def _placed(self, value: g.Value, place: Place, side: str) -> p.TensorRef:
        size = types.size(value.dtype)
        base, offset = self._pointer(place.buffer, place.offset * size)
        shape = tuple(self.sizes.register(s) for s in value.dims)
        strides = tuple(self.sizes.register(s * size) for s in place.strides)
        return p.TensorRef(value.dtype, side, base, offset, shape, strides, name=value.name)

    # segments
    def _bind(self, epoch: int) -> None:
        refs = tuple(self._symbol(name, self.graph.symbols[name]) for name in self.made.binds[epoch][1])
        self.segments.append(p.Bind(epoch, refs))

    def _action(self, action: Action) -> None:
        number = self._info(action)
        node = action.node
        if action.build is not None:
            self._steps(action, number)
        elif isinstance(node, g.Copy):
            source, target = action.places[0][0], action.places[1][0]
            self.segments.append(p.Transfer(self._placed(node.inputs[0], source, source.buffer.side),
                                            self._placed(node.out, target, target.buffer.side), number))
        else:
            self._python(node, number)

    def _info(self, action: Action) -> int:
        placement = self.made.placement
        node = action.node
        why = placement.why.get(node, "")
        kind = node.kernel if isinstance(node, g.Call) else type(node).__name__
        total = sum(self.made.hint(_bytes(v)) for v in (*node.inputs, *node.outputs) if v.shape is not None)
        text = ", ".join(f"{v.name or '_'}: {v.dtype}{shown(v.shape) if v.shape is not None else ''}" for v in node.outputs)
        self.nodes.append(p.NodeInfo(kind, node.origins, action.side, why, text, total))
        return len(self.nodes) - 1

    def _python(self, node: g.Node, number: int) -> None:
        refs = [self._tensor(v, HOST) for v in node.inputs]
        outs = tuple(self.made.objects[v] for v in node.outputs)
        dtypes = tuple(v.dtype for v in node.outputs)
        if isinstance(node, g.Host):
            self.segments.append(p.HostCall(node.name, tuple(refs), outs, dtypes, node.attrs, number))
        elif isinstance(node, g.If):
            first, second = (tuple(refs[k] for k in places) for places in node.captures)
            bodies = (self._procedure(node.bodies[0]), self._procedure(node.bodies[1]))
            self.segments.append(p.Branch(refs[0], bodies, (first, second), outs, dtypes, tuple(map(self._sizes, node.outputs)), number))
        elif isinstance(node, g.Loop):
            trip = refs.pop(0) if node.has_trip else None
            condition = refs.pop(0) if node.has_condition else None
            self.segments.append(p.Repeat(self._procedure(node.body), trip, condition, tuple(refs[:node.carried]),
                                          tuple(refs[node.carried:]), outs, dtypes, tuple(map(self._sizes, node.outputs)), number))
        else:
            self.segments.append(p.Interpret(node, tuple(refs), outs, dtypes, number))

    def _sizes(self, value: g.Value) -> tuple[int, ...] | None:
        """Registers of the sizes of what a body gives; -1 for one that is known when it has run."""
        own = {n for n, s in self.graph.symbols.items() if s.value is value}
        return None if value.shape is None else tuple(-1 if own & dims.symbols(s) else self.sizes.register(s) for s in value.dims)

    def _procedure(self, body: g.Body) -> int:
        self.procedures.append(body)
        return len(self.procedures) - 1

    def _steps(self, action: Action, number: int) -> None:
        assert action.build is not None
        side = self.sides[action.side]
        first = len(side.step_kernels)
        for step in action.build.steps:
            self._step(side, action, step, number)
        last = len(side.step_kernels)
        previous = self.segments[-1] if self.segments else None
        if isinstance(previous, p.Run) and previous.side == action.side and previous.last == first:
            self.segments[-1] = p.Run(action.side, previous.first, last)
        elif last > first:
            self.segments.append(p.Run(action.side, first, last))

    def _step(self, side: p.Side, action: Action, step: Step, number: int) -> None:
        side.step_kernels.append(self._kernel(side, action.side, step.kernel))
        side.step_words.append(len(side.word_bases))
        side.step_tasks.append(self.sizes.register(step.tasks))
        side.step_nodes.append(number)
        side.step_threads.append(step.threads)
        side.step_shared.append(self.sizes.register(step.shared))
        for arg in step.args:
            base, register = self._word(action, arg)
            side.word_bases.append(base)
            side.word_registers.append(register)

    def _kernel(self, side: p.Side, name: str, kernel: Kernel) -> int:
        key = (name, (kernel.name, kernel.language, kernel.key))
        if key not in self.kernels:
            self.kernels[key] = len(side.kernels)
            side.kernels.append(kernel)
        return self.kernels[key]

    def _word(self, action: Action, arg: Arg) -> tuple[int, int]:
        if not isinstance(arg, Ref):
            return 0, self.sizes.register(arg)
        sources, targets = action.places
        match arg.space:
            case "in": place, value = sources[arg.number], action.node.inputs[arg.number]
            case "out": place, value = targets[arg.number], action.node.outputs[arg.number]
            case "extra":
                node: Any = action.node
                k = len(sources) - node.operands + arg.number
                place, value = sources[k], node.inputs[k]
            case "work": return self._pointer(action.work[arg.number], arg.offset)
            case "packed": return self._pointer(action.packed[arg.number], arg.offset)
            case _: raise ModelError(f"a kernel of {action.node.origins} refers to {arg.space!r}")
        return self._pointer(place.buffer, place.offset * types.size(value.dtype) + arg.offset)


def _short(text: str) -> str:
    """Long sizes are for explain(), not for an error."""
    return text if len(text) <= 120 else text[:100] + "..."


def _bytes(value: g.Value) -> Dim:
    total: Dim = types.size(value.dtype)
    for s in value.dims:
        total = total * s
    return total
