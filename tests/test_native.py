"""codegen/native.py and codegen/cache.py: compiling, checking, loading, storing object code."""
from __future__ import annotations

import ctypes
import math
import subprocess
import sys

import numpy as np
import pytest

from gpuonnx.codegen import native
from gpuonnx.errors import CompileError
from gpuonnx.kernels.contract import CTX_CODE, CTX_WORDS, ERROR_DOMAIN

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
TEXT = """
declare float @expf(float)
define internal float @twice(float %x) {
  %y = call float @expf(float %x)
  %z = fadd float %y, %y
  ret float %z
}
define internal void @unused() {
  call void @nowhere()
  ret void
}
declare void @nowhere()
define void @SYMBOL(ptr %ctx, ptr %args, i64 %task) {
  %p = load ptr, ptr %args
  %x = load float, ptr %p
  %y = call float @twice(float %x)
  store float %y, ptr %p
  ret void
}
"""


def call(address: int, args: list[int], task: int = 0) -> np.ndarray:
    ctx, words = np.zeros(CTX_WORDS, np.int64), np.array(args, np.int64)
    KERNEL(address)(ctx.ctypes.data, words.ctypes.data, task)
    return ctx


def test_llvm_text_runs_and_unused_code_is_dropped() -> None:
    obj = native.compile_llvm(TEXT.replace("SYMBOL", "twice_exp"), "twice_exp")
    assert native.symbols(obj) == ({"twice_exp"}, {"expf"})
    x = np.array([1.5], np.float32)
    call(native.load({"twice_exp": obj}).address("twice_exp"), [x.ctypes.data])
    assert x[0] == pytest.approx(2 * math.exp(1.5), rel=1e-6)


def test_bad_text_is_a_compile_error() -> None:
    with pytest.raises(CompileError, match="kernel broken: LLVM refused"):
        native.compile_llvm("define void @broken() { ret i32 0 }", "broken")


def test_missing_entry_is_a_compile_error() -> None:
    with pytest.raises(CompileError, match="defines only"):
        native.compile_llvm("define void @other() { ret void }", "entry")


def test_unknown_symbols_are_refused_when_built_and_when_loaded() -> None:
    text = "declare void @nowhere()\ndefine void @leaky() { call void @nowhere() ret void }"
    with pytest.raises(CompileError, match="leaky calls nowhere"):
        native.compile_llvm(text, "leaky")
    obj = native._machine().emit_object(native._parse(text, "leaky"))
    with pytest.raises(CompileError, match="leaky calls nowhere"):
        native.load({"leaky": obj})


def test_half_conversions_by_library_call_are_refused() -> None:
    text = "define void @half(ptr %c, ptr %a, i64 %t) { %x = load i128, ptr %a %y = sdiv i128 %x, 7 store i128 %y, ptr %a ret void }"
    with pytest.raises(CompileError, match="__divti3"):
        native.compile_llvm(text, "half")


def test_damaged_objects_are_refused() -> None:
    obj = native.compile_llvm(TEXT.replace("SYMBOL", "damaged"), "damaged")
    for bad in (b"", obj[:100], obj[: len(obj) // 2], b"\x7fELG" + obj[4:]):
        with pytest.raises(CompileError):
            native.load({"damaged": bad})


def running_sum(ctx, args, task):
    if args[1] < 0:
        raise ValueError("negative")
    total = 0
    for i in range(args[1]):
        total += i * args[0]
    args[2] = total


def allocates(ctx, args, task):
    args[0] = len([task] * 3)


def test_numba_function_runs_and_raising_sets_the_code() -> None:
    obj = native.compile_numba(running_sum, None, "running_sum")
    assert native.undefined_symbols(obj) == set()
    address = native.load({"running_sum": obj}).address("running_sum")
    words = np.array([3, 5, 0], np.int64)
    ctx = np.zeros(CTX_WORDS, np.int64)
    KERNEL(address)(ctx.ctypes.data, words.ctypes.data, 0)
    assert words[2] == 30 and not ctx.any()
    assert call(address, [3, -1, 0])[CTX_CODE] == ERROR_DOMAIN


def test_numba_allocation_is_refused() -> None:
    with pytest.raises(CompileError, match="NRT"):
        native.compile_numba(allocates, None, "allocates")


def test_numba_type_errors_are_compile_errors() -> None:
    def unknown(ctx, args, task):
        args[0] = undefined_name  # noqa: F821

    with pytest.raises(CompileError, match="Numba cannot compile unknown"):
        native.compile_numba(unknown, None, "unknown")


def test_numba_object_loads_without_numba(tmp_path) -> None:
    obj = tmp_path / "kernel.o"
    obj.write_bytes(native.compile_numba(running_sum, None, "running_sum"))
    code = f"""
import ctypes, sys
from gpuonnx.codegen import native
address = native.load({{"running_sum": open({str(obj)!r}, "rb").read()}}).address("running_sum")
words = (ctypes.c_int64 * 3)(3, 5, 0)
ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)((ctypes.c_int64 * 8)(), words, 0)
assert words[2] == 30 and "numba" not in sys.modules, words[2]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_objects_are_loaded_once() -> None:
    objects = {f"once{i}": native.compile_llvm(TEXT.replace("SYMBOL", f"once{i}"), f"once{i}") for i in range(3)}
    first = native.load(objects)
    engines = len(native._engines)
    again = native.load(dict(reversed(objects.items())))
    assert len(native._engines) == engines and all(first.address(s) == again.address(s) for s in objects)
    assert len(first) == 3 and "once1" in first and "absent" not in first
