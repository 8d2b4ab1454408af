"""The CPU's renderer of loop nests: Map, Reduce, Nest, Copy, Prefix and Scatter as vector LLVM IR."""
from __future__ import annotations

from gpuonnx.codegen.nest import Form, Walk, arrange, as_nest
from gpuonnx.codegen.nest_keep import keep
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.affine import affine
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, apply, cast, index, load, postorder
from gpuonnx.ir.inplace import overwritable
from gpuonnx.ir.scalar import FOLDS
from gpuonnx.kernels.contract import Arg, Build, Kernel, Layout, Ref, Step

OWN = {"const", "dim", "index", "load", "folded", "guard", "cast", "round"}
COMBINES = {"add": "add", "mul": "mul", "max": "max", "min": "min"}


def supports(node: g.Node) -> str | None:
    """None, or why this renderer cannot run the node."""
    from gpuonnx.kernels.cpu.scalars import has
    if not isinstance(node, (g.Map, g.Reduce, g.Nest, g.Copy, g.Prefix, g.Scatter)):
        return f"{type(node).__name__} is no loop nest"
    for v in (*node.inputs, *node.outputs):
        if types.kind(v.dtype) in "cs":
            return f"elements of type {v.dtype} have no vectors"
    for e in postorder(_exprs(node)):
        if e.op not in OWN and not has(e.op):
            return f"the scalar function {e.op} has no CPU emission"
        if types.kind(e.dtype) in "cs":
            return f"values of type {e.dtype} have no vectors"
    return None


def _exprs(node: g.Node) -> tuple[Expr, ...]:
    if isinstance(node, g.Prefix):
        return (node.expr,)
    if isinstance(node, g.Scatter):
        return (node.expr, *node.index)
    return as_nest(node).roots


def build(node: g.Node, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...]) -> Build:
    """The steps of a node; sizes and strides are arguments."""
    if isinstance(node, g.Prefix):
        return Build((_prefix(node, inputs, outputs),))
    if isinstance(node, g.Scatter):
        return _scatter(node, inputs, outputs)
    nest, output = keep(as_nest(node))
    in_place = tuple((Ref("in", k), o) for k, o in overwritable(nest))
    if output < 0:
        return Build((_step(*arrange(nest, inputs, outputs)),), in_place=in_place)
    return Build((_step(*arrange(nest, (*inputs, outputs[output]), outputs, own=(len(inputs), output))),), in_place=in_place)


def _step(form: Form, args: tuple[Arg, ...], tasks: Dim) -> Step:
    def make(symbol: str) -> str:
        from gpuonnx.codegen.cpu_loops import Loops
        return Loops(form, symbol).text()
    return Step(Kernel("nest", form.key(), "llvm", make), args, tasks)


def _prefix(node: g.Prefix, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...]) -> Step:
    """Lanes are along another axis: the prefixes' own is walked in order."""
    axes = tuple(map(index, range(node.out.rank)))
    combine = COMBINES.get(node.fold) or FOLDS[node.fold].combine
    fold = next(f for f in FOLDS.values() if f.combine == combine)
    nest = g.Nest(node.inputs, node.outputs, ranges=node.out.dims, over=frozenset({node.axis}), stages=((g.Store(0, axes, node.expr),),))
    form, args, tasks = arrange(nest, inputs, outputs, sequence=True, lane_over=False, keep_ones=True)
    form.walk = Walk(combine, fold.identity(node.expr.dtype), node.exclusive, node.reverse)
    return _step(form, args, tasks)


def _scatter(node: g.Scatter, inputs: tuple[Layout, ...], outputs: tuple[Layout, ...]) -> Build:
    """The updates of outputs[0], which is a copy of inputs[0] already: in order along the axes on which they may meet."""
    apart = set()
    for e in node.index:
        form = affine(e)
        if form is not None and len(form.terms) == 1:
            apart |= {a for a, factor in form.terms.items() if isinstance(factor, int) and factor != 0}
    over = frozenset(range(len(node.ranges))) - apart
    out = node.outputs[0]
    own, expr = (-1, 0), node.expr
    if node.combine is not None:
        own = len(node.inputs), 0
        expr = apply(node.combine, load(own[0], out.dtype, node.index), cast(node.expr, types.compute(out.dtype)))
    nest = g.Nest((*node.inputs, out), node.outputs, ranges=node.ranges, over=over, stages=((g.Store(0, node.index, expr),),))
    update = _step(*arrange(nest, (*inputs, outputs[0]), outputs, sequence=True, lane_over=False, own=own))
    return Build((update,))
