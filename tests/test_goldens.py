"""What becomes of small models, stage by stage, kept as text; and valid IR in, valid IR out, with the same results, after every pass.

`GPUONNX_UPDATE_GOLDENS=1 pytest tests/test_goldens.py` accepts what is made now: read the difference with git before committing it."""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from pathlib import Path

import numpy as np
import pytest
from golden_models import MODELS, Golden, Shapes
from onnx.reference import ReferenceEvaluator
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
    """Plans as on a CPU with AVX2 and no dot products, and fails where this machine's own features are read. Nothing is compiled."""
    fixed = micro.Target(32, (12, 6, 4), True, False, "avx2")

    def read() -> None:
        raise AssertionError("a plan hangs on this machine's features, not on micro.target()")
    monkeypatch.setattr(micro, "target", lambda: fixed)
    monkeypatch.setattr(micro, "features", read)


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


def kernel_text(made: Sequence[Compiled], wanted: str) -> str:
    """One CUDA kernel: the longest of those with `wanted` in their name."""
    kernels = [k for one in made for k in one.program.sides["device"].kernels]
    texts = [(k.name, k.make("kernel")) for k in kernels if wanted in k.name]
    name, text = max(texts, key=lambda pair: len(pair[1]), default=("none", "everything runs on the host or is a view"))
    return f"{name}, one of {len(kernels)}\n{text}"


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
    bodies = first.program.procedures
    for body in bodies:
        yield f"body {body.name}, after the passes, on the CPU", shown(compiled(body, golden.body, "cpu").texts["final"])
    on_device = [made["emulated-cuda"], *(compiled(body, golden.body, "emulated-cuda") for body in bodies)]
    yield "one CUDA kernel", kernel_text(on_device, golden.kernel)


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


def test_no_golden_is_left_over() -> None:
    assert {p.stem for p in FOLDER.iterdir()} == set(MODELS)


def after_each_pass(graph: g.Graph, device: str) -> Iterator[tuple[str, g.Graph]]:
    """The graph as lowered, then after every pass in the session's order, placement among them."""
    trace, accelerator = passes.Trace(), planner(device)
    yield "lowering", graph
    for name in passes.DEVICE_FREE:
        if accelerator is None or name not in passes.HOST_ONLY:
            trace.current = name
            graph = passes.function(name)(graph, trace)
            yield name, graph
    placement = place(graph, Cpu(KernelCache()), accelerator)
    yield "placement", placement.graph
    for name in passes.PER_DEVICE:
        placement = passes.run_placed(placement, (name,), (), None, trace)
        yield name, placement.graph


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_every_pass_leaves_a_legal_graph_with_the_same_results(name: str, device: str) -> None:
    golden = MODELS[name]
    procedure = procedure_of(golden)
    first = lower(procedure, arguments(procedure, [golden.shapes[i.name] for i in procedure.inputs])).graph
    given = [feeds(golden, procedure, shapes) for shapes in (golden.shapes, golden.other)]
    reference = ReferenceEvaluator(golden.model())
    wanted = [reference.run(None, dict(zip(procedure.input_names, some, strict=True))) for some in given]
    for after, graph in after_each_pass(first, device):
        verify(graph)
        for some, want in zip(given, wanted, strict=True):
            for expected, got in zip(want, run(graph, some), strict=True):
                assert got.shape == expected.shape and got.dtype == expected.dtype, after
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=f"after {after}")
