"""The answer that is held to be right: the standard's reference evaluator, small floats widened first; and how near is near enough."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from every_operator.draw import Case, kind
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from gpuonnx.ir import types

SMALL = {"f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz"}


def native(x: Any) -> Any:
    """In C order and this machine's byte order."""
    return np.ascontiguousarray(x).astype(x.dtype.newbyteorder("=")).reshape(x.shape) if isinstance(x, np.ndarray) else x


def widened(x: Any) -> Any:
    if isinstance(x, list):
        return [widened(v) for v in x]
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.kind != "O" and types.of_numpy(x.dtype) in SMALL else native(x)


def reference(case: Case, widen: bool = True) -> list[Any]:
    """What the reference evaluator says; halves are computed in float32 and rounded once."""
    model = case.model
    if widen:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(widened(numpy_helper.to_array(tensor)), tensor.name))
        for value in model.graph.input:
            t = value.type.tensor_type
            if types.BY_ONNX.get(t.elem_type) in SMALL:
                t.elem_type = onnx.TensorProto.FLOAT
    feeds = {k: widened(v) if widen else native(v) for k, v in case.feeds.items()}
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, feeds))


def declared(case: Case) -> list[Any]:
    """The dtypes that the standard's type inference gives the outputs; where it gives none, those that the strategy drew."""
    inferred = shape_inference.infer_shapes(case.model)
    found = [o.type.tensor_type.elem_type if o.type.HasField("tensor_type") else 0 for o in inferred.graph.output]
    drawn = [*case.drawn, *[None] * len(found)]
    return [types.numpy_dtype(types.BY_ONNX[t]) if t else drawn[k] for k, t in enumerate(found)]


EPSILON = {"f8e8m0": 0.0, "f4e2m1": 0.0, "f6e2m3": 0.0, "f6e3m2": 0.0, "f64": 1e-9, "f32": 2e-5, "f16": 2e-3, "bf16": 1.6e-2, "f8e4m3fn": 0.13, "f8e4m3fnuz": 0.13, "f8e5m2": 0.26, "f8e5m2fnuz": 0.26, "c64": 1e-4,
           "c128": 1e-9}
LEAST = {"f64": 1e-300, "f32": 1.2e-38, "f16": 1e-4, "bf16": 1.2e-38}


@dataclass(frozen=True)
class Nearness:
    """In units of the type's own: `slack` of each element; `sums`, of the largest one, as where terms cancel; `floor`, of 1.
    `single`: the standard computes doubles in float32."""

    slack: float = 1.0
    sums: float = 0.0
    floor: float = 0.0
    single: bool = False


def same(got: Any, want: Any, near: Nearness, dtype: Any = None) -> None:
    """Shape, type, NaNs, infinities, and values."""
    if want is None or isinstance(want, (list, tuple)):
        assert (got is None) == (want is None), (got, want)
        assert want is None or len(got) == len(want), (got, want)
        for a, b in zip(got or (), want or (), strict=True):
            same(a, b, near)
        return
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for k in want:
            same(np.asarray(got[k]), np.asarray(want[k]), near)
        return
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"shape {got.shape}, not {want.shape}"
    if want.dtype.kind in "OSUT":
        assert [str(v) for v in got.ravel()] == [str(v) for v in want.ravel()], (got, want)
        return
    wanted = want.dtype if dtype is None else np.dtype(dtype)
    assert got.dtype == wanted, f"{got.dtype}, not {wanted}"
    with np.errstate(all="ignore"):
        close(got, want if want.dtype == wanted else want.astype(wanted), near)


def close(got: np.ndarray, want: np.ndarray, near: Nearness) -> None:
    name = types.of_numpy(want.dtype)
    if kind(want.dtype) not in "fc":
        np.testing.assert_array_equal(got, want)
        return
    wide = np.complex128 if kind(want.dtype) == "c" else np.float64
    got, want = got.astype(wide), want.astype(wide)
    finite = np.abs(want[np.isfinite(want)])
    unit = EPSILON["f32" if near.single and name == "f64" else name]
    least = LEAST.get(name, 0) + unit * (near.floor + near.sums * float(finite.max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=unit * near.slack, atol=least)


