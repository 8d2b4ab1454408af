"""The demo: its data, its answers."""
from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import gpuonnx
from gpuonnx import demo
from gpuonnx.cli.main import main


def test_samples() -> None:
    samples = demo.samples()
    assert samples.images.shape == (10, 1, 8, 8) and samples.images.dtype == np.float32 and samples.images.max() <= 16
    assert sorted(samples.labels.tolist()) == list(range(10))
    assert samples.accuracy > 0.97 and samples.count == 360
    assert len(demo.model()) < 300_000
    onnx.checker.check_model(onnx.load_from_string(demo.model()), full_check=True)


def test_answers_are_those_of_the_reference() -> None:
    from onnx.reference import ReferenceEvaluator
    samples = demo.samples()
    expected = ReferenceEvaluator(onnx.load_from_string(demo.model())).run(None, {"image": samples.images})[0]
    got = gpuonnx.load(demo.model(), device="cpu").run(samples.images)["probabilities"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got.argmax(1), samples.labels)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--device", "cpu", "--repeat", "2"]) == 0
    text = capsys.readouterr().out
    for words in ("10 of 10 right", "98.", "device cpu", "kernels compiled", "first run", "7 ("):
        assert words in text
    assert main(["demo", "--device", "cpu", "--repeat", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers"] == found["truth"] and found["device"] == "cpu" and found["stats"]["runs"] == 3


def test_the_mend_is_printed_as_it_has_to_be_typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are no markup."""
    monkeypatch.setattr("gpuonnx.cli.demo.timing", lambda *_: "pip install 'gpuonnx[cuda13]'")
    assert main(["demo", "--device", "cpu", "--repeat", "1"]) == 0
    assert "pip install 'gpuonnx[cuda13]'" in capsys.readouterr().out
