"""scikit-learn models: `model` converts a fitted one with skl2onnx; scikit-learn's own methods give the answer."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from exports import matrix
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.base import is_classifier, is_outlier_detector

TENSORS = {"f4": FloatTensorType, "f8": DoubleTensorType, "i8": Int64TensorType, "O": StringTensorType, "U": StringTensorType}
Columns = dict[str, np.ndarray]
ROWS = (5, 1)


def convert(fitted: Any, x: Any, columns: Columns | None = None, options: Mapping[str, Any] | None = None, answer: Callable[[Any], Sequence[Any]] | None = None,
            rtol: float = 1e-3, atol: float = 1e-4, rows: Sequence[int] = ROWS, opset: Any = None, only: int | None = None) -> matrix.Export:
    """The export of a model fitted on `x` (or on a frame of `columns`), with sets of as many rows as `rows` says; `only` the first outputs."""
    given = columns or {"X": x}
    types = [(name, TENSORS[values.dtype.str.lstrip("<|")[:1 if values.dtype.kind in "OU" else 2]]([None, values.shape[1]])) for name, values in given.items()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proto = to_onnx(fitted, initial_types=types, options=dict(options) if options else None, target_opset=opset)
        del proto.graph.output[only:len(proto.graph.output) if only else 0]
        well_typed(proto)
    except Exception as refusal:
        raise matrix.NotExported(matrix.reason(refusal)) from refusal
    sets, outputs = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in (len(x), *rows):
            sets.append({name: values[:count] for name, values in given.items()})
            part = x[:count] if isinstance(x, np.ndarray) else x.iloc[:count]
            outputs.append(matched((answer or answers(fitted, options))(part), proto))
    return matrix.Export(proto.SerializeToString(), sets, outputs, rtol, atol)


def well_typed(proto: Any) -> None:
    """Raises InferenceError where types disagree, as in files of float64 with constants of float32; declared shapes may be wrong."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.shape_inference.InferenceError as error:
        if " type" in str(error).replace("op_type", "") or "TypeInferenceError" in str(error):
            raise


def answers(fitted: Any, options: Mapping[str, Any] | None) -> Callable[[Any], Sequence[Any]]:
    """What a converted model gives, by the methods that the fitted one has."""
    last = fitted.steps[-1][1] if hasattr(fitted, "steps") else fitted
    if is_classifier(last) and hasattr(fitted, "predict_proba"):
        return lambda x: (fitted.predict(x), probabilities(fitted, x, options))
    if is_classifier(last) and hasattr(fitted, "decision_function"):
        return lambda x: (fitted.predict(x), two_sided(fitted.decision_function(x)))
    if is_outlier_detector(last):
        return lambda x: (fitted.predict(x), fitted.decision_function(x))
    if hasattr(fitted, "predict") and hasattr(fitted, "transform") and hasattr(fitted, "cluster_centers_"):
        return lambda x: (fitted.predict(x), fitted.transform(x))
    if hasattr(fitted, "predict"):
        return lambda x: (fitted.predict(x),)
    return lambda x: (fitted.transform(x),)


def probabilities(fitted: Any, x: Any, options: Mapping[str, Any] | None) -> Any:
    values = fitted.predict_proba(x)
    zipped = next((o["zipmap"] for o in (options or {}).values() if isinstance(o, dict) and "zipmap" in o), True)
    return values if zipped is False else [dict(zip(fitted.classes_.tolist(), row, strict=True)) for row in values]


def two_sided(scores: np.ndarray) -> np.ndarray:
    return scores if scores.ndim == 2 else np.stack([-scores, scores], 1)


def matched(values: Sequence[Any], proto: Any) -> list[Any]:
    """The framework's answers in the types and shapes that the file declares: scikit-learn computes in float64, skl2onnx in float32."""
    out = []
    for value, info in zip(values, proto.graph.output, strict=False):
        kind = info.type
        if not kind.HasField("tensor_type"):
            out.append(value)
            continue
        array = np.asarray(value.todense() if hasattr(value, "todense") else value)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
        rank = len(kind.tensor_type.shape.dim)
        array = array[:, None] if rank == 2 and array.ndim == 1 else array
        out.append(array if array.dtype.kind in "OU" else array.astype(dtype))
    return out
