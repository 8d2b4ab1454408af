"""The interface of onnx.backend.base."""
from __future__ import annotations

import numpy as np
import onnx.backend.base
import pytest
from models import FLOAT, add, linear, linear_answer, model
from onnx import helper

import gpuonnx
from gpuonnx import backend, errors

X = np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)


def test_it_is_a_backend() -> None:
    assert gpuonnx.backend is backend
    assert issubclass(backend.GpuOnnxBackend, onnx.backend.base.Backend)
    assert issubclass(backend.Prepared, onnx.backend.base.BackendRep)


def test_prepare_and_run() -> None:
    prepared = backend.prepare(linear(), "CPU")
    y, z = linear_answer(X)
    for given in (X, [X], (X,), {"x": X}):
        outputs = prepared.run(given)
        assert isinstance(outputs, tuple)
        np.testing.assert_allclose(outputs[0], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs.z, z, rtol=1e-5, atol=1e-6)


def test_run_model() -> None:
    (total,) = backend.run_model(add(), [X[0], X[1]], "CPU", threads=1)
    np.testing.assert_allclose(total, X[0] + X[1])


def test_run_node() -> None:
    (y,) = backend.run_node(helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5), [X])
    np.testing.assert_allclose(y, np.where(X < 0, X / 2, X), rtol=1e-6)
    (old,) = backend.run_node(helper.make_node("Softmax", ["x"], ["y"]), X.reshape(2, 2, 3), opset_version=9)
    assert old.shape == (2, 2, 3) and np.isclose(old[0].sum(), 1)
    clip = helper.make_node("Clip", ["x", "", "high"], ["y"])
    np.testing.assert_array_equal(backend.run_node(clip, [X, None, np.float32(0)])[0], np.minimum(X, 0))
    values, indices = backend.run_node(helper.make_node("TopK", ["x", "k"], ["v", "i"]), [X, np.array([1])])
    np.testing.assert_array_equal(values[:, 0], X.max(1))
    np.testing.assert_array_equal(indices[:, 0], X.argmax(1))
    with pytest.raises(errors.InputError, match="Add names 2 inputs"):
        backend.run_node(helper.make_node("Add", ["a", "b"], ["y"]), [X])


def test_devices() -> None:
    assert backend.supports_device("CPU") and not backend.supports_device("TPU")


def test_is_compatible() -> None:
    assert backend.is_compatible(linear())
    assert not backend.is_compatible(model([helper.make_node("Frobnicate", ["x"], ["y"])], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}))
