"""PyTorch networks, then the tools that ONNX Runtime brings: its optimiser, its fusions by kind of model, its halves, its few-bit weights."""
from __future__ import annotations

import contextlib
import functools
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from exports import matrix, torch_attention, torch_diffusion, torch_images, torch_language, torch_recurrent, torch_speech, torch_transformers
from exports.torch_export import Made, export
from onnxruntime import quantization
from onnxruntime.quantization import matmul_bnb4_quantizer, matmul_nbits_quantizer
from onnxruntime.transformers import float16, optimizer

Change = Callable[[onnx.ModelProto], onnx.ModelProto]
LEVELS = onnxruntime.GraphOptimizationLevel
NETWORKS: dict[str, tuple[Callable[[], Made], str]] = {
    "bert": (torch_transformers.bert, "bert"), "roberta": (torch_transformers.roberta_classifier, "bert"), "distilbert": (torch_transformers.distilbert, "bert"), "gpt2": (torch_transformers.gpt2_cached, "gpt2"),
    "llama": (torch_transformers.llama_cached, "gpt2"), "qwen3": (torch_language.qwen3_attended, "qwen3"), "phi": (torch_transformers.phi, "phi"), "t5": (torch_transformers.t5, "t5"), "bart": (torch_transformers.bart, "bart"),
    "whisper": (torch_transformers.whisper_encoder, "bart"), "vit": (torch_transformers.vit, "vit"), "swin": (torch_transformers.swin, "swin"), "clip": (torch_transformers.clip, "clip"),
    "denoiser": (torch_diffusion.denoiser, "unet"), "decoder": (torch_diffusion.picture_decoder, "vae"), "patches": (torch_diffusion.patches_modulated, "mmdit"), "conformer": (torch_speech.conformer_lengths, "conformer"),
    "resnet": (torch_images.resnet, ""), "mobilenet": (torch_images.mobilenet_v3, ""), "unet": (torch_images.unet_bilinear, ""), "gpt": (torch_attention.gpt_cached, ""), "lstm": (torch_recurrent.tagger, ""),
}


def saved(level: Any) -> Change:
    """What ONNX Runtime would run, as it writes it down; without the layouts of one machine."""
    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.log_severity_level, options.graph_optimization_level, options.optimized_model_filepath = 4, level, str(Path(folder, "saved.onnx"))
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"])
            return onnx.load(options.optimized_model_filepath)
    return change


def fused(kind: str) -> Change:
    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        return optimizer.optimize_model(model, kind, num_heads=2, hidden_size=16, opt_level=0).model
    return change


def halved(**options: Any) -> Change:
    return lambda model: float16.convert_float_to_float16(model, **options)


def few_bits(**options: Any) -> Change:
    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        made = matmul_nbits_quantizer.MatMulNBitsQuantizer(model, block_size=16, **options)
        made.process()
        return made.model.model
    return change


def named_values(model: onnx.ModelProto) -> onnx.ModelProto:
    made = matmul_bnb4_quantizer.MatMulBnb4Quantizer(model, matmul_bnb4_quantizer.MatMulBnb4Quantizer.NF4, 16)
    made.process()
    return made.model.model


TOOLS: dict[str, Change] = {
    "extended": saved(LEVELS.ORT_ENABLE_EXTENDED), "everything": saved(LEVELS.ORT_ENABLE_ALL), "half": halved(keep_io_types=True), "half_throughout": halved(),
    "bits_4": few_bits(), "bits_4_symmetric": few_bits(is_symmetric=True, op_types_to_quantize=("MatMul", "Gather"), quant_axes=(("MatMul", 0), ("Gather", 1))), "bits_8": few_bits(bits=8),
    "bits_4_qdq": few_bits(quant_format=quantization.QuantFormat.QDQ), "bits_normal": named_values,
}
LANGUAGE = ("bert", "gpt2", "llama", "qwen3", "t5", "vit")


@functools.lru_cache(maxsize=4)
def plain(name: str, exporter: str) -> matrix.Export:
    return export(NETWORKS[name][0], exporter, None, 1e-4, 1e-5)


def changed(name: str, exporter: str, change: Change, exact: bool) -> matrix.Export:
    """An exact change keeps the framework's answer as the expected one (ONNX Runtime has some of its own operators on GPUs only);
    ONNX Runtime's, unoptimised, is it where the change loses precision."""
    made = plain(name, exporter)
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model = change(onnx.load_from_string(made.model)).SerializeToString()
        if exact:
            return matrix.Export(model, made.inputs, made.outputs, 1e-3, 1e-4)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.graph_optimization_level = 4, LEVELS.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        inputs = [{i.name: feed[i.name].astype(np.float16) if i.type == "tensor(float16)" else feed[i.name] for i in session.get_inputs()} for feed in made.inputs]
        outputs = [[np.asarray(x) for x in session.run(None, feed)] for feed in inputs]
    except Exception as refusal:
        raise matrix.NotExported(f"ONNX Runtime's tool: {matrix.reason(refusal)}") from refusal
    finally:
        logging.disable(logging.NOTSET)
    return matrix.Export(model, inputs, outputs, 2e-2, 2e-2)


def declare(name: str, exporter: str, tool: str, change: Change) -> None:
    exact = tool in ("extended", "everything", "fused")
    matrix.add(__name__, matrix.Case(f"{exporter}, changed by ONNX Runtime", f"{name}_{tool}-{exporter}", lambda: changed(name, exporter, change, exact)))


for _name, (_, _kind) in NETWORKS.items():
    for _tool, _change in TOOLS.items():
        if not _tool.startswith("bits") or _name in LANGUAGE:
            declare(_name, "torchscript", _tool, _change)
    if _kind:
        declare(_name, "torchscript", "fused", fused(_kind))
        declare(_name, "dynamo", "fused", fused(_kind))
    declare(_name, "dynamo", "extended", TOOLS["extended"])
