"""ONNX nodes -> IR, for one variant: the definitions in ops/ are called on tensors with symbolic shapes."""
from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import GpuOnnxError, ModelError, ShapeError, UnsupportedOp
from gpuonnx.importer import control, generate, solve
from gpuonnx.importer.kinds import check_attributes, check_inputs
from gpuonnx.importer.procedure import Argument, Environment, InputInfo, Procedure, free_names, is_tensor, read_names
from gpuonnx.ir import graph as g
from gpuonnx.ir.build import Builder, NeedsRun, Tensor
from gpuonnx.ir.dims import Dim
from gpuonnx.ops import registry

if TYPE_CHECKING:
    import onnx

LOWERINGS = control.LOWERINGS | generate.LOWERINGS | solve.LOWERINGS


@dataclass(frozen=True)
class Lowered:
    """One variant: the graph, the answers it was made for, and the procedure that runs after it, if any."""

    graph: g.Graph
    key: tuple[tuple[Any, int | float], ...]
    rest: Procedure | None = None


@dataclass(frozen=True)
class Frame:
    """Where nodes are being lowered: names in scope, opsets, attributes of the enclosing function call; whether a function
    called here becomes a program of its own; constants by which something is differentiated, which bodies take as inputs therefore;
    whether this is the body of an If or a Loop."""

    scope: MutableMapping[str, Tensor | None]
    environment: Environment
    attributes: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    apart: bool = False
    varied: frozenset[g.Value] = frozenset()
    inner: bool = False


def lower(procedure: Procedure, arguments: Sequence[Argument]) -> Lowered:
    """Lower a procedure for the variant that `arguments` belong to."""
    owner = Builder()
    with owner.active():
        inputs = [_input(owner, info, argument) for info, argument in zip(procedure.inputs, arguments, strict=True)]
        scope = _Constants(owner, procedure)
        scope.update({info.name: t for info, t in zip(procedure.inputs, inputs, strict=True)})
        if procedure.carried >= 0:
            scope[procedure.inputs[1].name] = owner.constant(np.array(True))
        named = {n for node in procedure.nodes if node.op_type == "Gradient" for n in read_names(node)}
        varied = frozenset(scope[n].value for n in sorted(named & procedure.constants.keys()))
        frame = Frame(scope, procedure.environment, varied=varied, inner=procedure.inner)
        for position, node in enumerate(procedure.nodes):
            mark = len(owner.nodes)
            try:
                lower_node(frame, node)
            except NeedsRun as question:
                del owner.nodes[mark:]
                if mark != 0:
                    return _cut(procedure, owner, inputs, scope, position)
                _lower_apart(frame, node, question)
            if any(_of_free_rank(scope.get(n)) for n in node.output if n):
                return _cut(procedure, owner, inputs, scope, position + 1)
        outputs = [_output(scope, name, procedure) for name in procedure.outputs]
        graph = owner.finish([t.value for t in inputs], [t.value for t in outputs])
    return Lowered(graph, tuple(owner.predicates.items()))


def _of_free_rank(t: Tensor | None) -> bool:
    return t is not None and not t.is_tensor and (is_tensor(t.dtype) or t.dtype == "undefined")


def _lower_apart(frame: Frame, node: onnx.NodeProto, question: NeedsRun) -> None:
    """Lower a function that asks for what it makes itself. Raises ModelError for anything else that asks so."""
    from gpuonnx.ir.build import builder
    owner = builder()
    try:
        lower_node(replace(frame, apart=True), node)
    except NeedsRun:
        del owner.nodes[:]
    if not owner.nodes:
        raise ModelError(f"{describe(node)}: {question} cannot be known before the run") from question


def _output(scope: Mapping[str, Tensor | None], name: str, procedure: Procedure) -> Tensor:
    found = scope.get(name)
    if found is None:
        raise ModelError(f"output {name!r} of {procedure.name} is made by no node")
    return found


def _cut(procedure: Procedure, owner: Builder, inputs: list[Tensor], scope: Mapping[str, Tensor | None], position: int) -> Lowered:
    """End this program here; the rest becomes a procedure whose inputs are the values it needs."""
    rest = procedure.nodes[position:]
    made = {o for n in rest for o in n.output}
    wanted = free_names(rest, set()) + [o for o in procedure.outputs if o not in made]
    live = [n for n in dict.fromkeys(wanted) if scope.get(n) is not None and n not in procedure.constants]
    tensors = [scope[n] for n in live]
    infos = tuple(_info(n, t) for n, t in zip(live, tensors, strict=True) if t is not None)
    tail = replace(procedure, name=f"{procedure.name}/after {position}", nodes=rest, inputs=infos, carried=-1)
    graph = owner.finish([t.value for t in inputs], [t.value for t in tensors if t is not None])
    return Lowered(graph, tuple(owner.predicates.items()), tail)


def _info(name: str, t: Tensor) -> InputInfo:
    dims = tuple(s if isinstance(s, int) else None for s in t.shape) if t.is_tensor else None
    return InputInfo(name, t.dtype, dims)


class _Constants(dict[str, Any]):
    """Names in scope; weights are decoded when they are first named."""

    def __init__(self, owner: Builder, procedure: Procedure) -> None:
        super().__init__()
        self.owner, self.procedure = owner, procedure

    def __missing__(self, name: str) -> Tensor:
        constant = self.procedure.constants[name]
        array = constant if isinstance(constant, np.ndarray) else self.procedure.environment.array(constant)
        made = self.owner.constant(array, name)
        self[name] = made
        return made

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.procedure.constants


def _input(owner: Builder, info: InputInfo, argument: Argument) -> Tensor:
    """Free axes become symbols; a repeated name stands for one symbol where the sizes agree."""
    if argument.shape is None:
        return Tensor(g.Value(argument.dtype, None, info.name), owner)
    value = g.Value(argument.dtype, (), info.name)
    declared = info.dims if info.dims is not None and len(info.dims) == len(argument.shape) else (None,) * len(argument.shape)
    value.shape = tuple(_size(owner, value, axis, said, size) for axis, (said, size) in enumerate(zip(declared, argument.shape, strict=True)))
    if argument.elements is not None:
        owner.input_elements[value] = argument.elements
    return Tensor(value, owner)


def _size(owner: Builder, value: g.Value, axis: int, said: int | str | None, size: int) -> Dim:
    if isinstance(said, int):
        return said
    name = said if said and owner.binding.get(said, size) == size else f"{value.name}.{axis}"
    owner.binding[name] = size
    return owner.symbol(name, g.Source(value, axis=axis))


def lower_node(frame: Frame, node: onnx.NodeProto) -> None:
    """Lower one node and name its outputs in the frame's scope."""
    from gpuonnx.ir.build import builder
    owner = builder()
    outer, owner.origin = owner.origin, (describe(node) if not frame.prefix else frame.prefix)
    try:
        results = _once(frame, node, owner)
    except (GpuOnnxError, NeedsRun) as error:
        if isinstance(error, NeedsRun) or describe(node) in str(error):
            raise
        raise type(error)(f"{describe(node)}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"{describe(node)} cannot be lowered: {type(error).__name__}: {error}") from error
    finally:
        owner.origin = outer
    for name, result in zip(node.output, results, strict=False):
        if name:
            frame.scope[name] = result
            if result is not None and not result.value.name and result.value not in owner.constants:
                result.value.name = name


def describe(node: onnx.NodeProto) -> str:
    """Operator and name, as errors and explain spell them."""
    return f"{node.op_type} {node.name or next((o for o in node.output if o), '')}".strip()


def _once(frame: Frame, node: onnx.NodeProto, owner: Builder) -> Sequence[Tensor | None]:
    """A node's results. One whose sizes only the data tell is not lowered again for the same inputs: its sizes would be symbols of
    their own, which nothing makes equal later."""
    kind = (node.domain, node.op_type)
    question = _question(frame, node) if kind in owner.repeats else None
    before: Sequence[Tensor | None] | None = owner.repeated(kind, question)
    if before is not None:
        return before
    start, symbols = len(owner.nodes), len(owner.symbols)
    results = _results(frame, node)
    if len(owner.symbols) > symbols:
        owner.remember(kind, _question(frame, node), start, results)
    return results


def _question(frame: Frame, node: onnx.NodeProto) -> Any:
    """What makes two nodes of a kind give the same; None for functions, sub-graphs, and what a random seed decides."""
    domain = registry.ALIASES.get(node.domain, node.domain)
    definition = registry.find(node.domain, node.op_type, frame.environment.opsets.get(domain, 1))
    if definition is None or (node.domain, node.op_type) in frame.environment.functions or "scope" in definition.reserved:
        return None
    if "seed" in definition.attributes or any(a.ref_attr_name or a.type in (5, 10) for a in node.attribute):
        return None
    read = tuple(None if (t := frame.scope.get(n)) is None else t.value for n in node.input)
    return read, tuple(a.SerializeToString() for a in node.attribute), len(node.output), definition.since


def _results(frame: Frame, node: onnx.NodeProto) -> Sequence[Tensor | None]:
    missing = [n for n in node.input if n and n not in frame.scope]
    if missing:
        raise ModelError(f"{describe(node)} reads {missing[0]!r}, which nothing makes")
    inputs = [frame.scope[n] if n else None for n in node.input]
    attributes = {a.name: v for a in node.attribute if (v := attribute(a, frame)) is not None}
    domain = registry.ALIASES.get(node.domain, node.domain)
    opset = frame.environment.opsets.get(domain, 1)
    lowering = LOWERINGS.get((domain, node.op_type))
    if node.op_type == "Gradient":
        registry.load("gpuonnx.importer.gradients")
    if lowering:
        check_attributes(node, domain, opset)
        return lowering(frame, node, inputs, attributes)
    local = frame.environment.functions.get((node.domain, node.op_type))
    if local is not None:
        return call_function(frame, local, node, inputs, attributes)
    check_attributes(node, domain, opset)
    check_inputs(node, inputs, domain, opset)
    definition = registry.find(node.domain, node.op_type, opset)
    if definition is None:
        return call_function(frame, schema_function(node, opset, inputs), node, inputs, attributes)
    unknown = sorted(set(attributes) - definition.attributes)
    if unknown:
        raise ModelError(f"{describe(node)} (opset {opset}) has no attribute {unknown[0]!r}")
    limit = len(definition.inputs)
    if len(inputs) > limit and not definition.variadic:
        if any(t is not None for t in inputs[limit:]):
            raise ModelError(f"{describe(node)} (opset {opset}) takes {limit} inputs, here {len(inputs)}")
        inputs = inputs[:limit]
    graphs = {a.name: bodied(frame, a.name, attributes[a.name]) for a in node.attribute if a.name in attributes and a.type == a.GRAPH}
    return definition(inputs, {**attributes, **graphs}, len(node.output), opset, frame.scope)


def attribute(proto: onnx.AttributeProto, frame: Frame) -> Any:
    """The Python value of an attribute: str for strings, ndarray for tensors, protos for graphs and types."""
    if proto.ref_attr_name:
        return frame.attributes.get(proto.ref_attr_name)
    match proto.type:
        case 1: return float(proto.f)
        case 2: return int(proto.i)
        case 3: return proto.s.decode("utf-8", "surrogateescape")
        case 4: return frame.environment.array(proto.t)
        case 5: return proto.g
        case 6: return list(proto.floats)
        case 7: return list(proto.ints)
        case 8: return [s.decode("utf-8", "surrogateescape") for s in proto.strings]
        case 9: return [frame.environment.array(t) for t in proto.tensors]
        case 11: return proto.sparse_tensor
        case 13: return proto.tp
    raise ModelError(f"attribute {proto.name!r} has the type number {proto.type}, which no attribute can have")


def schema_function(node: onnx.NodeProto, opset: int, inputs: Sequence[Tensor | None]) -> Any:
    """The function body that the standard gives for an operator without a definition of ours."""
    import onnx
    from onnx import defs
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not defs.has(node.op_type, opset, domain):
        raise UnsupportedOp(f"{describe(node)}: {domain or 'ai.onnx'}.{node.op_type} is in no opset <= {opset}")
    schema: Any = defs.get_schema(node.op_type, opset, domain)
    function = onnx.FunctionProto()
    if schema.has_function:
        function.CopyFrom(schema.function_body)
        function.attribute_proto.extend(a.default_value for a in schema.attributes.values() if a.default_value.type)
        return function
    if not schema.has_context_dependent_function:
        raise UnsupportedOp(f"{describe(node)}: no definition of {domain or 'ai.onnx'}.{node.op_type}, opset {opset}")
    kinds = [type_proto(t).SerializeToString() for t in inputs]
    best = max(v for v in schema.context_dependent_function_opset_versions if v <= max(opset, schema.since_version))
    body = schema.get_context_dependent_function_with_opset_version(best, node.SerializeToString(), kinds)
    function.ParseFromString(body)
    return function


def type_proto(t: Tensor | None) -> onnx.TypeProto:
    """What a function builder is told of an input: a tensor's type and known sizes."""
    import onnx

    from gpuonnx.ir.types import TYPES
    kind = onnx.TypeProto()
    if t is not None and t.is_tensor:
        kind.tensor_type.elem_type = TYPES[t.dtype].onnx
        for size in t.shape:
            dim = kind.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
    return kind


def call_function(frame: Frame, function: Any, node: onnx.NodeProto, inputs: Sequence[Tensor | None],
                  attributes: Mapping[str, Any]) -> list[Tensor | None]:
    """Lower the body of a function in place of its call."""
    from gpuonnx.ir.build import builder
    if frame.prefix.count("/") > 32:
        raise ModelError(f"{describe(node)}: functions call each other more than 32 deep")
    if len(inputs) > len(function.input):
        raise ModelError(f"{describe(node)} takes {len(function.input)} inputs, here {len(inputs)}")
    padded = [*inputs, *[None] * (len(function.input) - len(inputs))]
    scope: dict[str, Tensor | None] = dict(zip(function.input, padded, strict=False))
    defaults = {a.name: attribute(a, frame) for a in getattr(function, "attribute_proto", ())}
    opsets = {registry.ALIASES.get(o.domain, o.domain): o.version for o in function.opset_import} or frame.environment.opsets
    inner = Frame(scope, replace(frame.environment, opsets={**frame.environment.opsets, **opsets}), {**defaults, **attributes},
                  f"{frame.prefix or describe(node)}/{node.op_type}" if frame.prefix else builder().origin, varied=frame.varied,
                  inner=frame.inner)
    if frame.apart:
        return list(control.apart(inner, function.name, function, padded, inner.attributes)[:len(node.output)])
    for step in function.node:
        lower_node(inner, step)
        if unknown := [o for o in step.output if o and _of_free_rank(scope.get(o))]:
            raise NeedsRun(f"the rank of {unknown[0]} in {function.name}")
    return [scope.get(name) for name in function.output[:len(node.output)]]


def bodied(frame: Frame, name: str, graph: onnx.GraphProto) -> registry.Body:
    """A sub-graph as a definition sees it."""
    def run(*given: Tensor) -> list[Tensor]:
        if len(given) != len(graph.input):
            raise ModelError(f"{name} takes {len(graph.input)} inputs; {len(given)} are given to it")
        return inline(frame, graph, {i.name: t for i, t in zip(graph.input, given, strict=True)})
    return run


def inline(frame: Frame, graph: onnx.GraphProto, given: Mapping[str, Tensor] | None = None) -> list[Tensor]:
    """Lower a sub-graph whose path is known, in the enclosing scope; `given`: its inputs."""
    from gpuonnx.ir.build import builder
    scope: ChainMap[str, Any] = ChainMap(dict(given or {}), frame.scope)
    for tensor in graph.initializer:
        scope[tensor.name] = builder().constant(frame.environment.array(tensor), tensor.name)
    inner = replace(frame, scope=scope)
    for node in graph.node:
        lower_node(inner, node)
    missing = [o.name for o in graph.output if scope.get(o.name) is None]
    if missing:
        raise ShapeError(f"branch output {missing[0]!r} is made by no node")
    return [scope[o.name] for o in graph.output]

