"""Nodes in an order of execution: unsorted graphs are sorted, cycles and doubled names are refused."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from gpuonnx.errors import ModelError
from gpuonnx.importer.procedure import captured, read_names

if TYPE_CHECKING:
    import onnx


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The sub-graphs of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def title(node: onnx.NodeProto) -> str:
    """Operator and name of a node, or its first output where it has no name."""
    return f"{node.op_type or 'a node without op_type'} {node.name or next((o for o in node.output if o), '')}".strip()


def needs(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those that its sub-graphs capture included."""
    names = read_names(node)
    for graph in bodies(node):
        names += captured(graph)
    return names


def in_order(nodes: Sequence[onnx.NodeProto], given: Iterable[str], where: str) -> list[onnx.NodeProto] | None:
    """The nodes sorted, those that are ready in the file's order first; None where the file's order is right already.

    `given` names what is there before the first node."""
    known = set(given)
    wanted = [needs(node) for node in nodes]
    made = _makers(nodes, known, where)
    seen = set(known)
    for node, names in zip(nodes, wanted, strict=True):
        if any(name in made and name not in seen for name in names):
            return _sorted(nodes, wanted, made, where)
        seen.update(node.output)
    return None


def _makers(nodes: Sequence[onnx.NodeProto], known: set[str], where: str) -> dict[str, int]:
    """The position of the node that makes each name; every name is made once."""
    made: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for name in node.output:
            if not name:
                continue
            if name in made:
                raise ModelError(f"{where}: {name!r} is made twice, by {title(nodes[made[name]])} and by {title(node)}; names must be unique")
            if name in known:
                raise ModelError(f"{where}: {title(node)} makes {name!r}, which is an input or an initializer; names must be unique")
            made[name] = position
    return made


def _sorted(nodes: Sequence[onnx.NodeProto], wanted: list[list[str]], made: dict[str, int], where: str) -> list[onnx.NodeProto]:
    users: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for position, names in enumerate(wanted):
        for maker in {made[name] for name in names if name in made}:
            users[maker].append(position)
            waiting[position] += 1
    ready = deque(position for position, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        position = ready.popleft()
        order.append(position)
        for user in users[position]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    if len(order) < len(nodes):
        raise ModelError(f"{where}: nodes wait for each other in a circle: {_circle(nodes, wanted, made, waiting)}")
    return [nodes[position] for position in order]


def _circle(nodes: Sequence[onnx.NodeProto], wanted: list[list[str]], made: dict[str, int], waiting: list[int]) -> str:
    """One circle among the nodes that never became ready, as text."""
    position = next(p for p, count in enumerate(waiting) if count)
    path: list[int] = []
    while position not in path:
        path.append(position)
        position = next(made[name] for name in wanted[position] if name in made and waiting[made[name]])
    circle = path[path.index(position):]
    names = [title(nodes[p]) for p in reversed(circle)]
    shown = names if len(names) <= 8 else [*names[:4], f"... {len(names) - 8} more ...", *names[-4:]]
    return " -> ".join([*shown, names[0]])
