"""Maps, categories, and tensors made from them: everything runs in Python."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Spec, Tensor, builder, host
from gpuonnx.ops.registry import op

DOMAIN = "ai.onnx.ml"
WHY = "maps are Python dictionaries"
TARGETS = {"TO_FLOAT": "f32", "TO_STRING": "str", "TO_INT64": "i64"}
Ints = Sequence[int] | None
Texts = Sequence[str] | None


def unknown(*sizes: Any) -> Any:
    return sizes


@op("ZipMap", since=1, domain=DOMAIN)
def zip_map(X: Tensor, *, classlabels_int64s: Ints = None, classlabels_strings: Texts = None) -> Any:
    """A map from class label to score for every row."""
    labels = tuple(classlabels_strings or classlabels_int64s or ())
    if not labels:
        raise ModelError(f"{builder().origin}: ZipMap needs class labels")
    builder().meet(X.shape[-1], len(labels))
    key = "str" if classlabels_strings else "i64"
    return host("zip_map", X, out=Spec(f"seq(map({key},f32))", None), why=WHY, labels=labels)


@op("CastMap", since=1, domain=DOMAIN)
def cast_map(X: Tensor, *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> Any:
    """The values of a map with integer keys as one row, by ascending key; SPARSE: each at its key, max_map columns."""
    if cast_to not in TARGETS or map_form not in ("DENSE", "SPARSE"):
        raise ModelError(f"{builder().origin}: cast_to {cast_to!r} or map_form {map_form!r} is not known")
    shape = unknown(1, max_map if map_form == "SPARSE" else None)
    return host("cast_map", X, out=Spec(TARGETS[cast_to], shape), why=WHY, to=TARGETS[cast_to], columns=max_map if map_form == "SPARSE" else None)


@op("DictVectorizer", since=1, domain=DOMAIN)
def dict_vectorizer(X: Tensor, *, int64_vocabulary: Ints = None, string_vocabulary: Texts = None) -> Any:
    """The values of a map in the order of a vocabulary, 0 where it has none."""
    vocabulary = tuple(string_vocabulary or int64_vocabulary or ())
    value = X.dtype.rstrip(")").split(",")[-1]
    return host("dict_vectorizer", X, out=Spec(value, (1, len(vocabulary))), why=WHY, vocabulary=vocabulary, dtype=value)


@op("CategoryMapper", since=1, domain=DOMAIN)
def category_mapper(X: Tensor, *, cats_int64s: Ints = None, cats_strings: Texts = None, default_int64: int = -1,
                    default_string: str = "_Unused") -> Any:
    """Strings to the integers beside them, or integers to strings; what is unknown becomes the default."""
    texts, numbers = tuple(cats_strings or ()), tuple(cats_int64s or ())
    if len(texts) != len(numbers):
        raise ModelError(f"{builder().origin}: {len(texts)} strings for {len(numbers)} integers")
    to_number = X.dtype == "str"
    dtype, keys, values = ("i64", texts, numbers) if to_number else ("str", numbers, texts)
    return host("label_encoder", X, out=Spec(dtype, X.shape), why="text is handled in Python", keys=keys, values=values,
                default=default_int64 if to_number else default_string, dtype=dtype)
