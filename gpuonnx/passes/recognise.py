"""recognise: products and convolutions of dequantised values become products of bytes, scaled afterwards.

(a - za) sa @ (b - zb) sb = ((a - za) @ (b - zb)) (sa sb) in real numbers: the sum is exact in int32 where float32 rounded it, so this
reassociates, and the trace says so. It is done where the host has an instruction for it and the weights are constant.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, cast, dim, index, load
from gpuonnx.ir.types import compute, numpy_dtype
from gpuonnx.passes.rewrite import Edit, Trace, merged
from gpuonnx.passes.views import is_identity

BYTES = ("u8", "i8")
MOST_TERMS = (2**31 - 1) // (255 * 255)
FEWEST_CHANNELS, FEWEST_FLOATS = 4, 48
RULE = "8-bit product (reassociates)"


@dataclass(frozen=True)
class Quantised:
    """A float value that is (bytes - zero) * scale; arrays have one element, or one for each index of `axis`."""

    value: g.Value
    zero: np.ndarray
    scale: np.ndarray
    axis: int | None
    origins: tuple[str, ...]


def has_instruction() -> bool:
    """Whether products of bytes beat float ones here."""
    from gpuonnx.kernels.cpu import dot8, pairs
    return dot8.available() or pairs.available()


def run(graph: g.Graph, trace: Trace, fast: Callable[[], bool] = has_instruction) -> g.Graph:
    return Recognise(graph, trace).run() if any(isinstance(n, g.Call) and n.kernel in ("gemm", "conv") for n in graph.nodes) and fast() else graph


class Recognise:
    def __init__(self, graph: g.Graph, trace: Trace) -> None:
        self.edit, self.trace = Edit(graph, trace), trace

    def run(self) -> g.Graph:
        for old in self.edit.graph.nodes:
            node = self.edit.take(old)
            if not (isinstance(node, g.Call) and node.kernel in ("gemm", "conv") and node.epilogue is None and self.product(node)):
                self.edit.emit(node)
        return self.edit.finish()

    def product(self, node: g.Call) -> bool:
        """Emit the integer form of a Call, if it has one."""
        if node.out.dtype != "f32" or len(node.inputs) != 2:
            return False
        left, right = (self.quantised(v) for v in node.inputs)
        if left is None or right is None or left.axis is not None or not self.constant(right.value) or not suits(node, right) or by_floats(node):
            return False
        origins = merged(left.origins, right.origins, node.origins)
        if not self.trace.allow(RULE, origins, f"{node.kernel} of {left.value.dtype} and {right.value.dtype}"):
            return False
        values, absent = [left.value, right.value], []
        for position, part in ((2, left), (3, right)):
            if part.zero.any():
                values.append(self.added(part.zero, part.value.dtype))
            else:
                absent.append(position)
        attrs = dict(node.attrs) | ({"absent": tuple(absent)} if absent else {})
        total = g.Value("i32", node.out.shape)
        self.edit.emit(g.Call(tuple(values), (total,), kernel=f"{node.kernel}_integer", attrs=attrs, origins=origins))
        self.edit.emit(self.scaled(node, total, (left.scale * right.scale).astype(np.float32), origins))
        return True

    def constant(self, value: g.Value) -> bool:
        maker = self.edit.makers.get(value)
        return value in self.edit.constants or isinstance(maker, g.View) and maker.inputs[0] in self.edit.constants

    def scaled(self, node: g.Call, total: g.Value, scale: np.ndarray, origins: tuple[str, ...]) -> g.Map:
        rank = node.out.rank
        channel = rank - 1 if node.kernel == "gemm" else 1
        factor = self.added(scale, "f32")
        here = load(0, "i32", tuple(map(index, range(rank))))
        expr = cast(here, "f32") * load(1, "f32", (index(channel),) if scale.ndim else ())
        return g.Map((total, factor), node.outputs, expr=expr, origins=origins)

    def added(self, array: np.ndarray, dtype: str) -> g.Value:
        value = g.Value(dtype, array.shape)
        self.edit.constants[value] = array
        return value

    # values
    def quantised(self, value: g.Value) -> Quantised | None:
        """What a value is as bytes; Views are carried over to the bytes."""
        maker = self.edit.makers.get(value)
        if isinstance(maker, g.Map):
            return self.dequantised(maker)
        if not isinstance(maker, g.View):
            return None
        inner = self.edit.makers.get(maker.inputs[0])
        found = self.dequantised(inner) if isinstance(inner, g.Map) else None
        if found is None:
            return None
        axis = found.axis
        if axis is not None:
            at = maker.index[axis] if maker.index is not None else None
            if at is None or at.op != "index" or maker.out.dims[at.value] != found.value.dims[axis]:
                return None
            axis = at.value
        moved = g.Value(found.value.dtype, value.shape)
        self.edit.emit(g.View((found.value,), (moved,), maker.index, origins=maker.origins))
        return Quantised(moved, found.zero, found.scale, axis, merged(found.origins, maker.origins))

    def dequantised(self, node: g.Map) -> Quantised | None:
        """The parts of a Map f32(i32(bytes) - i32(zero)) * scale."""
        e = node.expr
        if node.out.dtype != "f32" or e.op != "mul" or e.args[0].op != "cast":
            return None
        inner = e.args[0].args[0]
        zeros: Expr | None = None
        if inner.op == "sub" and inner.dtype == "i32":
            inner, zeros = inner.args
        source = inner.args[0] if inner.op == "cast" else inner
        if source.op != "load" or not is_identity(source.args, node.out.dims):
            return None
        value = node.inputs[source.value]
        if value.dtype not in BYTES or value.shape != node.out.shape:
            return None
        scale = self.parameter(node, e.args[1])
        zero = (np.zeros((), np.int32), None) if zeros is None else self.parameter(node, zeros)
        if scale is None or zero is None:
            return None
        axes = {axis for _, axis in (scale, zero) if axis is not None}
        limits = np.iinfo(numpy_dtype(value.dtype))
        if len(axes) > 1 or not np.isfinite(scale[0]).all() or zero[0].min() < limits.min or zero[0].max() > limits.max:
            return None
        return Quantised(value, zero[0].astype(limits.dtype), scale[0].astype(np.float32), next(iter(axes), None), node.origins)

    def parameter(self, node: g.Map, e: Expr) -> tuple[np.ndarray, int | None] | None:
        """A scale or zero point: a scalar, or a vector along an axis."""
        if e.op == "cast":
            e = e.args[0]
        if e.op == "const":
            return np.asarray(e.value), None
        if e.op != "load" or compute(node.inputs[e.value].dtype) not in ("f32", "i32", "u8", "i8"):
            return None
        array = self.edit.constants.get(node.inputs[e.value])
        if array is None or array.size == 0:
            return None
        if array.size == 1:
            return array.reshape(()), None
        along = [(k, i.value) for k, i in enumerate(e.args) if i.op == "index" and array.shape[k] != 1]
        if len(along) != 1 or any(i is not dim(0) for k, i in enumerate(e.args) if k != along[0][0]) or array.shape[along[0][0]] != array.size:
            return None
        if node.out.dims[along[0][1]] != array.size:
            return None
        return array.reshape(-1), along[0][1]


def by_floats(node: g.Call) -> bool:
    """Whether the standard's own meaning, in floats, is faster: Winograd's convolution, beside pairs of 16 bits, with enough channels."""
    from gpuonnx.kernels.cpu import dot8, winograd
    if dot8.available() or node.kernel != "conv" or tuple(node.attrs["kernel"]) != (3, 3):
        return False
    out, channels, *_ = node.inputs[1].dims
    if {*node.attrs["strides"], *node.attrs["dilations"], node.attrs["group"]} != {1} or not isinstance(out, int) or not isinstance(channels, int):
        return False
    return min(out, channels) >= FEWEST_FLOATS and winograd.preferred_tile(channels, out) == 4


def suits(node: g.Call, right: Quantised) -> bool:
    """Whether the weights' parameters lie along the output's channels and no sum leaves int32."""
    dims = right.value.dims
    if not all(isinstance(s, int) for s in dims):
        return False
    shape = [s for s in dims if isinstance(s, int)]
    if node.kernel == "gemm":
        return len(shape) == 2 and shape[0] <= MOST_TERMS and right.axis in (None, 1)
    depthwise = shape[1] == 1 and node.attrs["group"] == shape[0]
    if not depthwise and (node.attrs["group"] != 1 or shape[1] < FEWEST_CHANNELS):
        return False
    return int(np.prod(shape[1:])) <= MOST_TERMS and right.axis in (None, 0)
