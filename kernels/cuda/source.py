"""Hand-written CUDA texts. `<name>.cu` holds device functions `void f(ix* ctx, const ix* args)`, templates of types and flags; a
kernel is the text and an entry point that calls one of them."""
from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from gpuonnx.kernels.contract import Kernel

HERE = Path(__file__).parent


def kernel(name: str, function: str, *parameters: str | int, threads: int = 256, parts: tuple[str, ...] = ()) -> Kernel:
    """`function<parameters>` of `<name>.cu`, for blocks of `threads`; `parts` are files whose text comes before."""
    texts = (*parts, f"{name}.cu")
    key = (texts, function, parameters, threads)
    return Kernel(f"{name}_{function}", key, "cuda", partial(_text, texts, function, parameters, threads))


def _text(texts: tuple[str, ...], function: str, parameters: tuple[str | int, ...], threads: int, symbol: str) -> str:
    chosen = f"<{', '.join(map(str, parameters))}>" if parameters else ""
    entry = f'extern "C" __global__ void __launch_bounds__({threads}, 1) {symbol}(ix* ctx, const ix* args) {{ {function}{chosen}(ctx, args); }}\n'
    return "".join(map(_read, texts)) + entry


@cache
def _read(name: str) -> str:
    return (HERE / name).read_text()
