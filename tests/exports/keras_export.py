"""Keras networks: `network` exports what the function gives with Keras' own export (tf2onnx below it); `function` exports a tf.function."""
from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from exports import matrix

Made = tuple[Any, list[Any]]


def network(make: Callable[[], Made]) -> Callable[[], Made]:
    """Declare a network: a function that gives a Keras model and a list of inputs (arrays or lists of arrays), one a size."""
    return unrunnable(None)(make)


def unrunnable(why: str | None) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Declare a network of whose file no runtime can run, and why."""
    def declare(make: Callable[[], Made]) -> Callable[[], Made]:
        matrix.add(make.__module__, matrix.Case("Model.export", make.__name__, lambda: export(make), broken=why))
        return make
    return declare


def converted(broken: str | None = None, differs: str | None = None, **options: Any) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Declare a function of tensors, and a list of argument lists, that tf2onnx converts with these options."""
    def declare(make: Callable[[], Made]) -> Callable[[], Made]:
        matrix.add(make.__module__, matrix.Case("tf2onnx", make.__name__, lambda: export_function(make, **options), differs=differs, broken=broken))
        return make
    return declare


def export(make: Callable[[], Made]) -> matrix.Export:
    keras.utils.set_random_seed(1)
    model, sets = make()
    sets = [s if isinstance(s, list) else [s] for s in sets]
    outputs = [flat(model(s if len(s) > 1 else s[0], training=False)) for s in sets]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        try:
            model.export(str(path), format="onnx", verbose=False)
        except Exception as refusal:
            raise matrix.NotExported(matrix.reason(refusal)) from refusal
        return paired(path.read_bytes(), sets, outputs)


def export_function(make: Callable[[], Made], opset: int, inputs_as_nchw: list[str] | None = None) -> matrix.Export:
    import tf2onnx
    tf.random.set_seed(1)
    call, sets = make()
    sets = [s if isinstance(s, list) else [s] for s in sets]
    outputs = [flat(call(*map(tf.constant, s))) for s in sets]
    first = sets[0]
    signature = [tf.TensorSpec([n if all(s[k].shape[a] == n for s in sets) else None for a, n in enumerate(x.shape)], x.dtype, name=f"x{k}") for k, x in enumerate(first)]
    try:
        proto, _ = tf2onnx.convert.from_function(tf.function(call), input_signature=signature, opset=opset, inputs_as_nchw=inputs_as_nchw)
    except Exception as refusal:
        raise matrix.NotExported(matrix.reason(refusal)) from refusal
    if inputs_as_nchw:
        sets = [[a.transpose(0, 3, 1, 2) for a in s] for s in sets]
    return paired(proto.SerializeToString(), sets, outputs)


def paired(model: bytes, sets: list[list[np.ndarray]], outputs: list[list[Any]]) -> matrix.Export:
    import onnx
    types = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in onnx.load_from_string(model).graph.input}
    if len(types) != len(sets[0]):
        raise matrix.NotExported(f"the file has inputs {list(types)}, the network takes {len(sets[0])}")
    return matrix.Export(model, [{name: a.astype(dtype) for (name, dtype), a in zip(types.items(), s, strict=True)} for s in sets], outputs, atol=2e-5)


def flat(answer: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in matrix.arrays(answer if isinstance(answer, (list, tuple, dict)) else [answer])]


def x(*shape: int) -> np.ndarray:
    """Normal values."""
    return np.random.default_rng(shape[0]).normal(size=shape).astype(np.float32)


def ints(high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).integers(0, high, shape).astype(np.int32)
