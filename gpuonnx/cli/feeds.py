"""Inputs for a run: from files, or made up."""
from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuonnx.cli.options import pairs
from gpuonnx.errors import InputError, ModelError, ShapeError, UnsupportedType

if TYPE_CHECKING:
    from gpuonnx.session import Io, Session


def feeds(session: Session, args: argparse.Namespace) -> dict[str, Any]:
    """Inputs by name, as --input, --random and --shape say."""
    found: dict[str, Any] = {}
    for text in args.input:
        found.update(_given(text, session.inputs))
    shapes = {name: _shape(name, text) for name, text in pairs(args.shape, "--shape").items()}
    names = {io.name for io in session.inputs}
    for name in shapes:
        if name not in names:
            raise InputError(f"--shape {name}: there is no such input; inputs are {described(session.inputs)}")
    missing = [io for io in session.inputs if io.name not in found and not str(io.dtype).startswith("optional")]
    if missing and not args.random and not shapes:
        raise InputError(f"no value for {described(missing)}: give --input {missing[0].name}=FILE.npy, or --random")
    rng = np.random.default_rng(args.seed)
    for io in missing:
        found[io.name] = made_up(io, shapes.get(io.name), rng)
    return found


def free_sizes(session: Session, args: argparse.Namespace) -> list[str]:
    """Made-up inputs with sizes that the model leaves free and --shape does not give, as options that would."""
    given = {*pairs(args.shape, "--shape"), *(text.partition("=")[0] for text in args.input)}
    free = [io for io in session.inputs if io.name not in given and io.shape is not None and not all(isinstance(s, int) for s in io.shape)]
    return [f"--shape {io.name}={','.join('1' if not isinstance(s, int) else str(s) for s in io.shape or ())}" for io in free]


def run(session: Session, values: dict[str, Any], args: argparse.Namespace, outputs: list[str] | None = None) -> dict[str, Any]:
    """Run; an error over sizes says which were made up."""
    try:
        return session.run(values, outputs)
    except (ShapeError, ModelError) as error:
        made = free_sizes(session, args)
        if not made:
            raise
        raise type(error)(f"{error}\nFree sizes were taken as 1 ({' '.join(made)}); give those that the model expects.") from error


def described(ios: list[Io]) -> str:
    return ", ".join(f"{io.name} ({io.dtype}{' ' + shown(io.shape) if io.shape is not None else ''})" for io in ios) or "none"


def shown(shape: tuple[Any, ...] | None) -> str:
    return "any shape" if shape is None else "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _shape(name: str, text: str) -> tuple[int, ...]:
    parts = [part for part in text.replace("x", ",").split(",") if part]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--shape {name}={text}: whole numbers with commas between them are expected, as in {name}=1,3,224,224")
    return tuple(int(part) for part in parts)


def _given(text: str, ios: list[Io]) -> dict[str, Any]:
    name, equals, file = text.partition("=")
    if not equals or not any(io.name == name for io in ios) and Path(text).exists():
        name, file = "", text
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--input {text}: there is no file {file}")
    if path.suffix == ".pb":
        target = next((io for io in ios if io.name == name), None)
        return {_only(name, ios, text): read_tensor(path, "tensor" if target is None else str(target.dtype))}
    arrays: Any = _numpy(path, text)
    if isinstance(arrays, np.ndarray):
        return {_only(name, ios, text): arrays}
    if not name:
        return dict(arrays)
    if name in arrays:
        return {name: arrays[name]}
    if len(arrays) == 1:
        return {name: next(iter(arrays.values()))}
    raise InputError(f"--input {text}: the file has no array {name!r}, it has {', '.join(arrays) or 'none'}")


def _only(name: str, ios: list[Io], text: str) -> str:
    if name or len(ios) == 1:
        return name or ios[0].name
    raise InputError(f"--input {text}: the model has {len(ios)} inputs, say which: --input NAME={text}; inputs are {described(ios)}")


def _numpy(path: Path, text: str) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"--input {text}: {path} is no .npy or .npz file that can be read safely ({error})") from error


def read_tensor(path: Path, kind: str) -> Any:
    """A value from a protobuf file, as the ONNX tests store them; `kind` is `tensor` or a dtype such as `seq(f32)`."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper
    readers: dict[str, tuple[Any, Any]] = {"seq": (onnx.SequenceProto, numpy_helper.to_list),
                                           "optional": (onnx.OptionalProto, numpy_helper.to_optional)}
    proto, convert = readers.get(kind.partition("(")[0], (onnx.TensorProto, numpy_helper.to_array))
    message = proto()
    try:
        message.ParseFromString(path.read_bytes())
        return convert(message)
    except (DecodeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no {proto.__name__} ({error})") from error


def made_up(io: Io, shape: tuple[int, ...] | None, rng: np.random.Generator) -> Any:
    """A random value of the declared type: normal floats, integers 0 and 1 (bytes: the whole range), the string `a`."""
    if isinstance(io.dtype, str):
        raise UnsupportedType(f"--random makes tensors; input {io.name!r} is {io.dtype}: run it from Python")
    if shape is None:
        if io.shape is None:
            raise InputError(f"input {io.name!r} may have any rank; say which with --shape {io.name}=1,2,3")
        shape = tuple(size if isinstance(size, int) else 1 for size in io.shape)
    dtype = np.dtype(io.dtype)
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if dtype.kind == "b" or dtype.kind in "iu" and dtype.itemsize > 1:
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, True)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
