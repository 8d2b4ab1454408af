"""TensorProto -> NumPy array, for every element type and every way a file can store one."""
from __future__ import annotations

import math
import mmap
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.errors import ModelError, UnsupportedType
from gpuonnx.ir.types import BITS, BY_ONNX, TYPES, numpy_dtype

if TYPE_CHECKING:
    import onnx

EXTERNAL = 1
TENSOR_BYTES = 1 << 40
_IN_INT32 = {"i32", "i16", "i8", "u16", "u8", "bool", "f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0", *BITS}
_FIELD = {"f32": "float_data", "c64": "float_data", "f64": "double_data", "c128": "double_data", "i64": "int64_data",
          "u32": "uint64_data", "u64": "uint64_data", "str": "string_data"}
_FIELD_DTYPE = {"float_data": np.float32, "double_data": np.float64, "int64_data": np.int64, "uint64_data": np.uint64, "int32_data": np.int32}


@dataclass
class Folder:
    """Where a model's external data may lie: beside the model as it was named, or beside the file that a link leads to."""

    logical: Path
    physical: Path
    maps: dict[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(model: Path) -> Folder:
        return Folder(model.absolute().parent, model.resolve().parent)

    def locate(self, location: str) -> Path:
        """The data file named `location`; ModelError where it is missing or outside the folder."""
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or os.path.isabs(location) or parts[0].endswith(":") or parts[0] == "" or ".." in parts:
            raise ModelError(f"external data {location!r} would lie outside the model's folder {self.logical}; "
                             "only files beside the model are read: move the file there and name it relative to the model")
        for base in dict.fromkeys((self.logical, self.physical)):
            path = base.joinpath(*parts)
            try:
                resolved = path.resolve()
                status = resolved.stat()
            except (OSError, RuntimeError, ValueError):
                continue
            if not any(resolved.is_relative_to(home) for home in (self.logical.resolve(), self.physical)):
                raise ModelError(f"external data {location!r} is a link to {resolved}, outside the model's folder {self.logical}; "
                                 "only files beside the model are read: copy the data there")
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"external data {location!r} ({path}) is no regular file")
            return resolved
        raise ModelError(f"external data file {location!r} is missing from {self.logical}: copy it beside the model")

    def data(self, location: str) -> Any:
        """The whole file, memory-mapped read-only; b"" where it is empty."""
        if location not in self.maps:
            path = self.locate(location)
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.maps[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        return self.maps[location]

    def __getstate__(self) -> dict[str, Any]:
        return {"logical": self.logical, "physical": self.physical, "maps": {}}


def tensor_array(proto: onnx.TensorProto, folder: Folder | None = None, limit: int = TENSOR_BYTES) -> np.ndarray:
    """The tensor as a read-only array in the machine's byte order; int4, int2 and float4 one element a byte (ml_dtypes).

    Strings are an object array of str. External data stays a view of the mapped file where its offset is aligned."""
    dtype, dims = _type_of(proto), _dims(proto, limit)
    if proto.HasField("segment"):
        raise ModelError(f"tensor {proto.name!r} is stored in segments, which no ONNX version defines; save the model again in one piece")
    count = math.prod(dims)
    if proto.data_location == EXTERNAL:
        array = _from_raw(proto, dtype, count, _external(proto, dtype, count, folder))
    elif proto.HasField("raw_data"):
        array = _from_raw(proto, dtype, count, proto.raw_data)
    elif dtype == "str":
        array = _strings(proto, count)
    else:
        array = _from_field(proto, dtype, count)
    array = array.reshape(dims)
    if array.flags.owndata:
        array.flags.writeable = False
    return array


def _type_of(proto: onnx.TensorProto) -> str:
    dtype = BY_ONNX.get(proto.data_type)
    if dtype is None:
        known = ", ".join(TYPES)
        raise UnsupportedType(f"tensor {proto.name!r} has the element type number {proto.data_type}; gpuonnx reads {known}")
    return dtype


def _dims(proto: onnx.TensorProto, limit: int) -> tuple[int, ...]:
    dims = tuple(proto.dims)
    if any(size < 0 for size in dims):
        raise ModelError(f"tensor {proto.name!r} has a negative size in its shape {list(dims)}")
    if len(dims) > 64:
        raise ModelError(f"tensor {proto.name!r} has {len(dims)} axes; at most 64 can be held")
    size = TYPES[BY_ONNX[proto.data_type]].size
    if math.prod(max(1, s) for s in dims) * size > limit:
        raise ModelError(f"tensor {proto.name!r} of shape {list(dims)} needs {math.prod(dims) * size} bytes, more than the limit of {limit}; "
                         "raise limits=gpuonnx.Limits(tensor_bytes=...) if that is meant")
    return dims


def stored_bytes(dtype: str, count: int) -> int:
    """Bytes of `count` elements in raw data, where types of less than a byte are packed."""
    return -(-count * BITS[dtype] // 8) if dtype in BITS else count * TYPES[dtype].size


def _from_raw(proto: onnx.TensorProto, dtype: str, count: int, raw: Any) -> np.ndarray:
    if dtype == "str":
        raise ModelError(f"tensor {proto.name!r} of strings has raw data; strings must be in string_data")
    wanted = stored_bytes(dtype, count)
    if len(raw) != wanted:
        raise ModelError(f"tensor {proto.name!r} of shape {list(proto.dims)} and type {dtype} needs {wanted} bytes of data, the file has "
                         f"{len(raw)}: the file is damaged or was written wrongly; export or download it again")
    if dtype in BITS:
        return _unpack(np.frombuffer(raw, np.uint8), dtype, count)
    target = numpy_dtype(dtype)
    if sys.byteorder == "big" and target.itemsize > 1:
        unit = target.itemsize // 2 if target.kind == "c" else target.itemsize
        return np.frombuffer(raw, f"u{unit}").byteswap().view(target)
    array = np.frombuffer(raw, target)
    return array if array.flags.aligned else array.copy()


def _unpack(packed: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """Packed codes of less than a byte, low bits first, to one code a byte, as ml_dtypes holds them (upper bits zero)."""
    bits = BITS[dtype]
    if 8 % bits:
        stream = np.unpackbits(packed, bitorder="little")[:count * bits].reshape(count, bits)
        return np.packbits(stream, axis=1, bitorder="little").reshape(count).view(numpy_dtype(dtype))
    per = 8 // bits
    codes = np.empty((packed.size, per), np.uint8)
    for k in range(per):
        codes[:, k] = packed >> (bits * k) & ((1 << bits) - 1)
    return codes.reshape(-1)[:count].view(numpy_dtype(dtype))


def _from_field(proto: onnx.TensorProto, dtype: str, count: int) -> np.ndarray:
    name = _FIELD.get(dtype) or "int32_data"
    values = getattr(proto, name)
    packed = dtype in BITS and 8 % BITS[dtype] == 0
    wanted = stored_bytes(dtype, count) if packed else 2 * count if dtype in ("c64", "c128") else count
    if len(values) != wanted:
        raise ModelError(f"tensor {proto.name!r} of shape {list(proto.dims)} and type {dtype} needs {wanted} entries of {name}, "
                         f"the file has {len(values)}: export or download it again")
    array = np.array(values, _FIELD_DTYPE[name])
    target = numpy_dtype(dtype)
    if packed:
        return _unpack((array & 255).astype(np.uint8), dtype, count)
    if dtype in ("c64", "c128"):
        pairs: np.ndarray = array.view(target)
        return pairs
    if dtype == "bool":
        return np.asarray(array != 0)
    if TYPES[dtype].kind == "f" and name == "int32_data":
        return array.astype(f"u{target.itemsize}").view(target)
    return array if array.dtype == target else array.astype(target)


def _strings(proto: onnx.TensorProto, count: int) -> np.ndarray:
    if len(proto.string_data) != count:
        raise ModelError(f"tensor {proto.name!r} of shape {list(proto.dims)} needs {count} strings, the file has {len(proto.string_data)}")
    array = np.empty(count, object)
    array[:] = [text.decode("utf-8", "surrogateescape") for text in proto.string_data]
    return array


def _external(proto: onnx.TensorProto, dtype: str, count: int, folder: Folder | None) -> Any:
    """The bytes of a tensor that lies in a file of its own: a view of the mapped file."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(f"tensor {proto.name!r} lies in the file {location!r}, and the model was not given as a path: "
                         "load it by its path, so that the file beside it can be found")
    wanted = stored_bytes(dtype, count)
    data = folder.data(location)
    start, length = _number(proto, entries, "offset", 0), _number(proto, entries, "length", wanted)
    if length != wanted:
        raise ModelError(f"tensor {proto.name!r} of shape {list(proto.dims)} and type {dtype} needs {wanted} bytes, its entry says {length}")
    if start + length > len(data):
        raise ModelError(f"tensor {proto.name!r} wants bytes {start} to {start + length} of {location!r}, which has {len(data)}: "
                         "the data file is truncated or belongs to another model; download it again")
    return memoryview(data)[start:start + length]


def _number(proto: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > 18:
        raise ModelError(f"tensor {proto.name!r}: external data has {key} {text!r}, a number is expected")
    return int(text)


def sparse_array(proto: onnx.SparseTensorProto, folder: Folder | None = None, limit: int = TENSOR_BYTES) -> np.ndarray:
    """A sparse tensor as a dense array."""
    name, dims = proto.values.name, tuple(proto.dims)
    values, indices = tensor_array(proto.values, folder, limit), tensor_array(proto.indices, folder, limit)
    if any(size < 0 for size in dims) or math.prod(dims) * max(1, values.dtype.itemsize) > limit:
        raise ModelError(f"sparse tensor {name!r} has the shape {list(dims)}, which is negative or above the limit of {limit} bytes")
    if values.ndim != 1 or indices.dtype != np.int64 or indices.shape not in ((values.size,), (values.size, len(dims))):
        raise ModelError(f"sparse tensor {name!r}: {values.size} values need int64 indices of shape [{values.size}] or "
                         f"[{values.size}, {len(dims)}], here {indices.dtype} {list(indices.shape)}")
    dense = np.full(dims, "" if values.dtype == object else values.dtype.type(0), values.dtype)
    bounds = np.array([math.prod(dims)] if indices.ndim == 1 else dims)
    if ((indices < 0) | (indices >= bounds)).any():
        raise ModelError(f"sparse tensor {name!r} has an index outside its shape {list(dims)}")
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    dense.flags.writeable = False
    return dense
