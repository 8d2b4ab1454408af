"""`python -m exports`: export every network, run it at each of its sizes, hold it against the framework's own answer; a table at the end."""
from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path

from exports import matrix
from exports.judge import wanted, work
from exports.matrix import Family, Outcome, Verdict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WRITTEN = Console(width=None if sys.stdout.isatty() else 200)
COLUMNS = {Verdict.RIGHT: "right", Verdict.AS_ORT: "as ONNX Runtime", Verdict.WRONG: "wrong", Verdict.BROKEN: "broken file", Verdict.LATE: "over the limit", Verdict.REFUSED: "refused by the exporter",
           Verdict.ABSENT: "not exported here"}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("exports", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="families (torch_control) or cases (torch_control-cond-dynamo)")
    parser.add_argument("--keep", type=Path, help="a folder that keeps exports and refusals for the next run; empty it to export again")
    parser.add_argument("--kept", action="store_true", help="only what the folder has already: nothing is exported")
    parser.add_argument("--limit", type=float, default=240, help="seconds a case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="a file for every outcome with its reason")
    return parser.parse_args()


def main() -> int:
    asked = options()
    outcomes: list[Outcome] = []
    for family in matrix.FAMILIES:
        reason = family.missing()
        if reason and wanted(family.name, None, asked.only):
            outcomes.append(Outcome(family.world, "", family.name, "*", Verdict.ABSENT, reason))
        elif not reason and any(wanted(family.name, None, [part.partition("-")[0]]) for part in asked.only or [family.name]):
            outcomes += judged(family, asked)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    report(outcomes)
    return int(any(o.verdict in (Verdict.WRONG, Verdict.LATE) for o in outcomes))


def judged(family: Family, asked: argparse.Namespace) -> Iterator[Outcome]:
    """The family's outcomes, from a process of its own: a case that ends it or passes the limit is one outcome, and another process goes on."""
    context = multiprocessing.get_context("spawn")
    done = -1
    while done is not None:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(family, asked.only, asked.keep, asked.kept, asked.device, done + 1, there), daemon=True)
        process.start()
        there.close()
        done = yield from received(here, process.sentinel, asked.limit)
        process.kill()
        process.join()
        here.close()


def received(pipe: Connection, sentinel: int, limit: float) -> Iterator[Outcome]:
    """What a worker sends; returns the number of the case at which it stopped, or None at the end."""
    number, current = -1, Outcome("", "", "", "", Verdict.LATE, "")
    while True:
        ready = wait([pipe, sentinel], limit)
        try:
            message = pipe.recv() if pipe in ready or ready and pipe.poll() else None
        except EOFError:
            message = None
        if message == "end":
            return None
        if isinstance(message, tuple):
            number, current = message
            continue
        if message is None:
            if number < 0:
                raise SystemExit("a family could not be imported")
            message = current
            message.verdict, message.reason = (Verdict.WRONG, "the process ended") if ready else (Verdict.LATE, f"not done after {limit:.0f} s")
        said(message)
        yield message
        if message is current:
            return number


def said(outcome: Outcome) -> None:
    WRITTEN.print(escape(f"{outcome.family}-{outcome.case}: {outcome.verdict} {outcome.reason}"), soft_wrap=True, highlight=False)


def report(outcomes: list[Outcome]) -> None:
    counts: dict[tuple[str, str], Counter[Verdict]] = {}
    for outcome in outcomes:
        counts.setdefault((outcome.world, outcome.exporter), Counter())[outcome.verdict] += 1
    for verdict in (Verdict.AS_ORT, Verdict.BROKEN, Verdict.REFUSED, Verdict.ABSENT, Verdict.LATE, Verdict.WRONG):
        listed = [o for o in outcomes if o.verdict is verdict]
        if listed:
            WRITTEN.print(f"\n[bold]{COLUMNS[verdict]}[/bold]")
        for o in listed:
            WRITTEN.print(escape(f"  {o.family}-{o.case}: {o.reason}"), soft_wrap=True, highlight=False)
    parts = [o for o in outcomes if o.left_out]
    if parts:
        WRITTEN.print("\n[bold]exported in part[/bold]")
    for o in parts:
        WRITTEN.print(escape(f"  {o.family}-{o.case}: {'; '.join(o.left_out)}"), soft_wrap=True, highlight=False)
    table = Table("framework", "exporter", "exports", *COLUMNS.values(), title="exports")
    for (world, exporter), row in counts.items():
        made = sum(row[v] for v in (Verdict.RIGHT, Verdict.AS_ORT, Verdict.WRONG, Verdict.BROKEN, Verdict.LATE))
        table.add_row(world, exporter, str(made), *(str(row[v]) for v in COLUMNS))
    WRITTEN.print(table)


if __name__ == "__main__":
    sys.exit(main())
