"""TopK, NonMaxSuppression, Unique, Det, MaxRoiPool: through a session on every device, against loops and NumPy."""
from __future__ import annotations

from typing import Any

import numpy as np
import on_devices
import pytest
from op_runner import node_model

pytestmark = pytest.mark.usefixtures("every_device")
RNG = np.random.default_rng(12)


def outputs(op: str, inputs: list[Any], count: int = 1, opset: int = 16, **attributes: Any) -> list[Any]:
    feeds = {f"x{k}": x for k, x in enumerate(inputs)}
    got = on_devices.run(node_model(op, inputs, opset, count, **attributes), feeds)
    return [got[f"y{k}"] for k in range(count)]


def ranked(x: np.ndarray, k: int, largest: int) -> np.ndarray:
    """Positions of the k best of each row; of equals the first, NaN is the largest."""
    def key(row: np.ndarray, n: int) -> tuple[Any, ...]:
        nan, value = bool(row[n] != row[n]), 0 if row[n] != row[n] else row[n].item()
        return (not nan, -value, n) if largest else (nan, value, n)
    return np.array([sorted(range(len(row)), key=lambda n: key(row, n))[:k] for row in x], np.int64).reshape(len(x), k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint16, np.int64])
@pytest.mark.parametrize(("rows", "length", "k"), [(3, 10, 4), (2, 2048, 2048), (2, 3000, 70), (1, 17000, 3), (1, 5000, 2500), (3, 1, 1), (3, 5, 0), (0, 5, 2)])
def test_top_k_is_stable_and_puts_nan_first(dtype: Any, rows: int, length: int, k: int) -> None:
    """Short rows, rows longer than a tile, more wanted than a tile holds."""
    x = (RNG.standard_normal((rows, length)) * 9).round(1).astype(dtype)
    if dtype in (np.float32, np.float64) and length > 2:
        x[:, length // 2], x[:, length // 3], x[:, -1] = np.nan, -0.0, 0.0
    for largest in (0, 1):
        values, places = outputs("TopK", [x, np.array([k])], 2, 11, largest=largest)
        np.testing.assert_array_equal(places, ranked(x, k, largest))
        np.testing.assert_array_equal(values, np.take_along_axis(x, places, 1))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_top_k_along_every_axis(axis: int) -> None:
    x = RNG.permutation(60).reshape(4, 5, 3).astype(np.float32)
    values, places = outputs("TopK", [x, np.array([2])], 2, 11, axis=axis)
    np.testing.assert_array_equal(places, np.argsort(-x, axis, kind="stable").take([0, 1], axis))
    np.testing.assert_array_equal(values, -np.sort(-x, axis).take([0, 1], axis))


def suppressed(boxes: np.ndarray, scores: np.ndarray, most: int, overlap: float, least: float) -> list[list[int]]:
    """Boxes by corners, one class after another, in float64."""
    found = []
    for b, c in np.ndindex(*scores.shape[:2]):
        kept: list[int] = []
        for n in sorted(range(scores.shape[2]), key=lambda n: (-scores[b, c, n], n)):
            if len(kept) == most or scores[b, c, n] <= least:
                break
            if all(shared(boxes[b, n].astype(float), boxes[b, k].astype(float)) <= overlap for k in kept):
                kept.append(n)
        found += [[b, c, n] for n in kept]
    return found


def shared(a: np.ndarray, b: np.ndarray) -> float:
    side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inner = float(np.prod(side)) if (side > 0).all() else 0.0
    return inner / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner)


@pytest.mark.parametrize(("most", "overlap", "least"), [(5, 0.4, 0.2), (2**40, 0.7, -1.0), (0, 0.5, 0.0), (100, 0.0, 0.95)])
def test_non_max_suppression(most: int, overlap: float, least: float) -> None:
    corner = RNG.uniform(0, 20, (2, 40, 2))
    boxes = np.concatenate([corner, corner + RNG.uniform(0.5, 12, (2, 40, 2))], 2).astype(np.float32)
    scores = RNG.random((2, 3, 40)).astype(np.float32).round(2)
    limits = [np.array([most]), np.array([overlap], np.float32), np.array([least], np.float32)]
    (found,) = outputs("NonMaxSuppression", [boxes, scores, *limits])
    assert found.dtype == np.int64 and found.shape[1] == 3
    assert found.tolist() == suppressed(boxes, scores, most, overlap, least)
    centred = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], 2).astype(np.float32)
    (again,) = outputs("NonMaxSuppression", [centred, scores, *limits], center_point_box=1)
    assert again.tolist() == found.tolist()


def test_non_max_suppression_of_many() -> None:
    """More boxes than a tile of the sort, more chosen than a stretch."""
    corner = RNG.uniform(0, 60, (1, 2500, 2))
    boxes = np.concatenate([corner, corner + RNG.uniform(0.5, 4, (1, 2500, 2))], 2).astype(np.float32)
    scores = RNG.random((1, 2, 2500)).astype(np.float32).round(3)
    (found,) = outputs("NonMaxSuppression", [boxes, scores, np.array([600]), np.array([0.5], np.float32), np.array([0.05], np.float32)])
    assert len(found) > 1000 and found.tolist() == suppressed(boxes, scores, 600, 0.5, 0.05)


def test_boxes_that_are_not_numbers_end() -> None:
    boxes = np.full((1, 5, 4), np.nan, np.float32)
    scores = np.array([[[np.nan, 1, np.inf, -np.inf, 0]]], np.float32)
    (found,) = outputs("NonMaxSuppression", [boxes, scores, np.array([9])])
    assert found[:, 2].tolist() == [2, 1, 4, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.int64, np.bool_])
@pytest.mark.parametrize("axis", [None, 0, -2])
def test_unique_ascends(dtype: Any, axis: int | None) -> None:
    x = RNG.integers(0, 3, (9, 4, 2)).astype(dtype)
    got = outputs("Unique", [x], 4, **({} if axis is None else {"axis": axis}))
    expected = np.unique(x, True, True, True, axis=axis)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))
    assert got[0].dtype == x.dtype


@pytest.mark.parametrize("text", [False, True])
def test_unique_in_order_of_appearance(text: bool) -> None:
    x = np.array([5, 2, 5, 9, 2, 2, 7], np.int32)
    y, first, inverse, counts = outputs("Unique", [x.astype(str).astype(object) if text else x], 4, sorted=0)
    assert [int(v) for v in y] == [5, 2, 9, 7] and first.tolist() == [0, 1, 3, 6]
    assert inverse.tolist() == [0, 1, 0, 2, 1, 1, 3] and counts.tolist() == [2, 3, 1, 1]


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize(("rows", "values"), [(2048, 5), (2049, 3000), (9001, 700), (3000, 1)])
def test_unique_of_many(rows: int, values: int, in_order: int) -> None:
    """More than one tile of a sort, groups that reach over tiles."""
    x = RNG.integers(-values // 2, values // 2 + 1, rows).astype(np.int32)
    y, first, inverse, counts = outputs("Unique", [x], 4, sorted=in_order)
    expected, where, back, often = np.unique(x, True, True, True)
    order = np.arange(len(where)) if in_order else np.argsort(where)
    np.testing.assert_array_equal(y, expected[order])
    np.testing.assert_array_equal(first, where[order])
    np.testing.assert_array_equal(counts, often[order])
    np.testing.assert_array_equal(inverse, np.argsort(order)[back])


def test_unique_of_nothing_and_of_nan() -> None:
    assert [o.shape for o in outputs("Unique", [np.zeros(0, np.float32)], 4)] == [(0,)] * 4
    y, _, inverse, counts = outputs("Unique", [np.array([np.nan, 1, np.nan], np.float32)], 4)
    np.testing.assert_array_equal(y, [1, np.nan])
    assert inverse.tolist() == [1, 0, 1] and counts.tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (3, 2, 5, 5), (2, 0, 0), (0, 4, 4), (9, 24, 24), (2, 40, 40), (2, 75, 75)])
def test_det(shape: tuple[int, ...]) -> None:
    x = RNG.standard_normal(shape)
    (y,) = outputs("Det", [x])
    np.testing.assert_allclose(y, np.linalg.det(x), rtol=1e-9)


def test_det_of_singular_and_swapped_rows() -> None:
    x = np.array([[[0, 1], [1, 0]], [[1, 2], [2, 4]]], np.float32)
    assert outputs("Det", [x])[0].tolist() == [-1, 0]


def test_max_roi_pool() -> None:
    x = RNG.standard_normal((2, 3, 12, 10)).astype(np.float32)
    rois = np.array([[0, 1, 2, 6, 9], [1, 0, 0, 9, 11], [1, 8, 3, 20, 30], [0, 4, 4, 4, 4]], np.float32)
    (y,) = outputs("MaxRoiPool", [x, rois], pooled_shape=[3, 2])
    expected = np.zeros((4, 3, 3, 2), np.float32)
    for r, (batch, left, top, right, bottom) in enumerate(rois.astype(int)):
        height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
        for i, j in np.ndindex(3, 2):
            rows = slice(min(top + i * height // 3, 12), min(top - (-(i + 1) * height // 3), 12))
            columns = slice(min(left + j * width // 2, 10), min(left - (-(j + 1) * width // 2), 10))
            cell = x[batch, :, rows, columns]
            expected[r, :, i, j] = cell.max((1, 2)) if cell.size else 0
    np.testing.assert_array_equal(y, expected)
