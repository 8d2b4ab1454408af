"""The body of mersenne, compiled by Numba."""
from __future__ import annotations

from typing import Any

from numba import uint32
from numba.extending import register_jitable

from gpuonnx.kernels.cpu.pointers import pointer

doubles, ints, words_at = pointer("f64"), pointer("i64"), pointer("u32")
SIZE, SHIFT = 624, 397


@register_jitable
def seeded(state: Any, seed: Any) -> None:
    state[0] = uint32(seed & 0xFFFFFFFF)
    for i in range(1, SIZE):
        before = state[i - 1]
        state[i] = uint32(1812433253 * (before ^ (before >> 30)) + i)


@register_jitable
def twisted(state: Any) -> None:
    """The next 624 words."""
    for i in range(SIZE):
        mixed = (state[i] & uint32(0x80000000)) | (state[(i + 1) % SIZE] & uint32(0x7FFFFFFF))
        state[i] = state[(i + SHIFT) % SIZE] ^ (mixed >> uint32(1)) ^ (uint32(0x9908B0DF) * (mixed & uint32(1)))


@register_jitable
def tempered(y: Any) -> Any:
    y = uint32(y ^ (y >> uint32(11)))
    y = uint32(y ^ ((y << uint32(7)) & uint32(0x9D2C5680)))
    y = uint32(y ^ ((y << uint32(15)) & uint32(0xEFC60000)))
    return uint32(y ^ (y >> uint32(18)))


def run(context: Any, words: Any, task: Any) -> None:
    out, state, count, step = doubles(words[1]), words_at(words[2]), words[3], words[4]
    seeded(state, ints(words[0])[0])
    place = SIZE
    for k in range(count):
        if place == SIZE:
            twisted(state)
            place = 0
        high, low = tempered(state[place]) >> uint32(5), tempered(state[place + 1]) >> uint32(6)
        place += 2
        out[k * step] = (high * 67108864.0 + low) / 9007199254740992.0
