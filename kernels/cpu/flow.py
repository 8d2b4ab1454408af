"""llvmlite's IRBuilder with Python's control flow: for the native parts that are loops and words, not vectors."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
F32, PTR, VOID = ir.FloatType(), ir.PointerType(), ir.VoidType()
KERNEL = ir.FunctionType(VOID, [PTR, PTR, I64])
RUN = ir.FunctionType(VOID, [PTR, PTR, PTR, PTR, I64])


class Flow(ir.IRBuilder):  # type: ignore[misc]
    """One function under construction. Python ints among operands become i64 constants."""

    @classmethod
    def define(cls, module: Any, name: str, kinds: list[Any], result: Any = VOID) -> Flow:
        function = ir.Function(module, ir.FunctionType(result, kinds), name)
        function.attributes.add("nounwind")
        return cls(function.append_basic_block("entry"))

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self.function.args)

    def number(self, value: Any) -> Any:
        return I64(value) if isinstance(value, int) else value

    def sum(self, *values: Any) -> Any:
        total, *rest = map(self.number, values)
        for value in rest:
            total = self.add(total, value)
        return total

    def product(self, a: Any, b: Any) -> Any:
        return self.mul(self.number(a), self.number(b))

    def compare(self, operator: str, a: Any, b: Any) -> Any:
        return self.icmp_signed(operator, self.number(a), self.number(b))

    def at(self, base: Any, index: Any, kind: Any = I64) -> Any:
        """Address of element `index`."""
        return self.gep(base, [self.number(index)], source_etype=kind)

    def get(self, base: Any, index: Any, kind: Any = I64) -> Any:
        return self.load(self.at(base, index, kind), typ=kind)

    def put(self, value: Any, base: Any, index: Any, kind: Any = I64) -> None:
        self.store(self.number(value), self.at(base, index, kind))

    def pointer(self, base: Any, index: Any) -> Any:
        """The address kept in word `index`."""
        return self.get(base, index, PTR)

    def peek(self, base: Any, index: Any, kind: Any = I64) -> Any:
        """An atomic load with acquire order."""
        return self.load_atomic(self.at(base, index), "acquire", kind.width // 8 if kind is not PTR else 8, typ=kind)

    def poke(self, value: Any, base: Any, index: Any) -> None:
        """An atomic store, sequentially consistent."""
        self._insert(ir.instructions.StoreAtomicInstr(self.block, self.number(value), self.at(base, index), "seq_cst", 8))

    def publish(self, value: Any, base: Any, index: Any) -> None:
        """An atomic store with release order: what was written before is seen before."""
        self._insert(ir.instructions.StoreAtomicInstr(self.block, self.number(value), self.at(base, index), "release", 8))

    def bump(self, base: Any, index: Any, by: int = 1, kind: Any = I64) -> Any:
        """Add atomically; the old value."""
        return self.atomic_rmw("add", self.at(base, index), kind(by), "seq_cst")

    def swap_if(self, base: Any, index: Any, old: Any, new: Any) -> Any:
        """Compare and swap; whether it did."""
        pair = self.cmpxchg(self.at(base, index), self.number(old), self.number(new), "seq_cst", "seq_cst")
        return self.extract_value(pair, 1)

    def variable(self, kind: Any, value: Any = None) -> Variable:
        with self.goto_entry_block():
            place = self.alloca(kind)
        out = Variable(self, place, kind)
        if value is not None:
            out.set(value)
        return out

    @contextmanager
    def loop(self, condition: Callable[[], Any] | None = None) -> Iterator[Any]:
        """While `condition()`; yields the block to branch to for a break."""
        head, body, after = (self.append_basic_block(n) for n in ("head", "body", "after"))
        self.branch(head)
        self.position_at_end(head)
        if condition is None:
            self.branch(body)
        else:
            self.cbranch(condition(), body, after)
        self.position_at_end(body)
        yield after
        if not self.block.is_terminated:
            self.branch(head)
        self.position_at_end(after)

    @contextmanager
    def count(self, first: Any, last: Any) -> Iterator[Any]:
        """For each i64 from `first` to below `last`."""
        i = self.variable(I64, first)
        with self.loop(lambda: self.compare("<", i.get(), last)):
            yield i.get()
            i.set(self.sum(i.get(), 1))

    def leave(self, after: Any, condition: Any) -> None:
        """Break out of a loop where `condition`."""
        stay = self.append_basic_block("stay")
        self.cbranch(condition, after, stay)
        self.position_at_end(stay)

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        with self.if_then(condition):
            yield

    def external(self, name: str, result: Any, kinds: list[Any], variadic: bool = False) -> Any:
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, kinds, var_arg=variadic), name)

    def invoke(self, address: Any, ctx: Any, args: Any, task: Any) -> None:
        """Call through the address of a kernel."""
        self.call(Callee(address), [ctx, args, self.number(task)])


class Variable:
    """A local; the passes turn it into a register."""

    def __init__(self, flow: Flow, place: Any, kind: Any) -> None:
        self.flow, self.place, self.kind = flow, place, kind

    def get(self) -> Any:
        return self.flow.load(self.place, typ=self.kind)

    def set(self, value: Any) -> None:
        self.flow.store(self.flow.number(value), self.place)


class Callee:
    """The address of a kernel, or of a function of another kind, as llvmlite wants the callee of a call."""

    def __init__(self, address: Any, kind: Any = KERNEL) -> None:
        self.type, self.get_reference, self.function_type = address.type, address.get_reference, kind
