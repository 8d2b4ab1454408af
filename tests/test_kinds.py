"""Inputs of nodes against their schemas."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models import FLOAT, INT64, model
from onnx import helper

import gpuonnx
from gpuonnx.errors import ModelError, UnsupportedType
from gpuonnx.importer.kinds import formals

ARRAYS: dict[str, Any] = {"f": np.ones(3, np.float32), "i": np.ones(3, np.int64)}


def run(*nodes: Any, opset: int = 20) -> Any:
    used = {name for node in nodes for name in node.input} & set(ARRAYS)
    proto = model(nodes, {name: (FLOAT if name == "f" else INT64, [3]) for name in sorted(used)}, {"y": (FLOAT, [3])}, opset=opset)
    return gpuonnx.load(proto, device="cpu").run({name: ARRAYS[name] for name in used})["y"]


@pytest.mark.parametrize(("node", "kind", "words"), [
    (("Add", ["f", "i"]), ModelError, r"inputs 'f' \(f32\) and 'i' \(i64\) must be of one type: insert a Cast"),
    (("Max", ["f", "f", "i"]), ModelError, "must be of one type"),
    (("Sin", ["i"]), UnsupportedType, "input 'i' is i64; input of Sin may be .*f32.*: insert a Cast"),
    (("Sigmoid", [""]), ModelError, r"input 0 \(X\) of Sigmoid is required and absent"),
    (("Add", ["f"]), ModelError, r"input 1 \(B\) of Add is required and absent"),
])
def test_wrong_inputs_name_the_node_and_the_mend(node: tuple[str, list[str]], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        run(helper.make_node(*node, ["y"], "culprit"))
    assert "culprit" in str(raised.value)


def test_what_is_right_passes() -> None:
    assert run(helper.make_node("Max", ["f", "f", "f"], ["y"])).tolist() == [1, 1, 1]
    assert run(helper.make_node("Clip", ["f", "", ""], ["y"])).tolist() == [1, 1, 1]
    assert run(helper.make_node("Pow", ["f", "i"], ["y"])).tolist() == [1, 1, 1]
    assert run(helper.make_node("Neg", ["i"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=1), opset=6).tolist() == [-1, -1, -1]


def test_newer_types_are_allowed_in_older_versions_and_other_domains_are_not_looked_at() -> None:
    found = formals("", "Relu", 6)
    assert found is not None and "i32" in found[0].allowed
    assert formals("com.example", "Relu", 1) is None
