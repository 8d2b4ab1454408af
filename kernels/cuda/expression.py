"""Expr -> CUDA C++ statements: one `const` variable each distinct node, guards as branches, scopes for loops."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from gpuonnx.errors import CompileError
from gpuonnx.ir.expr import Expr
from gpuonnx.ir.types import INDEX, kind
from gpuonnx.kernels.cuda.words import Access, Words

C_TYPES = {"f32": "float", "f64": "double", "i8": "signed char", "u8": "unsigned char", "i16": "short", "u16": "unsigned short", "i32": "int",
           "u32": "unsigned", "i64": "long long", "u64": "unsigned long long", "bool": "bool", INDEX: "ix"}
STORED = {"f32", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1",
          "f6e2m3", "f6e3m2", "f8e8m0", "i4", "u4", "i2", "u2"}
TAGS = {name: name for name in STORED} | {"u64": "u64t", "bool": "boolean"}
SMALL_CONSTANTS = 2
DIVISIONS = ("div", "floordiv", "floormod", "truncmod")


def unsupported_type(dtype: str) -> str | None:
    """None, or why a stored type cannot be handled in CUDA texts."""
    return None if dtype in TAGS else f"elements of type {dtype} have no CUDA form"


def unsupported_expression(roots: Iterable[Expr]) -> str | None:
    """None, or the first scalar function that has no CUDA text."""
    from gpuonnx.ir.expr import postorder
    from gpuonnx.ir.scalar import SCALARS
    own = {"const", "dim", "index", "load", "folded", "guard", "cast", "round"}
    for e in postorder(tuple(roots)):
        if e.dtype not in C_TYPES:
            return f"values of type {e.dtype} have no CUDA form"
        if e.op not in own and (e.op not in SCALARS or SCALARS[e.op].cuda is None):
            return f"the scalar function {e.op} has no CUDA text"
    return None


class Writer:
    """Collects lines. `access_of` answers for a load, `coordinates` for an index, `results` for a folded value; `dims` keeps
    the words of dims that expressions mention."""

    def __init__(self, words: Words, access_of: Callable[[Expr], Access | str], coordinates: dict[int, str]) -> None:
        self.words, self.access_of, self.coordinates = words, access_of, coordinates
        self.results: dict[tuple[int, int], str] = {}
        self.lines: list[str] = []
        self.scopes: list[dict[Expr, str]] = [{}]
        self._dims: dict[Expr, str] = {}
        self._numbers = 0

    # lines and scopes
    def line(self, text: str) -> None:
        self.lines.append("  " * len(self.scopes) + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """`head {` ... `}` with a scope of its own."""
        self.line(head + " {")
        self.scopes.append({})
        yield
        self.scopes.pop()
        self.line("}")

    def fresh(self) -> str:
        self._numbers += 1
        return f"v{self._numbers - 1}"

    def define(self, ctype: str, text: str) -> str:
        name = self.fresh()
        self.line(f"const {ctype} {name} = {text};")
        return name

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    # values
    def value(self, e: Expr) -> str:
        """The C++ name or literal of an expression; writes what is missing before it."""
        return self.values((e,))[0]

    def values(self, roots: tuple[Expr, ...]) -> list[str]:
        order = self._unconditional(roots)
        sure = set(order)
        for e in order:
            self._write(e, sure)
        return [self._found(r) for r in roots]

    def _found(self, e: Expr) -> str:
        leaf = self._leaf(e)
        return leaf if leaf is not None else next(s[e] for s in reversed(self.scopes) if e in s)

    def _known(self, e: Expr) -> bool:
        return any(e in s for s in self.scopes)

    def _needs(self, e: Expr) -> tuple[Expr, ...]:
        """What must be there before `e` is written in the same scope."""
        if e.op == "load":
            found = self.access_of(e)
            return () if isinstance(found, str) else tuple(t.index for t, _, _ in found.terms)
        return e.args[:1] if e.op == "guard" else e.args

    def _unconditional(self, roots: tuple[Expr, ...]) -> list[Expr]:
        """What is surely computed and not there yet, arguments first."""
        seen: set[Expr] = set()
        out: list[Expr] = []
        stack = [(r, False) for r in reversed(roots)]
        while stack:
            e, ready = stack.pop()
            if ready:
                out.append(e)
            elif e not in seen and not self._known(e):
                seen.add(e)
                stack.append((e, True))
                stack.extend((a, False) for a in reversed(self._needs(e)))
        return out

    def _write(self, e: Expr, sure: set[Expr]) -> None:
        if self._known(e) or self._leaf(e) is not None:
            return
        if e.op == "guard":
            self._hoist(e, sure)
            name = self._guard(e)
        elif e.op == "load":
            name = self._load(e)
        else:
            name = self.define(C_TYPES[e.dtype], self._text(e))
        self.scopes[-1][e] = name

    def _hoist(self, e: Expr, sure: set[Expr]) -> None:
        """Write what both a branch of `e` and the code around it need."""
        from gpuonnx.ir.expr import postorder
        for x in postorder(e.args[1:]):
            if x in sure and not self._known(x):
                for needed in self._unconditional((x,)):
                    self._write(needed, sure)

    def _guard(self, e: Expr) -> str:
        condition, name = self._found(e.args[0]), self.fresh()
        self.line(f"{C_TYPES[e.dtype]} {name};")
        with self.block(f"if ({condition})"):
            self.line(f"{name} = {self.value(e.args[1])};")
        with self.block("else"):
            self.line(f"{name} = {self.value(e.args[2])};")
        return name

    def _leaf(self, e: Expr) -> str | None:
        if e.op == "const":
            return self._constant(e)
        if e.op == "dim":
            return self._word(e)
        if e.op == "index":
            return self.coordinates[e.value]
        if e.op == "folded":
            return self.results[e.value]
        if e.op == "load":
            found = self.access_of(e)
            return found if isinstance(found, str) else None
        return None

    def _word(self, e: Expr) -> str:
        if e not in self._dims:
            self._dims[e] = self.words.word(int(e.value) if e.op == "const" else e.value)
        return self._dims[e]

    def _constant(self, e: Expr) -> str:
        if e.dtype == INDEX and abs(int(e.value)) > SMALL_CONSTANTS:
            return self._word(e)
        return literal(e.value, e.dtype)

    def offset(self, found: Access) -> tuple[str, str]:
        """(element offset, condition) of an access; the condition is empty where no index comes from data."""
        parts, checks = [found.affine_offset()], []
        for term, stride, limit in found.terms:
            value = self.value(term.index)
            if term.from_data:
                checks.append(self.define("bool", f"in_range(ctx, (ix){value}, {limit})"))
            parts.append(f"(ix){value}" if stride == "1" else f"(ix){value} * {stride}")
        return " + ".join(p for p in parts if p != "0") or "0", " && ".join(checks)

    def _load(self, e: Expr) -> str:
        found = self.access_of(e)
        assert not isinstance(found, str)
        offset, condition = self.offset(found)
        text = f"ld<{TAGS[found.stored]}>({found.base}, {offset})"
        if condition:
            text = f"{condition} ? {text} : ({C_TYPES[e.dtype]})0"
        return self.define(C_TYPES[e.dtype], text)

    def _text(self, e: Expr) -> str:
        args = [self._found(a) for a in e.args]
        if e.op in DIVISIONS and kind(e.dtype) in "iu" and e.dtype != "ix":
            self.line(f"if ({args[1]} == 0) raise_error(ctx, ERROR_DIVIDE, 0, 0);")
        if e.op == "cast":
            return conversion(args[0], e.args[0].dtype, e.dtype)
        if e.op == "round":
            return f"rounded<{TAGS[e.value]}>({args[0]})"
        return scalar(e.op, args, [a.dtype for a in e.args], e.dtype)


def scalar(name: str, args: list[str], dtypes: list[str], result: str) -> str:
    """A row of the scalar table as text: its CUDA column is a format string or a function of (arguments, types, result type)."""
    from gpuonnx.ir.scalar import SCALARS
    row = SCALARS[name].cuda
    if row is None:
        raise CompileError(f"the scalar function {name} has no CUDA text")
    return row.format(*args) if isinstance(row, str) else row(args, dtypes, result)


def conversion(value: str, source: str, target: str) -> str:
    """C++ conversion between compute types: real to integer saturates, to bool compares with 0."""
    if target == "bool":
        return f"({value} != 0)"
    if kind(source) == "f" and kind(target) in "iu":
        return f"saturated<{C_TYPES[target]}>({value})"
    return f"({C_TYPES[target]}){value}"


def literal(value: bool | int | float, dtype: str) -> str:
    """A C++ literal of a compute type."""
    match kind(dtype):
        case "b": return "true" if value else "false"
        case "f": return _real(float(value), dtype)
    number = int(value)
    if dtype in ("i64", INDEX):
        return "(-9223372036854775807ll - 1)" if number == -(1 << 63) else f"{number}ll" if number >= 0 else f"({number}ll)"
    if dtype == "u64":
        return f"{number}ull"
    if dtype == "u32":
        return f"{number}u"
    text = "(-2147483647 - 1)" if number == -(1 << 31) else f"({number})" if number < 0 else str(number)
    return text if dtype == "i32" else f"({C_TYPES[dtype]}){text}"


def _real(value: float, dtype: str) -> str:
    suffix, width = ("f", "F32") if dtype == "f32" else ("", "F64")
    if math.isnan(value):
        return f"NAN_{width}"
    if math.isinf(value):
        return f"INF_{width}" if value > 0 else f"(-INF_{width})"
    if dtype == "f32":
        import numpy as np
        single = np.float32(value)
        if np.isinf(single):
            return "INF_F32" if value > 0 else "(-INF_F32)"
        text = f"{float(single)!r}f" if abs(float(single)) >= 1e-37 or single == 0 else f"{float(single).hex()}f"
    else:
        text = repr(value)
    return f"({text})" if text.startswith("-") else text + ("" if suffix in text else "")
