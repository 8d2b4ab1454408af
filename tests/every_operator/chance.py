"""Random operators: sizes, types, bounds, the same numbers for the same seed. What they are distributed like is in test_ops_random.py."""
from __future__ import annotations

from typing import Any

import numpy as np
from every_operator.draw import Case, Draw, kind
from every_operator.row import Row
from onnx import helper


def numbered(d: Draw, dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def bounds(d: Draw) -> dict[str, Any]:
    return {"low": 1.0, "high": 2.0} if d.has("low") else {"mean": 1.0, "scale": 2.0}


def fresh(d: Draw) -> Case:
    return d.case(shape=list(d.shape(1, 3, 1)), dtype=numbered(d, d.type("T")), seed=1.0, **bounds(d))


def like(d: Draw) -> Case:
    dtype = numbered(d, d.type("T2")) if d.flag() or kind(d.type("T1")) != "f" else None
    return d.case(d.array(d.shape(), d.type("T1"), False), dtype=dtype, seed=1.0, **bounds(d))


def bernoulli(d: Draw) -> Case:
    return d.case(d.array(d.shape(), d.type("T1"), False, 0, 1), dtype=numbered(d, d.type("T2", "fiub")) if d.flag() else None, seed=1.0)


def multinomial(d: Draw) -> Case:
    return d.case(d.array(d.shape(2, 2, 1), d.type("T1"), False, -2, 2), sample_size=d.integer(1, 4), dtype=numbered(d, d.type("T2")), seed=1.0)


def fits(case: Case, got: list[Any]) -> None:
    """The shape asked for, finite values, and uniform numbers within their bounds."""
    x, a = (case.inputs[0] if case.inputs else None), case.attributes
    shape = tuple(a["shape"]) if "shape" in a else (x.shape[0], a["sample_size"]) if "sample_size" in a else x.shape
    values = got[0].astype(np.float64)
    assert got[0].shape == shape and np.isfinite(values).all()
    if "low" in a:
        assert ((values >= a["low"]) & (values <= a["high"])).all()
    if "sample_size" in a:
        assert ((values >= 0) & (values < x.shape[1])).all()
    if case.model.graph.node[-1].op_type == "Bernoulli":
        probability = x.astype(np.float64)
        assert (values[probability == 0] == 0).all() and (values[probability == 1] == 1).all() and np.isin(values, (0, 1)).all()


ROWS: dict[str, Row] = {
    "RandomNormal": Row(fresh, holds=fits), "RandomUniform": Row(fresh, holds=fits), "RandomNormalLike": Row(like, holds=fits), "RandomUniformLike": Row(like, holds=fits),
    "Bernoulli": Row(bernoulli, holds=fits), "Multinomial": Row(multinomial, holds=fits),
}
