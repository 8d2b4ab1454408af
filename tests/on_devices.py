"""Suites that are written once and run on every device: the CPU, and the emulated GPU with races, bounds and unwritten memory checked."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

import gpuonnx

DEVICES = ("cpu", "emulated-cuda")
current = "cpu"


def run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The model's outputs on the device of the fixture `every_device`; no kernel may be missing there."""
    session = gpuonnx.load(model, device=current)
    found = dict(session.run(feeds))
    assert "there is no CUDA kernel" not in session.explain("plan")
    return found
