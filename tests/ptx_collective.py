"""PTX instructions that the lanes of a warp execute together: shuffles, votes, ldmatrix, mma. All lanes of the block's warps take part."""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ptx import Block
    from ptx_text import Instruction

LANE = np.arange(32)
GROUP, QUAD = LANE >> 2, LANE & 3


def _warps(block: Block, i: Instruction) -> int:
    """How many warps take part; raises PtxError where one is not whole."""
    from ptx import PtxError
    if block.lanes.size % 32 or (block.lanes.reshape(-1, 32) != block.lanes[::32, None] + LANE).any():
        raise PtxError(f"{i.text}: some lanes of a warp are missing")
    return block.lanes.size // 32


def _shuffle(block: Block, i: Instruction) -> None:
    _warps(block, i)
    value = block.read(i.operands[1], np.uint32).reshape(-1, 32)
    by = block.read(i.operands[2], np.int32).reshape(-1, 32)
    mode = next(p for p in i.op if p in ("bfly", "idx", "up", "down"))
    source = {"bfly": LANE ^ by, "idx": by & 31, "up": LANE - by, "down": LANE + by}[mode]
    source = np.where((source < 0) | (source > 31), LANE, source)
    block.write(i.operands[0].split("|")[0], np.take_along_axis(value, source, 1).reshape(-1))


def _vote(block: Block, i: Instruction) -> None:
    warps = _warps(block, i)
    if "ballot" not in i.op:
        raise NotImplementedError(i.text)
    held = block.read(i.operands[1], np.bool_).reshape(warps, 32).astype(np.uint32)
    block.write(i.operands[0], np.repeat((held << LANE.astype(np.uint32)).sum(1, dtype=np.uint32), 32))


def _matrices(block: Block, i: Instruction) -> None:
    """ldmatrix.m8n8.x4[.trans].b16"""
    from ptx import vector
    warps = _warps(block, i)
    data, where = block.place(block.addresses(i.operands[1]), 16, "shared")
    rows = data[where[:, None] + np.arange(16)].view(np.uint16).reshape(warps, 4, 8, 8)
    if "trans" in i.op:
        rows = rows.swapaxes(2, 3)
    words = np.ascontiguousarray(rows).view(np.uint32).reshape(warps, 4, 32)
    for k, target in enumerate(vector(i.operands[0])):
        block.write(target, words[:, k].reshape(-1))


def _floats(words: np.ndarray, kind: str) -> np.ndarray:
    """[..., words] of 32 bits to [..., 2 words] floats."""
    halves = np.ascontiguousarray(words).view(np.uint16)
    return halves.view(np.float16).astype(np.float32) if kind == "f16" else (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bytes(words: np.ndarray, kind: str) -> np.ndarray:
    return np.ascontiguousarray(words).view(np.int8 if kind == "s8" else np.uint8).astype(np.int32)


def _product(block: Block, i: Instruction) -> None:
    """mma.m16n8k16 of halves into float32, mma.m16n8k32 of bytes into int32."""
    from ptx import vector
    warps = _warps(block, i)
    left, right = i.op[-3], i.op[-2]
    halves = left in ("f16", "bf16")
    if i.op[3] != ("m16n8k16" if halves else "m16n8k32"):
        raise NotImplementedError(i.text)
    sum_type, wide, per = (np.float32, _floats, 2) if halves else (np.int32, _bytes, 4)
    d, a, b, c = (vector(o) for o in i.operands)
    parts = [wide(block.read(r, np.uint32).reshape(warps, 32, 1), left) for r in a]
    columns = [wide(block.read(r, np.uint32).reshape(warps, 32, 1), right) for r in b]
    x, y = np.zeros((warps, 16, 8 * per), sum_type), np.zeros((warps, 8 * per, 8), sum_type)
    for k in range(per):
        for r in range(4):
            x[:, GROUP + (r & 1) * 8, QUAD * per + k + (r >> 1) * 4 * per] = parts[r][:, :, k]
        for r in range(2):
            y[:, QUAD * per + k + r * 4 * per, GROUP] = columns[r][:, :, k]
    product = x @ y
    for r in range(4):
        total = product[:, GROUP + (r >> 1) * 8, QUAD * 2 + (r & 1)].reshape(-1)
        block.write(d[r], total + block.read(c[r], sum_type))


FUNCTIONS: dict[str, Callable[[Any, Any], None]] = {"shfl": _shuffle, "vote": _vote, "ldmatrix": _matrices, "mma": _product}
