"""A dozen small models, each the least that shows what one part of the compiler does; test_goldens.py keeps what becomes of them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Golden:
    """`text`: a graph in the language of onnx.parser. `shapes`: the sizes it is compiled for, `other`: those it is also run at.
    `body`: sizes of a Loop body's inputs. `kernel`: in whose name's CUDA text to keep (default: the longest)."""

    text: str
    shapes: Shapes
    other: Shapes
    body: Sequence[Sequence[int]] = ()
    kernel: str = ""
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        return onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 20]>\n' + self.text)


def numbers(count: int) -> str:
    """Weights that every machine writes alike: multiples of 1/8 from -5/8 to 5/8."""
    return ", ".join(str((k * 7 % 11 - 5) / 8) for k in range(count))


def weight(name: str, *shape: int) -> str:
    return f"{name} = Constant <value: tensor = float[{', '.join(map(str, shape))}] {{{numbers(int(np.prod(shape)))}}}> ()"


def vector(name: str, kind: str, *values: float) -> str:
    return f"{name} = Constant <value: tensor = {kind}[{len(values)}] {{{', '.join(map(str, values))}}}> ()"


def scalar(name: str, kind: str, value: float) -> str:
    return f"{name} = Constant <value: tensor = {kind} {{{value}}}> ()"


MODELS: dict[str, Golden] = {
    "elementwise": Golden(f"""elementwise (float[N, 3, M] x, float[3, 1] scale) => (float[N, 3, M] y, float[N, 3, M] z) {{
        {scalar("half", "float", 0.5)}
        a = Mul (x, scale)
        b = Add (a, half)
        c = Sigmoid (b)
        y = Mul (b, c)
        z = Sub (y, x)
    }}""", {"x": (2, 3, 5), "scale": (3, 1)}, {"x": (4, 3, 1), "scale": (3, 1)}),
    "softmax": Golden("""softmax (float[N, M] x) => (float[N, M] y) {
        y = Softmax <axis: int = -1> (x)
    }""", {"x": (3, 7)}, {"x": (1, 33)}),
    "layer_norm": Golden(f"""layer_norm (float[N, S, 8] x) => (float[N, S, 8] y) {{
        {vector("last", "int64", -1)}
        {scalar("two", "float", 2.0)}
        {scalar("epsilon", "float", 1e-5)}
        {weight("gamma", 8)}
        {weight("beta", 8)}
        mean = ReduceMean (x, last)
        centred = Sub (x, mean)
        square = Pow (centred, two)
        variance = ReduceMean (square, last)
        safe = Add (variance, epsilon)
        deviation = Sqrt (safe)
        normal = Div (centred, deviation)
        scaled = Mul (normal, gamma)
        y = Add (scaled, beta)
    }}""", {"x": (2, 3, 8)}, {"x": (1, 5, 8)}),
    "matmul_gelu": Golden(f"""matmul_gelu (float[batch, 8] x) => (float[batch, 6] y) {{
        {weight("w", 8, 6)}
        {weight("bias", 6)}
        h = MatMul (x, w)
        s = Add (h, bias)
        y = Gelu (s)
    }}""", {"x": (4, 8)}, {"x": (1, 8)}),
    "conv_residual": Golden(f"""conv_residual (float[N, 4, H, W] x) => (float[N, 4, H, W] y) {{
        {weight("w", 4, 4, 3, 3)}
        {vector("gamma", "float", 1, 0.5, 2, 1)}
        {vector("beta", "float", 0, 0.25, -0.5, 1)}
        {vector("mean", "float", 0.5, 0, -0.25, 1)}
        {vector("variance", "float", 1, 4, 0.25, 1)}
        c = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (x, w)
        n = BatchNormalization <epsilon: float = 0.0> (c, gamma, beta, mean, variance)
        s = Add (n, x)
        y = Relu (s)
    }}""", {"x": (1, 4, 6, 5)}, {"x": (2, 4, 3, 9)}),
    "pools": Golden("""pools (float[N, 3, H, W] x) => (float[N, 3, P, Q] y, float[N, 3, P, Q] z) {
        y = MaxPool <kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x)
        z = AveragePool <kernel_shape: ints = [2, 2], strides: ints = [2, 2], ceil_mode: int = 1> (x)
    }""", {"x": (1, 3, 7, 7)}, {"x": (2, 3, 4, 9)}),
    "shape_arithmetic": Golden(f"""shape_arithmetic (float[N, S, 12] x) => (float[N, 3, S, 4] y, int64[1] count) {{
        {scalar("zero", "int64", 0)}
        {vector("first", "int64", 0)}
        {vector("minus", "int64", -1)}
        {vector("heads", "int64", 3)}
        {vector("four", "int64", 4)}
        shape = Shape (x)
        n = Gather <axis: int = 0> (shape, zero)
        rows = Unsqueeze (n, first)
        target = Concat <axis: int = 0> (rows, minus, heads, four)
        split = Reshape (x, target)
        y = Transpose <perm: ints = [0, 2, 1, 3]> (split)
        count = Mul (rows, heads)
    }}""", {"x": (2, 5, 12)}, {"x": (3, 1, 12)}),
    "index_maps": Golden(f"""index_maps (float[N, M] x, int64[K] rows) => (float[K, P] y) {{
        {vector("starts", "int64", 1)}
        {vector("ends", "int64", 9223372036854775807)}
        {vector("last", "int64", -1)}
        {vector("steps", "int64", 2)}
        {vector("pads", "int64", 0, 2, 0, 1)}
        {scalar("fill", "float", -1)}
        g = Gather <axis: int = 0> (x, rows)
        s = Slice (g, starts, ends, last, steps)
        y = Pad (s, pads, fill)
    }}""", {"x": (4, 7), "rows": (3,)}, {"x": (4, 2), "rows": (5,)}, ranges={"rows": (-4, 4)}),
    "qdq_matmul": Golden(f"""qdq_matmul (float[batch, 8] x) => (float[batch, 4] y) {{
        {scalar("sx", "float", 0.05)}
        {scalar("zx", "uint8", 128)}
        {scalar("sw", "float", 0.02)}
        {scalar("zw", "int8", 0)}
        w = Constant <value: tensor = int8[8, 4] {{{", ".join(str(k * 37 % 101 - 50) for k in range(32))}}}> ()
        q = QuantizeLinear (x, sx, zx)
        xd = DequantizeLinear (q, sx, zx)
        wd = DequantizeLinear (w, sw, zw)
        y = MatMul (xd, wd)
    }}""", {"x": (3, 8)}, {"x": (1, 8)}, kernel="map"),
    "if_on_dims": Golden(f"""if_on_dims (float[N, M] x) => (float[N, P] y) {{
        {scalar("one", "int64", 1)}
        {scalar("axis", "int64", 1)}
        shape = Shape (x)
        m = Gather <axis: int = 0> (shape, axis)
        odd = Equal (m, one)
        y = If (odd) <
            then_branch = column () => (float[N, P] a) {{ a = Neg (x) }},
            else_branch = others () => (float[N, P] b) {{
                {vector("from", "int64", 1)}
                {vector("to", "int64", 1000000)}
                tail = Slice (x, from, to, from)
                b = Exp (tail)
            }}>
    }}""", {"x": (2, 5)}, {"x": (3, 2)}),
    "loop": Golden(f"""loop (float[N, 4] x, int64 turns) => (float[N, 4] last, float[T, N] sums) {{
        {scalar("yes", "bool", 1)}
        {vector("columns", "int64", 1)}
        last, sums = Loop (turns, yes, x) <body = turn (int64 i, bool going, float[N, 4] state) => (bool still, float[N, 4] next, float[N] total) {{
            still = Identity (going)
            doubled = Add (state, state)
            next = Tanh (doubled)
            total = ReduceSum <keepdims: int = 0> (next, columns)
        }}>
    }}""", {"x": (2, 4), "turns": ()}, {"x": (3, 4), "turns": ()}, body=((), (), (2, 4)), ranges={"turns": (2, 4)}),
    "nonzero": Golden(f"""nonzero (float[N, M] x) => (float[K] y, int64[2, K] where) {{
        {scalar("half", "float", 0.5)}
        big = Greater (x, half)
        where = NonZero (big)
        places = Transpose <perm: ints = [1, 0]> (where)
        found = GatherND (x, places)
        y = Sqrt (found)
    }}""", {"x": (3, 4)}, {"x": (2, 9)}),
    "concat": Golden(f"""concat (float[N, 2] a, float[N, 3] b) => (float[N, M] y, float[N, M] z) {{
        {weight("w", 3, 4)}
        p = Relu (a)
        q = MatMul (b, w)
        r = Tanh (b)
        joined = Concat <axis: int = 1> (p, q, r)
        y = Neg (joined)
        z = Identity (joined)
    }}""", {"a": (3, 2), "b": (3, 3)}, {"a": (1, 2), "b": (1, 3)}, kernel="map"),
    "reduce_axes": Golden(f"""reduce_axes (float[N, C, H, W] x) => (float[C] mean, float[N, C, 1, 1] most) {{
        {vector("outer", "int64", 0, 2, 3)}
        {vector("image", "int64", 2, 3)}
        s = Mul (x, x)
        mean = ReduceMean <keepdims: int = 0> (s, outer)
        most = ReduceMax (x, image)
    }}""", {"x": (2, 3, 4, 5)}, {"x": (1, 2, 7, 1)}),
    "resize": Golden(f"""resize (float[N, 3, H, W] x) => (float[N, 3, P, Q] y) {{
        {vector("scales", "float", 1, 1, 2, 1.5)}
        y = Resize <mode: string = "linear", coordinate_transformation_mode: string = "half_pixel"> (x, , scales)
    }}""", {"x": (1, 3, 4, 6)}, {"x": (2, 3, 3, 5)}),
}
