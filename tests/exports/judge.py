"""What became of one case: exported, run, compared; and the process that does a family."""
from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from exports.matrix import Case, Export, Family, NotExported, Outcome, Verdict, compare
from exports.matrix import cases as cases_of


def work(family: Family, only: list[str], keep: Path | None, kept: bool, device: str, first: int, pipe: Connection) -> None:
    """Judge the family's cases from number `first` on, and send each outcome."""
    cases = [case for case in cases_of(family) if wanted(family.name, case, only) and not (kept and keep and not in_folder(family, case, keep))]
    for number, case in enumerate(cases[first:], first):
        outcome = Outcome(family.world, case.exporter, family.name, case.name, Verdict.LATE, "")
        pipe.send((number, outcome))
        start = time.perf_counter()
        judge(family, case, keep, device, outcome)
        outcome.seconds = round(time.perf_counter() - start, 1)
        pipe.send(outcome)
    pipe.send("end")


def wanted(family: str, case: Case | None, only: list[str]) -> bool:
    return not only or family in only or case is not None and f"{family}-{case.name}" in only


def in_folder(family: Family, case: Case, keep: Path) -> bool:
    return any((keep / f"{family.name}-{case.name}{kind}").exists() for kind in (".pickle", ".refused"))


def exported(family: Family, case: Case, keep: Path | None) -> Export:
    """Export, or take what an earlier run kept in the folder `keep`: the export, or the refusal. Raises NotExported."""
    if keep is None:
        return case.make()
    path = keep / f"{family.name}-{case.name}.pickle"
    refusal = path.with_suffix(".refused")
    if refusal.exists():
        raise NotExported(refusal.read_text())
    if not path.exists():
        keep.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(pickle.dumps(case.make()))
        except NotExported as error:
            refusal.write_text(str(error))
            raise
    return pickle.loads(path.read_bytes())


def judge(family: Family, case: Case, keep: Path | None, device: str, outcome: Outcome) -> None:
    """Export, run every set of inputs in one session, compare; write verdict and reason."""
    try:
        export = exported(family, case, keep)
    except NotExported as refusal:
        outcome.verdict, outcome.reason = Verdict.REFUSED, str(refusal)
        return
    except Exception as error:
        outcome.verdict, outcome.reason = Verdict.WRONG, f"the network itself: {shown(error)}"
        return
    outcome.left_out = export.left_out
    try:
        if case.broken is not None:
            assert refused(lambda: answers(export, device)) and refused(lambda: onnxruntime_answers(export)), f"it runs, though it is declared broken: {case.broken}"
            outcome.verdict, outcome.reason = Verdict.BROKEN, case.broken
            return
        given = answers(export, device)
        if case.differs is None:
            agree(given, export.outputs, export)
            outcome.verdict = Verdict.RIGHT
        else:
            agree(given, onnxruntime_answers(export), export)
            outcome.verdict, outcome.reason = Verdict.AS_ORT, case.differs
    except Exception as error:
        outcome.verdict, outcome.reason = Verdict.WRONG, shown(error)


def refused(run: Callable[[], object]) -> bool:
    try:
        run()
    except AssertionError:
        raise
    except Exception:
        return True
    return False


def shown(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def answers(export: Export, device: str) -> list[list[Any]]:
    import gpuonnx
    session = gpuonnx.load(export.model, device=device)
    return [list(session.run(inputs).values()) for inputs in export.inputs]


def onnxruntime_answers(export: Export) -> list[list[Any]]:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(export.model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, inputs) for inputs in export.inputs]


def agree(given: list[list[Any]], wanted: list[list[Any]], export: Export) -> None:
    """Raises AssertionError for a difference."""
    for row, (ours, theirs) in enumerate(zip(given, wanted, strict=True)):
        assert len(ours) == len(theirs), f"{len(ours)} outputs, expected {len(theirs)}"
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            compare(a, b, export, f"set {row}, output {number}")
