"""Show a model's inputs, outputs, opsets, operators and weights; nothing is compiled."""
from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpuonnx.cli.feeds import shown
from gpuonnx.cli.options import console_of

if TYPE_CHECKING:
    from gpuonnx.importer.load import LoadedModel


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def execute(args: argparse.Namespace) -> int:
    """Exit code 1 where the model uses operators that have no definition."""
    from gpuonnx.importer.load import load_model
    loaded = load_model(args.model)
    found = facts(loaded)
    if args.json:
        print(json.dumps(found))
    else:
        _print(args.model, found)
    return 1 if found["unsupported"] else 0


def facts(model: LoadedModel) -> dict[str, Any]:
    proto = model.proto
    procedure = model.procedure()
    operators: Counter[tuple[str, str]] = Counter((node.domain, node.op_type) for node in nodes(proto))
    weights = [(tuple(t.dims), t) for t in proto.graph.initializer] + [(tuple(t.dims), t.values) for t in proto.graph.sparse_initializer]
    return {
        "bytes": model.size, "sha256": model.digest, "ir_version": proto.ir_version,
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(), "opsets": {d or "ai.onnx": v for d, v in model.opsets.items()},
        "inputs": [{"name": i.name, "type": i.dtype, "shape": i.dims} for i in procedure.inputs],
        "outputs": [{"name": o.name, "type": o.dtype, "shape": o.dims} for o in procedure.output_infos],
        "nodes": sum(operators.values()), "operators": {f"{domain or 'ai.onnx'}.{name}": n for (domain, name), n in operators.most_common()},
        "functions": [f"{domain}.{name}" for domain, name in model.functions], "weights": len(weights),
        "parameters": sum(math.prod(dims) for dims, _ in weights), "external_data": list(model.external),
        "metadata": {entry.key: entry.value for entry in proto.metadata_props}, "doc": proto.graph.doc_string or proto.doc_string,
        "unsupported": _unsupported(model),
    }


def nodes(model: Any) -> Iterator[Any]:
    """Every node of a model, those of sub-graphs and functions too."""
    holders: list[Any] = [model.graph, *model.functions]
    while holders:
        for node in holders.pop().node:
            yield node
            for attribute in node.attribute:
                holders += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _unsupported(model: LoadedModel) -> str:
    from gpuonnx.errors import UnsupportedOp
    from gpuonnx.importer.model import main_procedure
    try:
        main_procedure(model)
    except UnsupportedOp as error:
        return str(error)
    return ""


def _print(path: str, found: dict[str, Any]) -> None:
    from rich.table import Table
    console = console_of()
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    console.print(f"{path}: {found['bytes']:,} bytes, {found['nodes']} nodes, {found['weights']} weights with "
                  f"{found['parameters']:,} elements")
    console.print(f"opset {opsets}; IR version {found['ir_version']}; made by {found['producer'] or 'unknown'}")
    if found["doc"]:
        console.print(found["doc"].strip()[:500])
    ends = Table("", "name", "type", "shape")
    for side, these in (("in", found["inputs"]), ("out", found["outputs"])):
        for io in these:
            ends.add_row(side, io["name"], io["type"], "" if io["shape"] is None else shown(tuple(io["shape"])))
    console.print(ends)
    operators = Table("operator", "nodes")
    for name, count in found["operators"].items():
        operators.add_row(name, str(count))
    console.print(operators)
    for title in ("functions", "external_data"):
        if found[title]:
            console.print(f"{title.replace('_', ' ')}: {', '.join(found[title])}")
    if found["unsupported"]:
        console.print(found["unsupported"])
