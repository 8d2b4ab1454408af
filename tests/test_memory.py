"""Arena slots: two buffers that live at once never share a byte, whatever the sizes turn out to be."""
from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuonnx.ir import dims as d
from gpuonnx.ir.sizes import evaluate
from gpuonnx.planner.memory import Buffer, assign


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Buffer], dict[str, int], dict[str, int]]:
    space = d.Space()
    n, m = space.sym("n"), space.sym("m")
    sizes: list[Any] = [64, 4096, n * 4, m * 8, n * m, n + m]
    buffers = []
    for number in range(draw(st.integers(1, 20))):
        buffer = Buffer(draw(st.sampled_from(["host", "device"])), "arena", number, draw(st.sampled_from(sizes)), draw(st.integers(0, 1)))
        first = draw(st.integers(0, 15))
        buffer.touch(first)
        buffer.touch(first + draw(st.integers(0, 6)))
        buffers.append(buffer)
    binding = st.fixed_dictionaries({"n": st.integers(0, 99), "m": st.integers(0, 99)})
    return buffers, draw(binding), draw(binding)


@given(plans())
@settings(max_examples=200, deadline=None)
def test_live_buffers_do_not_overlap(plan: tuple[list[Buffer], dict[str, int], dict[str, int]]) -> None:
    buffers, expected, actual = plan
    arenas = assign(buffers, lambda size: int(evaluate([size], expected)[0]))
    for i, a in enumerate(buffers):
        assert a.slot is not None and (a.slot.side, a.slot.epoch) == (a.side, a.epoch)
        assert evaluate([a.slot.size], actual)[0] >= evaluate([a.size], actual)[0]
        for b in buffers[:i]:
            together = a.first <= b.last and b.first <= a.last
            assert not (together and a.slot is b.slot)
    assert len({id(s) for s in arenas.slots}) == len(arenas.slots)


def test_a_slot_is_used_again() -> None:
    buffers = [Buffer("host", "arena", k, 1024) for k in range(3)]
    for k, buffer in enumerate(buffers):
        buffer.touch(k)
        buffer.touch(k + 1)
    arenas = assign(buffers, int)
    assert len(arenas.slots) == 2 and arenas.used == 2048
