"""Linear models and support vector machines: products with constants, then votes or transforms."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Expr, Spec, Tensor, builder, call, concat, const, constant, dim, tensor_map, tensor_reduce
from gpuonnx.ir.formula import exp, greater, maximum, minimum, power, select, sigmoid, tanh
from gpuonnx.ops.matmul import matrix_product
from gpuonnx.ops.ml.features import matrix
from gpuonnx.ops.ml.trees import labelled, transformed
from gpuonnx.ops.registry import op

DOMAIN = "ai.onnx.ml"
Floats = Sequence[float] | None
Ints = Sequence[int] | None
Texts = Sequence[str] | None


def numbers(values: Floats) -> np.ndarray:
    return np.array(list(values or ()), np.float32)


def column(t: Tensor, place: int) -> Tensor:
    return t.slice(1, place, 1)


def chosen(condition: Tensor, ints: Ints, strings: Texts) -> Tensor:
    """The second of two labels where the condition [N] holds."""
    places = tensor_map(condition.shape, "i64", lambda n: select(condition.at(n), const(1, "i64"), const(0, "i64")))
    return labelled(places, ints, strings)


def one_column(score: Tensor, name: str) -> Tensor:
    """post_transform of a single score; softmax leaves it (as in ONNX Runtime)."""
    return score if name.startswith("SOFTMAX") else transformed(score, name)


@op("LinearRegressor", since=1, domain=DOMAIN)
def linear_regressor(X: Tensor, *, coefficients: Floats = None, intercepts: Floats = None, post_transform: str = "NONE", targets: int = 1) -> Tensor:
    weights = numbers(coefficients).reshape(targets, -1)
    y = matrix_product(matrix(X).cast("f32"), constant(weights.T.copy()))
    y = y + constant(numbers(intercepts)) if intercepts else y
    return one_column(y, post_transform) if targets == 1 else transformed(y, post_transform)


@op("LinearClassifier", since=1, domain=DOMAIN)
def linear_classifier(X: Tensor, *, classlabels_ints: Ints = None, classlabels_strings: Texts = None, coefficients: Floats,
                      intercepts: Floats = None, multi_class: int = 0, post_transform: str = "NONE") -> tuple[Tensor, Tensor]:
    """Label and scores; a single row of coefficients for two labels scores the second of them."""
    labels = len(classlabels_strings or classlabels_ints or ())
    rows = len(intercepts) if intercepts else labels
    if not rows or len(numbers(coefficients)) % rows:
        raise ModelError(f"{builder().origin}: {len(numbers(coefficients))} coefficients for {rows} classes")
    scores = matrix_product(matrix(X).cast("f32"), constant(numbers(coefficients).reshape(rows, -1).T.copy()))
    scores = scores + constant(numbers(intercepts)) if intercepts else scores
    if rows > 1:
        return labelled(scores.fold("argmax", [1]), classlabels_ints, classlabels_strings), transformed(scores, post_transform)
    positive = tensor_map(scores.shape[:1], "bool", lambda n: greater(scores.at(n, dim(0)), 0.0))
    y = one_column(scores, post_transform)
    if labels == 2:
        y = concat([1.0 - y, y], 1)
    return chosen(positive, classlabels_ints if labels == 2 else [0, 1], classlabels_strings if labels == 2 else None), y


def similarity(x: Tensor, vectors: np.ndarray, kind: str, parameters: Floats) -> Tensor:
    """x[N, F] against vectors[V, F] -> [N, V] by the kernel LINEAR, POLY, RBF or SIGMOID."""
    gamma, offset, degree = (list(parameters or ()) + [0.0, 0.0, 3.0])[:3] if parameters else (0.0, 0.0, 3.0)
    if kind == "RBF":
        table = constant(vectors)
        features = builder().meet(x.shape[1], table.shape[1])

        def distance(n: Expr, v: Expr, f: Expr) -> Expr:
            away = x.at(n, f) - table.at(v, f)
            return away * away
        return exp(tensor_reduce((x.shape[0], len(vectors), features), [2], "sum", "f32", distance) * -float(gamma))
    products = matrix_product(x, constant(np.ascontiguousarray(vectors.T)))
    match kind:
        case "LINEAR": return products
        case "POLY": return power(products * float(gamma) + float(offset), float(degree))
        case "SIGMOID": return tanh(products * float(gamma) + float(offset))
    raise ModelError(f"{builder().origin}: kernel_type {kind!r} is none of LINEAR, POLY, RBF, SIGMOID")


@op("SVMRegressor", since=1, domain=DOMAIN)
def svm_regressor(X: Tensor, *, coefficients: Floats = None, kernel_params: Floats = None, kernel_type: str = "LINEAR", n_supports: int = 0,
                  one_class: int = 0, post_transform: str = "NONE", rho: Floats = None, support_vectors: Floats = None) -> Tensor:
    x, weights = matrix(X).cast("f32"), numbers(coefficients)
    if n_supports:
        likeness = similarity(x, numbers(support_vectors).reshape(n_supports, -1), kernel_type, kernel_params)
        y = matrix_product(likeness, constant(weights.reshape(n_supports, 1)))
    else:
        y = matrix_product(x, constant(weights.reshape(-1, 1)))
    y = y + float((rho or [0.0])[0])
    if one_class:
        return tensor_map(y.shape, "f32", lambda *i: select(greater(y.at(*i), 0.0), const(1.0), const(-1.0)))
    return one_column(y, post_transform)


def duels(coefficients: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """[V, pairs]: the weights of the support vectors in the decision between each two classes."""
    ends = np.cumsum([0, *sizes])
    table = np.zeros((int(ends[-1]), len(sizes) * (len(sizes) - 1) // 2), np.float32)
    for pair, (i, j) in enumerate(combinations(range(len(sizes)), 2)):
        table[ends[i]:ends[i + 1], pair] = coefficients[j - 1, ends[i]:ends[i + 1]]
        table[ends[j]:ends[j + 1], pair] = coefficients[i, ends[j]:ends[j + 1]]
    return table


def votes(decisions: Tensor, classes: int) -> Tensor:
    """[N, classes]: how many decisions each class wins; a positive one is won by the first of the pair."""
    first, second = (np.zeros((decisions.shape[1], classes), np.float32) for _ in range(2))
    for pair, (i, j) in enumerate(combinations(range(classes), 2)):
        first[pair, i] = second[pair, j] = 1.0
    won = tensor_map(decisions.shape, "f32", lambda *i: select(greater(decisions.at(*i), 0.0), const(1.0), const(0.0)))
    return matrix_product(won, constant(first)) + matrix_product(1.0 - won, constant(second))


def coupled(decisions: Tensor, classes: int, slopes: np.ndarray, offsets: np.ndarray) -> Tensor:
    """Probabilities of the classes [N, C] from pairwise ones (Wu, Lin and Weng, 2004)."""
    pairwise = sigmoid(-(decisions * constant(slopes) + constant(offsets)))
    pairwise = minimum(maximum(pairwise, 1e-7), 1.0 - 1e-7)
    spec = Spec("f32", (decisions.shape[0], classes))
    return call("coupling", pairwise, out=spec)  # type: ignore[no-any-return]


def linear_winner(scores: Tensor, weights: np.ndarray) -> Tensor:
    """The class of the largest score; of two, the second as soon as any score is positive (as in ONNX Runtime)."""
    best = scores.fold("argmax", [1])
    if scores.shape[1] != 2:
        return best
    limit = 0.5 if bool((weights >= 0).all()) else 0.0
    top = scores.max([1])
    return tensor_map(best.shape, "i64", lambda n: select(greater(top.at(n), limit), const(1, "i64"), best.at(n)))


@op("SVMClassifier", since=1, domain=DOMAIN)
def svm_classifier(X: Tensor, *, classlabels_ints: Ints = None, classlabels_strings: Texts = None, coefficients: Floats = None,
                   kernel_params: Floats = None, kernel_type: str = "LINEAR", post_transform: str = "NONE", prob_a: Floats = None,
                   prob_b: Floats = None, rho: Floats = None, support_vectors: Floats = None,
                   vectors_per_class: Ints = None) -> tuple[Tensor, Tensor]:
    """Label and scores: probabilities where the model has them, else the decisions between classes (as in ONNX Runtime)."""
    x, weights, bias = matrix(X).cast("f32"), numbers(coefficients), numbers(rho)
    classes = len(classlabels_strings or classlabels_ints or ())
    if not vectors_per_class:
        scores = matrix_product(x, constant(weights.reshape(classes, -1).T.copy())) + float(bias[0] if len(bias) else 0.0)
        return labelled(linear_winner(scores, weights), classlabels_ints, classlabels_strings), transformed(scores, post_transform)
    sizes = list(vectors_per_class)
    total = sum(sizes)
    likeness = similarity(x, numbers(support_vectors).reshape(total, -1), kernel_type, kernel_params)
    decisions = matrix_product(likeness, constant(duels(weights.reshape(-1, total), sizes))) + constant(bias)
    label = labelled(votes(decisions, len(sizes)).fold("argmax", [1]), classlabels_ints, classlabels_strings)
    if prob_a:
        return label, transformed(coupled(decisions, len(sizes), numbers(prob_a), numbers(prob_b)), post_transform)
    if classes != 2:
        return label, transformed(decisions, post_transform)
    if post_transform.startswith("SOFTMAX"):
        return label, concat([1.0 - decisions, decisions], 1)
    return label, transformed(concat([-decisions, decisions], 1), post_transform)
