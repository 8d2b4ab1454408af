"""The emulator: what it computes, and that it catches planted bugs and passes correct kernels."""
from __future__ import annotations

import numpy as np
import pytest

from gpuonnx.devices.emulation.machine import BOUNDS, FORWARD, PLAIN, RACES, REVERSE, SHUFFLED, UNFAIR, EmulationError, Machine, Memory
from gpuonnx.devices.emulation.translate import is_cooperative
from gpuonnx.errors import CompileError

REDUCE = """
__device__ float block_total(float v, float* sm) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  if ((threadIdx.x & 31) == 0) sm[threadIdx.x >> 5] = v;
  __syncthreads();
  v = 0.f;
  for (int i = 0; i < (int)blockDim.x / 32; ++i) v += sm[i];
  SYNC
  return v;
}
KERNEL {
  __shared__ float sm[32];
  for (int r = 0; r < 3; ++r) {
    float v = block_total(X[threadIdx.x] + r, sm);
    if (threadIdx.x == 0) Y[blockIdx.x * 3 + r] = v;
  }
}"""
GEMM = """
KERNEL {
  __shared__ float a[2][32][8];
  float sum = 0.f;
  int t = threadIdx.x;
  a[0][t & 31][t >> 5] = X[t];
  __syncthreads();
  for (int k = 0; k < 4; ++k) {
    if (k < 3) a[(k + 1) & 1][t & 31][t >> 5] = X[(t * 7 + k) % 100];
    for (int i = 0; i < 8; ++i) sum += a[k & 1][(t + i) & 31][i];
    SYNC
  }
  if (t < 50) Y[blockIdx.x * 50 + t] = sum;
}"""
WARP = """
KERNEL {
  __shared__ float s[64];
  int t = threadIdx.x;
  s[t] = 1;
  SYNC
  float v = s[t ^ 1];
  if (t < 50) Y[blockIdx.x * 50 + t] = v;
}"""
ASYNC = """
KERNEL {
  __shared__ __align__(16) float s[256];
  async_copy<16>(s + threadIdx.x * 4, X + threadIdx.x % 8 * 4 + SHIFT, 16);
  async_commit();
  WAIT
  __syncwarp();
  if (threadIdx.x < 25) Y[blockIdx.x * 25 + threadIdx.x] = s[threadIdx.x * 4];
}"""
BUGS = {
    "missing sync after a block reduction": (REDUCE.replace("SYNC", ""), 256, "race"),
    "missing sync in a tile loop": (GEMM.replace("SYNC", ""), 256, "race|uninitialised"),
    "global read out of bounds": ("KERNEL { int i = blockIdx.x * blockDim.x + threadIdx.x; Y[i < 100 ? i : 0] = X[i]; }", 64, "out of bounds read"),
    "global write out of bounds": ("KERNEL { Y[blockIdx.x * blockDim.x + threadIdx.x] = 1.f; }", 64, "out of bounds write"),
    "shared memory out of bounds": ("KERNEL { __shared__ float s[63]; __shared__ float t[64]; s[threadIdx.x] = 1; t[threadIdx.x] = 2; __syncthreads();"
                                    " if (threadIdx.x < 50) Y[blockIdx.x * 50 + threadIdx.x] = s[0] + t[0]; }", 64, "out of bounds write"),
    "uninitialised shared memory": ("KERNEL { __shared__ float s[64]; if (threadIdx.x < 32) s[threadIdx.x] = 1; __syncthreads();"
                                    " if (threadIdx.x < 50) Y[blockIdx.x * 50 + threadIdx.x] = s[threadIdx.x]; }", 64, "uninitialised"),
    "divergent barrier": ("KERNEL { if (threadIdx.x < 32) { __syncthreads(); } else { Y[0] = 0; \n __syncthreads(); } }", 64, "divergent"),
    "deadlock of warp and block": ("KERNEL { if (threadIdx.x < 40) __shfl_xor_sync(0xffffffffu, 1.f, 1); else { __syncthreads(); } }", 64, "deadlock"),
    "shuffle with exited lanes": ("KERNEL { if (threadIdx.x >= 10) return; Y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1); }", 64, "has exited|deadlock"),
    "race inside a block": ("KERNEL { Y[0] += X[threadIdx.x]; }", 64, "race"),
    "race between blocks": ("KERNEL { if (threadIdx.x == 0) Y[0] = blockIdx.x; }", 64, "race"),
    "missing __syncwarp": (WARP.replace("SYNC", ""), 64, "race|uninitialised"),
    "copy never waited for": (ASYNC.replace("WAIT", "").replace("SHIFT", "0"), 32, "uninitialised|never waited"),
    "wait for the wrong group": (ASYNC.replace("WAIT", "async_wait<1>();").replace("SHIFT", "0"), 32, "uninitialised|never waited"),
    "misaligned copy": (ASYNC.replace("WAIT", "async_wait<0>();").replace("SHIFT", "1"), 32, "misaligned"),
}
CORRECT = {
    "block reduction": (REDUCE.replace("SYNC", "__syncthreads();"), 256),
    "tile loop": (GEMM.replace("SYNC", "__syncthreads();"), 256),
    "__syncwarp": (WARP.replace("SYNC", "__syncwarp();"), 64),
    "copy waited for": (ASYNC.replace("WAIT", "async_wait<0>();").replace("SHIFT", "0"), 32),
}


def kernel(symbol: str, body: str) -> str:
    head = f'extern "C" __global__ void {symbol}(ix* ctx, const ix* args)'
    return body.replace("KERNEL", head).replace("X[", "at<const float>(args[0])[").replace("X +", "at<const float>(args[0]) +").replace("Y[", "at<float>(args[1])[")


def run(machine: Machine, text: str, threads: int, grid: int = 2, shared: int = 0) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal(100).astype("f4")
    a, b, words, ctx = (Memory(machine, n) for n in (400, 400, 16, 64))
    a.bytes[:] = x.view(np.uint8)
    b.bytes[:] = 0
    ctx.bytes[:] = 0
    words.bytes.view(np.int64)[:] = a.address, b.address
    function = machine.load({"probe": kernel("probe", text)})["probe"]
    machine.launch(function, grid, threads, shared, ctx.address, words.address)
    return b.bytes.view(np.float32).copy()


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(bug: str) -> None:
    text, threads, says = BUGS[bug]
    if bug.startswith(("missing sync after", "missing sync in")):
        text = text.replace("X[threadIdx.x]", "X[threadIdx.x % 100]").replace("X[t]", "X[t % 100]")
    with pytest.raises(EmulationError, match=says):
        run(Machine(RACES), text, threads)


@pytest.mark.parametrize("name", CORRECT)
@pytest.mark.parametrize("order", [FORWARD, REVERSE, SHUFFLED, UNFAIR])
def test_correct_kernel_passes_every_check_and_order(name: str, order: int) -> None:
    text, threads = CORRECT[name]
    text = text.replace("X[threadIdx.x]", "X[threadIdx.x % 100]").replace("X[t]", "X[t % 100]")
    expected = run(Machine(PLAIN), text, threads)
    np.testing.assert_array_equal(run(Machine(RACES, order, 3), text, threads), expected)
    np.testing.assert_array_equal(run(Machine(PLAIN, order, 3), text, threads), expected)


def test_message_names_file_and_line() -> None:
    with pytest.raises(EmulationError, match=r"probe\.cu:2"):
        run(Machine(BOUNDS), "KERNEL {\n Y[1000 + threadIdx.x] = 1.f;\n}", 32)


def test_too_much_shared_memory_and_too_many_threads() -> None:
    with pytest.raises(EmulationError, match="shared"):
        run(Machine(), "KERNEL { __syncthreads(); }", 32, shared=1 << 20)
    with pytest.raises(EmulationError, match="block size"):
        run(Machine(), "KERNEL { __syncthreads(); }", 2048)


def test_compile_error_names_kernel_and_line() -> None:
    with pytest.raises(CompileError, match=r"probe\.cu:2.*nonsense"):
        run(Machine(), "KERNEL {\n nonsense = 1;\n}", 32)


def test_many_texts_in_one_unit_keep_their_names_apart() -> None:
    machine = Machine()
    body = "#define SCALE {0}\n__device__ float twice(float x) {{ return x * SCALE; }}\nKERNEL {{ Y[threadIdx.x] = twice(X[threadIdx.x]); }}"
    functions = machine.load({f"scaled_{k}": kernel(f"scaled_{k}", body.format(k)) for k in range(1, 6)})
    assert len({f.library for f in functions.values()}) == 1
    assert not any(f.cooperative for f in functions.values())


def test_cooperation_is_read_from_the_text() -> None:
    assert is_cooperative("__syncthreads();") and is_cooperative("x = __shfl_xor_sync(m, v, 1)") and is_cooperative("mma_f16(d, a, b, c)")
    assert is_cooperative("async_copy<16>(a, b, 16)") and not is_cooperative("atomicAdd(p, 1)")
