"""Operators that move elements: reshapes, slices, joins, pads, gathers and scatters, with every type that the schema allows."""
from __future__ import annotations

from typing import Any

import numpy as np
from every_operator.draw import Case, Draw
from every_operator.row import Row
from onnx import helper, numpy_helper

I64 = np.int64


def index_type(d: Draw, name: str = "Tind") -> Any:
    return d.type(name)


def input_or_attribute(d: Draw, x: np.ndarray, name: str, values: list[int] | None, **attributes: Any) -> Case:
    """What older versions have as an attribute, newer ones as an input."""
    if d.has(name):
        return d.case(x, **{name: values}, **attributes)
    return d.case(x, *([] if values is None else [np.array(values, I64)]), constant=(1,), **attributes)


def any_array(d: Draw, least: int = 0, most: int = 4, low: int = 0) -> np.ndarray:
    return d.array(d.shape(least, most, low), d.type("T"))


def reshape(d: Draw) -> Case:
    x = any_array(d)
    sizes = [int(s) for s in x.shape]
    shape = list(sizes)
    how = d.pick("same", "flat", "split", "merged", "zeros") if x.size else "same"
    if how == "flat":
        shape = [-1] if x.size else [x.size]
    elif how == "merged" and len(shape) > 1:
        shape = [shape[0] * shape[1], *shape[2:]]
    elif how == "split":
        shape = [1, *shape, 1]
    elif how == "zeros":
        shape = [0 if d.flag() else s for s in shape]
    if how != "zeros" and shape and x.size and d.flag():
        shape[d.integer(0, len(shape) - 1)] = -1
    allowzero = {"allowzero": 1} if d.has("allowzero") and 0 not in shape and d.flag() else {}
    return input_or_attribute(d, x, "shape", shape, **allowzero)


def transpose(d: Draw) -> Case:
    x = any_array(d, most=5)
    return d.case(x, perm=d.permutation(x.ndim) if d.flag() and x.ndim else None)


def squeeze(d: Draw) -> Case:
    shape = list(d.shape(1, 4))
    axes = [a for a in d.axes(len(shape), 1)]
    if d.schema.since_version < 11:
        axes = [a % len(shape) for a in axes]
    for a in axes:
        shape[a] = 1
    return input_or_attribute(d, d.array(shape, d.type("T")), "axes", axes if d.integer(0, 3) else None)


def unsqueeze(d: Draw) -> Case:
    x = any_array(d, most=3)
    rank = x.ndim + d.integer(1, 2)
    axes = d.permutation(rank)[:rank - x.ndim]
    if d.schema.since_version >= 11:
        axes = [a - rank if d.flag() else a for a in axes]
    return input_or_attribute(d, x, "axes", axes)


def flatten(d: Draw) -> Case:
    x = any_array(d, 0 if d.schema.since_version >= 9 else 1)
    low = -x.ndim if d.schema.since_version >= 11 else 0
    axis = d.integer(low, x.ndim)
    return d.case(x, axis=axis if d.flag() or x.ndim < 1 else None)


def split(d: Draw) -> Case:
    x = any_array(d, 1)
    axis = d.axis(x.ndim) if d.schema.since_version >= 11 else d.integer(0, x.ndim - 1)
    size, parts = x.shape[axis], d.integer(1, 3)
    cuts = sorted(d.integer(0, size) for _ in range(parts - 1))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    if d.has("num_outputs") and d.flag() and size >= parts and -(-size // parts) * (parts - 1) <= size:
        return d.case(x, axis=axis, num_outputs=parts, outputs=parts)
    if d.schema.since_version == 1:
        return d.case(x, axis=axis, split=sizes, outputs=parts)
    if d.has("split"):
        return d.case(x, axis=axis, split=sizes, outputs=parts)
    return d.case(x, np.array(sizes, I64), axis=axis, outputs=parts, constant=(1,))


def concat(d: Draw) -> Case:
    shape = list(d.shape(1, 4))
    axis = d.axis(len(shape)) if d.schema.since_version >= 11 else d.integer(0, len(shape) - 1)
    parts = []
    for _ in range(d.integer(1, 4)):
        shape[axis] = d.integer(0, 4)
        parts.append(d.array(shape, d.type("T")))
    return d.case(*parts, axis=axis, constant=(1,))


def slices(d: Draw) -> Case:
    x = any_array(d, 1)
    axes = d.axes(x.ndim, 1)
    starts, ends = ([d.integer(-7, 7) for _ in axes] for _ in range(2))
    if d.has("starts"):
        return d.case(x, starts=starts, ends=ends, axes=[a % x.ndim for a in axes])
    dtype = index_type(d)
    if d.flag():
        ends = [d.pick(np.iinfo(dtype).max, np.iinfo(dtype).min, e) for e in ends]
    if d.schema.since_version < 11:
        axes = [a % x.ndim for a in axes]
    inputs = [np.array(v, dtype) for v in (starts, ends, axes)]
    if d.flag():
        inputs.append(np.array([d.pick(1, 2, -1, -2, 3, -7) for _ in axes], dtype))
    return d.case(x, *inputs, constant=(1, 2, 3, 4))


def sliced(case: Case) -> list[Any]:
    """NumPy's slices, which clamp as the standard does."""
    x, rest = np.asarray(case.inputs[0]), case.inputs[1:]
    if not rest:
        rest = [case.attributes[k] for k in ("starts", "ends", "axes")]
    starts, ends, axes = ([int(v) for v in r] for r in rest[:3])
    steps = [int(v) for v in rest[3]] if len(rest) > 3 else [1] * len(axes)
    where: list[Any] = [slice(None)] * x.ndim
    for s, e, a, step in zip(starts, ends, axes, steps, strict=True):
        before = step < 0 and e < -x.shape[a]
        where[a] = slice(s if step > 0 or s >= -x.shape[a] else -x.shape[a], None if before else e, step)
        if step < 0 and s < -x.shape[a]:
            where[a] = slice(0, None if before or e < 0 and e + x.shape[a] < 0 else e, step)
    return [x[tuple(where)]]


def expand(d: Draw) -> Case:
    shape = d.shape()
    x = d.array(d.broadcast(shape), d.type("T"))
    return d.case(x, np.array(d.broadcast(shape), I64), constant=(1,))


def tile(d: Draw) -> Case:
    if d.schema.since_version == 1:
        x = any_array(d, 1)
        return d.case(x, np.array([d.integer(1, 3)], x.dtype), np.array([d.integer(0, x.ndim - 1)], x.dtype))
    x = any_array(d, 1)
    return d.case(x, np.array([d.integer(0, 3) for _ in x.shape], I64), constant=(1,))


def pad(d: Draw) -> Case:
    x = any_array(d, 1)
    mode = d.pick("constant", "edge", "reflect", *(["wrap"] if d.schema.since_version >= 19 else []))
    if 0 in x.shape or mode == "reflect" and min(x.shape) < 2:
        mode = "constant"
    axes = sorted(a % x.ndim for a in d.axes(x.ndim, 1)) if d.schema.since_version >= 18 and d.flag() else None
    where = list(range(x.ndim)) if axes is None else axes
    sizes = [x.shape[a] for a in where]
    most = [3 if mode in ("constant", "edge") else s - 1 for s in sizes]
    least = [-(s // 2) if mode == "constant" else 0 for s in sizes]
    pads = [d.integer(low, high) for low, high in zip([*least, *least], [*most, *most], strict=True)]
    if d.schema.since_version < 11:
        return d.case(x, mode=mode, **{"pads" if d.has("pads") else "paddings": pads}, value=d.pick(0.0, 1.5))
    value = d.array((), x.dtype) if d.flag() else None
    more = [] if axes is None else [np.array(axes, index_type(d))]
    return d.case(x, np.array(pads, I64), *([value] if value is not None or more else []), *more, mode=mode if mode != "constant" or d.flag() else None,
                  constant=(1, 2, 3))


def padded(case: Case) -> list[Any]:
    x, attributes = np.asarray(case.inputs[0]), case.attributes
    given = [*case.inputs[1:], None, None, None][:3]
    pads = [int(p) for p in (given[0] if given[0] is not None else attributes.get("pads", attributes.get("paddings")))]
    axes = list(range(x.ndim)) if given[2] is None else [int(a) for a in given[2]]
    widths, n = [(0, 0)] * x.ndim, len(axes)
    for k, a in enumerate(axes):
        before, after = pads[k], pads[k + n]
        x = np.take(x, range(max(-before, 0), x.shape[a] - max(-after, 0)), a)
        widths[a] = (max(before, 0), max(after, 0))
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        return [np.pad(x, widths, mode)]
    value = given[1] if given[1] is not None else np.array("" if x.dtype == object else attributes.get("value", 0)).astype(x.dtype)
    out = np.empty([s + a + b for s, (a, b) in zip(x.shape, widths, strict=True)], x.dtype)
    out[...] = value
    out[tuple(slice(a, a + s) for s, (a, _) in zip(x.shape, widths, strict=True))] = x
    return [out]


def center_crop_pad(d: Draw) -> Case:
    x = any_array(d, 1, low=1)
    axes = sorted(a % x.ndim for a in d.axes(x.ndim, 1)) if d.flag() else None
    return d.case(x, np.array([d.integer(1, 6) for _ in (axes or x.shape)], index_type(d)), axes=axes, constant=(1,))


def gather(d: Draw) -> Case:
    x = any_array(d, 1, low=1)
    axis = d.axis(x.ndim) if d.schema.since_version >= 11 else d.integer(0, x.ndim - 1)
    return d.case(x, indices(d, d.shape(0, 2), x.shape[axis]), axis=axis, constant=(1,))


def indices(d: Draw, shape: Any, size: int, dtype: Any = None) -> np.ndarray:
    low = -size if d.schema.since_version >= 11 else 0
    return np.asarray(d.random.integers(low, size, shape), dtype or index_type(d))


def gather_elements(d: Draw) -> Case:
    x = any_array(d, 1, low=1)
    axis = d.axis(x.ndim)
    shape = [d.integer(1, s) for s in x.shape]
    shape[axis] = d.integer(0, 5)
    return d.case(x, indices(d, shape, x.shape[axis]), axis=axis, constant=(1,))


def scatter_elements(d: Draw) -> Case:
    how = d.pick("none", "add", "mul", *(["max", "min"] if d.schema.since_version >= 18 else [])) if d.has("reduction") else "none"
    dtype = d.type("T", "fiubcs" if how == "none" else "fiu")
    x = d.array(d.shape(1, 3, 1), dtype)
    axis = d.axis(x.ndim)
    shape = [d.integer(1, s) for s in x.shape]
    at = indices(d, shape, x.shape[axis])
    if how == "none":
        line = np.array([d.random.permutation(x.shape[axis])[:shape[axis]] for _ in range(int(np.prod(shape)) // shape[axis])])
        moved = [s for k, s in enumerate(shape) if k != axis % x.ndim]
        at = np.moveaxis(line.reshape(*moved, shape[axis]), -1, axis).astype(at.dtype)
    return d.case(x, at, d.array(shape, dtype), axis=axis, reduction=how if how != "none" else None, constant=(1,))


def batches(d: Draw, x: np.ndarray, batch: int) -> tuple[list[int], int]:
    """The shape of the indices, all but the last axis; and how many axes they name."""
    named = d.integer(1, x.ndim - batch)
    return [*x.shape[:batch], *d.shape(1, 2, 1, 3)], named


def gather_nd(d: Draw) -> Case:
    x = any_array(d, 1, low=1)
    batch = d.integer(0, min(x.ndim - 1, 1)) if d.has("batch_dims") else 0
    shape, named = batches(d, x, batch)
    at = np.stack([indices(d, shape, x.shape[batch + k], I64) for k in range(named)], -1)
    return d.case(x, at, batch_dims=batch or None, constant=(1,))


def scatter_nd(d: Draw) -> Case:
    how = d.pick("none", "add", "mul", *(["max", "min"] if d.schema.since_version >= 18 else [])) if d.has("reduction") else "none"
    dtype = d.type("T", "fiubcs" if how == "none" else "fiu")
    x = d.array(d.shape(1, 3, 1), dtype)
    named = d.integer(1, x.ndim)
    places = list(np.ndindex(*x.shape[:named]))
    count = d.integer(1, min(len(places), 5))
    at = np.array([places[k] for k in d.random.permutation(len(places))[:count]], I64)
    if d.schema.since_version >= 13 and d.flag():
        at = at - np.array(x.shape[:named])
    return d.case(x, at, d.array([count, *x.shape[named:]], dtype), reduction=how if how != "none" else None, constant=(1,))


def tensor_scatter(d: Draw) -> Case:
    b, h, most, c = d.integer(1, 3), d.integer(1, 2), d.integer(2, 6), d.integer(1, 3)
    length = d.integer(1, most)
    mode = d.pick("linear", "circular")
    at = d.random.integers(0, most if mode == "circular" else most - length + 1, b) if d.flag() else None
    cache, new = d.array((b, h, most, c), d.type("T")), d.array((b, h, length, c), d.type("T"))
    return d.case(cache, new, *([] if at is None else [at]), axis=-2, mode=mode)


def one_hot(d: Draw) -> Case:
    kinds = "fiu"
    depth = d.integer(1, 5)
    rank = d.integer(1, 3)
    at = d.random.integers(-depth - 1, depth + 2, d.shape(rank, rank))
    index = d.type("T1", kinds)
    if np.dtype(index).kind == "u" or index == np.uint8:
        at = np.abs(at)
    size = np.array(depth if d.flag() else [depth]).astype(d.type("T2", kinds))
    return d.case(at.astype(index), size, d.array((2,), d.type("T3")), axis=d.integer(-rank - 1, rank), constant=(1, 2))


def hot(case: Case) -> list[Any]:
    at, depth, values = case.inputs
    size, at = int(np.asarray(depth).astype(np.float64).reshape(-1)[0]), at.astype(np.float64)
    axis = case.attributes["axis"] % (at.ndim + 1)
    at = np.where(at < 0, at + size, at)
    on = np.expand_dims(at, axis) == np.arange(size).reshape([-1 if a == axis else 1 for a in range(at.ndim + 1)])
    return [np.where(on, values[1], values[0]).astype(values.dtype)]


def compress(d: Draw) -> Case:
    x = any_array(d, 1, low=1)
    axis = (d.axis(x.ndim) if d.schema.since_version >= 11 else d.integer(0, x.ndim - 1)) if d.flag() else None
    size = x.size if axis is None else x.shape[axis]
    return d.case(x, d.array((d.integer(1, size),), np.bool_), axis=axis, constant=(1,))


def reverse_sequence(d: Draw) -> Case:
    x = any_array(d, 2, low=1)
    batch = d.pick(0, 1)
    lengths = d.random.integers(1, x.shape[1 - batch] + 1, x.shape[batch])
    return d.case(x, lengths, batch_axis=batch, time_axis=1 - batch, constant=(1,))


def blocks(d: Draw) -> Case:
    size, (b, c, h, w) = d.integer(1, 3), d.shape(4, 4, 0, 3)
    mode = d.pick("DCR", "CRD") if d.has("mode") else None
    if d.schema.name == "DepthToSpace":
        return d.case(d.array((b, c * size * size, h, w), d.type("T")), blocksize=size, mode=mode)
    return d.case(d.array((b, c, h * size, w * size), d.type("T")), blocksize=size, mode=mode)


def trilu(d: Draw) -> Case:
    x = any_array(d, 2)
    return d.case(x, *([np.array(d.integer(-6, 6))] if d.flag() else []), upper=d.pick(None, 0, 1), constant=(1,))


def eye_like(d: Draw) -> Case:
    dtype = d.type("T2", "fiub") if d.flag() else None
    x = d.array(d.shape(2, 2), d.type("T1", "fiub"), False)
    return d.case(x, k=d.pick(None, -1, 0, 2), dtype=None if dtype is None else helper.np_dtype_to_tensor_dtype(dtype))


def eye(case: Case) -> list[Any]:
    x, dtype = case.inputs[0], case.attributes.get("dtype")
    return [np.eye(*x.shape, k=case.attributes.get("k", 0)).astype(x.dtype if dtype is None else helper.tensor_dtype_to_np_dtype(dtype))]


def shape_of(d: Draw) -> Case:
    x = any_array(d)
    more = {k: d.integer(-5, 5) for k in ("start", "end") if d.has(k) and d.flag()}
    return d.case(x, **more)


def size_of(d: Draw) -> Case:
    return d.case(any_array(d))


def identity(d: Draw) -> Case:
    return d.case(d.array(d.shape(), d.type(d.schema.inputs[0].type_str)))


def constant(d: Draw) -> Case:
    how = d.pick("value", *(k for k in ("value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings") if d.has(k)))
    values = {"value_float": 1.5, "value_floats": [1.5, -2.0], "value_int": -3, "value_ints": [2**40, -1], "value_string": "β", "value_strings": ["a", ""]}
    if how != "value":
        return d.case(**{how: values[how]})
    return d.case(value=numpy_helper.from_array(d.array(d.shape(), d.type("T")), "v"))


def held(case: Case) -> list[Any]:
    (name, value), = case.attributes.items()
    if name == "value":
        value = numpy_helper.to_array(value)
    return [np.asarray(value, {"value_float": np.float32, "value_floats": np.float32, "value_string": object, "value_strings": object}.get(name))]


def constant_of_shape(d: Draw) -> Case:
    value = numpy_helper.from_array(d.array((1,), d.type("T2")), "v") if d.flag() else None
    return d.case(np.array(d.shape(), I64), value=value, constant=(0,))


def filled(case: Case) -> list[Any]:
    value = case.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return [np.full(tuple(case.inputs[0]), fill[0], fill.dtype)]


def ranges(d: Draw) -> Case:
    dtype = d.type("T")
    delta = d.pick(1, 2, 3) * (1 if np.dtype(dtype).kind == "u" else d.pick(1, -1)) / (2 if np.dtype(dtype).kind not in "iu" else 1)
    start, limit = d.integer(0, 9), d.integer(0, 9)
    return d.case(*(np.array(v).astype(dtype) for v in (start, limit, delta)), constant=(0, 1, 2))


def axes_of(case: Case) -> list[int] | None:
    """Of the attribute or of the second input."""
    given = case.inputs[1] if len(case.inputs) > 1 else case.attributes.get("axes")
    return None if given is None else [int(a) for a in given]


def squeezed(case: Case) -> list[Any]:
    axes, x = axes_of(case), np.asarray(case.inputs[0])
    return [np.squeeze(x) if axes is None else x.reshape([s for k, s in enumerate(x.shape) if k not in {a % x.ndim for a in axes}])]


def flat(case: Case) -> list[Any]:
    x, axis = np.asarray(case.inputs[0]), case.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))]


def parts(case: Case) -> list[Any]:
    x, a = np.asarray(case.inputs[0]), case.attributes
    axis, count = a["axis"], len(case.model.graph.output)
    sizes = case.inputs[1] if len(case.inputs) > 1 else a.get("split")
    if sizes is None:
        each = -(-x.shape[axis] // count)
        sizes = [each] * (count - 1)
    return np.split(x, np.cumsum(sizes)[:count - 1], axis)


def taken(case: Case) -> list[Any]:
    x, at = case.inputs
    out, axis = np.empty(at.shape, x.dtype), case.attributes["axis"]
    for place in np.ndindex(*at.shape):
        source = list(place)
        source[axis] = int(at[place])
        out[place] = x[tuple(source)]
    return [out]


JOIN = {"none": lambda a, b: b, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def put(case: Case) -> list[Any]:
    x, at, updates = case.inputs
    small = x.dtype.itemsize <= 2 and x.dtype.kind not in "iubO" and case.attributes.get("reduction", "none") != "none"
    out, axis, join = x.astype(np.float32) if small else x.copy(), case.attributes["axis"], JOIN[case.attributes.get("reduction", "none")]
    with np.errstate(all="ignore"):
        for place in np.ndindex(*at.shape):
            target = list(place)
            target[axis] = int(at[place])
            out[tuple(target)] = join(out[tuple(target)], updates[place])
    return [out]


ROWS: dict[str, Row] = {
    "Reshape": Row(reshape, since=5), "Transpose": Row(transpose), "Squeeze": Row(squeeze, squeezed), "Unsqueeze": Row(unsqueeze), "Flatten": Row(flatten, flat),
    "Split": Row(split, parts), "Concat": Row(concat, since=4), "Slice": Row(slices, sliced), "Expand": Row(expand), "Tile": Row(tile, since=6),
    "Pad": Row(pad, padded), "CenterCropPad": Row(center_crop_pad), "Gather": Row(gather), "GatherElements": Row(gather_elements, taken),
    "ScatterElements": Row(scatter_elements, put, slack=2, floor=1), "Scatter": Row(scatter_elements, put), "GatherND": Row(gather_nd), "ScatterND": Row(scatter_nd),
    "TensorScatter": Row(tensor_scatter), "OneHot": Row(one_hot, hot), "Compress": Row(compress), "ReverseSequence": Row(reverse_sequence),
    "DepthToSpace": Row(blocks), "SpaceToDepth": Row(blocks), "Trilu": Row(trilu), "EyeLike": Row(eye_like, eye), "Shape": Row(shape_of),
    "Size": Row(size_of), "Identity": Row(identity), "Constant": Row(constant, held), "ConstantOfShape": Row(constant_of_shape, filled),
    "Range": Row(ranges),
}
