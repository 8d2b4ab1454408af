"""What several commands share: the model, the device, inputs; a session with the time and the reason it took."""
from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from gpuonnx.session import Session

PIPE_COLUMNS = 160


@dataclass(frozen=True)
class Opened:
    """A session, the seconds it took to load, and what the library said of its device."""

    session: Session
    seconds: float
    reason: str


class Heard(logging.Handler):
    """Keeps what the library logs while a command runs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def add_session_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N, emulated-cuda (default: auto)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: the cores this process may use)")
    parser.add_argument("--memory-limit", type=positive, metavar="BYTES", help="working memory a run may take")
    parser.add_argument("--disable", action="append", default=[], metavar="PASS", help="switch a pass off (repeatable)")
    parser.add_argument("--cache-dir", metavar="DIR", help="where compiled kernels are kept")


def add_input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", "-i", action="append", default=[], metavar="[NAME=]FILE",
                        help="an input from .npy, .npz or .pb; an .npz without NAME gives all its arrays by name (repeatable)")
    parser.add_argument("--random", action="store_true", help="make up the inputs that are not given: normal floats, integers 0 and 1")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of --random (default: 0)")
    parser.add_argument("--shape", action="append", default=[], metavar="NAME=1,3,224,224",
                        help="shape of a random input; free sizes that are not given are 1 (repeatable)")


def console_of() -> Console:
    """Standard output; wide where it is no terminal."""
    from rich.console import Console
    return Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def open_session(args: argparse.Namespace, model: Any) -> Opened:
    """Load `model` with the command's options."""
    import gpuonnx
    heard, log = Heard(), logging.getLogger("gpuonnx")
    level = log.level
    log.addHandler(heard)
    log.setLevel(logging.INFO)
    begin = time.perf_counter()
    try:
        session = gpuonnx.load(model, device=args.device, threads=args.threads, memory_limit=args.memory_limit,
                               passes=dict.fromkeys(args.disable, False), cache_dir=args.cache_dir)
    finally:
        log.removeHandler(heard)
        log.setLevel(level)
    seconds = time.perf_counter() - begin
    reason = heard.lines[0] if heard.lines else f"asked for with --device {args.device}" if args.device != "auto" else "a GPU is there and works"
    return Opened(session, seconds, reason)


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE options as a mapping."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise InputError(f"{option} {text}: NAME=VALUE is expected")
        found[name] = value
    return found
