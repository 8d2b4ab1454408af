"""Counts exports by world and prints the table at the end of a run."""
from __future__ import annotations

from collections import Counter

import pytest

SEEN: dict[str, Counter[str]] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = (yield).get_result()
    world = dict(item.user_properties).get("world")
    if world and (report.when == "call" or report.outcome != "passed"):
        refused = any(name == "refused" for name, _ in item.user_properties)
        SEEN.setdefault(str(world), Counter())["refused" if refused else report.outcome] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not SEEN:
        return
    terminalreporter.section("exports")
    for world, counts in SEEN.items():
        total = counts["passed"] + counts["failed"]
        terminalreporter.line(f"{world}: {total} exports, {counts['passed']} right, {counts['failed']} wrong; "
                              f"{counts['refused']} that the framework does not export")
