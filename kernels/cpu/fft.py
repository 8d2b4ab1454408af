"""Call "fft": x [A, M, C, P] -> y [A, K, C, Q], float32 or float64: a Fourier transform along the second axis for each a and c.

P, Q: 2 (real and imaginary part) or 1 (real). Plain: M points, of whose bins the first K are kept. attrs inverse: the other sign and
1 / M; hermitian (with inverse): x has the first bins of a spectrum of K points that is its own conjugate backwards (missing ones
count as 0).

Inverses compute in the type of x, the others in float64, so that both round as NumPy's do.

The factors are found when it runs, so that a new length compiles nothing: a step that makes the table of roots, then transforms.
A length with a large prime factor becomes a convolution (Bluestein, 1970).
"""
from __future__ import annotations

from dataclasses import dataclass

from gpuonnx.ir import dims as d
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Arg, Build, Kernel, Ref, Spec, Step

TYPES = ("f32", "f64")
MOST_TASKS = 16
PLAN_WORDS = 80
MOST_TOGETHER = 4096
STACK = 1 << 19


@dataclass(frozen=True)
class Form:
    """What is compiled in: the type of x and y, that of all numbers in between, the words of `args`."""

    dtype: str
    work: str
    names: tuple[str, ...]


def supports(call: Spec) -> str | None:
    x = call.inputs[0]
    return None if x is not None and x.dtype in TYPES else "Fourier transforms compute in float32 or float64"


def build(call: Spec) -> Build:
    """A task's room, on its stack where that does, is two arrays of complex numbers, each of two planes: of one row, or, where that takes
    little, of a row a lane."""
    from gpuonnx.kernels.cpu.micro import lanes_of
    x, y = call.inputs[0], call.outputs[0]
    assert x is not None
    hermitian, work = int(bool(call.attrs.get("hermitian", 0))), x.dtype if call.attrs["inverse"] else "f64"
    unit, lanes = size(work), lanes_of(work)
    points = d.dmax(y.shape[1] if hermitian else x.shape[1], 0)
    length = d.floordiv(points * 5, 2) + 16
    plane = d.dmax(lanes * d.dmin(length, MOST_TOGETHER), length * 2) + lanes * lanes
    room = plane * 4 * unit
    far = d.lt(STACK, room)
    rows = x.shape[0] * x.shape[2]
    tasks = d.dmin(rows, MOST_TASKS)
    args: dict[str, Arg] = {
        "x": Ref("in", 0), "y": Ref("out", 0), "plan": Ref("work", 0), "table": Ref("work", 1), "room": Ref("work", 2), "rows": rows,
        "points": points, "have": x.shape[1], "kept": y.shape[1], "inner": x.shape[2], "tasks": tasks, "inverse": call.attrs["inverse"],
        "hermitian": hermitian, "x.parts": x.shape[3], "y.parts": y.shape[3], "plane": plane * unit, "far": far,
        **{f"{name}.{axis}": step for name, layout in (("x", x), ("y", y)) for axis, step in zip("akcp", layout.strides, strict=True)}}
    form = Form(x.dtype, work, (*args, "planned"))

    def make(symbol: str) -> str:
        from gpuonnx.kernels.cpu.fft_code import Fourier
        return Fourier(form).text(symbol)
    kernel = Kernel("fft", (form,), "llvm", make)
    steps = tuple(Step(kernel, (*args.values(), planned), count) for planned, count in ((0, 1), (1, tasks)))
    return Build(steps, (PLAN_WORDS * 8, (length * 4 + points * 2) * unit, d.select(far, d.dmax(tasks, 1), 1) * room))
