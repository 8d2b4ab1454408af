"""If, Loop and Scan. A branch whose condition this variant knows is lowered in place; everything else becomes a body,
a procedure of its own that the runtime calls with what it captures."""
from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import ModelError, ShapeError
from gpuonnx.importer.procedure import Argument, InputInfo, Procedure, captured, input_info, type_name
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Builder, NeedsRun, Tensor, builder, constant, size_scalar
from gpuonnx.ir.dims import Dim, dmax, eq, symbols
from gpuonnx.ir.sizes import evaluate, substitute
from gpuonnx.ops.sequence import held, sequence, sequence_construct, sequence_length

if TYPE_CHECKING:
    import onnx

    from gpuonnx.importer.lower import Frame, Lowered

Results = Sequence[Tensor | None]
Shape = tuple[Dim | None, ...] | None
Types = list[tuple[str, Shape]]


def body(frame: Frame, name: str, graph: onnx.GraphProto, given: Sequence[InputInfo] = ()) -> tuple[Procedure, list[Tensor]]:
    """A sub-graph as a procedure: its own inputs first (declared, or as `given` for a Loop's), then what it captures."""
    constants: dict[str, Any] = {t.name: t for t in graph.initializer}
    tensors: list[Tensor] = []
    infos = list(given) or [input_info(i) for i in graph.input]
    for outer in captured(graph):
        t = frame.scope.get(outer)
        if t is None:
            raise ModelError(f"{name} captures {outer!r}, which nothing makes")
        if t.value in t.builder.constants and t.value not in frame.varied:
            constants[outer] = t.builder.constants[t.value]
        else:
            tensors.append(t)
            infos.append(info_of(outer, t))
    outputs = tuple(input_info(o) for o in graph.output)
    procedure = Procedure(name, bound(graph.node, frame.attributes), tuple(infos),
                          tuple(o.name for o in graph.output), constants, frame.environment, outputs, inner=True,
                          carried=len(given) - 2 if given else -1)
    return procedure, tensors


def bound(nodes: Sequence[onnx.NodeProto], attributes: Mapping[str, Any]) -> tuple[onnx.NodeProto, ...]:
    """The nodes of a function's body with the attributes of its call in place of the names, in sub-graphs too."""
    import onnx
    if not attributes:
        return tuple(nodes)
    out = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("attribute")
        for a in node.attribute:
            if not a.ref_attr_name:
                made = copy.attribute.add()
                made.CopyFrom(a)
                for graph in [made.g] if made.HasField("g") else list(made.graphs):
                    inner = bound(graph.node, attributes)
                    graph.ClearField("node")
                    graph.node.extend(inner)
            elif (value := attributes.get(a.ref_attr_name)) is not None:
                value = onnx.numpy_helper.from_array(value) if a.type == onnx.AttributeProto.TENSOR else value
                copy.attribute.append(onnx.helper.make_attribute(a.name, value, attr_type=a.type))
        out.append(copy)
    return tuple(out)


def apart(frame: Frame, name: str, function: Any, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    """A function as a program of its own, an If with one way to go: what it makes may decide how it goes on inside."""
    owner = builder()
    present = {n: t for n, t in zip(function.input, inputs, strict=True) if t is not None}
    constants: dict[str, Any] = {n: owner.constants[t.value] for n, t in present.items() if t.value in owner.constants}
    given = {n: t for n, t in present.items() if n not in constants}
    infos = tuple(info_of(n, t) for n, t in given.items())
    procedure = Procedure(f"{owner.origin}/{name}", bound(function.node, attributes), infos, tuple(function.output), constants, frame.environment,
                          tuple(InputInfo(o, "undefined", None) for o in function.output))
    outputs = made(result_types(procedure, list(given.values())) or declared(procedure), "function")
    places = tuple(range(1, 1 + len(given)))
    values = (constant(True).value, *(t.value for t in given.values()))
    owner.add(g.If(values, outputs, bodies=(procedure, procedure), captures=(places, places), origins=owner.origins))
    return [Tensor(v, owner) for v in outputs]


def info_of(name: str, t: Tensor) -> InputInfo:
    return InputInfo(name, t.dtype, tuple(s if isinstance(s, int) else None for s in t.shape) if t.is_tensor else None)


def result_types(procedure: Procedure, inputs: Sequence[Tensor], shapes: Sequence[Shape] | None = None) -> Types | None:
    """Types and shapes of a body's outputs by a trial lowering, in the sizes of its inputs; a size is None where only a run tells, and
    the whole is None where a rank cannot be known. shapes: of the inputs, where they are not what the tensors say."""
    from gpuonnx.importer.lower import lower
    owner = builder()
    arguments = [Argument(t.dtype, tuple(_sample(owner, s) for s in t.shape) if t.is_tensor else None) for t in inputs]
    try:
        lowered = lower(procedure, arguments)
    except (NeedsRun, ModelError, ShapeError):
        return None
    if lowered.rest is not None:
        return None
    given = shapes if shapes is not None else [t.shape if t.is_tensor else None for t in inputs]
    return list(zip([v.dtype for v in lowered.graph.outputs], _outer_shapes(owner, lowered, given), strict=True))


def _outer_shapes(owner: Builder, lowered: Lowered, given: Sequence[Shape]) -> list[Shape]:
    """The shapes of a lowered body's outputs in the sizes of what it was given; the questions it asked are then asked here."""
    inputs, found = list(lowered.graph.inputs), [v.shape for v in lowered.graph.outputs]
    sources = {name: (given[inputs.index(s.value)] or (), s.axis) for name, s in lowered.graph.symbols.items() if s.value in inputs}
    binding = {name: shape[axis] for name, (shape, axis) in sources.items() if axis is not None and axis < len(shape)}
    questions = substitute([q for q, _ in lowered.key], binding)
    sure = all(q is not None and owner.answerable(q) for q in questions)
    outer: list[Shape] = []
    for shape in found:
        free = [s for s in shape or () if not isinstance(s, int)]
        sizes = iter(substitute(free, binding) if sure else [None] * len(free))
        outer.append(None if shape is None else tuple(s if isinstance(s, int) else next(sizes) for s in shape))
    if any(s is not None and not isinstance(s, int) for shape in outer for s in shape or ()):
        for question in questions:
            owner.ask(question)
    return outer


def _sample(owner: Builder, size: Dim) -> int:
    return int(evaluate([size], owner.binding)[0]) if owner.answerable(size) else 3


def made(types: Types, label: str) -> tuple[g.Value, ...]:
    """Values of these types; a free size becomes a symbol that is bound once the value exists."""
    owner = builder()
    values = []
    for k, (dtype, shape) in enumerate(types):
        value = g.Value(dtype, None, f"{label}.{len(owner.nodes)}.{k}")
        if shape is not None:
            value.shape = tuple(owner.symbol(f"{value.name}.{a}", g.Source(value, axis=a)) if s is None else s for a, s in enumerate(shape))
        values.append(value)
    return tuple(values)


def declared(procedure: Procedure) -> Types:
    """What the file says of a body's outputs: types are believed, shapes are not."""
    return [(o.dtype, None) for o in procedure.output_infos]


def lower_if(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    """In place where the condition is a matter of this variant. In a body values change from turn to turn: there only sizes are, unless
    what the branches give differs."""
    condition = inputs[0]
    if condition is None or len(inputs) != 1:
        raise ModelError(f"If has one input, its condition; here {sum(t is not None for t in inputs)} are given")
    from gpuonnx.importer.lower import inline
    owner = builder()
    known = owner.elements(condition.value)
    question = known.ravel()[0] if known is not None and known.size == 1 else None
    answerable = question is not None and owner.answerable(question)
    if answerable and not (frame.inner and any(owner.symbols[name].axis is None for name in symbols(question))):
        return inline(frame, attributes["then_branch" if owner.ask(question) else "else_branch"])
    (then, first), (other, second) = (body(frame, f"{owner.origin}/{b}", attributes[f"{b}_branch"]) for b in ("then", "else"))
    types = [result_types(p, t) for p, t in ((then, first), (other, second))]
    merged = _merge(types[0] or declared(then), types[1] or declared(other))
    if answerable and any(shape is None or None in shape for _, shape in merged):
        return inline(frame, attributes["then_branch" if owner.ask(question) else "else_branch"])
    outputs = made(merged, "if")
    values = (condition.value, *(t.value for t in first), *(t.value for t in second))
    places = (tuple(range(1, 1 + len(first))), tuple(range(1 + len(first), len(values))))
    owner.add(g.If(values, outputs, bodies=(then, other), captures=places, origins=owner.origins))
    return [Tensor(v, owner) for v in outputs]


def _merge(a: Types, b: Types) -> Types:
    """What both may be: sizes in which they differ are None."""
    out: Types = []
    for (dtype, x), (other, y) in zip(a, b, strict=True):
        dtype = dtype if dtype != "undefined" else other
        if x is None or y is None or len(x) != len(y):
            out.append((dtype, None))
        else:
            out.append((dtype, tuple(s if _same(s, t) else None for s, t in zip(x, y, strict=True))))
    return out


def _same(a: Dim | None, b: Dim | None) -> bool:
    """Whether two sizes are one, or were found equal in this variant."""
    if a is None or b is None or isinstance(a, int) and isinstance(b, int):
        return a == b
    return a is b or a == b or bool(builder().predicates.get(eq(a, b)))


def lower_loop(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    trip, condition, *carried = [*inputs, None, None][:max(2, len(inputs))]
    return loop(frame, attributes["body"], trip, condition, carried)


def loop(frame: Frame, graph: onnx.GraphProto, trip: Tensor | None, condition: Tensor | None, carried: Sequence[Tensor | None]) -> Results:
    owner = builder()
    state = [t for t in carried if t is not None]
    if len(graph.input) != 2 + len(state):
        raise ModelError(f"the body takes {len(graph.input)} inputs, the Loop carries {len(state)}")
    given = [InputInfo(graph.input[0].name, "i64", ()), InputInfo(graph.input[1].name, "bool", ())]
    types: Types = [(t.dtype, t.shape if t.is_tensor else None) for t in state]
    names = [i.name for i in graph.input[2:]]
    ends: list[Tensor] = [Tensor(v, owner) for v in (g.Value("i64", ()), g.Value("bool", ()))]
    for _ in range(8):
        infos = [*given, *(InputInfo(n, dtype, _fixed(shape)) for n, (dtype, shape) in zip(names, types, strict=True))]
        procedure, captures = body(frame, f"{owner.origin}/body", graph, infos)
        trial = [Tensor(g.Value(dtype, None if shape is None else t.shape), owner) for (dtype, shape), t in zip(types, state, strict=True)]
        known = [(), (), *(shape for _, shape in types), *(t.shape if t.is_tensor else None for t in captures)]
        found = result_types(procedure, [*ends, *trial, *captures], known)
        results = found or declared(procedure)
        joined = _merge(types, results[1:1 + len(state)])
        if joined == types:
            break
        types = joined
    if found is not None:
        told = [InputInfo(o.name, dtype, _fixed(shape)) for o, (dtype, shape) in zip(graph.output, found, strict=True)]
        procedure = replace(procedure, output_infos=tuple(told))
    rows = _rows(owner, trip) if endless(graph, owner, condition) else None
    scans: Types = [(dtype, None if shape is None else (rows, *shape)) for dtype, shape in results[1 + len(state):]]
    outputs = made([*types, *scans], "loop")
    values = tuple(t.value for t in (trip, condition, *state, *captures) if t is not None)
    owner.add(g.Loop(values, outputs, body=procedure, carried=len(state), has_trip=trip is not None, has_condition=condition is not None,
                     origins=owner.origins))
    return [Tensor(v, owner) for v in outputs]


def _fixed(shape: Shape) -> tuple[int | None, ...] | None:
    return None if shape is None else tuple(s if isinstance(s, int) else None for s in shape)


def endless(graph: onnx.GraphProto, owner: Builder, condition: Tensor | None) -> bool:
    """Whether a Loop ends by its trip count alone: its condition begins true and is handed on, or always made true."""
    import onnx
    if condition is not None and not np.all(owner.constants.get(condition.value, False)):
        return False
    makers = {name: node for node in graph.node for name in node.output}
    name, true = graph.output[0].name, {t.name: t for t in graph.initializer}
    while name in makers and makers[name].op_type == "Identity" and not makers[name].domain:
        name = makers[name].input[0]
    if name in makers and makers[name].op_type == "Constant" and makers[name].attribute[0].name == "value":
        true[name] = makers[name].attribute[0].t
    return name == graph.input[1].name or name in true and bool(np.all(onnx.numpy_helper.to_array(true[name])))


def _rows(owner: Builder, trip: Tensor | None) -> Dim | None:
    """How often an endless Loop turns, where that is a number or follows from sizes."""
    found = None if trip is None else owner.elements(trip.value)
    if found is None or found.size != 1:
        return None
    count: Dim = found.ravel()[0]
    if any(owner.symbols[name].axis is None for name in symbols(count)):
        return None
    turns: Dim = dmax(count, 0)
    return turns


def lower_scan(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    """Scan as a Loop whose body takes its slices by the iteration number."""
    if frame.environment.opsets.get("", 1) < 9:
        return scan_8(frame, inputs, attributes)
    return scan(frame, inputs, attributes)


def scan(frame: Frame, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    graph, count = attributes["body"], attributes["num_scan_inputs"]
    present = [t for t in inputs if t is not None]
    state, scanned = present[:len(present) - count], present[len(present) - count:]
    axes = attributes.get("scan_input_axes") or [0] * count
    reverse = attributes.get("scan_input_directions") or [0] * count
    for k in range(count):
        axis = scanned[k].axis(axes[k])
        if reverse[k]:
            scanned[k] = flip(scanned[k], axis)
        scanned[k] = scanned[k].transpose([axis, *(a for a in range(scanned[k].rank) if a != axis)])
    length = scanned[0].shape[0]
    for t in scanned[1:]:
        length = builder().meet(length, t.shape[0])
    wrapped, scope = _scan_body(frame, graph, len(state), scanned)
    results: list[Tensor | None] = list(loop(scope, wrapped, size_scalar(length), None, state))
    outs = len(graph.output) - len(state)
    out_axes = attributes.get("scan_output_axes") or [0] * outs
    out_reverse = attributes.get("scan_output_directions") or [0] * outs
    for k in range(outs):
        made_here = results[len(state) + k]
        if made_here is not None and made_here.is_tensor and (out_axes[k] or out_reverse[k]):
            results[len(state) + k] = _placed(made_here, out_axes[k], out_reverse[k])
    return results


def flip(t: Tensor, axis: int) -> Tensor:
    return t.slice(axis, t.shape[axis] - 1, t.shape[axis], -1)


def _placed(t: Tensor, axis: int, reverse: int) -> Tensor:
    t = flip(t, 0) if reverse else t
    axis = t.axis(axis)
    order = list(range(1, t.rank))
    order.insert(axis, 0)
    return t.transpose(order)


def _scan_body(frame: Frame, graph: onnx.GraphProto, state: int, scanned: Sequence[Tensor]) -> tuple[Any, Any]:
    """The Loop body of a Scan: Gather by iteration number before the Scan's own nodes; the condition passes through."""
    import onnx
    wrapped = onnx.GraphProto()
    wrapped.CopyFrom(graph)
    wrapped.ClearField("input"), wrapped.ClearField("node"), wrapped.ClearField("output")
    number, condition = "gpuonnx.scan.number", "gpuonnx.scan.condition"
    wrapped.input.add(name=number), wrapped.input.add(name=condition)
    wrapped.input.extend(graph.input[:state])
    scope: dict[str, Any] = {}
    for k, info in enumerate(graph.input[state:]):
        outer = f"gpuonnx.scan.input.{k}"
        scope[outer] = scanned[k]
        wrapped.node.append(onnx.helper.make_node("Gather", [outer, number], [info.name], axis=0))
    wrapped.node.extend(graph.node)
    wrapped.node.append(onnx.helper.make_node("Identity", [condition], [condition + ".out"]))
    wrapped.output.add(name=condition + ".out")
    wrapped.output[0].type.tensor_type.elem_type = 9
    wrapped.output.extend(graph.output)
    return wrapped, within(frame, scope)


def scan_8(frame: Frame, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    """Opset 8: a batch axis in front of everything, optional sequence lengths; run for each batch entry and stacked."""
    lengths, *rest = inputs
    if lengths is not None:
        raise ModelError("Scan of opset 8 with sequence_lens is not supported; export with opset 9 or later")
    tensors = [t for t in rest if t is not None]
    batch = builder().ask(tensors[0].shape[0])
    directions = attributes.get("directions") or [0] * attributes["num_scan_inputs"]
    inner = {"body": attributes["body"], "num_scan_inputs": attributes["num_scan_inputs"], "scan_input_directions": directions}
    rows = []
    for entry in range(batch):
        rows.append(scan(frame, [t.slice(0, entry, 1).squeeze([0]) for t in tensors], inner))
    from gpuonnx.ir.build import concat
    return [concat([t.unsqueeze([0]) for t in column if t is not None], 0) for column in zip(*rows, strict=True)]


def lower_sequence_map(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    """The body once for each element: in place where the elements are known, else as a Loop over positions."""
    from gpuonnx.importer.lower import inline
    graph, present = attributes["body"], [t for t in inputs if t is not None]
    if len(present) != len(graph.input) or not present or not present[0].dtype.startswith("seq("):
        raise ModelError(f"the body takes {len(graph.input)} inputs, SequenceMap has {len(present)}, a sequence first")
    lists = [held(t) if t.dtype.startswith("seq(") else None for t in present]
    count = len(lists[0] or ())
    if count and all(t.is_tensor or found is not None and len(found) == count for found, t in zip(lists, present, strict=True)):
        rows = []
        for k in range(count):
            given = {i.name: t if found is None else found[k] for i, found, t in zip(graph.input, lists, present, strict=True)}
            rows.append(inline(frame, graph, given))
        return [sequence_construct(*column) for column in zip(*rows, strict=True)]
    wrapped, scope = _map_body(frame, graph, present)
    state = [sequence("sequence_construct", dtype=f"seq({input_info(o).dtype})") for o in graph.output]
    return loop(scope, wrapped, sequence_length(present[0]), None, state)


def within(frame: Frame, names: Mapping[str, Tensor]) -> Frame:
    """The frame with more names in scope."""
    return replace(frame, scope=ChainMap(dict(names), frame.scope))


def _map_body(frame: Frame, graph: onnx.GraphProto, inputs: Sequence[Tensor]) -> tuple[Any, Any]:
    """The Loop body of a SequenceMap: elements by the iteration number in, results appended to the carried sequences."""
    import onnx
    wrapped = onnx.GraphProto()
    wrapped.initializer.extend(graph.initializer)
    number, condition = "gpuonnx.map.number", "gpuonnx.map.condition"
    for name in (number, condition, *(f"gpuonnx.map.made.{k}" for k in range(len(graph.output)))):
        wrapped.input.add(name=name)
    outer = {f"gpuonnx.map.input.{k}": t for k, t in enumerate(inputs)}
    for (name, t), info in zip(outer.items(), graph.input, strict=True):
        if t.is_tensor:
            wrapped.node.append(onnx.helper.make_node("Identity", [name], [info.name]))
        else:
            wrapped.node.append(onnx.helper.make_node("SequenceAt", [name, number], [info.name]))
    wrapped.node.extend(graph.node)
    wrapped.node.append(onnx.helper.make_node("Identity", [condition], [condition + ".out"]))
    wrapped.output.add(name=condition + ".out")
    wrapped.output[0].type.tensor_type.elem_type = 9
    for k, info in enumerate(graph.output):
        wrapped.node.append(onnx.helper.make_node("SequenceInsert", [f"gpuonnx.map.made.{k}", info.name], [f"gpuonnx.map.out.{k}"]))
        wrapped.output.add(name=f"gpuonnx.map.out.{k}")
        wrapped.output[k + 1].type.sequence_type.elem_type.CopyFrom(info.type)
    return wrapped, within(frame, outer)


Lowering = Callable[..., Results]
LOWERINGS: dict[tuple[str, str], Lowering] = {("", "If"): lower_if, ("", "Loop"): lower_loop, ("", "Scan"): lower_scan,
                                              ("", "SequenceMap"): lower_sequence_map}
__all__ = ["LOWERINGS", "body", "constant", "type_name"]
