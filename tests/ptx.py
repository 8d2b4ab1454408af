"""A second oracle for CUDA kernels: runs the PTX that NVRTC emits, inline assembly included, each thread of a block a lane of NumPy arrays.

Lanes run in lock-step, the lowest program counter first, so races are not seen (the emulator looks for those); bounds are checked, and a
barrier or warp operation that some lanes miss is an error. An instruction that is not known raises NotImplementedError.
"""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import ptx_collective
import ptx_scalar
from ptx_text import Entry, Instruction

TYPES = {"u8": np.uint8, "s8": np.int8, "b8": np.uint8, "u16": np.uint16, "s16": np.int16, "b16": np.uint16, "f16": np.float16, "u32": np.uint32,
         "s32": np.int32, "b32": np.uint32, "f32": np.float32, "u64": np.uint64, "s64": np.int64, "b64": np.uint64, "f64": np.float64}
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
ADDRESS = re.compile(r"\[\s*([\w%$.]+)\s*(?:\+\s*(-?\w+))?\s*\]")
WINDOW = 1 << 40


class PtxError(Exception):
    """A kernel did what the machine forbids."""


class Memory:
    """Global memory: arrays at addresses, with unused bytes between them."""

    def __init__(self) -> None:
        self.bytes = np.full(1 << 12, 0xCB, np.uint8)
        self.top = 1 << 10
        self.spans: list[tuple[int, int]] = []

    def empty(self, nbytes: int) -> int:
        """The address of a new span."""
        address = self.top
        self.top = (address + nbytes + 511) & ~255
        if self.top > self.bytes.size:
            self.bytes = np.concatenate([self.bytes, np.full(self.top, 0xCB, np.uint8)])
        self.spans.append((address, address + nbytes))
        return address

    def inside(self, addresses: np.ndarray, size: int) -> np.ndarray:
        ok = np.zeros(addresses.shape, np.bool_)
        for low, high in self.spans:
            ok |= (addresses >= low) & (addresses + size <= high)
        return ok


class Block:
    """One block of a launch."""

    def __init__(self, entry: Entry, memory: Memory, parameters: dict[str, int], block: int, grid: int, threads: int, dynamic: int) -> None:
        self.entry, self.memory, self.parameters, self.threads = entry, memory, parameters, threads
        self.shared = np.full(entry.shared_bytes + dynamic, 0xFF, np.uint8)
        self.registers: dict[str, np.ndarray] = {}
        self.pcs = np.zeros(threads, np.int64)
        lanes = np.arange(threads, dtype=np.uint32)
        self.special = {"%tid.x": lanes, "%ctaid.x": np.full(threads, block, np.uint32), "%ntid.x": np.full(threads, threads, np.uint32),
                        "%nctaid.x": np.full(threads, grid, np.uint32), "%laneid": lanes & 31}
        self.copies: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[]]
        self.instructions = 0

    def run(self) -> None:
        code, end = self.entry.code, len(self.entry.code)
        pc = 0
        with np.errstate(all="ignore"):
            while pc < end:
                active = np.flatnonzero(self.pcs == pc)
                self.instructions += 1
                self.step(code[pc], pc, active)
                pc = int(self.pcs.min())
        if any(self.copies):
            raise PtxError("the block ended with cp.async copies it never waited for")

    def step(self, i: Instruction, pc: int, active: np.ndarray) -> None:
        self.at = i
        lanes = active
        if i.guard is not None:
            held = self.register(i.guard)[active] != i.negated
            lanes = active[held]
        if i.name == "bra":
            self.pcs[active] = pc + 1
            self.pcs[lanes] = self.entry.labels[i.operands[0]]
            return
        self.pcs[active] = pc + 1
        if i.name in ("ret", "exit"):
            self.pcs[lanes] = len(self.entry.code)
        elif lanes.size:
            self.lanes = lanes
            self.execute(i)

    def execute(self, i: Instruction) -> None:
        own = OWN.get(i.name)
        if own is not None:
            own(self, i)
            return
        collective = ptx_collective.FUNCTIONS.get(i.name)
        if collective is not None:
            collective(self, i)
        else:
            ptx_scalar.execute(self, i)

    # registers and operands
    def register(self, name: str) -> np.ndarray:
        if name not in self.registers:
            kind = self.entry.class_of(name)
            self.registers[name] = np.zeros(self.threads, np.bool_ if kind == "pred" else RAW[np.dtype(TYPES[kind]).itemsize])
        return self.registers[name]

    def read(self, operand: str, dtype: Any) -> np.ndarray:
        """An operand of the active lanes as `dtype`: the low bits of a register, an immediate, a symbol."""
        if operand.startswith("!"):
            return ~self.read(operand[1:], dtype)
        if operand in self.special:
            return self.special[operand][self.lanes].astype(dtype)
        if operand in self.entry.shared:
            return np.full(self.lanes.size, self.entry.shared[operand], dtype)
        if not operand.startswith("%") and operand not in self.entry.classes:
            return np.full(self.lanes.size, immediate(operand, np.dtype(dtype)))
        value = self.register(operand)[self.lanes]
        if value.dtype == np.bool_:
            return value
        size = np.dtype(dtype).itemsize
        return (value if value.dtype.itemsize == size else value.astype(RAW[size])).view(dtype)

    def write(self, operand: str, value: np.ndarray) -> None:
        if operand == "_":
            return
        register = self.register(operand)
        if register.dtype == np.bool_:
            register[self.lanes] = value
            return
        value = np.ascontiguousarray(value)
        size = register.dtype.itemsize
        if value.dtype.itemsize != size:
            value = value.astype({"i": {2: np.int16, 4: np.int32, 8: np.int64}, "u": RAW}[value.dtype.kind][size])
        register[self.lanes] = value.view(register.dtype)

    def addresses(self, operand: str) -> np.ndarray:
        m = ADDRESS.fullmatch(operand)
        if m is None:
            raise NotImplementedError(self.at.text)
        offset = int(m[2], 0) if m[2] else 0
        if m[1] in self.entry.shared:
            return np.full(self.lanes.size, self.entry.shared[m[1]] + offset, np.int64)
        wide = self.entry.class_of(m[1]) == "b64"
        return self.read(m[1], np.uint64 if wide else np.uint32).astype(np.int64) + offset

    # memory
    def place(self, addresses: np.ndarray, size: int, space: str) -> tuple[np.ndarray, np.ndarray]:
        """(bytes, positions in them); raises PtxError outside of allocations or where misaligned."""
        shared = space == "shared" or bool((addresses >= WINDOW).all())
        where = addresses - (WINDOW if shared and space != "shared" else 0)
        ok = (where >= 0) & (where + size <= self.shared.size) if shared else self.memory.inside(where, size)
        if not ok.all() or (where % size).any():
            lane = int(self.lanes[np.flatnonzero(~ok | (where % size != 0))[0]])
            raise PtxError(f"{self.at.text}: {'shared' if shared else 'global'} access of thread {lane} is out of bounds or misaligned")
        return (self.shared if shared else self.memory.bytes), where

    def load(self, addresses: np.ndarray, dtype: Any, space: str) -> np.ndarray:
        size = np.dtype(dtype).itemsize
        data, where = self.place(addresses, size, space)
        return data[where[:, None] + np.arange(size)].view(dtype).reshape(-1)

    def store(self, addresses: np.ndarray, value: np.ndarray, space: str) -> None:
        size = value.dtype.itemsize
        data, where = self.place(addresses, size, space)
        data[where[:, None] + np.arange(size)] = np.ascontiguousarray(value).view(np.uint8).reshape(-1, size)


def immediate(text: str, dtype: np.dtype) -> Any:
    if text.startswith(("0f", "0F")):
        return np.uint32(int(text[2:], 16)).view(np.float32)
    if text.startswith(("0d", "0D")):
        return np.uint64(int(text[2:], 16)).view(np.float64)
    bits = int(text, 0) & (1 << 8 * dtype.itemsize) - 1
    return np.array([bits], RAW[dtype.itemsize]).view(dtype)[0]


def vector(operand: str) -> list[str]:
    return [o.strip() for o in operand.strip("{}").split(",")]


def type_of(i: Instruction) -> Any:
    return TYPES[next(p for p in reversed(i.op) if p in TYPES)]


def space_of(i: Instruction) -> str:
    return next((p for p in i.op if p in ("global", "shared", "param")), "generic")


def _load(block: Block, i: Instruction) -> None:
    dtype = type_of(i)
    if space_of(i) == "param":
        name = i.operands[1].strip("[] ")
        block.write(i.operands[0], np.full(block.lanes.size, block.parameters[name], dtype))
        return
    targets, addresses = vector(i.operands[0]), block.addresses(i.operands[1])
    size = np.dtype(dtype).itemsize
    block.place(addresses, size * len(targets), space_of(i))
    found = [block.load(addresses + k * size, dtype, space_of(i)) for k in range(len(targets))]
    for target, value in zip(targets, found, strict=True):
        block.write(target, value)


def _store(block: Block, i: Instruction) -> None:
    dtype, sources, addresses = type_of(i), vector(i.operands[1]), block.addresses(i.operands[0])
    size = np.dtype(dtype).itemsize
    block.place(addresses, size * len(sources), space_of(i))
    for k, source in enumerate(sources):
        block.store(addresses + k * size, block.read(source, dtype), space_of(i))


def _async(block: Block, i: Instruction) -> None:
    """cp.async: the target is unknown from here to the wait for its group. Groups are those of all threads, which commit together."""
    match i.op[2]:
        case "commit_group":
            _together(block, i)
            block.copies.append([])
        case "wait_group":
            _together(block, i)
            while len(block.copies) - 1 > int(i.operands[0]):
                for spots, data, shared in block.copies.pop(0):
                    shared[spots] = data
        case "ca" | "cg":
            to, source, size = block.addresses(i.operands[0]), block.addresses(i.operands[1]), int(i.operands[2])
            count = block.read(i.operands[3], np.int32).astype(np.int64) if len(i.operands) > 3 else np.full(to.size, size)
            shared, where = block.place(to, size, "shared")
            given = count > 0
            if ((source % size)[given]).any() or not all(block.memory.inside(source[given], 1)) or not all(
                    block.memory.inside((source + count - 1)[given], 1)):
                raise PtxError(f"{i.text}: a source is out of bounds or misaligned")
            spots, data = where[:, None] + np.arange(size), np.zeros((to.size, size), np.uint8)
            kept = np.arange(size) < count[:, None]
            data[kept] = block.memory.bytes[(source[:, None] + np.arange(size))[kept]]
            shared[spots] = 0xFF
            block.copies[-1].append((spots, data, shared))
        case _: raise NotImplementedError(i.text)


def _together(block: Block, i: Instruction) -> None:
    if block.lanes.size != block.threads:
        raise PtxError(f"{i.text}: by some threads only, which is not modelled")


def _barrier(block: Block, i: Instruction) -> None:
    alive = int((block.pcs < len(block.entry.code)).sum())
    if i.op[1] == "sync" and block.lanes.size != alive:
        raise PtxError(f"{block.lanes.size} of {alive} threads are at the barrier")


OWN = {"ld": _load, "st": _store, "bar": _barrier, "cp": _async}


def launch(entry: Entry, memory: Memory, grid: int, threads: int, dynamic: int, parameters: list[int]) -> int:
    """Run all blocks, one after another; answers with the number of instructions taken."""
    named = {name: value for (name, _), value in zip(entry.parameters, parameters, strict=True)}
    total = 0
    for number in range(grid):
        block = Block(entry, memory, named, number, grid, threads, dynamic)
        block.run()
        total += block.instructions
    return total
