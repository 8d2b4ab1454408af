"""What the nodes of an operator may be, read from its definition: the functions that it reaches are walked, not run, so that no inputs have
to be made up. A kernel counts where its name is an argument in a function that can reach `call`; `host` is Python."""
from __future__ import annotations

import ast
import dis
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from gpuonnx.codegen import cuda, products
from gpuonnx.ir import build

HOMES = ("gpuonnx.ops.", "gpuonnx.ir.build")
LOOPS = (build.tensor_map, build.tensor_reduce, build.elementwise, build.pointwise)
LAUNCHES = (build.call, build.tensor_prefix, build.tensor_scatter)


@dataclass(frozen=True)
class Reach:
    """kernels: names of Calls; python: some case (text, sequences) runs on the host; fused: element loops, folds and views only; launches:
    kernels, prefixes or scatters."""

    kernels: tuple[str, ...]
    python: bool
    fused: bool
    launches: bool = False


def reach(function: Callable[..., Any]) -> Reach:
    """What the definition's nodes may be."""
    seen: dict[FunctionType, None] = {}
    waiting: list[Any] = [function]
    while waiting:
        f = waiting.pop()
        own = isinstance(f, FunctionType) and (f is function or f.__module__.startswith(HOMES))
        if own and f not in seen:
            seen[f] = None
            waiting += _named(f)
    words = {word for f in seen if f.__module__ != build.__name__ for word in _arguments(f)} if build.call in seen else set()
    python = build.host in seen
    launches = any(f in seen for f in LAUNCHES)
    return Reach(tuple(sorted(filter(has_body, words))), python, not launches and (not python or any(f in seen for f in LOOPS)), launches)


@cache
def has_body(name: str, device: str = "cpu") -> bool:
    """Whether a named kernel runs on cpu or cuda; products are nests where they have no body of their own."""
    if name in products.NAMES:
        return True
    if not name.isidentifier():
        return False
    if device == "cuda":
        return cuda.module(name) is not None
    found = find_spec(f"gpuonnx.kernels.cpu.{name}")
    return found is not None and found.origin is not None and "supports" in Path(found.origin).read_text()


@cache
def _named(function: FunctionType) -> list[Any]:
    """The functions that a function's code names: globals, closed-over values, defaults, what it imports, tables of functions."""
    found: list[Any] = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
    found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    module: Any = None
    for code in _codes(function.__code__):
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_GLOBAL":
                module = function.__globals__.get(step.argval)
                found.append(module)
            elif step.opname == "IMPORT_NAME":
                module = sys.modules.get(step.argval)
            elif step.opname in ("IMPORT_FROM", "LOAD_ATTR", "LOAD_METHOD") and isinstance(module, ModuleType):
                found.append(getattr(module, step.argval, None))
                module = module if step.opname == "IMPORT_FROM" else None
    return [f for x in found for f in (x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else (x,)) if callable(f)]


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


@cache
def _arguments(function: FunctionType) -> frozenset[str]:
    """Texts that stand as positional arguments of calls; all texts where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return frozenset(c for code in _codes(function.__code__) for c in code.co_consts if isinstance(c, str))
    return frozenset(a.value for n in ast.walk(tree) if isinstance(n, ast.Call) for a in _choices(n.args)
                     if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _choices(arguments: list[ast.expr]) -> Iterator[ast.expr]:
    for a in arguments:
        yield from (a.body, a.orelse) if isinstance(a, ast.IfExp) else (a,)
