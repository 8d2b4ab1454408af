"""Path, bytes, file object or ModelProto -> a checked model. `open_model` alone needs no onnx: it reads and hashes."""
from __future__ import annotations

import hashlib
import mmap
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.codegen.cache import fingerprint
from gpuonnx.errors import ModelError
from gpuonnx.importer import sniff, wire
from gpuonnx.importer.check import check
from gpuonnx.importer.procedure import Environment, Procedure, input_info
from gpuonnx.importer.tensors import EXTERNAL, TENSOR_BYTES, Folder, sparse_array, tensor_array

if TYPE_CHECKING:
    import onnx

    from gpuonnx.codegen.cache import KernelCache

SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Limits:
    """Bounds on what a file may ask for: bytes of the file and of one tensor, nodes (function calls expanded), graphs within graphs."""

    file_bytes: int = 1 << 31
    tensor_bytes: int = TENSOR_BYTES
    nodes: int = 1_000_000
    depth: int = 32


@dataclass(frozen=True)
class Source:
    """A model's bytes before they are parsed: `digest` is the SHA-256 of `data`, `folder` where external data may lie."""

    label: str
    data: memoryview = field(repr=False)
    digest: str
    path: Path | None = None
    folder: Folder | None = None

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class LoadedModel:
    """A checked model whose graphs are in an order of execution. The proto is ours: nobody else changes it."""

    proto: onnx.ModelProto = field(repr=False)
    source: Source
    opsets: dict[str, int]
    functions: dict[tuple[str, str], onnx.FunctionProto] = field(repr=False)
    limits: Limits

    @property
    def digest(self) -> str:
        """SHA-256 of the model's own bytes."""
        return self.source.digest

    @property
    def folder(self) -> Folder | None:
        return self.source.folder

    @property
    def size(self) -> int:
        """Bytes of the model's own file."""
        return self.source.size

    def array(self, proto: Any) -> np.ndarray:
        """A TensorProto or SparseTensorProto of this model as an array."""
        decode = sparse_array if hasattr(proto, "indices") else tensor_array
        return decode(proto, self.folder, self.limits.tensor_bytes)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Initializers by name, undecoded."""
        graph = self.proto.graph
        return {**{t.name: t for t in graph.initializer}, **{t.values.name: t for t in graph.sparse_initializer}}

    @cached_property
    def external(self) -> tuple[str, ...]:
        """The data files beside the model that its tensors lie in."""
        found: dict[str, None] = {}
        for tensor in _tensors(self.proto):
            if tensor.data_location == EXTERNAL:
                found.setdefault(next((e.value for e in tensor.external_data if e.key == "location"), ""))
        return tuple(found)

    def procedure(self) -> Procedure:
        """The main graph, ready to be lowered; an input that has an initializer is a constant with that default."""
        graph = self.proto.graph
        inputs = [input_info(i) for i in graph.input]
        environment = Environment(self.opsets, self.functions, self.array)
        return Procedure(graph.name or "main", tuple(graph.node), tuple(i for i in inputs if i.name not in self.defaults),
                         tuple(o.name for o in graph.output), self.defaults, environment, tuple(input_info(o) for o in graph.output),
                         defaults=tuple(i for i in inputs if i.name in self.defaults))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, such as one with external data."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_model(model: Any, limits: Limits | None = None, cache: KernelCache | None = None) -> Source:
    """Read and hash what was given; nothing is parsed. `cache` remembers the digests of files that have not changed since."""
    limits = limits or Limits()
    if isinstance(model, Source):
        return model
    if isinstance(model, (str, os.PathLike)):
        return _open_path(Path(model), limits, cache)
    path = None
    if isinstance(model, (bytes, bytearray, memoryview)):
        label, data = "the given bytes", bytes(model)
    elif hasattr(model, "SerializeToString") and hasattr(model, "graph"):
        label, data = "the given ModelProto", _serialized(model)
    elif hasattr(model, "read"):
        label, data, path = _from_file_object(model, limits)
    else:
        raise ModelError(f"a model is a path, bytes, a binary file object or an onnx.ModelProto, not {type(model).__name__}")
    _bounded(label, len(data), limits)
    return Source(label, memoryview(data), hashlib.sha256(data).hexdigest(), path, None if path is None else Folder.of(path))


def _bounded(label: str, size: int, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise ModelError(f"{label} has {size} bytes, more than the limit of {limits.file_bytes}; protobuf holds 2 GiB at most, larger weights "
                         "belong in external data (onnx.save(..., save_as_external_data=True)); the limit is gpuonnx.Limits(file_bytes=...)")


def _serialized(model: Any) -> bytes:
    from google.protobuf.message import EncodeError
    try:
        return bytes(model.SerializeToString())
    except (ValueError, EncodeError) as error:
        raise ModelError(f"the given ModelProto cannot be serialized ({error}); above 2 GiB, save it with external data "
                         "and load it by path") from error


def _from_file_object(file: Any, limits: Limits) -> tuple[str, bytes, Path | None]:
    name = getattr(file, "name", None)
    label = repr(name) if isinstance(name, str) else "the given file object"
    try:
        data = file.read(limits.file_bytes + 1)
    except (OSError, ValueError) as error:
        raise ModelError(f"{label} cannot be read: {error}") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ModelError(f"{label} gives {type(data).__name__}: open it in binary mode, open(path, \"rb\")")
    path = Path(name) if isinstance(name, str) and os.path.isfile(name) else None
    return label, bytes(data), path


def _open_path(path: Path, limits: Limits, cache: KernelCache | None) -> Source:
    try:
        status = path.stat()
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is no path: {error}") from error
    except OSError as error:
        raise ModelError(_missing(path, error)) from error
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(p.name for p in path.glob("*.onnx"))[:10]
        raise ModelError(f"{path} is a folder; give the .onnx file" + (f" in it: {', '.join(inside)}" if inside else ", and there is none in it"))
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is no regular file; read it yourself and give the bytes")
    _bounded(str(path), status.st_size, limits)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else b""
            digest = _digest(str(path), data, status, file.fileno(), cache)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    return Source(str(path), memoryview(data), digest, path, Folder.of(path))


def _digest(path: str, data: Any, status: os.stat_result, handle: int, cache: KernelCache | None) -> str:
    """SHA-256 of an open file, remembered by what the system says of the file unless it changed just now: another change in the same
    tick of the clock would not show."""
    def stamp(status: os.stat_result) -> tuple[int, ...]:
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if cache is None:
        return hashlib.sha256(data).hexdigest()
    key = fingerprint("digest of a file", os.path.abspath(path), stamp(status))
    known = cache.get(key)
    if known is not None:
        return bytes(known).hex()
    begun = time.time_ns()
    digest = hashlib.sha256(data)
    if begun - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS and stamp(os.fstat(handle)) == stamp(status):
        cache.put(key, digest.digest())
    return digest.hexdigest()


def _missing(path: Path, error: OSError) -> str:
    from difflib import get_close_matches
    if not isinstance(error, FileNotFoundError):
        return f"{path} cannot be opened: {error.strerror or error}"
    if path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, which is not there"
    try:
        near = get_close_matches(path.name, os.listdir(path.parent), 1)
    except OSError:
        return f"there is no file {path}: its folder {path.parent} does not exist"
    return f"there is no file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else "")


def load_model(model: Any, limits: Limits | None = None) -> LoadedModel:
    """Open, parse, sort and check a model; every complaint is a ModelError that says what the thing looks like and the mend."""
    limits = limits or Limits()
    source = open_model(model, limits)
    proto = _parse(source)
    opsets, functions = check(proto, limits.nodes, limits.depth, source.label)
    return LoadedModel(proto, source, opsets, functions, limits)


def _parse(source: Source) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto
    likely = source.size > 0 and wire.is_model(source.data)
    other = None if likely else sniff.looks_like(source.data, source.label)
    if other:
        raise ModelError(f"{source.label} is no ONNX model; it looks like {other}")
    proto = ModelProto()
    try:
        proto.ParseFromString(bytes(source.data))
    except (DecodeError, RecursionError, ValueError) as error:
        raise ModelError(f"{source.label} cannot be read as an ONNX model: {sniff.why_broken(source.data)}") from error
    if not proto.HasField("graph"):
        other = sniff.looks_like(source.data, source.label)
        raise ModelError(f"{source.label} is no ONNX model: it has no graph" + (f"; it looks like {other}" if other else "; export it again"))
    return proto


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor in a model: initializers and attributes, of sub-graphs and functions too."""
    holders: list[Any] = [model.graph, *model.functions]
    while holders:
        holder = holders.pop()
        if hasattr(holder, "initializer"):
            yield from holder.initializer
            for sparse in holder.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in holder.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    holders.append(attribute.g)
                holders.extend(attribute.graphs)
