"""One step of a search through what a decoder may say next: the scores of the words, and what becomes of the sequences.

R is the number of sequences: of batch entries, or of B batch entries with K beams each. Sequences [R, M] hold `length` (a scalar) words each, then
padding. A body of importer/generate.py calls these by their names in SEARCH.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpuonnx.ir.build import Tensor, builder, concat, dim, full, tensor_map, tensor_prefix, tensor_scatter
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import Expr, apply, cast, const, guard
from gpuonnx.ir.formula import both, either, equal, less, less_equal, maximum, power, select
from gpuonnx.ir.types import compute
from gpuonnx.ops.activation import log_softmax, softmax
from gpuonnx.ops.random import drawn_classes
from gpuonnx.ops.registry import op
from gpuonnx.ops.search import top
from gpuonnx.ops.search_timestamps import LOWEST, timed

SEARCH = "gpuonnx.search"
NONE = float("-inf")


def at_length(length: Tensor) -> Expr:
    return cast(length.at(), "ix")


@dataclass(frozen=True)
class Words:
    """What changes the scores of words: an old word's score is divided by `penalty` (multiplied where negative); words that would complete a
    run of `ngram` words for the second time, whose mask is 0, or that end a sequence before `least` words, are out; all scores are divided by
    `temperature`; `times` are the words of timed()."""

    eos: int
    ngram: int
    least: Tensor | None
    penalty: Tensor | None
    allowed: Tensor | None
    temperature: Tensor | None = None
    times: Sequence[int] = ()

    def scored(self, scores: Tensor, sequences: Tensor, length: Tensor, first: Tensor | None = None) -> Tensor:
        """scores[R, V] after all rules; `first` [B, V] is one more mask."""
        if self.penalty is not None:
            old, by = marked(scores, sequences, length, 1), self.penalty.reshape()
            scores = tensor_map(scores.shape, scores.dtype, lambda r, v: select(
                less(const(0, "i32"), old.at(r, v)), penalised(scores.at(r, v), cast(by.at(), scores.dtype)), scores.at(r, v)))
        banned = marked(scores, sequences, length, self.ngram) if self.ngram > 0 else None
        before = scores

        def element(r: Expr, v: Expr) -> Expr:
            value, low = before.at(r, v), const(LOWEST, before.dtype)
            if banned is not None:
                value = select(less(const(0, "i32"), banned.at(r, v)), low, value)
            if self.allowed is not None:
                value = select(equal(self.allowed.at(v), 0), low, value)
            if first is not None:
                value = select(equal(first.at(r // dim(beams), v), 0), low, value)
            if self.least is not None:
                early = less(at_length(length), cast(self.least.reshape().at(), "ix"))
                value = select(both(equal(v, dim(self.eos)), early), low, value)
            return value
        beams: Dim = 1 if first is None else whole_quotient(scores.shape[0], first.shape[0])
        scores = tensor_map(scores.shape, scores.dtype, element)
        if self.temperature is not None:
            scores = scores / self.temperature.reshape().cast(scores.dtype)
        return timed(scores, sequences, length, self.times) if self.times else scores


def whole_quotient(a: Dim, b: Dim) -> Dim:
    from gpuonnx.ir.dims import dmax, floordiv
    found: Dim = floordiv(a, dmax(b, 1))
    builder().require(a - found * b, "all batch entries have the same number of beams", equal=True)
    return found


def penalised(score: Expr, by: Expr) -> Expr:
    return select(less(score, 0.0), score * by, score / by)


def marked(scores: Tensor, sequences: Tensor, length: Tensor, run: int) -> Tensor:
    """i32[R, V]: 1 for the words that stand, in a sequence, behind what are its last run - 1 words."""
    words, limit = sequences.shape[1], scores.shape[1]

    def repeated(r: Expr, j: Expr) -> Expr:
        """Whether the run that ends at j begins as the one to come."""
        found = both(less(j, at_length(length)), less_equal(dim(run - 1), j))
        for k in range(1, run):
            here, there = j - k, at_length(length) - k
            inside = both(less_equal(dim(0), here), less_equal(dim(0), there))
            found = both(found, guard(inside, equal(sequences.at(r, here), sequences.at(r, there)), const(False, "bool")))
        return select(found, const(1, "i32"), const(0, "i32"))

    def place(r: Expr, j: Expr) -> list[Expr]:
        word = cast(sequences.at(r, j), "ix")
        return [r, select(both(less_equal(dim(0), word), less(word, dim(limit))), word, dim(0))]
    return tensor_scatter(full(scores.shape, 0, "i32"), (sequences.shape[0], words), place, repeated, "max")


def last_scores(logits: Tensor, vocab_size: int) -> Tensor:
    """The scores [R, V] of the last of logits[R, S, V'], in float32; V is vocab_size where it is more than 0."""
    size: Dim = vocab_size if vocab_size > 0 else logits.shape[2]
    builder().require(logits.shape[2] - size, f"vocab_size must be at most {logits.shape[2]}, the last axis of logits")
    return tensor_map((logits.shape[0], size), compute(logits.dtype), lambda r, v: logits.at(r, dim(logits.shape[1] - 1), v))


@op("Following", domain=SEARCH)
def following(positions: Tensor | None, mask: Tensor | None, columns: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What a decoder is fed for the next word, from what it is fed for this one: positions [R, 1], mask [R, T], how many columns of its buffers
    are in use [1]."""
    return (None if positions is None else positions + 1, None if mask is None else concat([mask, full((mask.shape[0], 1), 1, mask.dtype)], 1),
            None if columns is None else columns + 1)


@op("GreedyStep", domain=SEARCH)
def greedy_step(logits: Tensor, sequences: Tensor, length: Tensor, done: Tensor, min_length: Tensor | None = None,
                repetition_penalty: Tensor | None = None, vocab_mask: Tensor | None = None, prefix_vocab_mask: Tensor | None = None, *,
                eos_token_id: int, no_repeat_ngram_size: int = 0, pad_token_id: int, vocab_size: int = -1) -> tuple[Tensor, ...]:
    """The best word behind each sequence, padding behind those that have ended. Gives whether to go on, the words [R, 1], the sequences, the
    length and which sequences have ended."""
    words = Words(eos_token_id, no_repeat_ngram_size, min_length, repetition_penalty, vocab_mask)
    best = words.scored(last_scores(logits, vocab_size), sequences, length, prefix_vocab_mask).fold("argmax", 1)
    return followed(best, sequences, length, done, eos_token_id, pad_token_id)


def followed(chosen: Tensor, sequences: Tensor, length: Tensor, done: Tensor, eos: int, pad: int) -> tuple[Tensor, ...]:
    """The words chosen[R] behind the sequences that have not ended."""
    over = tensor_map(done.shape, "bool", lambda r: either(done.at(r), equal(chosen.at(r), eos)))
    ids = tensor_map((done.shape[0], 1), sequences.dtype, lambda r, _: select(over.at(r), const(pad, "i32"), cast(chosen.at(r), "i32")))
    longer = tensor_map(sequences.shape, sequences.dtype, lambda r, m: select(equal(m, at_length(length)), ids.at(r, dim(0)), sequences.at(r, m)))
    return (~over.fold("all", 0), ids, longer, length + 1, over)


@op("SampleStep", domain=SEARCH)
def sample_step(logits: Tensor, sequences: Tensor, length: Tensor, done: Tensor, min_length: Tensor | None,
                repetition_penalty: Tensor | None, vocab_mask: Tensor | None, presence_mask: Tensor | None, key: Tensor,
                prefix_vocab_mask: Tensor | None = None, *, custom: int = 0, eos_token_id: int, filter_value: float = -1e20,
                min_tokens_to_keep: int = 0, no_repeat_ngram_size: int = 0, pad_token_id: int, presence_penalty: float = 0.0,
                temperature: float = 1.0, top_p: float = 0.0, vocab_size: int = -1) -> tuple[Tensor, ...]:
    """As greedy_step, but the word is drawn by the scores, those beyond the most likely ones replaced by filter_value; gives these scores [R, V]
    too. `custom` keeps one word at least, whatever min_tokens_to_keep says. key: of the random numbers."""
    words = Words(eos_token_id, no_repeat_ngram_size, min_length, repetition_penalty, vocab_mask)
    scores = words.scored(last_scores(logits, vocab_size), sequences, length, prefix_vocab_mask)
    scores = scores / temperature if temperature > 0 else scores
    if presence_mask is not None:
        scores = scores - presence_mask.cast(scores.dtype) * presence_penalty
    builder().require(scores.shape[1] - min_tokens_to_keep - 1, "min_tokens_to_keep must be less than the words there are")
    filtered = nucleus(scores, top_p, 1 if custom else min_tokens_to_keep, filter_value)
    drawn = drawn_classes(filtered, 1, key, lambda r, _: r * dim(sequences.shape[1]) + at_length(length)).squeeze([1])
    return (*followed(drawn, sequences, length, done, eos_token_id, pad_token_id), filtered)


def nucleus(scores: Tensor, share: float, least: int, low: float) -> Tensor:
    """scores[R, V] of the most likely words that have less than `share` of the probability before them, and of the first `least`; `low` elsewhere."""
    values, places = top(scores, scores.shape[1], 1, 1, 1)
    before = tensor_prefix(softmax(values, axis=1), 1, exclusive=True)
    return tensor_scatter(full(scores.shape, low, scores.dtype), scores.shape, lambda r, k: [r, cast(places.at(r, k), "ix")], lambda r, k: select(
        either(less(before.at(r, k), share), less(k, dim(least))), values.at(r, k), const(low, scores.dtype)))


@dataclass(frozen=True)
class Kept:
    """The best finished sequences of each batch entry, best first: scores[B, K] (-inf: none yet) and words[B, K, M]."""

    scores: Tensor
    words: Tensor

    def joined(self, scores: Tensor, rows: Tensor, sequences: Tensor, length: Tensor, pad: int) -> Kept:
        """With the sequences of `rows` [B, C] that have scores[B, C] over -inf; those of equal scores come behind those that are there."""
        size = self.scores.shape[1]
        best, places = top(concat([self.scores, scores], 1), size, 1, 1, 1)

        def word(b: Expr, k: Expr, m: Expr) -> Expr:
            place = cast(places.at(b, k), "ix")
            new = place - dim(size)
            row = cast(rows.at(b, maximum(new, dim(0))), "ix")
            text = guard(less(m, at_length(length)), sequences.at(row, m), const(pad, "i32"))
            return guard(less(place, dim(size)), self.words.at(b, place, m), text)
        return Kept(best, tensor_map(self.words.shape, self.words.dtype, word))


def by_length(scores: Tensor, length: Tensor, penalty: Tensor | None) -> Tensor:
    """scores / length^penalty"""
    size = length.cast(scores.dtype)
    return scores / (size if penalty is None else power(size, penalty.reshape().cast(scores.dtype)))


@op("BeamStep", domain=SEARCH)
def beam_step(logits: Tensor, sequences: Tensor, length: Tensor, sums: Tensor, kept_scores: Tensor, kept_words: Tensor, done: Tensor,
              length_penalty: Tensor | None, min_length: Tensor | None, repetition_penalty: Tensor | None,
              vocab_mask: Tensor | None, temperature: Tensor | None, prefix_vocab_mask: Tensor | None, *presents: Tensor, early_stopping: int = 0,
              eos_token_id: int, no_repeat_ngram_size: int = 0, pad_token_id: int, times: Sequence[int] = (),
              vocab_size: int = -1) -> tuple[Tensor, ...]:
    """The K best words behind the K beams of each batch entry; where a beam ends it is kept, if it is among the K best that ended. sums[B, K]: log
    probabilities of the beams. presents have R as their second axis (the first, where rank 4) and follow the beams. Gives whether to go on, the
    words [R, 1], sequences, length, sums, kept scores and words, done[B], all scores [B, K, V], presents."""
    batch, beams = sums.shape
    last = last_scores(logits, vocab_size)
    size = last.shape[1]
    rules = Words(eos_token_id, no_repeat_ngram_size, min_length, repetition_penalty, vocab_mask, temperature, times)
    scores = rules.scored(log_softmax(last, axis=1), sequences, length, prefix_vocab_mask).reshape(batch, beams, size) + sums.unsqueeze([2])
    values, places = top(scores.reshape(batch, beams * size), beams * 2, 1, 1, 1)
    ended = tensor_map(places.shape, "bool", lambda b, c: equal(cast(places.at(b, c), "ix") % dim(size), dim(eos_token_id)))
    rows = tensor_map(places.shape, "i64", lambda b, c: cast(b * dim(beams) + cast(places.at(b, c), "ix") // dim(size), "i64"))
    before = tensor_prefix((~ended).cast("i64"), 1, exclusive=True)
    chosen = tensor_scatter(full((batch, beams * 2 + 1), 0, "i64"), places.shape, lambda b, c: [
        b, select(ended.at(b, c), dim(beams * 2), cast(before.at(b, c), "ix"))], lambda b, c: cast(c, "i64"))

    def of_chosen(t: Tensor, otherwise: Callable[[Expr], Expr]) -> Tensor:
        """t[B, 2 K] of the beams that go on, as [B, K]; otherwise(row) where there is nothing to do."""
        return tensor_map((batch, beams), t.dtype, lambda b, k: select(
            done.at(b), otherwise(b * dim(beams) + k), t.at(b, cast(chosen.at(b, k), "ix"))))
    words = tensor_map(places.shape, "i32", lambda b, c: cast(cast(places.at(b, c), "ix") % dim(size), "i32"))
    ids = of_chosen(words, lambda _: const(pad_token_id, "i32")).reshape(batch * beams, 1)
    origin = of_chosen(rows, lambda r: cast(r, "i64")).reshape(batch * beams)
    sums = of_chosen(values, lambda _: const(0.0, "f32"))
    finished = by_length(values, length, length_penalty).slice(1, 0, beams)
    finished = tensor_map(finished.shape, "f32", lambda b, c: select(
        both(ended.at(b, c), apply("not", done.at(b))), finished.at(b, c), const(NONE, "f32")))
    kept = Kept(kept_scores, kept_words).joined(finished, rows, sequences, length, pad_token_id)
    hope = by_length(values, length, length_penalty)
    worst = dim(beams - 1)

    def over(b: Expr) -> Expr:
        complete = less(const(NONE, "f32"), kept.scores.at(b, worst))
        stuck = const(True, "bool") if early_stopping else less_equal(hope.at(b, dim(0)), kept.scores.at(b, worst))
        return either(done.at(b), both(complete, stuck))
    stopped = tensor_map(done.shape, "bool", over)
    longer = tensor_map(sequences.shape, sequences.dtype, lambda r, m: select(
        equal(m, at_length(length)), ids.at(r, dim(0)), sequences.at(cast(origin.at(r), "ix"), m)))
    moved = [of_rows(t, origin) for t in presents]
    return (~stopped.fold("all", 0), ids, longer, length + 1, sums, kept.scores, kept.words, stopped,
            scores, *moved)


def of_rows(t: Tensor, rows: Tensor) -> Tensor:
    """t[2, R, ...] or, of rank 4, t[R, ...] with row rows[r] in place of r."""
    axis = 0 if t.rank == 4 else 1
    return tensor_map(t.shape, t.dtype, lambda *i: t.at(*i[:axis], cast(rows.at(i[axis]), "ix"), *i[axis + 1:]))


def best_sequences(sequences: Tensor, length: Tensor, sums: Tensor, kept: Kept, done: Tensor, penalty: Tensor | None, pad: int,
                   count: Dim) -> tuple[Tensor, Tensor]:
    """The `count` best of each batch entry, [B, count, M], with their scores: what was kept and, where it is not done, its beams."""
    builder().require(sums.shape[1] - count, "num_return_sequences must be at most num_beams")
    final = by_length(sums, length, penalty)
    scores = tensor_map(sums.shape, "f32", lambda b, k: select(done.at(b), const(NONE, "f32"), final.at(b, k)))
    rows = tensor_map(sums.shape, "i64", lambda b, k: cast(b * dim(sums.shape[1]) + k, "i64"))
    last = kept.joined(scores, rows, sequences, length, pad)
    return last.words.slice(1, 0, count), last.scores.slice(1, 0, count)

