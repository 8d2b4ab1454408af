"""Matrix products, attention, and arithmetic on quantised numbers."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from every_operator.draw import Case, Draw, kind, types_range
from every_operator.folding import wide
from every_operator.oracle import reference
from every_operator.row import Row
from every_operator.windows import centred
from onnx import helper


def joined(d: Draw, k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes that MatMul takes: vectors, matrices, stacks that broadcast."""
    stack = d.shape(0, 2, 1, 3)
    a, b = (*d.broadcast(stack), d.integer(0 if d.integer(0, 6) == 6 else 1, 5), k), (*d.broadcast(stack), k, d.pick(1, 2, 7, 17))
    return a if d.integer(0, 4) else (k,), b if d.integer(0, 4) else (k,)


def mat_mul(d: Draw) -> Case:
    a, b = joined(d, d.pick(1, 3, 8, 0))
    dtype = d.type("T")
    return d.case(d.array(a, dtype, False), d.array(b, dtype, False), constant=(1,))


def multiplied(case: Case) -> list[Any]:
    return [np.matmul(*map(wide, case.inputs))]


def mat_mul_integer(d: Draw) -> Case:
    a_shape, b_shape = joined(d, d.pick(1, 3, 8))
    a, b = d.array(a_shape, d.type("T1")), d.array(b_shape, d.type("T2"))
    zeros = [d.array((), a.dtype)] if d.flag() else []
    zeros += [d.array(b.shape[-1:] if b.ndim == 2 and d.flag() else (), b.dtype)] if zeros and d.flag() else []
    return d.case(a, b, *zeros, constant=(1, 2, 3))


def mat_mul_integer_of(case: Case) -> list[Any]:
    a, b, az, bz = [*case.inputs, 0, 0][:4] if len(case.inputs) == 2 else [*case.inputs, 0][:4]
    return [np.matmul(centred(a, az), centred(b, bz, b.ndim - 1)).astype(np.int32)]


def gemm(d: Draw) -> Case:
    m, k, n = (d.pick(1, 2, 5, 17) for _ in range(3))
    a, b = (d.array(s, d.type("T"), False) for s in ((m, k), (k, n)))
    turn = {name: 1 for name in ("transA", "transB") if d.flag()}
    c = [d.array(d.broadcast((m, n), drop=d.schema.since_version >= 7), a.dtype, False)] if d.flag() or d.schema.since_version < 11 else []
    more = {"broadcast": 1} if d.has("broadcast") else {}
    scale = {name: d.pick(0.5, 2.0, 0.0) for name in ("alpha", "beta") if d.flag() and kind(a.dtype) == "f"}
    return d.case(a.T.copy() if "transA" in turn else a, b.T.copy() if "transB" in turn else b, *c, **turn, **more, **scale, constant=(1, 2))


def gemm_of(case: Case) -> list[Any]:
    a, b, *c = map(wide, case.inputs)
    at = case.attributes
    y = (a.T if at.get("transA") else a) @ (b.T if at.get("transB") else b)
    y = y * at.get("alpha", 1.0) if kind(case.inputs[0].dtype) == "f" else y
    return [y + c[0] * (at.get("beta", 1.0) if kind(case.inputs[0].dtype) == "f" else c[0].dtype.type(1)) if c else y]


EQUATIONS = ("ij,jk->ik", "bij,bjk->bik", "ij->ji", "ii->i", "ii->", "ij->", "i,j->ij", "...ij,...jk->...ik", "ij,ij->i", "bhqd,bhkd->bhqk", "ij,jk,kl->il", "i,i", "ij, kj")


def einsum(d: Draw) -> Case:
    equation = d.pick(*EQUATIONS)
    sizes = {letter: d.integer(0 if d.integer(0, 9) == 9 else 1, 4) for letter in "ijklbhqd"}
    terms = equation.replace(" ", "").split("->")[0].split(",")
    stack = d.shape(0, 2, 1, 3)
    shapes = [[*(stack if "..." in t else ()), *(sizes[letter] for letter in t if letter != ".")] for t in terms]
    return d.case(*(d.array(s, d.type("T"), False, -2, 2) for s in shapes), equation=equation, constant=(1,))


def einsum_of(case: Case) -> list[Any]:
    return [np.einsum(case.attributes["equation"].replace(" ", ""), *map(wide, case.inputs), dtype=None)]


def det(d: Draw) -> Case:
    n = d.integer(1, 4)
    return d.case(d.array((*d.shape(0, 2, 1, 3), n, n), d.type("T"), False))


def det_of(case: Case) -> list[Any]:
    return [np.linalg.det(wide(case.inputs[0]))]


def attention(d: Draw) -> Case:
    b, heads, group, q, k, size, values = d.integer(1, 2), d.integer(1, 2), d.integer(1, 2), d.integer(1, 4), d.integer(1, 5), d.pick(2, 4), d.pick(2, 3)
    t1, t2 = d.type("T1"), d.type("T2")
    if t2 != t1:
        t2 = d.types["T2"] = t1
    flat, past = d.flag(), d.integer(0, 3) if d.flag() else 0
    shapes = [(b, heads * group, q, size), (b, heads, k, size), (b, heads, k, values)]
    more: dict[str, Any] = {}
    if flat:
        shapes = [(s[0], s[2], s[1] * s[3]) for s in shapes]
        more = {"q_num_heads": heads * group, "kv_num_heads": heads}
    inputs: list[Any] = [d.array(s, t, False, -2, 2) for s, t in zip(shapes, (t1, t1, t2), strict=True)]
    mask = None
    if d.flag():
        kept = d.type("U", "fb")
        mask = d.array(d.broadcast((b, heads * group, q, k + past)), kept, False)
        mask = mask if mask.ndim >= 2 else d.array((q, k + past), kept, False)
        if mask.shape[-1] != k + past:
            mask = np.repeat(mask, k + past, -1)
        if kept == np.bool_:
            mask[..., 0] = True
    cached = [d.array((b, heads, past, size), t1, False), d.array((b, heads, past, values), t2, False)] if past else []
    inputs += [mask, *cached] if cached else [mask] if mask is not None else []
    more["is_causal"] = d.pick(None, 0, 1) if mask is None or mask.dtype != np.bool_ else None
    more["scale"], more["softcap"] = d.pick(None, 0.5), d.pick(None, 2.0)
    return d.case(*inputs, outputs=3 if cached else 1, **more)


def rotary(d: Draw) -> Case:
    b, heads, size, half = d.integer(1, 2), d.integer(1, 3), d.integer(1, 4), d.integer(1, 3)
    part = {"rotary_embedding_dim": half * 2} if d.flag() else {}
    width = half * 2 + (2 if part else 0)
    flat = d.flag()
    x = d.array((b, size, heads * width) if flat else (b, heads, size, width), d.type("T"), False)
    places = d.random.integers(0, 6, (b, size)) if d.flag() else None
    caches = [d.array((6, half) if places is not None else (b, size, half), x.dtype, False, -1, 1) for _ in range(2)]
    return d.case(x, *caches, *([] if places is None else [places]), interleaved=d.pick(None, 0, 1), **part,
                  **({"num_heads": heads} if flat else {}), constant=(1, 2))


def linear_attention(d: Draw) -> Case:
    b, heads, size, dk, dv = d.integer(1, 2), d.integer(1, 2), d.integer(1, 4), d.pick(2, 3), d.pick(2, 3)
    rule = d.pick("linear", "gated", "delta", "gated_delta")
    t, s = d.type("T"), d.type("S")
    q, k, v = (d.array((b, size, heads * n), t, False, -1, 1) for n in (dk, dk, dv))
    past = d.array((b, heads, dk, dv), s, False, -1, 1) if d.flag() else None
    decay = d.array((b, size, heads * d.pick(1, dk)), t, False, -1, 0) if "gated" in rule else None
    beta = d.array((b, size, heads), t, False, 0.125, 1) if "delta" in rule else None
    inputs = [q, k, v, past, decay, beta]
    while inputs[-1] is None:
        inputs.pop()
    return d.case(*inputs, q_num_heads=heads, kv_num_heads=heads, update_rule=rule, scale=d.pick(None, 0.5), outputs=2)


def laid_out(d: Draw, x_shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The shape of scales: one, along an axis, or in blocks of it."""
    how = d.pick("one", "axis", *(["block"] if d.has("block_size") else []))
    if how == "one" or not x_shape:
        return (), {}
    axis = d.integer(0, len(x_shape) - 1)
    named = {"axis": axis - len(x_shape) if d.flag() else axis}
    if not d.has("axis"):
        return (), {}
    if how == "axis":
        return (x_shape[axis],), named
    size = d.integer(1, 3)
    return (*x_shape[:axis], -(-x_shape[axis] // size), *x_shape[axis + 1:]), {**named, "block_size": size}


def scale_of(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    spelled = d.schema.inputs[1].type_str
    dtype = np.dtype(np.float32) if spelled.startswith("tensor") else d.type(spelled, "f")
    return d.array(shape, dtype, False, 0.125, 2)


def quantize(d: Draw) -> Case:
    shape = d.shape(1, 3, 1)
    scale_shape, more = laid_out(d, shape)
    spelled = d.schema.inputs[0].type_str
    x = d.array(shape, np.float32 if spelled.startswith("tensor") else d.type(spelled, "f"), False, -20, 20)
    scale = scale_of(d, scale_shape)
    target = d.type("T3" if any(c.type_param_str == "T3" for c in d.schema.type_constraints) else "T2", "fiu")
    saturate = {"saturate": d.pick(0, 1)} if d.has("saturate") and d.flag() else {}
    if d.has("output_dtype") and d.flag():
        return d.case(x, scale, output_dtype=helper.np_dtype_to_tensor_dtype(target), **more, **saturate, constant=(1,))
    zero = d.array(scale_shape, target, False) if kind(target) in "iu" else np.zeros(scale_shape, target)
    return d.case(x, scale, zero, **more, **saturate, constant=(1, 2))


def quantized(case: Case) -> list[Any]:
    """Divided in the type of the scale."""
    x, scale, *zero = case.inputs
    target = zero[0].dtype if zero else helper.tensor_dtype_to_np_dtype(case.attributes["output_dtype"])
    if kind(target) == "f":
        return reference(case, widen=False)
    s = spread(scale, x, case.attributes).astype(scale.dtype).astype(np.float32)
    parts = np.rint((x.astype(np.float32) / s).astype(scale.dtype if scale.dtype.name != "float8_e8m0fnu" else np.float32).astype(np.float64))
    low, high = types_range(target)
    return [np.clip(parts + (spread(zero[0], x, case.attributes) if zero else 0), low, high).astype(np.int64).astype(target)]


def spread(values: Any, x: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """Scales or zero points as wide as x."""
    values = np.asarray(values).astype(np.float64)
    if not values.ndim:
        return values
    axis = attributes.get("axis", 1)
    if attributes.get("block_size"):
        return np.repeat(values, attributes["block_size"], axis).take(range(x.shape[axis]), axis)
    return values.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


def dequantize(d: Draw) -> Case:
    shape = d.shape(1, 3, 1)
    scale_shape, more = laid_out(d, shape)
    source = d.type(d.schema.inputs[0].type_str, "fiu")
    x = d.array(shape, source, False, -60, 60)
    scale = scale_of(d, scale_shape)
    if scale.dtype.name == "float8_e8m0fnu":
        more["output_dtype"] = onnx.TensorProto.FLOAT
    whole = kind(source) in "iu" and source != np.int32 and d.flag()
    return d.case(x, scale, *([d.array(scale_shape, source, False)] if whole else []), **more, constant=(1, 2))


def dequantized(case: Case) -> list[Any]:
    x, scale, *zero = case.inputs
    y = x.astype(np.float64) - (spread(zero[0], x, case.attributes) if zero else 0)
    return [(y * spread(scale, x, case.attributes)).astype(np.float32 if "output_dtype" in case.attributes else scale.dtype)]


def dynamic(d: Draw) -> Case:
    return d.case(d.array(d.shape(1, 3, 1), np.float32, False), outputs=3)


def qlinear_mat_mul(d: Draw) -> Case:
    a_shape, b_shape = joined(d, d.pick(1, 3, 8))
    scale = d.type("TS") if any(c.type_param_str == "TS" for c in d.schema.type_constraints) else np.dtype(np.float32)
    names = [t for t in (d.type("T1", "iu"), d.type("T2", "iu"), d.type("T3", "iu"))]
    a, b = d.array(a_shape, names[0]), d.array(b_shape, names[1])
    parts = [d.array((), scale, False, 0.125, 1) for _ in range(3)]
    zeros = [d.array((), t, False) for t in names]
    return d.case(a, parts[0], zeros[0], b, parts[1], zeros[1], parts[2], zeros[2], constant=(1, 2, 3, 4, 5, 6, 7))


def qlinear_mat_mul_of(case: Case) -> list[Any]:
    a, s_a, z_a, b, s_b, z_b, s_y, z_y = case.inputs
    y = np.matmul(centred(a, z_a), centred(b, z_b)) * (s_a.astype(np.float64) * s_b.astype(np.float64) / s_y.astype(np.float64))
    low, high = types_range(z_y.dtype)
    return [np.clip(np.rint(y) + float(z_y), low, high).astype(z_y.dtype)]


ROWS: dict[str, Row] = {
    "MatMul": Row(mat_mul, multiplied, sums=1), "MatMulInteger": Row(mat_mul_integer, mat_mul_integer_of), "Gemm": Row(gemm, gemm_of, sums=1),
    "Einsum": Row(einsum, einsum_of, sums=1), "Det": Row(det, det_of, sums=1, floor=1), "Attention": Row(attention, single=True, sums=2, slack=4),
    "RotaryEmbedding": Row(rotary, sums=1, slack=2), "LinearAttention": Row(linear_attention, sums=2, slack=4, floor=1),
    "QuantizeLinear": Row(quantize, quantized), "DequantizeLinear": Row(dequantize, dequantized), "DynamicQuantizeLinear": Row(dynamic),
    "QLinearMatMul": Row(qlinear_mat_mul, qlinear_mat_mul_of),
}
