"""The device protocol: one set of graphs on every device, against NumPy."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gpuonnx.devices.device import Device
from gpuonnx.ir import graph as g
from gpuonnx.ir.evaluate import cast as converted
from gpuonnx.ir.evaluate import evaluate
from gpuonnx.ir.expr import Expr, apply, cast, const, folded, guard, index, load
from gpuonnx.ir.types import TYPES, compute, kind, numpy_dtype
from gpuonnx.kernels.contract import Layout

DEVICES = ("cpu", "emulated-cuda")
REAL = [name for name in TYPES if kind(name) in "fiub"]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Any:
    if request.param == "emulated-cuda":
        from gpuonnx.devices.emulated import EmulatedCuda
        return EmulatedCuda(level=1)
    from gpuonnx.codegen.cache import KernelCache
    from gpuonnx.devices.cpu import Cpu
    return Cpu(KernelCache())


def executed(device: Any, node: g.Node, arrays: list[np.ndarray], layouts: list[Layout] | None = None) -> list[np.ndarray]:
    """The node's outputs on the device."""
    from cuda_runner import run as run_cuda
    from kernel_runner import Bound
    inputs = layouts or [Layout.dense(v.dtype, v.dims) for v in node.inputs]
    outputs = tuple(Layout.dense(v.dtype, v.dims) for v in node.outputs)
    build = device.build(node, tuple(inputs), outputs, {})
    if device.name == "emulated-cuda":
        return run_cuda(device, build, list(zip(inputs, arrays, strict=True)), outputs)
    memory = [np.ascontiguousarray(a) for a in arrays]
    outs = [np.zeros(tuple(map(int, o.shape)), numpy_dtype(o.dtype)) for o in outputs]
    Bound(build, memory, outs).run()
    return outs


def agree(device: Any, node: g.Node, *arrays: np.ndarray, binding: Mapping[str, int] | None = None, rtol: float = 1e-5) -> None:
    assert device.supports(node) is None
    wanted = evaluate(node, list(arrays), binding or {})
    for want, got in zip(wanted, executed(device, node, list(arrays)), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        if want.dtype.kind in "biu":
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=1e-6)


def value(dtype: str, *shape: int) -> g.Value:
    return g.Value(dtype, shape)


def mapped(expr: Expr, shape: tuple[int, ...], dtype: str, *inputs: g.Value) -> g.Map:
    return g.Map(inputs, (value(dtype, *shape),), expr=expr)


def axes(rank: int) -> tuple[Expr, ...]:
    return tuple(map(index, range(rank)))


def numbers(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 7, shape) if kind(dtype) in "ub" else rng.integers(-3, 4, shape)
    return converted(wide.astype(np.float32) if kind(dtype) == "f" else wide.astype(np.int64), dtype)


def test_the_protocol_is_complete(device: Any) -> None:
    assert isinstance(device.name, str) and isinstance(device.host, bool)
    for name in (m for m in dir(Device) if not m.startswith("_") and m not in ("name", "host")):
        assert callable(getattr(device, name))


@pytest.mark.parametrize("dtype", REAL)
def test_every_type_is_read_and_written(device: Any, dtype: str) -> None:
    agree(device, mapped(load(0, dtype, axes(2)), (3, 37), dtype, value(dtype, 3, 37)), numbers(dtype, 3, 37))


@pytest.mark.parametrize("dtype", [t for t in REAL if t not in ("f8e8m0", "bool")])
def test_every_type_computes(device: Any, dtype: str) -> None:
    x, y = load(0, dtype, axes(1)), load(1, dtype, axes(1))
    agree(device, mapped(x * y + x, (45,), dtype, value(dtype, 45), value(dtype, 45)), numbers(dtype, 45), numbers(dtype, 45, seed=1))


@pytest.mark.parametrize("target", ["f16", "bf16", "f64", "i8", "u8", "i32", "i64", "bool"])
@pytest.mark.parametrize("source", ["f32", "i64", "u8", "bool", "f16", "i4", "u4", "i2", "u2"])
def test_conversions(device: Any, source: str, target: str) -> None:
    agree(device, mapped(cast(load(0, source, axes(1)), compute(target)), (50,), target, value(source, 50)), numbers(source, 50))


def test_floats_saturate_and_nan_is_zero(device: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e20, -1e20, 300, -300, 1.9, -1.9], np.float32)
    for target in ("i8", "u8", "i32", "i64"):
        agree(device, mapped(cast(load(0, "f32", axes(1)), target), (9,), target, value("f32", 9)), x)


def test_broadcast(device: Any) -> None:
    x, row, column = load(0, "f32", axes(2)), load(1, "f32", (index(1),)), load(2, "f32", (index(0), const(0, "ix")))
    agree(device, mapped(x * row + column, (5, 33), "f32", value("f32", 5, 33), value("f32", 33), value("f32", 5, 1)),
          numbers("f32", 5, 33), numbers("f32", 33), numbers("f32", 5, 1))


def test_rank_0(device: Any) -> None:
    agree(device, mapped(apply("exp", load(0, "f32", ())), (), "f32", value("f32")), np.array(0.5, np.float32))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 5)])
def test_size_0(device: Any, shape: tuple[int, ...]) -> None:
    agree(device, mapped(load(0, "f32", axes(len(shape))) + 1.0, shape, "f32", value("f32", *shape)), np.zeros(shape, np.float32))


def test_an_empty_fold_gives_the_identity(device: Any) -> None:
    for fold in ("sum", "prod", "max", "min"):
        agree(device, g.Reduce((value("f32", 4, 0),), (value("f32", 4),), ranges=(4, 0), over=(1,), fold=fold, expr=load(0, "f32", axes(2))),
              np.zeros((4, 0), np.float32))


def test_reversed_and_transposed_reads(device: Any) -> None:
    x = numbers("f32", 6, 35)
    agree(device, mapped(load(0, "f32", (const(5, "ix") - index(0), const(34, "ix") - index(1))), (6, 35), "f32", value("f32", 6, 35)), x)
    agree(device, mapped(load(0, "f32", (index(1), index(0))), (35, 6), "f32", value("f32", 6, 35)), x)


@pytest.mark.parametrize("fold", ["sum", "prod", "max", "min", "argmax", "argmin"])
@pytest.mark.parametrize("over", [(0,), (1,), (0, 1)])
def test_folds(device: Any, fold: str, over: tuple[int, ...]) -> None:
    if fold.startswith("arg") and len(over) > 1:
        over = (0,)
    out = value("i64" if fold.startswith("arg") else "f32", *(s for a, s in enumerate((7, 41)) if a not in over))
    agree(device, g.Reduce((value("f32", 7, 41),), (out,), ranges=(7, 41), over=over, fold=fold, expr=load(0, "f32", axes(2))),
          numbers("f32", 7, 41) + np.float32(0.25), rtol=1e-4)


def test_any_and_all(device: Any) -> None:
    x = np.random.default_rng(2).random((5, 19)) < 0.9
    for fold in ("any", "all"):
        agree(device, g.Reduce((value("bool", 5, 19),), (value("bool", 5),), ranges=(5, 19), over=(1,), fold=fold, expr=load(0, "bool", axes(2))), x)


def test_a_nest_of_three_stages(device: Any) -> None:
    x = load(0, "f32", axes(2))
    e = apply("exp", x - folded(0, 0, "f32"))
    stages = ((g.Fold("max", x),), (g.Fold("sum", e),), (g.Store(0, axes(2), e / folded(1, 0, "f32")),))
    agree(device, g.Nest((value("f32", 9, 65),), (value("f32", 9, 65),), ranges=(9, 65), over=frozenset({1}), stages=stages), numbers("f32", 9, 65))


def test_a_gather_by_data_and_its_bounds(device: Any) -> None:
    place = cast(load(1, "i64", (index(0),)), "ix")
    node = mapped(load(0, "f32", (place, index(1))), (4, 21), "f32", value("f32", 6, 21), value("i64", 4))
    x = numbers("f32", 6, 21)
    agree(device, node, x, np.array([5, 0, 3, 3]))


def test_guarded_reads_stay_inside(device: Any) -> None:
    inside = apply("less", index(0), const(10, "ix"))
    agree(device, mapped(guard(inside, load(0, "f32", axes(1)), const(-1.0)), (30,), "f32", value("f32", 10)), numbers("f32", 10))


def test_a_product(device: Any) -> None:
    a, b = value("f32", 70, 45), value("f32", 45, 67)
    node = g.Call((a, b), (value("f32", 70, 67),), kernel="gemm")
    x, y = numbers("f32", 70, 45), numbers("f32", 45, 67, seed=3)
    assert device.supports(node) is None
    np.testing.assert_allclose(executed(device, node, [x, y])[0], x @ y, rtol=1e-5)
