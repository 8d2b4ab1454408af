"""Show what became of a model: its graph, the rewrites, the plan, the kernels."""
from __future__ import annotations

import argparse

from gpuonnx.cli import feeds
from gpuonnx.cli.options import add_input_options, add_session_options, open_session


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--stage", default="plan", choices=("graph", "passes", "plan", "kernels"), help="(default: plan)")
    add_input_options(parser)
    add_session_options(parser)


def execute(args: argparse.Namespace) -> int:
    """A variant is compiled for the inputs given, or for random ones."""
    opened = open_session(args, args.model)
    args.random = True
    feeds.run(opened.session, feeds.feeds(opened.session, args), args)
    print(f"device {opened.session.device} ({opened.reason})\n{opened.session.explain(args.stage)}")
    return 0
