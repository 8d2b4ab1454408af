"""The cache of compiled variants: a second process lowers nothing; other models, options and damaged blobs miss."""
from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import gpuonnx
from gpuonnx.runtime.saved import dumps, loads

MODEL = """<ir_version: 9, opset_import: ["" : 18]>
gate (float[N, 4] x, bool c) => (float[N, 4] y) {
  w = Constant <value: tensor = float[4, 4] {1,0,0,0, 0,2,0,0, 0,0,3,0, 0,0,0,4}> ()
  h = MatMul (x, w)
  y = If (c) <then_branch = a () => (float[N, 4] p) { p = Relu (h) }, else_branch = b () => (float[N, 4] q) { q = Neg (h) }>
}"""
SCRIPT = """
import sys, numpy as np, gpuonnx
session = gpuonnx.load(sys.argv[1], device="cpu", cache_dir=sys.argv[2])
y = session.run({"x": np.full((3, 4), -1, np.float32), "c": np.array(sys.argv[3] == "yes")})["y"]
print(y[0].tolist(), session.stats.compiled, "onnx" in sys.modules, "numba" in sys.modules)
"""


def elsewhere(model: Path, cache: Path, condition: str) -> str:
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(model), str(cache), condition], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "gate.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), path)
    return path


def test_a_warm_process_compiles_and_imports_nothing(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    elsewhere(model, cache, "yes")
    assert elsewhere(model, cache, "yes") == "[0.0, 0.0, 0.0, 0.0] 0 False False"


def test_a_warm_process_imports_nothing_more(model: Path, tmp_path: Path) -> None:
    code = ("import sys, numpy as np, gpuonnx; known = set(sys.modules)\n"
            "session = gpuonnx.load(sys.argv[1], cache_dir=sys.argv[2], device='cpu')\n"
            "for _ in range(3): session.run({'x': np.ones((3, 4), np.float32), 'c': np.array(True)})\n"
            "print(sorted(m for m in set(sys.modules) - known if 'numpy' not in m))")
    runs = [subprocess.run([sys.executable, "-c", code, str(model), str(tmp_path)], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[1].stdout.strip() == "[]"


def test_a_branch_not_seen_before_is_compiled_from_the_model(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    elsewhere(model, cache, "yes")
    assert elsewhere(model, cache, "no").startswith("[1.0, 2.0, 3.0, 4.0]")


def test_damage_is_only_slower(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    elsewhere(model, cache, "yes")
    for path in cache.rglob("*.bin"):
        path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    assert elsewhere(model, cache, "yes").startswith("[0.0, 0.0, 0.0, 0.0]")


def test_a_cache_that_cannot_be_written_is_tolerated(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    session = gpuonnx.load(model, device="cpu", cache_dir=str(tmp_path / "file"))
    x = np.ones((2, 4), np.float32)
    assert session.run({"x": x, "c": np.array(True)})["y"].tolist() == [[1, 2, 3, 4]] * 2


def test_arrays_come_back_aligned_and_once() -> None:
    big = np.arange(1000, dtype=np.float32)
    first, second = loads(dumps([big, big]))
    np.testing.assert_array_equal(first, big)
    assert first.ctypes.data == second.ctypes.data and first.ctypes.data % 64 == 0 and not first.flags.writeable


@pytest.mark.parametrize("blob", [b"", b"abc", b"\x10" * 40])
def test_a_blob_that_is_none_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        loads(blob)


ROWS = """<ir_version: 9, opset_import: ["" : 18]>
rows (float[N, 4] x, int64[2] s, bool c) => (y) {
  w = Constant <value: tensor = float[4, 1] {1, 2, 3, 4}> ()
  h = Squeeze (x)
  y = If (c) <then_branch = a () => (p) { p = MatMul (h, w) }, else_branch = b () => (q) { q = Neg (h) }>
}"""
ROWS_SCRIPT = """
import sys, numpy as np, gpuonnx
session = gpuonnx.load(sys.argv[1], device="cpu", cache_dir=sys.argv[2])
for n in sys.argv[3]:
    x = np.arange(int(n) * 4, dtype=np.float32).reshape(int(n), 4)
    y = session.run({"x": x, "s": np.array([1, 1]), "c": np.array(True)})["y"]
    assert np.array_equal(y, x.squeeze() @ np.array([1, 2, 3, 4], np.float32).reshape(4, 1)), (n, y)
print(session.stats.compiled, session.stats.variants)
"""


def test_bodies_belong_to_their_variant_whatever_order_processes_met_them(tmp_path: Path) -> None:
    path, cache = tmp_path / "rows.onnx", tmp_path / "cache"
    onnx.save(onnx.parser.parse_model(ROWS), path)
    for order in ("1", "31", "13", "3", "21"):
        run = subprocess.run([sys.executable, "-c", ROWS_SCRIPT, str(path), str(cache), order], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == "0"


def test_sessions_share_what_is_loaded_and_nothing_of_a_run(model: Path, tmp_path: Path) -> None:
    cache, rows = str(tmp_path / "cache"), [np.full((n, 4), n - 3, np.float32) for n in (1, 2, 5)]
    gpuonnx.load(model, device="cpu", cache_dir=cache).run({"x": rows[0], "c": np.array(True)})
    first, second = (gpuonnx.load(model, device="cpu", cache_dir=cache) for _ in range(2))
    programs = [{id(v.loaded) for v in s._main.variants} for s in (first, second)]
    assert programs[0] == programs[1] and len(programs[0]) == 1
    before = first.run({"x": rows[1], "c": np.array(False)})["y"]
    for x in rows:
        want = x @ np.diag([1, 2, 3, 4]).astype(np.float32)
        np.testing.assert_array_equal(second.run({"x": x, "c": np.array(True)})["y"], np.maximum(want, 0))
        np.testing.assert_array_equal(first.run({"x": x, "c": np.array(False)})["y"], -want)
    np.testing.assert_array_equal(before, [[1, 2, 3, 4]] * 2)


def test_what_no_session_holds_goes(model: Path, tmp_path: Path) -> None:
    from gpuonnx.runtime import saved
    cache = str(tmp_path / "cache")
    gpuonnx.load(model, device="cpu", cache_dir=cache).run({"x": np.ones((1, 4), np.float32), "c": np.array(True)})
    session = gpuonnx.load(model, device="cpu", cache_dir=cache)
    assert any(where[0] == cache for where in saved._held)
    del session
    gc.collect()
    assert not any(where[0] == cache for where in saved._held)
