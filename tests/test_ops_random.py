"""Operators by family on shapes, attributes, types and values that Hypothesis makes, against the standard's reference evaluator: scalars,
empty tensors, NaN, infinities, negative strides. GPUONNX_EXAMPLES sets how many are tried of each."""
from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from op_runner import node_model

import gpuonnx

few = settings(max_examples=int(os.environ.get("GPUONNX_EXAMPLES", "5")), deadline=None, database=None, derandomize="GPUONNX_EXAMPLES" not in os.environ,
               suppress_health_check=list(HealthCheck))
FLOATS, SIGNED, UNSIGNED = ("float32", "float64", "float16"), ("int8", "int16", "int32", "int64"), ("uint8", "uint16", "uint32", "uint64")
NUMBERS = FLOATS + SIGNED + UNSIGNED
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, np.inf, -np.inf, np.nan, 1e-3, 100.0)
sizes = st.sampled_from((0, 1, 1, 2, 3, 4, 7))
seeds = st.integers(0, 2**32 - 1)


def shapes(least: int = 0, most: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(sizes, min_size=least, max_size=most).map(tuple)


@st.composite
def tensors(draw: Any, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None, special: bool = False, low: int = -4, high: int = 5,
            least: int = 0, most: int = 4) -> np.ndarray:
    """Any shape, any of the types; sometimes a view with negative strides, or one that is transposed."""
    shape = draw(shapes(least, most)) if shape is None else shape
    dtype, rng = draw(st.sampled_from(dtypes)), np.random.default_rng(draw(seeds))
    if dtype == "bool":
        x = rng.random(shape) < 0.5
    elif dtype.startswith("float"):
        x = rng.choice(np.array(SPECIAL), shape) if special else rng.uniform(low, high, shape)
    else:
        x = rng.integers(0 if dtype[0] == "u" else low, high, shape)
    x = np.asarray(x).astype(dtype)
    way = draw(st.sampled_from(("plain", "backwards", "transposed", "strided")))
    if way == "backwards":
        return x[tuple(slice(None, None, -1) for _ in shape)]
    if way == "transposed":
        return np.asfortranarray(x)
    return np.repeat(x, 2, -1)[..., ::2] if way == "strided" and shape else x


def same(op_type: str, inputs: list[Any], opset: int = 21, outputs: int = 1, tolerance: float | None = None, **attributes: Any) -> None:
    """Ours and the reference's; where the reference refuses, ours may refuse too but must not crash."""
    model = node_model(op_type, inputs, opset, outputs, **attributes)
    feeds = {f"x{k}": x for k, x in enumerate(inputs) if x is not None}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            theirs = ReferenceEvaluator(model).run(None, feeds)
        except Exception:
            assume(False)
        ours = list(gpuonnx.load(model, device="cpu", threads=1).run(feeds).values())
    for a, b in zip(ours, theirs, strict=True):
        b = np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, b.dtype, a.shape, b.shape)
        if a.dtype.kind == "f":
            bound = tolerance or {2: 4e-3, 4: 2e-5, 8: 1e-10}[a.dtype.itemsize]
            np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=bound, atol=bound)
        else:
            np.testing.assert_array_equal(a, b)


UNARY = ("Abs Neg Reciprocal Sqrt Exp Log Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh Atanh Erf Sigmoid Relu Elu Selu Celu LeakyRelu "
         "HardSigmoid HardSwish Softplus Softsign Mish ThresholdedRelu Shrink Gelu Sign Floor Ceil Round IsNaN IsInf Identity").split()


ROUGH = ("Erf", "Gelu", "LeakyRelu", "HardSigmoid", "HardSwish")


@pytest.mark.parametrize("name", UNARY)
@few
@given(tensors(("float32", "float64"), special=True))
def test_functions_of_special_values(name: str, x: np.ndarray) -> None:
    """The reference rounds attributes to float32, and has an error function of about as many digits."""
    same(name, [x], tolerance=2e-6 if name in ROUGH and x.dtype == np.float64 else None)


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Pow"])
@few
@given(st.data())
def test_functions_of_two(name: str, data: Any) -> None:
    shape = data.draw(shapes(0, 3))
    dtype = data.draw(st.sampled_from(("float32", "float64", "int32", "int64") if name == "Pow" else NUMBERS))
    cut = data.draw(st.integers(0, len(shape)))
    other = tuple(1 if data.draw(st.booleans()) else s for s in shape[cut:])
    special = data.draw(st.booleans()) and name != "Pow"
    a, b = data.draw(tensors((dtype,), shape, special)), data.draw(tensors((dtype,), other, special))
    if dtype[0] in "iu" and name in ("Div", "Pow"):
        b = np.abs(b) + np.asarray(1, dtype)
    if name == "Pow" and dtype[0] == "f":
        a = np.abs(a) + np.asarray(0.1, dtype)
    same(name, [a, b] if data.draw(st.booleans()) or name in ("Div", "Pow") else [b, a])


@few
@given(st.data())
def test_modulo_and_shifts(data: Any) -> None:
    shape = data.draw(shapes(0, 2))
    for fmod, dtype in ((0, data.draw(st.sampled_from(SIGNED + UNSIGNED))), (1, data.draw(st.sampled_from(NUMBERS)))):
        a, b = data.draw(tensors((dtype,), shape, low=-9, high=9)), data.draw(tensors((dtype,), shape, low=1, high=5))
        same("Mod", [a, np.where(b == 0, np.asarray(3, dtype), b)], fmod=fmod)
    dtype = data.draw(st.sampled_from(UNSIGNED))
    same("BitShift", [data.draw(tensors((dtype,), shape, high=100)), data.draw(tensors((dtype,), shape))], direction=data.draw(
        st.sampled_from(("LEFT", "RIGHT"))))


@few
@given(tensors((*NUMBERS, "bool")), st.sampled_from((1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13)))
def test_casts(x: np.ndarray, to: int) -> None:
    assume(not (x.dtype.kind == "f" and to in (2, 4, 12, 13) and (x < 0).any()))
    same("Cast", [x], to=to)


@pytest.mark.parametrize("name", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
                                  "ReduceSumSquare"])
@few
@given(st.data())
def test_reductions(name: str, data: Any) -> None:
    x = data.draw(tensors(("float32", "float64", "int32", "int64") if name in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin") else
                          ("float32", "float64")))
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True)) if x.ndim else []
    axes = [a - x.ndim if data.draw(st.booleans()) else a for a in axes]
    assume(name in ("ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare") or all(x.shape))
    given_axes = None if not axes and data.draw(st.booleans()) else np.array(axes, np.int64)
    same(name, [x, given_axes], 20, keepdims=data.draw(st.integers(0, 1)), noop_with_empty_axes=data.draw(st.integers(0, 1)))


@few
@given(st.data())
def test_extremes_and_cumulated_sums(data: Any) -> None:
    x = data.draw(tensors(("float32", "int32", "int8"), least=1))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    same("CumSum", [x.astype(np.float64), np.array(axis)], exclusive=data.draw(st.integers(0, 1)), reverse=data.draw(st.integers(0, 1)))
    assume(all(x.shape))
    same(data.draw(st.sampled_from(("ArgMax", "ArgMin"))), [x], axis=axis, keepdims=data.draw(st.integers(0, 1)),
         select_last_index=data.draw(st.integers(0, 1)))
    k = data.draw(st.integers(0, x.shape[axis]))
    distinct = np.random.default_rng(0).permutation(x.size).reshape(x.shape).astype(np.float32)
    same("TopK", [distinct, np.array([k])], outputs=2, axis=axis, largest=data.draw(st.integers(0, 1)))


@few
@given(st.data())
def test_softmaxes(data: Any) -> None:
    x = data.draw(tensors(("float32", "float64"), least=1))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    assume(x.shape[axis])
    same(data.draw(st.sampled_from(("Softmax", "LogSoftmax", "Hardmax"))), [x], axis=axis)


@few
@given(st.data())
def test_movements(data: Any) -> None:
    x = data.draw(tensors((*NUMBERS, "bool"), least=1))
    same("Transpose", [x], perm=data.draw(st.permutations(range(x.ndim))))
    same("Flatten", [x], axis=data.draw(st.integers(-x.ndim, x.ndim)))
    axes = data.draw(st.lists(st.integers(0, x.ndim), unique=True, max_size=2))
    same("Unsqueeze", [x, np.array(axes, np.int64)])
    ones = [a for a, s in enumerate(x.shape) if s == 1 and data.draw(st.booleans())]
    same("Squeeze", [x, np.array(ones, np.int64)] if ones else [x])
    repeats = data.draw(st.lists(st.integers(0, 3), min_size=x.ndim, max_size=x.ndim))
    same("Tile", [x, np.array(repeats, np.int64)])
    wanted = [s if s != 1 or data.draw(st.booleans()) else 3 for s in x.shape]
    same("Expand", [x, np.array([2, *wanted][data.draw(st.integers(0, 1)):], np.int64)])
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    same("Concat", [x, x, x], axis=axis)
    same("Reshape", [x, np.array([-1] if x.size else [x.size], np.int64)])


@few
@given(st.data())
def test_slices(data: Any) -> None:
    """A start in front of everything is the first element going backwards too, which NumPy has otherwise."""
    x = data.draw(tensors(("float32", "int64", "bool"), least=1))
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True, min_size=1))
    ends = st.integers(-9, 9) | st.sampled_from((2**31 - 1, -2**31, 2**63 - 1, -2**63))
    steps = [data.draw(st.sampled_from((1, 2, -1, -3))) for _ in axes]
    starts = [data.draw(ends if step > 0 else st.integers(-x.shape[a], 9)) for a, step in zip(axes, steps, strict=True)]
    columns = [starts, [data.draw(ends) for _ in axes], axes, steps]
    same("Slice", [x, *(np.array(c, np.int64) for c in columns)])


@few
@given(st.data())
def test_padding(data: Any) -> None:
    x = data.draw(tensors(("float32", "int32"), least=1, most=3))
    mode = data.draw(st.sampled_from(("constant", "edge", "reflect", "wrap")))
    assume(mode == "constant" or all(x.shape))
    least = -min(x.shape, default=0) if mode == "constant" else 0
    most = min(x.shape) - 1 if mode in ("reflect", "wrap") else 3
    assume(most >= 0)
    pads = [data.draw(st.integers(0, most)) for _ in range(2 * x.ndim)] if least == 0 else [data.draw(st.integers(0, 3)) for _ in range(2 * x.ndim)]
    same("Pad", [x, np.array(pads, np.int64), np.asarray(7, x.dtype)], mode=mode)


@few
@given(st.data())
def test_gathers_and_scatters(data: Any) -> None:
    x = data.draw(tensors(("float32", "int64", "bool"), least=1, most=3))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    size = x.shape[axis]
    indices = data.draw(tensors(("int64", "int32"), data.draw(shapes(0, 2)), low=-size, high=max(size, 1)))
    assume(size or not indices.size)
    same("Gather", [x, indices], axis=axis)
    assume(all(x.shape))
    shape = tuple(data.draw(st.integers(1, s)) for s in x.shape)
    places = data.draw(tensors(("int64",), shape, low=-size, high=size))
    same("GatherElements", [x, places], axis=axis)
    assume(x.dtype != bool)
    same("ScatterElements", [x, places, data.draw(tensors((x.dtype.name,), shape))], 18, axis=axis,
         reduction=data.draw(st.sampled_from(("add", "mul", "max", "min"))))


@few
@given(st.data())
def test_products(data: Any) -> None:
    m, k, n = (data.draw(sizes) for _ in range(3))
    batch = data.draw(shapes(0, 2))
    dtype = data.draw(st.sampled_from(("float32", "float64", "int32")))
    a, b = data.draw(tensors((dtype,), (*batch, m, k))), data.draw(tensors((dtype,), (*batch[data.draw(st.integers(0, len(batch))):], k, n)))
    same("MatMul", [a, b])
    same("MatMul", [a[(0,) * (a.ndim - 1)], b] if m and all(batch) and data.draw(st.booleans()) else [a, b])
    turned = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    a, b, c = (data.draw(tensors(("float32",), s)) for s in ((k, m) if turned[0] else (m, k), (n, k) if turned[1] else (k, n), (1, n)))
    same("Gemm", [a, b, c], transA=turned[0], transB=turned[1], alpha=0.5, beta=2.0)


@few
@given(st.data())
def test_convolutions_and_pools(data: Any) -> None:
    rank, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    spatial = tuple(data.draw(st.integers(3, 8)) for _ in range(rank))
    kernel, strides, dilations = ([data.draw(st.integers(1, most)) for _ in range(rank)] for most in (3, 3, 2))
    pads = [data.draw(st.integers(0, 1)) for _ in range(2 * rank)]
    extents = [(k - 1) * g + 1 for k, g in zip(kernel, dilations, strict=True)]
    assume(all(s + pads[a] + pads[rank + a] >= e for a, (s, e) in enumerate(zip(spatial, extents, strict=True))))
    x = data.draw(tensors(("float32",), (data.draw(st.integers(0, 2)), 2 * group, *spatial)))
    w, b = data.draw(tensors(("float32",), (4, 2, *kernel))), data.draw(tensors(("float32",), (4,)))
    assume(len(x))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    same("Conv", [x, w, b], group=group, dilations=dilations, tolerance=1e-4, **attributes)
    if all(2 * p <= k for p, k in zip(pads, kernel * 2, strict=True)):
        same("MaxPool", [x], dilations=dilations, **attributes)
        same("AveragePool", [x], count_include_pad=data.draw(st.integers(0, 1)), **attributes)


@few
@given(st.data())
def test_choices(data: Any) -> None:
    shape = data.draw(shapes())
    x, y = data.draw(tensors(("float32",), shape, special=True)), data.draw(tensors(("float32",), shape))
    same("Where", [data.draw(tensors(("bool",), shape)), x, y])
    same("Clip", [y, np.float32(-1), np.float32(1.5)])
    same("NonZero", [data.draw(tensors(("float32", "int32", "bool"), least=1))])
    same("Trilu", [data.draw(tensors(("float32", "int64"), least=2)), np.array(data.draw(st.integers(-5, 5)))], upper=data.draw(st.integers(0, 1)))
    same("OneHot", [data.draw(tensors(("int64",), data.draw(shapes(1, 2)))), np.array(4), np.array([0, 1], np.float32)], axis=-1)
