"""LightGBM and XGBoost, by onnxmltools, alone and inside pipelines."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import onnxmltools
import xgboost
from exports import matrix
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.datasets import make_blobs

CONVERT: dict[str, Callable[..., Any]] = {"lightgbm": onnxmltools.convert_lightgbm, "xgboost": onnxmltools.convert_xgboost}
MODELS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "lightgbm_classes": ("lightgbm", lambda: lightgbm.LGBMClassifier(n_estimators=10, min_child_samples=2, verbose=-1), 3),
    "lightgbm_binary": ("lightgbm", lambda: lightgbm.LGBMClassifier(n_estimators=10, min_child_samples=2, verbose=-1), 2),
    "lightgbm_regression": ("lightgbm", lambda: lightgbm.LGBMRegressor(n_estimators=10, min_child_samples=2, verbose=-1), 0),
    "lightgbm_poisson": ("lightgbm", lambda: lightgbm.LGBMRegressor(objective="poisson", n_estimators=5, min_child_samples=2, verbose=-1), 0),
    "xgboost_classes": ("xgboost", lambda: xgboost.XGBClassifier(n_estimators=6, max_depth=3), 3),
    "xgboost_binary": ("xgboost", lambda: xgboost.XGBClassifier(n_estimators=6, max_depth=3), 2),
    "xgboost_regression": ("xgboost", lambda: xgboost.XGBRegressor(n_estimators=6, max_depth=3), 0),
    "xgboost_forest": ("xgboost", lambda: xgboost.XGBRFRegressor(n_estimators=6, max_depth=3), 0),
}


def boosted(name: str, missing: bool) -> matrix.Export:
    library, make, classes = MODELS[name]
    x, y = make_blobs(80, 4, centers=max(classes, 1), cluster_std=3.0, random_state=3)
    x = x.astype(np.float32)
    target = y if classes else np.abs(x[:, 0] * 2 + x[:, 1]).astype(np.float32)
    if missing:
        x[::5, 2] = np.nan
    fitted = make().fit(x, target)
    try:
        options = {"zipmap": False} if library == "lightgbm" and classes else {}
        proto = CONVERT[library](fitted, initial_types=[("X", FloatTensorType([None, 4]))], **options)
    except Exception as refusal:
        raise matrix.NotExported(matrix.reason(refusal)) from refusal
    sets = [x, x[:3], x[:1]]
    outputs = [[fitted.predict(s).astype(np.int64), fitted.predict_proba(s).astype(np.float32)] if classes else [fitted.predict(s).astype(np.float32)[:, None]] for s in sets]
    return matrix.Export(proto.SerializeToString(), [{"X": s} for s in sets], outputs, rtol=1e-3, atol=1e-4)


for _name in MODELS:
    for _missing in (False, True):
        matrix.add(__name__, matrix.Case("onnxmltools", f"{_name}{'_missing' * _missing}", lambda n=_name, m=_missing: boosted(n, m)))  # type: ignore[misc]
