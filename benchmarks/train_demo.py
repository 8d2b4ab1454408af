"""Trains the demo's network (a small CNN, plain NumPy) on scikit-learn's 8x8 digits and writes gpuonnx/demo/{digits.onnx,samples.npz}.

Data: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI, CC BY 4.0), as scikit-learn ships its test part.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CHANNELS = (16, 32)
Weights = dict[str, np.ndarray]


def columns(x: np.ndarray) -> np.ndarray:
    """[N,C,H,W] -> [N,H,W,C*9]: the 3x3 neighbourhoods, zeros outside."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(*x.shape[:1], *x.shape[2:], -1)


def conv(cols: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[N,H,W,C*9] -> [N,O,H,W]."""
    return (cols @ weight.reshape(len(weight), -1).T + bias).transpose(0, 3, 1, 2)


def uncolumns(gradient: np.ndarray, channels: int) -> np.ndarray:
    """The transpose of `columns`: [N,H,W,C*9] -> [N,C,H,W]."""
    n, h, w, _ = gradient.shape
    parts = gradient.reshape(n, h, w, channels, 3, 3).transpose(0, 3, 1, 2, 4, 5)
    out = np.zeros((n, channels, h + 2, w + 2), gradient.dtype)
    for i in range(3):
        for j in range(3):
            out[:, :, i:i + h, j:j + w] += parts[..., i, j]
    return out[:, :, 1:-1, 1:-1]


def pooled(x: np.ndarray) -> np.ndarray:
    """2x2 maximum: [N,C,H,W] -> [N,C,H/2,W/2]."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


def unpooled(gradient: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of `pooled` at x, whose result was y; ties share it."""
    def grow(a: np.ndarray) -> np.ndarray:
        return a.repeat(2, 2).repeat(2, 3)
    hit = x == grow(y)
    n, c, h, w = x.shape
    count = hit.reshape(n, c, h // 2, 2, w // 2, 2).sum((3, 5))
    return hit * grow(gradient / count)


def initial(rng: np.random.Generator) -> Weights:
    """He's initialisation; biases zero."""
    a, b = CHANNELS
    shapes = {"conv1.weight": (a, 1, 3, 3), "conv2.weight": (b, a, 3, 3), "head.weight": (10, b * 4)}
    weights = {k: (rng.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for k, s in shapes.items()}
    return {**weights, **{k.replace("weight", "bias"): np.zeros(s[0], np.float32) for k, s in shapes.items()}}


def step(x: np.ndarray, labels: np.ndarray, w: Weights) -> tuple[np.ndarray, Weights]:
    """Probabilities and the gradients of the mean cross-entropy."""
    c1 = columns(x)
    a1 = np.maximum(conv(c1, w["conv1.weight"], w["conv1.bias"]), 0)
    p1 = pooled(a1)
    c2 = columns(p1)
    a2 = np.maximum(conv(c2, w["conv2.weight"], w["conv2.bias"]), 0)
    p2 = pooled(a2)
    flat = p2.reshape(len(x), -1)
    logits = flat @ w["head.weight"].T + w["head.bias"]
    e = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = e / e.sum(1, keepdims=True)
    d = (probabilities - np.eye(10, dtype=np.float32)[labels]) / len(x)
    g: Weights = {"head.weight": d.T @ flat, "head.bias": d.sum(0)}
    d2 = (unpooled((d @ w["head.weight"]).reshape(p2.shape), a2, p2) * (a2 > 0)).transpose(0, 2, 3, 1)
    g["conv2.weight"] = np.tensordot(d2, c2, ((0, 1, 2), (0, 1, 2))).reshape(w["conv2.weight"].shape)
    g["conv2.bias"] = d2.sum((0, 1, 2))
    back = uncolumns(d2 @ w["conv2.weight"].reshape(CHANNELS[1], -1), CHANNELS[0])
    d1 = (unpooled(back, a1, p1) * (a1 > 0)).transpose(0, 2, 3, 1)
    g["conv1.weight"] = np.tensordot(d1, c1, ((0, 1, 2), (0, 1, 2))).reshape(w["conv1.weight"].shape)
    g["conv1.bias"] = d1.sum((0, 1, 2))
    return probabilities, g


@dataclass
class Adam:
    """Kingma and Ba 2014, with the decoupled weight decay of Loshchilov and Hutter 2017."""

    decay: float = 1e-3
    first: Weights = field(default_factory=dict)
    second: Weights = field(default_factory=dict)
    count: int = 0

    def update(self, w: Weights, g: Weights, rate: float) -> None:
        self.count += 1
        for k in w:
            m = self.first[k] = 0.9 * self.first.get(k, 0) + 0.1 * g[k]
            v = self.second[k] = 0.999 * self.second.get(k, 0) + 0.001 * g[k] ** 2
            move = m / (1 - 0.9 ** self.count) / (np.sqrt(v / (1 - 0.999 ** self.count)) + 1e-8)
            w[k] = (w[k] - rate * (move + self.decay * w[k])).astype(np.float32)


def train(images: np.ndarray, labels: np.ndarray, epochs: int, rng: np.random.Generator) -> Weights:
    """images [N,1,8,8] of 0..16; random shifts by up to one pixel."""
    w, adam, batch = initial(rng), Adam(), 64
    for epoch in range(epochs):
        right = 0
        for at in np.array_split(rng.permutation(len(images)), len(images) // batch):
            x = np.roll(images[at] / 16, rng.integers(-1, 2, 2), (2, 3)).astype(np.float32)
            probabilities, g = step(x, labels[at], w)
            right += int((probabilities.argmax(1) == labels[at]).sum())
            adam.update(w, g, 2e-3 * 0.5 * (1 + np.cos(np.pi * epoch / epochs)))
        print(f"epoch {epoch + 1}: {right / len(images):.4f} of the training images")
    return w


def model(w: Weights, accuracy: float) -> onnx.ModelProto:
    """image [N,1,8,8] of 0..16 -> probabilities [N,10]."""
    constants = {**w, "scale": np.float32(1 / 16)}
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["scaled"], "scale_pixels"),
        helper.make_node("Conv", ["scaled", "conv1.weight", "conv1.bias"], ["c1"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "conv2.weight", "conv2.bias"], ["c2"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], "pool2", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p2"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], "head", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    graph = helper.make_graph(nodes, "digits", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
                              [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
                              f"8x8 digits, pixels 0 to 16; right on {accuracy:.2%} of the images it was not trained on")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="gpuonnx benchmarks/train_demo.py", ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "gpuonnx" / "demo")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    seen, unseen, labels, truth = train_test_split(images, digits.target, test_size=360, random_state=0, stratify=digits.target)
    w = train(seen, labels, options.epochs, rng)
    answers = step(unseen / np.float32(16), truth, w)[0].argmax(1)
    accuracy = float((answers == truth).mean())
    print(f"{accuracy:.4f} of {len(truth)} images it was not trained on")
    options.out.mkdir(parents=True, exist_ok=True)
    onnx.save(model(w, accuracy), options.out / "digits.onnx")
    first = [int(np.flatnonzero(truth == digit)[0]) for digit in range(10)]
    np.savez_compressed(options.out / "samples.npz", images=unseen[first].astype(np.uint8), labels=truth[first].astype(np.int64),
                        accuracy=np.float64(accuracy), count=np.int64(len(truth)))


if __name__ == "__main__":
    main()
