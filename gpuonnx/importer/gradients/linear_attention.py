"""The derivative of linear attention: that of the Loop over one step (`LinearStep`) that says the same as the kernel."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.importer.control import info_of
from gpuonnx.importer.procedure import Environment, InputInfo, Procedure
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Tensor, builder, full, size_scalar
from gpuonnx.ops.gradient import Adjoint, derivative, fitted, reverse
from gpuonnx.ops.registry import INTERNAL

NAMES = ("q", "k", "v", "state", "factors", "rates")
STEPS = {"q": 2, "k": 2, "v": 2, "factors": 2, "rates": 2}
"""The axis of time of what a step reads a row of."""


@derivative("linear_attention")
def of_linear_attention(node: g.Call, outs: Sequence[Adjoint]) -> Sequence[Adjoint]:
    """What is differentiated is computed again there."""
    owner, absent = builder(), node.attrs.get("absent", ())
    names = [n for k, n in enumerate(NAMES) if k not in absent]
    inputs = {n: Tensor(v, owner) for n, v in zip(names, node.inputs, strict=True)}
    y, last = node.outputs
    state = inputs["state"] if "state" in inputs else full(last.dims, 0, last.dtype)
    rows = {n: inputs[n].transpose([axis, *(a for a in range(inputs[n].rank) if a != axis)]) for n, axis in STEPS.items() if n in inputs}
    length = rows["q"].shape[0]
    made = (g.Value(last.dtype, last.shape), g.Value(y.dtype, (length, y.dims[0], *y.dims[2:])))
    values = (size_scalar(length), state, *rows.values())
    owner.add(g.Loop(tuple(t.value for t in values), made, body=step(state, rows, y.rank - 1), carried=1, has_condition=False, origins=owner.origins))
    results = [Tensor(made[1], owner).transpose([1, 0, 2, 3]), Tensor(made[0], owner)]
    seeds = [None if t is None else fitted(t, r) for t, r in zip(outs, results, strict=True)]
    given = [inputs[n] for n in names]
    return reverse(results, seeds, given, len(given))


def step(state: Tensor, rows: dict[str, Tensor], rank: int) -> Procedure:
    """One step; carries the state, scans what it says."""
    from onnx import helper
    origin = builder().origin
    nodes = [helper.make_node("Row", [n, "number"], [f"row_{n}"], name=origin, domain=INTERNAL) for n in rows]
    reads = [f"row_{n}" if n in rows else "" for n in STEPS]
    nodes.append(helper.make_node("LinearStep", ["before", *reads], ["after", "said"], name=origin, domain=INTERNAL))
    infos = [InputInfo("number", "i64", ()), InputInfo("going", "bool", ()), info_of("before", state), *(info_of(n, t) for n, t in rows.items())]
    outputs = [InputInfo("going", "bool", ()), InputInfo("after", state.dtype, (None,) * 4), InputInfo("said", state.dtype, (None,) * rank)]
    return Procedure(f"{origin}/step", tuple(nodes), tuple(infos), tuple(o.name for o in outputs), {}, Environment({}), tuple(outputs))
