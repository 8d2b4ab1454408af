"""Native control flow: steps that write addresses, count the turns of a Loop and move what no kernel writes.

All have the signature of a kernel, `(ctx, args, task)`; `args` are int64 words, addresses among them."""
from __future__ import annotations

from typing import Any

from gpuonnx.kernels.contract import CTX_CODE, REFUSED

TURN, LIMIT, MORE, DONE, CONDITION, TRIP, GOING, START, MOST, CARRIED, SCANS, LINKS = range(12)
HEAD = 12
NAMES = ("link", "enter", "turn", "copy", "refuse")


def block_words(carried: int, scans: int, links: int) -> int:
    """Words of a Loop's block; see `parts`."""
    return HEAD + 5 * carried + 3 * scans + 3 * links


def parts(carried: int, scans: int) -> tuple[int, int, int, int]:
    """Where a Loop's block has its parts: bases [in and out of each carried value, then the row of each scan output]; for each carried
    value the address it comes from and those of its two buffers; for each scan output where it starts and the bytes of a row; links
    [address of a word, number of a base, bytes more]."""
    first = HEAD + 2 * carried + scans
    return HEAD, first, first + 3 * carried, first + 3 * carried + 2 * scans


def define(module: Any) -> dict[str, Any]:
    return {"link": _link(module), "enter": _enter(module), "turn": _turn(module), "copy": _copy(module), "refuse": _refuse(module)}


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


def _refuse(module: Any) -> Any:
    """What cannot go on natively: the run stops here."""
    b = _flow(module, "refuse")
    b.put(REFUSED, b.args[0], CTX_CODE)
    b.ret_void()
    return b.function
