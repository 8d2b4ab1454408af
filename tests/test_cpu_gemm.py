"""gemm on the CPU against NumPy in float64."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_runner import Bound, seconds

from gpuonnx.ir.dims import Space
from gpuonnx.ir.expr import Expr, apply, cast, const, guard, index, load
from gpuonnx.ir.types import numpy_dtype, of_numpy
from gpuonnx.kernels.contract import Epilogue, Layout, Spec
from gpuonnx.kernels.cpu import gemm

RANDOM = np.random.default_rng(7)


def random(shape: tuple[int, ...], dtype: str = "f32") -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(numpy_dtype(dtype))


def layout(array: np.ndarray) -> Layout:
    """The strides an array really has."""
    return Layout(of_numpy(array.dtype), array.shape, tuple(s // array.itemsize for s in array.strides))


def product(a: np.ndarray, b: np.ndarray, constant: bool = False, out_dtype: str | None = None, epilogue: Epilogue | None = None,
            extras: tuple[np.ndarray, ...] = (), reverse: bool = False) -> np.ndarray:
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    out = np.full(shape, 77, numpy_dtype(out_dtype or of_numpy(a.dtype)))
    call = Spec((layout(a), layout(b)), (layout(out),), {}, {1: b} if constant else {}, epilogue)
    assert gemm.supports(call) is None
    Bound(gemm.build(call), [a, b], [out], extras).run(reverse)
    return out


def close(got: np.ndarray, want: np.ndarray, relative: float = 2e-6) -> None:
    assert got.shape == want.shape
    if want.size:
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=relative * max(1.0, float(np.abs(want).max())))


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("m", [1, 2, 3, 5, 7, 8, 13, 14, 15, 29, 100])
@pytest.mark.parametrize("n, k", [(1, 1), (16, 3), (31, 64), (33, 7), (64, 130)])
def test_sizes(m: int, n: int, k: int) -> None:
    a, b = random((m, k)), random((k, n))
    close(product(a, b, constant=True), exact(a, b))
    close(product(a, b), exact(a, b))


@pytest.mark.parametrize("dtype, error", [("f64", 1e-14), ("f16", 1e-3), ("bf16", 8e-3)])
def test_types(dtype: str, error: float) -> None:
    a, b = random((37, 50), dtype), random((50, 45), dtype)
    close(product(a, b, constant=True), exact(a, b), error)
    close(product(a, b), exact(a, b), error)
    assert gemm.supports(Spec((layout(a.astype(np.int32)), layout(b)), (layout(a),))) is not None


@pytest.mark.parametrize("left, right", [
    ((2, 3, 4, 5), (2, 3, 5, 6)), ((4, 9, 16), (16, 20)), ((1, 3, 9, 16), (2, 1, 16, 33)), ((9, 16), (5, 16, 3)),
    ((3, 1, 2, 7, 11), (4, 1, 11, 17)), ((6, 1, 40), (6, 40, 50))])
def test_batches(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = random(left), random(right)
    close(product(a, b), exact(a, b))
    close(product(a, b, constant=True), exact(a, b))


def test_any_strides() -> None:
    base = random((3, 70, 90))
    for a in (base, base.transpose(0, 2, 1).copy().transpose(0, 2, 1), base[:, ::-1], base[:, :, ::2][:, :, ::-1]):
        for b in (random((a.shape[-1], 40)), random((40, a.shape[-1])).T, random((3, 40, 2 * a.shape[-1]))[:, ::2, ::2].transpose(0, 2, 1)):
            close(product(a, b), exact(a, b))


def test_rows_that_share_a_cache_set_are_packed() -> None:
    a, b = random((40, 1024)), random((1024, 33))
    call = Spec((layout(a), layout(b)), (Layout.dense("f32", (40, 33)),), {}, {1: b})
    assert [s.kernel.name for s in gemm.build(call).steps] == ["pack", "contraction"]
    close(product(a, b, constant=True), exact(a, b), 1e-5)


def test_empty() -> None:
    for m, n, k in ((0, 5, 3), (4, 0, 3), (4, 5, 0)):
        close(product(random((m, k)), random((k, n))), np.zeros((m, n)))


def test_output_with_any_strides() -> None:
    a, b = random((20, 30)), random((30, 40))
    room = np.zeros((40, 64), np.float32)
    for out in (room[:20, :40], room[:, :20].T, room.reshape(-1)[:40 * 60].reshape(20, 120)[:, ::3]):
        Bound(gemm.build(Spec((layout(a), layout(b)), (layout(out),))), [a, b], [out]).run()
        close(out, exact(a, b))


def test_any_order_of_tasks_gives_the_same_bits() -> None:
    a, b = random((200, 300)), random((300, 500))
    assert product(a, b, constant=True).tobytes() == product(a, b, constant=True, reverse=True).tobytes()


def test_a_new_size_compiles_nothing() -> None:
    space = Space()
    m, batch = space.sym("m"), space.sym("b", 1)
    b = random((48, 70))
    call = Spec((Layout.dense("f32", (batch, m, 48)), layout(b)), (Layout.dense("f32", (batch, m, 70)),), {}, {1: b})
    build = gemm.build(call)
    for n, rows in ((1, 3), (2, 33), (5, 0), (1, 400)):
        a, out = random((n, rows, 48)), np.zeros((n, rows, 70), np.float32)
        before = len(seconds)
        Bound(build, [a, b], [out], binding_of={"m": rows, "b": n}).run()
        close(out, exact(a, b))
        assert len(seconds) == before or rows == 3


def test_batch_of_a_constant_product_is_more_rows() -> None:
    space = Space()
    m, batch = space.sym("m"), space.sym("b")
    b = random((48, 70))
    bias = Epilogue(load(0, "f32", (index(0), index(1), index(2))) + load(1, "f32", (index(2),)), (Layout.dense("f32", (70,)),))
    call = Spec((Layout.dense("f32", (batch, m, 48)), layout(b)), (Layout.dense("f32", (batch, m, 70)),), {}, {1: b}, bias)
    assert gemm.build(call).steps[-1].kernel.key[0].batch == 0


def acc(rank: int = 2) -> Expr:
    return load(0, "f32", tuple(index(k) for k in range(rank)))


def test_epilogue_bias_residual_relu() -> None:
    for m in (3, 14, 30):
        a, b, bias, more = random((m, 50)), random((50, 75)), random((75,)), random((m, 75))
        e = apply("max", acc() + load(1, "f32", (index(1),)) + load(2, "f32", (index(0), index(1))), 0.0)
        got = product(a, b, True, epilogue=Epilogue(e, (layout(bias), layout(more))), extras=(bias, more))
        close(got, np.maximum(exact(a, b) + bias + more, 0))


def test_epilogue_of_many_kinds() -> None:
    a, b = random((4, 17, 50)), random((50, 75))
    rows, table, scale = random((4, 17, 1)), random((75, 17)), random(())
    e = acc(3) * load(3, "f32", ()) + load(1, "f32", (index(0), index(1), 0)) * load(2, "f32", (index(2), index(1)))
    e = apply("tanh", e) + cast(index(0) * 1000 + index(1) * 100 + index(2), "f32")
    extras = (rows, table.astype(np.float16), scale)
    got = product(a, b, True, epilogue=Epilogue(e, tuple(map(layout, extras))), extras=extras)
    places = np.arange(4)[:, None, None] * 1000 + np.arange(17)[:, None] * 100 + np.arange(75)
    close(got, np.tanh(exact(a, b) * scale + rows * table.astype(np.float16).T.astype(np.float64)) + places, 2e-6)


def test_epilogue_guard_reads_only_where_it_holds() -> None:
    a, b, part = random((20, 30)), random((30, 40)), random((20, 10))
    e = acc() + guard(apply("less", index(1), const(10, "ix")), load(1, "f32", (index(0), index(1))), const(1.0))
    got = product(a, b, True, epilogue=Epilogue(e, (layout(part),)), extras=(part,))
    close(got, exact(a, b) + np.concatenate([part, np.ones((20, 30))], 1))


@pytest.mark.parametrize("stored", ["f16", "bf16", "i32", "u8", "i8", "f64", "bool"])
def test_epilogue_stores_any_type(stored: str) -> None:
    a, b = random((20, 30)), random((30, 40))
    e: Any = acc() * 3.0
    e = cast(e, stored) if stored not in ("f16", "bf16", "bool") else e if stored != "bool" else apply("less", e, 0.5)
    if stored == "u8":
        e = cast(apply("max", acc(), 0.0), "u8")
    got = product(a, b, True, stored, Epilogue(e))
    want = exact(a, b).astype(np.float32)
    want = {"bool": want * 3 < 0.5, "u8": np.maximum(want, 0)}.get(stored, want * 3)
    if stored in ("f16", "bf16", "f64"):
        close(got, want, 1e-2 if stored == "bf16" else 1e-3)
    else:
        assert np.mean(got != want.astype(got.dtype)) < 0.01
