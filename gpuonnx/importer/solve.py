"""Inverse of com.microsoft: a Loop whose body is one step of elimination (`EliminationStep` of ops/solve.py)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import ModelError
from gpuonnx.importer.control import Lowering, Results, loop
from gpuonnx.ir.build import Tensor, builder, concat, product, size_scalar, tensor_map
from gpuonnx.ir.expr import const
from gpuonnx.ir.formula import equal, select
from gpuonnx.ops.registry import INTERNAL

if TYPE_CHECKING:
    import onnx

    from gpuonnx.importer.lower import Frame


def lower_inverse(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    """[A | I] becomes [I | A^-1]."""
    x = inputs[0]
    if x is None or x.rank < 2:
        raise ModelError(f"{builder().origin}: square matrices in the last two axes are expected")
    size, v = builder().meet(x.shape[-1], x.shape[-2]), x.wide()
    matrices = v.reshape(product(x.shape[:-2]), size, size)
    unit = tensor_map(matrices.shape, v.dtype, lambda b, r, c: select(equal(r, c), const(1, v.dtype), const(0, v.dtype)))
    last = loop(frame, step(), size_scalar(size), None, [concat([matrices, unit], 2)])[0]
    assert last is not None
    return [last.slice(2, size, size).reshape(*x.shape).cast(x.dtype)]


def step() -> onnx.GraphProto:
    """(number, condition, [A | B]) -> (condition, [A | B])"""
    import onnx
    graph = onnx.GraphProto()
    for name in ("number", "condition", "before"):
        graph.input.add(name=name)
    graph.node.append(onnx.helper.make_node("Identity", ["condition"], ["still"]))
    graph.node.append(onnx.helper.make_node("EliminationStep", ["number", "before"], ["after"], domain=INTERNAL))
    for name in ("still", "after"):
        graph.output.add(name=name)
    return graph


LOWERINGS: dict[tuple[str, str], Lowering] = {("com.microsoft", "Inverse"): lower_inverse}
