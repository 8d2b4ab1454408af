"""codegen/native.py and codegen/cache.py: compiling, checking, loading, storing object code."""
from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from gpuonnx import config
from gpuonnx.codegen import cache, native
from gpuonnx.codegen.cache import KernelCache, fingerprint
from gpuonnx.config import cache_limit
from gpuonnx.errors import CompileError, InputError
from gpuonnx.ir.expr import Expr, const, load
from gpuonnx.kernels.contract import CTX_CODE, CTX_WORDS, ERROR_DOMAIN, Kernel

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


def kernel(number: int) -> Kernel:
    return Kernel(f"test cache {number}", ("twice", number), "llvm", lambda symbol: TEXT.replace("SYMBOL", symbol))


def test_cache_compiles_once_and_then_reads(tmp_path) -> None:
    first, second = KernelCache(tmp_path), KernelCache(tmp_path)
    made = first.objects([kernel(0), kernel(1), kernel(0)])
    assert (first.compiled, first.hits) == (2, 0) and len(made) == 2
    assert second.objects([kernel(1), kernel(0)]) == made and (second.compiled, second.hits) == (0, 2)
    assert made[kernel(0)][0] != made[kernel(1)][0]
    assert second.sizes()["kernels"][0] == 2
    assert second.clear() > 0 and second.sizes() == {"kernels": (0, 0), "blobs": (0, 0)}


def test_one_bad_kernel_does_not_lose_the_others(tmp_path) -> None:
    bad = Kernel("test cache bad", ("bad",), "llvm", lambda symbol: "define void @broken() { ret i32 0 }")
    unrendered = Kernel("test cache unrendered", ("unrendered",), "cuda", lambda symbol: "")
    store = KernelCache(tmp_path)
    with pytest.raises(CompileError, match="unrendered|LLVM refused"):
        store.objects([kernel(20), bad, unrendered, kernel(21)])
    assert store.compiled == 2 and store.sizes()["kernels"][0] == 2


def test_loaded_kernels_are_not_read_again(tmp_path) -> None:
    kernels = [kernel(10), kernel(11), kernel(10)]
    first = KernelCache(tmp_path)
    addresses = first.addresses(kernels)
    assert addresses[0] == addresses[2] != addresses[1] and first.compiled == 2
    second = KernelCache(tmp_path / "elsewhere")
    assert second.addresses(kernels) == addresses and (second.compiled, second.hits) == (0, 3)
    x = np.array([0.0], np.float32)
    call(addresses[0], [x.ctypes.data])
    assert x[0] == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "magic", "swapped"])
def test_damaged_entries_are_made_again(tmp_path, damage: str) -> None:
    made = KernelCache(tmp_path).objects([kernel(0), kernel(1)])
    paths = sorted(tmp_path.glob("kernels/*/*.o"))
    data = paths[0].read_bytes()
    if damage == "swapped":
        data, other = paths[1].read_bytes(), data
        paths[1].write_bytes(other)
    changed = {"truncated": data[:-8], "flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:], "empty": b"",
               "magic": b"X" + data[1:], "swapped": data}[damage]
    paths[0].write_bytes(changed)
    again = KernelCache(tmp_path)
    assert again.objects([kernel(0), kernel(1)]) == made
    assert again.compiled == (2 if damage == "swapped" else 1)
    assert KernelCache(tmp_path).objects([kernel(0)])[kernel(0)] == made[kernel(0)]


def test_unwritable_directory_is_tolerated(tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = KernelCache(blocked)
    assert store.objects([kernel(0)]) and store.compiled == 1
    assert store.get("ab" * 32) is None and not store.put("ab" * 32, b"x")
    assert store.sizes()["blobs"] == (0, 0) and store.clear() == 0


def test_blobs_small_and_mapped(tmp_path) -> None:
    store = KernelCache(tmp_path)
    big = np.random.default_rng(0).integers(0, 256, 9_000_001, np.uint8)
    keys = [fingerprint("blob", n) for n in (0, 1)]
    assert store.get(keys[0]) is None
    assert store.put(keys[0], b"small") and store.put(keys[1], memoryview(big))
    assert store.get(keys[0]) == b"small"
    found = store.get(keys[1])
    assert isinstance(found, memoryview) and found.readonly and np.array_equal(np.frombuffer(found, np.uint8), big)
    assert np.frombuffer(found, np.uint8).ctypes.data % 64 == 0
    path = store.blobs.path(keys[1])
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    del found
    path.write_bytes(data)
    assert store.get(keys[1]) is None and not path.exists()


@pytest.mark.parametrize("at", [64, 5000, 64 + 1_000_000, -1])
def test_a_blobs_head_is_checked_in_full_and_the_rest_by_samples(tmp_path, at: int) -> None:
    store, key = KernelCache(tmp_path), fingerprint("head")
    assert store.put(key, bytes(3_000_000), 1_000_001) and store.get(key) is not None
    path = store.blobs.path(key)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert store.get(key) is None


def test_the_cache_keeps_within_its_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GPUONNX_CACHE_LIMIT", "3K")
    monkeypatch.setattr(cache, "BETWEEN", 1)
    store = cache.KernelCache(tmp_path)
    for k in range(8):
        assert store.put(f"{k:02}" * 32, bytes(1000))
        os.utime(store.blobs.path(f"{k:02}" * 32), (k, k))
    assert store.sizes()["blobs"][1] <= 3072 and store.get("07" * 32) is not None and store.get("00" * 32) is None


def test_a_use_is_noted(tmp_path) -> None:
    store = cache.KernelCache(tmp_path)
    store.put("ab" * 32, b"1")
    os.utime(store.blobs.path("ab" * 32), (1, 1))
    assert store.get("ab" * 32) == b"1" and store.blobs.path("ab" * 32).stat().st_mtime > 1


@pytest.mark.parametrize(("text", "size"), [("500", 500), ("2K", 2048), ("3 MiB", 3 << 20), ("7mb", 7 << 20), ("1GiB", 1 << 30), ("", None), ("much", None)])
def test_limits_of_the_cache(text, size, monkeypatch) -> None:
    monkeypatch.setenv("GPUONNX_CACHE_LIMIT", text)
    if size is None:
        with pytest.raises(InputError, match="GPUONNX_CACHE_LIMIT"):
            cache_limit()
    else:
        assert cache_limit() == size


def test_oldest_entries_are_pruned(tmp_path) -> None:
    store = KernelCache(tmp_path)
    for n in range(4):
        key = fingerprint(n)
        store.put(key, bytes(1000))
        os.utime(store.blobs.path(key), (n, n))
    store.prune(2500)
    assert [store.get(fingerprint(n)) is not None for n in range(4)] == [False, False, True, True]


def test_two_processes_share_a_cache(tmp_path) -> None:
    code = f"""
from gpuonnx.codegen.cache import KernelCache
from gpuonnx.kernels.contract import Kernel
text = {TEXT!r}
kernels = [Kernel(f"shared {{n}}", (n,), "llvm", lambda symbol: text.replace("SYMBOL", symbol)) for n in range(8)]
cache = KernelCache({str(tmp_path)!r})
cache.addresses(kernels)
print(cache.compiled)
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    counts = [int(p.communicate()[0]) for p in running]
    assert all(p.returncode == 0 for p in running) and sum(counts) >= 8
    assert len(list(tmp_path.glob("kernels/*/*"))) == 8
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"0"


def test_fingerprints_tell_values_apart() -> None:
    x, one = load(0, "f32", (0,)), const(1.0)
    twice = Expr("add", (x, x))
    values = [0, False, 0.0, -0.0, "0", b"0", None, (0,), ((0,),), (0, 0), frozenset({0}), {0: 0}, x, Expr("add", (x, one)),
              Expr("add", (one, x)), twice, one, 1j]
    assert len({fingerprint(v) for v in values}) == len(values)
    assert fingerprint(frozenset("abc")) == fingerprint(frozenset("cba")) and fingerprint(twice) == fingerprint(Expr("add", (x, x)))
    with pytest.raises(TypeError, match="cache key"):
        fingerprint(object())


def test_the_generator_is_part_of_a_kernels_name(monkeypatch) -> None:
    name = cache.kernel_symbol(kernel(0))
    monkeypatch.setattr(cache, "generator", lambda: b"another")
    assert cache.kernel_symbol(kernel(0)) != name


def test_control_group_quota(tmp_path) -> None:
    own, root = tmp_path / "own", tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "cpu/c").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert config.cgroup_quota(root, own) is None
    (root / "a/b/cpu.max").write_text("max 100000\n")
    assert config.cgroup_quota(root, own) is None
    (root / "a/cpu.max").write_text("150000 100000\n")
    assert config.cgroup_quota(root, own) == 1.5
    own.write_text("4:memory:/x\n1:cpu,cpuacct:/c\n")
    (root / "cpu/c/cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu/c/cpu.cfs_period_us").write_text("100000\n")
    assert config.cgroup_quota(root, own) is None
    (root / "cpu/c/cpu.cfs_quota_us").write_text("400000\n")
    assert config.cgroup_quota(root, own) == 4


def test_threads_and_folders_follow_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("GPUONNX_THREADS", "3")
    assert config.default_threads() == 3
    monkeypatch.delenv("GPUONNX_THREADS")
    assert 1 <= config.default_threads() <= (os.cpu_count() or 1)
    monkeypatch.setenv("GPUONNX_CACHE_DIR", str(tmp_path))
    assert config.cache_dir() == tmp_path and config.cache_dir("/x") != tmp_path
    siblings = tmp_path / "cpu0/topology/thread_siblings_list"
    for cpu in (0, 1):
        siblings = tmp_path / f"cpu{cpu}/topology/thread_siblings_list"
        siblings.parent.mkdir(parents=True)
        siblings.write_text("0-1")
    assert config.physical_cores({0, 1}, tmp_path) == 1 and config.physical_cores({0, 1, 7}, tmp_path) == 2
