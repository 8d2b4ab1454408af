"""Operators on elements: one NumPy function each, computed in float64 for floats."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from every_operator.draw import Case, Draw, kind
from every_operator.oracle import native
from every_operator.row import Row
from onnx import helper

erf = np.vectorize(math.erf, otypes=[np.float64])
Function = Callable[..., Any]


def sigmoid(x: Any) -> Any:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))) + 0 * np.where(np.isnan(x), x, 0)


def softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def below(x: Any, otherwise: Any) -> Any:
    """x where it is positive or NaN."""
    return np.where((x >= 0) | np.isnan(x), x, otherwise)


def gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def shrink(x: Any, bias: float = 0.0, lambd: float = 0.5) -> Any:
    y = np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))
    return y if x.dtype.kind == "f" else y.astype(x.dtype)


def is_inf(x: Any, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    return np.isposinf(x) & bool(detect_positive) | np.isneginf(x) & bool(detect_negative)


UNARY: dict[str, Function] = {
    "Abs": np.abs, "Acos": np.arccos, "Acosh": np.arccosh, "Asin": np.arcsin, "Asinh": np.arcsinh, "Atan": np.arctan, "Atanh": np.arctanh,
    "Ceil": np.ceil, "Cos": np.cos, "Cosh": np.cosh, "Erf": erf, "Exp": np.exp, "Floor": np.floor, "Log": np.log, "Neg": np.negative,
    "Not": np.logical_not, "Reciprocal": lambda x: 1 / x, "Round": np.rint, "Sigmoid": sigmoid, "Sign": np.sign, "Sin": np.sin, "Sinh": np.sinh,
    "Softplus": softplus, "Softsign": lambda x: x / (1 + np.abs(x)), "Sqrt": np.sqrt, "Tan": np.tan, "Tanh": np.tanh, "IsNaN": np.isnan,
    "Relu": lambda x: np.maximum(x, 0), "BitwiseNot": np.invert, "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Mish": lambda x: x * np.tanh(softplus(x)), "IsInf": is_inf, "Gelu": gelu, "Shrink": shrink,
    "Celu": lambda x, alpha=1.0: below(x, alpha * np.expm1(x / alpha)), "Elu": lambda x, alpha=1.0: below(x, alpha * np.expm1(x)),
    "Selu": lambda x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: gamma * below(x, alpha * np.expm1(x)),
    "LeakyRelu": lambda x, alpha=0.01: below(x, alpha * x), "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "ThresholdedRelu": lambda x, alpha=1.0: np.where(x > alpha, x, 0), "Swish": lambda x, alpha=1.0: x * sigmoid(alpha * x),
}
ATTRIBUTES = {"alpha": (0.5, 1.0, 2.0), "beta": (0.25, 0.5, 1.0), "gamma": (1.5, 1.0), "bias": (0.0, 0.25), "lambd": (0.5, 1.0, 0.0),
              "detect_negative": (0, 1), "detect_positive": (0, 1), "approximate": ("none", "tanh")}


def truncated(a: Any, b: Any) -> Any:
    return np.trunc(a / b) if a.dtype.kind == "f" else np.where((a < 0) != (b < 0), -(abs(a) // abs(b)), abs(a) // abs(b)).astype(a.dtype)


def power(a: Any, b: Any) -> Any:
    return a ** b


def shift(a: Any, b: Any, direction: str) -> Any:
    bits = a.dtype.itemsize * 8
    moved = np.left_shift(a, b % bits) if direction == "LEFT" else np.right_shift(a, b % bits)
    return np.where(b >= bits, 0, moved).astype(a.dtype)


BINARY: dict[str, Function] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": lambda a, b: a / b if a.dtype.kind == "f" else truncated(a, b),
    "Mod": lambda a, b, fmod=0: np.fmod(a, b) if fmod else np.mod(a, b), "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
    "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal, "GreaterOrEqual": np.greater_equal,
    "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor, "BitShift": shift,
    "PRelu": lambda a, b: np.where(a < 0, a * b, a), "SwiGLU": lambda a, b, alpha=1.0: a * sigmoid(alpha * a) * b,
}
VARIADIC: dict[str, Function] = {
    "Max": lambda *xs: np.max(np.broadcast_arrays(*xs), axis=0), "Min": lambda *xs: np.min(np.broadcast_arrays(*xs), axis=0),
    "Sum": lambda *xs: sum(xs[1:], xs[0]), "Mean": lambda *xs: sum(xs[1:], xs[0]) / len(xs),
}


def computed(function: Function) -> Callable[[Case], list[Any]]:
    """The function on float64, rounded once to the type of the output; on integers as they are."""
    def oracle(case: Case) -> list[Any]:
        values = [native(x) for x in case.inputs]
        wide = [x.astype(np.float64) if x is not None and x.dtype.kind != "O" and kind(x.dtype) == "f" else x for x in values]
        attributes = {k: v for k, v in case.attributes.items() if k not in ("axis", "broadcast")}
        if case.attributes.get("broadcast") and case.attributes.get("axis") is not None:
            axis = case.attributes["axis"] % wide[0].ndim
            wide[1] = wide[1].reshape(wide[1].shape + (1,) * (wide[0].ndim - axis - wide[1].ndim))
        with np.errstate(all="ignore"):
            return [np.asarray(function(*wide, **attributes))]
    return oracle


def chosen(d: Draw) -> dict[str, Any]:
    return {k: d.pick(*options) for k, options in ATTRIBUTES.items() if d.has(k) and d.flag()}


def unary(d: Draw) -> Case:
    name = d.schema.inputs[0].type_str
    return d.case(d.array(d.shape(), d.type(name)), **chosen(d))


def binary(d: Draw) -> Case:
    shape = d.shape()
    a_type = d.type(d.schema.inputs[0].type_str)
    b_type = d.type(d.schema.inputs[1].type_str)
    attributes = chosen(d)
    if d.has("broadcast"):
        return old_binary(d, shape, a_type)
    a_shape, b_shape = (shape if d.schema.name == "PRelu" else d.broadcast(shape)), d.broadcast(shape)
    if d.schema.name == "SwiGLU":
        a_shape = b_shape = shape
    a, b = d.array(a_shape, a_type), d.array(b_shape, b_type)
    if d.schema.name in ("Div", "Mod") and kind(b_type) in "iu":
        b = np.where(b == 0, np.ones((), b_type), b)
    if d.schema.name == "Mod":
        attributes["fmod"] = 1 if kind(a_type) == "f" else d.pick(0, 1)
    if d.schema.name == "BitShift":
        attributes["direction"] = d.pick("LEFT", "RIGHT")
        b = np.minimum(b, np.asarray(a_type.itemsize * 8 - 1, b_type))
    return d.case(a, b, **attributes)


def old_binary(d: Draw, shape: tuple[int, ...], dtype: Any) -> Case:
    """Opsets 1 to 6: the second operand is stretched only where `broadcast` says so, from `axis` on."""
    if d.flag() or not shape:
        b, more = d.array(shape, dtype), {}
    else:
        first = d.integer(0, len(shape) - 1)
        last = d.integer(first + 1, len(shape))
        b, more = d.array(shape[first:last], dtype), {"broadcast": 1, "axis": first}
    if d.schema.name == "Div" and kind(dtype) in "iu":
        b = np.where(b == 0, np.ones((), dtype), b)
    return d.case(d.array(shape, dtype), b, **more)


def raised(d: Draw) -> Case:
    """Pow: floats to any power; integers to powers of at least 0."""
    shape = d.shape()
    base = d.type("T")
    exponent = d.type("T1") if any(c.type_param_str == "T1" for c in d.schema.type_constraints) else base
    if d.has("broadcast"):
        return old_binary(d, shape, base)
    both = kind(base) == kind(exponent) == "f"
    a = d.array(d.broadcast(shape), base, d.special and both)
    return d.case(a, d.array(d.broadcast(shape), exponent, d.special and both, low=-4 if both else 0, high=3))


def variadic(d: Draw) -> Case:
    shape, dtype = d.shape(), d.type("T")
    alike = d.schema.since_version < 8
    return d.case(*(d.array(shape if alike else d.broadcast(shape), dtype) for _ in range(d.integer(1, 4))))


def where(d: Draw) -> Case:
    shape, dtype = d.shape(), d.type("T")
    return d.case(d.array(d.broadcast(shape), np.bool_), d.array(d.broadcast(shape), dtype), d.array(d.broadcast(shape), dtype))


def clip(d: Draw) -> Case:
    x = d.array(d.shape(), d.type("T"))
    if d.has("min"):
        return d.case(x, **({"min": d.pick(-1.0, 0.0)} if d.flag() else {}), **({"max": d.pick(1.0, 2.5, -2.0)} if d.flag() else {}))
    low, high = (d.array((), x.dtype, False) if d.flag() else None for _ in range(2))
    return d.case(x, low, *([high] if high is not None else []), constant=(1, 2))


def clipped(x: Any, low: Any = None, high: Any = None, **attributes: float) -> Any:
    low, high = attributes.get("min", low), attributes.get("max", high)
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def cast(d: Draw) -> Case:
    """Every number type to every other; floats that an integer cannot hold have no meaning."""
    source = d.type(d.schema.inputs[0].type_str, "fiub")
    target = d.type("T2", "fiub")
    low, high = (0, 1) if kind(target) in "ub" else (-1, 1) if kind(target) == "i" else (-4, 4)
    x = d.array(d.shape(), source, d.special and kind(target) == "f", low, high)
    more = {"saturate": d.pick(0, 1)} if d.has("saturate") and d.flag() else {}
    if d.schema.name == "CastLike":
        return d.case(x, d.array(d.shape(), target, False), **more)
    return d.case(x, to=helper.np_dtype_to_tensor_dtype(target), **more)


def rotated(d: Draw) -> Case:
    """BitCast: the same bytes, types of one width."""
    source = d.type("T1", "fiub")
    wide = [t for t in (np.int8, np.uint8, np.int16, np.uint16, np.float16, np.int32, np.uint32, np.float32, np.int64, np.uint64, np.float64)
            if np.dtype(t).itemsize == source.itemsize]
    if source.isbuiltin != 1 or source == np.bool_:
        source, wide = np.dtype(np.int32), [np.float32, np.uint32]
    return d.case(d.array(d.shape(), source), to=helper.np_dtype_to_tensor_dtype(np.dtype(d.pick(*wide))))


def bits(case: Case) -> list[Any]:
    return [native(case.inputs[0]).view(helper.tensor_dtype_to_np_dtype(case.attributes["to"]))]


def dropout(d: Draw) -> Case:
    """In inference; training draws random numbers."""
    x = d.array(d.shape(), d.type("T"))
    if d.schema.since_version < 12:
        more = {"is_test": 1} if d.has("is_test") else {}
        return d.case(x, **more)
    ratio = d.array((), d.type("T1"), False, 0, 0.875) if d.flag() else None
    outputs = d.pick(1, 2)
    return d.case(x, *([] if ratio is None else [ratio]), *([np.array(False)] if ratio is not None and d.flag() else []), outputs=outputs, constant=(1, 2))


def dropped(case: Case) -> list[Any]:
    x = native(case.inputs[0])
    return [x, np.ones(x.shape, bool)][:len(case.model.graph.output)]


ROWS: dict[str, Row] = {
    **{n: Row(unary, computed(f)) for n, f in UNARY.items()}, **{n: Row(binary, computed(f)) for n, f in BINARY.items()},
    **{n: Row(unary, computed(UNARY[n]), floor=0.1) for n in ("Gelu", "Mish", "Elu", "Selu", "Celu", "HardSwish")},
    **{n: Row(variadic, computed(f), sums=1) for n, f in VARIADIC.items()},
    "Pow": Row(raised, computed(power)), "Where": Row(where, computed(np.where)), "Clip": Row(clip, computed(clipped)), "Cast": Row(cast, since=9),
    "CastLike": Row(cast), "BitCast": Row(rotated, bits), "Dropout": Row(dropout, dropped),
}
