"""Parses the command line; an error is one clear line and exit code 1."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import gpuonnx
from gpuonnx.errors import GpuOnnxError

COMMANDS = ("demo", "run", "inspect", "explain", "ops", "conformance", "doctor", "cache")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpuonnx", description="Run ONNX models; kernels are compiled while the program runs.",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"gpuonnx {gpuonnx.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"gpuonnx.cli.{name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--traceback", action="store_true", help="on an error, show where it was raised")
        command.set_defaults(execute=module.execute)
        module.register(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 after an error, 2 for a wrong command line, 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.execute(args))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GpuOnnxError, OSError) as error:
        if args.traceback:
            raise
        print(f"gpuonnx: {error}", file=sys.stderr)
    except Exception as error:
        if args.traceback:
            raise
        text = " ".join(str(error).split())
        print(f"gpuonnx: internal error: {type(error).__name__}: {text[:500]}\nThis is a fault of gpuonnx; --traceback shows where.", file=sys.stderr)
    return 1
