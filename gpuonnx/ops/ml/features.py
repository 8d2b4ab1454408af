"""Scaling, imputing and picking features."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Expr, Tensor, builder, cast, concat, const, constant, dim, tensor_map, tensor_reduce
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import guard
from gpuonnx.ir.formula import absolute, equal, greater, isnan, less, select, sqrt
from gpuonnx.ops.registry import op

DOMAIN = "ai.onnx.ml"
Floats = Sequence[float] | None


def matrix(x: Tensor) -> Tensor:
    """[N, C]; a vector is one row."""
    return x.unsqueeze([0]) if x.rank == 1 else x


@op("Scaler", since=1, domain=DOMAIN)
def scaler(X: Tensor, *, offset: Floats = None, scale: Floats = None) -> Tensor:
    x = X.cast("f32")
    x = x - constant(np.array(offset, np.float32)) if offset else x
    return x * constant(np.array(scale, np.float32)) if scale else x


@op("Normalizer", since=1, domain=DOMAIN)
def normalizer(X: Tensor, *, norm: str = "MAX") -> Tensor:
    """Rows over their largest element, sum of magnitudes or length; a row of zeros stays."""
    x = X.cast("f32")
    sizes = {"MAX": lambda: x.max([-1], keepdims=True), "L1": lambda: absolute(x).sum([-1], keepdims=True),
             "L2": lambda: sqrt((x * x).sum([-1], keepdims=True))}
    if norm not in sizes:
        raise ModelError(f"{builder().origin}: norm {norm!r} is none of {', '.join(sizes)}")
    size = sizes[norm]()
    return x / select(equal(size, 0.0), tensor_map(size.shape, "f32", lambda *_: const(1.0)), size)


@op("Binarizer", since=1, domain=DOMAIN)
def binarizer(X: Tensor, *, threshold: float = 0.0) -> Tensor:
    return tensor_map(X.shape, X.dtype, lambda *i: cast(greater(X.at(*i), threshold), X.dtype))


@op("Imputer", since=1, domain=DOMAIN)
def imputer(X: Tensor, *, imputed_value_floats: Floats = None, imputed_value_int64s: Sequence[int] | None = None,
            replaced_value_float: float = 0.0, replaced_value_int64: int = 0) -> Tensor:
    """Elements equal to the replaced value (NaN may be one) become the imputed one of their column."""
    floats = X.kind == "f"
    values = constant(np.array(imputed_value_floats if floats else imputed_value_int64s), X.dtype)
    wanted = replaced_value_float if floats else replaced_value_int64
    if values.shape[0] != 1:
        builder().meet(values.shape[0], X.shape[-1])

    def element(*i: Expr) -> Expr:
        value = X.at(*i)
        bad = isnan(value) if isinstance(wanted, float) and wanted != wanted else equal(value, wanted)
        return select(bad, values.at(i[-1] if values.shape[0] != 1 else dim(0)), value)
    return tensor_map(X.shape, X.dtype, element)


def of_width(x: Tensor, width: int) -> Tensor:
    """The columns cut, or filled with zeros, to `width`."""
    have: Dim = x.shape[1]
    if have == width:
        return x
    return tensor_map((x.shape[0], width), x.dtype, lambda n, k: guard(less(k, dim(have)), x.at(n, k), const(0.0)))


@op("FeatureVectorizer", since=1, domain=DOMAIN)
def feature_vectorizer(*X: Tensor, inputdimensions: Sequence[int] | None = None) -> Tensor:
    """The inputs' columns beside each other as float32; inputdimensions cuts or fills each to that many."""
    parts = [matrix(x).cast("f32") for x in X]
    for k, wanted in enumerate(inputdimensions or ()):
        parts[k] = of_width(parts[k], wanted)
    return concat(parts, 1)


@op("ArrayFeatureExtractor", since=1, domain=DOMAIN)
def array_feature_extractor(X: Tensor, Y: Tensor) -> Tensor:
    """Columns Y of the last axis."""
    x, places = matrix(X), Y.reshape(_count(Y))
    return tensor_map((*x.shape[:-1], places.shape[0]), X.dtype, lambda *i: x.at(*i[:-1], cast(places.at(i[-1]), "ix")))


def _count(t: Tensor) -> Dim:
    total: Dim = 1
    for s in t.shape:
        total = total * s
    return total


@op("OneHotEncoder", since=1, domain=DOMAIN)
def one_hot_encoder(X: Tensor, *, cats_int64s: Sequence[int] | None = None, cats_strings: Sequence[str] | None = None, zeros: int = 1) -> Tensor:
    """A new last axis with 1 at the category's place; an unknown category gives zeros (an error if `zeros` is 0)."""
    table = constant(np.array(list(cats_strings), object)) if cats_strings else constant(np.array(list(cats_int64s or ()), np.int64))
    shape = (*X.shape, table.shape[0])

    def same(*i: Expr) -> Expr:
        value = X.at(*i[:-1])
        return equal(value if cats_strings else cast(value, "i64"), table.at(i[-1]))
    if zeros:
        return tensor_map(shape, "f32", lambda *i: cast(same(*i), "f32"))
    place = tensor_reduce(shape, [X.rank], "sum", "i64", lambda *i: select(same(*i), cast(i[-1], "i64") + 1, const(0, "i64")))
    return tensor_map(shape, "f32", lambda *i: cast(equal(table.at(cast(place.at(*i[:-1]), "ix") - 1), table.at(i[-1])), "f32"))
