"""Compiled variants on disk, so that a warm load lowers nothing and imports neither onnx nor numba.

A variant is one blob: a pickle of plain data, then the constants it reads, aligned. Kernels stand in it by the digest of their
object code, procedures by what a caller must know of them; their nodes come back from the model if they are needed after all.
"""
from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from gpuonnx.codegen.cache import PACKAGE, KernelCache, fingerprint, generator, kernel_digest, kernel_symbol, stamps
from gpuonnx.importer.procedure import Argument, Environment, InputInfo, Procedure
from gpuonnx.ir.dims import Space
from gpuonnx.kernels.contract import Kernel
from gpuonnx.planner.program import Program

FORMAT = 4
PAGE = 64
LENGTHS = struct.Struct("<QQ")
MOST_VARIANTS = 16
SMALL_ARRAY = 64


@dataclass(frozen=True)
class SavedKernel:
    """A kernel known by the digest of its object code."""

    name: str
    language: str
    digest: str
    symbol: str


@dataclass
class Compiled:
    """One compiled variant as plain data. `questions` are the slots of the program that computes the key's answers;
    `texts` (the IR, for explain) stay in this process."""

    questions: list[tuple[str, Any]]
    answers: list[tuple[int, int | float]]
    key_text: str
    sources: dict[str, tuple[int, int | None, int | None]]
    shapes: list[tuple[int | str, ...] | None]
    program: Program
    arguments: Sequence[Argument]
    rest: Procedure | None
    texts: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What names this variant among those of its procedure, in every process."""
        return fingerprint(self.key_text, self.shapes, [a.dtype for a in self.arguments])[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "texts": {}}


@dataclass(frozen=True)
class Header:
    """What a session says of its model before anything is compiled."""

    name: str
    inputs: tuple[InputInfo, ...]
    outputs: tuple[str, ...]
    output_infos: tuple[InputInfo, ...]
    external: dict[str, tuple[int, int]]
    defaults: tuple[InputInfo, ...] = ()


_held: WeakValueDictionary[tuple[str, str], Compiled] = WeakValueDictionary()


@cache
def code_stamp() -> bytes:
    """Another gpuonnx makes other programs: what `generator` says, and the stamps of all other sources."""
    return generator() + str(PACKAGE).encode() + stamps(PACKAGE, ".", below=True)


def session_key(digest: str, device: str, options: Any) -> str:
    """The fingerprint of everything that decides what a session compiles."""
    from gpuonnx.codegen.native import host
    machine = host()
    return fingerprint("session", FORMAT, digest, device, repr(options), code_stamp(), machine.cpu, machine.features)


class Pickler(pickle.Pickler):
    """Arrays go to the end of the blob, kernels to the kernel cache, procedures lose their nodes."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=5)
        self.arrays: list[np.ndarray] = []
        self.offsets: dict[int, int] = {}
        self.end = 0

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject and value.nbytes > SMALL_ARRAY:
            return ("array", self._offset(value), value.dtype, value.shape)
        if isinstance(value, Kernel):
            digest = kernel_digest(value)
            return ("kernel", value.name, value.language, digest, kernel_symbol(value, digest))
        if isinstance(value, Procedure):
            return ("procedure", value.name, value.inputs, value.outputs, value.output_infos)
        return "space" if isinstance(value, Space) else None

    def _offset(self, value: np.ndarray) -> int:
        if id(value) not in self.offsets:
            self.offsets[id(value)] = self.end
            self.arrays.append(value)
            self.end += -(-value.nbytes // PAGE) * PAGE
        return self.offsets[id(value)]


class Unpickler(pickle.Unpickler):
    """The other way round; arrays are read-only views of the blob."""

    def __init__(self, file: Any, data: np.ndarray) -> None:
        super().__init__(file)
        self.data = data

    def persistent_load(self, pid: Any) -> Any:
        if pid == "space":
            return Space()
        kind, *rest = pid
        if kind == "array":
            offset, dtype, shape = rest
            count = prod(shape) * dtype.itemsize
            return self.data[offset:offset + count].view(dtype).reshape(shape)
        if kind == "kernel":
            return SavedKernel(*rest)
        return cold(*rest)


def cold(name: str, inputs: tuple[InputInfo, ...], outputs: tuple[str, ...], infos: tuple[InputInfo, ...],
         defaults: tuple[InputInfo, ...] = ()) -> Procedure:
    """A procedure without its nodes."""
    return Procedure(name, (), inputs, outputs, {}, Environment({}), infos, cold=True, defaults=defaults)


def dumps(saved: Any) -> memoryview:
    """One blob: lengths, pickle, arrays."""
    text = io.BytesIO()
    pickler = Pickler(text)
    pickler.dump(saved)
    head = text.getvalue()
    start = -(-(LENGTHS.size + len(head)) // PAGE) * PAGE
    out = bytearray(start + pickler.end)
    LENGTHS.pack_into(out, 0, len(head), start)
    out[LENGTHS.size:LENGTHS.size + len(head)] = head
    for value in pickler.arrays:
        at = start + pickler.offsets[id(value)]
        out[at:at + value.nbytes] = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    return memoryview(out).toreadonly()


def loads(blob: Any) -> Any:
    """What `dumps` was given; raises ValueError for a blob of another format."""
    try:
        length, start = LENGTHS.unpack_from(blob, 0)
        data = aligned(np.frombuffer(blob, np.uint8)[start:])
        data.flags.writeable = False
        return Unpickler(io.BytesIO(bytes(blob[LENGTHS.size:LENGTHS.size + length])), data).load()
    except (struct.error, pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError) as error:
        raise ValueError(f"the blob cannot be read: {error}") from error


def aligned(data: np.ndarray) -> np.ndarray:
    """The same bytes at an address that vector loads like."""
    if data.ctypes.data % PAGE == 0:
        return data
    room = np.empty(data.size + PAGE, np.uint8)
    at = -room.ctypes.data % PAGE
    room[at:at + data.size] = data
    return room[at:at + data.size]


class Library:
    """The saved variants of one session, by the path of their procedure (`main`, `main/<identity>/rest`,
    `main/<identity>/body 1`...)."""

    def __init__(self, cache: KernelCache, key: str) -> None:
        self.cache, self.key = cache, key

    def _blob(self, *parts: Any) -> str:
        return fingerprint("variant", self.key, *parts)

    def header(self) -> Header | None:
        blob = self.cache.get(self._blob("header"))
        try:
            found = None if blob is None else loads(blob)
        except ValueError:
            return None
        return found if isinstance(found, Header) and unchanged(found.external) else None

    def keep_header(self, header: Header) -> None:
        self.cache.put(self._blob("header"), dumps(header))

    def variants(self, path: str) -> list[Compiled]:
        """All that are kept for a path, oldest first."""
        found: list[Compiled] = []
        for number in range(MOST_VARIANTS):
            made = self._variant(self._blob(path, number))
            if made is None:
                break
            found.append(made)
        return found

    def _variant(self, key: str) -> Compiled | None:
        """What was kept under a key: the same object as long as a session of this process holds it."""
        where = str(self.cache.folder), key
        made = _held.get(where)
        if made is None:
            blob = self.cache.get(key)
            try:
                made = None if blob is None else loads(blob)
            except ValueError:
                return None
            if made is not None:
                _held[where] = made
        return made

    def keep(self, path: str, number: int, saved: Compiled) -> None:
        """Store a variant; one that cannot be written as plain data stays in memory only."""
        if number >= MOST_VARIANTS:
            return
        try:
            blob = dumps(saved)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
            return
        self.cache.put(self._blob(path, number), blob, LENGTHS.unpack_from(blob)[1])


def unchanged(external: dict[str, tuple[int, int]]) -> bool:
    """Whether external data files still have the size and time they had."""
    return all(stamp_of(path) == stamp for path, stamp in external.items())


def stamp_of(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


def named_shape(shape: tuple[Any, ...] | None) -> tuple[int | str, ...] | None:
    """An input's shape with symbols by name."""
    return None if shape is None else tuple(x if isinstance(x, int) else str(x) for x in shape)
