"""Where an oracle is wrong: the operator, when, and why. There only types, and that it runs, are checked."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from every_operator.draw import Case


@dataclass(frozen=True)
class Fault:
    when: Callable[[Case], bool]
    reason: str


FAULTS: dict[str, list[Fault]] = {}


def fault_of(case: Case) -> str:
    """Why the oracle cannot be trusted with this example; empty if it can."""
    name = case.model.graph.node[-1].op_type
    return next((f.reason for f in FAULTS.get(name, ()) if f.when(case)), "")
