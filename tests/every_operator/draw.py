"""What the strategies of all families draw from: types a schema allows, shapes, contents with special values, memory layouts."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.printer
from hypothesis import strategies as st
from onnx import defs, helper, numpy_helper

from gpuonnx.ir import types

LAYOUTS = ("c", "reversed", "strided", "transposed", "read-only", "swapped")
WORDS = ("", "a", "b", "A b", "beta", "β", "-1.5", "zz top")
SPECIAL = (math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, 60000.0, 1e30)


@dataclass(repr=False)
class Case:
    """One model, what is fed, how many of its outputs are asked for; `bad` when an error is the right answer."""

    model: onnx.ModelProto
    feeds: dict[str, Any]
    inputs: list[Any] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    bad: str = ""
    drawn: Sequence[Any] = ()

    def __repr__(self) -> str:
        return f"\n{onnx.printer.to_text(self.model)}\n{self.feeds}"


@cache
def versions(domain: str, name: str) -> tuple[Any, ...]:
    """The schemas of an operator, the newest first."""
    found = [s for s in defs.get_all_schemas_with_history() if (s.domain, s.name) == (domain, name)]
    return tuple(sorted(found, key=lambda s: -s.since_version))


def tensor_type(spelled: str) -> np.dtype | None:
    """`tensor(float16)` as a dtype; None for what is no tensor."""
    if not spelled.startswith("tensor("):
        return None
    number = onnx.TensorProto.DataType.Value(spelled[7:-1].upper())
    return types.numpy_dtype(types.BY_ONNX[number]) if number in types.BY_ONNX else None


def kind(dtype: Any) -> str:
    """`f`, `i`, `u`, `b`, `c` or `s`, of ml_dtypes' types too."""
    return types.kind(types.of_numpy(np.dtype(dtype)))


def info(name: str, dtype: Any, shape: Sequence[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, types.TYPES[types.of_numpy(np.dtype(dtype))].onnx, shape)


class Draw:
    """One example's choices. `schema` is the version that is tried."""

    def __init__(self, draw: Callable[[Any], Any], schemas: Sequence[Any]) -> None:
        self._draw = draw
        self.schema = self.pick(*schemas) if len(schemas) > 1 else schemas[0]
        self.random = np.random.default_rng(self.integer(0, 9999))
        self.special = self.flag()
        self.types: dict[str, np.dtype] = {}

    def pick(self, *options: Any) -> Any:
        return self._draw(st.sampled_from(options))

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self._draw(st.booleans()))

    def has(self, attribute: str) -> bool:
        return attribute in self.schema.attributes

    def type(self, name: str, only: str = "fiubcs") -> Any:
        """The dtype of a type constraint, or of a plain type; one an example. `only`: kinds that the strategy can fill."""
        if name.startswith("tensor("):
            return tensor_type(name)
        if name not in self.types:
            allowed = next(c.allowed_type_strs for c in self.schema.type_constraints if c.type_param_str == name)
            found = [t for t in map(tensor_type, allowed) if t is not None and kind(t) in only]
            found.sort(key=lambda t: t != np.float32)
            self.types[name] = self.pick(*found)
        return self.types[name]

    def shape(self, least: int = 0, most: int = 4, low: int = 0, high: int = 5) -> tuple[int, ...]:
        """Sizes of 0 are rare, so that most examples have elements."""
        rank = self.integer(least, most)
        low = low if low or self.integer(0, 5) == 5 else 1
        return tuple(self.integer(low, high) for _ in range(rank))

    def broadcast(self, shape: Sequence[int], drop: bool = True) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`."""
        kept = shape[self.integer(0, len(shape)) if drop and self.flag() else 0:]
        return tuple(1 if self.integer(0, 3) == 3 else s for s in kept)

    def axis(self, rank: int) -> int:
        return self.integer(-rank, rank - 1)

    def axes(self, rank: int, least: int = 0) -> list[int]:
        """Different axes, counted from either end."""
        chosen = self._draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=min(least, rank), max_size=rank)) if rank else []
        return [a - rank if self.flag() else a for a in chosen]

    def permutation(self, rank: int) -> list[int]:
        return list(self._draw(st.permutations(range(rank))))

    def array(self, shape: Sequence[int], dtype: Any, special: bool | None = None, low: float = -4, high: float = 4) -> np.ndarray:
        """Multiples of 1/8 in [low, high], NaN and the like among them where `special` (the example's choice) says so."""
        dtype = np.dtype(dtype)
        special = self.special if special is None else special
        what = kind(dtype)
        if what == "s":
            return np.array([WORDS[k] for k in self.random.integers(0, len(WORDS), int(np.prod(shape)))], object).reshape(shape)
        steps = self.random.integers(math.ceil(low * 8), math.floor(high * 8) + 1, tuple(shape))
        if what == "b":
            return (steps % 2).astype(bool).reshape(shape)
        if what in "iu":
            return self._integers(shape, dtype, special, low, high)
        values = np.asarray(steps / 8)
        if special and values.size:
            at = self.random.random(values.shape) < 0.3
            values = np.where(at, self.random.choice(SPECIAL, values.shape), values)
        with np.errstate(all="ignore"):
            if what == "c":
                return np.asarray(values + 1j * self.random.permutation(values.ravel()).reshape(values.shape)).astype(dtype)
            if dtype.name == "float8_e8m0fnu":
                return np.asarray(2.0 ** self.random.integers(-3, 4, tuple(shape)), np.float32).astype(dtype)
            return np.asarray(values.astype(np.float32).astype(dtype) if dtype.itemsize < 4 else values.astype(dtype))

    def _integers(self, shape: Sequence[int], dtype: np.dtype, special: bool, low: float, high: float) -> np.ndarray:
        least, most = types_range(dtype)
        values = self.random.integers(max(least, math.ceil(low)), min(most, math.floor(high)) + 1, tuple(shape), np.int64)
        values = np.asarray(values).astype(object)
        if special and values.size:
            at = self.random.random(values.shape) < 0.2
            values = np.where(at, self.random.choice(np.array([least, most, 0, 1], object), values.shape), values)
        wide = np.uint64 if least == 0 else np.int64
        return np.asarray(values, object).astype(wide).astype(dtype)

    def laid(self, x: np.ndarray) -> np.ndarray:
        """The same values in another memory layout."""
        layout = self.pick(*LAYOUTS)
        if layout == "reversed" and x.ndim:
            return np.ascontiguousarray(x[::-1])[::-1]
        if layout == "strided" and x.ndim:
            wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
            wide[..., ::2] = x
            return wide[..., ::2]
        if layout == "transposed" and x.ndim:
            return np.asfortranarray(x)
        if layout == "swapped" and x.dtype.kind in "fiu" and x.dtype.isbuiltin == 1:
            return x.astype(x.dtype.newbyteorder())
        x = np.array(x)
        x.flags.writeable = layout != "read-only"
        return x

    def case(self, *inputs: Any, outputs: int = 1, constant: Sequence[int] = (), bad: str = "", names: Sequence[str] | None = None, **attributes: Any) -> Case:
        """A model of one node. An input of None is left out, those at `constant` may become weights of the model."""
        names = names if names is not None else [f"y{k}" for k in range(outputs)]
        fixed = self.flag()
        values, feeds, infos, weights, used = list(inputs), {}, [], [], []
        for k, x in enumerate(values):
            used.append("" if x is None else f"x{k}")
            if x is None:
                continue
            if k in constant and self.flag():
                weights.append(numpy_helper.from_array(np.asarray(x), f"x{k}"))
                continue
            feeds[f"x{k}"] = self.laid(np.asarray(x))
            infos.append(info(f"x{k}", x.dtype, list(x.shape) if fixed else [None] * x.ndim))
        attributes = {k.rstrip("_"): v for k, v in attributes.items() if v is not None}
        node = helper.make_node(self.schema.name, used, names, "tried", domain=self.schema.domain, **attributes)
        graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=n) for n in names if n], weights)
        return Case(helper.make_model(graph, opset_imports=self.opsets(), ir_version=13), feeds, values, attributes, bad,
                    [self.types.get(o.type_str, tensor_type(o.type_str)) for o in self.schema.outputs])

    def opsets(self) -> list[Any]:
        """The version of the schema; the newest one where that is the one asked for."""
        domain, version = self.schema.domain, self.schema.since_version
        newest = versions(domain, self.schema.name)[0].since_version
        if domain:
            return [helper.make_opsetid("", 17), helper.make_opsetid(domain, version)]
        return [helper.make_opsetid("", defs.onnx_opset_version() if version == newest and not self.schema.deprecated else version)]


def types_range(dtype: np.dtype) -> tuple[int, int]:
    import ml_dtypes
    limits = ml_dtypes.iinfo(dtype)
    return int(limits.min), int(limits.max)
