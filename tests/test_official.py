"""A seeded sample of the official suite, strictly against onnx_failures.txt; `gpuonnx conformance` runs all of it."""
from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpuonnx.conformance import runner, suite

KNOWN = suite.known_failures(Path(__file__).with_name("onnx_failures.txt"))
SAMPLE, SEED = 160, 20


@pytest.fixture(scope="module")
def results() -> dict[str, runner.Result]:
    names = [name for name in suite.cases() if name not in KNOWN]
    light = [name for name in names if suite.cases()[name].kind == "real"]
    sample = random.Random(SEED).sample([name for name in names if name not in light], SAMPLE)
    return {r.name: r for r in runner.run([*sample, *light[:1], *KNOWN], timeout=100)}


def test_sample_passes(results: dict[str, runner.Result]) -> None:
    failed = [f"{r.name}: {r.reason}" for r in results.values() if r.status == "failed" and r.name not in KNOWN]
    assert not failed, "\n".join(failed)


def test_known_failures_still_fail_and_have_a_reason(results: dict[str, runner.Result]) -> None:
    assert set(KNOWN) <= set(suite.cases()) and all(KNOWN.values())
    passed = [name for name, reason in KNOWN.items() if results[name].status == "passed" and not reason.startswith(suite.BY_CHANCE)]
    assert not passed, f"these pass and must leave onnx_failures.txt: {passed}"


def test_the_suite_is_whole() -> None:
    kinds = Counter(case.kind for case in suite.cases().values())
    assert kinds == {"node": 1884, "simple": 23, "pytorch-converted": 82, "pytorch-operator": 35, "real": 9}


def test_comparison_is_the_suites() -> None:
    one = np.ones(3, np.float32)
    suite.compare([one, [one, one]], [one, [one, one * 1.0009]], 1e-3, 1e-7)
    for got in (one * 1.002, one.astype(np.float64), one[:2], one.reshape(3, 1), one * np.nan):
        with pytest.raises(AssertionError):
            suite.compare([one], [got], 1e-3, 1e-7)
    with pytest.raises(AssertionError, match="1 outputs, expected 2"):
        suite.compare([one, one], [one], 1e-3, 1e-7)
    with pytest.raises(AssertionError, match="absent"):
        suite.compare([one], [None], 1e-3, 1e-7)
    strings = np.array(["a", "b"], object)
    suite.compare([strings], [strings.copy()], 0, 0)
    with pytest.raises(AssertionError):
        suite.compare([strings], [strings[::-1]], 0, 0)


def test_a_worker_that_dies_or_hangs_fails_its_case_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for the worker: it dies at `dies`, sleeps at `hangs`, answers the rest."""
    script = tmp_path / "worker.py"
    script.write_text("import json, os, sys, time\nprint(json.dumps({'ready': True}), flush=True)\nfor line in sys.stdin:\n"
                      "    name = line.strip()\n    if name == 'dies': sys.stderr.write('last words'); sys.stderr.flush(); os._exit(7)\n"
                      "    if name == 'hangs': time.sleep(60)\n    print(json.dumps({'name': name, 'status': 'passed'}), flush=True)\n")
    monkeypatch.setattr(runner, "COMMAND", [str(script)])
    names = ["a", "dies", "b", "hangs", "c", "dies", "d"]
    seen: list[str] = []
    results = runner.run(names, jobs=2, timeout=1.0, each=lambda r: seen.append(r.name))
    assert [r.status for r in results] == ["passed", "failed", "passed", "failed", "passed", "failed", "passed"]
    assert "code 7" in results[1].reason and "last words" in results[1].reason and "hangs" in results[3].reason
    assert sorted(seen) == sorted(names)
