"""A loaded model as its main procedure."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuonnx.errors import UnsupportedOp
from gpuonnx.importer.load import LoadedModel
from gpuonnx.importer.lower import LOWERINGS
from gpuonnx.importer.procedure import Environment, Procedure
from gpuonnx.ops import registry

if TYPE_CHECKING:
    import onnx


def main_procedure(model: LoadedModel) -> Procedure:
    """The main graph; every operator that has no definition is reported at once."""
    procedure = model.procedure()
    _check(procedure)
    return procedure


def _check(procedure: Procedure) -> None:
    missing: dict[tuple[str, str, int], list[str]] = {}
    _scan(procedure.nodes, procedure.environment, missing, 0)
    if missing:
        lines = []
        for (domain, name, opset), nodes in missing.items():
            more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
            lines.append(f"  {domain or 'ai.onnx'}.{name} (opset {opset}): {', '.join(nodes[:3])}{more}")
        raise UnsupportedOp(f"{len(missing)} operator{'s' * (len(missing) > 1)} of this model cannot be run:\n" + "\n".join(lines)
                            + "\nDefine them with @gpuonnx.op(name, since=1, domain=...), or export the model with standard operators.")


def _scan(nodes: Any, environment: Environment, missing: dict[tuple[str, str, int], list[str]], depth: int) -> None:
    for node in nodes:
        if not _known(node, environment):
            opset = environment.opsets.get(registry.ALIASES.get(node.domain, node.domain), 1)
            missing.setdefault((node.domain, node.op_type, opset), []).append(node.name or (node.output[0] if node.output else "?"))
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                if depth < 64:
                    _scan(graph.node, environment, missing, depth + 1)


def _known(node: onnx.NodeProto, environment: Environment) -> bool:
    domain = registry.ALIASES.get(node.domain, node.domain)
    if (domain, node.op_type) in LOWERINGS or (node.domain, node.op_type) in environment.functions:
        return True
    opset = environment.opsets.get(domain, 1)
    if registry.find(domain, node.op_type, opset) is not None:
        return True
    from onnx import defs
    if not defs.has(node.op_type, opset, domain):
        return False
    schema: Any = defs.get_schema(node.op_type, opset, domain)
    return bool(schema.has_function or schema.has_context_dependent_function)
