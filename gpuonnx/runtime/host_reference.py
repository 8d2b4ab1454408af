"""Operators without a kernel of ours: a host node runs the implementation that the onnx package ships as its reference."""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from gpuonnx.errors import UnsupportedOp
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.runtime.host import host_function
from gpuonnx.runtime.host_adjoint import HOST_FUNCTIONS as HOST_FUNCTIONS


@lru_cache(maxsize=64)
def evaluator(op: str, domain: str, version: int, present: tuple[bool, ...], outputs: int, attributes: tuple[tuple[str, Any], ...]) -> Any:
    """A reference evaluator of one node; element types are those of what it is fed."""
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator
    names = [f"x{k}" if there else "" for k, there in enumerate(present)]
    results = [f"y{k}" for k in range(outputs)]
    given: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in attributes}
    node = helper.make_node(op, names, results, domain=domain, **given)
    graph = helper.make_graph([node], op, [ValueInfoProto(name=n) for n in names if n], [ValueInfoProto(name=n) for n in results])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, version)])
    try:
        return ReferenceEvaluator(model)
    except NotImplementedError as error:
        raise UnsupportedOp(f"{op}: the onnx package has no reference implementation of it ({error})") from error


@host_function("reference")
def reference(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """attrs: op, domain, version, outputs, attributes (pairs)."""
    present = tuple(a is not None for a in arrays)
    session = evaluator(attrs["op"], attrs["domain"], attrs["version"], present, attrs["outputs"], attrs["attributes"])
    feeds = {f"x{k}": np.asarray(a) for k, a in enumerate(arrays) if a is not None}
    return list(session.run(None, feeds))


@host_function("label_encoder")
def label_encoder(arrays: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """attrs: keys, values, default, dtype. A NaN among the keys stands for every NaN."""
    x, table, default = np.asarray(arrays[0]), dict(zip(attrs["keys"], attrs["values"], strict=True)), attrs["default"]
    nan = next((v for k, v in table.items() if k != k), default)
    found = [nan if item != item else table.get(item, default) for item in x.ravel().tolist()]
    out = np.empty(len(found), object)
    out[:] = found
    return [out.reshape(x.shape) if attrs["dtype"] == "str" else out.astype(numpy_dtype(attrs["dtype"])).reshape(x.shape)]
