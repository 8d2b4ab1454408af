"""A model compiled and ready: `compile` names every stage once; `Session` is what a user holds."""
from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpuonnx import passes
from gpuonnx.codegen.cache import KernelCache
from gpuonnx.config import default_threads
from gpuonnx.devices.cpu import Cpu
from gpuonnx.devices.device import Accelerator
from gpuonnx.errors import InputError
from gpuonnx.importer.load import LoadedModel
from gpuonnx.importer.lower import lower
from gpuonnx.importer.model import main_procedure
from gpuonnx.importer.procedure import Argument, InputInfo, Procedure, is_tensor
from gpuonnx.ir import types
from gpuonnx.kernels.cpu.executor import Executor
from gpuonnx.planner.place import place
from gpuonnx.planner.plan import plan
from gpuonnx.runtime.execute import Context, Executable, Stats, Variant, time_limit
from gpuonnx.runtime.frame import LoadedProgram


@dataclass(frozen=True)
class Options:
    """What changes the compiled program."""

    winograd: str = "auto"
    off: frozenset[str] = frozenset()
    stop_after: int | None = None
    memory_limit: int | None = None
    loop_limit: int = 1 << 31


@dataclass(frozen=True)
class Io:
    """An input or output: name, NumPy dtype (or a name like `seq(f32)`), shape of ints, symbol names and None."""

    name: str
    dtype: Any
    shape: tuple[int | str | None, ...] | None


class Compiler:
    """The way from a procedure to a variant; `compile` is the whole of it."""

    def __init__(self, cpu: Cpu, accelerator: Accelerator | None, options: Options) -> None:
        self.cpu, self.accelerator, self.options = cpu, accelerator, options
        self.executor = Executor(cpu.cache.addresses)
        self.context: Context | None = None

    def compile(self, procedure: Procedure, arguments: Sequence[Argument]) -> Variant:
        """Every stage, once: lower, simplify, place, fuse, plan, compile kernels."""
        options, trace = self.options, passes.Trace()
        lowered = lower(procedure, arguments)
        graph = passes.run_pipeline(lowered.graph, passes.DEVICE_FREE, options.off, options.stop_after, trace)
        placement = place(graph, self.cpu, self.accelerator)
        placement = passes.run_placed(placement, passes.PER_DEVICE, options.off, options.stop_after, trace)
        program = plan(placement, self.cpu, self.accelerator, _binding(lowered.graph, arguments))
        loaded = LoadedProgram(program, self.executor, self.cpu.compile, self.accelerator, options.memory_limit)
        return self.variant(lowered, loaded, placement.graph, trace)

    def variant(self, lowered: Any, loaded: LoadedProgram, final: Any, trace: Any) -> Variant:
        assert self.context is not None
        inputs = list(lowered.graph.inputs)
        sources = {n: (inputs.index(s.value), s.axis, s.element) for n, s in lowered.graph.symbols.items() if s.value in inputs}
        rest = Executable(lowered.rest, self.context) if lowered.rest is not None else None
        bodies = [Executable(b, self.context) for b in loaded.program.procedures]
        texts = {"graph": lowered.graph, "passes": trace, "final": final}
        return Variant(lowered.key, sources, [v.shape for v in inputs], loaded, rest, bodies, texts=texts)


def _binding(graph: Any, arguments: Sequence[Argument]) -> dict[str, int | float]:
    inputs = list(graph.inputs)
    out: dict[str, int | float] = {}
    for name, s in graph.symbols.items():
        if s.value in inputs:
            argument = arguments[inputs.index(s.value)]
            if s.axis is not None and argument.shape is not None:
                out[name] = argument.shape[s.axis]
            elif s.element is not None and argument.elements is not None:
                out[name] = argument.elements.ravel()[s.element].item()
    return out


class Session:
    """A loaded model. `run` may be called from many threads at once."""

    def __init__(self, model: LoadedModel, device_name: str, accelerator: Accelerator | None, threads: int | None, options: Options,
                 cache: KernelCache) -> None:
        self.model, self.device, self.options, self.cache = model, device_name, options, cache
        self.threads = threads or default_threads()
        self.procedure = main_procedure(model)
        self.compiler = Compiler(Cpu(cache, options.winograd), accelerator, options)
        executor = self.compiler.executor
        self.stats = Stats()
        self.context = Context(executor, executor.pool(self.threads), self.compiler.compile, accelerator, self.stats, options.loop_limit)
        self.compiler.context = self.context
        self._main = Executable(self.procedure, self.context)
        self._pruned: dict[tuple[str, ...], Executable] = {}

    @property
    def inputs(self) -> list[Io]:
        return [_io(i) for i in self.procedure.inputs]

    @property
    def outputs(self) -> list[Io]:
        return [_io(i) for i in self.procedure.output_infos]

    def __repr__(self) -> str:
        def shown(ios: list[Io]) -> str:
            return ", ".join(f"{i.name}: {i.dtype}{list(i.shape) if i.shape is not None else ''}" for i in ios)
        return f"<gpuonnx.Session on {self.device}, ({shown(self.inputs)}) -> ({shown(self.outputs)})>"

    def run(self, inputs: Any, outputs: Sequence[str] | None = None, out: Mapping[str, np.ndarray] | None = None,
            timeout: float | None = None) -> dict[str, Any]:
        """Outputs by name, in graph order.

        inputs: a mapping by name, a sequence in graph order, or one array. outputs: names to compute (others are pruned).
        out: buffers to fill, by name. timeout: seconds after which the run raises Cancelled.
        Raises InputError, ShapeError."""
        from gpuonnx.runtime.feed import prepare
        values = prepare(self.procedure.inputs, inputs)
        names = tuple(outputs) if outputs is not None else self.procedure.outputs
        executable = self._executable(names)
        buffers = {names.index(k): self._buffer(k, v, names) for k, v in (out or {}).items()}
        with time_limit(timeout):
            results = executable.run(values, buffers)
        self.stats.runs += 1
        return dict(zip(names, results, strict=True))

    def _buffer(self, name: str, array: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        if name not in names:
            raise InputError(f"out names {name!r}, which is not an output that is computed; those are {', '.join(names)}")
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise InputError(f"the buffer for output {name!r} must be C-contiguous and writeable")
        return array

    def _executable(self, names: tuple[str, ...]) -> Executable:
        if names == self.procedure.outputs:
            return self._main
        if names not in self._pruned:
            unknown = [n for n in names if n not in self.procedure.outputs]
            if unknown:
                raise InputError(f"there is no output {unknown[0]!r}; outputs are {', '.join(self.procedure.outputs)}")
            self._pruned[names] = Executable(replace(self.procedure, outputs=names), self.context)
        return self._pruned[names]

    def explain(self, stage: str = "plan") -> str:
        """The text of a stage (graph, passes, plan, kernels) of every variant compiled so far."""
        from gpuonnx.runtime.explain import explain
        return explain(self, stage)


def _io(info: InputInfo) -> Io:
    dtype = types.numpy_dtype(info.dtype) if is_tensor(info.dtype) else info.dtype
    return Io(info.name, dtype, info.dims)



def load(model: Any, device: str = "auto", threads: int | None = None, precision: str | None = None, memory_limit: int | None = None,
         winograd: str = "auto", passes: Mapping[str, bool] | None = None, cache_dir: str | None = None, limits: Any = None,
         custom_ops: Sequence[Any] = ()) -> Session:
    """Load a model: path, bytes, file object or ModelProto.

    device: auto (a GPU if one works, else the CPU, and says which once), cpu, cuda, cuda:N, emulated-cuda.
    threads: CPU threads (default: the CPUs this process may use). memory_limit: bytes of working memory a run may take.
    winograd: auto, f2 or off. passes: {name: False} switches a pass off. limits: `gpuonnx.Limits`.
    custom_ops: modules or functions already declared with `@gpuonnx.op` (importing them is enough).
    Raises ModelError, UnsupportedOp, UnsupportedType, DeviceError."""
    from gpuonnx.devices.choose import accelerator_for
    from gpuonnx.importer.load import load_model
    if precision not in (None, "highest", "auto"):
        raise InputError(f"precision {precision!r} is not known; None, 'highest' and 'auto' compute in the model's own types")
    if winograd not in ("auto", "f2", "off"):
        raise InputError(f"winograd {winograd!r} is none of auto, f2, off")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    off = frozenset(name for name, on in (passes or {}).items() if not on)
    loaded = load_model(model, limits) if limits is not None else load_model(model)
    name, accelerator = accelerator_for(device)
    options = Options(winograd, off, None, memory_limit)
    return Session(loaded, name, accelerator, threads, options, KernelCache(cache_dir))


_sessions: OrderedDict[Any, Session] = OrderedDict()
_sessions_lock = threading.Lock()
KEPT_SESSIONS = 8


def run(model: Any, inputs: Any, outputs: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
    """Load (kept in a small cache), run once, give outputs by name. `options` are those of `load`."""
    key = _session_key(model, options)
    with _sessions_lock:
        session = _sessions.get(key) if key is not None else None
    if session is None:
        session = load(model, **options)
        if key is not None:
            with _sessions_lock:
                _sessions[key] = session
                while len(_sessions) > KEPT_SESSIONS:
                    _sessions.popitem(last=False)
    return session.run(inputs, outputs)


def _session_key(model: Any, options: Mapping[str, Any]) -> Any:
    """What stands for the same model: a file by its identity on disk, bytes by digest; other objects are not kept."""
    plain = tuple(sorted((k, repr(v)) for k, v in options.items()))
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.is_file():
            return None
        status = path.stat()
        return (str(path.resolve()), status.st_mtime_ns, status.st_size, status.st_ino, plain)
    if isinstance(model, bytes):
        return (hashlib.sha256(model).digest(), plain)
    return None
