"""What was compiled or packed once, kept on disk by content and shared by processes.

An entry is one file: a header of 64 bytes (magic, length, digest, how much of it is digested in full), then the payload. Files
appear by rename, so a reader sees a whole entry or none; one that does not match its digest is deleted and made again. A directory
that cannot be written is only read.
"""
from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import blake2b, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpuonnx.codegen import native
from gpuonnx.config import cache_dir, cache_limit
from gpuonnx.errors import CompileError
from gpuonnx.ir.dims import Poly, Real
from gpuonnx.ir.expr import Expr, postorder
from gpuonnx.kernels.contract import Kernel

MAGIC = b"GPUONNX2"
HEADER = struct.Struct("<8sQ32sQ8x")
MAPPED = 1 << 17
WHOLE, PAGES, PAGE = 4 << 20, 64, 4096
DAY, BETWEEN = 86400, 256 << 20
PACKAGE = Path(__file__).resolve().parent.parent
GENERATORS = ("./ir", "./kernels/cpu", "./codegen")
APART = frozenset((*GENERATORS, "./cli", "./conformance", "./demo", "./devices/emulation", "./kernels/cuda"))
SOURCES = (".py", ".cu", ".cuh")
Payload = bytes | memoryview


@cache
def generator() -> bytes:
    """Digest of the sources (names, sizes, times of change) that decide what a kernel's key compiles to, and of the compilers' versions."""
    digest = sha256()
    for folder in GENERATORS:
        digest.update(stamps(PACKAGE / folder, folder))
    for name in ("llvmlite", "numba"):
        digest.update(name.encode() + _version(name))
    return digest.digest()


def _version(package: str) -> bytes:
    """What a package's _version.py says, read where an import would find it; the import system is asked if no folder has it."""
    for folder in sys.path:
        with suppress(OSError), open(os.path.join(folder, package, "_version.py"), "rb") as file:
            return file.read()
    found = find_spec(package)
    version = Path(found.origin).with_name("_version.py") if found and found.origin else None
    return version.read_bytes() if version and version.exists() else b"?"


def stamps(folder: str | os.PathLike[str], name: str, below: bool = False) -> bytes:
    """Names, sizes and times of change of the sources in a folder, and in those below it that are no generators and matter to programs."""
    found, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SOURCES):
                status = entry.stat()
                found.append(f"{name}/{entry.name} {status.st_size} {status.st_mtime_ns}\n")
            elif below and "." not in entry.name and f"{name}/{entry.name}" not in APART and entry.name != "__pycache__" and entry.is_dir():
                folders.append(entry.name)
    return "".join(sorted(found)).encode() + b"".join(stamps(os.path.join(folder, f), f"{name}/{f}", True) for f in sorted(folders))


def fingerprint(*parts: Any) -> str:
    """SHA-256 of structured data: numbers, text, bytes, tuples, sets, mappings, dataclasses, Exprs, Dims, in hexadecimal."""
    digest = sha256()
    for token in _tokens(parts):
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def _tokens(value: Any) -> Iterator[bytes]:
    if isinstance(value, (bool, int, complex, str, type(None), Poly, Real)):
        yield f"{type(value).__name__} {value}".encode()
    elif isinstance(value, float):
        yield b"float " + struct.pack("<d", value)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        yield b"bytes " + bytes(value)
    elif isinstance(value, Expr):
        yield from _expression(value)
    elif isinstance(value, (tuple, list)):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _tokens(item)
    elif isinstance(value, (set, frozenset)):
        yield from _tokens(("set", sorted(fingerprint(item) for item in value)))
    elif isinstance(value, Mapping):
        yield from _tokens(("mapping", sorted((fingerprint(k), fingerprint(v)) for k, v in value.items())))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tokens((type(value).__qualname__, *(getattr(value, f.name) for f in fields(value) if f.compare)))
    else:
        raise TypeError(f"a cache key may not hold {value!r} of type {type(value).__name__}")


def _expression(root: Expr) -> Iterator[bytes]:
    numbers: dict[Expr, int] = {}
    for e in postorder((root,)):
        numbers[e] = len(numbers)
        yield from _tokens(("expr", e.op, tuple(numbers[a] for a in e.args), e.dtype, e.value))


def kernel_digest(kernel: Kernel) -> str:
    """What decides the object code of a kernel on this machine, in hexadecimal."""
    host = native.host()
    return fingerprint("kernel", kernel.language, kernel.name, kernel.key, generator(), host.triple, host.cpu, host.features)


def kernel_symbol(kernel: Kernel, digest: str | None = None) -> str:
    """The linker's name of a kernel: unique to its content."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in kernel.name)
    return f"{name}_{(digest or kernel_digest(kernel))[:24]}"


def _digest(payload: Payload, whole: int) -> bytes:
    """BLAKE2 of the length, the first `whole` bytes, and the rest: of evenly spread pages where it is too big to be read at each load."""
    size = len(payload)
    digest = blake2b(struct.pack("<QQ", size, whole), digest_size=32)
    if size - whole <= PAGES * PAGE:
        whole = size
    digest.update(payload[:whole])
    if whole < size:
        step = (size - PAGE - whole) // (PAGES - 1)
        for at in (*range(whole, whole + step * (PAGES - 1), step), size - PAGE):
            digest.update(payload[at:at + PAGE])
    return digest.digest()


class Store:
    """Payloads by hexadecimal key in one directory."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}{self.suffix}"

    def get(self, key: str) -> Payload | None:
        """The payload, memory-mapped (read-only) from 128 KiB on; None if absent or damaged."""
        path = self.path(key)
        try:
            with open(path, "rb") as file:
                head = file.read(HEADER.size)
                if len(head) == HEADER.size:
                    magic, size, digest, whole = HEADER.unpack(head)
                    payload = _read(file, size)
                    if magic == MAGIC and payload is not None and _digest(payload, whole) == digest:
                        _used(path, os.fstat(file.fileno()).st_mtime)
                        return payload
        except (OSError, ValueError):
            return None
        _remove(path)
        return None

    def put(self, key: str, payload: Payload, whole: int | None = None) -> bool:
        """Store; False where the directory cannot be written. A load reads the first `whole` bytes in full and samples the rest
        (default: all up to 4 MiB)."""
        path = self.path(key)
        temporary = ""
        if whole is None:
            whole = len(payload) if len(payload) <= WHOLE else 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = str(path.parent / f".{os.getpid()}-{os.urandom(8).hex()}.new")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(HEADER.pack(MAGIC, len(payload), _digest(payload, whole), whole))
                file.write(payload)
            os.replace(temporary, path)
        except OSError:
            if temporary:
                _remove(Path(temporary))
            return False
        return True

    def entries(self) -> list[tuple[str, int, float]]:
        """(key, bytes, when it was last used, to the day) of each entry."""
        found = []
        for path in self.folder.glob(f"??/*{self.suffix}"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((path.parent.name + path.name.removesuffix(self.suffix), status.st_size, status.st_mtime))
        return found

    def clear(self) -> int:
        """Delete all entries and what crashed writers left; the bytes freed."""
        freed = 0
        for path in [*self.folder.glob(f"??/*{self.suffix}"), *self.folder.glob("??/.*.new")]:
            try:
                size = path.stat().st_size
            except OSError:
                continue
            freed += size if _remove(path) else 0
        return freed


def _used(path: Path, last: float) -> None:
    """Note the use of an entry, once a day."""
    now = time.time()
    if now - last > DAY:
        with suppress(OSError):
            os.utime(path, (now, now))


def _read(file: Any, size: int) -> Payload | None:
    """`size` bytes after the header, or None when the file holds another number of them."""
    if os.fstat(file.fileno()).st_size != HEADER.size + size:
        return None
    if size < MAPPED:
        data: bytes = file.read(size)
        return data
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[HEADER.size:]


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


_lock = threading.RLock()
_addresses: dict[str, int] = {}
_grown: dict[Path, int] = {}


class KernelCache:
    """Object code of kernels, and a store of blobs (programs, packed weights). Threads and processes may share it."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = cache_dir(folder)
        self.kernels = Store(self.folder / "kernels", ".o")
        self.blobs = Store(self.folder / "blobs", ".bin")
        self.compiled = 0
        self.hits = 0

    def objects(self, kernels: Iterable[Kernel]) -> dict[Kernel, tuple[str, bytes]]:
        """(symbol, object code) of each kernel; what is missing is compiled and kept."""
        with _lock:
            digests = {kernel: kernel_digest(kernel) for kernel in kernels}
            symbols = {kernel: kernel_symbol(kernel, digest) for kernel, digest in digests.items()}
            found = self._objects({symbols[kernel]: (kernel, digest) for kernel, digest in digests.items()})
            return {kernel: (symbol, found[symbol]) for kernel, symbol in symbols.items()}

    def addresses(self, kernels: Sequence[Kernel]) -> list[int]:
        """Entry points, in order; kernels that this process has loaded before are neither read nor compiled."""
        with _lock:
            symbols, new = [], {}
            for kernel in kernels:
                digest = getattr(kernel, "digest", None) or kernel_digest(kernel)
                symbol = kernel_symbol(kernel, digest)
                symbols.append(symbol)
                if symbol in _addresses:
                    self.hits += 1
                else:
                    new[symbol] = (kernel, digest)
            engine = native.load(self._objects(new))
            _addresses.update((symbol, engine.address(symbol)) for symbol in new)
            return [_addresses[symbol] for symbol in symbols]

    def _objects(self, wanted: Mapping[str, tuple[Kernel, str]]) -> dict[str, bytes]:
        """Object code by symbol: what is kept, then what had to be compiled."""
        found, missing = {}, {}
        for symbol, (kernel, digest) in wanted.items():
            kept = self._kept(digest, symbol)
            if kept is not None:
                found[symbol] = kept
            elif hasattr(kernel, "make"):
                missing[symbol] = kernel
            else:
                raise CompileError(f"kernel {symbol} is no longer in the cache")
        for symbol, obj in native.compile_many(missing):
            found[symbol] = obj
            self.compiled += 1
            self.kernels.put(wanted[symbol][1], obj)
        return found

    def _kept(self, digest: str, symbol: str) -> bytes | None:
        found = self.kernels.get(digest)
        if found is None:
            return None
        try:
            native.check(bytes(found), symbol)
        except CompileError:
            _remove(self.kernels.path(digest))
            return None
        self.hits += 1
        return bytes(found)

    def get(self, key: str) -> Payload | None:
        """A blob by its `fingerprint`."""
        return self.blobs.get(key)

    def put(self, key: str, payload: Payload, whole: int | None = None) -> bool:
        """Keep a blob, see `Store.put`; from time to time what was not used for longest makes room."""
        kept = self.blobs.put(key, payload, whole)
        with _lock:
            _grown[self.folder] = _grown.get(self.folder, BETWEEN) + len(payload)
            full = _grown[self.folder] >= BETWEEN
            if full:
                _grown[self.folder] = 0
        if full:
            self.prune(cache_limit())
        return kept

    def sizes(self) -> dict[str, tuple[int, int]]:
        """{kind: (entries, bytes)} on disk."""
        found = {}
        for kind, store in (("kernels", self.kernels), ("blobs", self.blobs)):
            entries = store.entries()
            found[kind] = (len(entries), sum(size for _, size, _ in entries))
        return found

    def clear(self) -> int:
        """Delete everything; the bytes freed."""
        return self.kernels.clear() + self.blobs.clear()

    def prune(self, limit: int) -> int:
        """Delete what was not used for longest until at most `limit` bytes are left; the bytes freed."""
        entries = [(used, size, store, key) for store in (self.kernels, self.blobs) for key, size, used in store.entries()]
        total = sum(size for _, size, _, _ in entries)
        freed = 0
        for _, size, store, key in sorted(entries, key=lambda entry: entry[0]):
            if total - freed <= limit:
                break
            freed += size if _remove(store.path(key)) else 0
        return freed
