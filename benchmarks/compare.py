"""gpuonnx beside ONNX Runtime on the same machine: alternating blocks of runs, medians; ratio > 1 means gpuonnx is faster.

    python benchmarks/compare.py [MODEL.onnx ...] [--threads N] [--shape NAME=1,3,224,224] [--device cpu] [--json FILE]

Without MODEL: the demo's network at several batch sizes and the light models of the onnx package (their weights are constants, their
structure is real). Inputs are random, as `gpuonnx run --random` makes them. Exit status 1 where an output differs by more than 1e-3
of the largest value.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpuonnx
from gpuonnx import demo
from gpuonnx.cli.feeds import feeds
from gpuonnx.config import default_threads

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Figures:
    """Seconds: medians of single runs; `load` and `first` of gpuonnx (with compilation, or from its cache) and of ONNX Runtime."""

    name: str
    ours: float
    theirs: float
    load: float
    first: float
    their_load: float
    their_first: float
    error: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def block(run: Callable[[], Any], seconds: float) -> list[float]:
    """Times of single runs for about `seconds`, at least two."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 2:
        times.append(timed(run)[1])
    return times


def difference(expected: Any, got: Any) -> float:
    """Largest |difference| against the largest |expected|; inf where they cannot be compared."""
    e, g = np.asarray(expected), np.asarray(got)
    if e.shape != g.shape or e.dtype != g.dtype or e.dtype.kind not in "fiub":
        return 0.0 if e.dtype == g.dtype and np.array_equal(e, g) else float("inf")
    if not e.size:
        return 0.0
    return float(np.abs(e.astype(np.float64) - g.astype(np.float64)).max() / max(1e-12, float(np.abs(e).max())))


def compare(name: str, model: Any, options: argparse.Namespace) -> Figures:
    import onnxruntime as ort
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 4
    peer, their_load = timed(lambda: ort.InferenceSession(str(model) if isinstance(model, Path) else model, settings, ["CPUExecutionProvider"]))
    session, load = timed(lambda: gpuonnx.load(model, device=options.device, threads=options.threads))
    given = feeds(session, options)
    expected, their_first = timed(lambda: peer.run(None, given))
    got, first = timed(lambda: session.run(given))
    error = max(difference(e, g) for e, g in zip(expected, got.values(), strict=True))
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(options.rounds):
        ours += block(lambda: session.run(given), options.seconds)
        theirs += block(lambda: peer.run(None, given), options.seconds)
    return Figures(name, float(np.median(ours)), float(np.median(theirs)), load, first, their_load, their_first, error)


def light_models() -> Iterator[Path]:
    import onnx
    yield from sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", action="append", default=[], metavar="NAME=SIZES")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of runs of each engine (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a block (default: 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.input, options.random, options.seed = [], True, 0
    jobs: list[tuple[str, Any, list[str]]] = [(path.stem, path, options.shape) for path in options.models]
    if not jobs:
        jobs = [(f"demo, {n} images", demo.model(), [f"image={n},1,8,8"]) for n in (1, 32, 1000)]
        jobs += [(path.stem, path, []) for path in light_models()]
    found = []
    print(f"{'':24} {'gpuonnx':>11} {'ORT':>11} {'ratio':>6} {'load':>9} {'first':>9} {'error':>8}   (ms, {options.threads} threads)")
    for name, model, shapes in jobs:
        options.shape = shapes
        f = compare(name, model, options)
        found.append(f)
        print(f"{f.name:24} {f.ours * 1e3:11.3f} {f.theirs * 1e3:11.3f} {f.ratio:6.2f} {f.load * 1e3:9.0f} {f.first * 1e3:9.0f} "
              f"{f.error:8.1e}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([{**asdict(f), "ratio": f.ratio} for f in found], indent=1))
    return 0 if all(f.error <= TOLERANCE for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
