"""Models that other frameworks export: the table of families, what an export is, and what makes one right."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Family:
    """Networks of one world that one module declares, and the packages that it needs."""

    world: str
    module: str
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]

    def missing(self) -> str | None:
        """A reason where the family cannot be exported here."""
        absent = [name for name in self.needs if find_spec(name) is None]
        return f"{self.module} needs {', '.join(absent)}: pip install -e '.[exports]'" if absent else None


@dataclass
class Export:
    """A model with inputs by name, in sets of different sizes, and the framework's own outputs for each set; `left_out`: outputs
    that the exporter refused, with its reasons."""

    model: bytes
    inputs: list[dict[str, Any]]
    outputs: list[list[Any]]
    rtol: float = 1e-4
    atol: float = 1e-5
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One export; `make` makes it. `differs` says why the framework's answer is not the file's: ONNX Runtime's is taken then. `broken` says why
    no runtime runs the file: an error of ours is expected, and one of ONNX Runtime's."""

    exporter: str
    name: str
    make: Callable[[], Export] = field(repr=False)
    differs: str | None = None
    broken: str | None = None


class NotExported(Exception):
    """The framework's exporter refused; the message is its own."""


def reason(error: BaseException) -> str:
    """The first words of what lies at the bottom of an exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300] or '?'}"


class Verdict(str, Enum):
    """RIGHT: as the framework says; AS_ORT: not, for the reason that the case declares, but as ONNX Runtime; BROKEN: a file that neither runs."""

    RIGHT = "right"
    AS_ORT = "as ONNX Runtime"
    WRONG = "WRONG"
    BROKEN = "broken"
    LATE = "LATE"
    REFUSED = "refused"
    ABSENT = "absent"

    def __str__(self) -> str:
        return self.value


@dataclass
class Outcome:
    """What became of a case, and why."""

    world: str
    exporter: str
    family: str
    case: str
    verdict: Verdict
    reason: str
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0


TORCH, SKLEARN, KERAS = ("torch", "onnxscript"), ("sklearn", "skl2onnx"), ("keras", "tensorflow", "tf2onnx")
FAMILIES = [
    *(Family("PyTorch", f"exports.torch_{name}", TORCH) for name in (
        "images", "layers", "shapes", "indexing", "recurrent", "attention", "detection", "graphs", "control", "types", "training", "diffusion", "speech", "places", "series")),
    *(Family("PyTorch", f"exports.torch_{name}", (*TORCH, "transformers")) for name in ("transformers", "language")),
    *(Family("PyTorch", f"exports.torch_{name}", (*TORCH, "torchvision")) for name in ("vision", "regions")),
    Family("PyTorch", "exports.torch_quantized", (*TORCH, "onnxruntime")),
    Family("PyTorch", "exports.torch_optimised", (*TORCH, "onnxruntime", "transformers")),
    *(Family("scikit-learn", f"exports.sklearn_{name}", SKLEARN) for name in ("estimators", "pipelines")),
    *(Family("scikit-learn", f"exports.sklearn_{name}", (*SKLEARN, "onnxmltools", "lightgbm", "xgboost", "pandas")) for name in ("boosting", "tables")),
    Family("Keras", "exports.keras_networks", KERAS),
    Family("TensorFlow", "exports.tf_networks", KERAS),
]
CASES: dict[str, list[Case]] = {}


def add(module: str, case: Case) -> None:
    known = CASES.setdefault(module, [])
    assert all(other.name != case.name for other in known), f"{case.name} is declared twice"
    known.append(case)


def cases(family: Family) -> list[Case]:
    """The family's cases; imports its module."""
    import_module(family.module)
    return CASES.get(family.module, [])


def compare(ours: Any, theirs: Any, export: Export, where: str) -> None:
    """Shapes, then types, then values; lists of maps key by key."""
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), f"{where} has {len(ours)} items, expected {len(theirs)}"
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            compare(a, b, export, f"{where}[{number}]")
        return
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), f"{where} has the keys {list(ours)}, expected {list(theirs)}"
        ours, theirs = (np.array(list(d.values()), np.float64) for d in (ours, theirs))
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{where} has shape {ours.shape}, expected {theirs.shape}"
    if theirs.dtype.kind in "OSU":
        assert ours.astype(str).tolist() == theirs.astype(str).tolist(), where
        return
    assert ours.dtype == theirs.dtype, f"{where} has type {ours.dtype}, expected {theirs.dtype}"
    if theirs.dtype.kind not in "biufc":
        ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
    scale = float(np.nanmax(np.abs(theirs[np.isfinite(theirs)]), initial=0)) if theirs.dtype.kind in "fc" else 0.0
    np.testing.assert_allclose(ours, theirs, rtol=export.rtol, atol=export.atol * max(scale, 1), err_msg=where)


def arrays(values: Sequence[Any]) -> list[Any]:
    """Outputs as NumPy arrays, nested tuples flattened, None left out."""
    flat: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            flat.extend(arrays(list(value.values())))
        elif isinstance(value, (tuple, list)):
            flat.extend(arrays(value))
        elif value is not None:
            flat.append(np.asarray(value))
    return flat
