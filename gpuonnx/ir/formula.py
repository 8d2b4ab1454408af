"""Scalar functions by name, for formulas over tensors or over the elements of one Map alike."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuonnx.ir.build import Tensor, apply, elementwise


def scalar(name: str) -> Callable[..., Any]:
    """The row `name` of ir/scalar.py: of Tensors it makes a Tensor, of Exprs an Expr."""
    def function(*operands: Any) -> Any:
        return elementwise(name, *operands) if any(isinstance(o, Tensor) for o in operands) else apply(name, *operands)
    function.__name__ = name
    return function


absolute, exp, expm1, log, log1p, sqrt, rsqrt = map(scalar, ("abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt"))
cos, tanh, erf, sigmoid, relu, sign = map(scalar, ("cos", "tanh", "erf", "sigmoid", "relu", "sign"))
maximum, minimum, select, power = map(scalar, ("max", "min", "where", "pow"))
equal, not_equal, less, less_equal = map(scalar, ("equal", "not_equal", "less", "less_equal"))
greater, greater_equal, both, either = map(scalar, ("greater", "greater_equal", "and", "or"))
isnan, isinf, bit_and = map(scalar, ("isnan", "isinf", "bit_and"))
