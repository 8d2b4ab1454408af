"""Run a model on files or random inputs."""
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpuonnx.cli import feeds
from gpuonnx.cli.feeds import shown
from gpuonnx.cli.options import Opened, add_input_options, add_session_options, console_of, open_session, positive
from gpuonnx.errors import InputError

SHOWN_VALUES = 8


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    add_input_options(parser)
    add_session_options(parser)
    parser.add_argument("--output", "-o", metavar="FILE.npz", help="write the outputs, by name")
    parser.add_argument("--only", action="append", metavar="NAME", help="compute this output only (repeatable)")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="run N times, report the median of those after the first")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def execute(args: argparse.Namespace) -> int:
    if args.output and not args.output.endswith(".npz"):
        raise InputError(f"--output {args.output}: the name must end in .npz")
    opened = open_session(args, args.model)
    values = feeds.feeds(opened.session, args)
    seconds = []
    outputs: dict[str, Any] = {}
    for _ in range(args.repeat):
        begin = time.perf_counter()
        outputs = feeds.run(opened.session, values, args, args.only)
        seconds.append(time.perf_counter() - begin)
    if args.output:
        save(Path(args.output), outputs)
    if args.json:
        print(json.dumps(report(args.model, opened, values, outputs, seconds)))
    else:
        _print(args, opened, values, outputs, seconds)
    return 0


def save(path: Path, outputs: dict[str, Any]) -> None:
    """Arrays by name; types that NumPy's files do not know are widened to float32, strings to fixed width."""
    arrays: dict[str, Any] = {}
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray):
            raise InputError(f"output {name!r} is a {type(value).__name__}, which an .npz file cannot hold; choose others with --only")
        arrays[name] = value.astype(str) if value.dtype == object else value if value.dtype.isbuiltin == 1 else value.astype(np.float32)
    np.savez(path, **arrays)


def summary(value: Any) -> dict[str, Any]:
    """Type, shape, range and first values of an input or output."""
    if isinstance(value, (list, tuple)):
        return {"type": "sequence", "length": len(value), "items": [summary(item) for item in value[:SHOWN_VALUES]]}
    if not isinstance(value, np.ndarray):
        return {"type": type(value).__name__, "value": str(value)[:200]}
    found: dict[str, Any] = {"type": str(value.dtype), "shape": list(value.shape)}
    if value.dtype == object:
        return {**found, "first": [str(item) for item in value.ravel()[:SHOWN_VALUES]]}
    plain = value if value.dtype.kind in "biufc" else value.astype(np.float32)
    if value.size and plain.dtype.kind != "c":
        finite = plain[np.isfinite(plain)] if plain.dtype.kind == "f" else plain
        if finite.size:
            found.update(min=_number(finite.min()), max=_number(finite.max()), mean=_number(finite.mean(dtype=np.float64)))
        if finite.size < plain.size:
            found["not_finite"] = int(plain.size - finite.size)
    found["first"] = [_number(item) for item in plain.ravel()[:SHOWN_VALUES]]
    return found


def _number(x: Any) -> Any:
    item = x.item() if hasattr(x, "item") else x
    return item if isinstance(item, (bool, int)) or isinstance(item, float) and np.isfinite(item) else str(item)


def report(model: str, opened: Opened, values: dict[str, Any], outputs: dict[str, Any], seconds: list[float]) -> dict[str, Any]:
    return {
        "model": model, "device": opened.session.device, "why": opened.reason, "threads": opened.session.threads,
        "seconds": {"load": opened.seconds, "first": seconds[0], "next": float(np.median(seconds[1:])) if seconds[1:] else None},
        "stats": {name: value for name, value in vars(opened.session.stats).items() if isinstance(value, (int, float))},
        "inputs": {name: summary(value) for name, value in values.items()},
        "outputs": {name: summary(value) for name, value in outputs.items()},
    }


def _print(args: argparse.Namespace, opened: Opened, values: dict[str, Any], outputs: dict[str, Any], seconds: list[float]) -> None:
    from rich.table import Table
    table = Table("", "name", "type", "shape", "min", "max", "mean", "first values")
    for side, these in (("in", values), ("out", outputs)):
        for name, value in these.items():
            about = summary(value)
            numbers = [_short(about[key]) if key in about else "" for key in ("min", "max", "mean")]
            table.add_row(side, name, about["type"], shown(tuple(about["shape"])) if "shape" in about else str(about.get("length", "")), *numbers,
                          " ".join(_short(item) for item in about.get("first", [])[:4]))
    console = console_of()
    console.print(table)
    console.print(timing(opened, seconds))
    if args.output:
        console.print(f"written to {args.output}")


def _short(x: Any) -> str:
    return f"{x:.5g}" if isinstance(x, float) else str(x)


def timing(opened: Opened, seconds: list[float]) -> str:
    """Device, reason, times and kernels in two lines."""
    stats = opened.session.stats
    after = f", then {milliseconds(float(np.median(seconds[1:])))} (median of {len(seconds) - 1})" if len(seconds) > 1 else ""
    return (f"device {opened.session.device} ({opened.reason}), {opened.session.threads} threads\n"
            f"load {milliseconds(opened.seconds)}, first run {milliseconds(seconds[0])}{after}; "
            f"{stats.compiled} kernels compiled, {stats.cache_hits} from the cache")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
