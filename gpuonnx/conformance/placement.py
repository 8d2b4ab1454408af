"""Where the operators of the cases ran: on the device, or on the host and why."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuonnx.conformance.runner import Result


@dataclass(frozen=True)
class Operator:
    """In how many cases something of it ran on the device and on the host; `why` counts the cases of each reason there.
    Views, constants and sizes run nowhere."""

    name: str
    device: int
    host: int
    why: Mapping[str, int]


def operators(results: Iterable[Result]) -> list[Operator]:
    """Every operator that ran, by name."""
    sides: dict[str, Counter[str]] = {}
    why: dict[str, Counter[str]] = {}
    for result in results:
        for name, side in {(name, side) for name, side, _ in result.placed}:
            sides.setdefault(name, Counter())[side] += 1
        for name, reason in {(name, reason) for name, side, reason in result.placed if side == "host"}:
            why.setdefault(name, Counter())[reason] += 1
    return [Operator(name, sides[name]["device"], sides[name]["host"], dict(why.get(name, Counter()).most_common())) for name in sorted(sides)]
