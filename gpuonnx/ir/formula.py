"""Scalar functions by name, for formulas over tensors or over the elements of one Map alike."""
from __future__ import annotations

from typing import Any, TypeVar

from gpuonnx.ir.build import Tensor, elementwise
from gpuonnx.ir.expr import apply

T = TypeVar("T")


class Scalar:
    """The row `name` of ir/scalar.py: of Tensors it makes a Tensor, of Exprs an Expr."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, first: T, *rest: Any) -> T:
        operands = (first, *rest)
        make: Any = elementwise if any(isinstance(o, Tensor) for o in operands) else apply
        return make(self.name, *operands)  # type: ignore[no-any-return]


absolute, exp, expm1, log, log1p, sqrt, rsqrt = map(Scalar, ("abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt"))
cos, tanh, erf, sigmoid, relu, sign = map(Scalar, ("cos", "tanh", "erf", "sigmoid", "relu", "sign"))
maximum, minimum, select, power = map(Scalar, ("max", "min", "where", "pow"))
equal, not_equal, less, less_equal = map(Scalar, ("equal", "not_equal", "less", "less_equal"))
greater, greater_equal, both, either = map(Scalar, ("greater", "greater_equal", "and", "or"))
isnan, isinf, bit_and = map(Scalar, ("isnan", "isinf", "bit_and"))
