"""The demo's network (digits.onnx) and ten handwritten digits it was not trained on (samples.npz)."""
from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np


@dataclass(frozen=True)
class Samples:
    """images [10,1,8,8] of 0 to 16, their labels, and the network's accuracy on the `count` images it never saw."""

    images: np.ndarray
    labels: np.ndarray
    accuracy: float
    count: int


def model() -> bytes:
    return files("gpuonnx.demo").joinpath("digits.onnx").read_bytes()


def samples() -> Samples:
    with files("gpuonnx.demo").joinpath("samples.npz").open("rb") as file:
        data = np.load(file)
        return Samples(data["images"].astype(np.float32), data["labels"], float(data["accuracy"]), int(data["count"]))
