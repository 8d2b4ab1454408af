"""What changes from turn to turn in a linked part: sizes that follow from values or from what the last turn made, with the addresses,
tasks and checks that hang on them. A native step binds them; Python only makes room."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuonnx.ir.sizes import OPCODES
from gpuonnx.kernels.cpu import control
from gpuonnx.kernels.cpu.executor import encode_sizes, real_word
from gpuonnx.planner import program as p
from gpuonnx.planner.program import HOST
from gpuonnx.runtime.address import address
from gpuonnx.runtime.frame import ALIGNMENT

if TYPE_CHECKING:
    from gpuonnx.runtime.link import Linker
    from gpuonnx.runtime.parts import Part

Axis = tuple[int, int]


class Unlinkable(Exception):
    """Why a procedure does not run natively; `later`: it may, once what is missing has been run."""

    def __init__(self, why: str, later: bool = False) -> None:
        super().__init__(why)
        self.later = later


def moved_registers(program: p.Program, moved: Collection[int]) -> list[bool]:
    """Which registers hang on some symbols (by register)."""
    out: list[bool] = []
    for number, (op, arg) in enumerate(program.slots):
        out.append(number in moved if op in ("sym", "const", "f.const") else any(out[r] for r in arg))
    return out


def changing_axes(program: p.Program, registers: np.ndarray, carried: int) -> set[Axis]:
    """The axes of carried inputs, by input number, whose sizes are not handed on: those that hang on others that change count too."""
    known = {o: shape for s in program.segments if isinstance(s, (p.Branch, p.Repeat)) for o, shape in zip(s.outputs, s.shapes, strict=True)}
    pairs = []
    for ref, made in zip(program.inputs[2:2 + carried], program.outputs[1:1 + carried], strict=True):
        shape = known.get(made.object) if made.object >= 0 else made.shape
        pairs.append((ref.shape, shape if shape is not None and len(shape) == len(ref.shape) else (-1,) * len(ref.shape)))
    changing: set[Axis] = set()
    while True:
        moved = moved_registers(program, moved_symbols(program, changing, range(2 + carried)))
        found = {(2 + k, axis) for k, (ins, outs) in enumerate(pairs) for axis, (i, o) in enumerate(zip(ins, outs, strict=True))
                 if o != i and (o < 0 or moved[o] or registers[i] != registers[o])}
        if found <= changing:
            return changing
        changing |= found


def moved_symbols(program: p.Program, changing: Collection[Axis], values: Collection[int]) -> set[int]:
    """Registers of the symbols that are read again every turn: sizes of `changing` axes, elements of inputs among `values`."""
    return {s.register for s in program.symbols if (s.input, s.axis) in changing or s.axis is None and s.input in values}


class Moving:
    """The native binding of one part."""

    def __init__(self, linker: Linker, part: Part, changing: Collection[Axis], known: Mapping[int, np.ndarray]) -> None:
        """known: inputs whose values stay. Writes the rows that bind; the part's steps follow them."""
        self.part, self.linker, loaded = part, linker, part.variant.loaded
        program, frame, side = loaded.program, part.frame, loaded.program.sides[HOST]
        values = set(range(len(program.inputs))) - set(known)
        self.extra: list[list[int]] = []
        self.moved = moved_registers(program, moved_symbols(program, changing, values))
        self.grown = moved_registers(program, moved_symbols(program, changing, ()))
        self.free = len(frame.registers)
        self.registers = np.concatenate([frame.registers, np.zeros(16 * len(program.outputs), np.int64)])
        self.size_words = {axis: linker.words(1) for axis in changing}
        self._questions(changing, known)
        self.at, self.block = linker.words(control.BIND_WORDS)
        linker.row(linker.steps["bind"], self.at)
        self.symbols = self._symbols([(s.register, s.input, s.axis, s.element) for s in program.symbols if self.moved[s.register]])
        self.checks = [[c.register, control.ZERO if c.equal else control.NOT_NEGATIVE, 0] for c in loaded.checks[0]]
        arena = side.arena_registers[0]
        self.arena = self.limit(arena, max(frame.arenas[0].size - ALIGNMENT, 0)) if self.moved[arena] else -1

    def _symbols(self, wanted: Sequence[tuple[int, int, int | None, int | None]]) -> np.ndarray:
        rows = []
        for register, number, axis, element in wanted:
            if axis is not None:
                rows.append([register, self.size_words[number, axis][0], 0, control.SIZE])
                continue
            port = self.part.inputs[number]
            word, _ = self.linker.words(1)
            port.lead([(word, 0)])
            kind = "u8" if port.dtype == np.bool_ else f"{port.dtype.kind}{8 * port.dtype.itemsize}"
            if kind not in control.READS:
                raise Unlinkable(f"its sizes hang on values of {port.dtype}")
            rows.append([register, word, (element or 0) * port.dtype.itemsize, control.READS.index(kind)])
        return np.array(rows, np.int64).reshape(-1, 4)

    def _questions(self, changing: Collection[Axis], known: Mapping[int, np.ndarray]) -> None:
        """What the variant was chosen by, where that may change: another answer refuses."""
        compiled = self.part.variant.compiled
        if not any((n, axis) in changing or axis is None and n not in known for n, axis, _ in compiled.sources.values()):
            return
        ops, registers, names = encode_sizes(self.part.variant.questions)
        wanted = []
        for name, register in names.items():
            number, axis, element = compiled.sources[name]
            if (number, axis) in changing or axis is None and number not in known:
                wanted.append((register, number, axis, element))
            elif axis is not None:
                registers[register] = (self.part.inputs[number].shape or ())[axis]
            else:
                item = known[number].ravel()[element or 0]
                registers[register] = real_word(float(item)) if item.dtype.kind == "f" else int(item)
        answers = [[r, control.EQUAL, real_word(a) if isinstance(a, float) else int(a)] for r, a in compiled.answers]
        at, block = self.linker.words(control.BIND_WORDS)
        self._tables(block, self._symbols(wanted), ops, registers, np.array(answers, np.int64))
        self.linker.row(self.linker.steps["bind"], at)

    def _tables(self, block: np.ndarray, symbols: np.ndarray, ops: np.ndarray, registers: np.ndarray, checks: np.ndarray) -> None:
        self.linker.keep += [symbols, ops, registers, checks]
        block[control.SYMBOLS:control.REGISTERS + 1] = len(symbols), address(symbols), address(ops), len(ops), address(registers)
        block[control.CHECKS:control.TASKS] = len(checks), address(checks)

    def bytes_of(self, shape: Sequence[int], itemsize: int) -> int:
        """A register with the bytes of a tensor of these size registers."""
        product = self._next()
        self.registers[product] = itemsize
        for register in shape:
            self.extra.append([OPCODES.index("*"), self._next(), product, register, 0])
            product = self.free - 1
        return product

    def _next(self) -> int:
        self.free += 1
        return self.free - 1

    def limit(self, register: int, most: int = 0) -> int:
        """Refuse where a register is more than `most`; the number of this check."""
        self.checks.append([register, control.AT_MOST, most])
        return len(self.checks) - 1

    def stays(self, registers: Sequence[int]) -> None:
        """Sizes that the table counts on: where they hang on values, a turn with others is refused."""
        if any(self.grown[r] for r in registers):
            raise Unlinkable("what is copied or handed to a body inside grows from turn to turn")
        for r in registers:
            if self.moved[r] and [r, control.EQUAL, int(self.registers[r])] not in self.checks:
                self.checks.append([r, control.EQUAL, int(self.registers[r])])

    def close(self, steps: Sequence[tuple[int, int]]) -> None:
        """All checks are known. steps: (row of the table, register of its tasks)."""
        loaded, frame = self.part.variant.loaded, self.part.frame
        self.check_table = np.array(self.checks, np.int64).reshape(-1, 3)
        ops = np.array([*loaded.ops_of_epoch[0].tolist(), *self.extra], np.int64).reshape(-1, 5)
        self._tables(self.block, self.symbols, ops, self.registers, self.check_table)
        tasks = np.array(steps, np.int64).reshape(-1, 2)
        self.linker.keep += [tasks, self]
        self.block[control.TASKS:control.TASKS + 2] = len(tasks), address(tasks)
        self.linker.tables.append((self.block, control.TABLE))
        host = loaded.host
        self.block[control.WORDS:control.WORDS + 5] = (host.word_count, frame.words_address, frame.bases_address, host.bases_address,
                                                       host.registers_address)

    def most(self, check: int, value: int) -> None:
        self.check_table[check, 2] = value
        self.block[control.VALID] = 0

    def lacks(self, check: int) -> int:
        """How many bytes a check asked for, if they were too many, else 0."""
        register, _, most = self.check_table[check]
        need = int(self.registers[register])
        return need if need > most else 0

    def grow(self) -> bool:
        """Make room in the arena, if that is what was missing."""
        need = self.lacks(self.arena) if self.arena >= 0 else 0
        if not need or not self.linker.may(2 * need):
            return False
        arena = np.empty(2 * need + ALIGNMENT, np.uint8)
        self.part.frame.arenas[0] = arena
        self.part.arena.fix(-(-address(arena) // ALIGNMENT) * ALIGNMENT)
        self.most(self.arena, 2 * need)
        return True


class Growing:
    """A carried value whose size changes: its two buffers are made larger where the next turn would not fit."""

    def __init__(self, moving: Moving, check: int, number: int, block: np.ndarray, place: int) -> None:
        """place: of the two addresses in the Loop's block."""
        self.moving, self.check, self.number, self.block, self.place = moving, check, number, block, place
        self.buffers: list[np.ndarray] = []
        self.make(1 << 12)

    def make(self, count: int) -> None:
        self.buffers = [np.empty(count + ALIGNMENT, np.uint8) for _ in range(2)]
        self.block[self.place:self.place + 2] = [-(-address(b) // ALIGNMENT) * ALIGNMENT for b in self.buffers]
        self.moving.most(self.check, count)

    def grow(self) -> bool:
        need = self.moving.lacks(self.check)
        if not need or not self.moving.linker.may(4 * need):
            return False
        self.make(2 * need)
        return True

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """The shape now of what had the shape `before`."""
        words = self.moving.size_words
        return tuple(int(words[self.number, a][1][0]) if (self.number, a) in words else s for a, s in enumerate(before))

    def within(self, shape: tuple[int, ...], given: tuple[int, ...]) -> tuple[int, ...]:
        """`shape` with the sizes that change as `given` has them."""
        return tuple(g if (self.number, a) in self.moving.size_words else s for a, (s, g) in enumerate(zip(shape, given, strict=True)))

    def begin(self, value: np.ndarray) -> None:
        """The sizes that the first turn starts with."""
        for (number, axis), (_, word) in self.moving.size_words.items():
            if number == self.number:
                word[0] = value.shape[axis]
