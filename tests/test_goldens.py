"""What becomes of small models, stage by stage, kept as text; and valid IR in, valid IR out, with the same results, after every pass.

`GPUONNX_UPDATE_GOLDENS=1 pytest tests/test_goldens.py` accepts what is made now: read the difference with git before committing it."""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_models import MODELS, Golden, Shapes
from passes_oracle import run

from gpuonnx import passes
from gpuonnx.codegen.cache import KernelCache
from gpuonnx.devices.cpu import Cpu
from gpuonnx.devices.emulated import EmulatedCuda
from gpuonnx.importer.load import load_model, open_model
from gpuonnx.importer.lower import lower
from gpuonnx.importer.model import main_procedure
from gpuonnx.importer.procedure import Argument, Procedure
from gpuonnx.ir import graph as g
from gpuonnx.ir.show import graph as shown
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.ir.verify import verify
from gpuonnx.kernels.contract import Kernel
from gpuonnx.kernels.cpu import micro
from gpuonnx.planner.place import place
from gpuonnx.runtime.explain import plan_text
from gpuonnx.runtime.saved import Compiled
from gpuonnx.session import Compiler, Options

FOLDER = Path(__file__).parent / "goldens"
UPDATE = "GPUONNX_UPDATE_GOLDENS"
COMMAND = f"{UPDATE}=1 pytest tests/test_goldens.py"
DEVICES = ("cpu", "emulated-cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans as on a CPU with AVX2 and no dot products, whatever this one has. Nothing is compiled."""
    fixed = micro.Target(32, (12, 6, 4), True, False, "avx2")
    monkeypatch.setattr(micro, "target", lambda: fixed)


def planner(device: str) -> EmulatedCuda | None:
    """The CUDA device as the planner sees it: no machine behind it, so that no compiler is needed."""
    return None if device == "cpu" else object.__new__(EmulatedCuda)


def procedure_of(golden: Golden) -> Procedure:
    return main_procedure(load_model(open_model(golden.model())))


def feeds(golden: Golden, procedure: Procedure, shapes: Shapes) -> list[np.ndarray]:
    """Inputs from a fixed seed: reals from the normal distribution, integers from the model's range."""
    random = np.random.default_rng(7)
    return [random.standard_normal(shapes[i.name]).astype(numpy_dtype(i.dtype)) if i.dtype[0] == "f"
            else np.asarray(random.integers(*golden.ranges[i.name], shapes[i.name]), numpy_dtype(i.dtype)) for i in procedure.inputs]


def arguments(procedure: Procedure, shapes: Sequence[Sequence[int]]) -> list[Argument]:
    return [Argument(i.dtype, tuple(s)) for i, s in zip(procedure.inputs, shapes, strict=True)]


def compiled(procedure: Procedure, shapes: Sequence[Sequence[int]], device: str) -> Compiled:
    return Compiler(Cpu(KernelCache()), planner(device), Options()).compile(procedure, arguments(procedure, shapes))


def kernel_text(made: Compiled, wanted: str) -> str:
    """One CUDA kernel: the longest of those with `wanted` in their name."""
    kernels = made.program.sides["device"].kernels
    texts = [(k.name, k.make("kernel")) for k in kernels if wanted in k.name]
    name, text = max(texts, key=lambda pair: len(pair[1]), default=("none", "everything runs on the host or is a view"))
    return f"{name}, {len(kernels)} in all\n{text}"


def sections(golden: Golden) -> Iterator[tuple[str, str]]:
    """Heading and text of each stage."""
    procedure = procedure_of(golden)
    shapes = [golden.shapes[i.name] for i in procedure.inputs]
    made = {device: compiled(procedure, shapes, device) for device in DEVICES}
    first = made["cpu"]
    yield "lowered", f"variant for {first.key_text or 'every input'}\n{shown(first.texts['graph'])}"
    yield "rewrites", str(first.texts["passes"])
    yield "after the passes, on the CPU", shown(first.texts["final"])
    for device in DEVICES:
        yield f"plan on {device}", plan_text(made[device].program)
    for body in first.program.procedures:
        inner = compiled(body, golden.body, "cpu")
        yield f"body {body.name}, after the passes, on the CPU", shown(inner.texts["final"])
    yield "one CUDA kernel", kernel_text(made["emulated-cuda"], golden.kernel)


def golden_text(golden: Golden) -> str:
    return "\n".join(f"==== {heading} ====\n{text.rstrip()}\n" for heading, text in sections(golden))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("name", MODELS)
def test_golden(name: str) -> None:
    text, path = golden_text(MODELS[name]), FOLDER / f"{name}.txt"
    if os.environ.get(UPDATE) not in (None, "", "0"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != kept:
        lines = unified_diff(kept.splitlines(), text.splitlines(), f"goldens/{name}.txt", "now", lineterm="")
        pytest.fail("\n".join([*lines, "", f"If that is what you wanted: {COMMAND}"]), pytrace=False)
