"""scikit-learn: every estimator in skl2onnx's own table of converters, with its defaults, in float32 and in float64."""
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn.ensemble
from exports import matrix
from exports.sklearn_export import convert, probabilities
from skl2onnx._supported_operators import sklearn_operator_name_map
from sklearn.datasets import make_blobs, make_regression
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier

TABLE = {kind.__name__: kind for kind in sklearn_operator_name_map}
OTHERWISE = {
    "CastRegressor": "its wrapped model is converted by skl2onnx's own class", "CastTransformer": "in sklearn_pipelines", "ReplaceTransformer": "skl2onnx's own class, in sklearn_pipelines",
    "ColumnTransformer": "in sklearn_pipelines", "FeatureUnion": "in sklearn_pipelines", "Pipeline": "in sklearn_pipelines", "FunctionTransformer": "in sklearn_pipelines",
    "CountVectorizer": "in sklearn_pipelines", "TfidfVectorizer": "in sklearn_pipelines", "DictVectorizer": "in sklearn_pipelines", "FeatureHasher": "in sklearn_pipelines",
    "LabelEncoder": "in sklearn_pipelines", "LabelBinarizer": "in sklearn_pipelines", "_ConstantPredictor": "a private part of OneVsRestClassifier",
}
COUNTS = ("CategoricalNB", "ComplementNB", "MultinomialNB", "BernoulliNB", "TfidfTransformer", "OrdinalEncoder", "OneHotEncoder", "TargetEncoder")
MANY = ("MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV", "MultiOutputRegressor", "PLSRegression")
POSITIVE = ("GammaRegressor", "PoissonRegressor", "TweedieRegressor")
UNUSABLE = {
    "GaussianProcessClassifier": "the file calls com.microsoft.Solve, which no runtime has", "RadiusNeighborsClassifier": "the file gathers at -1 (ONNX Runtime refuses it too)",
    "RadiusNeighborsRegressor": "the file gathers at -1 (ONNX Runtime refuses it too)",
}
SCORED = ("OneVsOneClassifier", "Perceptron", "PassiveAggressiveClassifier", "SGDClassifier")
DIFFERS = {
    **{f"TunedThresholdClassifierCV-{kind}": "its threshold is a score of the data, which float32 rounds to the other side" for kind in ("f32", "f64", "f32_arrays", "f32_binary")},
    "LinearDiscriminantAnalysis-f32_binary": "the file has the softmax of d and -d for the logistic function of d",
    "TfidfTransformer-f64": "the file divides a row of zeros by its length",
}
BROKEN = {f"SelectPercentile-{kind}": "the file gives values to ConstantOfShape, which takes a shape" for kind in ("f32", "f64")}
BINARY = ("GaussianProcessClassifier", "TunedThresholdClassifierCV", "TargetEncoder")
UNZIPPED = ("MultiOutputClassifier", "RFE", "RFECV")

SETTINGS: dict[str, dict[str, Any]] = {
    "MultiOutputClassifier": {"estimator": LogisticRegression()}, "MultiOutputRegressor": {"estimator": LinearRegression()},
    "OneVsOneClassifier": {"estimator": LogisticRegression()}, "OneVsRestClassifier": {"estimator": LogisticRegression()}, "RFE": {"estimator": LinearRegression()},
    "RFECV": {"estimator": LinearRegression()}, "SelectFromModel": {"estimator": LinearRegression()}, "GridSearchCV": {"estimator": LogisticRegression(), "param_grid": {"C": [0.1, 1]}},
    "TunedThresholdClassifierCV": {"estimator": LogisticRegression()}, "StackingClassifier": {"estimators": [("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=3))]},
    "StackingRegressor": {"estimators": [("a", LinearRegression()), ("b", sklearn.ensemble.RandomForestRegressor(5))]},
    "VotingClassifier": {"estimators": [("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=3))], "voting": "soft", "flatten_transform": False},
    "VotingRegressor": {"estimators": [("a", LinearRegression()), ("b", sklearn.ensemble.RandomForestRegressor(5))]},
    "LogisticRegressionCV": {"Cs": 2, "cv": 2},
    "CalibratedClassifierCV": {"estimator": DecisionTreeClassifier(max_depth=3)}, "QuantileTransformer": {"n_quantiles": 20}, "KBinsDiscretizer": {"encode": "ordinal", "quantile_method": "averaged_inverted_cdf"},
    "GaussianRandomProjection": {"n_components": 3}, "IncrementalPCA": {"n_components": 3}, "PCA": {"n_components": 3}, "KernelPCA": {"n_components": 3, "kernel": "rbf"},
    "RadiusNeighborsClassifier": {"radius": 30.0}, "RadiusNeighborsRegressor": {"radius": 30.0}, "LocalOutlierFactor": {"novelty": True}, "NuSVC": {"probability": True}, "SVC": {"probability": True},
    "GaussianMixture": {"n_components": 3}, "BayesianGaussianMixture": {"n_components": 3}, "OneHotEncoder": {"handle_unknown": "ignore", "sparse_output": False},
    "GenericUnivariateSelect": {"mode": "k_best", "param": 2}, "SelectKBest": {"k": 2}, "MLPClassifier": {"max_iter": 30}, "MLPRegressor": {"max_iter": 30}, "KNNImputer": {"n_neighbors": 3},
    **{name: {"n_estimators": 8} for name in ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor", "BaggingClassifier", "BaggingRegressor",
                                              "AdaBoostClassifier", "AdaBoostRegressor", "GradientBoostingClassifier", "GradientBoostingRegressor", "IsolationForest", "RandomTreesEmbedding")},
    **{name: {"max_iter": 8} for name in ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")},
}


def data(name: str, dtype: Any, classes: int = 3) -> tuple[np.ndarray, Any]:
    """Features, and a target that suits the estimator."""
    kind = TABLE[name]
    x, label = make_blobs(60, 4, centers=classes, cluster_std=3.0, random_state=3)
    if name in COUNTS:
        x = np.abs(x).astype(np.int64) % 5
    if name in ("SimpleImputer", "KNNImputer"):
        x[::7, 1] = np.nan
    x = x.astype(dtype)
    if name == "MultiOutputClassifier":
        return x, np.stack([label, label % 2], 1)
    if name == "TunedThresholdClassifierCV":
        return x, label % 2
    regression = getattr(kind, "_estimator_type", "") == "regressor" or "Regress" in name and "Logistic" not in name or name in (*MANY, "Lars", "LarsCV", "SVR", "NuSVR", "LinearSVR", "RFE", "RFECV",
                                                                                                     "SelectFromModel") or hasattr(kind, "predict") and name.startswith(("Lasso", "Elastic", "Orthogonal", "ARD", "Bayesian"))
    if regression and name not in ("BayesianGaussianMixture",):
        _, y = make_regression(60, 4, n_targets=2 if name in MANY else 1, random_state=3)
        y = x @ (np.arange(8).reshape(4, 2) if name in MANY else np.arange(4)) + 0.01 * y
        return x, np.abs(y) + 1 if name in POSITIVE else y
    return x, label


def fitted(name: str, dtype: Any, classes: int) -> tuple[Any, np.ndarray]:
    kind = TABLE[name]
    settings = dict(SETTINGS.get(name, {}))
    made = kind(**settings)
    if "random_state" in made.get_params():
        made.set_params(random_state=0)
    x, y = data(name, dtype, classes)
    if name == "KernelCenterer":
        x = (x @ x.T).astype(dtype)
    return made.fit(x, y), x


def convert_estimator(name: str, dtype: Any, options: dict[str, Any] | None, classes: int) -> matrix.Export:
    if name in UNUSABLE:
        raise matrix.NotExported(UNUSABLE[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = fitted(name, dtype, classes)
    loose = dtype is np.float32
    return convert(model, x, options={id(model): options} if options else None, answer=answer_of(name, model, options), rtol=5e-3 if loose else 1e-5, atol=2e-3 if loose else 1e-6,
                   opset={"": 22, "ai.onnx.ml": 3} if name == "IsolationForest" else None)


def answer_of(name: str, model: Any, options: dict[str, Any] | None) -> Callable[[Any], Any] | None:
    """What the converted model gives, where its methods do not say it."""
    if name == "KNeighborsTransformer":
        return lambda q: (model.transform(q).toarray(),)
    if name in ("GaussianMixture", "BayesianGaussianMixture", "MultiOutputClassifier"):
        return lambda q: (model.predict(q), model.predict_proba(q))
    if name == "QuadraticDiscriminantAnalysis":
        return lambda q: (model.predict(q)[None], probabilities(model, q, {"": options} if options else None))
    if name == "OneVsOneClassifier":
        return lambda q: (model.predict(q)[:, None], model.decision_function(q))
    if name in ("RFE", "RFECV"):
        return lambda q: (model.transform(q),)
    return None


def declare(name: str, dtype: Any, suffix: str, options: dict[str, Any] | None = None, classes: int = 3) -> None:
    matrix.add(__name__, matrix.Case("skl2onnx", f"{name}-{suffix}", lambda: convert_estimator(name, dtype, options, 2 if name in BINARY else classes),
                                      DIFFERS.get(f"{name}-{suffix}"), BROKEN.get(f"{name}-{suffix}")))


for _name in sorted(TABLE):
    if _name not in OTHERWISE:
        _zipped = hasattr(TABLE[_name], "predict_proba") and "Mixture" not in _name and _name not in UNZIPPED
        _plain = {"zipmap": False} if _zipped or _name in SCORED else None
        declare(_name, np.float32, "f32", _plain if _name in SCORED else None)
        declare(_name, np.float64, "f64", _plain)
        if _zipped:
            declare(_name, np.float32, "f32_arrays", {"zipmap": False})
            declare(_name, np.float32, "f32_binary", {"zipmap": False}, classes=2)
