"""Runs a model by lowering it and evaluating every node with NumPy: what operator definitions mean, without a device."""
from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gpuonnx.errors import ShapeError
from gpuonnx.importer import control
from gpuonnx.importer.lower import Lowered, lower
from gpuonnx.importer.procedure import Argument, Environment, Procedure, input_info
from gpuonnx.ir import graph as g
from gpuonnx.ir import types
from gpuonnx.ir.dims import symbols
from gpuonnx.ir.evaluate import evaluate
from gpuonnx.ir.sizes import evaluate as evaluate_dims
from gpuonnx.ops import registry
from gpuonnx.runtime.host import HOST_FUNCTIONS


def node_model(op_type: str, inputs: Sequence[Any], opset: int, outputs: int = 1, domain: str = "", **attributes: Any) -> onnx.ModelProto:
    """A model of one node; an input of None is left out. Output types are not declared."""
    names = ["" if x is None else f"x{k}" for k, x in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"y{k}" for k in range(outputs)], domain=domain, **attributes)
    infos = [helper.make_tensor_value_info(n, types.TYPES[types.of_numpy(np.asarray(x).dtype)].onnx, [None] * np.ndim(x))
             for n, x in zip(names, inputs, strict=True) if n]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=f"y{k}") for k in range(outputs)])
    opsets = [helper.make_opsetid("", opset)] if not domain else [helper.make_opsetid("", 17), helper.make_opsetid(domain, opset)]
    return helper.make_model(graph, opset_imports=opsets)


def run_node(op_type: str, inputs: Sequence[Any], opset: int = 21, outputs: int = 1, domain: str = "", **attributes: Any) -> list[Any]:
    """The outputs of one node; every size of its inputs is free."""
    model = node_model(op_type, inputs, opset, outputs, domain, **attributes)
    return run(model, [np.asarray(x) for x in inputs if x is not None])


def run(model: onnx.ModelProto, inputs: Sequence[Any], free: bool = False) -> list[Any]:
    return call(procedure(model, free), [np.asarray(x) if isinstance(x, np.generic) else x for x in inputs])


def array(tensor: Any) -> np.ndarray:
    value = numpy_helper.to_array(tensor)
    return value.astype(object) if value.dtype.kind in "SU" else value


def procedure(model: onnx.ModelProto, free: bool = False) -> Procedure:
    """The main graph; `free` forgets the declared sizes."""
    graph = model.graph
    constants = {t.name: array(t) for t in graph.initializer}
    inputs = [input_info(i) for i in graph.input if i.name not in constants]
    inputs = [dataclasses.replace(i, dims=None) for i in inputs] if free else inputs
    opsets = {registry.ALIASES.get(o.domain, o.domain): o.version for o in model.opset_import}
    environment = Environment(opsets, {(f.domain, f.name): f for f in model.functions}, array)
    return Procedure("main", tuple(graph.node), tuple(inputs), tuple(o.name for o in graph.output), constants, environment,
                     tuple(input_info(o) for o in graph.output))


def lowered(work: Procedure, values: Sequence[Any]) -> Lowered:
    return lower(work, [_argument(v, i.dtype) for v, i in zip(values, work.inputs, strict=True)])


def _argument(value: Any, dtype: str) -> Argument:
    if not isinstance(value, np.ndarray):
        return Argument(dtype, None)
    small = value if value.dtype.kind in "iubf" and value.size <= 64 else None
    return Argument(types.of_numpy(value.dtype), value.shape, small)


def call(work: Procedure, values: Sequence[Any]) -> list[Any]:
    variant = lowered(work, values)
    outputs = Execution(variant.graph, values).run()
    return outputs if variant.rest is None else call(variant.rest, outputs)


class Execution:
    """One run of a graph: values, and the symbols that they bind."""

    def __init__(self, graph: g.Graph, values: Sequence[Any]) -> None:
        self.graph = graph
        self.values: dict[g.Value, Any] = dict(zip(graph.inputs, values, strict=True)) | graph.constants
        self.binding: dict[str, int | float] = {}

    def run(self) -> list[Any]:
        self.bind()
        self.check()
        for node in self.graph.nodes:
            results = self.results(node, [self.values[v] for v in node.inputs])
            for out, result in zip(node.outputs, results, strict=True):
                self.values[out] = self.checked(out, result)
            self.bind()
            self.check()
            for out in node.outputs:
                if out.shape is not None:
                    assert self.values[out].shape == tuple(map(int, evaluate_dims(out.shape, self.binding))) or out.shape == (), node
        return [self.values[v] for v in self.graph.outputs]

    def check(self) -> None:
        """Requirements hold as soon as their symbols are known."""
        for r in self.graph.requirements:
            if symbols(r.dim) <= self.binding.keys():
                size = evaluate_dims([r.dim], self.binding)[0]
                if size < 0 or r.equal and size:
                    raise ShapeError(f"{r.origin}: {r.text}")

    def checked(self, out: g.Value, result: Any) -> Any:
        if out.shape is None:
            return result
        made = np.asarray(result, object if out.dtype == "str" else None)
        assert made.dtype == types.numpy_dtype(out.dtype), (made.dtype, out.dtype)
        return made

    def bind(self) -> None:
        for name, source in self.graph.symbols.items():
            if name not in self.binding and source.value in self.values:
                value = np.asarray(self.values[source.value])
                self.binding[name] = value.shape[source.axis] if source.axis is not None else value.ravel()[source.element].item()

    def results(self, node: g.Node, inputs: list[Any]) -> Sequence[Any]:
        match node:
            case g.Host():
                for k in node.attrs.get("absent", ()):
                    inputs.insert(k, None)
                return HOST_FUNCTIONS[node.name](inputs, {k: v for k, v in node.attrs.items() if k != "absent"})
            case g.If():
                side = 0 if np.asarray(inputs[0]).item() else 1
                return call(node.bodies[side], [inputs[p] for p in node.captures[side]])  # type: ignore[arg-type]
            case g.Loop(): return self.loop(node, inputs)
        return evaluate(node, inputs, self.binding)

    def loop(self, node: g.Loop, inputs: list[Any]) -> list[Any]:
        trip = np.asarray(inputs.pop(0)).item() if node.has_trip else 1000
        going = np.asarray(inputs.pop(0)).item() if node.has_condition else True
        state, captures = inputs[:node.carried], inputs[node.carried:]
        scans: list[list[Any]] = [[] for _ in node.outputs[node.carried:]]
        turn = 0
        while going and turn < trip:
            results = call(node.body, [np.array(turn, np.int64), np.array(going), *state, *captures])  # type: ignore[arg-type]
            going, state = np.asarray(results[0]).item(), results[1:1 + node.carried]
            for column, value in zip(scans, results[1 + node.carried:], strict=True):
                column.append(value)
            turn += 1
        return [*state, *(np.stack(c) if c else np.empty(0) for c in scans)]


@cache
def official_cases() -> tuple[Any, ...]:
    from onnx.backend.test.loader import load_model_tests
    return tuple(load_model_tests(kind="node"))


def cases_of(*modules: str, also: Sequence[str] = (), without: Callable[[str], bool] = lambda name: False) -> list[Any]:
    """The official node cases whose operators are all defined in ops/, at least one of them in `modules`."""
    registry.load_all()
    where = {n: {d.function.__module__.rsplit(".", 1)[-1] for d in known} for (domain, n), known in registry.DEFINITIONS.items()}
    mine = {n for n, found in where.items() if found & set(modules)} | set(also)
    known = set(where) | {name for _, name in control.LOWERINGS} | set(also)
    found = []
    for case in official_cases():
        model = case.model if case.model is not None else onnx.load(os.path.join(case.model_dir, "model.onnx"))
        ops = {n.op_type for n in model.graph.node}
        if ops & mine and ops <= known and not without(case.name) and (len(ops) == 1 or "_expanded" not in case.name):
            found.append(case)
    return found


def data_sets(case: Any) -> list[tuple[list[Any], list[Any]]]:
    """Inputs and expected outputs."""
    if case.model is not None:
        return [tuple([_plain(x) for x in side] for side in both) for both in case.data_sets]  # type: ignore[misc]
    graph = onnx.load(os.path.join(case.model_dir, "model.onnx")).graph
    sets = []
    for folder in sorted(glob.glob(os.path.join(case.model_dir, "test_data_set_*"))):
        sets.append(tuple([_read(os.path.join(folder, f"{kind}_{k}.pb"), info) for k, info in enumerate(infos)]
                          for kind, infos in (("input", graph.input), ("output", graph.output))))
    return sets  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return array(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "SU":
        return value.astype(object)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _read(path: str, info: onnx.ValueInfoProto) -> Any:
    readers: Mapping[str, tuple[Any, Callable[[Any], Any]]] = {
        "sequence_type": (onnx.SequenceProto, numpy_helper.to_list), "optional_type": (onnx.OptionalProto, numpy_helper.to_optional)}
    proto, convert = readers.get(info.type.WhichOneof("value") or "", (onnx.TensorProto, array))
    with open(path, "rb") as file:
        message = proto()
        message.ParseFromString(file.read())
    return convert(message)


def check_case(case: Any, free: bool) -> None:
    """Run an official case; `free` makes every size a symbol."""
    model = case.model if case.model is not None else onnx.load(os.path.join(case.model_dir, "model.onnx"))
    for inputs, expected in data_sets(case):
        for ours, theirs in zip(run(model, inputs, free), expected, strict=True):
            compare(ours, theirs, case.rtol, case.atol)


def compare(ours: Any, theirs: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    if theirs is None or isinstance(theirs, (list, tuple)):
        assert (ours is None) == (theirs is None)
        assert theirs is None or len(ours) == len(theirs)
        for a, b in zip(ours or (), theirs or (), strict=True):
            compare(a, b, rtol, atol)
        return
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    if theirs.dtype.kind in "OSU":
        assert [str(x) for x in ours.ravel()] == [x.decode() if isinstance(x, bytes) else str(x) for x in theirs.ravel()]
        return
    assert ours.dtype == theirs.dtype
    rtol = max(rtol, {2: 1e-3, 1: 1e-2}.get(theirs.dtype.itemsize, 0)) if theirs.dtype.kind not in "iub" else rtol
    if theirs.dtype.kind not in "fiubc":
        ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=max(atol, 1e-7))
