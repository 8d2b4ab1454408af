"""The command line: what it prints, what it says of mistakes, its exit codes."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import FLOAT, INT64, add, linear, linear_answer, model
from onnx import helper, numpy_helper

from gpuonnx.cli import doctor, feeds, ops
from gpuonnx.cli.conformance import by_reason
from gpuonnx.cli.main import COMMANDS, main
from gpuonnx.conformance import suite
from gpuonnx.importer.load import load_model
from gpuonnx.importer.lower import lower
from gpuonnx.importer.model import main_procedure
from gpuonnx.ir import graph as g
from gpuonnx.runtime.feed import prepare
from gpuonnx.runtime.variants import argument_of, dtype_of

X = np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path) -> str:
    onnx.save(linear(), tmp_path / "linear.onnx")
    return str(tmp_path / "linear.onnx")


def ran(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_run_on_files(path: str, tmp_path: Path, capsys: Captured) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "all.npz", x=X)
    np.savez(tmp_path / "one.npz", other=X)
    (tmp_path / "x.pb").write_bytes(numpy_helper.from_array(X).SerializeToString())
    for given in ("x=x.npy", "x.npy", "x=all.npz", "all.npz", "x=one.npz", "x=x.pb", "x.pb"):
        name, equals, file = given.rpartition("=")
        out = tmp_path / "out.npz"
        assert ran("run", path, "--device", "cpu", "--input", f"{name}{equals}{tmp_path / file}", "--output", out) == 0
        with np.load(out) as saved:
            np.testing.assert_allclose(saved["y"], linear_answer(X)[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(saved["z"], linear_answer(X)[1], rtol=1e-5, atol=1e-6)
        assert "written to" in capsys.readouterr().out


def test_run_random_as_json(path: str, capsys: Captured) -> None:
    found = []
    for _ in range(2):
        assert ran("run", path, "--device", "cpu", "--random", "--seed", 3, "--shape", "x=5,3", "--repeat", 3, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["outputs"] == found[1]["outputs"]
    assert found[0]["outputs"]["y"]["shape"] == [5, 2] and found[0]["device"] == "cpu" and found[0]["seconds"]["next"] > 0


def test_run_only(path: str, capsys: Captured) -> None:
    assert ran("run", path, "--device", "cpu", "--random", "--only", "z", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["outputs"]) == ["z"]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no input": ([], "no value for x (float32 [N, 3]): give --input x=FILE.npy, or --random"),
    "no file": (["--input", "x=nowhere.npy"], "there is no file nowhere.npy"),
    "shape": (["--shape", "x=1,a"], "whole numbers with commas"),
    "shape of nothing": (["--shape", "q=1,3", "--random"], "there is no such input; inputs are x"),
    "device": (["--device", "tpu", "--random"], "none of auto, cpu, cuda"),
    "output": (["--random", "--output", "out.txt"], "must end in .npz"),
    "wrong size": (["--shape", "x=2,9"], "input 'x', axis 1: size 9, the model says 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_1(mistake: str, path: str, capsys: Captured) -> None:
    arguments, words = MISTAKES[mistake]
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert ran("run", path, *device, *arguments) == 1
    err = capsys.readouterr().err
    assert words in err and err.startswith("gpuonnx: ") and err.count("\n") == 1 and "Traceback" not in err


def test_a_file_that_is_no_model(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "page.onnx").write_text("<!DOCTYPE html>")
    assert ran("inspect", tmp_path / "page.onnx") == 1
    assert "web page" in capsys.readouterr().err
    (tmp_path / "bad.npy").write_bytes(b"nonsense")
    onnx.save(add(), tmp_path / "add.onnx")
    assert ran("run", tmp_path / "add.onnx", "--device", "cpu", "--input", f"left={tmp_path / 'bad.npy'}", "--random") == 1
    assert "is no .npy or .npz file" in capsys.readouterr().err


def test_made_up_sizes_that_do_not_fit(tmp_path: Path, capsys: Captured) -> None:
    pool = helper.make_node("MaxPool", ["x"], ["y"], "pool", kernel_shape=[3, 3])
    onnx.save(model([pool], {"x": (FLOAT, ["N", 1, "H", "W"])}, {"y": (FLOAT, ["N", 1, "h", "w"])}), tmp_path / "pool.onnx")
    assert ran("run", tmp_path / "pool.onnx", "--device", "cpu", "--random") == 1
    err = capsys.readouterr().err
    assert "pool" in err and "--shape x=1,1,1,1" in err
    assert ran("run", tmp_path / "pool.onnx", "--device", "cpu", "--random", "--shape", "x=1,1,8,8") == 0


def test_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="there is no file"):
        ran("run", tmp_path / "no.onnx", "--traceback")


def test_wrong_command_line(capsys: Captured) -> None:
    for arguments in ([], ["nonsense"], ["run"], ["run", "m", "--threads", "0"]):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 2
    assert "no positive whole number" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as raised:
        main([command, "--help"])
    assert raised.value.code == 0 and "--traceback" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["graph", "passes", "plan", "kernels"])
def test_explain(stage: str, path: str, capsys: Captured) -> None:
    assert ran("explain", path, "--device", "cpu", "--stage", stage) == 0
    text = capsys.readouterr().out
    assert "device cpu" in text and "== main" in text


def test_inspect(path: str, tmp_path: Path, capsys: Captured) -> None:
    assert ran("inspect", path) == 0
    text = capsys.readouterr().out
    for words in ("3 nodes", "2 weights with 8 elements", "opset ai.onnx 20", "ai.onnx.MatMul", "[N, 3]"):
        assert words in text
    assert ran("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operators"]["ai.onnx.Relu"] == 1 and found["inputs"] == [{"name": "x", "type": "f32", "shape": ["N", 3]}]
    odd = model([helper.make_node("Frobnicate", ["x"], ["y"], "odd")], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])})
    onnx.save(odd, tmp_path / "odd.onnx")
    assert ran("inspect", tmp_path / "odd.onnx") == 1
    assert "ai.onnx.Frobnicate (opset 20): odd" in capsys.readouterr().out


def test_ops(capsys: Captured) -> None:
    assert ran("ops", "--domain", "ai.onnx", "--markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| domain") and any(line.startswith("| ai.onnx | Conv |") for line in lines)
    rows = {(row.domain, row.name): row for row in ops.rows()}
    assert rows["", "Softmax"].fused and rows["", "Softmax"].types == ("float16", "float", "double", "bfloat16")
    assert "lstm" in rows["", "LSTM"].kernels and not rows["", "LSTM"].fused
    assert rows["com.microsoft", "FusedConv"].kernels == ("conv",) and rows["", "SequenceAt"].how == "Python on the host"
    assert rows["ai.onnx.ml", "SVMClassifier"].kernels == ("coupling", "gemm")
    assert not any(row.without_cuda for row in rows.values())
    assert rows["", "If"].how == "control flow" and rows["", "Add"].how == "definition" and 14 in rows["", "Add"].versions


def test_what_is_read_from_definitions_is_what_lowering_makes() -> None:
    """A sample of the official suite: the Calls of a lone operator are among those that its row names, and it is fused if its row says so."""
    rows, seen = {row.name: row for row in ops.rows()}, 0
    for name in list(suite.cases())[::7]:
        case = suite.cases()[name]
        if case.kind != "node":
            continue
        work = main_procedure(load_model(case.model if case.model is not None else str(suite.model_path(case))))
        row = rows[work.nodes[0].op_type]
        given, _ = next(suite.data_sets(case))
        if len(work.nodes) > 1 or len(given) != len(work.inputs) or row.how != "definition":
            continue
        values = prepare(work.inputs, given)
        graph = lower(work, [argument_of(v, dtype_of(v, i.dtype)) for v, i in zip(values, work.inputs, strict=True)]).graph
        assert {n.kernel for n in graph.nodes if isinstance(n, g.Call)} <= set(row.kernels), name
        if row.fused and not row.python:
            assert all(isinstance(n, (g.Map, g.Reduce, g.View, g.Assemble)) for n in graph.nodes), name
        seen += 1
    assert seen > 100


def test_placement_table(capsys: Captured) -> None:
    assert ran("conformance", "--device", "emulated-cuda", "--only", "test_(top_k|string_split_basic)$", "--placement") == 0
    text = capsys.readouterr().out
    assert "2 operators did something: 1 on the device only, 0 on both, 1 on the host only" in text and "text is handled in Python (1)" in text


def test_doctor(capsys: Captured) -> None:
    assert ran("doctor") == 0
    text = capsys.readouterr().out
    assert "GPU" in text and "cache" in text and "numpy" in text
    assert ran("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"]["works"] or found["gpu"]["says"]


@pytest.mark.parametrize(("driver", "cupy", "words"), [
    (None, {}, "no NVIDIA driver"), (11080, {}, "older than CUDA 12"), (12040, {}, "gpuonnx[cuda12]"), (13000, {}, "gpuonnx[cuda13]"),
    (13000, {"cupy-cuda12x": "14", "cupy-cuda13x": "14"}, "pip uninstall cupy-cuda12x cupy-cuda13x"),
])
def test_the_mend_for_a_gpu(driver: int | None, cupy: dict[str, str], words: str) -> None:
    assert words in doctor.mend(driver, {"works": False, "cupy": cupy})
    assert doctor.mend(driver, {"works": True, "cupy": cupy}) == ""


def test_cache(path: str, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "cache"
    assert ran("run", path, "--device", "cpu", "--random", "--cache-dir", folder) == 0
    capsys.readouterr()
    assert ran("cache", "--cache-dir", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["blobs"]["entries"] > 0
    assert ran("cache", "clear", "--cache-dir", folder) == 0
    assert "freed" in capsys.readouterr().out
    assert ran("cache", "show", "--cache-dir", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernels"] == found["blobs"] == {"entries": 0, "bytes": 0}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int8", "uint8", "bool", "complex64", "O"])
def test_made_up_inputs(dtype: str) -> None:
    from gpuonnx.session import Io
    rng: Any = np.random.default_rng(0)
    value = feeds.made_up(Io("x", np.dtype(dtype), ("N", 3, None)), None, rng)
    assert value.shape == (1, 3, 1) and value.dtype == np.dtype(dtype)
    assert feeds.made_up(Io("x", np.dtype(dtype), None), (2, 2), rng).shape == (2, 2)


def test_an_input_of_any_rank_or_kind_is_asked_for() -> None:
    from gpuonnx.session import Io
    with pytest.raises(Exception, match="any rank; say which with --shape x="):
        feeds.made_up(Io("x", np.dtype("f4"), None), None, np.random.default_rng(0))
    with pytest.raises(Exception, match=r"is seq\(f32\)"):
        feeds.made_up(Io("x", "seq(f32)", None), None, np.random.default_rng(0))


def test_reasons_are_gathered() -> None:
    found = by_reason([("a", "index 3 of 'x'"), ("b", "other"), ("c", "index 4 of 'y'")])
    assert found == [("index 3 of 'x'", ["a", "c"]), ("other", ["b"])]


def test_integer_inputs_of_a_model(tmp_path: Path, capsys: Captured) -> None:
    onnx.save(model([helper.make_node("Add", ["a", "a"], ["y"])], {"a": (INT64, ["N"])}, {"y": (INT64, ["N"])}), tmp_path / "i.onnx")
    assert ran("run", tmp_path / "i.onnx", "--device", "cpu", "--random", "--shape", "a=6", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["outputs"]["y"]["first"]) <= {0, 2}
