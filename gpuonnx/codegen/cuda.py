"""What the CUDA devices run, and how: nodes of the IR to steps. Nests are generated, Calls go to gpuonnx.kernels.cuda.<name>."""
from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np

from gpuonnx.codegen import products
from gpuonnx.codegen.cuda_nest import Operand, nest_step
from gpuonnx.codegen.cuda_prefix import prefix_step
from gpuonnx.codegen.cuda_scatter import scatter_steps
from gpuonnx.codegen.cuda_split import split_steps
from gpuonnx.codegen.cuda_tile import tile_step
from gpuonnx.errors import UnsupportedOp
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, dim, folded, index, load
from gpuonnx.ir.graph import Assemble, Call, Copy, Fold, Map, Nest, Node, Prefix, Reduce, Scatter, Store, View
from gpuonnx.ir.inplace import overwritable
from gpuonnx.kernels.contract import Build, Epilogue, Layout, Ref, Spec, Step
from gpuonnx.kernels.cuda.expression import unsupported_expression, unsupported_type

GENERATED = (Map, Reduce, Nest, Prefix, Scatter, View, Assemble, Copy)


def unsupported(node: Node) -> str | None:
    """None where a CUDA device can run the node, else the reason; layouts are taken to be dense."""
    dense = [Layout.dense(v.dtype, v.dims) if v.shape is not None else None for v in (*node.inputs, *node.outputs)]
    if any(x is None for x in dense):
        return "a sequence, optional or map lives on the host"
    inputs = [x for x in dense[:len(node.inputs)] if x is not None]
    outputs = [x for x in dense[len(node.inputs):] if x is not None]
    for layout in (*inputs, *outputs):
        if reason := unsupported_type(layout.dtype):
            return reason
    if isinstance(node, Call):
        return _unsupported_call(node, inputs, outputs)
    if not isinstance(node, GENERATED):
        return f"{type(node).__name__} runs on the host"
    return unsupported_expression(expressions(node))


def _unsupported_call(node: Call, inputs: list[Layout], outputs: list[Layout]) -> str | None:
    spec = spec_of(node, inputs, outputs, {})
    if node.kernel in products.NAMES:
        return unsupported_expression(expressions(products.nest(node.kernel, spec, True)))
    kernel = module(node.kernel)
    if kernel is None:
        return f"there is no CUDA kernel {node.kernel}"
    if node.epilogue is not None and (reason := unsupported_expression((node.epilogue,))):
        return reason
    answer: str | None = kernel.supports(spec)
    return answer


def module(name: str) -> ModuleType | None:
    """gpuonnx.kernels.cuda.<name>, if there is one."""
    try:
        found = importlib.import_module(f"gpuonnx.kernels.cuda.{name}")
    except ModuleNotFoundError as problem:
        if problem.name == f"gpuonnx.kernels.cuda.{name}":
            return None
        raise
    return found if hasattr(found, "supports") and hasattr(found, "build") else None


def spec_of(node: Call, inputs: Sequence[Layout], outputs: Sequence[Layout], constants: Mapping[int, np.ndarray]) -> Spec:
    """The kernel's view of a Call: absent inputs as None, the last `operands` as the epilogue's."""
    count = len(inputs) - node.operands
    epilogue = Epilogue(node.epilogue, tuple(inputs[count:])) if node.epilogue is not None else None
    given: list[Layout | None] = []
    numbers: dict[int, int] = {}
    absent = set(node.attrs.get("absent", ()))
    for k in range(count):
        while len(given) in absent:
            given.append(None)
        numbers[k] = len(given)
        given.append(inputs[k])
    attrs = {name: value for name, value in node.attrs.items() if name != "absent"}
    return Spec(tuple(given), tuple(outputs), attrs, {numbers[k]: a for k, a in constants.items() if k in numbers}, epilogue)


def expressions(node: Node) -> tuple[Expr, ...]:
    """All expressions a generated node evaluates."""
    match node:
        case Map() | Reduce() | Prefix(): return (node.expr,)
        case Scatter(): return (*node.index, node.expr)
        case View(): return node.index or ()
        case Nest(): return tuple(a.expr for stage in node.stages for a in stage)
    return ()


def build_node(node: Node, inputs: Sequence[Layout], outputs: Sequence[Layout], constants: Mapping[int, np.ndarray]) -> Build:
    """The launches of one node."""
    reads = [Operand(Ref("in", k), layout) for k, layout in enumerate(inputs)]
    writes = [Operand(Ref("out", k), layout) for k, layout in enumerate(outputs)]
    match node:
        case Call():
            return _build_call(node, inputs, outputs, constants)
        case Prefix():
            return Build((prefix_step(node, reads, writes[0]),))
        case Scatter():
            copy = nest_step(_nest(inputs[0].shape, _load(0, inputs[0], _axes(inputs[0].shape))), reads, writes)
            steps, work = scatter_steps(node, reads, writes[0])
            return Build((copy, *steps), work)
        case Assemble():
            return Build(tuple(_assemble(node, reads, writes[0])))
        case Nest() | Reduce() | Map() | View() | Copy():
            nest = as_nest(node, inputs)
            in_place = tuple((Ref("in", k), o) for k, o in overwritable(nest, in_turn=False))
            return split_steps(nest, reads, writes) or Build((nest_step(nest, reads, writes),), in_place=in_place)
    raise UnsupportedOp(f"{type(node).__name__} has no CUDA form")


def _build_call(node: Call, inputs: Sequence[Layout], outputs: Sequence[Layout], constants: Mapping[int, np.ndarray]) -> Build:
    kernel, spec = module(node.kernel), spec_of(node, inputs, outputs, constants)
    if node.kernel in products.NAMES and (kernel is None or kernel.supports(spec) is not None):
        nest = products.nest(node.kernel, spec, True)
        reads = [Operand(Ref("in", k), layout) for k, layout in enumerate(inputs)]
        writes = [Operand(Ref("out", k), layout) for k, layout in enumerate(outputs)]
        tiles = tile_step(nest, reads, writes)
        return Build((tiles,)) if tiles is not None else split_steps(nest, reads, writes) or Build((nest_step(nest, reads, writes),))
    if kernel is None:
        raise UnsupportedOp(f"there is no CUDA kernel {node.kernel}")
    present = {number: k for k, number in enumerate(i for i, layout in enumerate(spec.inputs) if layout is not None)}
    made: Build = kernel.build(spec)
    return replace(made, steps=tuple(_renumbered(s, present) for s in made.steps))


def _renumbered(step: Step, present: Mapping[int, int]) -> Step:
    """Kernels number their inputs with the absent ones counted; the node's inputs leave them out."""
    args = tuple(Ref("in", present[a.number], a.offset) if isinstance(a, Ref) and a.space == "in" else a for a in step.args)
    return replace(step, args=args)


def as_nest(node: Node, inputs: Sequence[Layout]) -> Nest:
    """Map, Reduce, View and Copy as a Nest."""
    match node:
        case Nest(): return node
        case Map(): return _nest(node.out.dims, node.expr, node)
        case Copy(): return _nest(node.out.dims, _load(0, inputs[0], _axes(node.out.dims)), node)
        case View(): return _nest(node.out.dims, _load(0, inputs[0], node.index or _reshaped(inputs[0].shape, node.out.dims)), node)
        case Reduce():
            kept = tuple(index(a) for a in range(len(node.ranges)) if a not in node.over)
            dtype = "i64" if node.fold.startswith("arg") else node.expr.dtype
            stages = ((Fold(node.fold, node.expr),), (Store(0, kept, folded(0, 0, dtype)),))
            return Nest(node.inputs, node.outputs, ranges=node.ranges, over=frozenset(node.over), stages=stages, origins=node.origins)
    raise UnsupportedOp(f"{type(node).__name__} is no nest")


def _nest(ranges: Sequence[Dim], expr: Expr, node: Node | None = None) -> Nest:
    inputs, outputs, origins = (node.inputs, node.outputs, node.origins) if node else ((), (), ())
    return Nest(inputs, outputs, ranges=tuple(ranges), over=frozenset(), stages=((Store(0, _axes(ranges), expr),),), origins=origins)


def _axes(ranges: Iterable[Dim]) -> tuple[Expr, ...]:
    return tuple(index(a) for a, _ in enumerate(ranges))


def _load(number: int, layout: Layout, indices: Sequence[Expr]) -> Expr:
    return load(number, layout.dtype, tuple(indices))


def _reshaped(source: Sequence[Dim], target: Sequence[Dim]) -> tuple[Expr, ...]:
    """Where element (index(0), ...) of the row-major re-interpretation lies in the source."""
    flat = dim(0)
    for axis, size in enumerate(target):
        flat = flat * dim(size) + index(axis)
    out: list[Expr] = []
    for size in reversed(source):
        out.insert(0, flat % dim(size))
        flat = flat // dim(size)
    return tuple(out)


def _assemble(node: Assemble, reads: Sequence[Operand], write: Operand) -> Iterable[Step]:
    start: Dim = 0
    for k, read in enumerate(reads):
        axes = _axes(read.layout.shape)
        places = tuple(i + dim(start) if a == node.axis else i for a, i in enumerate(axes))
        stage = (Store(0, places, _load(k, read.layout, axes)),)
        yield nest_step(Nest((), (), ranges=read.layout.shape, over=frozenset(), stages=(stage,)), reads, [write])
        start = start + read.layout.shape[node.axis]
