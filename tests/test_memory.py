"""Arena slots: two buffers that live at once never share a byte, whatever the sizes turn out to be."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gpuonnx
from gpuonnx.ir import dims as d
from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import const, folded, index, load
from gpuonnx.ir.inplace import overwritable
from gpuonnx.ir.sizes import evaluate
from gpuonnx.planner.memory import Buffer, Slot, assign, used


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Buffer], dict[str, int], dict[str, int]]:
    space = d.Space()
    n, m = space.sym("n"), space.sym("m")
    sizes: list[Any] = [64, 4096, n * 4, m * 8, n * m, n + m]
    buffers: list[Buffer] = []
    for number in range(draw(st.integers(1, 20))):
        buffer = Buffer(draw(st.sampled_from(["host", "device"])), "arena", number, draw(st.sampled_from(sizes)), draw(st.integers(0, 1)))
        first = draw(st.integers(0, 15))
        buffer.touch(first)
        buffer.touch(first + draw(st.integers(0, 6)))
        alike = [b for b in buffers if (b.side, b.epoch, b.size) == (buffer.side, buffer.epoch, buffer.size)]
        buffer.over = draw(st.lists(st.sampled_from(alike), max_size=2, unique_by=id)) if alike else []
        buffers.append(buffer)
    binding = st.fixed_dictionaries({"n": st.integers(0, 99), "m": st.integers(0, 99)})
    return buffers, draw(binding), draw(binding)


def starts(slots: list[Slot], binding: dict[str, int]) -> dict[Slot, tuple[int, int]]:
    """(first byte, byte after the last) of each slot, as the program computes them."""
    found: dict[Slot, tuple[int, int]] = {}
    for slot in slots:
        start = max([found[s][1] for s in slot.below], default=0)
        found[slot] = start, start + evaluate([slot.size], binding)[0]
    return found


@given(plans())
@settings(max_examples=300, deadline=None)
def test_live_buffers_do_not_overlap(plan: tuple[list[Buffer], dict[str, int], dict[str, int]]) -> None:
    buffers, expected, actual = plan
    slots = assign(buffers, lambda size: int(evaluate([size], expected)[0]))
    bytes_of = starts(slots, actual)
    places = [bytes_of[b.slot] for b in buffers if b.slot is not None]
    for i, a in enumerate(buffers):
        assert a.slot is not None and a.slot.arena == (a.side, a.epoch)
        assert evaluate([a.slot.size], actual)[0] >= evaluate([a.size], actual)[0]
        for k, b in enumerate(buffers[:i]):
            if (a.side, a.epoch) != (b.side, b.epoch) or not (a.first <= b.last and b.first <= a.last):
                continue
            first, second = sorted((a, b), key=lambda x: x.first)
            handed_over = first in second.over and first.last == second.first and first.slot is second.slot
            (low, high), (other_low, other_high) = places[i], places[k]
            assert handed_over or high <= other_low or other_high <= low


def lived(*lives: tuple[int, int, int]) -> list[Buffer]:
    buffers = [Buffer("host", "arena", k, size) for k, (size, _, _) in enumerate(lives)]
    for buffer, (_, first, last) in zip(buffers, lives, strict=True):
        buffer.touch(first)
        buffer.touch(last)
    return buffers


def test_a_slot_is_used_again() -> None:
    assert used(assign(lived((1024, 0, 1), (1024, 1, 2), (1024, 2, 3)), int)) == 2048


def test_a_large_slot_holds_several_small_ones_later() -> None:
    assert used(assign(lived((4096, 0, 1), (1024, 2, 4), (2048, 2, 4), (1024, 3, 4)), int)) == 4096


def test_a_result_takes_the_memory_of_what_it_is_read_over() -> None:
    old, new, after = lived((1024, 0, 1), (1024, 1, 2), (1024, 2, 3))
    new.over.append(old)
    slots = assign([old, new, after], int)
    assert old.slot is new.slot and used(slots) == 2048


def test_a_buffer_that_is_read_later_is_not_written_over() -> None:
    old, new = lived((1024, 0, 3), (1024, 1, 2))
    new.over.append(old)
    assert used(assign([old, new], int)) == 2048


def residual(blocks: int, shape: list[int], channels: int) -> bytes:
    """x = relu(conv(relu(conv(x))) + x), several times: the sum can lie where x lay."""
    rng = np.random.default_rng(5)
    nodes, constants, x = [helper.make_node("Sigmoid", ["x"], ["x0"])], [], "x0"
    for k in range(blocks):
        for part in "ab":
            weights = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32) * 0.1
            constants.append(helper.make_tensor(f"w{part}{k}", TensorProto.FLOAT, weights.shape, weights.ravel()))
        nodes += [helper.make_node("Conv", [x, f"wa{k}"], [f"a{k}"], pads=[1, 1, 1, 1]), helper.make_node("Relu", [f"a{k}"], [f"ar{k}"]),
                  helper.make_node("Conv", [f"ar{k}", f"wb{k}"], [f"b{k}"], pads=[1, 1, 1, 1]),
                  helper.make_node("Add", [f"b{k}", x], [f"s{k}"]), helper.make_node("Relu", [f"s{k}"], [f"x{k + 1}"])]
        x = f"x{k + 1}"
    nodes.append(helper.make_node("ReduceMean", [x], ["y"], keepdims=0))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return made


def test_depth_of_a_network_adds_nothing_to_its_peak() -> None:
    shape = [1, 16, 24, 24]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    peaks = []
    for blocks in (2, 9):
        session = gpuonnx.load(residual(blocks, shape, 16), device="cpu")
        session.run({"x": x})
        peaks.append(session.stats.peak_bytes)
    assert peaks[0] == peaks[1]


def rowwise(*stages: tuple[g.Fold | g.Store, ...]) -> g.Nest:
    space = d.Space()
    n, m = space.sym("n"), space.sym("m")
    x, y = g.Value("f32", (n, m), "x"), g.Value("f32", (n, m), "y")
    return g.Nest((x,), (y,), ranges=(n, m), over=frozenset({1}), stages=stages)


HERE = (index(0), index(1))
X = load(0, "f32", HERE)
SUM = g.Fold("sum", X)


@pytest.mark.parametrize(("stages", "pairs"), [
    pytest.param([(g.Store(0, HERE, X),)], ((0, 0),), id="own element"),
    pytest.param([(SUM,), (g.Store(0, HERE, X * folded(0, 0, "f32")),)], ((0, 0),), id="own row before"),
    pytest.param([(SUM, g.Store(0, HERE, X))], ((0, 0),), id="folded beside"),
    pytest.param([(g.Store(0, HERE, X),), (SUM,), (g.Store(0, HERE, X * folded(1, 0, "f32")),)], (), id="stored twice"),
    pytest.param([(g.Store(0, HERE, X),), (SUM,)], (), id="read by a later stage"),
    pytest.param([(g.Store(0, HERE, load(0, "f32", (index(1), index(0)))),)], (), id="another element"),
    pytest.param([(g.Store(0, (index(0), const(0, "ix")), X),)], (), id="one element for many")])
def test_what_may_be_written_over(stages: list[tuple[g.Fold | g.Store, ...]], pairs: tuple[tuple[int, int], ...]) -> None:
    assert overwritable(rowwise(*stages)) == pairs


def test_threads_that_share_a_row_write_over_nothing_that_others_fold() -> None:
    stages = (SUM,), (g.Store(0, HERE, X * folded(0, 0, "f32")),)
    assert overwritable(rowwise(*stages), in_turn=False) == ()
    assert overwritable(rowwise((g.Store(0, HERE, X),)), in_turn=False) == ((0, 0),)
