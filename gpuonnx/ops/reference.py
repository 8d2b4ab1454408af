"""Operators that run on the host by the onnx package's reference implementation: their results' sizes hang on data, or they are rare."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuonnx.errors import ModelError
from gpuonnx.ir.build import Spec, Tensor, builder, host
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.types import TYPES
from gpuonnx.ops.registry import op

ML = "ai.onnx.ml"
WHY = "no kernel of its own yet: the onnx package's reference implementation runs it"


def by_reference(name: str, inputs: Sequence[Tensor | None], out: Spec | Sequence[Spec], version: int, domain: str = "", **attributes: Any) -> Any:
    """A host node; lists become tuples, so that attributes compare."""
    kept = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items() if v is not None)
    count = 1 if isinstance(out, Spec) else len(out)
    return host("reference", *inputs, out=out, why=WHY, op=name, domain=domain, version=version, outputs=count, attributes=kept)


def spec(dtype: str, *shape: Dim | None) -> Spec:
    return Spec(dtype, shape)  # type: ignore[arg-type]


@op("ImageDecoder", since=20)
def image_decoder(encoded_stream: Tensor, *, pixel_format: str = "RGB") -> Tensor:
    channels = 1 if pixel_format == "Grayscale" else 3
    return by_reference("ImageDecoder", [encoded_stream], spec("u8", None, None, channels), 20, pixel_format=pixel_format)  # type: ignore[no-any-return]


@op("LabelEncoder", since=4, domain=ML)
def label_encoder(X: Tensor, *, default_float: float = -0.0, default_int64: int = -1, default_string: str = "_Unused", default_tensor: Any = None,
                  keys_floats: Any = None, keys_int64s: Any = None, keys_strings: Any = None, keys_tensor: Any = None,
                  values_floats: Any = None, values_int64s: Any = None, values_strings: Any = None, values_tensor: Any = None) -> Tensor:
    """A dictionary from keys of one type to values of another; what is no key becomes the default."""
    keys = next((k for k in (keys_strings, keys_int64s, keys_floats) if k), None) or (keys_tensor.tolist() if keys_tensor is not None else None)
    if keys is None:
        raise ModelError(f"{builder().origin}: there are no keys")
    given = [(values_strings, "str", default_string), (values_int64s, "i64", default_int64), (values_floats, "f32", default_float)]
    found = next(((v, dtype, default) for v, dtype, default in given if v), None)
    if found is None:
        if values_tensor is None:
            raise ModelError(f"{builder().origin}: there are no values")
        from gpuonnx.ir.types import of_numpy
        dtype = of_numpy(values_tensor.dtype)
        standard = {"str": default_string, "f": default_float}.get("str" if dtype == "str" else TYPES[dtype].kind, default_int64)
        found = (values_tensor.tolist(), dtype, default_tensor.ravel().tolist()[0] if default_tensor is not None else standard)
    values, dtype, default = found
    return host("label_encoder", X, out=Spec(dtype, X.shape), why="keys are looked up in Python", keys=tuple(keys),  # type: ignore[no-any-return]
                values=tuple(values), default=default, dtype=dtype)


@op("LabelEncoder", since=2, domain=ML)
def label_encoder_2(X: Tensor, *, default_float: float = -0.0, default_int64: int = -1, default_string: str = "_Unused", keys_floats: Any = None,
                    keys_int64s: Any = None, keys_strings: Any = None, values_floats: Any = None, values_int64s: Any = None,
                    values_strings: Any = None) -> Tensor:
    return label_encoder(X, default_float=default_float, default_int64=default_int64, default_string=default_string,
                         keys_floats=keys_floats, keys_int64s=keys_int64s, keys_strings=keys_strings, values_floats=values_floats,
                         values_int64s=values_int64s, values_strings=values_strings)


@op("LabelEncoder", since=1, domain=ML)
def label_encoder_1(X: Tensor, *, classes_strings: Sequence[str] | None = None, default_int64: int = -1, default_string: str = "_Unused") -> Tensor:
    """Strings to their positions, or positions to strings."""
    classes = list(classes_strings or ())
    if X.dtype == "str":
        return label_encoder(X, keys_strings=classes, values_int64s=list(range(len(classes))), default_int64=default_int64)
    return label_encoder(X, keys_int64s=list(range(len(classes))), values_strings=classes, default_string=default_string)
