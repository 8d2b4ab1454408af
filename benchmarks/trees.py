"""Forests of scikit-learn and LightGBM, exported to ONNX, on gpuonnx and on ONNX Runtime; ratio > 1 means gpuonnx is faster.

    python benchmarks/trees.py [--threads 1 2] [--batch 1 100 10000] [--only NAME] [--trees 500] [--keep FOLDER]

Needs scikit-learn, skl2onnx, and for LightGBM lightgbm and onnxmltools; what is not installed is named and left out. The data are drawn from a
normal distribution, the targets are sums of products of features. Exit status 1 where a result differs.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gpuonnx

FEATURES, SAMPLES = 30, 4000
RANDOM = np.random.default_rng(3)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = RANDOM.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    y = x[:, 0] * x[:, 1] + np.abs(x[:, 2]) + 0.5 * x[:, 3] + 0.1 * RANDOM.standard_normal(SAMPLES)
    return x, y, np.digitize(y, np.quantile(y, [0.2, 0.4, 0.6, 0.8]))


def with_gaps(x: np.ndarray) -> np.ndarray:
    return np.where(RANDOM.random(x.shape) < 0.1, np.nan, x).astype(np.float32)


def by_sklearn(estimator: str, make: Callable[[Any], Any]) -> tuple[bytes, np.ndarray]:
    import sklearn.ensemble
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    x, y, classes = data()
    model, classifier = make(getattr(sklearn.ensemble, estimator)), estimator.endswith("Classifier")
    model.fit(x, classes if classifier else y)
    onnx_model = convert_sklearn(model, initial_types=[("x", FloatTensorType([None, FEATURES]))], target_opset={"": 17, "ai.onnx.ml": 3},
                                 options={id(model): {"zipmap": False}} if classifier else None)
    return onnx_model.SerializeToString(), x


def by_lightgbm(kind: str, trees: int, gaps: bool = False) -> tuple[bytes, np.ndarray]:
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType
    x, y, classes = data()
    x = with_gaps(x) if gaps else x
    model = getattr(lightgbm, kind)(n_estimators=trees, num_leaves=31, verbose=-1, n_jobs=1)
    model.fit(x, classes if kind.endswith("Classifier") else y)
    onnx_model = convert_lightgbm(model, initial_types=[("x", FloatTensorType([None, FEATURES]))], target_opset=15,
                                  **({"zipmap": False} if kind.endswith("Classifier") else {}))
    return onnx_model.SerializeToString(), x


FORESTS: dict[str, Callable[[int], tuple[bytes, np.ndarray]]] = {
    "lightgbm regressor": lambda n: by_lightgbm("LGBMRegressor", n),
    "lightgbm regressor, NaN": lambda n: by_lightgbm("LGBMRegressor", n, True),
    "hist gradient boosting": lambda n: by_sklearn("HistGradientBoostingRegressor", lambda c: c(max_iter=n, random_state=0)),
    "lightgbm 5 classes": lambda n: by_lightgbm("LGBMClassifier", max(1, n // 5)),
    "forest regressor, depth 8": lambda n: by_sklearn("RandomForestRegressor", lambda c: c(n, max_depth=8, n_jobs=1, random_state=0)),
    "forest regressor, full": lambda n: by_sklearn("RandomForestRegressor", lambda c: c(n, n_jobs=1, random_state=0)),
    "forest 5 classes, depth 8": lambda n: by_sklearn("RandomForestClassifier", lambda c: c(n, max_depth=8, n_jobs=1, random_state=0)),
    "gradient boosting, depth 3": lambda n: by_sklearn("GradientBoostingRegressor", lambda c: c(n_estimators=n, max_depth=3, random_state=0)),
}


def block(run: Callable[[], Any], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 2:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def error(expected: list[Any], got: list[Any]) -> float:
    """Largest difference against the largest value; labels count as 1 where more than one of a thousand differs (ties)."""
    worst = 0.0
    for e, g in zip(expected, got, strict=True):
        e, g = np.asarray(e), np.asarray(g)
        if e.dtype.kind == "f":
            worst = max(worst, float(np.abs(e - g).max() / np.abs(e).max()))
        elif (e != g).mean() > 1e-3:
            worst = 1.0
    return worst


def engines(model: bytes, threads: int) -> tuple[Any, Any]:
    import onnxruntime as ort
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, 4
    return gpuonnx.load(model, device="cpu", threads=threads), ort.InferenceSession(model, settings, ["CPUExecutionProvider"])


def row(name: str, session: Any, peer: Any, x: np.ndarray, batch: int, threads: int, options: argparse.Namespace) -> float:
    feed = {peer.get_inputs()[0].name: np.ascontiguousarray(x[np.arange(batch) % len(x)])}
    wrong = error(peer.run(None, feed), list(session.run(feed).values()))
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(options.rounds):
        theirs += block(lambda: peer.run(None, feed), options.seconds)
        ours += block(lambda: session.run(feed), options.seconds)
    a, b = float(np.median(ours)), float(np.median(theirs))
    print(f"{name:28} {threads:7} {batch:7} {a * 1e3:10.3f} {b * 1e3:10.3f} {b / a:6.2f} {wrong:8.1e}", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 100, 10000])
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--trees", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5, help="blocks of runs of each engine (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a block (default: 0.3)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the exported models here and use those that are there")
    options = parser.parse_args()
    print(f"{options.trees} trees {'':18} threads   batch    gpuonnx        ORT  ratio    error   (ms)")
    wrong = 0.0
    for name, make in FORESTS.items():
        if options.only not in name:
            continue
        path = options.keep / f"{name.replace(' ', '_').replace(',', '')}_{options.trees}.npz" if options.keep else None
        try:
            if path is not None and path.exists():
                kept = np.load(path)
                model, x = kept["model"].tobytes(), kept["x"]
            else:
                model, x = make(options.trees)
        except (ImportError, ValueError) as missing:
            print(f"{name:28} left out: {str(missing).splitlines()[0][:80]}")
            continue
        if path is not None:
            np.savez(path, model=np.frombuffer(model, np.uint8), x=x)
        for threads in options.threads:
            pair = engines(model, threads)
            wrong = max([wrong, *(row(name, *pair, x, batch, threads, options) for batch in options.batch)])
    return 0 if wrong <= 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
