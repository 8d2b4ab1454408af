"""Operators on images and signals: Resize in all its modes, sampling grids, regions, boxes, windows, Fourier transforms."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from every_operator.draw import Case, Draw, info
from every_operator.folding import wide
from every_operator.oracle import reference
from every_operator.row import Row
from onnx import helper

F32 = np.float32


def resize(d: Draw) -> Case:
    version = d.schema.since_version
    mode = d.pick("nearest", "linear", *(["cubic"] if version >= 11 else []))
    x = d.array((d.integer(1, 2), d.integer(1, 2), *d.shape(1, 2, 1, 5)) if mode != "cubic" else (1, d.integer(1, 2), *d.shape(2, 2, 2, 5)), d.type(d.schema.inputs[0].type_str, "f"), False)
    spatial = list(range(2, x.ndim))
    factors = [d.pick(0.5, 1.0, 1.5, 2.0, 3.0, 0.75) for _ in spatial]
    if version == 10 or d.schema.name == "Upsample":
        factors = factors if d.schema.name == "Resize" else [max(1.0, f) for f in factors]
        scales = np.array([1, 1, *factors], F32)
        if d.schema.name == "Upsample" and version < 9:
            return d.case(x, scales=[float(s) for s in scales], mode=mode)
        return d.case(x, scales, mode=mode, constant=(1,))
    more: dict[str, Any] = {"mode": mode}
    more["coordinate_transformation_mode"] = d.pick("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", *(["half_pixel_symmetric"] if version >= 19 else []))
    if mode == "nearest":
        more["nearest_mode"] = d.pick("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if mode == "cubic":
        more["cubic_coeff_a"] = d.pick(None, -0.5)
        more["exclude_outside"] = d.pick(None, 0, 1)
    by_size = d.flag()
    sizes = [max(1, int(s * f)) for s, f in zip(x.shape[2:], factors, strict=True)]
    if version >= 18:
        more["antialias"] = d.pick(None, 0, 1) if mode != "nearest" else None
        if d.flag():
            scales, whole = (None, np.array(sizes)) if by_size else (np.array(factors, F32), None)
            more["keep_aspect_ratio_policy"] = d.pick(None, "not_larger", "not_smaller") if by_size else None
            return d.case(x, None, scales, *([whole] if by_size else []), axes=spatial, **more, constant=(2, 3))
    by_size = by_size and version >= 13
    empty = None if version >= 13 else np.zeros(0, F32)
    roi = None if version >= 13 else np.zeros(0, x.dtype if d.schema.inputs[1].type_str == "T1" else F32)
    scales, whole = (empty, np.array([*x.shape[:2], *sizes])) if by_size else (np.array([1, 1, *factors], F32), None)
    return d.case(x, roi, scales, *([whole] if by_size else []), **more, constant=(1, 2, 3))


def resized(case: Case) -> list[Any]:
    """What Upsample and opset 10 say without naming it: places are asymmetric, the nearest one is the floor."""
    if case.model.graph.node[-1].op_type == "Resize" and case.model.opset_import[0].version > 10:
        return reference(case)
    x, scales = case.inputs
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode=case.attributes["mode"], coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    graph = helper.make_graph([node], "g", [info("x", x.dtype, None), info("s", F32, None)], [onnx.ValueInfoProto(name="y")])
    return reference(Case(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), {"x": x, "s": scales}))


def grid_sample(d: Draw) -> Case:
    new = d.schema.since_version >= 20
    n, flat = d.integer(1, 2), d.flag() or not new
    sizes, out = (d.shape(2, 2, 1, 4), d.shape(2, 2, 1, 4)) if flat else (d.shape(3, 3, 1, 3), d.shape(3, 3, 1, 3))
    modes = ("linear", "nearest", *(("cubic",) if flat else ())) if new else ("bilinear", "nearest", "bicubic")
    x, grid_type = d.array((n, d.integer(1, 2), *sizes), d.type("T1", "f"), False), d.type("T2")
    grid = (d.random.integers(-40, 41, (n, *out, len(out))) / 32 + 0.003).astype(F32).astype(grid_type)
    return d.case(x, grid, mode=d.pick(*modes), padding_mode=d.pick(None, "zeros", "border", "reflection"), align_corners=d.pick(None, 0, 1))


def affine_grid(d: Draw) -> Case:
    n, flat = d.integer(1, 2), d.flag()
    sizes = d.shape(2, 2, 1, 4) if flat else d.shape(3, 3, 1, 3)
    theta = d.array((n, len(sizes), len(sizes) + 1), d.type("T1"), False)
    return d.case(theta, np.array([n, 1, *sizes]), align_corners=d.pick(None, 0, 1), constant=(1,))


def roi_align(d: Draw) -> Case:
    n, rois = d.integer(1, 2), d.integer(0, 3)
    x = d.array((n, d.integer(1, 2), d.integer(2, 5), d.integer(2, 5)), d.type("T1"), False)
    start = d.random.integers(0, 12, (rois, 2)) / 8
    boxes = np.concatenate([start, start + d.random.integers(8, 24, (rois, 2)) / 8], 1).astype(x.dtype)
    more = {"coordinate_transformation_mode": d.pick("half_pixel", "output_half_pixel")} if d.schema.since_version >= 16 and d.flag() else {}
    return d.case(x, boxes, d.random.integers(0, n, rois), mode=d.pick(None, "avg", "max"), output_height=d.integer(1, 3), output_width=d.integer(1, 3),
                  sampling_ratio=d.pick(None, 1, 2), spatial_scale=d.pick(None, 0.5), **more)


def max_roi(d: Draw) -> Case:
    n, rois = d.integer(1, 2), d.integer(1, 3)
    x = d.array((n, d.integer(1, 2), d.integer(2, 6), d.integer(2, 6)), d.type("T"), False)
    start = d.random.integers(0, 2, (rois, 2))
    boxes = np.concatenate([d.random.integers(0, n, (rois, 1)), start, start + d.random.integers(0, 4, (rois, 2))], 1).astype(x.dtype)
    return d.case(x, boxes, pooled_shape=[d.integer(1, 3), d.integer(1, 3)])


def max_roi_of(case: Case) -> list[Any]:
    """Cells begin at the floor and end at the ceiling of their share of the region (Girshick, Fast R-CNN)."""
    x, boxes = map(wide, case.inputs)
    (ph, pw), (h, w) = case.attributes["pooled_shape"], x.shape[2:]
    y = np.zeros((len(boxes), x.shape[1], ph, pw))
    for r, (n, x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        tall, broad = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
        for i in range(ph):
            for j in range(pw):
                rows = slice(min(y0 + i * tall // ph, h), min(y0 - (-(i + 1) * tall // ph), h))
                columns = slice(min(x0 + j * broad // pw, w), min(x0 - (-(j + 1) * broad // pw), w))
                cell = x[n][:, rows, columns]
                y[r, :, i, j] = cell.max((1, 2)) if cell.size else 0
    return [y]


def boxes(d: Draw) -> Case:
    n, classes, count = d.integer(1, 2), d.integer(1, 2), d.integer(0 if d.integer(0, 6) == 6 else 1, 6)
    corner = d.random.integers(0, 8, (n, count, 2)) / 4
    found = np.concatenate([corner, corner + d.random.integers(1, 8, (n, count, 2)) / 4], 2).astype(F32)
    scores = (d.random.permutation(n * classes * count).reshape(n, classes, count) / 40).astype(F32)
    limits = [np.array([d.integer(0, 4)]), np.array([d.pick(0.3, 0.5, 0.0, 1.0)], F32), np.array([d.pick(0.0, 0.2)], F32)][:3]
    return d.case(found, scores, *limits, center_point_box=d.pick(None, 0, 1), constant=(2, 3, 4))


def dft(d: Draw) -> Case:
    x = d.array((d.integer(1, 2), *d.shape(1, 2, 1, 9), d.pick(1, 2)), d.type("T1"), False)
    axis = d.integer(1, x.ndim - 2)
    inverse, length = d.pick(0, 1), np.array(d.integer(1, 12), d.type("T2")) if d.flag() else None
    onesided = 1 if x.shape[-1] == 1 and not inverse and d.flag() else None
    if d.has("axis"):
        return d.case(x, *([length] if length is not None else []), axis=axis, inverse=inverse, onesided=onesided, constant=(1,))
    return d.case(x, length, np.array(axis), inverse=inverse, onesided=onesided, constant=(1, 2))


def dft_of(case: Case) -> list[Any]:
    x, a = wide(case.inputs[0]), case.attributes
    axis = a["axis"] if "axis" in a else int(case.inputs[2])
    length = int(case.inputs[1]) if len(case.inputs) > 1 and case.inputs[1] is not None else x.shape[axis]
    z = x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]
    y = np.fft.ifft(z, length, axis) if a.get("inverse") else np.fft.fft(z, length, axis)
    y = y.take(range(length // 2 + 1), axis) if a.get("onesided") else y
    return [np.stack([y.real, y.imag], -1)]


def stft(d: Draw) -> Case:
    size, step = d.pick(4, 6, 8), d.integer(1, 4)
    x = d.array((d.integer(1, 2), size + d.integer(0, 6), 1), d.type("T1"), False)
    return d.case(x, np.array(step, d.type("T2")), d.array((size,), x.dtype, False), *([np.array(size, d.type("T2"))] if d.flag() else []),
                  onesided=d.pick(None, 0, 1), constant=(1, 2, 3))


def stft_of(case: Case) -> list[Any]:
    x, step, window = wide(case.inputs[0])[..., 0], int(case.inputs[1]), wide(case.inputs[2])
    size = window.size
    frames = np.stack([x[:, s:s + size] * window for s in range(0, x.shape[1] - size + 1, step)], 1)
    y = np.fft.fft(frames, axis=-1)
    y = y[..., :size // 2 + 1] if case.attributes.get("onesided", 1) else y
    return [np.stack([y.real, y.imag], -1)]


def shape_window(d: Draw) -> Case:
    """In float types: a window cut to integers hangs on the last bit."""
    dtype = d.type("T2", "f")
    return d.case(np.array(d.integer(1, 9), d.type("T1")), periodic=d.pick(None, 0, 1), output_datatype=helper.np_dtype_to_tensor_dtype(dtype), constant=(0,))


COSINES = {"HannWindow": (0.5, 0.5, 0.0), "HammingWindow": (25 / 46, 21 / 46, 0.0), "BlackmanWindow": (0.42, 0.5, 0.08)}


def shaped(case: Case) -> list[Any]:
    size = int(case.inputs[0])
    a0, a1, a2 = COSINES[case.model.graph.node[-1].op_type]
    with np.errstate(all="ignore"):
        angle = 2 * np.pi * np.arange(size) / (size if case.attributes.get("periodic", 1) else size - 1)
    return [a0 - a1 * np.cos(angle) + a2 * np.cos(2 * angle)]


def mel(d: Draw) -> Case:
    t1, t2 = d.type("T1"), d.type("T2")
    values = [np.array(v, t1) for v in (d.integer(1, 6), d.pick(8, 16), 8192)] + [np.array(0.0).astype(t2), np.array(4096.0).astype(t2)]
    dtype = d.type("T3", "f")
    return d.case(*values, output_datatype=helper.np_dtype_to_tensor_dtype(dtype), constant=(0, 1, 2, 3, 4))


ROWS: dict[str, Row] = {
    "Resize": Row(resize, resized, sums=4, slack=2), "Upsample": Row(resize, resized, sums=1, since=9), "GridSample": Row(grid_sample, single=True, sums=20, slack=4), "AffineGrid": Row(affine_grid, single=True, sums=1),
    "RoiAlign": Row(roi_align, sums=4), "MaxRoiPool": Row(max_roi, max_roi_of), "NonMaxSuppression": Row(boxes), "DFT": Row(dft, dft_of, sums=2),
    "STFT": Row(stft, stft_of, sums=2), **{n: Row(shape_window, shaped, floor=1) for n in COSINES}, "MelWeightMatrix": Row(mel),
}
