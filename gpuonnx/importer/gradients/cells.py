"""The derivatives of recurrent cells: those of the Loop over one turn (`ops/recurrent_step.py`) that says the same as the kernel."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuonnx.errors import UnsupportedOp
from gpuonnx.importer.control import info_of
from gpuonnx.importer.procedure import Environment, InputInfo, Procedure
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Tensor, builder, concat, full, size_scalar, tensor_map
from gpuonnx.ir.expr import Expr, cast, const, dim, guard
from gpuonnx.ir.formula import less, maximum, minimum
from gpuonnx.kernels.cpu.recurrent import DIRECTIONS, FUNCTIONS
from gpuonnx.ops.gradient import Adjoint, derivative, fitted, reverse
from gpuonnx.ops.recurrent import count_of
from gpuonnx.ops.registry import INTERNAL

NAMES = ("gates", "r", "h", "c", "peepholes", "extra", "lens", "scales")
LSTM = ("number", "row", "r", "functions", "h", "c", "peepholes", "extra", "lens")


@derivative("rnn")
@derivative("gru")
@derivative("lstm")
def of_cell(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """A Loop for each direction; what is differentiated is computed again there."""
    if node.attrs.get("quantized_state"):
        raise UnsupportedOp("its state goes through 8 bits, a function of steps")
    owner, absent = builder(), node.attrs.get("absent", ())
    names = [n for k, n in enumerate(NAMES) if k not in absent]
    inputs = {n: Tensor(v, owner) for n, v in zip(names, node.inputs, strict=False)}
    lens = inputs.pop("lens", None)
    columns = zip(*(directed(node, d, inputs, lens) for d in range(count_of(node.attrs["direction"]))), strict=True)
    made = [concat([t.unsqueeze([axis]) for t in column], axis) for axis, column in zip((1, 0, 0), columns, strict=False)]
    given = [*inputs.values(), *([] if lens is None else [lens])]
    seeds = [None if t is None else fitted(t, y) for t, y in zip(outs, made, strict=True)]
    found = dict(zip(inputs, reverse(made, seeds, given, len(inputs)), strict=True))
    return [found.get(n) for n in names]


def directed(node: g.Call, direction: int, inputs: dict[str, Tensor], lens: Tensor | None) -> tuple[Tensor, ...]:
    """y [T, B, H] and the last states [B, H] of one direction."""
    gates, r = inputs["gates"], inputs["r"].slice(0, direction, 1).squeeze([0])
    length, batch, size = gates.shape[0], gates.shape[1], r.shape[1]
    backwards = DIRECTIONS.index(node.attrs["direction"]) == 1 or direction == 1

    def turns(b: Expr) -> Expr:
        if lens is None:
            return dim(length)
        return minimum(maximum(cast(lens.at(b), "ix"), dim(0)), dim(length))

    def other(n: Expr, b: Expr) -> Expr:
        """The time of a turn, and the turn of a time."""
        return turns(b) - 1 - n if backwards else n

    def mine(n: Expr, b: Expr, j: Expr) -> Expr:
        return guard(less(n, turns(b)), gates.at(other(n, b), b, j + dim(r.shape[0] * direction)), const(0, gates.dtype))

    captures = {"rows": tensor_map((length, batch, r.shape[0]), gates.dtype, mine), "r": r}
    captures |= {n: inputs[n].slice(0, direction, 1).squeeze([0]) for n in ("peepholes", "extra") if n in inputs}
    if lens is not None:
        captures["lens"] = lens
    state = {n: inputs[n].slice(0, direction, 1).squeeze([0]) if n in inputs else full((batch, size), 0, gates.dtype)
             for n in ("h", "c")[:1 + (node.kernel == "lstm")]}
    values = [size_scalar(length), *state.values(), *captures.values()]
    made = tuple(g.Value(gates.dtype, shape) for shape in (*((batch, size) for _ in state), (length, batch, size)))
    builder().add(g.Loop(tuple(t.value for t in values), made, body=body(node, direction, state, captures), carried=len(state), has_condition=False,
                         origins=builder().origins))
    *last, stack = (Tensor(v, builder()) for v in made)

    def placed(t: Expr, b: Expr, j: Expr) -> Expr:
        return guard(less(t, turns(b)), stack.at(other(t, b), b, j), const(0, stack.dtype))
    return tensor_map(stack.shape, stack.dtype, placed), *last


def body(node: g.Call, direction: int, state: dict[str, Tensor], captures: dict[str, Tensor]) -> Procedure:
    """One turn; carries the states, scans h."""
    from onnx import helper
    count = FUNCTIONS[node.kernel]
    functions = [*node.attrs["activations"][direction * count:(direction + 1) * count], (0, node.attrs.get("clip", 0.0), 0)]
    known = {"number", "row", "functions", *state, *captures}
    flags: dict[str, Any] = {n: int(node.attrs.get(n, 0)) for n in ("linear_before_reset", "input_forget")}
    new = [f"new_{n}" for n in state]
    origin = builder().origin
    nodes = (helper.make_node("Row", ["rows", "number"], ["row"], name=origin, domain=INTERNAL),
             helper.make_node("RecurrentStep", [n if n in known else "" for n in LSTM], new, name=origin, domain=INTERNAL, cell=node.kernel, **flags))
    infos = [InputInfo("number", "i64", ()), InputInfo("going", "bool", ())]
    infos += [InputInfo(n, t.dtype, (None, None)) for n, t in state.items()] + [info_of(n, t) for n, t in captures.items()]
    outputs = ("going", *new, "new_h")
    shapes = [(), *((None, None) for _ in outputs[1:])]
    return Procedure(f"{origin}/turn", nodes, tuple(infos), outputs, {"functions": np.array(functions, np.float64)}, Environment({}),
                     tuple(InputInfo(o, "bool" if o == "going" else node.out.dtype, s) for o, s in zip(outputs, shapes, strict=True)))
