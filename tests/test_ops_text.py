"""Text."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest
from op_runner import cases_of, check_case, compare, run_node

import gpuonnx


def words(*texts: str) -> np.ndarray:
    return np.array(texts, object)


@pytest.mark.parametrize("case", cases_of("text"), ids=lambda c: c.name)
def test_official(case: Any) -> None:
    check_case(case, free=False)
    check_case(case, free=True)


def test_concatenation_broadcasts() -> None:
    x, y = words("a", "b").reshape(2, 1), words("x", "y", "z")
    compare(run_node("StringConcat", [x, y], 20)[0], np.array([["ax", "ay", "az"], ["bx", "by", "bz"]], object))


def test_split_pads_and_counts() -> None:
    pieces, counts = run_node("StringSplit", [words("a,b,,c", "", "x")], 20, outputs=2, delimiter=",")
    compare(pieces, np.array([["a", "b", "", "c"], ["", "", "", ""], ["x", "", "", ""]], object))
    compare(counts, np.int64([4, 1, 1]))
    pieces, counts = run_node("StringSplit", [words("  a  b ")], 20, outputs=2, maxsplit=1)
    assert pieces.tolist() == [["a", "b "]] and counts.tolist() == [2]


def test_stop_words_with_and_without_case() -> None:
    x = words("Mon", "tue", "MON")
    assert run_node("StringNormalizer", [x], 10, stopwords=["mon"])[0].tolist() == ["tue"]
    assert run_node("StringNormalizer", [x], 10, stopwords=["Mon"], is_case_sensitive=1, case_change_action="UPPER")[0].tolist() == ["TUE", "MON"]
    assert run_node("StringNormalizer", [x[:1].reshape(1, 1)], 10, stopwords=["MON"])[0].tolist() == [[""]]


def test_text_moves_compares_and_is_chosen() -> None:
    x, y = words("a", "b", "c"), words("a", "x", "c")
    compare(run_node("Equal", [x, y], 19)[0], np.array([True, False, True]))
    compare(run_node("Where", [np.array([True, False, True]), x, y], 16)[0], words("a", "x", "c"))
    compare(run_node("Gather", [x, np.int64([2, 0])], 13)[0], words("c", "a"))
    compare(run_node("OneHot", [np.int64([1]), np.int64(2), words("off", "on")], 11)[0], words("off", "on").reshape(1, 2))


def test_n_grams_of_integers_with_skips() -> None:
    counts = run_node("TfIdfVectorizer", [np.int32([[1, 2, 1, 3], [3, 3, 3, 3]])], 9, mode="TFIDF", min_gram_length=1, max_gram_length=2,
                      max_skip_count=1, ngram_counts=[0, 2], ngram_indexes=[0, 1, 2, 3], pool_int64s=[1, 3, 1, 1, 2, 3],
                      weights=[1.0, 2.0, 3.0, 4.0])[0]
    compare(counts, np.float32([[2, 2, 3, 4], [0, 8, 0, 0]]))


def test_a_column_of_text_is_read_in_place() -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 20]>
    g (string[N, 2] x, string[N, 1] more) => (string[N, 1] y, string[2, 1] z) {
      one = Constant <value: tensor = int64[1] {1}> ()
      two = Constant <value: tensor = int64[1] {2}> ()
      column = Slice (x, one, two, one)
      y = StringConcat (column, more)
      row = Slice (x, one, two)
      turned = Transpose <perm: ints = [1, 0]> (row)
      z = StringConcat (turned, turned)
    }""")
    x = np.array([["a", "b"], ["c", "d"], ["e", "f"]], object)
    y, z = gpuonnx.run(model, [x, np.array([["1"], ["2"], ["3"]], object)]).values()
    assert y.tolist() == [["b1"], ["d2"], ["f3"]] and z.tolist() == [["cc"], ["dd"]]
