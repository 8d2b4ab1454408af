"""Call "fft": x [A, M, C, P] -> y [A, K, C, Q], float32 or float64: a Fourier transform along the second axis for each a and c.

P, Q: 2 (real and imaginary part) or 1 (real). Plain: M points, of whose bins the first K are kept. attrs inverse: the other sign and
1 / M; hermitian (with inverse): x has the first bins of a spectrum of K points that is its own conjugate backwards (missing ones
count as 0).

Inverses compute in the type of x, the others in float64, so that both round as NumPy's do.

The factors are found when it runs, so that a new length compiles nothing: a step that makes the table of roots, then transforms.
A length with a large prime factor becomes a convolution (Bluestein, 1970).
"""
from __future__ import annotations

from functools import partial
from importlib import import_module

from gpuonnx.ir import dims as d
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Build, Kernel, Ref, Spec, Step

TYPES = ("f32", "f64")
MOST_TASKS = 16
PLAN_WORDS = 80


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in TYPES else "Fourier transforms compute in float32 or float64"


def cost(n: int) -> int:
    """About how many operations the factors of n take."""
    total, p, rest = 0, 2, n
    while p * p <= rest:
        while rest % p == 0:
            total, rest = total + (p if p <= 5 else p + p // 8), rest // p
        p += 1
    return (total + rest + rest // 8) * n


def padded(n: int) -> int:
    """The length of the convolution that does for `n` points, at most 5 / 2 of it; 0 where their own factors are cheaper."""
    if n < 50:
        return 0
    best = 0
    for first in (1, 3, 5, 9, 15):
        m = first
        while m < 2 * n - 1:
            m *= 2
        best = m if best == 0 or m < best else best
    return best if 3 * cost(best) < cost(n) else 0


def build(call: Spec) -> Build:
    x, y = call.inputs[0], call.outputs[0]
    assert x is not None
    hermitian, work = int(bool(call.attrs.get("hermitian", 0))), x.dtype if call.attrs["inverse"] else "f64"
    unit = size(work)
    points = y.shape[1] if hermitian else x.shape[1]
    length: Dim = (padded(points) or points) if isinstance(points, int) else d.floordiv(points * 5, 2) + 16
    rows = x.shape[0] * x.shape[2]
    tasks = d.dmin(rows, MOST_TASKS)
    plan = Kernel("fft_plan", (work,), "numba", partial(_code, "planner", (work,)))
    run = Kernel("fft", (x.dtype, work), "numba", partial(_code, "kernel", (x.dtype, work)))
    table, room = length * 4 + points * 2 + 8, length * 4 + 256
    args = (Ref("in", 0), Ref("out", 0), Ref("work", 0), Ref("work", 1), Ref("work", 2), rows, points, x.shape[1], y.shape[1], x.shape[2],
            *x.strides, *y.strides, tasks, call.attrs["inverse"], hermitian, x.shape[3], y.shape[3], room * unit, unit)
    steps = (Step(plan, (Ref("work", 0), Ref("work", 1), Ref("work", 2), points, unit), 1), Step(run, args, tasks))
    return Build(steps, (PLAN_WORDS * 8, table * unit, d.dmax(tasks, 1) * room * unit))


def _code(name: str, types: tuple[str, ...], symbol: str) -> object:
    return getattr(import_module("gpuonnx.kernels.cpu.fft_code"), name)(*types)
