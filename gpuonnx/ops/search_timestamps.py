"""What Whisper may say next where it says times: the rules of its own decoder (Radford et al., 2022)."""
from __future__ import annotations

from collections.abc import Sequence

from gpuonnx.ir.build import Tensor, dim, tensor_map, tensor_reduce
from gpuonnx.ir.expr import Expr, apply, cast, const, guard
from gpuonnx.ir.formula import both, either, equal, exp, less, less_equal, log, maximum, select

LOWEST = -3.4028234663852886e38
FIRST_AT_MOST = 50
"""How many steps of time the first time may be behind the beginning."""


def timed(scores: Tensor, sequences: Tensor, length: Tensor, words: Sequence[int]) -> Tensor:
    """scores[R, V] behind sequences[R, M] of `length` words. Times come in pairs and never go back; all words are out where a time is likelier.

    words: the first that is a time, the end, the start, translate, transcribe, the start of a language model, and 'no times'."""
    begin, end, start, translate, transcribe, model, no_times = words
    rows, shape, whole = scores.shape[0], scores.shape, sequences.shape[1]
    zero, count = const(False, "bool"), cast(length.at(), "ix")

    def is_time(r: Expr, j: Expr) -> Expr:
        return guard(both(less_equal(dim(0), j), less(j, count)), less_equal(const(begin, "i32"), sequences.at(r, j)), zero)
    first = tensor_reduce((rows, whole), [1], "min", "i64", lambda r, j: cast(select(is_time(r, j), j, count), "i64"))
    latest = tensor_reduce((rows, whole), [1], "max", "i64", lambda r, j: cast(select(is_time(r, j), j, dim(-1)), "i64"))

    def begun(r: Expr) -> Expr:
        return less(cast(first.at(r), "ix") + 1, count)

    def alone(r: Expr) -> Expr:
        """Whether the last word is a time that is no pair's second, nor the first of all."""
        return both(is_time(r, count - 1), both(begun(r), apply("not", is_time(r, count - 2))))

    def earlier(r: Expr, v: Expr) -> Expr:
        place = cast(latest.at(r), "ix")
        word = guard(less_equal(dim(0), place), cast(sequences.at(r, place), "ix"), dim(begin - 1))
        return less(v, select(alone(r), word, word + 1))

    def out(r: Expr, v: Expr) -> Expr:
        time = less_equal(dim(begin), v)
        rules = [equal(v, dim(no_times)), equal(v, dim(model)), both(time, earlier(r, v)), both(alone(r), less(v, dim(end))),
                 both(time, both(is_time(r, count - 1), apply("not", alone(r)))), both(apply("not", begun(r)), less(dim(begin + FIRST_AT_MOST), v)),
                 *(both(begun(r), equal(v, dim(k))) for k in (start, translate, transcribe))]
        found = rules[0]
        for rule in rules[1:]:
            found = either(found, rule)
        return found
    left = tensor_map(shape, scores.dtype, lambda r, v: select(out(r, v), const(LOWEST, scores.dtype), scores.at(r, v)))

    def best(times: bool) -> Tensor:
        return tensor_reduce(shape, [1], "max", scores.dtype, lambda r, v: select(
            equal(less(v, dim(begin)), const(not times, "bool")), left.at(r, v), const(LOWEST, scores.dtype)))
    text, top = best(False), best(True)
    mass = tensor_reduce(shape, [1], "sum", scores.dtype, lambda r, v: select(
        both(less_equal(dim(begin), v), less(const(LOWEST, scores.dtype), left.at(r, v))), exp(left.at(r, v) - top.at(r)), const(0.0, scores.dtype)))

    def element(r: Expr, v: Expr) -> Expr:
        likelier = both(less(const(0.0, scores.dtype), mass.at(r)),
                        less(text.at(r), log(maximum(mass.at(r), const(1.0, scores.dtype))) + top.at(r)))
        return select(both(likelier, less(v, dim(begin))), const(LOWEST, scores.dtype), left.at(r, v))
    return tensor_map(shape, scores.dtype, element)
