"""A placed graph with layouts -> Program: places, builds, memory, and the tables that the executor walks (`emit.py` writes them)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from gpuonnx.devices.device import Device
from gpuonnx.errors import ShapeError, UnsupportedOp
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.affine import reshaped, strides_of
from gpuonnx.ir.dims import Dim, symbols
from gpuonnx.ir.expr import const, index, load
from gpuonnx.ir.sizes import evaluate
from gpuonnx.kernels.contract import Build, Layout
from gpuonnx.passes.views import one
from gpuonnx.planner.layout import Layouts, Physical
from gpuonnx.planner.memory import Buffer
from gpuonnx.planner.place import Placement
from gpuonnx.planner.program import DEVICE, HOST

UNKNOWN = 4096


@dataclass(frozen=True)
class Place:
    """Where a value lies: element (i, j, ..) at offset + sum(i * stride), in elements."""

    buffer: Buffer
    strides: tuple[Dim, ...]
    offset: Dim


@dataclass
class Action:
    """One segment-to-be at its position: steps of a build, or something that Python does."""

    node: g.Node
    position: int
    side: str
    build: Build | None = None
    places: tuple[Sequence[Place], Sequence[Place]] = ((), ())
    work: list[Buffer] = field(default_factory=list)
    packed: list[Buffer] = field(default_factory=list)


class Assembler:
    """Walks the order once to give every value a place and every node its build; `program` then emits the tables."""

    def __init__(self, layouts: Layouts, placement: Placement, devices: Mapping[str, Device], binding: Mapping[str, int | float]) -> None:
        self.layouts, self.graph, self.placement, self.devices, self.binding = layouts, layouts.graph, placement, devices, binding
        self.places: dict[g.Value, Place] = {}
        self.objects: dict[g.Value, int] = {}
        self.buffers: list[Buffer] = []
        self.actions: list[Action] = []
        self.position = 0
        self.current_epoch = 0
        self.constants: dict[str, list[np.ndarray]] = {HOST: [], DEVICE: []}
        self.constant_places: dict[tuple[g.Value, str], Place] = {}
        self.epoch_of_symbol: dict[str, int] = {}
        self.binds: dict[int, tuple[int, list[str]]] = {}
        self.packed_buffers: dict[tuple[Any, str], Buffer] = {}

    # sizes
    def epoch(self, size: Dim) -> int:
        return max((self.epoch_of_symbol.get(s, 0) for s in symbols(size)), default=0)

    def hint(self, size: Dim) -> int:
        """What a size may be expected to be: at the sizes compiled for, 64 for what only a run tells."""
        if isinstance(size, int):
            return size
        try:
            return max(int(evaluate([size], {s: self.binding.get(s, 64) for s in symbols(size)})[0]), 0)
        except ShapeError:
            return UNKNOWN

    # places
    def buffer(self, side: str, kind: str, number: int, size: Dim = 0) -> Buffer:
        made = Buffer(side, kind, number, size, self.epoch(size))
        self.buffers.append(made)
        return made

    def run(self) -> None:
        """Places, builds and binds for the whole order."""
        self._epochs()
        for number, value in enumerate(self.graph.inputs):
            if value.shape is None:
                self.objects[value] = len(self.objects)
            else:
                self._place_dense(value, self.buffer(DEVICE if value in self.placement.resident else HOST, "input", number))
        for number, value in enumerate(self.graph.outputs):
            if value.shape is None or value in self.places or value in self.graph.constants:
                continue
            maker = self.makers.get(value)
            if maker is None or isinstance(maker, (g.Host, g.If, g.Loop)) or maker in self.placement.interpreted:
                continue
            if value in self.layouts.physical or self._rearranged(value) or self.placement.side[maker] == DEVICE:
                self._place_dense(value, self.buffer(self.placement.side[maker], "output", number))
        for node in self.graph.nodes:
            self.position += 1
            self._node(node)
            for value in node.outputs:
                if value in self.bind_after:
                    self.current_epoch = epoch = self.bind_after[value]
                    self.binds[epoch] = (self.position, self.binds[epoch][1])
                    if value in self.places:
                        self.places[value].buffer.touch(self.position)
        for value in self.graph.outputs:
            if value in self.places:
                self.places[value].buffer.touch(self.position + 1)

    def _rearranged(self, value: g.Value) -> bool:
        """Whether a View of something is more than the same elements in the same order, so that a kernel should copy them."""
        maker = self.makers.get(value)
        if not isinstance(maker, g.View) or types.kind(value.dtype) in "sc" or self.placement.side[maker] != HOST:
            return False
        source = maker.inputs[0]
        if source.shape is None:
            return False
        return source not in self.graph.constants and not _in_order(maker, source) or self._rearranged(source)

    def _epochs(self) -> None:
        """Symbols of inputs are epoch 0; each value that later symbols are read from opens an epoch."""
        self.makers = self.graph.producers()
        self.bind_after: dict[g.Value, int] = {}
        inputs = set(self.graph.inputs)
        order = {v: k for k, n in enumerate(self.graph.nodes) for v in n.outputs}
        late = sorted((s for s in self.graph.symbols.items() if s[1].value not in inputs), key=lambda s: order.get(s[1].value, -1))
        for name, source in late:
            epoch = self.bind_after.setdefault(source.value, len(self.bind_after) + 1)
            self.epoch_of_symbol[name] = epoch
            self.binds.setdefault(epoch, (0, []))[1].append(name)

    def _place_dense(self, value: g.Value, buffer: Buffer) -> None:
        layout = Layout.dense(value.dtype, value.dims)
        buffer.size = _count(value.dims) * types.size(value.dtype)
        buffer.epoch = self.epoch(buffer.size)
        self.places[value] = Place(buffer, layout.strides, 0)

    def place(self, value: g.Value, side: str) -> Place:
        """Where a value that is read lies; constants are added to the side that reads them."""
        if value in self.graph.constants:
            if (value, side) not in self.constant_places:
                array = self.graph.constants[value]
                buffer = self.constant(array, side)
                self.constant_places[value, side] = Place(buffer, Layout.dense(value.dtype, value.dims).strides, 0)
            return self.constant_places[value, side]
        found = self.places[value]
        found.buffer.touch(self.position)
        return found

    def constant(self, array: np.ndarray, side: str) -> Buffer:
        stored = self.constants[side]
        stored.append(np.ascontiguousarray(array))
        return self.buffer(side, "constant", len(stored) - 1, int(array.nbytes))

    def _target(self, value: g.Value, side: str) -> Place:
        """Where a value that is made will lie."""
        if value in self.places:
            found = self.places[value]
        elif value in self.layouts.inside and self.epoch(_count(self.layouts.inside[value][0].dims)) <= self.current_epoch:
            whole, axis, start = self.layouts.inside[value]
            outer = self._target(whole, side)
            found = Place(outer.buffer, outer.strides, outer.offset + outer.strides[axis] * start)
        else:
            self.layouts.inside.pop(value, None)
            found = self._fresh(value, side, self.layouts.physical[value])
        self.places[value] = found
        found.buffer.touch(self.position)
        return found

    def _fresh(self, value: g.Value, side: str, physical: Physical) -> Place:
        sizes = [s + h[0] + h[1] for s, h in zip(value.dims, physical.halo, strict=True)]
        strides: list[Dim] = [0] * value.rank
        step: Dim = 1
        for axis in reversed(physical.order):
            strides[axis] = step
            step = step * sizes[axis]
        offset: Dim = 0
        for stride, (before, _) in zip(strides, physical.halo, strict=True):
            offset = offset + stride * before
        buffer = self.buffer(side, "arena", len(self.buffers), step * types.size(value.dtype))
        made = Place(buffer, tuple(strides), offset)
        if physical.has_halo:
            self._border(value, made, physical, side)
        return made

    def _border(self, value: g.Value, place: Place, physical: Physical, side: str) -> None:
        """Fill the halo: for each axis the stretches before and after, over what the axes handled so far leave open."""
        shape, start = list(value.dims), [0] * value.rank
        wide = [(s, h) for s, h in zip(value.dims, physical.halo, strict=True)]
        for axis, (size, (before, after)) in enumerate(wide):
            for width, first in ((before, -before), (after, size)):
                if isinstance(width, int) and width == 0:
                    continue
                slab = [*shape[:axis], width, *(s + h[0] + h[1] for s, h in wide[axis + 1:])]
                corner: list[Dim] = [*start[:axis], first, *(-h[0] for _, h in wide[axis + 1:])]
                at = place.offset
                for stride, c in zip(place.strides, corner, strict=True):
                    at = at + stride * c
                self._fill(value, slab, Place(place.buffer, place.strides, at), physical.fill, side)

    def _fill(self, like: g.Value, shape: list[Dim], target: Place, fill: g.Value | None, side: str) -> None:
        out, maker = g.Value(like.dtype, tuple(shape)), self.makers.get(like)
        origins = maker.origins if maker is not None else ()
        if fill is None:
            node = g.Map((), (out,), expr=const(0, types.compute(like.dtype)), origins=origins)
        else:
            node = g.Map((fill,), (out,), expr=load(0, fill.dtype, (0,) * fill.rank), origins=origins)
        self.placement.why[node] = "the border around it that a convolution reads"
        self._build(node, side, [self.place(v, side) for v in node.inputs], [target])

    # nodes
    def _node(self, node: g.Node) -> None:
        side = self.placement.side[node]
        if isinstance(node, (g.Host, g.If, g.Loop)) or node in self.placement.interpreted:
            self._by_python(node)
        elif isinstance(node, g.View):
            self._view(node, side)
        elif isinstance(node, g.Assemble):
            self._assemble(node, side)
        elif isinstance(node, g.Copy):
            self._copy(node, side)
        elif isinstance(node, g.Scatter):
            source, target = self._dense(node.inputs[0], side), self._target(node.out, side)
            self._identity(node, node.inputs[0], source, target, side, "the scatter starts from a copy of its input")
            self._build(node, side, [target, *(self.place(v, side) for v in node.inputs[1:])], [target])
        else:
            ready = [self.place(v, side) for v in node.inputs]
            self._build(node, side, ready, [self._target(v, side) for v in node.outputs])

    def _dense(self, value: g.Value, side: str) -> Place:
        return self.place(value, side)

    def _by_python(self, node: g.Node) -> None:
        for value in node.inputs:
            if value in self.objects or value in self.graph.constants:
                continue
            self.place(value, HOST)
        for value in node.outputs:
            self.objects[value] = len(self.objects)
            if value.shape is not None:
                self._place_dense(value, self.buffer(HOST, "object", self.objects[value]))
        self.actions.append(Action(node, self.position, HOST))

    def _view(self, node: g.View, side: str) -> None:
        source = node.inputs[0]
        if source.shape is None:
            raise UnsupportedOp(f"{', '.join(node.origins)}: a view of a value that is not a tensor")
        place = self.place(source, side)
        if node.index is not None:
            moved = strides_of(node.index, place.strides, node.out.rank)
            assert moved is not None, node
            made: Place | None = Place(place.buffer, moved[1], place.offset + moved[0])
        else:
            strides = reshaped(source.dims, place.strides, node.out.dims)
            made = Place(place.buffer, strides, place.offset) if strides is not None else None
        if node.out in self.places or made is None:
            if made is None and node.out in self.places:
                out = self.places[node.out]
                dense = Place(out.buffer, Layout.dense(source.dtype, source.dims).strides, out.offset)
                out.buffer.touch(self.position)
                self._identity(node, source, place, dense, side, "an output has memory of its own")
                return
            if made is None:
                made = self._through_copy(node, source, place, side)
            if node.out in self.places:
                self._identity(node, node.out, made, self.places[node.out], side, "an output has memory of its own")
                self.places[node.out].buffer.touch(self.position)
                return
        self.places[node.out] = made

    def _through_copy(self, node: g.Node, source: g.Value, place: Place, side: str) -> Place:
        """A reshape of strided memory: make it dense first; the copy is in row-major order, so it serves the new shape too."""
        dense = Place(self.buffer(side, "arena", len(self.buffers), _count(source.dims) * types.size(source.dtype)),
                      Layout.dense(source.dtype, source.dims).strides, 0)
        dense.buffer.touch(self.position)
        self._identity(node, source, place, dense, side, "the view needs its elements in row-major order")
        return Place(dense.buffer, Layout.dense(node.out.dtype, node.out.dims).strides, 0)

    def _assemble(self, node: g.Assemble, side: str) -> None:
        target = self._target(node.out, side)
        offset: Dim = 0
        for part in node.inputs:
            if part not in self.layouts.inside or self.layouts.inside[part][0] is not node.out:
                slab = Place(target.buffer, target.strides, target.offset + target.strides[node.axis] * offset)
                self._identity(node, part, self.place(part, side), slab, side, "a part that could not be made in place")
            offset = offset + part.dims[node.axis]

    def _copy(self, node: g.Copy, side: str) -> None:
        source = node.inputs[0]
        maker = self.makers.get(source)
        origin = HOST if maker is None and source not in self.places else self._home(source)
        place = self.place(source, side if source in self.graph.constants else origin)
        if source in self.graph.constants or origin == side:
            self._identity(node, source, place, self._target(node.out, side), side, node.why)
            return
        if origin == DEVICE and place.strides != Layout.dense(source.dtype, source.dims).strides:
            dense = Place(self.buffer(DEVICE, "arena", len(self.buffers), _count(source.dims) * types.size(source.dtype)),
                          Layout.dense(source.dtype, source.dims).strides, 0)
            dense.buffer.touch(self.position)
            self._identity(node, source, place, dense, DEVICE, "copies between memories are dense")
            place = dense
        target = self._target(node.out, side)
        self.actions.append(Action(node, self.position, side, places=([place], [target])))

    def _home(self, value: g.Value) -> str:
        return self.places[value].buffer.side

    def _identity(self, node: g.Node, value: g.Value, source: Place, target: Place, side: str, why: str) -> None:
        """Copy elements from one place to another of the same memory; complex ones as words of 8 bytes, as no vector holds them."""
        if types.kind(value.dtype) == "c":
            words = types.size(value.dtype) // 8
            value, source, target = g.Value("i64", (*value.dims, words)), in_words(source, words), in_words(target, words)
        stand = g.Value(value.dtype, value.shape)
        axes = tuple(map(index, range(value.rank)))
        copy = g.Map((value,), (stand,), expr=load(0, value.dtype, axes), origins=node.origins)
        self.placement.why[copy] = why
        self._build(copy, side, [source], [target], alone=False)

    def _build(self, node: g.Node, side: str, sources: Sequence[Place], targets: Sequence[Place], alone: bool = True) -> None:
        """alone: nothing else of this position reads what the node reads."""
        inputs = tuple(Layout(v.dtype, v.dims, s.strides) for v, s in zip(node.inputs, sources, strict=True))
        outputs = tuple(Layout(v.dtype, v.dims, t.strides) for v, t in zip(node.outputs, targets, strict=True))
        constants = {k: self.graph.constants[v] for k, v in enumerate(node.inputs) if v in self.graph.constants}
        build = self.devices[side].build(node, inputs, outputs, constants)
        action = Action(node, self.position, side, build, (sources, targets))
        for ref, number in build.in_place if alone else ():
            k = ref.number if ref.space == "in" else len(sources) - cast(g.Call, node).operands + ref.number
            _lies_over(sources, k, targets[number], self.position)
        for size in build.work:
            work = self.buffer(side, "arena", len(self.buffers), size)
            work.touch(self.position)
            action.work.append(work)
        for item in build.packed:
            key = (tuple(node.inputs), item.key) if item.key else None
            known = self.packed_buffers.get((key, side)) if key else None
            made = known or self.constant(item.make(), side)
            if key:
                self.packed_buffers[key, side] = made
            action.packed.append(made)
        self.actions.append(action)


def _lies_over(sources: Sequence[Place], k: int, target: Place, position: int) -> None:
    """Note that a result may take the memory of operand k: all of it, alike, where no other operand lies there too."""
    old, new = sources[k].buffer, target.buffer
    alike = (sources[k].offset, *sources[k].strides, old.side, old.size) == (target.offset, *target.strides, new.side, new.size)
    others = any(s.buffer is old for n, s in enumerate(sources) if n != k)
    if alike and not others and old is not new and new.first == position:
        new.over.append(old)


def in_words(place: Place, words: int) -> Place:
    """The place of the words that elements are made of, on a new last axis."""
    return Place(place.buffer, (*(s * words for s in place.strides), 1), place.offset * words)


def _in_order(view: g.View, source: g.Value) -> bool:
    """Whether a View of a dense value is dense: axes of size 1 come and go, all else stays."""
    if view.index is None:
        return True
    moved, dense = (Layout.dense(v.dtype, v.dims).strides for v in (source, view.out))
    found = strides_of(view.index, moved, view.out.rank)
    return found is not None and found[0] == 0 and all(one(n) or a == b for n, a, b in zip(view.out.dims, found[1], dense, strict=True))


def _count(shape: Sequence[Dim]) -> Dim:
    total: Dim = 1
    for s in shape:
        total = total * s
    return total
