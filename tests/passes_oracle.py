"""Graphs by NumPy, node by node, and random graphs to run before and after a pass."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpuonnx.codegen.cache import KernelCache
from gpuonnx.devices.cpu import Cpu
from gpuonnx.importer.lower import lower
from gpuonnx.importer.procedure import Argument
from gpuonnx.ir import build as b
from gpuonnx.ir import graph as g
from gpuonnx.ir.builder import Builder
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.evaluate import evaluate
from gpuonnx.ir.expr import index
from gpuonnx.ir.types import numpy_dtype
from gpuonnx.passes import PER_DEVICE, Trace, function, run_placed
from gpuonnx.planner.place import Placement
from gpuonnx.planner.program import HOST


def run(graph: g.Graph, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs for these inputs; symbols are bound as soon as their source is there."""
    values: dict[g.Value, np.ndarray] = dict(zip(graph.inputs, feeds, strict=True)) | dict(graph.constants)
    binding: dict[str, int | float] = {}

    def bind() -> None:
        for name, s in graph.symbols.items():
            if name not in binding and s.value in values:
                array = values[s.value]
                binding[name] = array.shape[s.axis] if s.axis is not None else array.ravel()[s.element].item()
    bind()
    for node in graph.nodes:
        arrays = [values[v] for v in node.inputs]
        match node:
            case g.Call(): results = _call(node, arrays, binding)
            case g.Loop(): results = _loop(node, arrays)
            case _: results = evaluate(node, arrays, binding)
        values.update(zip(node.outputs, results, strict=True))
        bind()
    return [values[v] for v in graph.outputs]


def _loop(node: g.Loop, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The body, lowered for each turn's shapes, as often as trip count and condition say."""
    given = list(arrays)
    turns = int(given.pop(0)) if node.has_trip else None
    going = bool(given.pop(0)) if node.has_condition else True
    state, captures, scans, turn = given[:node.carried], given[node.carried:], [], 0
    while going and (turns is None or turn < turns):
        feeds = [np.array(turn, np.int64), np.array(going), *state, *captures]
        body: Any = node.body
        arguments = [Argument(i.dtype, f.shape) for i, f in zip(body.inputs, feeds, strict=True)]
        still, *results = run(lower(body, arguments).graph, feeds)
        going, state, turn = bool(still), results[:node.carried], turn + 1
        scans.append(results[node.carried:])
    return [*state, *(np.stack(column) for column in zip(*scans, strict=True))]


def _call(node: g.Call, arrays: Sequence[np.ndarray], binding: Mapping[str, int | float]) -> list[np.ndarray]:
    own = len(arrays) - node.operands
    result = _attention(node, arrays[:own], binding) if node.kernel == "attention" else KERNELS[node.kernel](node, *arrays[:own])
    if node.epilogue is None:
        return [np.asarray(result, numpy_dtype(node.out.dtype))]
    stored = {np.dtype(np.float32): "f32", np.dtype(np.int32): "i32"}[result.dtype]
    stand = g.Map((g.Value(stored, node.out.shape), *node.inputs[own:]), node.outputs, expr=node.epilogue, origins=node.origins)
    return evaluate(stand, [result, *arrays[own:]], binding)


def _gemm(node: g.Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(left.astype(np.float32) @ right.astype(np.float32))


def _attention(node: g.Call, arrays: Sequence[np.ndarray], binding: Mapping[str, int | float]) -> np.ndarray:
    """Product, score, the folds of the rows and what follows from them, product."""
    rows: g.Rows = node.attrs["rows"]
    scores = _gemm(node, arrays[0], arrays[1])
    ranges = (*node.out.dims[:-1], node.inputs[1].dims[-1])
    value, here = g.Value("f32", ranges), tuple(map(index, range(len(ranges))))
    inputs = (value, *node.inputs[3:3 + len(arrays) - 3])
    if rows.score is not None:
        (scores,) = evaluate(g.Map(inputs, (value,), expr=rows.score), [scores, *arrays[3:]], binding)
    nest = g.Nest(inputs, (g.Value("f32", ranges),), ranges=ranges, over=frozenset({len(ranges) - 1}),
                  stages=(*rows.stages, (g.Store(0, here, rows.result),)))
    (weights,) = evaluate(nest, [scores, *arrays[3:]], binding)
    return _gemm(node, weights, arrays[2])


def _gemm_integer(node: g.Call, left: np.ndarray, right: np.ndarray, *zeros: np.ndarray) -> np.ndarray:
    wide, (a, z) = [left.astype(np.int32), right.astype(np.int32)], _zeros(node, zeros)
    return np.asarray((wide[0] - (a[:, None] if a.ndim else a)) @ (wide[1] - z))


def _zeros(node: g.Call, given: Sequence[np.ndarray]) -> list[np.ndarray]:
    rest = iter(given)
    return [np.int32(0)[()] * np.ones((), np.int32) if k in node.attrs.get("absent", ()) else next(rest).astype(np.int32) for k in (2, 3)]


def _conv(node: g.Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return windows(node.attrs, x.astype(np.float32), w.astype(np.float32))


def _conv_integer(node: g.Call, x: np.ndarray, w: np.ndarray, *zeros: np.ndarray) -> np.ndarray:
    a, z = _zeros(node, zeros)
    return windows(node.attrs, x.astype(np.int32) - a, w.astype(np.int32) - (z.reshape(-1, *[1] * (w.ndim - 1)) if z.ndim else z))


def windows(attrs: Mapping[str, Any], x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A convolution, tap by tap."""
    rank, group = x.ndim - 2, attrs["group"]
    pads, strides, dilations = attrs["pads"], attrs["strides"], attrs["dilations"]
    x = np.pad(x, [(0, 0), (0, 0), *((pads[k], pads[rank + k]) for k in range(rank))])
    sizes = [(x.shape[2 + k] - dilations[k] * (w.shape[2 + k] - 1) - 1) // strides[k] + 1 for k in range(rank)]
    out = np.zeros((x.shape[0], w.shape[0], *sizes), x.dtype)
    each, outs = x.shape[1] // group, w.shape[0] // group
    for tap in np.ndindex(*w.shape[2:]):
        part = x[(slice(None), slice(None), *(slice(t * s, t * s + (n - 1) * m + 1, m)
                                              for t, s, n, m in zip(tap, dilations, sizes, strides, strict=True)))]
        for k in range(group):
            weights = w[(slice(k * outs, (k + 1) * outs), slice(None), *tap)]
            out[:, k * outs:(k + 1) * outs] += np.einsum("oc,nc...->no...", weights, part[:, k * each:(k + 1) * each])
    return out


KERNELS: dict[str, Callable[..., np.ndarray]] = {"gemm": _gemm, "gemm_integer": _gemm_integer, "conv": _conv, "conv_integer": _conv_integer}


def built(shapes: Mapping[str, tuple[str, Sequence[int | str]]], make: Callable[..., Sequence[b.Tensor]],
          binding: Mapping[str, int] | None = None) -> g.Graph:
    """The graph of `make` over inputs name: (dtype, sizes and symbol names)."""
    owner = Builder()
    owner.binding.update(binding or {})
    with owner.active():
        tensors = []
        for name, (dtype, sizes) in shapes.items():
            value = g.Value(dtype, (), name)
            value.shape = tuple(s if isinstance(s, int) else owner.symbol(s, g.Source(value, axis=k)) for k, s in enumerate(sizes))
            tensors.append(b.Tensor(value, owner))
        owner.origin = "made"
        outputs = make(*tensors)
        return owner.finish([t.value for t in tensors], [t.value for t in outputs])


def apply(name: str, graph: g.Graph, trace: Trace | None = None) -> g.Graph:
    """One pass, of either sort, everything placed on the host."""
    trace = trace or Trace()
    trace.current = name
    if name in PER_DEVICE:
        return placed(graph, (name,), trace).graph
    return function(name)(graph, trace)


def placed(graph: g.Graph, names: Sequence[str], trace: Trace | None = None, stop_after: int | None = None) -> Placement:
    start = Placement(graph, dict.fromkeys(graph.nodes, HOST), dict.fromkeys(graph.nodes, "here"), devices={HOST: Cpu(KernelCache())})
    return run_placed(start, names, (), stop_after, trace or Trace())


class Random:
    """Some twenty tensors made from x [N, 3, M] and their like, ending in a few outputs."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.steps = int(self.random.integers(4, 18))

    def __call__(self, x: b.Tensor, y: b.Tensor, k: b.Tensor) -> list[b.Tensor]:
        self.k = k
        self.made = [x, y]
        for _ in range(self.steps):
            step: Callable[[b.Tensor], b.Tensor] = self.pick([
                self.unary, self.unary, self.binary, self.binary, self.reduced, self.centred, self.softmax, self.normal, self.turned, self.merged,
                self.sliced, self.joined, self.gathered, self.padded, self.product, self.attended, self.rounded, self.summed, self.put, self.whole])
            made = step(self.any())
            if len(made.shape) <= 5:
                self.made.append(made)
        return [t for t in self.made[2:] if self.random.random() < 0.25] + self.made[-1:]

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.random.integers(len(items)))]

    def any(self) -> b.Tensor:
        return self.made[-1] if self.random.random() < 0.6 else self.pick(self.made)

    def axis(self, t: b.Tensor) -> int:
        return int(self.random.integers(t.rank))

    def unary(self, t: b.Tensor) -> b.Tensor:
        return b.elementwise(self.pick(["tanh", "sigmoid", "abs", "neg", "relu", "exp"]), b.elementwise("tanh", t)) \
            if self.random.random() < 0.5 else b.elementwise(self.pick(["abs", "tanh", "neg"]), t)

    def binary(self, t: b.Tensor) -> b.Tensor:
        def fits(o: b.Tensor) -> bool:
            short, long = sorted((o.shape, t.shape), key=len)
            return all(p is q or p == q or isinstance(p, int) and p == 1 or isinstance(q, int) and q == 1
                       for p, q in zip(short[::-1], long[::-1], strict=False))
        other = self.pick([o for o in self.made if fits(o)])
        return b.elementwise(self.pick(["add", "sub", "mul", "max"]), t, other)

    def reduced(self, t: b.Tensor) -> b.Tensor:
        return t.fold(self.pick(["sum", "max", "min"]), [self.axis(t)], bool(self.random.integers(2))) if t.rank else t + 1.0

    def centred(self, t: b.Tensor) -> b.Tensor:
        return t - t.mean([self.axis(t)], True) if t.rank else t * 2.0

    def softmax(self, t: b.Tensor) -> b.Tensor:
        if not t.rank:
            return -t
        axis = self.axis(t)
        e = b.elementwise("exp", t - t.max([axis], True))
        return e / e.sum([axis], True)

    def normal(self, t: b.Tensor) -> b.Tensor:
        if not t.rank:
            return t
        axis = self.axis(t)
        centred = t - t.mean([axis], True)
        return centred / b.elementwise("sqrt", (centred * centred).mean([axis], True) + 1e-5)

    def turned(self, t: b.Tensor) -> b.Tensor:
        return t.transpose(self.random.permutation(t.rank).tolist()) if t.rank else t.unsqueeze([0])

    def merged(self, t: b.Tensor) -> b.Tensor:
        if t.rank < 2:
            return t.unsqueeze([t.rank])
        at = int(self.random.integers(t.rank - 1))
        return t.reshape(*t.shape[:at], t.shape[at] * t.shape[at + 1], *t.shape[at + 2:])

    def sliced(self, t: b.Tensor) -> b.Tensor:
        known = [a for a, s in enumerate(t.shape) if isinstance(s, int) and s > 1]
        if not known:
            return t + t
        at = self.pick(known)
        return t.slice(at, t.shape[at] - 1, 2, -1) if self.random.random() < 0.5 else t.slice(at, 0, t.shape[at] - 1)

    def joined(self, t: b.Tensor) -> b.Tensor:
        return b.concat([t, b.elementwise("neg", t)], self.axis(t)) if t.rank else t

    def gathered(self, t: b.Tensor) -> b.Tensor:
        if not t.rank:
            return t
        axis = self.axis(t)
        size = t.shape[axis]
        shape = [*t.shape[:axis], self.k.shape[0], *t.shape[axis + 1:]]
        return b.tensor_map(shape, t.dtype, lambda *i: t.at(*i[:axis], b.cast(self.k.at(i[axis]), "ix") % b.dim(size), *i[axis + 1:]))

    def padded(self, t: b.Tensor) -> b.Tensor:
        from gpuonnx.ir.expr import guard
        if not t.rank:
            return t
        axis = self.axis(t)
        shape = [s + 2 if a == axis else s for a, s in enumerate(t.shape)]

        def element(*i: b.Expr) -> b.Expr:
            inside = b.apply("and", b.apply("greater_equal", i[axis], 1), b.apply("less", i[axis], b.dim(t.shape[axis] + 1)))
            return guard(inside, t.at(*[e - 1 if a == axis else e for a, e in enumerate(i)]), b.const(0.5, "f32"))
        return b.tensor_map(shape, t.dtype, element)

    def product(self, t: b.Tensor) -> b.Tensor:
        if t.rank < 2 or not isinstance(t.shape[-1], int):
            return b.elementwise("abs", t)
        w = b.constant(self.random.standard_normal((t.shape[-1], 3)).astype(np.float32) / 3)
        made: b.Tensor = b.call("gemm", t, w, out=t.like(*t.shape[:-1], 3))
        return self.pick([made, made + b.constant(np.float32([1, 2, 3])), b.elementwise("relu", made + b.constant(np.float32([1, 2, 3])))])  # type: ignore[no-any-return]

    def attended(self, t: b.Tensor) -> b.Tensor:
        """Rows of products with itself, through folds, times itself."""
        if t.rank < 2 or t.dtype != "f32":
            return t * 0.5
        swapped = t.transpose([*range(t.rank - 2), t.rank - 1, t.rank - 2])
        scores: b.Tensor = b.call("gemm", t, swapped, out=t.like(*t.shape[:-1], t.shape[-2])) * 0.25
        e = b.elementwise("exp", scores - scores.max([-1], True))
        weights = self.pick([e / e.sum([-1], True), e, b.elementwise("rint", e / e.sum([-1], True) * 9.0) / 9.0])
        made: b.Tensor = b.call("gemm", weights, t, out=t.like(*t.shape))
        return made

    def rounded(self, t: b.Tensor) -> b.Tensor:
        return t.cast("f16").cast("f32")

    def summed(self, t: b.Tensor) -> b.Tensor:
        return b.tensor_prefix(t, self.axis(t)) if t.rank else t

    def put(self, t: b.Tensor) -> b.Tensor:
        if t.rank != 3:
            return b.elementwise("tanh", t)
        size: Dim = t.shape[0]
        return b.tensor_scatter(t, (self.k.shape[0], *t.shape[1:]), lambda *i: [b.cast(self.k.at(i[0]), "ix") % b.dim(size), *i[1:]],
                                lambda *i: b.cast(self.k.at(i[0]), "f32"), "add")

    def whole(self, t: b.Tensor) -> b.Tensor:
        return t.mean()


INPUTS: dict[str, tuple[str, Sequence[int | str]]] = {"x": ("f32", ("N", 3, "M")), "y": ("f32", (3, "M")), "k": ("i64", ("K",))}


def random_graph(seed: int) -> g.Graph:
    return built(INPUTS, Random(seed), {"N": 2, "M": 4, "K": 3})


def random_feeds(seed: int, n: int, m: int, k: int) -> list[np.ndarray]:
    r = np.random.default_rng(seed)
    return [r.standard_normal((n, 3, m)).astype(np.float32), r.standard_normal((3, m)).astype(np.float32), r.integers(0, 100, k)]
