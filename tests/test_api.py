"""What a user types in Python."""
from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import FLOAT, add, linear, linear_answer, model
from onnx import helper

import gpuonnx
from gpuonnx.devices import choose

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 3), dtype=np.float32)
HEAVY = ("numba", "cupy", "onnx", "llvmlite", "google.protobuf", "rich", "ml_dtypes")


@pytest.fixture(scope="module")
def session() -> gpuonnx.Session:
    return gpuonnx.load(linear(), device="cpu")


def check(outputs: dict[str, Any], x: np.ndarray) -> None:
    y, z = linear_answer(x)
    np.testing.assert_allclose(outputs["y"], y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["z"], z, rtol=1e-5, atol=1e-6)


def test_importing_is_light() -> None:
    """Nothing heavy is imported before it is needed; the time is printed, not judged."""
    code = ("import time; a = time.perf_counter(); import gpuonnx; b = time.perf_counter(); import sys; "
            f"print(b - a, [m for m in {HEAVY!r} if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, modules = out.split(" ", 1)
    print(f"import gpuonnx: {float(seconds) * 1000:.1f} ms")
    assert modules.strip() == "[]"


def test_auto_says_once_why_it_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    monkeypatch.setattr(choose, "_said", set())
    with caplog.at_level("INFO", "gpuonnx"):
        assert [choose.accelerator_for("auto") for _ in range(2)] == [("cpu", None)] * 2
    assert [r.getMessage()[:48] for r in caplog.records] == ["running on the CPU: CuPy is not installed: pip i"]


def test_public_names() -> None:
    for name in gpuonnx.__all__:
        assert getattr(gpuonnx, name) is not None
    assert set(gpuonnx.__all__) <= set(dir(gpuonnx))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gpuonnx.nothing


def test_every_way_to_give_inputs(session: gpuonnx.Session) -> None:
    for given in (X, [X], (X,), {"x": X}, X.tolist(), {"x": X.tolist()}, np.asfortranarray(X), np.repeat(X, 2, 0)[::2], X.astype(">f4")):
        if isinstance(given, list) and isinstance(given[0], list):
            given = {"x": given}
        check(session.run(given), X)


def test_shapes_that_come_back_are_not_bound_again() -> None:
    made = gpuonnx.load(linear(), device="cpu")
    rows = [np.repeat(X, k, 0) for k in range(1, 13)]
    for _ in range(3):
        for x in rows:
            check(made.run({"x": x}), x)
    bound = made.stats.bindings
    for _ in range(3):
        for x in rows[-4:]:
            check(made.run({"x": x}), x)
    assert made.stats.bindings == bound and made.stats.runs == 48


def test_every_way_to_give_a_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear(), path)
    for given in (path, str(path), path.read_bytes(), linear()):
        check(gpuonnx.run(given, X, device="cpu"), X)
    with path.open("rb") as file:
        check(gpuonnx.run(file, X, device="cpu"), X)


def test_run_keeps_the_session_of_a_file_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model([helper.make_node("Neg", ["x"], ["y"])], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}), path)
    assert gpuonnx.run(path, np.ones(2, np.float32), device="cpu")["y"].tolist() == [-1, -1]
    onnx.save(model([helper.make_node("Abs", ["x"], ["y"], doc_string="longer")], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}), path)
    assert gpuonnx.run(path, -np.ones(2, np.float32), device="cpu")["y"].tolist() == [1, 1]


def test_inputs_and_outputs(session: gpuonnx.Session) -> None:
    (x,) = session.inputs
    assert (x.name, x.dtype, x.shape) == ("x", np.float32, ("N", 3))
    assert [(o.name, o.dtype, o.shape) for o in session.outputs] == [("y", np.float32, ("N", 2)), ("z", np.float32, ("N", 2))]
    assert "on cpu" in repr(session) and "x: float32" in repr(session)


def test_outputs_in_graph_order_and_pruned(session: gpuonnx.Session) -> None:
    assert list(session.run(X)) == ["y", "z"]
    only = session.run(X, outputs=["z"])
    assert list(only) == ["z"]
    np.testing.assert_allclose(only["z"], linear_answer(X)[1], rtol=1e-5, atol=1e-6)


def test_out_fills_the_buffers(session: gpuonnx.Session) -> None:
    y = np.full((4, 2), np.nan, np.float32)
    outputs = session.run(X, out={"y": y})
    assert outputs["y"] is y or np.shares_memory(outputs["y"], y)
    check({**outputs, "y": y}, X)


def test_outputs_do_not_alias(session: gpuonnx.Session) -> None:
    first = session.run(X)
    kept = {name: value.copy() for name, value in first.items()}
    session.run(-X)
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
        value[...] = 0
    check(session.run(X), X)
    identity = gpuonnx.load(model([helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])], {"x": (FLOAT, ["N"])},
                                  {"y": (FLOAT, ["N"]), "z": (FLOAT, ["N"])}), device="cpu")
    x = np.ones(3, np.float32)
    outputs = identity.run(x)
    assert not np.shares_memory(outputs["y"], x) and not np.shares_memory(outputs["y"], outputs["z"])


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 33, 1000])
def test_a_new_size_compiles_nothing(session: gpuonnx.Session, rows: int) -> None:
    session.run(X)
    compiled, variants = session.stats.compiled, session.stats.variants
    x = RNG.standard_normal((rows, 3), dtype=np.float32)
    check(session.run(x), x)
    assert (session.stats.compiled, session.stats.variants) == (compiled, variants)


def test_threads_share_a_session(session: gpuonnx.Session) -> None:
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((seed + 1, 3), dtype=np.float32)
        try:
            for _ in range(50):
                check(session.run(x), x)
        except BaseException as error:
            faults.append(error)
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_whatever_the_threads(threads: int) -> None:
    x = np.random.default_rng(1).standard_normal((300, 3), dtype=np.float32)
    one = gpuonnx.load(linear(), device="cpu", threads=1).run(x)
    many = gpuonnx.load(linear(), device="cpu", threads=threads).run(x)
    assert all(np.array_equal(one[name], many[name]) for name in one)


class Foreign:
    """An array that speaks DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_dlpack_inputs(session: gpuonnx.Session) -> None:
    check(session.run(Foreign(X)), X)
    check(session.run({"x": Foreign(X)}), X)


def test_explain_has_every_stage() -> None:
    loaded = gpuonnx.load(linear(), device="cpu")
    assert "nothing is compiled yet" in loaded.explain("plan") or "relu" in loaded.explain("plan")
    loaded.run(X)
    for stage in ("graph", "passes", "plan", "kernels"):
        assert "== main" in loaded.explain(stage)
    assert "relu" in loaded.explain("plan")


def test_initializers_that_are_inputs_are_constants() -> None:
    proto = linear()
    proto.graph.input.append(helper.make_tensor_value_info("b", FLOAT, [2]))
    loaded = gpuonnx.load(proto, device="cpu")
    assert [io.name for io in loaded.inputs] == ["x"]
    check(loaded.run(X), X)


def test_custom_operator() -> None:
    @gpuonnx.op("Softsign2", domain="test.api")
    def softsign2(x: Any, *, scale: float = 1.0) -> Any:
        return x * scale / (abs(x) + 1)
    proto = model([helper.make_node("Softsign2", ["left"], ["y"], domain="test.api", scale=2.0)], {"left": (FLOAT, ["N"])}, {"y": (FLOAT, ["N"])},
                  domains={"test.api": 1})
    x = np.array([-3, 0, 5], np.float32)
    np.testing.assert_allclose(gpuonnx.run(proto, x, device="cpu")["y"], 2 * x / (abs(x) + 1), rtol=1e-6)


def test_passes_may_be_switched_off() -> None:
    from gpuonnx.passes import PIPELINE
    loaded = gpuonnx.load(linear(), device="cpu", passes=dict.fromkeys(PIPELINE, False))
    check(loaded.run(X), X)


def test_warm_load_imports_neither_onnx_nor_numba(tmp_path: Path) -> None:
    onnx.save(add(), tmp_path / "m.onnx")
    code = ("import sys, numpy as np, gpuonnx; x = np.ones(3, 'f4'); "
            f"print(gpuonnx.load({str(tmp_path / 'm.onnx')!r}, device='cpu', cache_dir={str(tmp_path / 'cache')!r}).run([x, x])['total'].tolist(), "
            "[m for m in ('onnx', 'numba') if m in sys.modules])")
    outputs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)]
    assert outputs[1] == "[2.0, 2.0, 2.0] []"
