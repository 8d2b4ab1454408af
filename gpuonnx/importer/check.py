"""Is a parsed ModelProto a sound model? Names, opsets, functions, bounds; graphs are put in an order of execution."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import ModelError
from gpuonnx.importer.order import bodies, in_order, title

if TYPE_CHECKING:
    import onnx

LATEST = {"": 28, "ai.onnx.ml": 5, "ai.onnx.preview": 1, "ai.onnx.preview.training": 1}
DEFAULT_DOMAINS = ("", "ai.onnx")
FunctionKey = tuple[str, str]


@dataclass(frozen=True)
class _Place:
    """A graph on the way down: its proto, names that the graphs around it make, how deep it lies."""

    graph: onnx.GraphProto
    outer: tuple[frozenset[str], ...]
    depth: int
    where: str


def check(model: onnx.ModelProto, max_nodes: int, max_depth: int, label: str) -> tuple[dict[str, int], dict[FunctionKey, onnx.FunctionProto]]:
    """Opset by domain, functions by (domain, name). Sorts graphs in place; raises ModelError."""
    try:
        functions = _functions(model)
        counts = _count(model, functions, max_nodes, max_depth)
        opsets = _opsets(model, functions)
        _check_graph(model.graph)
        for function in functions.values():
            _check_function(function)
        _bound_expansion(model, functions, counts, max_nodes)
    except UnicodeDecodeError as error:
        raise ModelError(f"{label} is damaged: a name in it is no UTF-8 ({error.reason} at byte {error.start}); "
                         "export or download it again") from error
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from error.__cause__
    return opsets, functions


def _functions(model: onnx.ModelProto) -> dict[FunctionKey, onnx.FunctionProto]:
    """Model-local functions; one with an overload is known, to its callers too, as NAME:OVERLOAD."""
    found: dict[FunctionKey, onnx.FunctionProto] = {}
    for function in model.functions:
        if getattr(function, "overload", ""):
            function.name = f"{function.name}:{function.overload}"
        key = (function.domain, function.name)
        if key in found:
            raise ModelError(f"the function {function.domain}.{function.name} is defined twice")
        found[key] = function
    return found


def _count(model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto], max_nodes: int, max_depth: int) -> dict[Any, Counter[Any]]:
    """Calls by (domain, operator) in the main graph (key None) and in each function; bounds nodes and nesting."""
    counts: dict[Any, Counter[Any]] = {}
    total = 0
    for key, holder in [(None, model.graph), *functions.items()]:
        calls: Counter[Any] = Counter()
        stack: list[tuple[Any, int]] = [(holder, 0)]
        while stack:
            graph, depth = stack.pop()
            total += len(graph.node)
            if total > max_nodes:
                raise ModelError(f"it has more than {max_nodes} nodes; raise limits=gpuonnx.Limits(nodes=...) if that is meant")
            if depth > max_depth:
                raise ModelError(f"its graphs lie more than {max_depth} deep in each other; raise limits=gpuonnx.Limits(depth=...) if that is meant")
            for node in graph.node:
                if getattr(node, "overload", ""):
                    node.op_type = f"{node.op_type}:{node.overload}"
                calls[node.domain, node.op_type] += 1
                stack += [(body, depth + 1) for body in bodies(node)]
        counts[key] = calls
    return counts


def _bound_expansion(model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto], counts: dict[Any, Counter[Any]],
                     max_nodes: int) -> None:
    """Functions neither call themselves nor grow beyond the limit once every call is expanded."""
    sizes: dict[Any, int] = {}
    path: list[Any] = []
    stack: list[tuple[Any, bool]] = [(None, False)]
    while stack:
        key, done = stack.pop()
        if done:
            path.pop()
            sizes[key] = min(max_nodes + 1, sum(n * sizes.get(call, 1) for call, n in counts[key].items()))
            continue
        if key in sizes:
            continue
        if key in path:
            circle = " -> ".join(".".join(k) for k in [*path[path.index(key):], key])
            raise ModelError(f"functions call themselves: {circle}")
        path.append(key)
        stack.append((key, True))
        stack += [(call, False) for call in counts[key] if call in functions and call not in sizes]
    if sizes[None] > max_nodes:
        raise ModelError(f"its functions expand to more than {max_nodes} nodes; raise limits=gpuonnx.Limits(nodes=...) if that is meant")


def _opsets(model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto]) -> dict[str, int]:
    """Version by domain of the main graph. Domains that no node uses are not looked at."""
    opsets = imports(model.opset_import, "the model")
    used = {_domain(node.domain) for node in model.graph.node}
    if "" not in opsets:
        if "" in used and model.ir_version >= 3:
            raise ModelError("it does not say which opset of ai.onnx its nodes belong to (opset_import); export it again")
        opsets[""] = 1
    _known_versions(opsets, used)
    for function in functions.values():
        _known_versions(imports(function.opset_import, f"function {function.name}"), {_domain(node.domain) for node in function.node})
    return opsets


def imports(entries: Iterable[onnx.OperatorSetIdProto], owner: str) -> dict[str, int]:
    """Opset imports as a mapping; `ai.onnx` is the empty domain."""
    found: dict[str, int] = {}
    for entry in entries:
        domain = _domain(entry.domain)
        if found.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"{owner} imports opset {found[domain]} and opset {entry.version} of {domain or 'ai.onnx'}; one is possible")
    return found


def _domain(domain: str) -> str:
    return "" if domain in DEFAULT_DOMAINS else domain


def _known_versions(opsets: dict[str, int], used: set[str]) -> None:
    for domain, version in opsets.items():
        latest = LATEST.get(domain)
        if domain in used and (version < 1 or latest is not None and version > latest):
            raise ModelError(f"it wants opset {version} of {domain or 'ai.onnx'}; gpuonnx knows 1 to {latest or 'any'}: "
                             "export with an opset in that range, or convert it with onnx.version_converter")


def _check_graph(main: onnx.GraphProto) -> None:
    """Sort inner graphs before outer ones, then look that every name is made before it is read."""
    down: list[_Place] = [_Place(main, (), 0, "the graph")]
    seen: list[_Place] = []
    while down:
        place = down.pop()
        seen.append(place)
        own = _own_names(place)
        for node in place.graph.node:
            if not node.op_type:
                raise ModelError(f"{place.where} has {title(node)}")
            down += [_Place(body, (*place.outer, own), place.depth + 1, f"a sub-graph of {title(node)}") for body in bodies(node)]
    for place in reversed(seen):
        given = _given(place.graph, place.where)
        ordered = in_order(place.graph.node, given, place.where)
        if ordered is not None:
            _replace(place.graph.node, ordered)
        _check_names(place)


def _own_names(place: _Place) -> frozenset[str]:
    return frozenset([*_given(place.graph, place.where), *(o for n in place.graph.node for o in n.output)])


def _given(graph: onnx.GraphProto, where: str) -> set[str]:
    """Names that are there before the first node: inputs and initializers, each kind without doubles."""
    inputs, weights = [i.name for i in graph.input], [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    outputs = [o.name for o in graph.output]
    for kind, names in (("input", inputs), ("initializer", weights), ("output", outputs)):
        doubled = [name for name, count in Counter(names).items() if count > 1]
        if doubled and not (kind == "output" and where != "the graph"):
            raise ModelError(f"{where} has two {kind}s of the name {doubled[0]!r}; names must be unique")
    if "" in inputs or "" in weights:
        raise ModelError(f"{where} has an input or initializer without a name")
    return {*inputs, *weights}


def _replace(field: Any, nodes: Sequence[Any]) -> None:
    copies = [type(node)() for node in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del field[:]
    field.extend(copies)


def _check_names(place: _Place) -> None:
    own = _own_names(place)
    scopes = (own, *place.outer)
    for node in place.graph.node:
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                raise ModelError(f"{place.where}: {title(node)} reads {name!r}, which nothing makes")
    if not place.graph.output and not place.depth:
        raise ModelError("the graph has no outputs, so there is nothing to compute; export it again")
    for output in place.graph.output:
        if not any(output.name in scope for scope in scopes):
            raise ModelError(f"{place.where}: output {output.name!r} is made by no node")


def _check_function(function: onnx.FunctionProto) -> None:
    where = f"function {function.name}"
    ordered = in_order(function.node, function.input, where)
    if ordered is not None:
        _replace(function.node, ordered)
    known = {*function.input, *(o for n in function.node for o in n.output)}
    for node in function.node:
        for name in node.input:
            if name and name not in known:
                raise ModelError(f"{where}: {title(node)} reads {name!r}, which nothing makes")
    for name in function.output:
        if name not in known:
            raise ModelError(f"{where}: output {name!r} is made by no node")
