"""What the user gives as inputs, checked and made ready: by name, in order, contiguous, of the declared types."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuonnx.errors import InputError, ShapeError
from gpuonnx.importer.procedure import InputInfo, is_tensor
from gpuonnx.ir import types


def prepare(infos: Sequence[InputInfo], given: Any) -> list[Any]:
    """Values in the order of `infos`. Raises InputError naming the input, what was expected and what came."""
    named = _named(infos, given)
    found = [named.get(info.name) for info in infos]
    if len(named) != len(infos) or any([v is None for v in found]):
        _names(infos, named)
    return [_value(info, value) for info, value in zip(infos, found, strict=True)]


def _names(infos: Sequence[InputInfo], named: Mapping[str, Any]) -> None:
    """Raise InputError for a name that is no input's, or an input that is not there."""
    unknown = [n for n in named if n not in {i.name for i in infos}]
    if unknown:
        import difflib
        folded = {i.name.casefold(): i.name for i in infos}
        close = difflib.get_close_matches(str(unknown[0]).casefold(), list(folded), 1, 0.5)
        hint = f"; did you mean {folded[close[0]]!r}?" if close else "."
        raise InputError(f"there is no input {unknown[0]!r}{hint} Inputs are {_listed(infos)}")
    missing = [i for i in infos if i.name not in named and not i.optional]
    if missing:
        raise InputError(f"input {missing[0].name!r} is missing; inputs are {_listed(infos)}")


def _listed(infos: Sequence[InputInfo]) -> str:
    return ", ".join(f"{i.name}: {i.dtype}{list(i.dims) if i.dims is not None else ''}" for i in infos) or "none"


def _named(infos: Sequence[InputInfo], given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    if given is None:
        return {}
    if isinstance(given, (list, tuple)) and not (len(infos) == 1 and not is_tensor(infos[0].dtype)):
        if len(given) > len(infos):
            raise InputError(f"{len(given)} inputs were given, the model has {len(infos)}: {_listed(infos)}")
        return dict(zip((i.name for i in infos), given, strict=False))
    if len(infos) != 1:
        raise InputError(f"one array was given, the model has {len(infos)} inputs: {_listed(infos)}; give a mapping by name")
    return {infos[0].name: given}


def _value(info: InputInfo, value: Any) -> Any:
    if not is_tensor(info.dtype):
        return _container(info.dtype, value)
    return _tensor(info, value)


def _container(dtype: str, value: Any) -> Any:
    if dtype.startswith("optional(") and value is not None:
        inner = dtype[len("optional("):-1]
        return np.asarray(value) if is_tensor(inner) else _container(inner, value)
    if dtype.startswith("seq(") and value is not None:
        inner = dtype[4:-1]
        return [np.asarray(v) if is_tensor(inner) else _container(inner, v) for v in value]
    return value


def _tensor(info: InputInfo, value: Any) -> np.ndarray:
    if value is None:
        raise InputError(f"input {info.name!r} is None; it must be a tensor of {info.dtype}")
    array = _array(info, value)
    if info.dtype == "str":
        return _texts(info, array)
    wanted = types.numpy_dtype(info.dtype)
    if array.dtype != wanted and array.dtype.newbyteorder("=") != wanted:
        if isinstance(value, np.ndarray) or not _fits(array, wanted):
            raise InputError(f"input {info.name!r} must be {wanted}, not {array.dtype}; pass {info.name}.astype({str(wanted)!r})")
        array = array.astype(wanted)
    if info.dims is not None:
        _check_shape(info, array)
    if array.ndim and array.dtype == wanted and array.flags.c_contiguous and array.flags.aligned:
        return array if type(array) is np.ndarray else np.asarray(array)
    return np.require(array, wanted, ["C", "A"]) if array.ndim else np.array(array, wanted)


def _texts(info: InputInfo, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "SUO" and array.dtype.kind != "T":
        raise InputError(f"input {info.name!r} must be text, not {array.dtype}")
    if info.dims is not None:
        _check_shape(info, array)
    out = np.empty(array.shape, object)
    out[...] = np.vectorize(_text, otypes=[object])(array) if array.size else array.astype(object)
    return out


def _array(info: InputInfo, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
        return np.asarray(value.get())
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError):
            pass_on = getattr(value, "numpy", None)
            if pass_on is not None:
                return np.asarray(pass_on())
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {info.name!r}: {type(value).__name__} cannot become an array: {error}") from error


def _text(x: Any) -> str:
    return x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else str(x)


def _fits(array: np.ndarray, wanted: np.dtype) -> bool:
    """Python numbers and lists take the model's type where nothing is lost but float precision."""
    ranks = "b iu f c".split()
    have, want = (next((n for n, kinds in enumerate(ranks) if kind in kinds), 2) for kind in (array.dtype.kind, wanted.kind))
    if array.dtype.kind not in "biufc" or have > want:
        return not array.size
    if array.dtype.kind in "iu" and wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        return bool(array.min() >= limits.min and array.max() <= limits.max)
    return True


def _check_shape(info: InputInfo, array: np.ndarray) -> None:
    dims = info.dims or ()
    if len(dims) != array.ndim:
        raise ShapeError(f"input {info.name!r} must have {len(dims)} axes {list(dims)}, not {array.ndim}: its shape is {list(array.shape)}")
    for axis, (said, size) in enumerate(zip(dims, array.shape, strict=True)):
        if isinstance(said, int) and said != size:
            raise ShapeError(f"input {info.name!r}, axis {axis}: size {size}, the model says {said} "
                             f"(declared {list(dims)}, given {list(array.shape)})")
