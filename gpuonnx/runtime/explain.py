"""What a session does, in text: the graph as lowered, the rewrites, the plan with reasons, the kernels."""
from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpuonnx.planner import program as p
from gpuonnx.planner.program import DEVICE, HOST
from gpuonnx.runtime.variants import Executable, Variant

if TYPE_CHECKING:
    from gpuonnx.session import Session

STAGES = ("graph", "passes", "plan", "kernels")
NOTHING = "nothing is compiled yet: run the session once, or give `--random` inputs"


def explain(session: Session, stage: str) -> str:
    """stage: graph, passes, plan or kernels; every variant compiled so far."""
    writers = {"graph": _graph, "passes": _passes, "plan": _plan, "kernels": _kernels}
    if stage not in writers:
        raise ValueError(f"stage {stage!r} is none of {', '.join(STAGES)}")
    blocks = [f"== {path}: variant for {variant.key or 'every input'}\n{writers[stage](variant)}" for path, variant in variants(session)]
    return "\n\n".join(blocks) or NOTHING


def variants(session: Session) -> list[tuple[str, Variant]]:
    """(path, variant) of everything compiled so far: the main procedure, what runs after it, bodies, calls for some outputs."""
    found = _variants(session._main, "main")
    for (names, over), executable in session._special.items():
        found += _variants(executable, f"only {', '.join(names) or 'nothing'}" + (f" with {', '.join(over)}" if over else ""))
    return found


def _variants(executable: Executable, path: str) -> list[tuple[str, Variant]]:
    found = []
    for variant in executable.variants:
        found.append((path, variant))
        for k, body in enumerate(variant.bodies):
            found += _variants(body, f"{path}/{body.procedure.name or k}")
        if variant.rest is not None:
            found += _variants(variant.rest, f"{path}/rest")
    return found


def _graph(variant: Variant) -> str:
    from gpuonnx.ir.show import graph
    return graph(variant.texts["graph"])


def _passes(variant: Variant) -> str:
    return str(variant.texts["passes"])


def _plan(variant: Variant) -> str:
    how = f"\nlike calls: {variant.how}" if variant.how else ""
    return plan_text(variant.loaded.program, [body.how for body in variant.bodies]) + how


def plan_text(program: p.Program, hows: Sequence[str] = ()) -> str:
    """Node by node where it runs and why, then the order and the memory. hows: how the bodies were run so far."""
    steps = Counter((name, number) for name, side in program.sides.items() for number in side.step_nodes)
    common = _common_reason(program)
    lines = [f"{'side':6} {'what':18} {'steps':>5} {'reads+writes':>12}  makes; ONNX nodes; why"]
    for number, node in enumerate(program.nodes):
        names = ", ".join(dict.fromkeys(node.origins))
        why = "" if node.why == common else f"; {node.why}"
        count = steps[node.side, number] or "-"
        lines.append(f"{node.side:6} {node.kind:18} {count:>5} {_bytes(node.bytes):>12}  {_cut(node.text, 80)}; {_cut(names, 90)}{why}")
    if common:
        lines.append(f"why, where no reason stands: {common}")
    return "\n".join([*lines, *_summary(program, hows)])


def _common_reason(program: p.Program) -> str:
    """The reason of most ONNX nodes, if it is that of two or more."""
    seen = {(node.why, node.origins) for node in program.nodes if node.kind != "Copy"}
    common, often = min(Counter(why for why, _ in seen).items(), key=lambda pair: (-pair[1], pair[0]), default=("", 0))
    return common if often > 1 else ""


def _summary(program: p.Program, hows: Sequence[str]) -> list[str]:
    counts = Counter(node.side for node in program.nodes)
    moved = sum(isinstance(s, p.Transfer) for s in program.segments)
    constants = sum(a.nbytes for side in program.sides.values() for a in side.constants)
    where = f"{counts[HOST]} on the host, {counts[DEVICE]} on the device, {moved} copies between them" if counts[DEVICE] else "all on the host"
    return [f"order: {'; '.join(_segment(s, program) + _how(s, hows) for s in program.segments) or 'nothing to do'}",
            f"where: {where}" + (f"; nothing runs for {_cut(', '.join(program.quiet), 200)}: views, or made in place" if program.quiet else ""),
            f"working memory {_bytes(program.peak)} at the sizes it was compiled with, constants {_bytes(constants)}"]


def _bytes(count: int) -> str:
    """With a unit that leaves one to four digits."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:,.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):,.1f} MiB"


def _segment(segment: p.Segment, program: p.Program) -> str:
    match segment:
        case p.Run():
            count = segment.last - segment.first
            return f"{count} step{'s' * (count != 1)} on the {segment.side} in one call"
        case p.Bind(): return f"now {', '.join(s.name for s in segment.symbols)} {'are' if len(segment.symbols) > 1 else 'is'} known"
        case p.Transfer(): return f"copy {segment.source.name or 'a value'} to the {segment.target.side}"
        case p.HostCall(): what = f"Python {segment.name}"
        case p.Interpret(): what = f"NumPy {type(segment.ir_node).__name__}"
        case p.Branch(): what = "one of two bodies"
        case p.Repeat(): what = "a body again and again"
    return f"{what} ({_cut(', '.join(program.nodes[segment.node].origins), 60)})"


def _how(segment: p.Segment, hows: Sequence[str]) -> str:
    numbers = segment.bodies if isinstance(segment, p.Branch) else (segment.body,) if isinstance(segment, p.Repeat) else ()
    said = dict.fromkeys(hows[n] for n in numbers if n < len(hows) and hows[n])
    return f" {' or '.join(said)}" if said else ""


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length - 3] + "..."


def _kernels(variant: Variant) -> str:
    lines = []
    for name, side in variant.loaded.program.sides.items():
        uses: Counter[int] = Counter(side.step_kernels)
        origins: dict[int, dict[str, Any]] = {}
        for step, kernel in enumerate(side.step_kernels):
            origins.setdefault(kernel, {}).update(dict.fromkeys(variant.loaded.program.nodes[side.step_nodes[step]].origins))
        for number, made in enumerate(side.kernels):
            names = _cut(", ".join(origins.get(number, {})), 100)
            lines.append(f"{name:6} {made.language:5} {made.name:24} {uses[number]:4} steps  {names}")
    return "\n".join(lines) or "no kernels: everything is a view, a constant or done by Python"


def as_html(session: Session) -> str:
    """What a notebook shows of a session: inputs, outputs, the variants with their plans, the counters."""
    def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
        cells = ["<tr>" + "".join(f"<th style='text-align:left'>{html.escape(h)}</th>" for h in head) + "</tr>"]
        cells += ["<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(x))}</td>" for x in row) + "</tr>" for row in rows]
        return f"<table>{''.join(cells)}</table>"

    ios = [(kind, io.name, io.dtype, "any rank" if io.shape is None else list(io.shape))
           for kind, group in (("input", session.inputs), ("output", session.outputs)) for io in group]
    stats = session.stats
    counters = [(stats.runs, stats.variants, stats.bindings, stats.compiled, stats.cache_hits, f"{stats.peak_bytes / 1024:,.0f} KiB")]
    plans = "".join(f"<details><summary>{html.escape(path)}: variant for {html.escape(variant.key or 'every input')}</summary>"
                    f"<pre>{html.escape(_plan(variant))}</pre></details>" for path, variant in variants(session))
    return (f"<b>gpuonnx session on {html.escape(session.device)}</b>{table(('', 'name', 'type', 'shape'), ios)}"
            f"{table(('runs', 'variants', 'new sizes', 'kernels compiled', 'kernels from the cache', 'working memory'), counters)}{plans}")
