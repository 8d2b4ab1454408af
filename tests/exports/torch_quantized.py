"""PyTorch networks, then ONNX Runtime's quantiser: its own answer is the expected one."""
from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from exports import matrix, torch_attention, torch_images, torch_recurrent
from exports.torch_export import EXPORTERS, Made, export, first, t
from onnxruntime import quantization as q
from torch import nn

Change = Callable[[Path, Path, list[dict[str, Any]]], None]


class Reader(q.CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def static(**options: Any) -> Change:
    def change(source: Path, target: Path, feeds: list[dict[str, Any]]) -> None:
        q.quantize_static(str(source), str(target), Reader(feeds), **options)
    return change


def dynamic(**options: Any) -> Change:
    def change(source: Path, target: Path, feeds: list[dict[str, Any]]) -> None:
        q.quantize_dynamic(str(source), str(target), **options)
    return change


# Signed weights keep to 7 bits where the kernel is ONNX Runtime's: on a CPU without VNNI it saturates sums of u8 * s8 pairs.
KINDS: dict[str, Change] = {
    "qdq": static(quant_format=q.QuantFormat.QDQ, per_channel=True, activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8),
    "qdq_signed": static(quant_format=q.QuantFormat.QDQ, activation_type=q.QuantType.QInt8, weight_type=q.QuantType.QInt8),
    "qdq_wide": static(quant_format=q.QuantFormat.QDQ, activation_type=q.QuantType.QUInt16, weight_type=q.QuantType.QInt8),
    "qoperator": static(quant_format=q.QuantFormat.QOperator, activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QUInt8),
    "dynamic": dynamic(weight_type=q.QuantType.QUInt8),
    "dynamic_signed": dynamic(weight_type=q.QuantType.QInt8, per_channel=True, reduce_range=True),
}


def mlp() -> Made:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.Sigmoid(), nn.Linear(16, 4), nn.Softmax(-1)), [t(3, 8), t(5, 8)]


NETWORKS = {"mlp": mlp, "resnet": torch_images.resnet, "mobilenet": torch_images.mobilenet_v2, "mobilenet_v3": torch_images.mobilenet_v3, "densenet": torch_images.densenet,
            "unet": torch_images.unet_nearest, "inception": torch_images.inception, "encoder": first(torch_attention.transformer_encoder), "gpt": torch_attention.gpt_cached,
            "lstm": torch_recurrent.lstm, "audio": torch_images.audio_1d}
FLOATING = {"lstm", "gpt"}


def quantized(make: Callable[[], Made], exporter: str, change: Change) -> matrix.Export:
    made = export(make, exporter, None, 1e-4, 1e-5)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(made.model)
        try:
            change(source, target, made.inputs)
        except Exception as refusal:
            raise matrix.NotExported(f"the quantiser: {matrix.reason(refusal)}") from refusal
        finally:
            logging.disable(logging.NOTSET)
        model = target.read_bytes()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [[np.asarray(x) for x in session.run(None, inputs)] for inputs in made.inputs]
    return matrix.Export(model, made.inputs, outputs, rtol=2e-2, atol=2e-2)


def declare(name: str, kind: str, exporter: str) -> None:
    matrix.add(__name__, matrix.Case(f"{exporter}, quantised by ONNX Runtime", f"{name}_{kind}-{exporter}", lambda: quantized(NETWORKS[name], exporter, KINDS[kind])))


for _name in NETWORKS:
    for _kind in KINDS:
        if _name not in FLOATING or _kind == "dynamic_signed" or _kind == "dynamic" and _name != "lstm":
            declare(_name, _kind, EXPORTERS[0])
for _name in ("resnet", "encoder", "mlp"):
    declare(_name, "qdq", EXPORTERS[1])
