"""Call "linear_attention": q [B, H, T, K], k [B, N, T, K], v [B, N, T, E], then (each may be absent) the state before [B, N, K, E], factors of
the state [B, N, T, K], rates [B, N, T]; all float32. Outputs y [B, T, H, E] and the state after.

At each t the state S is multiplied by its factors; with rates, v becomes rate * (v - S^T k); S gains k v^T; the H / N query heads of a state
read S^T q. A task takes COLUMNS columns of one state through time: no column needs another.
"""
from __future__ import annotations

from importlib import import_module

from gpuonnx.ir.dims import Dim, floordiv
from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Ref, Spec, Step

COLUMNS = 32
ROWS_BESIDE = 2


def supports(call: Spec) -> str | None:
    given = [t for t in (*call.inputs, *call.outputs) if t is not None]
    return None if all(t.dtype == "f32" for t in given) else "linear attention computes in float32"


def arguments(call: Spec) -> tuple[Arg, ...]:
    """Addresses of the inputs and outputs (0: absent), sizes T, K, E, N, H / N, then the strides of each in that order."""
    inputs: list[Layout | None] = list((*call.inputs, *[None] * 3)[:6])
    q, k, v = inputs[:3]
    assert q is not None and k is not None and v is not None
    addresses: list[Arg] = [0 if t is None else Ref("in", number) for number, t in enumerate(inputs)]
    strides: list[Dim] = []
    for t, rank in zip([*inputs, *call.outputs], (4, 4, 4, 4, 4, 3, 4, 4), strict=True):
        strides += [0] * rank if t is None else t.strides
    sizes = (q.shape[2], q.shape[3], v.shape[3], k.shape[1], floordiv(q.shape[1], k.shape[1]))
    return (*addresses, Ref("out", 0), Ref("out", 1), *sizes, *strides)


def blocks(call: Spec, columns: int) -> Dim:
    """How many groups of columns there are in all states."""
    v = call.inputs[2]
    assert v is not None
    found: Dim = v.shape[0] * v.shape[1] * floordiv(v.shape[3] + columns - 1, columns)
    return found


def build(call: Spec) -> Build:
    k, tasks = call.inputs[1], blocks(call, COLUMNS)
    assert k is not None
    kernel = Kernel("linear_attention", (), "numba", _code)
    return Build((Step(kernel, (*arguments(call), Ref("work", 0)), tasks),), (tasks * (k.shape[3] + ROWS_BESIDE) * COLUMNS * 4,))


def _code(symbol: str) -> object:
    return import_module("gpuonnx.kernels.cpu.linear_attention_code").kernel()
