"""Runs cases in worker processes: one that dies or hangs fails its case, and the rest goes on in a new process."""
from __future__ import annotations

import json
import queue
import selectors
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

START_SECONDS = 300.0
COMMAND = ["-m", "gpuonnx.conformance.worker"]


@dataclass(frozen=True)
class Result:
    """status: passed, failed or skipped. interpreted: why, for each node that ran by NumPy or the onnx package for want of a kernel.
    placed: (operator, host or device, why) of what ran."""

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    interpreted: Sequence[str] = ()
    placed: Sequence[Sequence[str]] = ()


class Worker:
    """One process and the pipe to it."""

    def __init__(self, device: str, threads: int) -> None:
        self.errors = TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, *COMMAND, device, str(threads)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.pending = b""
        if self.line(START_SECONDS) is None:
            code = self.close()
            raise RuntimeError(f"a worker did not start (exit code {code}): {self.last_words()}")

    def line(self, seconds: float) -> dict[str, Any] | None:
        """The next answer; None where the process ended or said nothing for `seconds`."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.pending:
                if not selector.select(seconds):
                    return None
                block = self.process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
                if not block:
                    return None
                self.pending += block
        text, _, self.pending = self.pending.partition(b"\n")
        found: dict[str, Any] = json.loads(text)
        return found

    def run(self, name: str, seconds: float) -> Result:
        """A case's result, whatever becomes of the process."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(name.encode() + b"\n")
            self.process.stdin.flush()
            found = self.line(seconds)
        except BrokenPipeError:
            found = None
        if found is not None:
            return Result(**found)
        hung = self.process.poll() is None and not self._ended()
        code = self.close()
        if hung:
            return Result(name, "failed", f"hangs: no answer in {seconds:g} s", seconds)
        return Result(name, "failed", f"crashes: the process ended with code {code}; {self.last_words()}")

    def _ended(self) -> bool:
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> int:
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        return code

    def last_words(self) -> str:
        """The end of what the process wrote to standard error."""
        self.errors.seek(0)
        return " / ".join(self.errors.read().decode("utf-8", "replace").strip().splitlines()[-6:])[:400]


def run(names: Sequence[str], device: str = "cpu", jobs: int = 1, timeout: float = 120.0, threads: int = 1,
        each: Callable[[Result], None] | None = None) -> list[Result]:
    """Results in the order of `names`. timeout: seconds for one case. `each` is called with every result as it comes."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    found: dict[str, Result] = {}
    faults: list[BaseException] = []
    lock = threading.Lock()

    def serve() -> None:
        worker: Worker | None = None
        try:
            while not faults:
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    break
                worker = worker if worker is not None and worker.alive else Worker(device, threads)
                result = worker.run(name, timeout)
                with lock:
                    found[name] = result
                    if each is not None:
                        each(result)
        except BaseException as error:
            faults.append(error)
        finally:
            if worker is not None:
                worker.close()

    servers = [threading.Thread(target=serve) for _ in range(max(1, min(jobs, len(names))))]
    for server in servers:
        server.start()
    try:
        for server in servers:
            server.join()
    except KeyboardInterrupt as error:
        faults.append(error)
        raise
    if faults:
        raise faults[0]
    return [found[name] for name in names]


def counts(results: Sequence[Result]) -> dict[str, int]:
    """Cases by status."""
    counted = Counter(result.status for result in results)
    return {status: counted[status] for status in ("passed", "failed", "skipped")}
