"""The cases of the official suite, and what makes one pass: the suite's own comparison and tolerances."""
from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gpuonnx.backend import Prepared, prepare

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
LIGHT = "onnx/backend/test/data/light/"
BFLOAT16_RTOL = 2.0 ** -6
NEEDS = {"test_image_decoder": "PIL"}


@cache
def cases() -> dict[str, Any]:
    """Every case by name: 2,024 generated and shipped ones, and nine light models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests
        found = [case for kind in KINDS for case in load_model_tests(kind=kind) if kind != "real" or (case.url or "").startswith(LIGHT)]
    return {case.name: case for case in sorted(found, key=lambda case: case.name)}


def chosen(pattern: str | None) -> list[str]:
    """Names that the regular expression is found in; all without one."""
    return [name for name in cases() if pattern is None or re.search(pattern, name)]


def why_skipped(name: str) -> str | None:
    """A reason where the case cannot be run here at all."""
    for prefix, module in NEEDS.items():
        if name.startswith(prefix) and find_spec(module) is None:
            return f"needs {module}, which is not installed"
    return None


def run_case(name: str, device: str, threads: int | None = None) -> Prepared:
    """Run one case; raises what went wrong, AssertionError for a difference."""
    case = cases()[name]
    model = case.model if case.model is not None else str(model_path(case))
    prepared = prepare(model, device, threads=threads)
    for inputs, expected in data_sets(case):
        names = [io.name for io in prepared.session.inputs]
        outputs = prepared.run(dict(zip(names, inputs, strict=False)))
        compare(expected, outputs, case.rtol, case.atol)
    return prepared


def model_path(case: Any) -> Path:
    if case.model_dir is not None:
        return Path(case.model_dir) / "model.onnx"
    import onnx.backend.test.loader
    return Path(onnx.backend.test.loader.DATA_DIR) / "light" / Path(case.url).name


def data_sets(case: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs and expected outputs."""
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield [_array(value) for value in inputs], [_array(value) for value in outputs]
        return
    import onnx
    path = model_path(case)
    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs_of = [info for info in model.graph.input if info.name not in weights]
    if case.model_dir is None:
        expected = [_read(path.with_name(f"{path.stem}_output_{k}.pb"), info.type) for k, info in enumerate(model.graph.output)]
        yield [_ramp(info) for info in inputs_of], expected
        return
    for folder in sorted(path.parent.glob("test_data_set_*")):
        given = [_read(folder / f"input_{k}.pb", info.type) for k, info in enumerate(inputs_of) if (folder / f"input_{k}.pb").exists()]
        yield given, [_read(folder / f"output_{k}.pb", info.type) for k, info in enumerate(model.graph.output)]


def _array(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _ramp(info: Any) -> np.ndarray:
    """The suite's input for its light models: 0 to 1 in even steps."""
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in info.type.tensor_type.shape.dim)
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def _read(path: Path, kind: Any) -> Any:
    import onnx
    from onnx import numpy_helper
    readers: dict[str, tuple[Any, Any]] = {"sequence_type": (onnx.SequenceProto, numpy_helper.to_list),
                                           "optional_type": (onnx.OptionalProto, numpy_helper.to_optional)}
    proto, convert = readers.get(kind.WhichOneof("value"), (onnx.TensorProto, numpy_helper.to_array))
    message = proto()
    message.ParseFromString(path.read_bytes())
    return convert(message)


def compare(expected: Sequence[Any], outputs: Sequence[Any], rtol: float, atol: float) -> None:
    """As the suite compares: counts, shapes, types, then values. Raises AssertionError."""
    if len(expected) != len(outputs):
        raise AssertionError(f"{len(outputs)} outputs, expected {len(expected)}")
    for number, (want, got) in enumerate(zip(expected, outputs, strict=True)):
        if isinstance(want, (list, tuple)):
            if not isinstance(got, (list, tuple)):
                raise AssertionError(f"output {number} is a {type(got).__name__}, expected a sequence")
            compare(want, got, rtol, atol)
        elif want is None or got is None:
            if want is not got:
                raise AssertionError(f"output {number} is {'absent' if got is None else 'there'}, expected the contrary")
        else:
            _compare_arrays(np.asarray(want), np.asarray(got), rtol, atol, number)


def _compare_arrays(want: np.ndarray, got: np.ndarray, rtol: float, atol: float, number: int) -> None:
    if want.shape != got.shape:
        raise AssertionError(f"output {number} has shape {list(got.shape)}, expected {list(want.shape)}")
    if want.dtype.kind in "OUS":
        np.testing.assert_array_equal(got.astype(str), want.astype(str))
        return
    if want.dtype != got.dtype:
        raise AssertionError(f"output {number} has type {got.dtype}, expected {want.dtype}")
    if want.dtype.name == "bfloat16":
        rtol = max(rtol, BFLOAT16_RTOL)
    if want.dtype.kind not in "biufc":
        want, got = want.astype(np.float32), got.astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=f"output {number}")


BY_CHANCE = "by chance: "


def known_failures(path: str | os.PathLike[str]) -> dict[str, str]:
    """`id | reason` lines as a mapping; # begins a comment. A reason that begins with BY_CHANCE: the case draws anew at each run,
    and may meet what is expected."""
    found = {}
    for line in Path(path).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition("|")
            found[name.strip()] = reason.strip()
    return found
