"""The operators of the standard and what becomes of each: types, definitions, kernels of both devices, fused or not."""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpuonnx.cli.options import console_of

HEADS = ("domain", "operator", "opsets", "types", "defined from", "how", "CPU kernel", "CUDA kernel", "fused")


@dataclass(frozen=True)
class Row:
    """An operator: opsets of the standard's versions, types of its last version, opsets of our definitions, and how it is done.

    kernels: the named ones that it may call; without_cuda: those of them that run on the host of a GPU; python: some of its cases
    (text, sequences) run in Python; fused: it is element loops, folds and views, which neighbours may be fused with."""

    domain: str
    name: str
    versions: tuple[int, ...]
    types: tuple[str, ...]
    defined: tuple[int, ...]
    how: str
    kernels: tuple[str, ...]
    without_cuda: tuple[str, ...]
    python: bool
    fused: bool


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", metavar="D", help="ai.onnx, ai.onnx.ml, ... (default: all)")
    parser.add_argument("--missing", action="store_true", help="only those that cannot be run")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    parser.add_argument("--json", action="store_true", help="a JSON list on standard output")


def execute(args: argparse.Namespace) -> int:
    domain = None if args.domain is None else "" if args.domain == "ai.onnx" else args.domain
    found = [row for row in rows() if (domain is None or row.domain == domain) and not (args.missing and row.how != "missing")]
    if args.json:
        print(json.dumps([asdict(row) for row in found]))
    elif args.markdown:
        print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
        for row in found:
            print("| " + " | ".join(_cells(row)) + " |")
    else:
        _print(found)
    return 0


def rows() -> list[Row]:
    """Every operator of the standard, and those declared with `@op` or lowered as control flow beside it."""
    from onnx import defs

    from gpuonnx.importer.lower import LOWERINGS
    from gpuonnx.ops import registry
    registry.load_all()
    schemas: dict[tuple[str, str], dict[int, Any]] = {}
    schema: Any
    for schema in defs.get_all_schemas_with_history():
        schemas.setdefault((schema.domain, schema.name), {})[schema.since_version] = schema
    for key in (*registry.DEFINITIONS, *LOWERINGS):
        if not key[0].startswith(registry.INTERNAL):
            schemas.setdefault(key, {})
    return [_row(*key, known) for key, known in sorted(schemas.items())]


def _row(domain: str, name: str, schemas: dict[int, Any]) -> Row:
    from gpuonnx.cli.reach import Reach, has_body
    from gpuonnx.importer.lower import LOWERINGS
    from gpuonnx.ops import registry
    defined = registry.DEFINITIONS.get((domain, name), [])
    reaches = list(_reaches(domain, name, schemas))
    kernels = tuple(sorted({k for r in reaches for k in r.kernels}))
    found = Reach(kernels, any(r.python for r in reaches), bool(reaches) and all(r.fused for r in reaches), any(r.launches for r in reaches))
    control = (domain, name) in LOWERINGS
    inline = any(s.has_function or s.has_context_dependent_function for s in schemas.values())
    only_python = found.python and not (found.fused or found.launches)
    how = ("control flow" if control else "Python on the host" if defined and only_python else "definition" if defined
           else "function of the standard" if inline else "missing")
    return Row(domain, name, tuple(sorted(schemas)), _types(schemas), tuple(d.since for d in defined), how, found.kernels,
               tuple(k for k in found.kernels if not has_body(k, "cuda")), found.python, found.fused)


def _reaches(domain: str, name: str, schemas: dict[int, Any], depth: int = 0) -> Iterator[Any]:
    """Of the definitions; where there is none, of the operators in the standard's function."""
    from gpuonnx.cli.reach import reach
    from gpuonnx.ops import registry
    defined = registry.DEFINITIONS.get((domain, name), [])
    if not defined and schemas and depth < 4:
        last = schemas[max(schemas)]
        for node in last.function_body.node if last.has_function else ():
            yield from _reaches(node.domain, node.op_type, {}, depth + 1)
    for d in defined:
        yield reach(d.function)


def _types(schemas: dict[int, Any]) -> tuple[str, ...]:
    """Types of tensors that the last version's inputs and outputs may have; containers by their kind."""
    if not schemas:
        return ()
    last = schemas[max(schemas)]
    named = {c.type_param_str: c.allowed_type_strs for c in last.type_constraints}
    allowed = [t for io in [*last.inputs, *last.outputs] for t in named.get(io.type_str, [io.type_str])]
    short = [t.removeprefix("tensor(").removesuffix(")") if t.startswith("tensor(") else t.partition("(")[0] for t in allowed]
    return tuple(dict.fromkeys(short))


def _cells(row: Row) -> list[str]:
    def kernels(names: Sequence[str], other: str) -> str:
        parts = [*names, *(["generated"] if row.how in ("definition", "function of the standard") else []), *([other] if row.python else [])]
        return ", ".join(parts) or {"control flow": "runs its bodies"}.get(row.how, "")
    on_cuda = kernels([k for k in row.kernels if k not in row.without_cuda], "Python on the host")
    lacking = "".join(f"; {k} on the host" for k in row.without_cuda)
    return [row.domain or "ai.onnx", row.name, " ".join(map(str, row.versions)), " ".join(row.types), " ".join(map(str, row.defined)), row.how,
            kernels(row.kernels, "Python"), on_cuda + lacking, "yes" if row.fused else "no"]


def _print(found: list[Row]) -> None:
    from rich.table import Table
    table = Table(*HEADS)
    for row in found:
        table.add_row(*_cells(row))
    console = console_of()
    console.print(table)
    missing = sum(row.how == "missing" for row in found)
    lacking = sorted({k for row in found for k in row.without_cuda})
    console.print(f"{len(found)} operators, {sum(row.fused for row in found)} fuse, {missing} cannot be run; "
                  f"kernels that CUDA lacks: {', '.join(lacking) or 'none'}")
