"""List the operators of the standard and where their definitions are."""
from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

from gpuonnx.cli.options import console_of


@dataclass(frozen=True)
class Row:
    """An operator: opsets of the standard's versions, opsets of our definitions, and how it is done."""

    domain: str
    name: str
    versions: tuple[int, ...]
    defined: tuple[int, ...]
    how: str


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
        print("| domain | operator | opsets | defined from | how |\n|---|---|---|---|---|")
        for row in found:
            print("| " + " | ".join(_cells(row)) + " |")
    else:
        _print(found)
    return 0


def rows() -> list[Row]:
    """Every operator of the standard, and those declared with `@op` beside it."""
    from onnx import defs

    from gpuonnx.importer.control import LOWERINGS
    from gpuonnx.ops import registry
    registry.load_all()
    versions: dict[tuple[str, str], dict[int, bool]] = {}
    schema: Any
    for schema in defs.get_all_schemas_with_history():
        inline = bool(schema.has_function or schema.has_context_dependent_function)
        versions.setdefault((schema.domain, schema.name), {})[schema.since_version] = inline
    for key in registry.DEFINITIONS:
        versions.setdefault(key, {})
    found = []
    for (domain, name), known in sorted(versions.items()):
        defined = tuple(d.since for d in registry.DEFINITIONS.get((domain, name), []))
        control = domain == "" and name in LOWERINGS
        borrowed = bool(defined) and registry.DEFINITIONS[domain, name][-1].function.__module__ == "gpuonnx.ops.reference"
        how = ("Python on the host" if borrowed else "control flow" if control else "definition" if defined
               else "function of the standard" if any(known.values()) else "missing")
        found.append(Row(domain, name, tuple(sorted(known)), defined, how))
    return found


def _cells(row: Row) -> list[str]:
    return [row.domain or "ai.onnx", row.name, " ".join(map(str, row.versions)), " ".join(map(str, row.defined)), row.how]


def _print(found: list[Row]) -> None:
    from rich.table import Table
    table = Table("domain", "operator", "opsets", "defined from", "how")
    for row in found:
        table.add_row(*_cells(row))
    console = console_of()
    console.print(table)
    missing = sum(row.how == "missing" for row in found)
    console.print(f"{len(found)} operators, {missing} of them cannot be run")
