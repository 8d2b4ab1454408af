"""Call "rnn": see recurrent.py."""
from __future__ import annotations

from gpuonnx.kernels.contract import Build, Spec
from gpuonnx.kernels.cuda.recurrent import build_cell, supports


def build(call: Spec) -> Build:
    return build_cell("rnn", call)


__all__ = ["build", "supports"]
