"""The interface of `onnx.backend.base`: `prepare`, `run_model`, `run_node`, `supports_device`."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from gpuonnx.errors import GpuOnnxError, InputError
from gpuonnx.session import Session, load


class Prepared(BackendRep):
    """A loaded model; `session` is what runs it."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Outputs in graph order, as a tuple with names. inputs: a sequence in graph order, a mapping by name, or one array."""
        outputs = self.session.run(list(inputs) if isinstance(inputs, tuple) else inputs, **kwargs)
        named: tuple[Any, ...] = namedtupledict("Outputs", list(outputs))(*outputs.values())
        return named


class GpuOnnxBackend(Backend):
    """gpuonnx as an ONNX backend. Devices are those of ONNX (CPU, CUDA, CUDA:1) or of `gpuonnx.load`."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every operator of the model has a definition."""
        from gpuonnx.importer.load import load_model
        from gpuonnx.importer.model import main_procedure
        try:
            main_procedure(load_model(model))
        except GpuOnnxError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Prepared:
        """`kwargs` are those of `gpuonnx.load`."""
        return Prepared(load(model, device=device.lower(), **kwargs))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU",
                 outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Run one operator; `opset_version` says which of its versions (default: the newest of its domain)."""
        opset = kwargs.pop("opset_version", None)
        return cls.run_model(node_model(node, inputs, opset), named_inputs(node, inputs), device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether a session can be made on the device here and now."""
        from gpuonnx.devices.choose import accelerator_for
        try:
            accelerator_for(device.lower())
        except (GpuOnnxError, ImportError):
            return False
        return True


def named_inputs(node: onnx.NodeProto, inputs: Any) -> dict[str, Any]:
    """The inputs of a node by name; absent optional ones take no array."""
    names = [name for name in node.input if name]
    if isinstance(inputs, Mapping):
        return dict(inputs)
    given = [value for value in (inputs if isinstance(inputs, (list, tuple)) else [inputs]) if value is not None]
    if len(given) != len(names):
        raise InputError(f"{node.op_type} names {len(names)} inputs ({', '.join(names)}), {len(given)} arrays were given")
    return dict(zip(names, given, strict=True))


def node_model(node: onnx.NodeProto, inputs: Any, opset: int | None) -> onnx.ModelProto:
    """A model of this one node; outputs have no declared type."""
    from gpuonnx.importer.check import LATEST
    domain = "" if node.domain == "ai.onnx" else node.domain
    infos = [helper.make_tensor_value_info(name, element_type(value), np.shape(value)) for name, value in named_inputs(node, inputs).items()]
    graph = helper.make_graph([node], "node", infos, [onnx.ValueInfoProto(name=name) for name in node.output if name])
    opsets = {"": LATEST[""], domain: opset or LATEST.get(domain, 1)}
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()])


def element_type(value: Any) -> int:
    """The ONNX number of an array's type."""
    dtype = np.asarray(value).dtype
    return onnx.TensorProto.STRING if dtype.kind in "OUS" else int(helper.np_dtype_to_tensor_dtype(dtype))


prepare = GpuOnnxBackend.prepare
run_model = GpuOnnxBackend.run_model
run_node = GpuOnnxBackend.run_node
supports_device = GpuOnnxBackend.supports_device
is_compatible = GpuOnnxBackend.is_compatible
