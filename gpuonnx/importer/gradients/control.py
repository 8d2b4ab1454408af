"""The derivatives of If and Loop: their bodies with a Gradient behind them, as bodies of an If and a Loop that runs backwards."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import ModelError, ShapeError, UnsupportedOp
from gpuonnx.importer.control import info_of, made
from gpuonnx.importer.procedure import Argument, InputInfo, Procedure, free_names, is_tensor
from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Dim, NeedsRun, Tensor, builder, full, size_scalar, tensor_map
from gpuonnx.ir.expr import Expr, const, dim, guard
from gpuonnx.ir.formula import less
from gpuonnx.ir.sizes import evaluate
from gpuonnx.ir.types import compute, kind
from gpuonnx.ops.gradient import Adjoint, node_derivative
from gpuonnx.ops.gradient_nodes import Parts
from gpuonnx.ops.registry import INTERNAL
from gpuonnx.ops.sequence import sequence

if TYPE_CHECKING:
    import onnx


class Reversed:
    """A procedure under construction: the nodes of `body`, and names that it does not have."""

    def __init__(self, body: Procedure) -> None:
        names = {n for node in body.nodes for n in (*node.input, *node.output)} | set(body.input_names) | set(body.constants)
        prefixes = (f"gpuonnx.{k}." for k in range(len(names) + 1))
        self.prefix = next(p for p in prefixes if not any(n.startswith(p) for n in names))
        self.body, self.before, self.after, self.count = body, list[Any](), list[Any](), 0

    def name(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"

    def node(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
        from onnx import helper
        name = builder().origin.removeprefix(f"{op_type} ")
        return helper.make_node(op_type, list(inputs), [self.name() for _ in range(outputs)], name=name, domain=INTERNAL, **attributes)

    def row(self, stack: InputInfo, number: InputInfo, rank: int = 0, name: str | None = None) -> str:
        """What a turn left in a stack or sequence, from the last on, before the body's own nodes."""
        whole = is_tensor(stack.dtype)
        made_node = self.node("Row" if whole else "Element", [stack.name, number.name], **({"from_end": 1} if whole else {"rank": rank}))
        if name is not None:
            made_node.output[0] = name
        self.before.append(made_node)
        return str(made_node.output[0])

    def gradient(self, xs: Sequence[str], others: Sequence[str], ys: Sequence[str], seeds: Sequence[str]) -> list[str]:
        found = self.node("Gradient", [*xs, *others, *ys, *seeds], len(xs), xs=len(xs), ys=len(ys))
        self.after.append(found)
        return list(found.output)

    def total(self, names: Sequence[str]) -> str:
        if len(names) == 1:
            return names[0]
        self.after.append(self.node("Total", names))
        return str(self.after[-1].output[0])

    def procedure(self, inputs: Sequence[InputInfo], outputs: Sequence[str], constants: dict[str, Any]) -> Procedure:
        return replace(self.body, name=f"{self.body.name}/gradient", nodes=(*self.before, *self.body.nodes, *self.after), inputs=tuple(inputs),
                       outputs=tuple(outputs), constants={**self.body.constants, **constants},
                       output_infos=tuple(InputInfo(o, "undefined", None) for o in outputs))


def body_of(body: g.Body) -> Procedure:
    assert isinstance(body, Procedure)
    if body.cold:
        raise ModelError(f"{body.name} came from the cache without its nodes")
    return body


def adjoint_of(v: g.Value) -> g.Value:
    """A value that will hold the adjoint of `v`."""
    return g.Value(compute(v.dtype), v.dims)


@node_derivative(g.If)
def of_if(node: g.If, outs: Sequence[Adjoint], active: set[g.Value]) -> Parts:
    """An If of the same condition, whose bodies give the adjoints of all that either takes in; of what the other alone does, zeros."""
    wanted = list(dict.fromkeys(v for v in node.inputs[1:] if v in active))
    no_sequences(wanted)
    seeds = {k: t for k, t in enumerate(outs) if t is not None}
    values, bodies, captures = list(node.inputs), [], []
    first_seed = len(values)
    values += [t.value for t in seeds.values()]
    for body, places in zip(map(body_of, node.bodies), node.captures, strict=True):
        work = Reversed(body)
        names = {place: info.name for place, info in zip(places, body.inputs, strict=True)}
        infos, own = list(body.inputs), list(places)
        for v in wanted:
            if not any(node.inputs[p] is v for p in own):
                own.append(node.inputs.index(v, 1))
                names[own[-1]] = work.name()
                infos.append(info_of(names[own[-1]], Tensor(v, builder())))
        dys = [work.name() for _ in seeds]
        infos += [info_of(n, t) for n, t in zip(dys, seeds.values(), strict=True)]
        xs = [p for p in own if node.inputs[p] in active]
        others = [names[p] for p in own if p not in xs]
        parts = dict(zip(xs, work.gradient([names[p] for p in xs], others, [body.outputs[k] for k in seeds], dys), strict=True))
        outputs = [work.total([n for p, n in parts.items() if node.inputs[p] is v]) for v in wanted]
        bodies.append(work.procedure(infos, outputs, {}))
        captures.append((*own, *range(first_seed, first_seed + len(seeds))))
    made_here = tuple(map(adjoint_of, wanted))
    builder().add(g.If(tuple(values), made_here, bodies=(bodies[0], bodies[1]), captures=(captures[0], captures[1]), origins=builder().origins))
    return [(v, Tensor(t, builder())) for v, t in zip(wanted, made_here, strict=True)]


def no_sequences(values: Sequence[g.Value]) -> None:
    for v in values:
        if v.shape is None:
            raise UnsupportedOp(f"it takes in {v.name or 'a value'}, a {v.dtype}; there is no derivative through sequences and optionals")


@node_derivative(g.Loop)
def of_loop(node: g.Loop, outs: Sequence[Adjoint], active: set[g.Value]) -> Parts:
    """The Loop with the carried values of every turn put by, then one from the last turn to the first."""
    body, first = body_of(node.body), node.has_trip + node.has_condition
    state, captured = node.inputs[first:first + node.carried], node.inputs[first + node.carried:]
    no_sequences(state)
    no_sequences([v for v in captured if v in active])
    return Backwards(node, body, state, captured, outs, active).parts(with_stacks(node, body, [*state, *captured]))


class Backwards:
    """The Loop that goes back: it carries the adjoints of what the Loop carries and the sums of those of what it captures, and scans those of
    `rows`."""

    def __init__(self, node: g.Loop, body: Procedure, state: Sequence[g.Value], captured: Sequence[g.Value], outs: Sequence[Adjoint],
                 active: set[g.Value]) -> None:
        self.body, self.state, self.captured, self.active = body, state, captured, active
        self.infos, self.own = body.inputs[2:2 + len(state)], body.inputs[2 + len(state):]
        self.carried = [k for k, v in enumerate(state) if kind(v.dtype) == "f"]
        self.taken = {info.name: v for info, v in zip(self.own, captured, strict=True)}
        self.rows = rows_by_turn(body, [n for n, v in self.taken.items() if v in active])
        self.summed = {n: v for n, v in self.taken.items() if v in active and n not in self.rows}
        self.sums = list(dict.fromkeys(self.summed.values()))
        self.scans = {k: t for k, t in enumerate(outs) if t is not None and k >= len(state)}
        self.start = [zeros(node.outputs[k]) if (t := outs[k]) is None else t for k in self.carried] + [zeros(v) for v in self.sums]

    def parts(self, stacks: Sequence[Tensor]) -> Parts:
        owner = builder()
        values = [size_scalar(stacks[0].shape[0]), *self.start, *stacks, *(Tensor(v, owner) for v in self.captured), *self.scans.values()]
        of = [*(self.state[k] for k in self.carried), *self.sums]
        whole, pieces = tuple(map(adjoint_of, of)), made([(i.dtype, (None, *self.taken[n].dims[1:])) for n, i in self.pieces().items()], "rows")
        owner.add(g.Loop(tuple(t.value for t in values), (*whole, *pieces), body=self.turn(stacks), carried=len(whole), has_condition=False,
                         origins=owner.origins))
        found = [(v, Tensor(t, owner)) for v, t in zip(of, whole, strict=True)]
        found += [(self.taken[n], in_order(Tensor(t, owner), self.taken[n].dims)) for n, t in zip(self.rows, pieces, strict=True)]
        return [(v, t) for v, t in found if v in self.active]

    def pieces(self) -> dict[str, InputInfo]:
        return {n: InputInfo(r, compute(self.taken[n].dtype), (None,) * (self.taken[n].rank - 1)) for n, r in self.rows.items()}

    def turn(self, stacks: Sequence[Tensor]) -> Procedure:
        """One turn back: what the Loop's turn had, its nodes, a Gradient of what it made."""
        work, before = Reversed(self.body), (self.body.inputs[0], *self.infos)
        number, condition = (InputInfo(work.name(), dtype, ()) for dtype in ("i64", "bool"))
        adjoints = [InputInfo(work.name(), compute(self.infos[k].dtype), self.infos[k].dims) for k in self.carried]
        totals = [info_of(work.name(), Tensor(adjoint_of(v), builder())) for v in self.sums]
        stacked, scanned = ([info_of(work.name(), t) for t in tensors] for tensors in (stacks, self.scans.values()))
        for stack, info in zip(stacked, before, strict=True):
            work.row(stack, number, len(info.dims or ()), info.name)
        seeds = [*(i.name for i in adjoints), *(work.row(i, number) for i in scanned)]
        xs = [*(self.infos[k].name for k in self.carried), *self.summed, *self.rows.values()]
        others = [i.name for i in (*before, *self.own) if i.name not in xs]
        parts = dict(zip(xs, work.gradient(xs, others, [self.body.outputs[1 + k] for k in (*self.carried, *self.scans)], seeds), strict=True))
        outputs = [condition.name, *(parts[self.infos[k].name] for k in self.carried)]
        for total, v in zip(totals, self.sums, strict=True):
            outputs.append(work.total([total.name, *(parts[n] for n, x in self.summed.items() if x is v)]))
        outputs += [parts[r] for r in self.rows.values()]
        inputs = (number, condition, *adjoints, *totals, *stacked, *self.own, *scanned)
        found = work.procedure(inputs, outputs, {self.body.inputs[1].name: np.array(True)})
        return replace(found, output_infos=(condition, *adjoints, *totals, *self.pieces().values()))


def rows_by_turn(body: Procedure, captures: Sequence[str]) -> dict[str, str]:
    """Captures of which every turn reads the row of its own number and nothing else, and the names of these rows: the adjoints of such rows
    are put one behind the other, where the sum over turns of adjoints of the whole would cost as much as there are turns each time."""
    number, found = body.inputs[0].name, {}
    readers = [(node, free_names([node], set())) for node in body.nodes]
    for name in captures:
        nodes = [node for node, names in readers if name in names]
        if len(nodes) == 1 and name not in body.outputs and list(nodes[0].input) == [name, number]:
            node = nodes[0]
            by_row = (node.domain, node.op_type) in ((INTERNAL, "Row"), ("", "Gather"), ("ai.onnx", "Gather"))
            if by_row and not any(a.i for a in node.attribute):
                found[name] = node.output[0]
    return found


def in_order(pieces: Tensor, shape: Sequence[Dim]) -> Tensor:
    """What the turns made, the last first, as the rows of a tensor; turns that were not taken have zeros."""
    count = pieces.shape[0]

    def element(i: Expr, *rest: Expr) -> Expr:
        return guard(less(i, dim(count)), pieces.at(dim(count - 1) - i, *rest), const(0, pieces.dtype))
    return tensor_map(shape, pieces.dtype, element)


def zeros(v: g.Value) -> Tensor:
    return full(v.dims, 0, compute(v.dtype))


def with_stacks(node: g.Loop, body: Procedure, inputs: Sequence[g.Value]) -> list[Tensor]:
    """The number of each turn and the carried values at its beginning, put by: scan outputs of a Loop that takes the place of `node`, or, of
    values whose shape a turn may change, sequences that another Loop carries."""
    owner, work, last = builder(), Reversed(body), 2 + node.carried
    kept = keeps_shapes(body, node.carried, inputs)
    listed = [k for k in range(node.carried) if k not in kept]
    stacked = [body.inputs[0], *(body.inputs[2 + k] for k in kept)]
    sequences = [InputInfo(work.name(), f"seq({inputs[k].dtype})", None) for k in listed]
    for info, k in zip(sequences, listed, strict=True):
        work.after.append(work.node("Push", [info.name, body.inputs[2 + k].name]))
    longer = work.procedure((*body.inputs[:last], *sequences, *body.inputs[last:]),
                            (*body.outputs[:1 + node.carried], *(n.output[0] for n in work.after), *body.outputs[1 + node.carried:],
                             *(i.name for i in stacked)), {})
    longer = replace(longer, name=f"{body.name}/kept", output_infos=(*body.output_infos[:1 + node.carried], *sequences,
                                                                     *body.output_infos[1 + node.carried:], *stacked))
    held = tuple(g.Value(i.dtype, None) for i in sequences)
    stacks = made([("i64", (None,)), *((inputs[k].dtype, (None, *inputs[k].dims)) for k in kept)], "turns")
    empty = [sequence("sequence_construct", dtype=i.dtype).value for i in sequences]
    first, old = node.has_trip + node.has_condition + node.carried, node.outputs
    if held:
        old = tuple(g.Value(v.dtype, v.shape) for v in old)
    again = replace(node, inputs=(*node.inputs[:first], *empty, *node.inputs[first:]), body=longer, carried=node.carried + len(held),
                    outputs=(*old[:node.carried], *held, *old[node.carried:], *stacks))
    if held:
        owner.add(again)
    else:
        owner.nodes[owner.nodes.index(node)] = again
        owner.producers.update(dict.fromkeys(again.outputs, again))
    by_place = dict(zip((*kept, *listed), (*stacks[1:], *held), strict=True))
    return [Tensor(v, owner) for v in (stacks[0], *(by_place[k] for k in range(node.carried)))]


def keeps_shapes(body: Procedure, carried: int, inputs: Sequence[g.Value]) -> list[int]:
    """Which of the carried values, the first of `inputs`, have the same shape after a turn, as a trial with the sizes at hand shows."""
    from gpuonnx.importer.lower import lower
    owner = builder()
    if not all(v.shape is not None and all(map(owner.answerable, v.shape)) for v in inputs):
        return []
    shapes = [tuple(map(int, evaluate(v.dims, owner.binding))) for v in inputs]
    types = [("i64", ()), ("bool", ()), *((v.dtype, shape) for v, shape in zip(inputs, shapes, strict=True))]
    try:
        graph = lower(body, [Argument(*t) for t in types]).graph
    except (NeedsRun, ModelError, ShapeError):
        return []
    given = dict(zip(graph.inputs, (shape for _, shape in types), strict=True))
    sizes = {name: given[s.value][s.axis] for name, s in graph.symbols.items() if s.axis is not None and s.value in given}

    def kept(value: g.Value, before: tuple[int, ...]) -> bool:
        known = value.shape is not None and all(d.symbols(s) <= sizes.keys() for s in value.shape)
        return known and tuple(map(int, evaluate(value.dims, sizes))) == before
    return [k for k in range(carried) if kept(graph.outputs[1 + k], shapes[k])]
