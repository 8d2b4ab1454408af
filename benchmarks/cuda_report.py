"""What the CUDA kernels of products and attention take on an architecture, and the roofline of an H100 for some sizes. Modelled: nothing here runs
on a GPU.

    python benchmarks/cuda_report.py [ARCHITECTURE]        (needs the NVRTC wheel of gpuonnx[test])

Registers, spills and shared memory are what ptxas reports. Resident blocks follow from them and the limits of a multiprocessor. The times are
bounds: no kernel can be faster than its arithmetic at peak or its operands at full bandwidth; how close these come is not known without a GPU.
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from nvrtc import resources

from gpuonnx.codegen.cuda import build_node
from gpuonnx.devices.cuda_text import texts, whole
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Dim, Space
from gpuonnx.ir.expr import apply, cast, const, folded, index, load
from gpuonnx.ir.types import compute, size
from gpuonnx.kernels.contract import Layout, Step

REGISTERS, UNIT, THREADS, BLOCKS = 65536, 256, 2048, 32
SHARED = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
H100 = {"f32": 66.9e12, "f64": 33.5e12, "f16": 989.4e12, "bf16": 989.4e12, "i8": 1978.9e12}
BANDWIDTH = 3.35e12
SIZES = ((1, 4096, 4096), (128, 768, 3072), (512, 512, 512), (4096, 4096, 4096))
CONV = {"kernel": (3, 3), "strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}


def resident(architecture: int, threads: int, registers: int, shared: int) -> int:
    """Blocks of a multiprocessor at a time."""
    warps = -(-threads // 32)
    by_registers = REGISTERS // (warps * (-(-registers * 32 // UNIT) * UNIT))
    by_shared = SHARED[architecture] * 1024 // (shared + 1024) if architecture >= 80 else SHARED[architecture] * 1024 // max(shared, 1)
    most = {75: 1024, 86: 1536, 89: 1536, 120: 1536}.get(architecture, THREADS)
    return min(by_registers, by_shared, most // threads, BLOCKS)


def nodes() -> dict[str, g.Call]:
    space = Space()
    n, m, k, h, w = (space.sym(name) for name in "nmkhw")
    found = {}
    for dtype in ("f32", "f16", "bf16", "f64"):
        found[f"gemm {dtype}"] = g.Call((g.Value(dtype, (n, k)), g.Value(dtype, (k, m))), (g.Value(dtype, (n, m)),), kernel="gemm")
    left, right = g.Value("u8", (n, k)), g.Value("i8", (k, m))
    found["gemm i8"] = g.Call((left, right), (g.Value("i32", (n, m)),), kernel="gemm_integer", attrs={"absent": (2, 3)})
    for dtype in ("f32", "f16"):
        found[f"conv {dtype}"] = g.Call((g.Value(dtype, (n, k, h, w)), g.Value(dtype, (m, k, 3, 3))), (g.Value(dtype, (n, m, h, w)),), kernel="conv",
                                        attrs=CONV)
    for dtype in ("f32", "f16", "bf16", "f64"):
        for wide in (64, 128):
            found[f"attend {dtype} {wide}"] = attention(dtype, (n, m), (h, w), wide)
    return found


def attention(dtype: str, lead: tuple[Dim, ...], sizes: tuple[Dim, Dim], wide: int) -> g.Call:
    """Scaled, masked, stored softmax of q[..., S, wide] @ k[..., T, wide]^T, times v[..., T, wide]."""
    rows, keys = sizes
    rank, real = len(lead) + 2, compute(dtype)
    here = tuple(map(index, range(rank)))
    score = load(0, real, here)
    weight = apply("exp", score - folded(0, 0, real))
    scaled = load(0, real, here) * const(0.125, real) + load(1, dtype, (index(rank - 2), index(rank - 1)))
    made = g.Rows(scaled, ((g.Fold("max", score),), (g.Fold("sum", weight),)), cast(weight / folded(1, 0, real), dtype))
    shapes = ((*lead, rows, wide), (*lead, wide, keys), (*lead, keys, wide), (rows, keys))
    return g.Call(tuple(g.Value(dtype, s) for s in shapes), (g.Value(dtype, (*lead, rows, wide)),), kernel="attention", attrs={"rows": made})


def layouts(node: g.Call) -> list[Layout]:
    """Dense, but for the keys of an attention, which lie as [..., T, D]."""
    made = [Layout.dense(v.dtype, v.dims) for v in node.inputs]
    if node.kernel == "attention":
        *lead, depth, keys = made[1].shape
        made[1] = Layout(made[1].dtype, made[1].shape, (*Layout.dense(made[1].dtype, (*lead, keys, depth)).strides[:-2], 1, depth))
    return made


def steps(node: g.Call) -> tuple[Step, ...]:
    return build_node(node, layouts(node), [Layout.dense(v.dtype, v.dims) for v in node.outputs], {}).steps


def main() -> None:
    architecture = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    print(f"sm_{architecture}, by ptxas; resident blocks and their warps are modelled")
    print(f"{'':16}{'kernel':24}{'threads':>8}{'registers':>10}{'spilled':>8}{'shared':>8}{'blocks':>7}{'warps':>6}")
    for name, node in nodes().items():
        for step in steps(node):
            used = resources(whole(next(iter(texts([step.kernel]).values()))), architecture)[0]
            shared = used.shared + int(step.shared)
            blocks = resident(architecture, step.threads, used.registers, shared)
            print(f"{name:16}{step.kernel.name:24}{step.threads:8}{used.registers:10}{used.spilled:8}{shared:8}{blocks:7}"
                  f"{blocks * step.threads // 32:6}")
    print("\nH100 SXM roofline (modelled): the larger of arithmetic at peak and bytes at 3.35 TB/s, in microseconds")
    print(f"{'M x N x K':20}" + "".join(f"{dtype:>16}" for dtype in H100))
    for rows, columns, depth in SIZES:
        cells = []
        for dtype, peak in H100.items():
            work = 2 * rows * columns * depth / peak
            moved = ((rows * depth + depth * columns) * size(dtype) + rows * columns * (4 if dtype == "i8" else size(dtype))) / BANDWIDTH
            cells.append(f"{max(work, moved) * 1e6:9.1f} {'memory' if moved > work else 'peak':6}")
        print(f"{f'{rows} x {columns} x {depth}':20}" + "".join(cells))


if __name__ == "__main__":
    main()
