"""Host functions of com.microsoft on text: tokens and hashes."""
from __future__ import annotations

import re
from typing import Any

import numpy as np

from gpuonnx.runtime.host import host_function, texts
from gpuonnx.runtime.host_ml import HOST_FUNCTIONS as HOST_FUNCTIONS

START, END = "\x02", "\x03"
WORD = 0xFFFFFFFF


@host_function("tokenizer")
def tokenizer(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """attrs: separators, expression, least, padding, mark."""
    x, separators = texts(arrays[0]), attrs["separators"]
    if attrs["expression"] is not None:
        matching = re.compile(attrs["expression"])
        found = [[m.group() for m in matching.finditer(s)] for s in x.ravel()]
    elif separators == ("",):
        found = [list(s) for s in x.ravel()]
    else:
        between = re.compile("|".join(f"(?:{s})" for s in separators))
        found = [between.split(s) for s in x.ravel()]
    rows = [[token for token in tokens if len(token) >= max(attrs["least"], 1)] for tokens in found]
    if attrs["mark"]:
        rows = [[START, *row, END] for row in rows]
    out = np.full((x.size, max(map(len, rows), default=0)), attrs["padding"], object)
    for place, row in zip(out, rows, strict=True):
        place[:len(row)] = row
    return [out.reshape(*x.shape, -1) if x.size else out.reshape(*x.shape, 0)]


@host_function("murmur_hash")
def murmur_hash(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """attrs: seed, positive."""
    x = np.asarray(arrays[0])
    items = [s.encode("utf-8", "surrogateescape") for s in texts(x).ravel()] if x.dtype.hasobject else [v.tobytes() for v in x.ravel()]
    hashes = np.array([murmur(item, attrs["seed"]) for item in items], np.uint32).reshape(x.shape)
    return [hashes if attrs["positive"] else hashes.view(np.int32)]


def murmur(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 (Appleby, public domain)."""
    def mixed(k: int) -> int:
        return turned(k * 0xCC9E2D51 & WORD, 15) * 0x1B873593 & WORD
    h, whole = seed & WORD, len(data) // 4 * 4
    for k in range(0, whole, 4):
        h = (turned(h ^ mixed(int.from_bytes(data[k:k + 4], "little")), 13) * 5 + 0xE6546B64) & WORD
    h ^= mixed(int.from_bytes(data[whole:], "little")) ^ len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> shift) * factor & WORD
    return h ^ h >> 16


def turned(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & WORD
