"""A model compiled and ready: `compile` names every stage once; `Session` is what a user holds."""
from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from gpuonnx.codegen.cache import KernelCache
from gpuonnx.config import default_threads
from gpuonnx.devices.choose import accelerator_for
from gpuonnx.errors import InputError
from gpuonnx.importer.load import Limits, Source, open_model
from gpuonnx.importer.procedure import Argument, InputInfo, Procedure, is_tensor
from gpuonnx.ir import types
from gpuonnx.ir.sizes import SizeProgram
from gpuonnx.kernels.cpu.executor import shared
from gpuonnx.planner.program import Program
from gpuonnx.runtime.deadline import time_limit
from gpuonnx.runtime.feed import prepare
from gpuonnx.runtime.loaded import LoadedProgram
from gpuonnx.runtime.saved import Compiled, Header, Library, cold, named_shape, session_key, stamp_of
from gpuonnx.runtime.variants import Context, Executable, Stats

if TYPE_CHECKING:
    from gpuonnx.devices.device import Accelerator
    from gpuonnx.importer.lower import Lowered


_loaded: WeakValueDictionary[tuple[int, int | None], LoadedProgram] = WeakValueDictionary()


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

    def __init__(self, cache: KernelCache, accelerator: Accelerator | None, options: Options) -> None:
        self.cache, self.accelerator, self.options = cache, accelerator, options

    def compile(self, procedure: Procedure, arguments: Sequence[Argument]) -> Compiled:
        """Every stage, once: lower, simplify, place, fuse, plan."""
        from gpuonnx import passes
        from gpuonnx.devices.cpu import Cpu
        from gpuonnx.importer.lower import lower
        from gpuonnx.planner.place import place
        from gpuonnx.planner.plan import plan
        options, trace = self.options, passes.Trace()
        cpu = Cpu(self.cache, options.winograd)
        lowered = lower(procedure, arguments)
        off = options.off if self.accelerator is None else options.off | passes.HOST_ONLY
        graph = passes.run_pipeline(lowered.graph, passes.DEVICE_FREE, off, options.stop_after, trace)
        placement = place(graph, cpu, self.accelerator, procedure.carried)
        placement = passes.run_placed(placement, passes.PER_DEVICE, options.off, options.stop_after, trace)
        program = plan(placement, cpu, self.accelerator, _binding(lowered.graph, arguments))
        return _compiled(lowered, program, arguments, {"graph": lowered.graph, "passes": trace, "final": placement.graph})


def _compiled(lowered: Lowered, program: Program, arguments: Sequence[Argument], texts: dict[str, Any]) -> Compiled:
    from gpuonnx.ir.show import answer
    inputs = list(lowered.graph.inputs)
    sources = {n: (inputs.index(s.value), s.axis, s.element) for n, s in lowered.graph.symbols.items() if s.value in inputs}
    questions = SizeProgram()
    answers = [(questions.register(q), answer) for q, answer in lowered.key]
    asked = {name for op, name in questions.slots if op == "sym"}
    key = ", ".join(answer(q, a) for q, a in lowered.key)
    return Compiled(questions.slots, answers, key, {n: s for n, s in sources.items() if n in asked}, [named_shape(v.shape) for v in inputs],
                    program, arguments, lowered.rest, texts)


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

    def __init__(self, source: Source, limits: Limits | None, device: str, accelerator: Accelerator | None, threads: int | None,
                 options: Options, cache: KernelCache) -> None:
        self.source, self.limits, self.device, self.options, self.cache = source, limits, device, options, cache
        self.threads = threads or default_threads()
        self.accelerator, self.stats = accelerator, Stats()
        executor = shared(cache.addresses)
        library = Library(cache, session_key(source.digest, device, options)) if accelerator is None else None
        self.context = Context(executor, executor.pool(self.threads), Compiler(cache, accelerator, options).compile, self._load_program, accelerator,
                               self.stats, options.loop_limit, library, options.memory_limit)
        header = library.header() if library is not None else None
        if header is None:
            self.procedure = self._model()
            if library is not None:
                library.keep_header(self._header())
        else:
            self.procedure = cold(header.name, header.inputs, header.outputs, header.output_infos, header.defaults)
        self._names = self.procedure.input_names
        self._main = Executable(self.procedure, self.context, "main", self._model)
        self._main.search()
        self._special: dict[tuple[tuple[str, ...], tuple[str, ...]], Executable] = {}

    def _model(self) -> Procedure:
        from gpuonnx.importer.load import load_model
        from gpuonnx.importer.model import main_procedure
        self._loaded = load_model(self.source, self.limits)
        return main_procedure(self._loaded)

    def _header(self) -> Header:
        procedure, folder = self.procedure, None if self.source.path is None else self.source.path.parent
        files = {} if folder is None else {str(folder / name): stamp_of(str(folder / name)) for name in self._loaded.external}
        return Header(procedure.name, procedure.inputs, procedure.outputs, procedure.output_infos, files, procedure.defaults)

    def _load_program(self, program: Program) -> LoadedProgram:
        """Sessions on the CPU share what is loaded; nothing of a run is in it."""
        key, limit = id(program), self.options.memory_limit
        loaded = _loaded.get((key, limit)) if self.accelerator is None else None
        if loaded is None or loaded.program is not program:
            loaded = LoadedProgram(program, self.context.executor, self.cache.addresses, self.accelerator, limit)
            if self.accelerator is None:
                _loaded[key, limit] = loaded
        self.stats.compiled = self.cache.compiled + getattr(self.accelerator, "compiled", 0)
        self.stats.cache_hits = self.cache.hits
        return loaded

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

    def _repr_html_(self) -> str:
        from gpuonnx.runtime.explain import as_html
        return as_html(self)

    def run(self, inputs: Any, outputs: Sequence[str] | None = None, out: Mapping[str, np.ndarray] | None = None,
            timeout: float | None = None) -> dict[str, Any]:
        """Outputs by name, in graph order.

        inputs: a mapping by name (which may name inputs that have a default too), a sequence in graph order, or one array.
        outputs: names to compute (others are pruned).
        out: buffers to fill, by name. timeout: seconds after which the run raises Cancelled.
        Raises InputError, ShapeError."""
        if outputs is None and out is None and timeout is None and type(inputs) is dict and len(inputs) == len(self._names):
            done = self._main.quicks.run([inputs.get(name) for name in self._names])
            if done is not None:
                self.stats.ran()
                return dict(zip(self.procedure.outputs, done, strict=True))
        over = [i for i in self.procedure.defaults if i.name in inputs] if isinstance(inputs, Mapping) else []
        infos = (*self.procedure.inputs, *over) if over else self.procedure.inputs
        values = prepare(infos, inputs)
        names = self.procedure.outputs if outputs is None else (outputs,) if isinstance(outputs, str) else tuple(outputs)
        executable = self._main if names == self.procedure.outputs and not over else self._executable(names, tuple(i.name for i in over))
        buffers = _buffers(out, names, infos, values) if out else {}
        with time_limit(timeout):
            results = executable.run(values, buffers)
        self.stats.ran()
        return dict(zip(names, results, strict=True))

    def _executable(self, names: tuple[str, ...], over: tuple[str, ...]) -> Executable:
        """What computes some of the outputs, with some of the defaults as inputs."""
        found = self._special.get((names, over))
        if found is None:
            unknown = [n for n in names if n not in self.procedure.outputs]
            if unknown:
                raise InputError(f"there is no output {unknown[0]!r}; outputs are {', '.join(self.procedure.outputs)}")
            found = self._special.setdefault((names, over), self._specialized(names, over))
        return found

    def _specialized(self, names: tuple[str, ...], over: tuple[str, ...]) -> Executable:
        infos = {i.name: i for i in self.procedure.output_infos}

        def changed(procedure: Procedure) -> Procedure:
            return replace(procedure, outputs=names, output_infos=tuple(infos[n] for n in names),
                           inputs=(*procedure.inputs, *(i for i in procedure.defaults if i.name in over)),
                           constants={k: v for k, v in procedure.constants.items() if k not in over})
        path = f"only {' '.join(names)}" + (f" with {' '.join(over)}" if over else "")
        return Executable(changed(self.procedure), self.context, path, lambda: changed(self._main.hot()))

    def explain(self, stage: str = "plan") -> str:
        """The text of a stage (graph, passes, plan, kernels) of every variant compiled so far. Raises ValueError for another."""
        from gpuonnx.runtime.explain import explain
        return explain(self, stage)


def _buffers(out: Mapping[str, np.ndarray], names: tuple[str, ...], infos: Sequence[InputInfo], values: list[Any]) -> dict[int, np.ndarray]:
    """The caller's buffers by output number. Raises InputError for one that cannot be filled while the inputs are read."""
    for name, array in out.items():
        if name not in names:
            raise InputError(f"out names {name!r}, which is not an output that is computed; those are {', '.join(names)}")
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.flags.writeable or not array.flags.aligned:
            raise InputError(f"the buffer for output {name!r} must be a C-contiguous, aligned and writeable NumPy array")
        for info, value in zip(infos, values, strict=True):
            if isinstance(value, np.ndarray) and np.may_share_memory(array, value):
                raise InputError(f"the buffer for output {name!r} overlaps input {info.name!r}; give {info.name}.copy() or another buffer")
        for other, second in out.items():
            if other != name and np.may_share_memory(array, second):
                raise InputError(f"the buffers for outputs {name!r} and {other!r} overlap")
    return {names.index(k): v for k, v in out.items()}


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
    if precision not in (None, "highest", "auto"):
        raise InputError(f"precision {precision!r} is not known; None, 'highest' and 'auto' compute in the model's own types")
    if winograd not in ("auto", "f2", "off"):
        raise InputError(f"winograd {winograd!r} is none of auto, f2, off")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    off = frozenset(name for name, on in (passes or {}).items() if not on)
    cache = KernelCache(cache_dir)
    source = open_model(model, limits, cache)
    name, accelerator = accelerator_for(device)
    options = Options(winograd, off, None, memory_limit)
    return Session(source, limits, name, accelerator, threads, options, cache)


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
