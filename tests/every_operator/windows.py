"""Convolutions and pools: strides, dilations, pads of every kind, groups; sums and folds of patches written out as loops over the window."""
from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from every_operator.draw import Case, Draw
from every_operator.folding import wide
from every_operator.row import Row


def window(d: Draw, kernel: list[int], sizes: list[int], ceil: bool = False) -> dict[str, Any]:
    """Attributes of a window that fits sizes, which are at least (kernel - 1) * 2 + 1."""
    found: dict[str, Any] = {}
    if d.flag():
        found["strides"] = [d.integer(1, 3) for _ in kernel]
    if d.has("dilations") and d.flag():
        found["dilations"] = [d.integer(1, 2) for _ in kernel]
    how = d.pick("none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")
    if how == "pads":
        found["pads"] = [d.integer(0, k - 1) for k in kernel * 2]
    elif how != "none" and "dilations" not in found:
        found["auto_pad"] = how
    if ceil and d.has("ceil_mode") and "auto_pad" not in found:
        found["ceil_mode"] = d.pick(0, 1)
    return found


def places(case: Case, sizes: list[int], kernel: list[int]) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Output sizes, strides, dilations, pads before and after."""
    a, n = case.attributes, len(sizes)
    strides, dilations, pads = a.get("strides", [1] * n), a.get("dilations", [1] * n), a.get("pads", [0] * 2 * n)
    spans = [(k - 1) * e + 1 for k, e in zip(kernel, dilations, strict=True)]
    if a.get("auto_pad", "NOTSET").startswith("SAME"):
        out = [-(-s // t) for s, t in zip(sizes, strides, strict=True)]
        total = [max(0, (o - 1) * t + k - s) for o, t, k, s in zip(out, strides, spans, sizes, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (small, large) if a["auto_pad"] == "SAME_UPPER" else (large, small)
        return out, strides, dilations, before, after
    before, after = list(pads[:n]), list(pads[n:])
    out = []
    for s, t, k, p, q in zip(sizes, strides, spans, before, after, strict=True):
        room = s + p + q - k
        count = (-(-room // t) if a.get("ceil_mode") else room // t) + 1
        out.append(count - 1 if a.get("ceil_mode") and (count - 1) * t >= s + p else count)
    return out, strides, dilations, before, after


def patches(case: Case, x: np.ndarray, kernel: list[int], fill: Any) -> tuple[np.ndarray, list[int]]:
    """[N, C, kernel positions, out...] with `fill` outside."""
    n = len(kernel)
    out, strides, dilations, before, after = places(case, list(x.shape[2:]), kernel)
    more = [max(0, (o - 1) * t + (k - 1) * e + 1 - s - p - q)
            for o, t, k, e, s, p, q in zip(out, strides, kernel, dilations, x.shape[2:], before, after, strict=True)]
    big = np.pad(x, [(0, 0), (0, 0), *((p, q + m) for p, q, m in zip(before, after, more, strict=True))], constant_values=fill)
    found = [big[(slice(None), slice(None), *(slice(i * e, i * e + (o - 1) * t + 1, t) for i, e, o, t in zip(at, dilations, out, strides, strict=True)))]
             for at in itertools.product(*map(range, kernel))]
    return np.stack(found, 2).reshape(*x.shape[:2], len(found), *out), [n]


def convolved(case: Case, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    groups, kernel = case.attributes.get("group", 1), list(w.shape[2:])
    cols, _ = patches(case, x, kernel, 0)
    parts = []
    for g in range(groups):
        mine = cols[:, g * w.shape[1]:(g + 1) * w.shape[1]]
        filters = w[g * (w.shape[0] // groups):(g + 1) * (w.shape[0] // groups)].reshape(w.shape[0] // groups, w.shape[1], -1)
        parts.append(np.einsum("nck...,mck->nm...", mine, filters))
    return np.concatenate(parts, 1)


def conv_inputs(d: Draw, x_type: Any, w_type: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    n, group = d.integer(1, 3), d.pick(1, 1, 2, 3)
    kernel = [d.integer(1, 3) for _ in range(n)]
    sizes = [(k - 1) * 2 + d.integer(1, 5) for k in kernel]
    c, m = d.pick(1, 2, 3, 8) if group == 1 else d.integer(1, 2), d.pick(1, 2, 5, 17) if group == 1 else d.integer(1, 2)
    x = d.array((d.integer(0 if d.integer(0, 6) == 6 else 1, 3), c * group, *sizes), x_type, False)
    w = d.array((m * group, c, *kernel), w_type, False)
    more = window(d, kernel, sizes)
    return x, w, {**more, "group": group if group > 1 or d.flag() else None, "kernel_shape": kernel if d.flag() else None}


def conv(d: Draw) -> Case:
    x, w, attributes = conv_inputs(d, d.type("T"), d.type("T"))
    return d.case(x, w, *([d.array(w.shape[:1], x.dtype, False)] if d.flag() else []), constant=(1, 2), **attributes)


def conv_of(case: Case) -> list[Any]:
    x, w, *bias = map(wide, case.inputs)
    y = convolved(case, x, w)
    return [y + bias[0].reshape(-1, *[1] * (x.ndim - 2)) if bias else y]


def conv_integer(d: Draw) -> Case:
    x, w, attributes = conv_inputs(d, d.type("T1"), d.type("T2"))
    zeros = [d.array((), x.dtype, False)] if d.flag() else []
    zeros += [d.array(d.pick((), w.shape[:1]), w.dtype, False)] if zeros and d.flag() else []
    return d.case(x, w, *zeros, constant=(1, 2, 3), **attributes)


def centred(x: np.ndarray, zero: Any, axis: int = 0) -> np.ndarray:
    zero = np.asarray(zero).astype(np.int32)
    return x.astype(np.int32) - (zero.reshape([-1 if a == axis else 1 for a in range(x.ndim)]) if zero.ndim and zero.size > 1 else zero.reshape(()))


def conv_integer_of(case: Case) -> list[Any]:
    x, w, xz, wz = [*case.inputs, None, None][:4]
    return [convolved(case, centred(x, 0 if xz is None else xz), centred(w, 0 if wz is None else wz)).astype(np.int32)]


def qlinear_conv(d: Draw) -> Case:
    x, w, attributes = conv_inputs(d, d.type("T1"), d.type("T2"))
    many = d.flag()
    scales = [np.array(0.5, np.float32), d.array(w.shape[:1] if many else (), np.float32, False, 0.125, 1), np.array(d.pick(1.0, 2.5), np.float32)]
    zeros = [d.array((), x.dtype, False), d.array(w.shape[:1] if many else (), w.dtype, False), d.array((), d.type("T3"), False)]
    bias = [d.array(w.shape[:1], np.int32, False)] if d.flag() else []
    return d.case(x, scales[0], zeros[0], w, scales[1], zeros[1], scales[2], zeros[2], *bias, constant=(1, 2, 3, 4, 5, 6, 7, 8), **attributes)


def qlinear_conv_of(case: Case) -> list[Any]:
    x, xs, xz, w, ws, wz, ys, yz, *bias = case.inputs
    y = convolved(case, centred(x, xz), centred(w, wz)).astype(np.int32)
    side = (-1, *[1] * (x.ndim - 2))
    y = y + bias[0].reshape(side) if bias else y
    limits = np.iinfo(yz.dtype)
    return [np.clip(np.rint(y * (np.float64(xs) * np.asarray(ws, np.float64).reshape(side if ws.ndim else ()) / np.float64(ys))) + yz.astype(np.float64),
                    limits.min, limits.max).astype(yz.dtype)]


def conv_transpose(d: Draw) -> Case:
    n, group = d.integer(1, 3), d.pick(1, 1, 2)
    kernel = [d.integer(1, 3) for _ in range(n)]
    c, m = d.integer(1, 3), d.integer(1, 3)
    x = d.array((d.integer(1, 2), c * group, *d.shape(n, n, 1, 4)), d.type("T"), False)
    w = d.array((c * group, m, *kernel), x.dtype, False)
    strides = [d.integer(1, 3) for _ in kernel]
    more: dict[str, Any] = {"strides": strides, "dilations": [d.integer(1, 2) for _ in kernel] if d.flag() else None, "group": group}
    spans = [(k - 1) * e + 1 for k, e in zip(kernel, more["dilations"] or [1] * n, strict=True)]
    how = d.pick("none", "pads", "output_padding")
    if how != "none":
        room = [(s - 1) * t + k - 1 for s, t, k in zip(x.shape[2:], strides, spans, strict=True)]
        begin = [d.integer(0, min(r, 2)) for r in room]
        more["pads"] = begin + [d.integer(0, min(r - b, 2)) for r, b in zip(room, begin, strict=True)]
    if how == "output_padding":
        more["output_padding"] = [d.integer(0, max(t, e) - 1) for t, e in zip(strides, more["dilations"] or [1] * n, strict=True)]
    return d.case(x, w, *([d.array((m * group,), x.dtype, False)] if d.flag() else []), constant=(1, 2), **more)


def conv_transpose_of(case: Case) -> list[Any]:
    x, w, *bias = map(wide, case.inputs)
    a, n = case.attributes, x.ndim - 2
    group, strides, dilations, pads = a["group"], a["strides"], a.get("dilations", [1] * n), a.get("pads", [0] * 2 * n)
    extra, c, m = a.get("output_padding", [0] * n), w.shape[0] // group, w.shape[1]
    full = [(s - 1) * t + (k - 1) * e + 1 + o for s, t, k, e, o in zip(x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)]
    y = np.zeros((x.shape[0], m * group, *full))
    for at in itertools.product(*map(range, w.shape[2:])):
        where = tuple(slice(i * e, i * e + (s - 1) * t + 1, t) for i, e, s, t in zip(at, dilations, x.shape[2:], strides, strict=True))
        for g in range(group):
            y[(slice(None), slice(g * m, (g + 1) * m), *where)] += np.einsum("nc...,cm->nm...", x[:, g * c:(g + 1) * c], w[(slice(g * c, (g + 1) * c), slice(None), *at)])
    y = y[(slice(None), slice(None), *(slice(p, s - q) for p, q, s in zip(pads[:n], pads[n:], full, strict=True)))]
    return [y + bias[0].reshape(-1, *[1] * n) if bias else y]


def pool(d: Draw) -> Case:
    n = d.integer(1, 3)
    kernel = [d.integer(1, 3) for _ in range(n)]
    sizes = [(k - 1) * 2 + d.integer(1, 5) for k in kernel]
    x = d.array((d.integer(1, 2), d.pick(1, 3, 8), *sizes), d.type("T"), False)
    more = window(d, kernel, sizes, ceil=True)
    if d.has("count_include_pad") and d.flag():
        more["count_include_pad"] = 1
    if d.schema.name == "LpPool":
        more["p"] = d.pick(1, 2, 3)
    outputs = d.integer(1, 2) if d.schema.name == "MaxPool" and d.schema.since_version >= 8 else 1
    if d.has("storage_order") and outputs == 2 and n == 2:
        more["storage_order"] = d.pick(0, 1)
    return d.case(x, kernel_shape=kernel, outputs=outputs, **more)


def pooled(case: Case) -> list[Any]:
    x, a = wide(case.inputs[0]), case.attributes
    name, kernel = case.model.graph.node[-1].op_type, a["kernel_shape"]
    if name == "MaxPool":
        return max_pooled(case, x, kernel)
    cols, _ = patches(case, x, kernel, 0)
    if name == "LpPool":
        return [(np.abs(cols)**a["p"]).sum(2)**(1 / a["p"])]
    _, _, _, before, after = places(case, list(x.shape[2:]), kernel)
    counted = np.ones((1, 1, *x.shape[2:]))
    if a.get("count_include_pad"):
        whole = np.ones((1, 1, *(p + s + q for p, s, q in zip(before, x.shape[2:], after, strict=True))))
        flat = Case(case.model, {}, attributes={k: v for k, v in a.items() if k not in ("pads", "auto_pad")})
        out = cols.shape[3:]
        ones, _ = patches(flat, whole, kernel, 0)
        return [cols.sum(2) / ones.sum(2)[(slice(None), slice(None), *(slice(0, o) for o in out))]]
    ones, _ = patches(case, counted, kernel, 0)
    return [cols.sum(2) / ones.sum(2)]


def max_pooled(case: Case, x: np.ndarray, kernel: list[int]) -> list[Any]:
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    cols, _ = patches(case, x, kernel, low)
    order = "F" if case.attributes.get("storage_order") else "C"
    flat = np.arange(int(np.prod(x.shape[2:]))).reshape(x.shape[2:], order=order)
    at = np.broadcast_to(flat, x.shape) + (np.arange(x.shape[0] * x.shape[1]) * flat.size).reshape(*x.shape[:2], *[1] * flat.ndim)
    numbers, _ = patches(case, at, kernel, -1)
    cols = np.where(numbers < 0, low, cols)
    if x.dtype.kind != "f":
        best = np.where(numbers < 0, -1, cols.astype(np.int64) + 1000).argmax(2)
    else:
        best = np.where(numbers < 0, -np.inf, cols).argmax(2)
    found = [np.take_along_axis(v, best[:, :, None], 2)[:, :, 0] for v in (cols, numbers)]
    return found[:len(case.model.graph.output)]


def whole_pool(d: Draw) -> Case:
    return d.case(d.array((*d.shape(2, 2, 1), *d.shape(1, 3, 1)), d.type("T"), False), **({"p": d.pick(1, 2, 3)} if d.has("p") else {}))


def whole_pooled(case: Case) -> list[Any]:
    x, name, p = wide(case.inputs[0]), case.model.graph.node[-1].op_type, case.attributes.get("p", 2)
    over = tuple(range(2, x.ndim))
    if name == "GlobalLpPool":
        return [(np.abs(x)**p).sum(over, keepdims=True)**(1 / p)]
    return [(x.max if name == "GlobalMaxPool" else x.mean)(over, keepdims=True)]


def unpool(d: Draw) -> Case:
    n, c, h, w = d.integer(1, 2), d.integer(1, 2), d.integer(1, 3), d.integer(1, 3)
    size = h * 2 * w * 2
    at = np.stack([d.random.permutation(size)[:h * w].reshape(h, w) for _ in range(n * c)]).reshape(n, c, h, w)
    at = at + (np.arange(n * c) * size).reshape(n, c, 1, 1)
    return d.case(d.array((n, c, h, w), d.type("T1"), False), at, kernel_shape=[2, 2], strides=[2, 2])


def unpooled(case: Case) -> list[Any]:
    x, at = case.inputs
    n, c, h, w = x.shape
    y = np.zeros(n * c * h * 2 * w * 2, x.dtype)
    y[at.ravel()] = x.ravel()
    return [y.reshape(n, c, h * 2, w * 2)]


def col2im(d: Draw) -> Case:
    n = d.integer(1, 2)
    block = [d.integer(1, 3) for _ in range(n)]
    image = [b + d.integer(0, 3) for b in block]
    strides, pads = [d.integer(1, 2) for _ in block], [d.integer(0, 1) for _ in block * 2]
    count = int(np.prod([(s + pads[k] + pads[k + n] - b) // t + 1 for k, (s, b, t) in enumerate(zip(image, block, strides, strict=True))]))
    x = d.array((d.integer(1, 2), d.integer(1, 2) * int(np.prod(block)), count), d.type("T", "fiu"), False)
    return d.case(x, np.array(image), np.array(block), strides=strides, pads=pads, constant=(1, 2))


def causal(d: Draw) -> Case:
    b, c, size, k = d.integer(1, 2), d.integer(1, 3), d.integer(1, 5), d.integer(1, 4)
    dtype = d.type("T")
    bias = d.array((c,), dtype, False) if d.flag() else None
    past = d.array((b, c, k - 1), dtype, False) if d.flag() else None
    inputs = [d.array((b, c, size), dtype, False), d.array((c, 1, k), dtype, False), bias, past]
    while inputs[-1] is None:
        inputs.pop()
    return d.case(*inputs, activation=d.pick(None, "none", "silu"), outputs=2, constant=(1, 2))


def deform(d: Draw) -> Case:
    b, group, offsets, k = d.integer(1, 2), d.integer(1, 2), d.integer(1, 2), d.integer(1, 2)
    c = 2 * group * offsets // (2 if group == offsets == 2 else 1)
    x = d.array((b, c, d.integer(3, 4), d.integer(3, 4)), d.type("T"), False)
    h, w = x.shape[2] - k + 1, x.shape[3] - k + 1
    extra = [d.array((group,), x.dtype, False) if d.flag() else None, d.array((b, offsets * k * k, h, w), x.dtype, False) if d.flag() else None]
    while extra and extra[-1] is None:
        extra.pop()
    return d.case(x, d.array((group, c // group, k, k), x.dtype, False), d.array((b, offsets * k * k * 2, h, w), x.dtype, False, -1.5, 1.5), *extra,
                  kernel_shape=[k, k], pads=[0] * 4, group=group, offset_group=offsets)


ROWS: dict[str, Row] = {
    "Conv": Row(conv, conv_of, sums=1), "ConvInteger": Row(conv_integer, conv_integer_of), "QLinearConv": Row(qlinear_conv, qlinear_conv_of),
    "ConvTranspose": Row(conv_transpose, conv_transpose_of, sums=1), "MaxPool": Row(pool, pooled), "AveragePool": Row(pool, pooled, sums=1),
    "LpPool": Row(pool, pooled, slack=2, since=2), "GlobalAveragePool": Row(whole_pool, whole_pooled, sums=1), "GlobalMaxPool": Row(whole_pool, whole_pooled),
    "GlobalLpPool": Row(whole_pool, whole_pooled, slack=2, since=2), "MaxUnpool": Row(unpool, unpooled), "Col2Im": Row(col2im, sums=1),
    "CausalConvWithState": Row(causal, sums=1, slack=2), "DeformConv": Row(deform, sums=2),
}
