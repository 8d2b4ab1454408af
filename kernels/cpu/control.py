"""Native control flow: steps that write addresses, count the turns of a Loop and move what no kernel writes.

All have the signature of a kernel, `(ctx, args, task)`; `args` are int64 words, addresses among them."""
from __future__ import annotations

from typing import Any

from gpuonnx.kernels.contract import CTX_CODE, REFUSED

TURN, LIMIT, MORE, DONE, CONDITION, TRIP, GOING, START, MOST, CARRIED, SCANS, LINKS = range(12)
HEAD = 12
SYMBOLS, OPS, REGISTERS, CHECKS, TASKS, TABLE, WORDS, VALID, BIND_WORDS = 0, 2, 4, 5, 7, 9, 10, 15, 16
NOT_NEGATIVE, ZERO, EQUAL, AT_MOST = range(4)
SIZE, READS = 0, ("", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "f32")
NAMES = ("link", "enter", "turn", "copy", "move", "bind", "refuse")


def block_words(carried: int, scans: int, links: int) -> int:
    """Words of a Loop's block; see `parts`."""
    return HEAD + 5 * carried + 3 * scans + 3 * links


def parts(carried: int, scans: int) -> tuple[int, int, int, int]:
    """Where a Loop's block has its parts: bases [in and out of each carried value, then the row of each scan output]; for each carried
    value the address it comes from and those of its two buffers; for each scan output where it starts and the bytes of a row; links
    [address of a word, number of a base, bytes more]."""
    first = HEAD + 2 * carried + scans
    return HEAD, first, first + 3 * carried, first + 3 * carried + 2 * scans


def define(module: Any, functions: dict[str, Any]) -> dict[str, Any]:
    return {"link": _link(module), "enter": _enter(module), "turn": _turn(module), "copy": _copy(module), "move": _move(module),
            "bind": _bind(module, functions["run_sizes"], functions["fill"]), "refuse": _refuse(module)}


def _flow(module: Any, name: str) -> Any:
    from gpuonnx.kernels.cpu.flow import I64, PTR, Flow
    return Flow.define(module, f"step_{name}", [PTR, PTR, I64])


def _apply(b: Any, bases: Any, links: Any, n: Any) -> None:
    with b.count(0, n) as k:
        row = b.at(links, b.product(k, 3))
        b.put(b.sum(b.get(bases, b.get(row, 1)), b.get(row, 2)), b.pointer(row, 0), 0)


def _link(module: Any) -> Any:
    """args: [number of links, address of the bases, links...]: each word becomes its base and the bytes more."""
    b = _flow(module, "link")
    args = b.args[1]
    _apply(b, b.pointer(args, 1), b.at(args, 2), b.get(args, 0))
    b.ret_void()
    return b.function


def _sections(b: Any, args: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Numbers of carried values and scan outputs, then the parts of a Loop's block."""
    carried, scans = b.get(args, CARRIED), b.get(args, SCANS)
    bases = b.at(args, HEAD)
    sources = b.at(bases, b.sum(b.product(carried, 2), scans))
    rows = b.at(sources, b.product(carried, 3))
    return carried, scans, bases, sources, rows, b.at(rows, b.product(scans, 2))


def _goes_on(b: Any, args: Any, byte: Any, turn: Any) -> None:
    from gpuonnx.kernels.cpu.flow import I8, I64
    more = b.and_(b.compare("<", turn, b.get(args, LIMIT)), b.icmp_signed("!=", b.get(byte, 0, I8), I8(0)))
    b.put(b.zext(more, I64), args, MORE)
    b.put(b.zext(b.not_(more), I64), args, DONE)


def _enter(module: Any) -> Any:
    """The first turn of a Loop, of its block: carried values are read from where they come from."""
    b = _flow(module, "enter")
    args = b.args[1]
    carried, scans, bases, sources, rows, links = _sections(b, args)
    start = b.get(args, START)
    b.put(start, args, TURN)
    b.put(b.get(b.pointer(args, TRIP), 0), args, LIMIT)
    with b.count(0, carried) as k:
        source = b.at(sources, b.product(k, 3))
        pair = b.at(bases, b.product(k, 2))
        b.put(b.get(source, 0), pair, 0)
        b.put(b.get(source, 1), pair, 1)
    with b.count(0, scans) as s:
        b.put(b.get(rows, b.product(s, 2)), bases, b.sum(b.product(carried, 2), s))
    _apply(b, bases, links, b.get(args, LINKS))
    _goes_on(b, args, b.pointer(args, GOING), start)
    b.ret_void()
    return b.function


def _turn(module: Any) -> Any:
    """The end of a turn: what was made is carried on, the other buffer is free, the next row of each scan output."""
    b = _flow(module, "turn")
    ctx, args = b.args[:2]
    carried, scans, bases, sources, rows, links = _sections(b, args)
    turn = b.sum(b.get(args, TURN), 1)
    b.put(turn, args, TURN)
    with b.count(0, carried) as k:
        source = b.at(sources, b.product(k, 3))
        pair = b.at(bases, b.product(k, 2))
        made = b.get(pair, 1)
        b.put(made, pair, 0)
        first = b.get(source, 1)
        b.put(b.select(b.compare("==", made, first), b.get(source, 2), first), pair, 1)
    with b.count(0, scans) as s:
        place = b.sum(b.product(carried, 2), s)
        b.put(b.sum(b.get(bases, place), b.get(rows, b.sum(b.product(s, 2), 1))), bases, place)
    _apply(b, bases, links, b.get(args, LINKS))
    _goes_on(b, args, b.at(args, CONDITION), turn)
    with b.when(b.and_(b.compare("!=", b.get(args, MORE), 0), b.compare("==", turn, b.get(args, MOST)))):
        b.put(REFUSED, ctx, CTX_CODE)
    b.ret_void()
    return b.function


def _copy(module: Any) -> Any:
    """args: [target, source, bytes of a run, axes, then size, target stride and source stride in bytes of each axis, outermost first]."""
    from gpuonnx.kernels.cpu.flow import I1, I8, I64, PTR, VOID
    b = _flow(module, "copy")
    args = b.args[1]
    move = b.external("llvm.memmove.p0.p0.i64", VOID, [PTR, PTR, I64, I1])
    target, source, size, axes = b.pointer(args, 0), b.pointer(args, 1), b.get(args, 2), b.get(args, 3)
    runs, to, of, left = (b.variable(I64, x) for x in (1, 0, 0, 0))
    with b.count(0, axes) as k:
        runs.set(b.product(runs.get(), b.get(args, b.sum(b.product(k, 3), 4))))
    with b.count(0, runs.get()) as run:
        to.set(0), of.set(0), left.set(run)
        with b.count(0, axes) as k:
            axis = b.at(args, b.sum(b.product(b.sub(b.sub(axes, k), b.number(1)), 3), 4))
            at = b.srem(left.get(), b.get(axis, 0))
            left.set(b.sdiv(left.get(), b.get(axis, 0)))
            to.set(b.sum(to.get(), b.product(at, b.get(axis, 1))))
            of.set(b.sum(of.get(), b.product(at, b.get(axis, 2))))
        b.call(move, [b.at(target, to.get(), I8), b.at(source, of.get(), I8), size, I1(0)])
    b.ret_void()
    return b.function


def _move(module: Any) -> Any:
    """args: [n, then addresses of a word to write and of two whose sum it becomes]."""
    b = _flow(module, "move")
    args = b.args[1]
    with b.count(0, b.get(args, 0)) as k:
        row = b.at(args, b.sum(b.product(k, 3), 1))
        b.put(b.sum(b.get(b.pointer(row, 1), 0), b.get(b.pointer(row, 2), 0)), b.pointer(row, 0), 0)
    b.ret_void()
    return b.function


def _read(b: Any, row: Any) -> Any:
    """The value of a symbol [register, address, offset, kind]: a size in the word at `address`, or an element of the tensor whose address
    stands there."""
    from gpuonnx.kernels.cpu.flow import I8, I64
    kind, value = b.get(row, 3), b.variable(I64, 0)
    with b.if_else(b.compare("==", kind, SIZE)) as (size, element):
        with size:
            value.set(b.get(b.pointer(row, 1), 0))
        with element:
            place = b.at(b.pointer(b.pointer(row, 1), 0), b.get(row, 2), I8)
            for number, name in enumerate(READS[1:], 1):
                bits = _int_type(int(name[1:]))
                with b.when(b.compare("==", kind, number)):
                    loaded = b.get(place, 0, bits)
                    value.set(loaded if bits is I64 else b.sext(loaded, I64) if name[0] == "i" else b.zext(loaded, I64))
    return value.get()


def _int_type(bits: int) -> Any:
    import llvmlite.ir as ir

    from gpuonnx.kernels.cpu.flow import I64
    return I64 if bits == 64 else ir.IntType(bits)


def _bind(module: Any, run_sizes: Any, fill: Any) -> Any:
    """Sizes that change from turn to turn. args, by the numbers above: symbols [n, rows]; ops [address, n]; registers; checks [n, rows of
    register, what, value]; tasks [n, rows of row in the table, register], the table; words [n, words, bases, base numbers, register
    numbers]; whether the registers hold what follows from the symbols. A check that fails refuses."""
    b = _flow(module, "bind")
    ctx, args = b.args[:2]
    registers = b.pointer(args, REGISTERS)

    def give_up() -> None:
        b.put(REFUSED, ctx, CTX_CODE)
        b.ret_void()
    with b.count(0, b.get(args, SYMBOLS)) as k:
        row = b.at(b.pointer(args, SYMBOLS + 1), b.product(k, 4))
        value = _read(b, row)
        with b.when(b.compare("!=", b.get(registers, b.get(row, 0)), value)):
            b.put(value, registers, b.get(row, 0))
            b.put(0, args, VALID)
    with b.when(b.compare("==", b.get(args, VALID), 0)):
        bad = b.call(run_sizes, [b.pointer(args, OPS), b.get(args, OPS + 1), registers])
        with b.when(b.compare(">=", bad, 0)):
            give_up()
        with b.count(0, b.get(args, CHECKS)) as k:
            row = b.at(b.pointer(args, CHECKS + 1), b.product(k, 3))
            value, what, other = b.get(registers, b.get(row, 0)), b.get(row, 1), b.get(row, 2)
            wrong = [b.compare("<", value, 0), b.compare("!=", value, 0), b.compare("!=", value, other), b.compare(">", value, other)]
            bad = b.select(b.compare("==", what, ZERO), wrong[1], wrong[0])
            bad = b.select(b.compare("==", what, EQUAL), wrong[2], b.select(b.compare("==", what, AT_MOST), wrong[3], bad))
            with b.when(bad):
                give_up()
        with b.count(0, b.get(args, TASKS)) as k:
            row = b.at(b.pointer(args, TASKS + 1), b.product(k, 2))
            b.put(b.get(registers, b.get(row, 1)), b.pointer(args, TABLE), b.sum(b.product(b.get(row, 0), 4), 2))
        b.put(1, args, VALID)
    words, bases, base_numbers, register_numbers = (b.pointer(args, WORDS + k) for k in range(1, 5))
    b.call(fill, [words, b.number(1), bases, registers, base_numbers, register_numbers, b.get(args, WORDS)])
    b.ret_void()
    return b.function


def _refuse(module: Any) -> Any:
    """What cannot go on natively: the run stops here."""
    b = _flow(module, "refuse")
    b.put(REFUSED, b.args[0], CTX_CODE)
    b.ret_void()
    return b.function
