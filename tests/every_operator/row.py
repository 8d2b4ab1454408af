"""A row of the table of operators: how its examples are made, and what holds them to account."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from every_operator.draw import Case, Draw
from every_operator.oracle import Nearness, declared, reference, same


class Row:
    """`oracle` gives the outputs wanted: the reference evaluator, or a function written here; `holds` asserts what is true of outputs
    that no oracle can know. `since`: the oldest version that the strategy makes. The rest is `Nearness`."""

    def __init__(self, strategy: Callable[[Draw], Case], oracle: Callable[[Case], list[Any]] = reference, since: int = 1,
                 holds: Callable[[Case, list[Any]], None] | None = None, **near: Any) -> None:
        self.strategy, self.oracle, self.since, self.holds, self.near = strategy, oracle, since, holds, Nearness(**near)

    def check(self, case: Case, got: list[Any]) -> None:
        dtypes = declared(case)
        for ours, dtype in zip(got, dtypes, strict=True):
            assert dtype is None or ours is None or not hasattr(ours, "dtype") or ours.dtype == dtype, f"{ours.dtype}, not {dtype}"
        if self.holds is not None:
            self.holds(case, got)
            return
        for ours, theirs, dtype in zip(got, self.oracle(case), dtypes, strict=True):
            same(ours, theirs, self.near, dtype)
