"""What a session does, in text: the graph as lowered, the rewrites, the plan with reasons, the kernels."""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from gpuonnx.planner import program as p
from gpuonnx.planner.place import DEVICE, HOST
from gpuonnx.runtime.variants import Executable, Variant

if TYPE_CHECKING:
    from gpuonnx.session import Session


def explain(session: Session, stage: str) -> str:
    """stage: graph, passes, plan or kernels; every variant compiled so far."""
    writers = {"graph": _graph, "passes": _passes, "plan": _plan, "kernels": _kernels}
    if stage not in writers:
        raise ValueError(f"stage {stage!r} is none of {', '.join(writers)}")
    blocks = []
    for path, variant in _variants(session._main, "main"):
        blocks.append(f"== {path}: variant for {variant.key or 'every input'}\n{writers[stage](variant)}")
    return "\n\n".join(blocks) or "nothing is compiled yet: run the session once, or give `--random` inputs"


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
    program = variant.loaded.program
    lines = [f"{'side':6} {'what':18} {'KiB':>10}  why / ONNX nodes"]
    for node in program.nodes:
        names = ", ".join(dict.fromkeys(node.origins))
        lines.append(f"{node.side:6} {node.kind:18} {node.bytes / 1024:10.1f}  {node.why}; {names[:120]}")
    counts = Counter(node.side for node in program.nodes)
    moved = [n for n in program.segments if isinstance(n, p.Transfer)]
    lines.append(f"{counts[HOST]} on the host, {counts[DEVICE]} on the device, {len(moved)} copies between them; "
                 f"working memory {program.peak / 1024:,.0f} KiB at the sizes it was compiled with")
    return "\n".join(lines)


def _kernels(variant: Variant) -> str:
    lines = []
    for name, side in variant.loaded.program.sides.items():
        uses: Counter[int] = Counter(side.step_kernels)
        origins: dict[int, dict[str, Any]] = {}
        for step, kernel in enumerate(side.step_kernels):
            origins.setdefault(kernel, {}).update(dict.fromkeys(variant.loaded.program.nodes[side.step_nodes[step]].origins))
        for number, made in enumerate(side.kernels):
            lines.append(f"{name:6} {made.language:5} {made.name:24} {uses[number]:4} steps  {', '.join(origins.get(number, {}))[:100]}")
    return "\n".join(lines)
