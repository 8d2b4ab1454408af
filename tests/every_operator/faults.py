"""Where an oracle is wrong: the operator, when, and why. There only types, and that it runs, are checked."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from every_operator.draw import Case


@dataclass(frozen=True)
class Fault:
    when: Callable[[Case], bool]
    reason: str


def opset(case: Case) -> int:
    return int(case.model.opset_import[0].version)


def integers(case: Case) -> bool:
    return case.inputs[0].dtype.kind in "iu"


FAULTS: dict[str, list[Fault]] = {
    "RoiAlign": [Fault(lambda c: opset(c) < 16, "the reference evaluator reads opset 10 as half_pixel")],
    "StringSplit": [Fault(lambda c: c.inputs[0].ndim == 0, "the reference evaluator refuses scalars")],
    "StringNormalizer": [Fault(lambda c: True, "the reference evaluator strips accents, cuts words at blanks and drops empty ones")],
    "GridSample": [Fault(lambda c: c.attributes.get("padding_mode") == "reflection" and 1 in c.inputs[0].shape[2:], "the reference evaluator divides by a border of 0")],
    "RMSNormalization": [Fault(lambda c: c.inputs[0].dtype != c.inputs[1].dtype, "type inference gives the output the type of X, the schema that of scale")],
    "TfIdfVectorizer": [Fault(lambda c: "weights" in c.attributes, "the reference evaluator takes the weights by their place in the output")],
    "SVMClassifier": [Fault(integers, "the reference evaluator cuts scores of integers")],
}


def fault_of(case: Case) -> str:
    """Why the oracle cannot be trusted with this example; empty if it can."""
    name = case.model.graph.node[-1].op_type
    return next((f.reason for f in FAULTS.get(name, ()) if f.when(case)), "")
