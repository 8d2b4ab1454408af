"""Read handwritten digits with a small network."""
from __future__ import annotations

import argparse
import json
import time

import numpy as np

from gpuonnx import demo
from gpuonnx.cli.options import Opened, add_session_options, console_of, open_session, positive
from gpuonnx.cli.run import report, timing

SHADES = " .:-=+*#%@"


def register(parser: argparse.ArgumentParser) -> None:
    add_session_options(parser)
    parser.add_argument("--repeat", type=positive, default=50, metavar="N", help="runs that the median time is taken of (default: 50)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def execute(args: argparse.Namespace) -> int:
    """Exit code 1 where an answer is wrong that should be right."""
    samples = demo.samples()
    opened = open_session(args, demo.model())
    seconds = []
    for _ in range(args.repeat + 1):
        begin = time.perf_counter()
        outputs = opened.session.run(samples.images)
        seconds.append(time.perf_counter() - begin)
    probabilities = outputs["probabilities"]
    answers = probabilities.argmax(1)
    if args.json:
        about = report("demo", opened, {"image": samples.images}, outputs, seconds)
        print(json.dumps({**about, "answers": answers.tolist(), "truth": samples.labels.tolist(), "accuracy": samples.accuracy}))
    else:
        _print(samples, probabilities, opened, seconds)
    return 0 if (answers == samples.labels).mean() >= 0.9 else 1


def _print(samples: demo.Samples, probabilities: np.ndarray, opened: Opened, seconds: list[float]) -> None:
    console = console_of()
    answers = probabilities.argmax(1)
    for half in (slice(0, 5), slice(5, 10)):
        rows = ["  ".join(picture[y] for picture in map(drawn, samples.images[half, 0])) for y in range(8)]
        console.print("\n".join(rows))
        told = zip(answers[half], probabilities[half], samples.labels[half], strict=True)
        notes = [f"{answer} ({p.max():.0%}), is {truth}" for answer, p, truth in told]
        console.print("  ".join(f"{note:16}" for note in notes) + "\n")
    right = int((answers == samples.labels).sum())
    console.print(f"{right} of {len(answers)} right; on {samples.count} images that it was not trained on: {samples.accuracy:.1%}")
    console.print(timing(opened, seconds))


def drawn(image: np.ndarray) -> list[str]:
    """8 lines of 16 characters for an 8x8 image of 0 to 16."""
    return ["".join(2 * SHADES[int(value * (len(SHADES) - 1) / 16)] for value in row) for row in image]
