"""com.microsoft: text. Everything runs in Python."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Spec, Tensor, host
from gpuonnx.ops.microsoft import microsoft
from gpuonnx.ops.text import WHY


@microsoft("Tokenizer")
def tokenizer(x: Tensor, *, mark: int, mincharnum: int, pad_value: str, separators: Sequence[str] | None = None,
              tokenexp: str | None = None) -> Any:
    """The tokens of each string on a new last axis, padded; `mark` puts U+0002 before and U+0003 behind them.

    The tokens are what matches `tokenexp`, or what lies between the `separators` (an empty one: single characters)."""
    if bool(separators) == bool(tokenexp):
        raise ModelError("Tokenizer takes separators or tokenexp, one of the two")
    out: Any = Spec("str", (*x.shape, None))  # type: ignore[arg-type]
    return host("tokenizer", x, out=out, why=WHY, mark=bool(mark), least=mincharnum, padding=pad_value,
                separators=tuple(separators or ()), expression=tokenexp)


@microsoft("MurmurHash3")
def murmur_hash(x: Tensor, *, positive: int = 1, seed: int = 0) -> Any:
    """MurmurHash3_x86_32 of each element's bytes, as u32 or (`positive` 0) i32."""
    out = Spec("u32" if positive else "i32", x.shape)
    return host("murmur_hash", x, out=out, why="hashes are computed in Python", seed=seed, positive=bool(positive))
