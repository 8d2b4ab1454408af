"""Random graphs of convolutions, joins, views and reductions: layouts, halos and arenas against the reference, several shapes each."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import gpuonnx

SHAPES = ((1, 6, 8), (2, 5, 7), (3, 4, 4), (1, 1, 1))


class Graph:
    """A graph that grows: `values` are (name, channels, halved) of [N, channels, H, W] or [N, channels, H / 2, W / 2]."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = int(self.random.choice([1, 3, 4, 8]))
        self.values: list[tuple[str, int, bool]] = [("x", self.channels, False)]
        for _ in range(int(self.random.integers(4, 14))):
            step: Callable[[str, int, bool], None] = self.random.choice([  # type: ignore[arg-type]
                self.conv, self.conv, self.depthwise, self.unary, self.binary, self.concat, self.concat, self.split, self.dense, self.gate, self.pool,
                self.softmax, self.centre, self.turn, self.slice])
            step(*self.pick(lambda v: True))

    def pick(self, fits: Callable[[tuple[str, int, bool]], bool]) -> tuple[str, int, bool]:
        found = [v for v in self.values if fits(v)]
        return found[int(self.random.integers(len(found)))] if self.random.random() < 0.5 else found[-1]

    def weight(self, *shape: int) -> str:
        return self.constant((self.random.standard_normal(shape) / max(1, np.prod(shape[1:])) ** 0.5).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"c{len(self.weights)}"))
        return self.weights[-1].name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def conv(self, x: str, c: int, halved: bool) -> None:
        out, size = int(self.random.choice([1, 4, 6, 17])), int(self.random.choice([1, 3]))
        stride = 1 if halved else int(self.random.choice([1, 2]))
        bias = [self.weight(out)] if self.random.random() < 0.5 else []
        made = self.add("Conv", x, self.weight(out, c, size, size), *bias, strides=[stride] * 2, pads=[size // 2] * 4, kernel_shape=[size] * 2)
        self.values.append((made, out, halved or stride == 2))

    def depthwise(self, x: str, c: int, halved: bool) -> None:
        self.values.append((self.add("Conv", x, self.weight(c, 1, 3, 3), pads=[1] * 4, group=c, kernel_shape=[3, 3]), c, halved))

    def unary(self, x: str, c: int, halved: bool) -> None:
        self.values.append((self.add(str(self.random.choice(["Relu", "Sigmoid", "Tanh", "HardSwish"])), x), c, halved))

    def binary(self, x: str, c: int, halved: bool) -> None:
        other = self.pick(lambda v: v[1:] == (c, halved))[0]
        self.values.append((self.add(str(self.random.choice(["Add", "Sub", "Mul"])), x, other), c, halved))

    def concat(self, x: str, c: int, halved: bool) -> None:
        others = [self.pick(lambda v: v[2] == halved) for _ in range(int(self.random.integers(1, 4)))]
        if c + sum(o[1] for o in others) <= 48:
            self.values.append((self.add("Concat", x, *(o[0] for o in others), axis=1), c + sum(o[1] for o in others), halved))

    def split(self, x: str, c: int, halved: bool) -> None:
        first = c // 2
        if first:
            names = [f"t{len(self.nodes)}", f"t{len(self.nodes)}b"]
            self.nodes.append(helper.make_node("Split", [x, self.constant(np.array([first, c - first]))], names, axis=1))
            self.values += [(names[0], first, halved), (names[1], c - first, halved)]

    def dense(self, x: str, c: int, halved: bool) -> None:
        product = self.add("MatMul", self.add("Transpose", x, perm=[0, 2, 3, 1]), self.weight(c, 5))
        self.values.append((self.add("Transpose", product, perm=[0, 3, 1, 2]), 5, halved))

    def gate(self, x: str, c: int, halved: bool) -> None:
        self.values.append((self.add("Mul", x, self.add("Sigmoid", self.add("GlobalAveragePool", x))), c, halved))

    def pool(self, x: str, c: int, halved: bool) -> None:
        self.values.append((self.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4), c, halved))

    def softmax(self, x: str, c: int, halved: bool) -> None:
        flat = self.add("Reshape", x, self.constant(np.array([0, 0, -1])))
        self.values.append((self.add("Reshape", self.add("Softmax", flat, axis=-1), self.add("Shape", x)), c, halved))

    def centre(self, x: str, c: int, halved: bool) -> None:
        self.values.append((self.add("Sub", x, self.add("ReduceMean", x, self.constant(np.array([1])), keepdims=1)), c, halved))

    def turn(self, x: str, c: int, halved: bool) -> None:
        turned = self.add("Exp", self.add("Clip", self.add("Transpose", x, perm=[0, 1, 3, 2]), "", self.constant(np.array(1, np.float32))))
        self.values.append((self.add("Transpose", turned, perm=[0, 1, 3, 2]), c, halved))

    def slice(self, x: str, c: int, halved: bool) -> None:
        kept = max(1, c // 2)
        self.values.append((self.add("Slice", x, *(self.constant(np.array([n])) for n in (c - kept, c, 1))), kept, halved))

    def model(self) -> onnx.ModelProto:
        """The last value and some others are outputs."""
        names = [self.values[-1][0], *(v[0] for v in self.values[1:-1] if self.random.random() < 0.15)]
        names = [n for n in dict.fromkeys(names) if n != "x"] or [self.add("Identity", "x")]
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", self.channels, "H", "W"])
        outputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names]
        return helper.make_model(helper.make_graph(self.nodes, "random", [x], outputs, self.weights), ir_version=9,
                                 opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("seed", range(24))
def test_random_graphs(seed: int) -> None:
    graph = Graph(seed)
    model = graph.model()
    session, reference = gpuonnx.load(model, device="cpu"), ReferenceEvaluator(model)
    for n, h, w in SHAPES:
        x = graph.random.standard_normal((n, graph.channels, h, w)).astype(np.float32)
        for want, got in zip(reference.run(None, {"x": x}), session.run({"x": x}).values(), strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)
    assert session.stats.variants == 1
