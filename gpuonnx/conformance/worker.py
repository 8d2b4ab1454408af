"""A process that runs the cases named on its input and answers with a line of JSON each. `python -m gpuonnx.conformance.worker DEVICE THREADS`."""
from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from gpuonnx.conformance.suite import cases, run_case, why_skipped
from gpuonnx.planner.program import HostCall, Interpret

PLANNED = ("size", "output", "padding")


def answer(name: str, device: str, threads: int) -> dict[str, Any]:
    """Status, reason and seconds of one case; `interpreted` says of nodes that ran by NumPy or the onnx package for want of a kernel why,
    `placed` (operator, side, why) of what ran."""
    skipped = why_skipped(name)
    if skipped is not None:
        return {"name": name, "status": "skipped", "reason": skipped, "seconds": 0.0, "interpreted": [], "placed": []}
    begin = time.perf_counter()
    status, reason = "passed", ""
    interpreted: list[str] = []
    placed: dict[tuple[str, str, str], None] = {}
    try:
        session = run_case(name, device, threads).session
        for program in programs(session._main):
            about = [program.nodes[segment.node] for segment in program.segments if foreign(segment)]
            interpreted += [f"{node.why}; {', '.join(node.origins)[:80]}" for node in about]
            placed |= dict.fromkeys(placements(program))
    except AssertionError as error:
        status, reason = "failed", "differs: " + " ".join(str(error).split())
    except Exception as error:
        status, reason = "failed", f"{type(error).__name__}: " + " ".join(str(error).split())
    return {"name": name, "status": status, "reason": reason[:500], "seconds": time.perf_counter() - begin, "interpreted": interpreted,
            "placed": list(placed)}


def foreign(segment: Any) -> bool:
    """Whether a step is done by NumPy, or by the onnx package's reference implementation, for want of a kernel."""
    return isinstance(segment, Interpret) or isinstance(segment, HostCall) and segment.name == "reference"


def placements(program: Any) -> Iterator[tuple[str, str, str]]:
    """(operator, side, why) of every node that runs; copies between the sides are no operator's work."""
    for node in program.nodes:
        if node.kind != "Copy":
            for operator in dict.fromkeys(origin.split(" ", 1)[0] for origin in node.origins if origin not in PLANNED):
                yield operator, node.side, node.why


def programs(executable: Any) -> Iterator[Any]:
    """The programs of an executable, its bodies and what runs after it."""
    for variant in executable.variants:
        yield variant.loaded.program
        for inner in [*variant.bodies, *([variant.rest] if variant.rest is not None else [])]:
            yield from programs(inner)


def main() -> None:
    """What cases print must not get between the answers, so standard output is kept for these alone."""
    device, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    cases()
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(answer(line.strip(), device, threads)) + "\n")


if __name__ == "__main__":
    main()
