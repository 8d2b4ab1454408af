"""Text: everything runs in Python."""
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Spec, Tensor, builder, host
from gpuonnx.ops.registry import op

WHY = "text is handled in Python"


@op("StringConcat", since=20)
def string_concat(x: Tensor, y: Tensor) -> Any:
    return host("string_concat", x, y, out=Spec("str", builder().broadcast(x.shape, y.shape)), why=WHY)


@op("StringSplit", since=20)
def string_split(x: Tensor, *, delimiter: str | None = None, maxsplit: int | None = None) -> Any:
    """The pieces on a new last axis, padded with empty strings; how many there are."""
    pieces: Any = Spec("str", (*x.shape, None))  # type: ignore[arg-type]
    return host("string_split", x, out=[pieces, Spec("i64", x.shape)], why=WHY, delimiter=delimiter or None, maxsplit=maxsplit)


@op("RegexFullMatch", since=20)
def regex_full_match(x: Tensor, *, pattern: str | None = None) -> Any:
    if pattern is None:
        raise ModelError("RegexFullMatch needs a pattern")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ModelError(f"{builder().origin}: {pattern!r} is no regular expression: {error}") from error
    return host("regex_full_match", x, out=Spec("bool", x.shape), why=WHY, pattern=pattern)


@op("StringNormalizer", since=10)
def string_normalizer(x: Tensor, *, case_change_action: str = "NONE", is_case_sensitive: int = 0, locale: str | None = None,
                      stopwords: Sequence[str] | None = None) -> Any:
    """[C] or [1, C] without stop words, in one case; one empty string where nothing is left."""
    if case_change_action not in ("NONE", "LOWER", "UPPER"):
        raise ModelError(f"case_change_action is NONE, LOWER or UPPER, here {case_change_action!r}")
    out: Any = Spec("str", (*x.shape[:-1], None))  # type: ignore[arg-type]
    return host("string_normalizer", x, out=out, why=WHY, case=case_change_action, sensitive=bool(is_case_sensitive),
                stopwords=tuple(stopwords or ()))


@op("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(x: Tensor, *, max_gram_length: int, max_skip_count: int, min_gram_length: int, mode: str,
                      ngram_counts: list[int], ngram_indexes: list[int], pool_int64s: list[int] | None = None,
                      pool_strings: list[str] | None = None, weights: list[float] | None = None) -> Any:
    """Counts of the pool's n-grams (with up to max_skip_count items skipped between theirs), raw, cut to 1, or weighted."""
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ModelError(f"the mode is TF, IDF or TFIDF, here {mode!r}")
    pool = tuple(pool_strings or pool_int64s or ())
    return host("tf_idf", x, out=Spec("f32", (*x.shape[:-1], max(ngram_indexes) + 1)), why="n-grams are looked up in Python",
                lengths=(min_gram_length, max_gram_length), skips=max_skip_count, mode=mode, starts=tuple(ngram_counts),
                places=tuple(ngram_indexes), pool=pool, weights=tuple(weights or ()))
