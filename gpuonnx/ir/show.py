"""Text forms of expressions, nodes and graphs: what `explain` prints and goldens compare."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpuonnx.ir import graph as g
from gpuonnx.ir.dims import Atom, Poly
from gpuonnx.ir.expr import Expr, postorder

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">",
         "greater_equal": ">=", "and": "and", "or": "or", "floordiv": "//", "floormod": "%"}
AXES = "ijklmnopqr"
LONGEST = 2000
WIDTH = 140
TRUTHS = ("eq0", "lt0")
WORD = re.compile(r"[^\W\d][\w.\[\]]*")


def axis(number: int) -> str:
    return AXES[number] if number < len(AXES) else f"i{number}"


def size(d: Any) -> str:
    """A Dim as one writes it: `(H + 1)//2 - 1`; a symbol whose name is no plain word stands in quotes."""
    return _sum(d.terms) if isinstance(d, Poly) else str(d)


def answer(question: Any, value: int | float) -> str:
    """What a variant is for: `M == 1 is true`, `axes[0] = 2`."""
    terms = question.terms if isinstance(question, Poly) else ()
    truth = len(terms) == 1 and terms[0][1] == 1 and [a.op in TRUTHS for a in terms[0][0]] == [True]
    return f"{size(question)[1:-1]} is {str(bool(value)).lower()}" if truth else f"{size(question)} = {value}"


def _sum(terms: Sequence[tuple[tuple[Atom, ...], int]]) -> str:
    """Positive terms first, a constant last."""
    out = ""
    for atoms, count in sorted(terms, key=lambda t: (not t[0], t[1] < 0)):
        text = _term(atoms, abs(count))
        out += (" - " if count < 0 else " + ") + text if out else ("-" if count < 0 else "") + text
    return out or "0"


def _term(atoms: Sequence[Atom], count: int) -> str:
    if len(atoms) == 1 and count == 1:
        return _atom(atoms[0])
    return "*".join([str(count)] * (count != 1 or not atoms) + [_factor(a) for a in atoms])


def _atom(a: Atom) -> str:
    if a.op == "sym":
        name = str(a.args[0])
        return name if WORD.fullmatch(name) else repr(name)
    if a.op in ("//", "%"):
        return f"{_factor(a.args[0])}{a.op}{_factor(a.args[1])}"
    if a.op in TRUTHS and isinstance(a.args[0], Poly):
        terms = a.args[0].terms
        left, right = [t for t in terms if t[1] > 0], [(m, -c) for m, c in terms if c < 0]
        return f"({_sum(left)} {'==' if a.op == 'eq0' else '<'} {_sum(right)})"
    return f"{a.op}({', '.join(map(size, a.args))})"


def _factor(x: Any) -> str:
    """In parentheses where it is not one word or call."""
    if isinstance(x, Atom):
        return f"({_atom(x)})" if x.op in ("//", "%") else _atom(x)
    if isinstance(x, Poly) and len(x.terms) == 1 and x.terms[0][1] == 1 == len(x.terms[0][0]):
        return _factor(x.terms[0][0][0])
    return size(x) if isinstance(x, int) and x >= 0 else f"({size(x)})"


def shape(sizes: Sequence[Any]) -> str:
    """Sizes in brackets."""
    return "[" + ", ".join(map(size, sizes)) + "]"


def expression(e: Expr, inputs: Sequence[str] = ()) -> str:
    """One line; a sub-expression used more than once is named t0, t1... before it. `inputs`: names for in0, in1..."""
    return "; ".join(statements(e, inputs))


def statements(e: Expr, inputs: Sequence[str] = ()) -> list[str]:
    """`t0 = ...` for each sub-expression used more than once, then the whole."""
    uses: dict[Expr, int] = {}
    order = postorder((e,))
    for x in order:
        for a in x.args:
            uses[a] = uses.get(a, 0) + 1
    texts: dict[Expr, str] = {}
    lets: list[str] = []
    for x in order:
        text = _text(x, [texts[a] for a in x.args], inputs)
        if uses.get(x, 0) > 1 and x.args and len(text) > 12:
            lets.append(f"t{len(lets)} = {text}")
            text = f"t{len(lets) - 1}"
        texts[x] = text
    whole = [*lets, texts[e]]
    if sum(map(len, whole)) <= LONGEST:
        return whole
    return ["; ".join(whole)[:LONGEST] + f"... ({len(order)} nodes)"]


def _text(x: Expr, args: list[str], inputs: Sequence[str]) -> str:
    match x.op:
        case "const": return repr(x.value) if x.dtype in ("f32", "ix") else f"{x.dtype}({x.value})"
        case "dim": return _factor(x.value) if isinstance(x.value, Poly) else str(x.value)
        case "index": return axis(x.value)
        case "folded": return f"folded{x.value[0]}.{x.value[1]}"
        case "load": return f"{_input(x.value, inputs)}[{', '.join(args)}]"
        case "cast": return f"{x.dtype}({args[0]})"
        case "round": return f"round_{x.value}({args[0]})"
        case "neg": return f"-{args[0]}"
    if x.op in INFIX:
        return f"({args[0]} {INFIX[x.op]} {args[1]})"
    return f"{x.op}({', '.join(args)})"


def _input(number: Any, inputs: Sequence[str]) -> str:
    if not isinstance(number, int):
        return str(number.name or "value")
    return inputs[number] if number < len(inputs) else f"in{number}"


class Names:
    """Short names of values: the ONNX name where there is one, else v0, v1..."""

    def __init__(self) -> None:
        self._names: dict[g.Value, str] = {}

    def __call__(self, value: g.Value) -> str:
        if value not in self._names:
            self._names[value] = value.name or f"v{len(self._names)}"
        return self._names[value]

    def typed(self, value: g.Value) -> str:
        return f"{self(value)}: {value.dtype}{'' if value.shape is None else shape(value.shape)}"


def node(n: g.Node, names: Names) -> str:
    """`outputs = Kind(...) of inputs: expression  # origins`; a long one takes a line for each of its parts."""
    given = list(map(names, n.inputs))
    what, parts = _what(n, ["result", *given[len(given) - n.operands:]] if isinstance(n, g.Call) else given)
    ins = " of " + ", ".join(given) if given else ""
    head = f"{', '.join(map(names.typed, n.outputs))} = {what}{ins}{':' if parts else ''}"
    tail = [f"# {', '.join(n.origins)}"] if n.origins else []
    line = " ".join([head, "; ".join(parts)] if parts else [head]) + "".join("  " + t for t in tail)
    return line if len(line) <= WIDTH else "\n    ".join([head, *parts, *tail])


def _what(n: g.Node, given: Sequence[str]) -> tuple[str, list[str]]:
    """The kind of node, then what it computes."""
    match n:
        case g.View(index=None): return "View(reshape)", []
        case g.View(): return f"View[{', '.join(map(expression, n.index or ()))}]", []
        case g.Map(): return "Map", statements(n.expr, given)
        case g.Reduce():
            over = ", ".join(f"{axis(a)} < {size(n.ranges[a])}" for a in n.over)
            return f"Reduce {n.fold} over {over}", statements(n.expr, given)
        case g.Prefix():
            how = " exclusive" * n.exclusive + " reverse" * n.reverse
            return f"Prefix {n.fold} along {axis(n.axis)}{how}", statements(n.expr, given)
        case g.Scatter():
            at = ", ".join([expression(e, given) for e in n.index])
            return f"Scatter {n.combine or 'set'} {shape(n.ranges)} at [{at}]", statements(n.expr, given)
        case g.Assemble(): return f"Assemble axis {n.axis}", []
        case g.Call():
            call = f"Call {n.kernel}({_attributes(n.attrs)})"
            return (call, []) if n.epilogue is None else (f"{call}, then an epilogue,", statements(n.epilogue, given))
        case g.Host(): return f"Host {n.name}({_attributes(n.attrs)})", []
        case g.If(): return f"If, then {n.bodies[0].name!r}, else {n.bodies[1].name!r},", []
        case g.Loop(): return f"Loop of {n.body.name!r}, carrying {n.carried},", []
        case g.Copy(): return f"Copy ({n.why})", []
        case g.Nest(): return f"Nest {shape(n.ranges)} over {{{', '.join(axis(a) for a in sorted(n.over))}}}", [_stage(x, given) for x in n.stages]
    return type(n).__name__, []


def _stage(stage: tuple[g.Fold | g.Store, ...], given: Sequence[str]) -> str:
    def action(a: g.Fold | g.Store) -> str:
        *lets, whole = statements(a.expr, given)
        made = a.op if isinstance(a, g.Fold) else f"out{a.output}[{', '.join(map(expression, a.indices))}] ="
        return "; ".join([*lets, f"{made} {whole}"])
    return " and ".join(map(action, stage))


def _attributes(attrs: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        text = " ".join(repr(value).split())
        return text if len(text) <= 60 else text[:57] + "..."
    return ", ".join(f"{k}={short(v)}" for k, v in attrs.items())


def graph(gr: g.Graph) -> str:
    """Inputs, constants, nodes in order, outputs, symbols and requirements."""
    names = Names()
    lines = ["inputs  " + ", ".join(map(names.typed, gr.inputs))]
    lines += [f"constant {names.typed(v)}" + (f" = {a.tolist()}" if a.size <= 8 else "") for v, a in gr.constants.items()]
    lines += [node(n, names) for n in gr.nodes]
    lines.append("outputs " + ", ".join(map(names, gr.outputs)))
    for symbol, source in gr.symbols.items():
        where = f"axis {source.axis}" if source.axis is not None else f"element {source.element}"
        lines.append(f"symbol {symbol} = {where} of {names(source.value)}")
    lines += [f"requires {size(r.dim)} {'==' if r.equal else '>='} 0: {r.text} ({r.origin})" for r in gr.requirements]
    return "\n".join(lines)
