"""Every stage of explain() is text that a person can read, for compiled and for cached variants; the notebook view."""
from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import onnx.parser
import pytest

import gpuonnx

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'
NETWORK = """net (float[N, 8] x, bool c) => (float[A, 4] y, float[M, 8] k) {
  w = Constant <value: tensor = float[8, 4] {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}> ()
  h = MatMul (x, w)
  r = Relu (h)
  d = Concat <axis: int = 0> (x, x)
  zero = Constant <value: tensor = float {0.0}> ()
  g = Greater (x, zero)
  p = Where (g, x, zero)
  s = ReduceSum <keepdims: int = 0> (p)
  t = Cast <to: int = 7> (s)
  b = Cast <to: int = 9> (t)
  k = If (b) <then_branch = a () => (float[M, 8] e) { e = Identity (d) }, else_branch = b () => (float[M, 8] f) { f = Neg (x) }>
  y = Softmax (r)
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def used(folder: str) -> gpuonnx.Session:
    made = gpuonnx.load(onnx.parser.parse_model(HEADER + NETWORK), device="cpu", cache_dir=folder)
    for x in (np.ones((3, 8), np.float32), -np.ones((2, 8), np.float32)):
        made.run({"x": x, "c": np.array(True)})
    return made


def test_before_anything_ran() -> None:
    made = gpuonnx.load(onnx.parser.parse_model(HEADER + "f (float[N] x) => (float[N] y) { y = Sin (x) }"), device="cpu",
                        passes={"fold": True})
    assert "Sin" in made.explain("graph") or "nothing is compiled yet" in made.explain("graph")


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("stage", "words"), [
    ("graph", ("inputs  x: f32[N, 8]", "outputs y", "symbol N = axis 0 of x", "gemm", "then", "else")),
    ("passes", ("main: variant for",)),
    ("plan", ("host ", "makes; ONNX nodes; why", "MatMul h", "order:", "in one call", "working memory", "constants", "one of two bodies")),
    ("kernels", ("host ", "llvm", "steps", "MatMul h")),
])
def test_stages(folder: str, again: bool, stage: str, words: tuple[str, ...]) -> None:
    text = used(folder).explain(stage)
    for word in words:
        assert word in text, f"{word!r} is not in\n{text}"
    assert text.count("== main") >= 3
    assert not any(ugly in text for ugly in ("<gpuonnx", "object at 0x", "TensorRef(", "Traceback"))


def test_an_unknown_stage(folder: str) -> None:
    with pytest.raises(ValueError, match="'plans' is none of graph, passes, plan, kernels"):
        used(folder).explain("plans")


def test_pruned_runs_are_told_apart(folder: str) -> None:
    made = used(folder)
    made.run({"x": np.ones((3, 8), np.float32), "c": np.array(True)}, outputs=["y"])
    text = made.explain("plan")
    pruned = text[text.index("== only y"):]
    assert "Softmax y" in pruned and "Concat" not in pruned


def test_a_reason_for_what_no_kernel_runs() -> None:
    made = gpuonnx.load(onnx.parser.parse_model(HEADER + "f (string[N] x) => (string[N] y) { y = Identity (x) }"), device="cpu")
    made.run([np.array(["a", "b"], object)])
    assert made.explain("kernels").endswith("done by Python")


class Tags(HTMLParser):
    """The open tags at the end, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_notebook_view(folder: str) -> None:
    made, tags = used(folder), Tags()
    tags.feed(made._repr_html_())
    assert not tags.open
    for word in ("gpuonnx session on cpu", "input", "x", "float32", "['N', 8]", "kernels compiled", "MatMul h"):
        assert word in tags.text
    assert repr(made).startswith("<gpuonnx.Session on cpu, (x: float32['N', 8]")
