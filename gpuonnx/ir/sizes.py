"""Dims compiled to a straight-line program over a table of 64-bit registers.

Registers are symbols first, then constants, then results. Both sides of a select are computed, so dividing by 0 gives 0.
Reals are float32 values kept in the low half of a register by the native interpreter; here they are Python floats.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from gpuonnx.errors import ShapeError
from gpuonnx.ir import dims
from gpuonnx.ir.dims import Atom, Real, float32_op, known

OPCODES = ("sym", "const", "+", "*", "//", "min", "max", "bcast", "eq0", "lt0", "select", "floor", "ceil", "trunc",
           "f.const", "f.ratio", "f.add", "f.sub", "f.mul", "f.div", "f.select")


class SizeProgram:
    """`slots[i]` is ("sym", name), ("const", number) or (op, registers); ask `register(dim)` while building."""

    def __init__(self) -> None:
        self.slots: list[tuple[str, Any]] = []
        self._seen: dict[Any, int] = {}

    def register(self, d: Any) -> int:
        """The register that will hold `d`."""
        if known(d):
            kind = "f.const" if isinstance(d, float) else "const"
            return self._slot(kind, d if isinstance(d, float) else int(d))
        if d in self._seen:
            return self._seen[d]
        if isinstance(d, (Real, Atom)):
            prefix = "f." if isinstance(d, Real) else ""
            out = self._slot("sym", d.args[0]) if d.op == "sym" else self._nary(prefix + d.op, [self.register(a) for a in d.args])
        else:
            sums = []
            for m, c in d.terms:
                factors = [self.register(a) for a in m] + ([self._slot("const", c)] if c != 1 or not m else [])
                sums.append(self._nary("*", factors))
            out = self._nary("+", sums)
        self._seen[d] = out
        return out

    def sum(self, registers: list[int]) -> int:
        """The register that will hold the sum of others."""
        return self._folded("+", registers)

    def largest(self, registers: list[int]) -> int:
        """The register that will hold the largest of others."""
        return self._folded("max", registers)

    def _folded(self, op: str, registers: list[int]) -> int:
        """What is known is one constant; 0 is neutral to both, as sizes are not negative."""
        numbers = [self.slots[r][1] for r in registers if self.slots[r][0] == "const"]
        number = sum(numbers) if op == "+" else max(numbers, default=0)
        rest = [r for r in registers if self.slots[r][0] != "const"]
        return self._nary(op, [*rest, self._slot("const", number)] if number or not rest else rest)

    def _nary(self, op: str, registers: list[int]) -> int:
        if op in ("+", "*", "min", "max", "bcast"):
            return reduce(lambda x, y: self._slot(op, (x, y)), registers)
        return self._slot(op, tuple(registers))

    def _slot(self, op: str, arg: Any) -> int:
        key = (op, arg.hex() if isinstance(arg, float) else arg)
        if key not in self._seen:
            self._seen[key] = len(self.slots)
            self.slots.append((op, arg))
        return self._seen[key]

    def run(self, binding: Mapping[str, int | float]) -> list[Any]:
        """All registers, by Python: the reference of the native interpreter."""
        r: list[Any] = []
        for op, arg in self.slots:
            r.append(binding[arg] if op == "sym" else arg if op.endswith("const") else _compute(op, [r[i] for i in arg]))
        return r


def _compute(op: str, a: list[Any]) -> Any:
    if op.startswith("f."):
        return float32_op(op[2:], *a)
    match op:
        case "+": return a[0] + a[1]
        case "*": return a[0] * a[1]
        case "//": return a[0] // a[1] if a[1] else 0
        case "min": return min(a)
        case "max": return max(a)
        case "eq0": return int(a[0] == 0)
        case "lt0": return int(a[0] < 0)
        case "select": return a[1] if a[0] else a[2]
        case "floor": return _whole(math.floor, a[0])
        case "ceil": return _whole(math.ceil, a[0])
        case "trunc": return _whole(math.trunc, a[0])
    if a[0] != a[1] and 1 not in a:
        raise ShapeError(f"sizes {a[0]} and {a[1]} do not broadcast")
    return a[1] if a[0] == 1 else a[0]


def _whole(rounding: Callable[[float], int], real: float) -> int:
    """A real as an integer; NaN is 0, what is too large stays at the ends of int64."""
    if math.isnan(real):
        return 0
    return rounding(min(max(float(real), -2.0**63), 2.0**63 - 1024))


def evaluate(dims: Iterable[Any], binding: Mapping[str, int | float]) -> list[Any]:
    """The values of some Dims for one binding of their symbols."""
    program = SizeProgram()
    registers = [program.register(d) for d in dims]
    values = program.run(binding)
    return [values[r] for r in registers]


_INTEGER: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b, "*": lambda a, b: a * b, "//": dims.floordiv, "min": dims.dmin, "max": dims.dmax, "bcast": dims.bcast,
    "select": dims.select, "eq0": lambda a: dims.eq(a, 0), "lt0": lambda a: dims.lt(a, 0)}


def substitute(sizes: Iterable[Any], given: Mapping[str, Any]) -> list[Any]:
    """The Dims with other Dims in the place of their symbols; None where a symbol has none, or real numbers decide."""
    program = SizeProgram()
    registers = [program.register(size) for size in sizes]
    values: list[Any] = []
    for op, arg in program.slots:
        if op == "sym":
            values.append(given.get(arg))
        elif op == "const":
            values.append(arg)
        else:
            operands = [values[r] for r in arg] if op in _INTEGER else [None]
            values.append(None if any(x is None for x in operands) else _INTEGER[op](*operands))
    return [values[r] for r in registers]
