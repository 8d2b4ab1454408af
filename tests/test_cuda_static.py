"""Every kind of CUDA text, generated and hand-written, compiles for every architecture: no spills, at most 48 KB of static shared memory."""
from __future__ import annotations

import numpy as np
import pytest
from nvrtc import resources

from gpuonnx.codegen.cuda import build_node, unsupported
from gpuonnx.devices.cuda_text import INCLUDE_COMMON, texts, whole
from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Space
from gpuonnx.ir.expr import Expr, apply, cast, const, dim, folded, guard, index, load
from gpuonnx.ir.scalar import SCALARS
from gpuonnx.ir.types import TYPES, compute, kind, numpy_dtype
from gpuonnx.kernels.contract import Layout

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
STATIC_SHARED = 48 << 10
SIZES = Space()
N, M, K = (SIZES.sym(name) for name in ("n", "m", "k"))
AT = (index(0), index(1))
CONV = {"kernel": (3, 3), "strides": (2, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}


def value(dtype: str, *shape: object) -> g.Value:
    return g.Value(dtype, tuple(shape))  # type: ignore[arg-type]


def mapped(expr: Expr, dtype: str, *inputs: g.Value) -> g.Map:
    return g.Map(inputs, (value(dtype, N, M),), expr=expr)


def softmax() -> g.Nest:
    x = load(0, "f32", AT)
    shifted = apply("exp", x - folded(0, 0, "f32"))
    stages = ((g.Fold("max", x),), (g.Fold("sum", shifted),), (g.Store(0, AT, shifted / folded(1, 0, "f32")),))
    return g.Nest((value("f32", N, M),), (value("f32", N, M),), ranges=(N, M), over=frozenset({1}), stages=stages)


def every_scalar(dtype: str) -> g.Map:
    """All scalar functions that take this type, added up."""
    x, y = load(0, dtype, AT), load(1, dtype, AT)
    total: Expr = x
    for name, row in SCALARS.items():
        if row.cuda is None or name in ("and", "or", "xor", "not", "where", "philox"):
            continue
        whole_only, real_only = name.startswith(("bit_", "sh", "popcount")), name in REAL
        if whole_only and kind(dtype) == "f" or real_only and kind(dtype) != "f":
            continue
        args = [x, y][:2 if "{1}" in row.cuda else 1]
        result = apply(name, *args)
        total = total + (apply("where", result, x, y) if result.dtype == "bool" else result)
    return mapped(total, dtype, value(dtype, N, M), value(dtype, N, M))


REAL = ("reciprocal sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf lgamma sigmoid "
        "isinf").split()


def nodes() -> dict[str, g.Node]:
    matrix, weights = value("f32", N, K), value("f32", K, M)
    gathered = load(0, "f32", (cast(load(1, "i64", (index(0),)), "ix"), index(1)))
    padded = guard(apply("less", index(1), dim(K)), load(0, "f32", AT), const(0.0))
    found: dict[str, g.Node] = {
        "softmax": softmax(),
        "gather": mapped(gathered, "f32", value("f32", N, M), value("i64", N)),
        "pad": mapped(padded, "f32", value("f32", N, K)),
        "transpose": g.Map((value("f32", M, N),), (value("f32", N, M),), expr=load(0, "f32", (index(1), index(0)))),
        "sum": g.Reduce((matrix,), (value("f32", N),), ranges=(N, K), over=(1,), fold="sum", expr=load(0, "f32", AT)),
        "argmax": g.Reduce((matrix,), (value("i64", K),), ranges=(N, K), over=(0,), fold="argmax", expr=load(0, "f32", AT)),
        "prefix": g.Prefix((matrix,), (value("f32", N, K),), axis=1, fold="add", expr=load(0, "f32", AT)),
        "scatter": g.Scatter((value("f32", N), value("i64", M), value("f32", M)), (value("f32", N),), ranges=(M,),
                             index=(cast(load(1, "i64", (index(0),)), "ix"),), expr=load(2, "f32", (index(0),)), combine="add"),
        "random": mapped(cast(apply("philox", cast(index(0), "i64"), cast(index(1), "i64"), const(7, "i64")), "f32"), "f32"),
        "gemm": g.Call((matrix, weights), (value("f32", N, M),), kernel="gemm"),
        "gemm_half": g.Call((value("f16", N, K), value("f16", K, M)), (value("f16", N, M),), kernel="gemm"),
        "conv": g.Call((value("f32", N, 8, 17, 19), value("f32", 96, 8, 3, 3)), (value("f32", N, 96, 9, 19),), kernel="conv", attrs=CONV),
        "conv_half": g.Call((value("bf16", N, 8, 17, 19), value("bf16", 160, 8, 3, 3)), (value("bf16", N, 160, 9, 19),), kernel="conv", attrs=CONV),
        "conv_integer": g.Call((value("u8", N, 8, 17, 19), value("i8", 16, 8, 3, 3)), (value("i32", N, 16, 9, 19),), kernel="conv_integer", attrs=CONV),
    }
    found |= kernels() | {f"attention_{dtype}": attention(dtype) for dtype in ("f32", "f16", "bf16", "f64")}
    found |= {f"attention_{dtype}_rounded": attention(dtype, dtype) for dtype in ("f16", "bf16")}
    for dtype in ("f32", "f64", "i8", "u8", "i32", "i64", "u64"):
        found[f"scalars_{dtype}"] = every_scalar(dtype)
    for name in TYPES:
        if unsupported(mapped(load(0, name, AT), name, value(name, N, M))) is None:
            found[f"copy_{name}"] = mapped(load(0, name, AT), name, value(name, N, M))
            found[f"cast_{name}"] = mapped(cast(load(0, "f32", AT), name) if kind(name) == "f" else cast(load(0, "f32", AT), compute(name)), name,
                                           value("f32", N, M))
    return found


def attention(dtype: str, rounded: str = "") -> g.Call:
    """A scaled and masked softmax between two products, which may be rounded to the type `rounded`."""
    here, real = tuple(map(index, range(3))), compute(dtype)
    score = load(0, real, here)
    weight = apply("exp", score - folded(0, 0, real))
    scaled = load(0, real, here) * const(0.125, real) + load(1, dtype, (index(1), index(2)))
    rows = g.Rows(scaled, ((g.Fold("max", score),), (g.Fold("sum", weight),)), cast(weight / folded(1, 0, real), rounded or real))
    return g.Call((value(dtype, 3, N, 64), value(dtype, 3, 64, M), value(dtype, 3, M, K), value(dtype, N, M)), (value(dtype, 3, N, K),),
                  kernel="attention", attrs={"rows": rows})


def kernels() -> dict[str, g.Node]:
    """Calls of the hand-written kernels."""
    found: dict[str, g.Node] = {}
    places = value("i64", N)
    for dtype in ("f32", "f64", "i8", "u16", "i64"):
        found[f"topk_{dtype}"] = g.Call((value(dtype, N, M),), (value(dtype, N, K), value("i64", N, K)), kernel="topk", attrs={"largest": 1, "sorted": 1})
    for dtype, in_order in (("f32", 1), ("i64", 0)):
        found[f"unique_{dtype}"] = g.Call((value(dtype, N, M),), (places, places, places, value("i64")), kernel="unique", attrs={"sorted": in_order})
    found["nms"] = g.Call((value("f32", 2, N, 4), value("f32", 2, 3, N), value("f32"), value("f32")), (value("i64", 2, 3, M),), kernel="nms",
                          attrs={"centred": 0})
    found["linear_attention"] = g.Call(
        (value("f32", 2, 4, N, M), value("f32", 2, 2, N, M), value("f32", 2, 2, N, K), value("f32", 2, 2, M, K), value("f32", 2, 2, N, M),
         value("f32", 2, 2, N)), (value("f32", 2, N, 4, K), value("f32", 2, 2, M, K)), kernel="linear_attention")
    found["coupling"] = g.Call((value("f32", N, 6),), (value("f32", N, 4),), kernel="coupling")
    found["mersenne"] = g.Call((value("i64"),), (value("f64", N),), kernel="mersenne")
    for dtype in ("f32", "f64"):
        for inverse in (0, 1):
            found[f"fft_{dtype}_{inverse}"] = g.Call((value(dtype, N, M, K, 2),), (value(dtype, N, M, K, 2),), kernel="fft", attrs={"inverse": inverse})
        found[f"det_{dtype}"] = g.Call((value(dtype, N, M, M),), (value(dtype, N),), kernel="det")
    for cell, gates, functions in (("rnn", 1, 1), ("gru", 3, 2), ("lstm", 4, 3)):
        for dtype in ("f32", "f64"):
            hidden = tuple(value(dtype, 1, M, 8) for _ in range(3 if cell == "lstm" else 2))
            found[f"{cell}_{dtype}"] = g.Call(
                (value(dtype, N, M, gates * 8), value(dtype, 1, gates * 8, 8)), (value(dtype, N, 1, M, 8), *hidden[1:]), kernel=cell,
                attrs={"direction": "forward", "activations": ((1, 0.0, 0.0),) * functions, "absent": (2, 3, 4, 5, 6)})
    found["lstm_bytes"] = g.Call((value("f32", N, M, 32), value("i8", 1, 32, 8), value("f32", 1, 32)), (value("f32", N, 1, M, 8),), kernel="lstm",
                                 attrs={"direction": "forward", "activations": ((1, 0.0, 0.0),) * 3, "absent": (2, 3, 4, 5, 6), "quantized_state": 1})
    for dtype in ("f32", "f64"):
        for targets in (1, 5):
            tables = tuple(value(t, 1) for t in ("i32", "i32", dtype, "i32", "i32", dtype))
            found[f"trees_{dtype}_{targets}"] = g.Call((value(dtype, N, M), *tables), (value(dtype, N, targets),), kernel="trees", attrs={"aggregate": 0})
    return found


LEAF_ALONE = {1: [[0, 0]], 2: [[-1, 0, 1]], 3: [0], 4: [0], 5: [0], 6: [1]}


def constants(node: g.Node) -> dict[int, np.ndarray]:
    """Tables that a kernel packs: weights of 8 bits, a forest of one leaf."""
    if isinstance(node, g.Call) and "quantized_state" in node.attrs:
        return {k: np.zeros([int(s) for s in node.inputs[k].dims], numpy_dtype(node.inputs[k].dtype)) for k in (1, 2)}  # type: ignore[call-overload]
    if not isinstance(node, g.Call) or node.kernel != "trees":
        return {}
    return {k: np.array(v, numpy_dtype(node.inputs[k].dtype)) for k, v in LEAF_ALONE.items()}


def text_of(chosen: dict[str, g.Node]) -> str:
    """All texts in one translation unit, as the device batches them."""
    kernels = []
    for node in chosen.values():
        inputs = [Layout.dense(v.dtype, v.dims) for v in node.inputs]
        outputs = [Layout.dense(v.dtype, v.dims) for v in node.outputs]
        kernels += [s.kernel for s in build_node(node, inputs, outputs, constants(node)).steps]
    bodies = [t.removeprefix(INCLUDE_COMMON) for t in texts(kernels).values()]
    return whole(INCLUDE_COMMON) + "".join(f"namespace text{k} {{\n{body}}}\n" for k, body in enumerate(bodies))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_text_compiles_without_spills(architecture: int) -> None:
    chosen = nodes()
    if architecture not in (75, 90):
        chosen = {name: node for name, node in chosen.items() if not name.startswith(("copy_", "cast_", "scalars_"))}
    found = resources(text_of(chosen), architecture)
    assert len(found) >= len(chosen) - 3
    assert [r for r in found if r.spilled or r.shared > STATIC_SHARED] == []
    assert max(r.registers for r in found) <= 255


def test_a_broken_text_is_reported() -> None:
    with pytest.raises(RuntimeError, match="undefined"):
        resources('extern "C" __global__ void k() { nowhere(); }', 80)


def test_a_forced_spill_is_seen() -> None:
    lines = "\n".join(f"  float v{i} = x[{i} * t + threadIdx.x];" for i in range(200))
    uses = "\n".join(f"  x[{i} + t] = v{199 - i} * v{i};" for i in range(200))
    text = f'extern "C" __global__ void __launch_bounds__(1024) k(float* x, int t) {{\n{lines}\n  __syncthreads();\n{uses}\n}}'
    assert resources(text, 80)[0].spilled > 0


def test_shared_memory_is_counted() -> None:
    text = 'extern "C" __global__ void k(float* x) { __shared__ float s[64]; s[threadIdx.x] = x[0]; __syncthreads(); x[threadIdx.x] = s[63 - threadIdx.x]; }'
    assert resources(text, 80)[0].shared == 64 * np.dtype(np.float32).itemsize
