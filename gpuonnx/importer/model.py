"""A loaded model as its main procedure."""
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import ModelError, UnsupportedOp
from gpuonnx.importer.control import LOWERINGS
from gpuonnx.importer.load import LoadedModel, tensor_array
from gpuonnx.importer.procedure import Environment, Procedure, input_info
from gpuonnx.ops import registry

if TYPE_CHECKING:
    import onnx


def main_procedure(model: LoadedModel) -> Procedure:
    """The main graph; every operator that has no definition is reported at once."""
    graph = model.proto.graph
    opsets: dict[str, int] = {}
    for entry in model.proto.opset_import:
        domain = registry.ALIASES.get(entry.domain, entry.domain)
        opsets[domain] = max(opsets.get(domain, 0), int(entry.version))
    functions = {(f.domain, f.name): f for f in model.proto.functions}
    environment = Environment(opsets, functions, partial(tensor_array, folder=model.folder))
    constants: dict[str, Any] = {t.name: t for t in graph.initializer}
    for sparse in graph.sparse_initializer:
        constants[sparse.values.name] = _dense(sparse, environment)
    inputs = tuple(input_info(i) for i in graph.input if i.name not in constants)
    infos = tuple(input_info(o) for o in graph.output)
    procedure = Procedure(graph.name or "main", model.nodes, inputs, tuple(o.name for o in graph.output), constants, environment, infos)
    _check(procedure)
    return procedure


def _dense(sparse: Any, environment: Environment) -> Any:
    """A sparse initializer as a dense array; indices are linear or one row a value."""
    import numpy as np
    values, indices = environment.array(sparse.values), environment.array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 2:
        indices = np.ravel_multi_index(tuple(indices.T), out.shape)
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < max(out.size, 1):
        raise ModelError(f"sparse initializer {sparse.values.name!r} has an index outside its shape {list(out.shape)}")
    out.reshape(-1)[indices] = values
    return out


def _check(procedure: Procedure) -> None:
    missing: dict[tuple[str, str, int], list[str]] = {}
    _scan(procedure.nodes, procedure.environment, missing, 0)
    if missing:
        lines = [f"  {domain or 'ai.onnx'}.{name} (opset {opset}): {', '.join(nodes[:3])}{' and %d more' % (len(nodes) - 3) if len(nodes) > 3 else ''}"
                 for (domain, name, opset), nodes in missing.items()]
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
    if domain == "" and node.op_type in LOWERINGS or (node.domain, node.op_type) in environment.functions:
        return True
    opset = environment.opsets.get(domain, 1)
    if registry.find(domain, node.op_type, opset) is not None:
        return True
    from onnx import defs
    if not defs.has(node.op_type, opset, domain):
        return False
    schema = defs.get_schema(node.op_type, opset, domain)
    return bool(schema.has_function or schema.has_context_dependent_function)
