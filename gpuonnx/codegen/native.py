"""Text to object code to addresses, for the CPU of this process: LLVM through llvmlite, Python through Numba.

Every object is ELF (on every system, so that one reader of symbol tables serves), defines the symbol it was asked for, and
may leave undefined only names of `ALLOWED`: an unresolved name would not fail at load, it would crash at the first call.
"""
from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

from gpuonnx.codegen.linker import Unlinkable, link
from gpuonnx.config import cache_dir
from gpuonnx.errors import CompileError
from gpuonnx.kernels.contract import CTX_CODE, ERROR_DOMAIN, Kernel

_REAL = ("acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs floor fma fmax fmin fmod frexp "
         "hypot ldexp lgamma log log10 log1p log2 modf nearbyint pow remainder rint round roundeven sin sincos sinh sqrt tan tanh tgamma trunc")
LIBM = frozenset(name + suffix for name in _REAL.split(" ") for suffix in ("", "f"))
MEMORY = frozenset(("memcpy", "memmove", "memset", "memcmp", "bzero"))
SYSTEM = frozenset(("syscall", "sched_yield", "clock_gettime"))
ALLOWED = LIBM | MEMORY | SYSTEM

NUMBA_PASSES = ("instruction_combine", "simplify_cfg")
PASSES = ("sroa", "instruction_combine", "simplify_cfg", "loop_rotate", "new_gvn", "instruction_combine", "simplify_cfg")


@dataclass(frozen=True)
class Host:
    """What object code depends on; `features` is LLVM's list, +/- each."""

    triple: str
    cpu: str
    features: str

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")


@cache
def host() -> Host:
    """This machine; what LLVM says of it is kept on disk, so that a warm start need not ask."""
    key = _host_key()
    path = cache_dir() / "host.json"
    try:
        kept = json.loads(path.read_text())
        if kept.pop("key") == key:
            return Host(**kept)
    except (OSError, ValueError, TypeError, KeyError):
        kept = None
    found = _ask_host()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"key": key, **asdict(found)}))
        temporary.replace(path)
    except OSError:
        return found
    return found


def _host_key() -> str:
    """The processor's own description, and which llvmlite is installed."""
    found = find_spec("llvmlite")
    stamp = os.stat(found.origin).st_mtime_ns if found and found.origin else 0
    try:
        with open("/proc/cpuinfo", "rb") as file:
            text = file.read().split(b"\n\n")[0]
    except OSError:
        text = platform.processor().encode()
    lines = [line for line in text.splitlines() if line.split(b"\t")[0] in (b"flags", b"Features", b"model name", b"model", b"cpu family")]
    return blake2b(b"\n".join(lines) + str(stamp).encode(), digest_size=16).hexdigest()


def _ask_host() -> Host:
    import llvmlite.binding as llvm
    triple = llvm.get_process_triple()
    if llvm.get_object_format() != "ELF":
        triple += "-elf"
    features = llvm.get_host_cpu_features().flatten()
    if "+avx512f" in features.split(","):
        features += ",-prefer-256-bit"
    return Host(triple, llvm.get_host_cpu_name(), features)


@cache
def _machine() -> Any:
    import llvmlite.binding as llvm
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(host().triple)
    return target.create_target_machine(cpu=host().cpu, features=host().features, opt=2, reloc="default", codemodel="jitdefault", jit=True)


def _parse(text: str, symbol: str) -> Any:
    import llvmlite.binding as llvm
    machine = _machine()
    try:
        module = llvm.parse_assembly(text)
        module.triple = host().triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"kernel {symbol}: LLVM refused its text: {error}") from error
    return module


def _emit(module: Any, symbol: str, passes: Iterable[str]) -> bytes:
    """Run `passes`, keep only what `symbol` needs, emit and check."""
    import llvmlite.binding as llvm
    for item in (*module.functions, *module.global_variables):
        if item.name != symbol and not item.is_declaration:
            item.linkage = "internal"
    manager = llvm.create_new_module_pass_manager()
    manager.add_global_dead_code_eliminate_pass()
    for name in passes:
        getattr(manager, f"add_{name}_pass")()
    manager.run(module, llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options(speed_level=1)))
    obj: bytes = _machine().emit_object(module)
    check(obj, symbol)
    return obj


def compile_llvm(text: str, symbol: str) -> bytes:
    """An object that defines `symbol`, from the text of an LLVM module that does."""
    return _emit(_parse(text, symbol), symbol, PASSES)


def optimised_llvm(text: str, symbol: str) -> tuple[str, str]:
    """The module after the passes and its assembly, for people to read."""
    import llvmlite.binding as llvm
    module = _parse(text, symbol)
    manager = llvm.create_new_module_pass_manager()
    for name in PASSES:
        getattr(manager, f"add_{name}_pass")()
    manager.run(module, llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options(speed_level=1)))
    return str(module), _machine().emit_assembly(module)


def numba_llvm(function: Callable[..., None], signature: Any, symbol: str) -> str:
    """The LLVM module of a Python function, compiled by Numba, under the name `symbol`.

    `signature` is Numba's, returning void; None means the kernels' own, void(int64*, int64*, int64). A function that raises
    stores ERROR_DOMAIN in its first argument (the kernels' own signature only)."""
    compiler, errors, types, lock, registry = (import_module(f"numba.core.{part}") for part in
                                               ("compiler", "errors", "types", "compiler_lock", "registry"))
    words = types.CPointer(types.int64)
    arguments = (words, words, types.int64) if signature is None else tuple(signature.args)
    flags = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.nrt = True
    flags.error_model = "numpy"
    typing, target = registry.cpu_target.typing_context, registry.cpu_target.target_context
    typing.refresh()
    target.refresh()
    try:
        with lock.global_compiler_lock:
            result = compiler.compile_extra(typing, target, function, arguments, types.void, flags, {})
            result.library.finalize()
    except (errors.NumbaError, NotImplementedError) as error:
        raise CompileError(f"kernel {symbol}: Numba cannot compile {function.__name__}: {error}") from error
    name = result.fndesc.mangled_name
    kinds = [str(target.get_value_type(t)) for t in arguments]
    return str(result.library.get_llvm_str()) + _entry(symbol, name, kinds, signature is None)


def _entry(symbol: str, name: str, kinds: list[str], is_kernel: bool) -> str:
    kinds = ["ptr" if kind.endswith("*") else kind for kind in kinds]
    parameters = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(kinds))
    record = f"""
  %bad = icmp sgt i32 %status, 0
  br i1 %bad, label %raised, label %done
raised:
  %code = getelementptr i64, ptr %a0, i64 {CTX_CODE}
  store i64 {ERROR_DOMAIN}, ptr %code
  br label %done
done:""" if is_kernel else ""
    return f"""
define void @{symbol}({parameters}) nounwind {{
  %result = alloca ptr
  %raise = alloca ptr
  %status = call i32 @{name}(ptr %result, ptr %raise, {parameters}){record}
  ret void
}}
"""


def compile_numba(function: Callable[..., None], signature: Any, symbol: str) -> bytes:
    """An object that defines `symbol`, from a Python function (see `numba_llvm`); nothing of Numba is needed to run it."""
    return _emit(_parse(numba_llvm(function, signature, symbol), symbol), symbol, NUMBA_PASSES)


def rendered(kernel: Kernel, symbol: str) -> tuple[str, Iterable[str]]:
    """The LLVM text of a CPU kernel of the contract and the passes that it still needs."""
    made = kernel.make(symbol)
    if kernel.language == "llvm":
        return made, PASSES
    if kernel.language == "numba":
        return numba_llvm(made, None, symbol), NUMBA_PASSES
    raise CompileError(f"kernel {kernel.name}: language {kernel.language} is not compiled for the CPU")


def compile_kernel(kernel: Kernel, symbol: str) -> bytes:
    """The object of one CPU kernel of the contract."""
    text, passes = rendered(kernel, symbol)
    return _emit(_parse(text, symbol), symbol, passes)


def compile_many(kernels: Mapping[str, Kernel]) -> Iterator[tuple[str, bytes]]:
    """(symbol, object) as they are done. A thread runs LLVM, which needs no interpreter, while this one renders; the first error is
    raised after what others there are."""
    if len(kernels) < 2:
        yield from ((symbol, compile_kernel(kernel, symbol)) for symbol, kernel in kernels.items())
        return
    texts: SimpleQueue[Any] = SimpleQueue()
    done: SimpleQueue[Any] = SimpleQueue()

    def emit() -> None:
        while (item := texts.get()) is not None:
            symbol, text, passes = item
            try:
                done.put((symbol, _emit(_parse(text, symbol), symbol, passes)))
            except Exception as error:
                done.put((symbol, error))

    worker = threading.Thread(target=emit, name="gpuonnx-llvm", daemon=True)
    worker.start()
    errors: list[Exception] = []
    try:
        for symbol, kernel in kernels.items():
            try:
                texts.put((symbol, *rendered(kernel, symbol)))
            except Exception as error:
                done.put((symbol, error))
        for _ in kernels:
            symbol, made = done.get()
            if isinstance(made, bytes):
                yield symbol, made
            else:
                errors.append(made)
    finally:
        while not texts.empty():
            texts.get()
        texts.put(None)
        worker.join()
    if errors:
        raise errors[0]


def symbols(obj: bytes) -> tuple[set[str], set[str]]:
    """(defined global names, undefined names) of an ELF64 little-endian object."""
    try:
        if obj[:6] != b"\x7fELF\x02\x01":
            raise CompileError("object code is not 64-bit little-endian ELF")
        (start,), (size, number) = struct.unpack_from("<Q", obj, 0x28), struct.unpack_from("<HH", obj, 0x3A)
        sections = [struct.unpack_from("<IIQQQQIIQQ", obj, start + i * size) for i in range(number)]
        defined: set[str] = set()
        undefined: set[str] = set()
        for _, kind, _, _, offset, length, link, _, _, _ in sections:
            if kind == 2:
                names = obj[sections[link][4]:sections[link][4] + sections[link][5]]
                for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", obj[offset:offset + length]):
                    if name and (section == 0 or info >> 4):
                        (defined if section else undefined).add(names[name:names.index(b"\0", name)].decode())
    except (struct.error, IndexError, ValueError) as error:
        raise CompileError(f"object code is damaged: {error}") from error
    return defined, undefined - {"_GLOBAL_OFFSET_TABLE_"}


def undefined_symbols(obj: bytes) -> set[str]:
    """Names that loading the object must find elsewhere."""
    return symbols(obj)[1]


def check(obj: bytes, symbol: str) -> set[str]:
    """The undefined symbols of an object that defines `symbol`; CompileError where it may not be loaded."""
    defined, undefined = symbols(obj)
    if symbol not in defined:
        raise CompileError(f"kernel {symbol}: its object code defines only {', '.join(sorted(defined)) or 'nothing'}")
    bad = undefined - ALLOWED
    if bad:
        raise CompileError(f"kernel {symbol} calls {', '.join(sorted(bad))}: a kernel may only call libm and memory functions")
    return undefined


@cache
def _libm() -> ctypes.CDLL | None:
    from ctypes.util import find_library
    path = find_library("m")
    return ctypes.CDLL(path) if path else None


@cache
def _bound(name: str) -> bool:
    """Make a name known to the linker; False where this system lacks it."""
    import llvmlite.binding as llvm
    if llvm.address_of_symbol(name) is not None:
        return True
    for library in (_libm(), ctypes.CDLL(None)):
        function = getattr(library, name, None)
        if function is not None:
            llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
            return True
    return False


class Engine:
    """Loaded kernels by symbol. Code stays loaded until the process ends; an object is loaded once."""

    def __init__(self, addresses: Mapping[str, int]) -> None:
        self._addresses = dict(addresses)

    def address(self, symbol: str) -> int:
        return self._addresses[symbol]

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._addresses

    def __len__(self) -> int:
        return len(self._addresses)


_lock = threading.Lock()
_loaded: dict[tuple[str, bytes], int] = {}
_engines: list[Any] = []


def load(objects: Mapping[str, bytes]) -> Engine:
    """Addresses of the symbols: one JIT engine for all objects that this process has not loaded yet."""
    keys = {symbol: (symbol, blake2b(obj, digest_size=16).digest()) for symbol, obj in objects.items()}
    with _lock:
        new = {symbol: objects[symbol] for symbol, key in keys.items() if key not in _loaded}
        if new:
            for symbol, address in _link(new).items():
                _loaded[keys[symbol]] = address
        return Engine({symbol: _loaded[key] for symbol, key in keys.items()})


def _link(objects: Mapping[str, bytes]) -> dict[str, int]:
    for symbol, obj in objects.items():
        check(obj, symbol)
    try:
        return link(objects)
    except Unlinkable:
        return _link_by_llvm(objects)


def _link_by_llvm(objects: Mapping[str, bytes]) -> dict[str, int]:
    import llvmlite.binding as llvm
    machine = _machine()
    for symbol, obj in objects.items():
        missing = [name for name in check(obj, symbol) if not _bound(name)]
        if missing:
            raise CompileError(f"kernel {symbol} needs {', '.join(missing)}, which this system lacks")
    empty = llvm.parse_assembly("")
    empty.triple = host().triple
    engine = llvm.create_mcjit_compiler(empty, machine)
    _engines.append((engine, empty))
    for obj in objects.values():
        file = llvm.ObjectFileRef.from_data(obj)
        engine.add_object_file(file)
        _engines.append(file)
    engine.finalize_object()
    found = {symbol: engine.get_function_address(symbol) for symbol in objects}
    absent = [symbol for symbol, address in found.items() if not address]
    if absent:
        raise CompileError(f"kernels {', '.join(absent)} are not in their object code")
    return found
