"""Run the official ONNX backend tests."""
from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gpuonnx.cli.options import positive

if TYPE_CHECKING:
    from gpuonnx.conformance.placement import Operator
    from gpuonnx.conformance.runner import Result


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name the regular expression is found in")
    parser.add_argument("--device", default="cpu", metavar="D", help="(default: cpu)")
    parser.add_argument("-j", "--jobs", type=positive, default=1, metavar="N", help="processes side by side (default: 1)")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads of each process (default: 1)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds after which a case hangs (default: 120)")
    parser.add_argument("--known", metavar="FILE", help="failures that are known, `id | reason` a line: others fail the run, so do mended ones")
    parser.add_argument("--update", action="store_true", help="write the failures found to the file of --known; reasons there are kept")
    parser.add_argument("--reasons", action="store_true", help="failures gathered by reason")
    parser.add_argument("--placement", action="store_true", help="a table of the operators: cases that ran on the device, on the host and why")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def execute(args: argparse.Namespace) -> int:
    """Exit code 1 where a case fails that is not known to, or passes that is known to fail."""
    from gpuonnx.conformance import placement, runner, suite
    names = suite.chosen(args.only)
    known = suite.known_failures(args.known) if args.known else {}
    begin = time.perf_counter()
    results = _watched(names, args)
    seconds = time.perf_counter() - begin
    unexpected = [r for r in results if r.status == "failed" and r.name not in known]
    mended = [r.name for r in results if r.status == "passed" and not known.get(r.name, suite.BY_CHANCE).startswith(suite.BY_CHANCE)]
    if args.update and args.known:
        update(Path(args.known), results, known)
    operators = placement.operators(results)
    if args.json:
        print(json.dumps({"device": args.device, "seconds": seconds, **runner.counts(results), "results": [asdict(r) for r in results],
                          "operators": [asdict(o) for o in operators], "unexpected": [r.name for r in unexpected], "mended": mended}))
    else:
        _print(results, known, mended, seconds, args.reasons)
        if args.placement:
            _print_placement(operators)
    return 1 if unexpected or mended else 0


def update(path: Path, results: Sequence[Result], known: dict[str, str]) -> None:
    """Put the failures of `results` in the list; other cases stay as they are."""
    seen = {r.name for r in results}
    kept = {name: reason for name, reason in known.items() if name not in seen}
    failed = {r.name: known.get(r.name, r.reason.replace("|", "/")[:200]) for r in results if r.status == "failed"}
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    path.write_text("\n".join([*head, *(f"{name} | {reason}" for name, reason in sorted({**kept, **failed}.items()))]) + "\n")


def _watched(names: Sequence[str], args: argparse.Namespace) -> list[Result]:
    """Run with a progress bar on a terminal's standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gpuonnx.conformance import runner
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("0 failed", total=len(names))
        failed = 0

        def each(result: Result) -> None:
            nonlocal failed
            failed += result.status == "failed"
            progress.update(task, advance=1, description=f"{failed} failed")
        return runner.run(names, args.device, args.jobs, args.timeout, args.threads, each)


def by_reason(reasons: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(first reason, names) of like reasons, numbers and quoted names apart; the most frequent first. Takes (name, reason) pairs."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, reason in reasons:
        found.setdefault(re.sub(r"'[^']*'|\d+", "#", reason)[:110], []).append((name, reason))
    gathered = [(pairs[0][1], list(dict.fromkeys(name for name, _ in pairs))) for pairs in found.values()]
    return sorted(gathered, key=lambda item: -len(item[1]))


def _print(results: Sequence[Result], known: dict[str, str], mended: Sequence[str], seconds: float, reasons: bool) -> None:
    from gpuonnx.conformance import runner
    if reasons:
        print("failed:")
        for reason, names in by_reason((r.name, r.reason) for r in results if r.status == "failed"):
            print(f"{len(names):4} {reason[:240]}\n     {', '.join(names)}")
        print("without a kernel:")
        for reason, names in by_reason((r.name, why.partition(";")[0]) for r in results for why in r.interpreted):
            print(f"{len(names):4} {reason[:240]}\n     {', '.join(names)}")
    else:
        for result in results:
            if result.status == "failed":
                print(f"{result.name} | {result.reason}" + (f" (known: {known[result.name]})" if result.name in known else ""))
    for name in mended:
        print(f"{name} passes and must leave the list of known failures")
    counted = runner.counts(results)
    partly = sum(1 for r in results if r.status == "passed" and r.interpreted)
    print(f"{counted['passed']} passed ({partly} with nodes that ran by NumPy or the onnx package for want of a kernel), "
          f"{counted['failed']} failed, {counted['skipped']} skipped "
          f"of {len(results)} in {seconds:.0f} s")


def _print_placement(operators: Sequence[Operator]) -> None:
    from rich.table import Table

    from gpuonnx.cli.options import console_of
    table = Table("operator", "cases on the device", "on the host", "why on the host (cases)")
    for o in operators:
        reasons = "; ".join(f"{why} ({count})" for why, count in o.why.items())
        table.add_row(o.name, str(o.device or "-"), str(o.host or "-"), reasons)
    console = console_of()
    console.print(table)
    only_host = [o for o in operators if o.host and not o.device]
    console.print(f"{len(operators)} operators did something: {sum(not o.host for o in operators)} on the device only, "
                  f"{len(operators) - len(only_host) - sum(not o.host for o in operators)} on both, {len(only_host)} on the host only")
