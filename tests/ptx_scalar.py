"""PTX instructions that each thread executes for itself."""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ptx import Block
    from ptx_text import Instruction

WIDER = {"i2": np.int32, "u2": np.uint32, "i4": np.int64, "u4": np.uint64}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "lo": np.less,
    "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal, "equ": np.equal, "neu": np.not_equal, "ltu": np.less, "leu": np.less_equal,
    "gtu": np.greater, "geu": np.greater_equal}
LOGIC: dict[str, Callable[[Any, Any], Any]] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
REAL: dict[str, Callable[[Any], Any]] = {
    "ex2": np.exp2, "lg2": np.log2, "rcp": lambda x: 1 / x, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh}


def execute(block: Block, i: Instruction) -> None:
    found = FUNCTIONS.get(i.name)
    if found is None:
        raise NotImplementedError(i.text)
    found(block, i)


def _type(i: Instruction) -> Any:
    from ptx import type_of
    return type_of(i)


def _flushed(i: Instruction, x: np.ndarray) -> np.ndarray:
    """-ftz=true: denormals of float32 are zeros."""
    if "ftz" in i.op and x.dtype == np.float32:
        return np.where(np.abs(x) < np.float32(2.0 ** -126), np.copysign(np.float32(0), x), x)
    return x


def _inputs(block: Block, i: Instruction, dtype: Any, first: int = 1) -> list[np.ndarray]:
    return [_flushed(i, block.read(o, dtype)) for o in i.operands[first:]]


def _result(block: Block, i: Instruction, value: np.ndarray, dtype: Any) -> None:
    block.write(i.operands[0], _flushed(i, value.astype(dtype)))


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "f":
        return x / y
    safe = np.where(y == 0, y.dtype.type(1), y)
    q = x // safe
    return q + ((q < 0) & (q * safe != x)) if x.dtype.kind == "i" else q


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x - _divided(x, y) * y


BINARY: dict[str, Callable[[Any, Any], Any]] = {"add": np.add, "sub": np.subtract, "min": np.fmin, "max": np.fmax, "div": _divided, "rem": _remainder}


def _binary(block: Block, i: Instruction) -> None:
    dtype = _type(i)
    _result(block, i, BINARY[i.name](*_inputs(block, i, dtype)), dtype)


def _multiply(block: Block, i: Instruction) -> None:
    """mul and mad: lo, hi, wide, or of floats."""
    dtype = _type(i)
    x, y = (block.read(o, dtype) for o in i.operands[1:3])
    if np.dtype(dtype).kind == "f":
        _fused(block, i)
        return
    if "wide" in i.op:
        wide = WIDER[np.dtype(dtype).str[1:]]
        value = x.astype(wide) * y.astype(wide)
    elif "hi" in i.op:
        value = _high(x, y)
    else:
        value = x * y
    if i.name == "mad":
        value = value + block.read(i.operands[3], value.dtype.type)
    block.write(i.operands[0], value)


def _high(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    return np.array([int(a) * int(b) >> bits & (1 << bits) - 1 for a, b in zip(x, y, strict=True)], np.dtype(f"u{x.dtype.itemsize}")).view(x.dtype)


def _fused(block: Block, i: Instruction) -> None:
    """mul.f, mad.f, fma: one rounding, by way of float64 for float32."""
    dtype = _type(i)
    x, y, *z = _inputs(block, i, dtype)
    exact = x.astype(np.float64) * y.astype(np.float64)
    if z:
        exact = exact + z[0].astype(np.float64)
    value = exact.astype(dtype)
    if "rm" in i.op:
        value = np.where(value > exact, np.nextafter(value, dtype(-np.inf)), value)
    _result(block, i, value, dtype)


def _logic(block: Block, i: Instruction) -> None:
    dtype = np.bool_ if i.op[-1] == "pred" else _type(i)
    block.write(i.operands[0], LOGIC[i.name](*(block.read(o, dtype) for o in i.operands[1:])))


def _not(block: Block, i: Instruction) -> None:
    block.write(i.operands[0], ~block.read(i.operands[1], np.bool_ if i.op[-1] == "pred" else _type(i)))


def _shift(block: Block, i: Instruction) -> None:
    dtype = _type(i)
    bits = 8 * np.dtype(dtype).itemsize
    value, by = block.read(i.operands[1], dtype), block.read(i.operands[2], np.uint32).astype(np.int64)
    capped = np.minimum(by, bits - 1).astype(dtype)
    if i.name == "shl":
        out = np.where(by < bits, value << capped, dtype(0))
    else:
        out = np.where((by < bits) | (np.dtype(dtype).kind == "i"), value >> capped, dtype(0))
    block.write(i.operands[0], out.astype(dtype))


def _unary(block: Block, i: Instruction) -> None:
    dtype = _type(i)
    x = _inputs(block, i, dtype)[0]
    _result(block, i, -x if i.name == "neg" else np.abs(x), dtype)


def _real(block: Block, i: Instruction) -> None:
    dtype = _type(i)
    _result(block, i, REAL[i.name](_inputs(block, i, dtype)[0].astype(np.float64)), dtype)


def _move(block: Block, i: Instruction) -> None:
    """mov; also between a register and the vector of its halves."""
    target, source = i.operands
    if i.op[-1] == "pred":
        block.write(target, block.read(source, np.bool_))
        return
    dtype = np.dtype(_type(i))
    if "{" not in target + source:
        block.write(target, block.read(source, dtype.type))
        return
    parts = target if "{" in target else source
    names = [o.strip() for o in parts.strip("{}").split(",")]
    part = np.dtype(f"u{dtype.itemsize // len(names)}").type
    if parts is target:
        whole = block.read(source, np.dtype(f"u{dtype.itemsize}").type).view(part).reshape(-1, len(names))
        for k, name in enumerate(names):
            block.write(name, whole[:, k])
    else:
        block.write(target, np.stack([block.read(n, part) for n in names], 1).view(np.dtype(f"u{dtype.itemsize}")).reshape(-1))


def _convert(block: Block, i: Instruction) -> None:
    from ptx import TYPES
    to, source = (np.dtype(TYPES[p]) for p in i.op if p in TYPES)
    x = _flushed(i, block.read(i.operands[1], source.type))
    if to.kind in "iu" and source.kind == "f":
        x = next(f for name, f in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)) if name in i.op)(x)
        info = np.iinfo(to)
        wide = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=2.0 ** 65, neginf=-2.0 ** 65)
        low, high = wide <= float(info.min), wide >= float(info.max)
        value = np.where(low, info.min, np.where(high, info.max, np.where(low | high, 0, wide).astype(to)))
    elif to.kind == "f" and source.kind == "f":
        rounding = next((f for name, f in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)) if name in i.op), None)
        value = rounding(x) if rounding is not None else x
        value = np.clip(np.nan_to_num(value), 0, 1) if "sat" in i.op else value
    else:
        value = x
    block.write(i.operands[0], _flushed(i, value.astype(to)))


def _compare(block: Block, i: Instruction) -> None:
    dtype = _type(i)
    x, y = (_flushed(i, block.read(o, dtype)) for o in i.operands[1:3])
    name = i.op[1]
    unordered = np.isnan(x) | np.isnan(y) if np.dtype(dtype).kind == "f" else np.zeros(x.shape, np.bool_)
    if name in ("nan", "num"):
        value = unordered == (name == "nan")
    else:
        value = COMPARE[name](x, y)
        value = value | unordered if name.endswith("u") and len(name) == 3 else value & ~unordered
    joined = next((p for p in i.op if p in LOGIC), None)
    block.write(i.operands[0], value if joined is None else LOGIC[joined](value, block.read(i.operands[3], np.bool_)))


def _select(block: Block, i: Instruction) -> None:
    dtype = _type(i)
    x, y = (block.read(o, dtype) for o in i.operands[1:3])
    block.write(i.operands[0], np.where(block.read(i.operands[3], np.bool_), x, y))


def _copysign(block: Block, i: Instruction) -> None:
    dtype = _type(i)
    sign, value = (block.read(o, dtype) for o in i.operands[1:])
    block.write(i.operands[0], np.copysign(value, sign))


def _insert(block: Block, i: Instruction) -> None:
    """bfi.b32 d, a, b, at, length: bits of a into b."""
    a, b, at, length = (block.read(o, np.uint32).astype(np.uint64) for o in i.operands[1:])
    mask = (np.uint64(1) << length) - np.uint64(1) << at
    block.write(i.operands[0], ((b & ~mask) | (a << at & mask)).astype(np.uint32))


def _permute(block: Block, i: Instruction) -> None:
    """prmt.b32 in its default mode."""
    a, b, selector = (block.read(o, np.uint32) for o in i.operands[1:])
    pool = np.concatenate([a[:, None].view(np.uint8), b[:, None].view(np.uint8)], 1)
    out = np.zeros((a.size, 4), np.uint8)
    for k in range(4):
        nibble = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = np.take_along_axis(pool, (nibble & 7).astype(np.int64)[:, None], 1)[:, 0]
        out[:, k] = np.where(nibble & 8, np.where(byte & 128, 255, 0), byte)
    block.write(i.operands[0], out.view(np.uint32).reshape(-1))


def _dot(block: Block, i: Instruction) -> None:
    """dp4a.atype.btype d, a, b, c."""
    left, right = (np.int8 if p[0] == "s" else np.uint8 for p in i.op[1:3])
    a, b = block.read(i.operands[1], np.uint32), block.read(i.operands[2], np.uint32)
    products = a[:, None].view(left).astype(np.int64) * b[:, None].view(right)
    block.write(i.operands[0], (products.sum(1) + block.read(i.operands[3], np.int32)).astype(np.int32))


def _address(block: Block, i: Instruction) -> None:
    """cvta: the shared window lies at WINDOW of the generic addresses."""
    from ptx import WINDOW
    value = block.read(i.operands[1], np.uint64)
    if "shared" in i.op:
        value = value - np.uint64(WINDOW) if "to" in i.op else value + np.uint64(WINDOW)
    block.write(i.operands[0], value)


FUNCTIONS: dict[str, Callable[[Any, Any], None]] = {
    **dict.fromkeys(BINARY, _binary), **dict.fromkeys(LOGIC, _logic), **dict.fromkeys(REAL, _real), "mul": _multiply, "mad": _multiply,
    "fma": _fused, "not": _not, "shl": _shift, "shr": _shift, "neg": _unary, "abs": _unary, "mov": _move, "cvt": _convert, "setp": _compare,
    "selp": _select, "copysign": _copysign, "bfi": _insert, "prmt": _permute, "dp4a": _dot, "cvta": _address}
