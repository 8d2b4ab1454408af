"""Calls "gemm_integer" and "conv_integer" as nests: exact int32 sums with zero points, for any layout."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpuonnx.codegen import cpu, products
from gpuonnx.kernels.contract import Build, Ref, Spec


def build(name: str, call: Spec) -> Build:
    """`name` is the Call's kernel; the epilogue becomes the store of the nest, padding is in memory."""
    given = [k for k, v in enumerate(call.inputs) if v is not None]
    inputs = [v for v in call.inputs if v is not None]
    operands = call.epilogue.operands if call.epilogue is not None else ()
    made = cpu.build(products.nest(name, call, False), (*inputs, *operands), call.outputs)

    def placed(arg: Any) -> Any:
        if not isinstance(arg, Ref) or arg.space != "in":
            return arg
        if arg.number >= len(inputs):
            return replace(arg, space="extra", number=arg.number - len(inputs))
        return replace(arg, number=given[arg.number])
    return replace(made, steps=tuple(replace(s, args=tuple(map(placed, s.args))) for s in made.steps))
