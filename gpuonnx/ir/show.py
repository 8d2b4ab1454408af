"""Text forms of expressions, nodes and graphs: what `explain` prints and goldens compare."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuonnx.ir import graph as g
from gpuonnx.ir.expr import Expr, postorder

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">",
         "greater_equal": ">=", "and": "and", "or": "or", "floordiv": "//", "floormod": "%"}
AXES = "ijklmnopqr"
LONGEST = 2000


def axis(number: int) -> str:
    return AXES[number] if number < len(AXES) else f"i{number}"


def size(d: Any) -> str:
    """A Dim as one writes it: `(H + 1)//2 - 1`; a symbol whose name is no plain word stands in quotes."""
    return _sum(d.terms) if isinstance(d, Poly) else str(d)


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
        return name if re.fullmatch(r"[\w.\[\]:/-]*[^\W\d][\w.\[\]:/-]*", name) and "//" not in name and "-" not in name else repr(name)
    if a.op in ("//", "%"):
        return f"{_factor(a.args[0])}{a.op}{_factor(a.args[1])}"
    if a.op in ("eq0", "lt0") and isinstance(a.args[0], Poly):
        terms = a.args[0].terms
        left, right = [t for t in terms if t[1] > 0], [(m, -c) for m, c in terms if c < 0]
        return f"({_sum(left)} {'==' if a.op == 'eq0' else '<'} {_sum(right)})"
    return f"{a.op}({', '.join(map(size, a.args))})"


def _factor(x: Any) -> str:
    text = _atom(x) if isinstance(x, Atom) else size(x)
    return text if re.fullmatch(r"[\w.\[\]]+", text) or text[0] == "(" and isinstance(x, Atom) and x.op in ("eq0", "lt0") else f"({text})"


def shape(sizes: Sequence[Any]) -> str:
    return "[" + ", ".join(map(size, sizes)) + "]"


def expression(e: Expr) -> str:
    """One line; a sub-expression used more than once is named t0, t1... before it."""
    return "; ".join(statements(e))


def statements(e: Expr) -> list[str]:
    """`t0 = ...` for each sub-expression used more than once, then the whole."""
    uses: dict[Expr, int] = {}
    order = postorder((e,))
    for x in order:
        for a in x.args:
            uses[a] = uses.get(a, 0) + 1
    texts: dict[Expr, str] = {}
    lets: list[str] = []
    for x in order:
        text = _text(x, [texts[a] for a in x.args])
        if uses.get(x, 0) > 1 and x.args and len(text) > 12:
            lets.append(f"t{len(lets)} = {text}")
            text = f"t{len(lets) - 1}"
        texts[x] = text
    whole = [*lets, texts[e]]
    if sum(map(len, whole)) <= LONGEST:
        return whole
    return ["; ".join(whole)[:LONGEST] + f"... ({len(order)} nodes)"]


def _text(x: Expr, args: list[str]) -> str:
    match x.op:
        case "const": return repr(x.value) if x.dtype in ("f32", "ix") else f"{x.dtype}({x.value})"
        case "dim": return _factor(x.value) if isinstance(x.value, Poly) else str(x.value)
        case "index": return axis(x.value)
        case "folded": return f"folded{x.value[0]}.{x.value[1]}"
        case "load": return f"{_input(x.value)}[{', '.join(args)}]"
        case "cast": return f"{x.dtype}({args[0]})"
        case "round": return f"round_{x.value}({args[0]})"
        case "neg": return f"-{args[0]}"
    if x.op in INFIX:
        return f"({args[0]} {INFIX[x.op]} {args[1]})"
    return f"{x.op}({', '.join(args)})"


def _input(number: Any) -> str:
    return f"in{number}" if isinstance(number, int) else str(number.name or "value")


class Names:
    """Short names of values: the ONNX name where there is one, else v0, v1..."""

    def __init__(self) -> None:
        self._names: dict[g.Value, str] = {}

    def __call__(self, value: g.Value) -> str:
        if value not in self._names:
            self._names[value] = value.name or f"v{len(self._names)}"
        return self._names[value]

    def typed(self, value: g.Value) -> str:
        shape = "" if value.shape is None else "[" + ", ".join(map(str, value.shape)) + "]"
        return f"{self(value)}: {value.dtype}{shape}"


def node(n: g.Node, names: Names) -> str:
    """`outputs = Kind(...) of inputs  # origins`."""
    outs = ", ".join(map(names.typed, n.outputs))
    ins = ", ".join(map(names, n.inputs))
    origins = f"  # {', '.join(n.origins)}" if n.origins else ""
    return f"{outs} = {_what(n)}" + (f" of {ins}" if ins else "") + origins


def _what(n: g.Node) -> str:
    match n:
        case g.View(index=None): return "View(reshape)"
        case g.View(): return f"View[{', '.join(map(expression, n.index or ()))}]"
        case g.Map(): return f"Map {expression(n.expr)}"
        case g.Reduce(): return f"Reduce {n.fold} over {', '.join(map(axis, n.over))} of [{_dims(n.ranges)}] {expression(n.expr)}"
        case g.Prefix(): return (f"Prefix {n.fold} along {axis(n.axis)}{' exclusive' if n.exclusive else ''}{' reverse' if n.reverse else ''} "
                                 f"{expression(n.expr)}")
        case g.Scatter(): return f"Scatter {n.combine or 'set'} [{_dims(n.ranges)}] at [{', '.join(map(expression, n.index))}] {expression(n.expr)}"
        case g.Assemble(): return f"Assemble axis {n.axis}"
        case g.Call(): return f"Call {n.kernel}({_attributes(n.attrs)})" + (f" then {expression(n.epilogue)}" if n.epilogue is not None else "")
        case g.Host(): return f"Host {n.name}({_attributes(n.attrs)})"
        case g.If(): return f"If then {n.bodies[0].name} else {n.bodies[1].name}"
        case g.Loop(): return f"Loop {n.body.name} carrying {n.carried}"
        case g.Copy(): return f"Copy ({n.why})"
        case g.Nest(): return f"Nest [{_dims(n.ranges)}] over {{{', '.join(axis(a) for a in sorted(n.over))}}} " + " | ".join(map(_stage, n.stages))
    return type(n).__name__


def _stage(stage: tuple[g.Fold | g.Store, ...]) -> str:
    def action(a: g.Fold | g.Store) -> str:
        if isinstance(a, g.Fold):
            return f"{a.op} {expression(a.expr)}"
        return f"out{a.output}[{', '.join(map(expression, a.indices))}] = {expression(a.expr)}"
    return ", ".join(map(action, stage))


def _dims(ranges: tuple[Any, ...]) -> str:
    return ", ".join(map(str, ranges))


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
    lines += [f"requires {r.dim} {'==' if r.equal else '>='} 0: {r.text} ({r.origin})" for r in gr.requirements]
    return "\n".join(lines)
