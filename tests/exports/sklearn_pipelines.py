"""scikit-learn: pipelines, columns of several types, text, encoders of labels, custom functions, options of the converters."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from exports import matrix
from exports.sklearn_export import convert
from sklearn import compose, ensemble, gaussian_process, linear_model, naive_bayes, neighbors, neural_network, pipeline, preprocessing, svm, tree
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs, make_multilabel_classification
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor

Make = Callable[[], matrix.Export]


def model(make: Make) -> Make:
    """Declare what the function exports."""
    matrix.add(make.__module__, matrix.Case("skl2onnx", make.__name__, make))
    return make


def rounded(make: Make) -> Make:
    """Declare a model whose file computes in float32 what scikit-learn decides in float64, with another result for some rows."""
    matrix.add(make.__module__, matrix.Case("skl2onnx", make.__name__, make, "float32 steps over a threshold, or a distance of zero, that float64 meets exactly"))
    return make


def blobs(classes: int = 3, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_blobs(60, 4, centers=classes, cluster_std=3.0, random_state=3)
    return x.astype(dtype), y


def fitted(*steps: Any, classes: int = 3, names: bool = False, dtype: Any = np.float32) -> tuple[Any, np.ndarray]:
    x, y = blobs(classes, dtype)
    made = pipeline.make_pipeline(*steps) if len(steps) > 1 else steps[0]
    return made.fit(x, np.array(["red", "green", "blue", "pink"])[y] if names else y), x


def classifier(*steps: Any, classes: int = 3, names: bool = False, dtype: Any = np.float32, **options: Any) -> matrix.Export:
    made, x = fitted(*steps, classes=classes, names=names, dtype=dtype)
    return convert(made, x, options={id(made): options} if options else None)


@model
def scaled_logistic() -> matrix.Export:
    return classifier(preprocessing.StandardScaler(), linear_model.LogisticRegression())


@model
def scaled_logistic_binary() -> matrix.Export:
    return classifier(preprocessing.StandardScaler(), linear_model.LogisticRegression(), classes=2)


@model
def logistic_named_classes() -> matrix.Export:
    return classifier(linear_model.LogisticRegression(), names=True)


@model
def logistic_named_classes_binary_arrays() -> matrix.Export:
    return classifier(linear_model.LogisticRegression(), names=True, classes=2, zipmap=False)


@model
def logistic_double() -> matrix.Export:
    return classifier(preprocessing.RobustScaler(), linear_model.LogisticRegression(), dtype=np.float64, zipmap=False)


@model
def forest_named_classes() -> matrix.Export:
    return classifier(preprocessing.MinMaxScaler(), ensemble.RandomForestClassifier(10, random_state=0), names=True)


@model
def forest_binary() -> matrix.Export:
    return classifier(ensemble.RandomForestClassifier(10, random_state=0), classes=2, zipmap=False)


@model
def extra_trees_double() -> matrix.Export:
    return classifier(ensemble.ExtraTreesClassifier(10, random_state=0), dtype=np.float64, zipmap=False)


@model
def boosting_binary() -> matrix.Export:
    return classifier(ensemble.GradientBoostingClassifier(n_estimators=8), classes=2)


@model
def svc_kernels() -> matrix.Export:
    return classifier(preprocessing.StandardScaler(), svm.SVC(kernel="poly", probability=True, random_state=0))


@model
def svc_sigmoid_binary() -> matrix.Export:
    return classifier(svm.SVC(kernel="sigmoid", probability=True, random_state=0), classes=2, zipmap=False)


@model
def svc_linear_scores() -> matrix.Export:
    made, x = fitted(svm.SVC(kernel="linear", decision_function_shape="ovr"))
    return convert(made, x, answer=lambda q: (made.predict(q), made.decision_function(q)), options={id(made): {"zipmap": False}})


@model
def svr_kernels() -> matrix.Export:
    x, _ = blobs()
    return convert(svm.SVR(kernel="poly").fit(x / 10, x.sum(1)), x / 10)


@model
def linear_svc_calibrated() -> matrix.Export:
    return classifier(CalibratedClassifierCV(svm.LinearSVC(), cv=2), zipmap=False)


@rounded
def calibrated_isotonic() -> matrix.Export:
    return classifier(CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2, method="isotonic"), zipmap=False)


@model
def one_against_rest_trees() -> matrix.Export:
    return classifier(OneVsRestClassifier(tree.DecisionTreeClassifier(max_depth=3)), zipmap=False)


@model
def one_against_one_vectors() -> matrix.Export:
    made, x = fitted(OneVsOneClassifier(svm.LinearSVC()))
    return convert(made, x, options={id(made): {"zipmap": False}}, answer=lambda q: (made.predict(q)[:, None], made.decision_function(q)))


@model
def one_against_rest_many_labels() -> matrix.Export:
    x, y = make_multilabel_classification(60, 4, n_classes=3, random_state=0)
    made = OneVsRestClassifier(linear_model.LogisticRegression()).fit(x, y)
    return convert(made, x.astype(np.float32), answer=lambda q: (made.predict(q), made.predict_proba(q)), options={id(made): {"zipmap": False}})


@model
def perceptron_layers() -> matrix.Export:
    return classifier(preprocessing.StandardScaler(), neural_network.MLPClassifier((8, 6), activation="tanh", max_iter=50, random_state=0), zipmap=False)


@model
def perceptron_binary_logistic() -> matrix.Export:
    return classifier(neural_network.MLPClassifier((8,), activation="logistic", max_iter=50, random_state=0), classes=2)


@rounded
def nearest_by_distance() -> matrix.Export:
    return classifier(neighbors.KNeighborsClassifier(4, weights="distance", metric="manhattan"), zipmap=False)


@rounded
def nearest_regression() -> matrix.Export:
    x, _ = blobs()
    return convert(neighbors.KNeighborsRegressor(3, weights="distance").fit(x, x[:, :2]), x)


@model
def gaussian_process_kernels() -> matrix.Export:
    from sklearn.gaussian_process import kernels as k
    x, _ = blobs(dtype=np.float64)
    kernel = k.ConstantKernel(2.0) * k.RBF(2.0) + k.DotProduct() + k.RationalQuadratic() + k.ExpSineSquared(1.0, 3.0)
    return convert(gaussian_process.GaussianProcessRegressor(kernel, alpha=1e-1, optimizer=None).fit(x[:20], x[:20].sum(1)), x, rtol=1e-4)


@model
def many_steps() -> matrix.Export:
    return classifier(SimpleImputer(), preprocessing.PolynomialFeatures(2), preprocessing.StandardScaler(), SelectKBest(k=6), PCA(4), linear_model.LogisticRegression())


@model
def union() -> matrix.Export:
    made = pipeline.make_union(PCA(2), preprocessing.MaxAbsScaler(), pipeline.make_pipeline(preprocessing.Normalizer(), TruncatedSVD(2, random_state=0)))
    return classifier(made, ensemble.AdaBoostClassifier(n_estimators=5, random_state=0))


@model
def clusters() -> matrix.Export:
    made, x = fitted(preprocessing.StandardScaler(), KMeans(3, n_init=2, random_state=0))
    return convert(made, x, answer=lambda q: (made.predict(q), made.transform(q)))


@model
def voting_hard() -> matrix.Export:
    voters = [("a", linear_model.LogisticRegression()), ("b", naive_bayes.GaussianNB()), ("c", tree.DecisionTreeClassifier(max_depth=3))]
    made, x = fitted(ensemble.VotingClassifier(voters, flatten_transform=False), names=True)
    return convert(made, x, options={id(made): {"zipmap": False}}, answer=lambda q: (made.predict(q),), only=1)


@model
def stacking_named() -> matrix.Export:
    return classifier(ensemble.StackingClassifier([("a", linear_model.LogisticRegression()), ("b", naive_bayes.GaussianNB())]), names=True, zipmap=False)


@model
def ordinal_outliers() -> matrix.Export:
    made, x = fitted(preprocessing.StandardScaler(), svm.OneClassSVM(nu=0.2))
    return convert(made, x)


@model
def several_targets() -> matrix.Export:
    x, _ = blobs()
    return convert(MultiOutputRegressor(ensemble.GradientBoostingRegressor(n_estimators=4)).fit(x, x[:, :2]), x)


def frame() -> tuple[Any, np.ndarray]:
    import pandas
    rng = np.random.default_rng(0)
    table = pandas.DataFrame({"age": rng.integers(18, 70, 40).astype(np.float32), "size": rng.normal(size=40).astype(np.float32), "sex": rng.choice(["f", "m"], 40),
                              "town": rng.choice(["Ulm", "Bonn", "Graz"], 40), "count": rng.integers(0, 4, 40)})
    return table, (table["age"] > 40).to_numpy().astype(int)


def columns(table: Any, names: list[str]) -> dict[str, np.ndarray]:
    found = {n: table[[n]].to_numpy() for n in names}
    return {n: v.astype(object) if v.dtype.kind in "OUT" else v for n, v in found.items()}


def mixed(last: Any, *more: Any) -> matrix.Export:
    table, y = frame()
    number = pipeline.make_pipeline(SimpleImputer(strategy="median"), preprocessing.StandardScaler())
    split = compose.ColumnTransformer([("n", number, ["age", "size"]), ("c", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["sex", "town"]), ("o", preprocessing.OrdinalEncoder(), ["count"]), *more])
    made = pipeline.make_pipeline(split, last).fit(table, y)
    return convert(made, table, columns(table, list(table.columns)), options={id(made): {"zipmap": False}})


@model
def table_logistic() -> matrix.Export:
    return mixed(linear_model.LogisticRegression())


@model
def table_forest() -> matrix.Export:
    return mixed(ensemble.RandomForestClassifier(6, random_state=0))


@model
def table_binned() -> matrix.Export:
    return mixed(linear_model.LogisticRegression(), ("b", preprocessing.KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf"), ["size"]))


@model
def table_passed_through() -> matrix.Export:
    table, _ = frame()
    made = compose.ColumnTransformer([("c", preprocessing.OrdinalEncoder(), ["town"]), ("p", "passthrough", ["age"])]).fit(table[["town", "age"]])
    return convert(made, table[["town", "age"]], columns(table, ["town", "age"]))


TEXTS = np.array(["the cat sat on the mat", "a dog ate the cat", "birds fly over the mat", "no dog sat here", "cats and dogs", "the bird ate a fly"] * 2, object)[:, None]
TOPICS = np.array([0, 1, 2, 1, 0, 2] * 2)


def words(vectorizer: Any, *last: Any) -> matrix.Export:
    flat = TEXTS.ravel()
    made = pipeline.make_pipeline(vectorizer, *last).fit(flat, TOPICS) if last else vectorizer.fit(flat)
    if last:
        return convert(made, TEXTS, options={id(made): {"zipmap": False}}, answer=lambda q: (made.predict(q.ravel()), made.predict_proba(q.ravel())))
    return convert(made, TEXTS, answer=lambda q: (made.transform(q.ravel()),))


@model
def words_counted() -> matrix.Export:
    return words(CountVectorizer(token_pattern="[a-zA-Z]+"))


@model
def words_counted_pairs() -> matrix.Export:
    return words(CountVectorizer(ngram_range=(1, 2), token_pattern="[a-zA-Z]+", binary=True))


@model
def words_weighted() -> matrix.Export:
    return words(TfidfVectorizer(token_pattern="[a-zA-Z]+", smooth_idf=False, norm="l1"))


@model
def words_sublinear() -> matrix.Export:
    """skl2onnx writes log(1 + n) for scikit-learn's 1 + log(n)."""
    made = TfidfVectorizer(token_pattern="[a-zA-Z]+", sublinear_tf=True, use_idf=False, norm=None).fit(TEXTS.ravel())

    def answer(q: np.ndarray) -> tuple[np.ndarray]:
        weights = made.transform(q.ravel()).toarray()
        return (np.where(weights > 0, np.log1p(np.exp(weights - 1)), 0),)
    return convert(made, TEXTS, answer=answer)


@model
def words_without_stops() -> matrix.Export:
    return words(TfidfVectorizer(token_pattern="[a-zA-Z]+", stop_words=["the", "a"], lowercase=True))


@model
def letters_counted() -> matrix.Export:
    return words(CountVectorizer(analyzer="char", ngram_range=(1, 2)))


@model
def words_classified() -> matrix.Export:
    return words(TfidfVectorizer(token_pattern="[a-zA-Z]+"), linear_model.LogisticRegression())


@model
def words_bayes() -> matrix.Export:
    return words(CountVectorizer(token_pattern="[a-zA-Z]+"), naive_bayes.MultinomialNB())


@model
def labels_encoded() -> matrix.Export:
    names = np.array(["b", "a", "c", "a"], object)
    made = preprocessing.LabelEncoder().fit(names)
    return convert(made, names[:, None], answer=lambda q: (made.transform(q.ravel())[:, None],), rows=(2,))


@model
def labels_binarized() -> matrix.Export:
    values = np.array([3, 1, 2, 1], np.int64)
    made = preprocessing.LabelBinarizer().fit(values)
    return convert(made, values[:, None], answer=lambda q: (made.transform(q.ravel()),), rows=(2,))


@model
def one_hot_strings_dropped() -> matrix.Export:
    x = np.array([["a", "x"], ["b", "y"], ["c", "x"], ["a", "y"], ["b", "x"]], object)
    return convert(preprocessing.OneHotEncoder(drop="first", sparse_output=False).fit(x), x, rows=(3, 1))


@model
def ordinal_strings() -> matrix.Export:
    x = np.array([["a", "x"], ["b", "y"], ["c", "x"], ["a", "y"], ["b", "x"]], object)
    return convert(preprocessing.OrdinalEncoder(dtype=np.int64).fit(x), x, rows=(3, 1))


@model
def target_encoded() -> matrix.Export:
    x = np.array([["a"], ["b"], ["c"], ["a"], ["b"]] * 4, object)
    return convert(preprocessing.TargetEncoder(cv=2, random_state=0).fit(x, np.arange(20) % 2), x)


@model
def hashed() -> matrix.Export:
    made = FeatureHasher(8, input_type="string").fit([["a"]])
    return convert(made, TEXTS, answer=lambda q: (made.transform([[s] for s in q.ravel()]),))


@model
def dictionaries() -> matrix.Export:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DictionaryType, FloatTensorType, StringTensorType
    rows = [{"a": 1.0, "b": 2.0}, {"c": 3.0}, {"b": 0.5, "c": 1.0}]
    made = DictVectorizer(sparse=False).fit(rows)
    try:
        proto = convert_sklearn(made, initial_types=[("X", DictionaryType(StringTensorType([1]), FloatTensorType([])))])
    except Exception as refusal:
        raise matrix.NotExported(f"{type(refusal).__name__}: {refusal}") from refusal
    return matrix.Export(proto.SerializeToString(), [{"X": r} for r in rows], [[made.transform([r]).astype(np.float32)] for r in rows])


@rounded
def function_applied() -> matrix.Export:
    return classifier(preprocessing.FunctionTransformer(), preprocessing.PowerTransformer(), linear_model.SGDClassifier(loss="log_loss", random_state=0))


@model
def cast_and_replaced() -> matrix.Export:
    from skl2onnx.sklapi import CastTransformer, ReplaceTransformer
    return classifier(preprocessing.StandardScaler(), CastTransformer(), ReplaceTransformer(0.0, 1.0), tree.DecisionTreeClassifier(max_depth=4, random_state=0))


@model
def raw_scores() -> matrix.Export:
    made, x = fitted(linear_model.LogisticRegression())
    return convert(made, x, options={id(made): {"raw_scores": True, "zipmap": False}}, answer=lambda q: (made.predict(q), made.decision_function(q)))


@model
def without_class_labels() -> matrix.Export:
    made, x = fitted(linear_model.LogisticRegression())
    return convert(made, x, options={id(made): {"nocl": True, "zipmap": False}}, answer=lambda q: (made.predict(q), made.predict_proba(q)))


@model
def columns_of_probabilities() -> matrix.Export:
    made, x = fitted(linear_model.LogisticRegression())
    return convert(made, x, options={id(made): {"zipmap": "columns"}}, answer=lambda q: (made.predict(q), *made.predict_proba(q).T))


@model
def integers_in() -> matrix.Export:
    x, y = blobs()
    x = np.abs(x).astype(np.int64)
    made = pipeline.make_pipeline(preprocessing.OneHotEncoder(handle_unknown="ignore"), naive_bayes.BernoulliNB()).fit(x, y)
    return convert(made, x, options={id(made): {"zipmap": False}})
