"""One turn of a recurrent cell as ordinary IR: what the kernels of `recurrent.py` repeat."""
from __future__ import annotations

from collections.abc import Callable

from gpuonnx.ir.build import Tensor, cast, tensor_map, where
from gpuonnx.ir.formula import absolute, exp, greater, less, log, maximum, minimum, relu, select, sigmoid, tanh
from gpuonnx.kernels.cpu.recurrent import CODES
from gpuonnx.ops.matmul import matrix_product, transposed
from gpuonnx.ops.registry import INTERNAL, Const, op

Function = Callable[[Tensor, float, float], Tensor]
FUNCTIONS: dict[str, Function] = {
    "Relu": lambda x, alpha, beta: relu(x),
    "Tanh": lambda x, alpha, beta: tanh(x),
    "Sigmoid": lambda x, alpha, beta: sigmoid(x),
    "Affine": lambda x, alpha, beta: x * alpha + beta,
    "LeakyRelu": lambda x, alpha, beta: where(less(x, 0), x * alpha, x),
    "ThresholdedRelu": lambda x, alpha, beta: where(greater(x, alpha), x, x * 0),
    "ScaledTanh": lambda x, alpha, beta: tanh(x * beta) * alpha,
    "HardSigmoid": lambda x, alpha, beta: minimum(maximum(x * alpha + beta, 0), 1),
    "Elu": lambda x, alpha, beta: where(less(x, 0), (exp(minimum(x, 0)) - 1) * alpha, x),
    "Softsign": lambda x, alpha, beta: x / (absolute(x) + 1),
    "Softplus": lambda x, alpha, beta: where(less(x, 30), log(exp(minimum(x, 30)) + 1), x)}


@op("RecurrentStep", domain=INTERNAL)
def recurrent_step(number: Tensor, gates: Tensor, r: Tensor, functions: Const, h: Tensor, c: Tensor | None = None, peepholes: Tensor | None = None,
                   extra: Tensor | None = None, lens: Tensor | None = None, *, cell: str, linear_before_reset: int = 0,
                   input_forget: int = 0) -> tuple[Tensor, ...]:
    """The states [B, H] after turn `number`, from the gates of the input [B, gates * H] and r [gates * H, H]. functions: a row (code, alpha,
    beta) for each, then (0, clip, 0); lens: turns of each batch entry, whose states then stay."""
    limit = float(functions[-1, 1])

    def f(which: int, x: Tensor, clipped: bool = True) -> Tensor:
        code, alpha, beta = functions[which]
        x = minimum(maximum(x, -limit), limit) if limit > 0 and clipped else x
        return FUNCTIONS[CODES[int(code)]](x, float(alpha), float(beta))
    old: tuple[Tensor, ...] = (h,) if c is None else (h, c)
    new: tuple[Tensor, ...]
    if c is not None:
        new = lstm_step(f, gates, r, h, c, peepholes, bool(input_forget))
    elif cell == "gru":
        new = (gru_step(f, gates, r, h, extra, bool(linear_before_reset)),)
    else:
        new = (f(0, gates + times(h, r)),)
    if lens is None:
        return new
    going = tensor_map(lens.shape, "bool", lambda b: less(number.at(), cast(lens.at(b), "i64")))
    return tuple(tensor_map(n.shape, n.dtype, lambda b, j, n=n, o=o: select(going.at(b), n.at(b, j), o.at(b, j)))
                 for n, o in zip(new, old, strict=True))


def times(h: Tensor, r: Tensor) -> Tensor:
    return matrix_product(h, transposed(r))


def gate(t: Tensor, k: int, size: object) -> Tensor:
    return t.slice(t.rank - 1, size * k, size)  # type: ignore[operator,arg-type]


def gru_step(f: Callable[..., Tensor], gates: Tensor, r: Tensor, h: Tensor, extra: Tensor | None, linear_before_reset: bool) -> Tensor:
    """gates z, r, h."""
    size = h.shape[1]
    both = gates.slice(1, 0, size * 2) + times(h, r.slice(0, 0, size * 2))
    z, reset, last = f(0, gate(both, 0, size)), f(0, gate(both, 1, size)), r.slice(0, size * 2, size)
    if linear_before_reset:
        inner = times(h, last) if extra is None else times(h, last) + extra
        new = f(1, gate(gates, 2, size) + reset * inner)
    else:
        new = f(1, gate(gates, 2, size) + times(reset * h, last))
    return (1 - z) * new + z * h


def lstm_step(f: Callable[..., Tensor], gates: Tensor, r: Tensor, h: Tensor, c: Tensor, peepholes: Tensor | None,
              input_forget: bool) -> tuple[Tensor, Tensor]:
    """gates i, o, f, c; peepholes i, o, f."""
    size = h.shape[1]
    whole = gates + times(h, r)
    i, o, forget, new = (gate(whole, k, size) for k in range(4))
    if peepholes is not None:
        i, forget = i + gate(peepholes, 0, size) * c, forget + gate(peepholes, 2, size) * c
    i = f(0, i)
    forget = 1 - i if input_forget else f(0, forget)
    cell = forget * c + i * f(1, new)
    if peepholes is not None:
        o = o + gate(peepholes, 1, size) * cell
    return f(0, o) * f(2, cell, False), cell
