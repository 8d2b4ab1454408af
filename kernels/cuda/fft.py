"""Call "fft": x [A, M, C, P] -> y [A, K, C, Q], float32 or float64: a Fourier transform along the second axis for each a and c.

P, Q: 2 (real and imaginary part) or 1 (real). Plain: M points, of whose bins the first K are kept. attrs inverse: the other sign and 1 / M;
hermitian (with inverse): x has the first bins of a spectrum of K points that is its own conjugate backwards. A table of roots, then one
block a row; the factors of the length are found when it runs.
"""
from __future__ import annotations

from gpuonnx.ir.dims import dmax, lt, select
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Build, Ref, Spec, Step
from gpuonnx.kernels.cuda.expression import TAGS
from gpuonnx.kernels.cuda.passes import grid
from gpuonnx.kernels.cuda.source import kernel

THREADS = 256
SHARED = 40 << 10


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in ("f32", "f64") else "Fourier transforms compute in float32 or float64"


def build(call: Spec) -> Build:
    """Inverses compute in the type of x, the others in float64."""
    x, y = call.inputs[0], call.outputs[0]
    assert x is not None
    inverse, hermitian = int(bool(call.attrs["inverse"])), int(bool(call.attrs.get("hermitian", 0)))
    work = x.dtype if inverse else "f64"
    points, rows = y.shape[1] if hermitian else x.shape[1], x.shape[0] * x.shape[2]
    number = 2 * size(work)
    room = 2 * points * number
    fits = lt(room, SHARED + 1)
    args = (Ref("in", 0), Ref("out", 0), Ref("work", 0), Ref("work", 1), rows, points, x.shape[1], y.shape[1], x.shape[2], *x.strides, *y.strides,
            inverse, hermitian, x.shape[3], y.shape[3], fits)
    steps = (Step(kernel("fft", "tabulate", TAGS[work], threads=THREADS), args, grid(points), THREADS),
             Step(kernel("fft", "transform", TAGS[x.dtype], TAGS[work], threads=THREADS), args, rows, THREADS, select(fits, room, 0)))
    return Build(steps, (dmax(points, 0) * number, select(fits, 0, rows * room)))
