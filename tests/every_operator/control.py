"""Sequences, optionals and control flow: small models of several nodes, the operator that is tried last."""
from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from every_operator.draw import Case, Draw, info
from every_operator.oracle import reference
from every_operator.row import Row
from onnx import TensorProto, helper


def chain(d: Draw, nodes: list[onnx.NodeProto], feeds: dict[str, Any], outputs: list[str]) -> Case:
    laid = {k: d.laid(np.asarray(v)) for k, v in feeds.items()}
    infos = [info(k, v.dtype, [None] * np.ndim(v)) for k, v in feeds.items()]
    graph = helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name=o) for o in outputs])
    return Case(helper.make_model(graph, opset_imports=d.opsets(), ir_version=13), laid, list(feeds.values()))


def parts(d: Draw, least: int = 1, alike: bool = False, rank: int = 1) -> dict[str, np.ndarray]:
    """The elements of a sequence: tensors of one type, and of one rank if `alike`."""
    dtype = d.types["T"] if "T" in d.types else d.type("T", "fiubs")
    rest = d.shape(rank, rank, 1, 3)
    shape = lambda: (d.integer(0, 3), *rest[1:]) if alike else d.shape(0, 2)
    return {f"x{k}": d.array(shape(), dtype) for k in range(d.integer(least, 3))}


def make(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, "tried", **attributes)


def built(values: dict[str, Any]) -> onnx.NodeProto:
    return helper.make_node("SequenceConstruct", list(values), ["s"])


def no_type(d: Draw) -> Any:
    """Sequence constraints have no tensor types of their own."""
    d.types["T"] = np.dtype(d.pick(np.float32, np.int64, np.float16, np.bool_, object))
    return d.types["T"]


def sequence_construct(d: Draw) -> Case:
    values = parts(d)
    return chain(d, [make("SequenceConstruct", list(values), ["y"])], values, ["y"])


def sequence_at(d: Draw) -> Case:
    values = parts(d)
    at = np.array(d.integer(-len(values), len(values) - 1), d.type("I"))
    return chain(d, [built(values), make("SequenceAt", ["s", "i"], ["y"])], {**values, "i": at}, ["y"])


def sequence_length(d: Draw) -> Case:
    no_type(d)
    values = parts(d)
    return chain(d, [built(values), make("SequenceLength", ["s"], ["y"])], values, ["y"])


def sequence_empty(d: Draw) -> Case:
    node = make("SequenceEmpty", [], ["y"], **({"dtype": d.pick(1, 7, 10)} if d.flag() else {}))
    return chain(d, [node], {}, ["y"])


def sequence_erase(d: Draw) -> Case:
    no_type(d)
    values = parts(d, 2)
    at = {"i": np.array(d.integer(-len(values), len(values) - 1), d.type("I"))} if d.flag() else {}
    return chain(d, [built(values), make("SequenceErase", ["s", *at], ["y"])], {**values, **at}, ["y"])


def sequence_insert(d: Draw) -> Case:
    values = parts(d, 2)
    *held, new = values
    at = {"i": np.array(d.integer(-len(held), len(held)), d.type("I"))} if d.flag() else {}
    return chain(d, [built({k: 0 for k in held}), make("SequenceInsert", ["s", new, *at], ["y"])], {**values, **at}, ["y"])


def inserted(case: Case) -> list[Any]:
    """At the end where no position is given; a position of the length is the end too."""
    *held, new = (case.inputs[k] for k in range(len(case.inputs) - ("i" in case.feeds)))
    at = int(case.inputs[-1]) if "i" in case.feeds else len(held)
    held.insert(at + len(held) if at < 0 else at, new)
    return [held]


def concat_from_sequence(d: Draw) -> Case:
    new = d.pick(0, 1)
    rank = d.integer(1, 2)
    values = parts(d, 1, True, rank)
    if new:
        first = next(iter(values.values()))
        values = {k: d.array(first.shape, first.dtype) for k in values}
    axis = d.integer(-rank - 1, rank) if new else d.pick(0, -rank)
    return chain(d, [built(values), make("ConcatFromSequence", ["s"], ["y"], axis=axis, **({"new_axis": 1} if new else {}))], values, ["y"])


def split_to_sequence(d: Draw) -> Case:
    x = d.array(d.shape(1, 3, 1), d.type("T"))
    axis = d.axis(x.ndim)
    size = x.shape[axis]
    if d.flag():
        return chain(d, [make("SplitToSequence", ["x"], ["y"], axis=axis, keepdims=d.pick(0, 1))], {"x": x}, ["y"])
    cut = d.integer(0, size)
    sizes = np.array(d.integer(1, size) if d.flag() else [cut, size - cut], d.type("I"))
    return chain(d, [make("SplitToSequence", ["x", "p"], ["y"], axis=axis)], {"x": x, "p": sizes}, ["y"])


def split_up(case: Case) -> list[Any]:
    x, *sizes = case.inputs
    a = {k.name: helper.get_attribute_value(k) for k in case.model.graph.node[-1].attribute}
    axis = a["axis"]
    if not sizes:
        pieces = np.split(x, x.shape[axis], axis)
        return [pieces if a["keepdims"] else [np.squeeze(p, axis) for p in pieces]]
    at = range(int(sizes[0]), x.shape[axis], int(sizes[0])) if not sizes[0].ndim else np.cumsum(sizes[0])[:-1]
    return [np.split(x, at, axis)]


def branch(name: str, op: str, inputs: list[str], dtype: int = TensorProto.FLOAT) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node(op, inputs, [f"{name}_y"], **({"axis": 0} if op == "Flatten" else {}))], name, [], [helper.make_tensor_value_info(f"{name}_y", dtype, None)])


def sequence_map(d: Draw) -> Case:
    d.types["T"] = np.dtype(np.float32)
    values = parts(d)
    body = helper.make_graph([helper.make_node("Add", ["e", "a"], ["r"])], "b", [info("e", np.float32, None), info("a", np.float32, None)], [info("r", np.float32, None)])
    add = d.array((), np.float32)
    return chain(d, [built(values), make("SequenceMap", ["s", "add"], ["y"], body=body)], {**values, "add": add}, ["y"])


def optional(d: Draw) -> Case:
    dtype = np.dtype(d.pick(np.float32, np.int64, np.bool_, np.float16))
    x, name = d.array(d.shape(), dtype), d.schema.name
    empty = name != "OptionalGetElement" and d.flag()
    kind = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), None)
    first = helper.make_node("Optional", [], ["o"], type=kind) if empty else helper.make_node("Optional", ["x"], ["o"])
    nodes = [first, make("OptionalHasElement" if name == "Optional" else name, ["o"], ["y"])]
    return chain(d, nodes, {"x": x}, ["y"])


def has_or_get(case: Case) -> list[Any]:
    first, last = case.model.graph.node
    return [np.asarray(case.inputs[0])] if last.op_type == "OptionalGetElement" else [np.array(len(first.input) > 0)]


def if_(d: Draw) -> Case:
    """Branches of different shapes that use what is around them."""
    x, c = d.array(d.shape(), np.float32), np.array(d.flag())
    other = d.pick("Flatten", "Shape", "Neg") if d.schema.since_version > 1 else "Neg"
    graphs = [branch("a", "Relu", ["x"]), branch("b", other if other != "Shape" else "Neg", ["x"])]
    return chain(d, [make("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1])], {"x": x, "c": c if d.flag() else c.reshape(1)}, ["y"])


def loop(d: Draw) -> Case:
    """Trips of 0 on; a carried value, one that grows, a scan output."""
    x = d.array(d.shape(1, 2), np.float32, False)
    grows = d.flag()
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["again"]), helper.make_node("Concat", ["v", "x"], ["w"], axis=0) if grows else helper.make_node("Add", ["v", "x"], ["w"]),
         helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0), helper.make_node("Cast", ["i"], ["number"], to=TensorProto.FLOAT),
         helper.make_node("Mul", ["total", "number"], ["scanned"])],
        "body", [info("i", np.int64, []), info("going", np.bool_, []), info("v", np.float32, None)],
        [info("again", np.bool_, []), info("w", np.float32, None), info("scanned", np.float32, [])])
    feeds = {"x": x, "m": np.array(d.integer(0, 4)), "c": np.array(d.integer(0, 4) > 0)}
    return chain(d, [make("Loop", ["m", "c", "x"], ["y", "z"], body=body)], feeds, ["y", "z"])


def looped(case: Case) -> list[Any]:
    x, trips, going = case.inputs
    body = next(a.g for a in case.model.graph.node[-1].attribute if a.name == "body")
    v, scanned = x, []
    for i in range(int(trips) if going else 0):
        v = np.concatenate([v, x]) if body.node[1].op_type == "Concat" else v + x
        scanned.append(x.sum() * np.float32(i))
    return [v, np.array(scanned, np.float32)]


def scan(d: Draw) -> Case:
    """A running sum along an axis, in either direction, of what comes in and of what goes out."""
    rank = d.integer(1, 3)
    x = d.array(d.shape(rank, rank, 0 if rank == 1 else 1), np.float32, False)
    axis = d.integer(-rank, rank - 1) if d.schema.since_version >= 11 else d.integer(0, rank - 1)
    out = d.integer(-rank, rank - 1) if d.schema.since_version >= 11 else d.integer(0, rank - 1)
    first = np.zeros([s for k, s in enumerate(x.shape) if k != axis % rank], np.float32)
    body = helper.make_graph([helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Identity", ["t"], ["u"])], "body",
                             [info("s", np.float32, None), info("e", np.float32, None)], [info("t", np.float32, None), info("u", np.float32, None)])
    more = {"scan_input_axes": [axis], "scan_output_axes": [out], "scan_input_directions": [d.pick(0, 1)], "scan_output_directions": [d.pick(0, 1)]}
    return chain(d, [make("Scan", ["first", "x"], ["y", "z"], body=body, num_scan_inputs=1, **more)], {"first": first, "x": x}, ["y", "z"])


def scanned(case: Case) -> list[Any]:
    a = {k.name: helper.get_attribute_value(k) for k in case.model.graph.node[-1].attribute}
    x = np.moveaxis(case.inputs[1], a["scan_input_axes"][0], 0)
    x = x[::-1] if a["scan_input_directions"][0] else x
    sums = np.cumsum(x, 0, dtype=np.float32)
    last = sums[-1] if len(x) else case.inputs[0]
    sums = sums[::-1] if a["scan_output_directions"][0] else sums
    return [last, np.moveaxis(sums, 0, a["scan_output_axes"][0])]


def text(d: Draw) -> np.ndarray:
    return d.array(d.shape(), object)


def string_concat(d: Draw) -> Case:
    shape = d.shape()
    return d.case(d.array(d.broadcast(shape), object), d.array(d.broadcast(shape), object))


def string_split(d: Draw) -> Case:
    return d.case(d.array(d.shape(0, 2, 1), object), delimiter=d.pick(None, "", " ", "e", "ta"), maxsplit=d.pick(None, 1, 2), outputs=2)


def string_normalizer(d: Draw) -> Case:
    n = d.integer(1, 5)
    x = d.array((n,) if d.flag() else (1, n), object)
    return d.case(x, case_change_action=d.pick(None, "LOWER", "UPPER", "NONE"), is_case_sensitive=d.pick(None, 0, 1), stopwords=d.pick(None, ["a"], ["A b", "beta"]))


def regex(d: Draw) -> Case:
    return d.case(text(d), pattern=d.pick("a", "[a-z]+", ".*b.*", "", r"-?\d+\.\d"))


def tf_idf(d: Draw) -> Case:
    dtype = d.pick(np.int64, np.int32, object)
    x = d.random.integers(0, 4, d.shape(1, 2, 1, 6)).astype(dtype) if dtype is not object else d.array(d.shape(1, 2, 1, 6), object)
    pool = {"pool_strings": ["a", "b", "beta", "a", "b", "b", "beta"]} if dtype is object else {"pool_int64s": [0, 1, 2, 0, 1, 1, 2]}
    low = d.integer(1, 2)
    return d.case(x, mode=d.pick("TF", "IDF", "TFIDF"), min_gram_length=low, max_gram_length=d.integer(low, 2), max_skip_count=d.integer(0, 2), ngram_counts=[0, 3],
                  ngram_indexes=[0, 2, 1, 4, 3], weights=[0.5, 1.0, 2.0, 1.5, 3.0], **pool)


exactly = partial(reference, widen=False)
ROWS: dict[str, Row] = {
    "SequenceConstruct": Row(sequence_construct, exactly), "SequenceAt": Row(sequence_at, exactly), "SequenceLength": Row(sequence_length, exactly), "SequenceEmpty": Row(sequence_empty, exactly),
    "SequenceErase": Row(sequence_erase, exactly), "SequenceInsert": Row(sequence_insert, inserted), "ConcatFromSequence": Row(concat_from_sequence, exactly),
    "SplitToSequence": Row(split_to_sequence, split_up), "SequenceMap": Row(sequence_map, exactly), "Optional": Row(optional, has_or_get),
    "OptionalHasElement": Row(optional, has_or_get), "OptionalGetElement": Row(optional, has_or_get), "If": Row(if_), "Loop": Row(loop, looped, sums=1, since=13),
    "Scan": Row(scan, scanned, sums=1, since=9), "StringConcat": Row(string_concat), "StringSplit": Row(string_split), "StringNormalizer": Row(string_normalizer),
    "RegexFullMatch": Row(regex), "TfIdfVectorizer": Row(tf_idf),
}
