"""Operator definitions: `@op` declares one, `find` looks it up.

A definition is a pure function from tensors to tensors (`ir/build.py`). Positional parameters are the ONNX inputs
(`None` = absent, `*xs` = variadic); one annotated `Const` arrives as a NumPy array known while lowering this variant, one
annotated `Dims` as a list of Dims, symbolic where they can be. Keyword-only parameters are the schema's attributes, a
sub-graph among them a `Body`: a function from its inputs to its outputs, which puts its nodes where it is called; the
reserved `outputs: int` is the number of outputs the node names, `opset: int` the version asked for, `scope` the tensors that
have a name where the node stands (an attribute of such a name is a parameter with `_` behind it).
"""
from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np

from gpuonnx.ir.build import Dim, Tensor

F = TypeVar("F", bound=Callable[..., Any])
Const = np.ndarray
Dims = list[Dim]
Body = Callable[..., list[Tensor]]
RESERVED = ("outputs", "opset", "scope")
INTERNAL = "gpuonnx"
"""The domain of operators that only bodies of our own making have."""
INERT = frozenset({"consumed_inputs"})


@dataclass(frozen=True)
class Definition:
    """One operator from opset `since` on, until the next definition of the same name."""

    domain: str
    name: str
    since: int
    function: Callable[..., Any] = field(repr=False)
    inputs: tuple[tuple[str, str], ...]
    variadic: bool
    attributes: frozenset[str]
    reserved: frozenset[str]

    def __call__(self, inputs: Sequence[Tensor | None], attributes: dict[str, Any], outputs: int, opset: int,
                 scope: Mapping[str, Any]) -> tuple[Any, ...]:
        arguments = [self._argument(i, t) for i, t in enumerate(inputs)]
        given = {"outputs": outputs, "opset": opset, "scope": scope}
        meant = {k + "_" * (k in RESERVED): v for k, v in attributes.items() if k not in INERT}
        result = self.function(*arguments, **meant, **{k: given[k] for k in self.reserved})
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def _argument(self, position: int, t: Tensor | None) -> Any:
        kind = self.inputs[min(position, len(self.inputs) - 1)][1] if self.inputs else "tensor"
        if t is None or kind == "tensor":
            return t
        return t.builder.numbers(t) if kind == "const" else list(t.builder.read(t).ravel())


DEFINITIONS: dict[tuple[str, str], list[Definition]] = {}
ALIASES = {"ai.onnx": "", "ai.onnx.ml": "ai.onnx.ml"}


def op(name: str, since: int = 1, domain: str = "") -> Callable[[F], F]:
    """Declare an operator; also the public way to add a custom one.

        @gpuonnx.op("Swish", since=1, domain="my.company")
        def swish(x, *, beta=1.0):
            return x * sigmoid(x * beta)
    """
    def declare(function: F) -> F:
        definition = describe(function, name, since, domain)
        known = DEFINITIONS.setdefault((domain, name), [])
        known[:] = sorted([d for d in known if d.since != since] + [definition], key=lambda d: d.since)
        return function
    return declare


def describe(function: Callable[..., Any], name: str, since: int, domain: str) -> Definition:
    inputs, attributes, variadic = [], set(), False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            attributes.add(p.name)
        else:
            annotation = str(p.annotation)
            kind = "const" if "Const" in annotation else "dims" if "Dims" in annotation else "tensor"
            inputs.append((p.name, kind))
            variadic |= p.kind is p.VAR_POSITIONAL
    reserved = frozenset(attributes & set(RESERVED))
    accepted = frozenset(a.rstrip("_") for a in attributes - reserved) | (INERT if since == 1 else frozenset())
    return Definition(domain, name, since, function, tuple(inputs), variadic, accepted, reserved)


@cache
def load(name: str) -> None:
    """Import every module of a package, whose declarations register themselves, once."""
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)


def load_all() -> None:
    """Import every module of definitions."""
    load("gpuonnx.ops")


def find(domain: str, name: str, opset: int) -> Definition | None:
    """The definition with the greatest `since` <= opset."""
    load_all()
    known = DEFINITIONS.get((ALIASES.get(domain, domain), name), [])
    return next((d for d in reversed(known) if d.since <= opset), None)
