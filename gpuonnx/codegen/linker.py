"""Loads x86-64 ELF objects without LLVM: sections into one mapping, absolute relocations, names from libm and libc.

Our objects are compiled for the large code model, so that every relocation is R_X86_64_64 (System V ABI, AMD64 supplement).
Anything else is refused with `Unlinkable`, and LLVM's own loader does it.
"""
from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

ALLOCATED, RELOCATIONS, SYMBOLS, EMPTY = 2, 4, 2, 8
ABSOLUTE_64 = 1
PAGE = 4096


class Unlinkable(Exception):
    """An object that this loader does not understand."""


class Section(NamedTuple):
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


def sections(obj: bytes) -> list[Section]:
    if obj[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", obj, 18)[0] != 62:
        raise Unlinkable("no object for x86-64")
    (start,), (size, count) = struct.unpack_from("<Q", obj, 0x28), struct.unpack_from("<HH", obj, 0x3A)
    out = []
    for k in range(count):
        _, kind, flags, _, offset, length, link, info, align, _ = struct.unpack_from("<IIQQQQIIQQ", obj, start + k * size)
        out.append(Section(kind, flags, offset, length, link, info, max(align, 1)))
    return out


@cache
def external(name: str) -> int:
    """The address of a function of libm or libc."""
    for library in ("libm.so.6", None):
        try:
            function = getattr(ctypes.CDLL(library), name, None)
        except OSError:
            continue
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    raise Unlinkable(f"no library has {name}")


_mappings: list[mmap.mmap] = []


def link(objects: Mapping[str, bytes]) -> dict[str, int]:
    """Addresses of the entry points; all objects lie in one executable mapping that stays. Raises Unlinkable."""
    if platform.machine() not in ("x86_64", "AMD64") or not hasattr(mmap, "PROT_EXEC"):
        raise Unlinkable("no x86-64 machine")
    parsed = {symbol: (obj, sections(obj)) for symbol, obj in objects.items()}
    places: dict[tuple[str, int], int] = {}
    end = 0
    for symbol, (_, table) in parsed.items():
        for number, section in enumerate(table):
            if section.flags & ALLOCATED:
                end = -(-end // section.align) * section.align
                places[symbol, number] = end
                end += section.size
    try:
        room = mmap.mmap(-1, max(end, PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        raise Unlinkable(f"no memory: {error}") from error
    base = ctypes.addressof(ctypes.c_char.from_buffer(room))
    found = {}
    for symbol, (obj, table) in parsed.items():
        for number, section in enumerate(table):
            if section.flags & ALLOCATED and section.kind != EMPTY:
                at = places[symbol, number]
                room[at:at + section.size] = obj[section.offset:section.offset + section.size]
        names = _relocate(room, base, symbol, obj, table, places)
        if symbol not in names:
            raise Unlinkable(f"the object does not define {symbol}")
        found[symbol] = names[symbol]
    if _protect(base, max(end, PAGE)):
        raise Unlinkable("memory cannot be made executable")
    _mappings.append(room)
    return found


def _relocate(room: mmap.mmap, base: int, symbol: str, obj: bytes, table: list[Section], places: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """Apply the relocations of one object; its defined names and their addresses."""
    values: list[int] = []
    names: dict[str, int] = {}
    for section in table:
        if section.kind == SYMBOLS:
            texts = table[section.link]
            for at in range(section.offset, section.offset + section.size, 24):
                name, _, _, where, value, _ = struct.unpack_from("<IBBHQQ", obj, at)
                first = texts.offset + name
                text = obj[first:obj.index(b"\0", first)].decode() if name else ""
                if where == 0:
                    values.append(external(text) if text else 0)
                elif (symbol, where) in places:
                    values.append(base + places[symbol, where] + value)
                    names[text] = values[-1]
                else:
                    values.append(value)
    for section in table:
        if section.kind == RELOCATIONS and (symbol, section.info) in places:
            target = places[symbol, section.info]
            for offset, info, addend in struct.iter_unpack("<QQq", obj[section.offset:section.offset + section.size]):
                if info & 0xFFFFFFFF != ABSOLUTE_64:
                    raise Unlinkable(f"relocation of type {info & 0xFFFFFFFF}")
                struct.pack_into("<Q", room, target + offset, values[info >> 32] + addend & 0xFFFFFFFFFFFFFFFF)
    return names


def _protect(address: int, size: int) -> int:
    """Readable and executable, no longer writable; 0 if that worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return int(libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC))
