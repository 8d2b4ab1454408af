"""Every operator of the standard on examples that hypothesis makes from its schema, on every device.

The plain run makes a few, always the same ones; the first is the smallest that there is, and only the CPU tries it. `GPUONNX_DEEP=n` makes n times 20 on the CPU and n times 8 on the emulated GPU, others
each time; `GPUONNX_DEEP_LAST=file` writes down the example about to run, for when it ends the interpreter.
"""
from __future__ import annotations

import os
from typing import Any

import on_devices
import pytest
from every_operator.draw import Case, Draw, versions
from every_operator.faults import fault_of
from every_operator.row import Row
from every_operator.table import NOT_HERE, ROWS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import defs

import gpuonnx

DEEP = int(os.environ.get("GPUONNX_DEEP", "0"))
EXAMPLES = {"cpu": 20 * DEEP or 2, "emulated-cuda": 8 * DEEP or 2}
DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview.training")


def test_every_operator_of_the_standard_is_in_the_table() -> None:
    standard = {(s.domain, s.name) for s in defs.get_all_schemas_with_history() if s.domain in DOMAINS}
    assert standard == ROWS.keys() | NOT_HERE.keys()
    assert not ROWS.keys() & NOT_HERE.keys()


@st.composite
def cases(draw: Any, row: Row, schemas: list[Any]) -> Case:
    return row.strategy(Draw(draw, schemas))


@pytest.mark.parametrize("operator", ROWS, ids=lambda o: ".".join(o).lstrip("."))
def test_operator(operator: tuple[str, str], every_device: str) -> None:
    row = ROWS[operator]
    seen: list[Case] = []
    schemas = [s for s in versions(*operator) if s.since_version >= row.since]

    @settings(max_examples=EXAMPLES[every_device], derandomize=not DEEP, database=None, deadline=None, report_multiple_bugs=True,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink] if DEEP else [Phase.generate])
    @given(cases(row, schemas))
    def examples(case: Case) -> None:
        seen.append(case)
        if DEEP or every_device == "cpu" or len(seen) > 1:
            check(row, case)

    examples()


def check(row: Row, case: Case) -> None:
    record(case)
    if case.bad:
        with pytest.raises(gpuonnx.GpuOnnxError, match=case.bad):
            on_devices.run(case.model, case.feeds)
        return
    got = list(on_devices.run(case.model, case.feeds).values())
    if not fault_of(case):
        row.check(case, got)


def record(case: Case) -> None:
    """The example about to run, for when it ends the interpreter."""
    place = os.environ.get("GPUONNX_DEEP_LAST")
    if place:
        with open(place, "w", encoding="utf-8") as file:
            file.write(repr(case))
