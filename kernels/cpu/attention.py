"""Call "attention": out[..., M, E] = epilogue(rows(A[..., M, D] @ B[..., D, T]) @ C[..., T, E]); attrs["rows"]: an ir.graph.Rows.

inputs: A, B, C, then what the rows read. A task takes some rows of one batch entry through both products; their scores lie on its stack, or in
a workspace where that would be large.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpuonnx.ir.dims import Dim, dmax, dmin, floordiv, lt, select
from gpuonnx.ir.expr import Expr, apply, const, index, load, postorder, rewrite, substitute
from gpuonnx.ir.graph import Rows
from gpuonnx.ir.types import size
from gpuonnx.kernels.contract import Arg, Build, Epilogue, Kernel, Layout, Ref, Spec, Step
from gpuonnx.kernels.cpu.emit import Form, NotAffine, Plan, analyse, check, identity, words
from gpuonnx.kernels.cpu.gemm import (
    Axis,
    Lying,
    Problem,
    Workspace,
    arguments,
    ceildiv,
    epilogue_reason,
    left_operand,
    lying,
    product,
    right_operand,
    same,
    unless,
)

if TYPE_CHECKING:
    from gpuonnx.kernels.cpu.micro import Contraction

TYPES = ("f32", "f64")
NEAR, STACK, SHARES, MOST_TILES, ALIGNED = 1 << 17, 1 << 19, 32, 16, 64
OWN = 3


@dataclass(frozen=True)
class Block:
    """What is compiled in beside the contractions: batch axes, the expressions of the rows as one tuple, the folds of each stage, Plain.kept,
    the number of the second epilogue's operand that is the row's factor (-1: none), and the names of the words of `args` behind those of the
    contractions."""

    dtype: str
    lanes: int
    batch: int
    expressions: Form
    folds: tuple[tuple[str, ...], ...]
    kept: int
    factor: int
    names: tuple[str, ...]


def supports(call: Spec) -> str | None:
    layouts = [v for v in (*call.inputs[:OWN], *call.outputs) if v is not None]
    if len(layouts) <= OWN or any(v.dtype not in TYPES or v.dtype != layouts[0].dtype for v in layouts):
        return "attention computes in float32 or float64"
    rows = call.attrs["rows"]
    for e in (*rows.expressions, *([] if rows.score is None else [rows.score])):
        reason = check(e, "folded")
        if reason is not None:
            return reason
    try:
        _plans(call, Plain.of(rows, len(call.outputs[0].shape) - 1), 1)
    except NotAffine as error:
        return str(error)
    return epilogue_reason(call, layouts[0].dtype, identity(len(call.outputs[0].shape)))


def _plans(call: Spec, plain: Plain, line: Dim) -> tuple[Plan, Plan]:
    """Where the scores' epilogue and the rows' expressions read and write; rows of scores are `line` elements apart."""
    a, b, rows = call.inputs[0], call.inputs[1], call.attrs["rows"]
    assert a is not None and b is not None
    batch = call.outputs[0].shape[:-2]
    scores = Layout(a.dtype, (*batch, a.shape[-2], b.shape[-1]), (*[0] * len(batch), line, 1))
    more = tuple(v for v in call.inputs[OWN:] if v is not None)
    forms = identity(len(scores.shape))
    score = analyse(scores, None if rows.score is None else Epilogue(rows.score, more), a.dtype, forms)
    whole = analyse(scores, Epilogue(Expr("tuple", plain.expressions, a.dtype), more), a.dtype, forms)
    return _of_inputs(score), _of_inputs(whole)


@dataclass(frozen=True)
class Plain:
    """The expressions of Rows as the kernel walks them. kept: which value of the last stage's folds takes the score's place, where the result
    needs it and nothing else of the score (softmax's exp), or -1. scaled: the last expression is a factor of the whole row, which the second
    product's results are multiplied by instead of the elements."""

    expressions: tuple[Expr, ...]
    kept: int
    scaled: bool

    @staticmethod
    def of(rows: Rows, axis: int) -> Plain:
        """`axis`: the one that folds go along."""
        result, kept = rows.result, -1
        for number, fold in enumerate(rows.stages[-1] if rows.stages else ()):
            scores = [e for e in postorder((fold.expr,)) if e.op == "load" and e.value == 0]
            if fold.expr.op != "load" and scores and fold.expr.dtype == scores[0].dtype and fold.expr in postorder((result,)):
                other = rewrite((result,), lambda e, old=fold.expr: const(0, e.dtype) if e is old else e)[0]  # type: ignore[misc]
                if not any(e.op == "load" and e.value == 0 for e in postorder((other,))):
                    result = rewrite((result,), lambda e, old=fold.expr, new=scores[0]: new if e is old else e)[0]  # type: ignore[misc]
                    kept = number
                    break
        scaled = result.op == "div" and result.args[0].op == "load" and result.args[0].value == 0 and not any(
            e.op == "load" and e.value == 0 or e.op == "index" and e.value == axis for e in postorder((result.args[1],)))
        if scaled:
            result = apply("div", const(1, result.dtype), result.args[1])
        return Plain((*rows.expressions[:-1], result), kept, scaled)


def _of_inputs(plan: Plan) -> Plan:
    """Operands of these expressions are inputs of the Call."""
    def moved(ref: Ref | None) -> Ref | None:
        return replace(ref, space="in", number=OWN + ref.number) if ref is not None and ref.space == "extra" else ref
    return replace(plan, operands=tuple(replace(o, ref=moved(o.ref)) for o in plan.operands))


def build(call: Spec) -> Build:
    """Steps that pack B and C, unless there are few rows and they can be read where they lie, then the attention itself."""
    from gpuonnx.kernels.cpu.micro import VECTORS, lanes_of, panel_of, target
    a, b, c, out, rows = *call.inputs[:OWN], call.outputs[0], call.attrs["rows"]
    assert a is not None and b is not None and c is not None
    dtype, shape, high, wide = a.dtype, out.shape[:-2], a.shape[-2], b.shape[-1]
    nr = panel_of(dtype)
    line = (floordiv(ceildiv(wide, nr), 2) * 2 + 1) * nr * size(dtype)
    work = Workspace([], [])
    each, entries = rows_of_task(high, line, product(shape), target().tile(VECTORS)), product(shape)
    products = Products(call, line, each, left_operand(a, dtype, shape, work))
    steps, ways, before = list(work.steps), [], len(work.bytes)
    there = lying(b, dtype, shape), lying(c, dtype, shape)
    few: Dim = 0
    if there[0] is not None and there[1] is not None:
        few = there[0].serves(high)
        ways.append(products.of((Ref("in", 1), there[0]), (Ref("in", 2), there[1])))
    if not same(few, 1):
        work.steps.clear()
        ways.append(products.of(*(packed_unless(v, Ref("in", k), there[k - 1], shape, work) for k, v in ((1, b), (2, c)))))
        steps += unless(work.steps, few)
        work.bytes[before:] = [select(few, 0, n) for n in work.bytes[before:]]
    chunks, room = ceildiv(high, each), each * (line + ALIGNED)
    far = lt(STACK, room)
    args: dict[str, Arg] = {"rows": high, "columns": wide, "rows.task": each, "chunks": chunks, "line": line, "room": room, "far": far, "few": few,
                            "factors": products.factors, "work": work.take(select(far, entries * chunks * room, 0))}
    args |= {f"size{i}": n for i, n in enumerate(shape)} | words(products.whole)
    form = Block(dtype, lanes_of(dtype), len(shape), products.whole.form(), tuple(tuple(f.op for f in stage) for stage in rows.stages),
                 products.plain.kept, products.factor, tuple(args))
    forms = tuple((scores[1], mix[1]) for scores, mix in ways)

    def text(symbol: str) -> str:
        from gpuonnx.kernels.cpu.attention_code import Attention
        return Attention(form, forms).text(symbol)
    values = [v for way in ways for words_of, _ in way for v in words_of.values()]
    step = Step(Kernel("attention", (form, forms, target()), "llvm", text), (*values, *args.values()), entries * chunks)
    return Build((*steps, step), tuple(work.bytes))


def packed_unless(v: Layout, ref: Ref, lies: Lying | None, shape: tuple[Dim, ...], work: Workspace) -> tuple[Ref, Lying]:
    """A right operand for any number of rows: as it lies, where that serves, else in panels."""
    from gpuonnx.kernels.cpu.micro import VECTORS
    if lies is not None and lies.always:
        return ref, lies
    room, strides, _ = right_operand(v, ref, None, v.dtype, shape, work)
    return room, Lying("panels", VECTORS, strides, 0)


class Products:
    """The two contractions, for any way that their right operands lie."""

    def __init__(self, call: Spec, line: Dim, each: Dim, left: tuple[Ref, tuple[Dim, ...]]) -> None:
        """`line`: bytes between rows of scores; `each`: rows of a task, whose factors lie behind the scores; `left`: A and its byte strides."""
        self.call, self.line, self.factors, (self.left, self.steps) = call, line, each * line, left
        self.a, self.b, self.out = call.inputs[0], call.inputs[1], call.outputs[0]
        assert self.a is not None and self.b is not None
        self.dtype, self.shape, self.high = self.a.dtype, self.out.shape[:-2], self.a.shape[-2]
        self.plain = Plain.of(call.attrs["rows"], len(self.out.shape) - 1)
        self.score, self.whole = _plans(call, self.plain, floordiv(line, size(self.dtype)))
        self.result, self.factor = analyse(self.out, call.epilogue, self.dtype, identity(len(self.out.shape))), -1
        if self.plain.scaled:
            self.result, self.factor = self.scaled()

    def of(self, first_b: tuple[Ref, Lying], second_c: tuple[Ref, Lying]) -> list[tuple[dict[str, Arg], Contraction]]:
        """Words and forms of both."""
        from gpuonnx.kernels.cpu.micro import Real, lanes_of
        assert self.a is not None and self.b is not None
        (first, b), (second, c) = first_b, second_c
        scores = tuple(Axis(n, x, y) for n, x, y in zip((*self.shape, self.high), self.steps, (*b.steps, 0), strict=True))
        mix = (*(Axis(n, 0, y) for n, y in zip(self.shape, c.steps, strict=True)), Axis(self.high, self.line, 0))
        problems = [Problem(self.dtype, self.left, first, scores, self.b.shape[-1], (), self.a.shape[-1], self.score, b.vectors, b.way, b.line),
                    Problem(self.dtype, 0, second, mix, self.out.shape[-1], (), self.b.shape[-1], self.result, c.vectors, c.way, c.line)]
        nr = [p.vectors * lanes_of(self.dtype) for p in problems]
        return [arguments(p, {"rows": self.high, "columns": p.columns, "panels": ceildiv(p.columns, n), "factors": self.factors}, Real(self.dtype))
                for p, n in zip(problems, nr, strict=True)]

    def scaled(self) -> tuple[Plan, int]:
        """The epilogue over results times their row's factor, an operand whose place the kernel itself fills in, and its number."""
        rank, dtype = len(self.out.shape), self.dtype
        given = self.call.epilogue or Epilogue(load(0, dtype, tuple(map(index, range(rank)))))
        factor = load(len(given.operands) + 1, dtype, tuple(map(index, range(rank))))
        expr = substitute(given.expr, lambda e: apply("mul", e, factor) if e.op == "load" and e.value == 0 else None)
        layout = Layout(dtype, self.out.shape, (*[0] * (rank - 2), 1, 0))
        plan = analyse(self.out, Epilogue(expr, (*given.operands, layout)), dtype, identity(rank))
        (number,) = (k for k, o in enumerate(plan.operands) if o.ref == Ref("extra", len(given.operands)))
        operands = list(plan.operands)
        operands[number] = replace(operands[number], ref=Ref("in", 0))
        return replace(plan, operands=tuple(operands)), number


def rows_of_task(rows: Dim, line: Dim, entries: Dim, mr: int) -> Dim:
    """From sizes only: whole tiles whose scores stay in the second-level cache, and tasks enough for many threads."""
    fits = floordiv(floordiv(NEAR, dmax(1, line)), mr)
    most = dmax(1, dmin(MOST_TILES, fits, floordiv(rows * entries, SHARES * mr))) * mr
    each = ceildiv(ceildiv(rows, dmax(1, ceildiv(rows, most))), mr) * mr
    least: Dim = dmax(1, each)
    return least
