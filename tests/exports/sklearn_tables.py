"""scikit-learn: tables of numbers, words and gaps, asked about rows that training did not have: unknown categories, words, missing values."""
from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas
import xgboost
from exports import matrix
from exports.sklearn_export import convert
from exports.sklearn_pipelines import columns, model
from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
from skl2onnx import update_registered_converter
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes, calculate_linear_regressor_output_shapes
from sklearn import ensemble, linear_model, naive_bayes, neighbors, pipeline, preprocessing, svm
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import KNNImputer, MissingIndicator, SimpleImputer

CHOICES: dict[str, Any] = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
update_registered_converter(lightgbm.LGBMClassifier, "LightGbmLGBMClassifier", calculate_linear_classifier_output_shapes, convert_lightgbm, options=CHOICES)
update_registered_converter(lightgbm.LGBMRegressor, "LightGbmLGBMRegressor", calculate_linear_regressor_output_shapes, convert_lightgbm, options={"split": None})
update_registered_converter(xgboost.XGBClassifier, "XGBoostXGBClassifier", calculate_linear_classifier_output_shapes, convert_xgboost, options=CHOICES)
SAID = ["good and cheap", "bad, very bad", "cheap but bad", "good, very good", "fine", ""]
ASKED = ["good and new", "unseen words only", "", "BAD! bad? bad."]


def table(rows: int, gaps: bool, kinds: list[str], said: list[str], seed: int) -> Any:
    rng = np.random.default_rng(seed)
    made = pandas.DataFrame({"age": rng.integers(18, 70, rows).astype(np.float32), "size": rng.normal(size=rows).astype(np.float32), "town": rng.choice(kinds, rows), "stars": rng.integers(0, 4, rows),
                             "said": [said[k % len(said)] for k in range(rows)]})
    if gaps:
        made.loc[::3, "age"] = np.nan
        made.loc[1::4, "size"] = np.nan
    return made


def trained(last: Any, *parts: Any, gaps: bool = False, target: str = "class", remainder: str = "drop") -> matrix.Export:
    """Fitted on one table, asked about another: other words, another town, gaps in other places."""
    known, asked = table(60, gaps, ["Ulm", "Bonn", "Graz"], SAID, 0), table(9, gaps, ["Ulm", "Bonn", "Köln"], ASKED, 1)
    y = (known["stars"] > 1).to_numpy().astype(int) if target == "class" else known["stars"].to_numpy() * 1.5
    made = pipeline.make_pipeline(ColumnTransformer([(f"p{k}", part, on) for k, (part, on) in enumerate(parts)], remainder=remainder, sparse_threshold=0), last).fit(known, y)
    return convert(made, asked, columns(asked, list(asked.columns)), options={id(made): {"zipmap": False}} if target == "class" else None, opset={"": 18, "ai.onnx.ml": 3})


NUMBERS = (pipeline.make_pipeline(SimpleImputer(strategy="mean"), preprocessing.StandardScaler()), ["age", "size"])
TOWNS = (preprocessing.OneHotEncoder(handle_unknown="ignore"), ["town"])
WORDS = (TfidfVectorizer(token_pattern="[a-zA-Z]+"), "said")


@model
def words_and_numbers() -> matrix.Export:
    return trained(linear_model.LogisticRegression(), NUMBERS, TOWNS, WORDS)


@model
def words_of_letters() -> matrix.Export:
    return trained(naive_bayes.ComplementNB(), (CountVectorizer(analyzer="char_wb", ngram_range=(2, 3)), "said"), TOWNS)


@model
def gaps_filled() -> matrix.Export:
    return trained(linear_model.LogisticRegression(), NUMBERS, TOWNS, gaps=True)


@model
def gaps_indicated() -> matrix.Export:
    return trained(linear_model.LogisticRegression(), NUMBERS, (MissingIndicator(features="all"), ["age", "size"]), gaps=True)


@model
def gaps_filled_by_neighbours() -> matrix.Export:
    return trained(linear_model.LogisticRegression(), (KNNImputer(n_neighbors=3), ["age", "size"]), gaps=True)


@model
def gaps_left_to_trees() -> matrix.Export:
    return trained(ensemble.HistGradientBoostingClassifier(max_iter=8), ("passthrough", ["age", "size"]), gaps=True)


@model
def towns_ordered() -> matrix.Export:
    return trained(ensemble.RandomForestClassifier(8, random_state=0), NUMBERS, (preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["town"]))


@model
def towns_rare() -> matrix.Export:
    return trained(linear_model.LogisticRegression(), (preprocessing.OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20), ["town"]), NUMBERS)


@model
def towns_by_target() -> matrix.Export:
    return trained(linear_model.LogisticRegression(), (preprocessing.TargetEncoder(random_state=0), ["town"]), NUMBERS)


@model
def towns_filled() -> matrix.Export:
    return trained(linear_model.LogisticRegression(), (pipeline.make_pipeline(SimpleImputer(strategy="most_frequent"), preprocessing.OneHotEncoder(handle_unknown="ignore")), ["town"]), NUMBERS)


@model
def split_twice() -> matrix.Export:
    inner = ColumnTransformer([("a", preprocessing.MinMaxScaler(), [0]), ("b", pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), preprocessing.StandardScaler()), [0, 1])])
    return trained(svm.SVC(probability=True, random_state=0), (inner, ["age", "size"]), TOWNS)


@model
def neighbours_of_rows() -> matrix.Export:
    return trained(neighbors.KNeighborsClassifier(3), NUMBERS, TOWNS)


@model
def binned() -> matrix.Export:
    return trained(linear_model.Ridge(), (preprocessing.KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), ["age", "size"]), TOWNS, target="stars")


@model
def voted_values() -> matrix.Export:
    voters = [("a", linear_model.Ridge()), ("b", ensemble.GradientBoostingRegressor(n_estimators=5)), ("c", svm.SVR())]
    return trained(ensemble.VotingRegressor(voters), NUMBERS, TOWNS, WORDS, target="stars")


@model
def stacked_values() -> matrix.Export:
    return trained(ensemble.StackingRegressor([("a", linear_model.Ridge()), ("b", ensemble.ExtraTreesRegressor(5, random_state=0))], linear_model.BayesianRidge()), NUMBERS, TOWNS, target="stars")


@model
def boosted_by_lightgbm() -> matrix.Export:
    return trained(lightgbm.LGBMClassifier(n_estimators=10, min_child_samples=2, verbose=-1), ("passthrough", ["age", "size"]), TOWNS, gaps=True)


@model
def boosted_values_by_lightgbm() -> matrix.Export:
    return trained(lightgbm.LGBMRegressor(n_estimators=10, min_child_samples=2, verbose=-1), NUMBERS, TOWNS, target="stars")


@model
def boosted_by_xgboost() -> matrix.Export:
    return trained(xgboost.XGBClassifier(n_estimators=6, max_depth=3), NUMBERS, TOWNS, gaps=True)
