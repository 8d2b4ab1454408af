"""Operators used outside the standard: an error that names the node, on every device, for every operator of the table; never a crash."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import on_devices
import onnx
import pytest
from every_operator.draw import Case, Draw, info, versions
from every_operator.row import Row
from every_operator.table import ROWS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import defs, helper
from op_runner import node_model

import gpuonnx

OPTION = defs.OpSchema.FormalParameterOption
KINDS = {onnx.AttributeProto.INT: "x", onnx.AttributeProto.FLOAT: "x", onnx.AttributeProto.STRING: 1, onnx.AttributeProto.INTS: "x", onnx.AttributeProto.FLOATS: "x",
         onnx.AttributeProto.STRINGS: 1, onnx.AttributeProto.TENSOR: 1, onnx.AttributeProto.GRAPH: 1, onnx.AttributeProto.TYPE_PROTO: 1,
         onnx.AttributeProto.SPARSE_TENSOR: 1}


@st.composite
def valid(draw: Any, row: Row, schema: Any) -> Case:
    return row.strategy(Draw(draw, [schema]))


def copied(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.NodeProto]:
    again = onnx.ModelProto.FromString(model.SerializeToString())
    return again, again.graph.node[-1]


def wrong_models(case: Case, schema: Any) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """Each way to break the last node's schema: what is wrong, the model, its inputs."""
    model, node = copied(case.model)
    node.attribute.append(helper.make_attribute("wobble", 1))
    yield "an attribute it does not have", model, case.feeds
    for name, attribute in schema.attributes.items():
        model, node = copied(case.model)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, KINDS[int(attribute.type)])])
        yield f"attribute {name} of another type", model, case.feeds
        if attribute.required:
            model, node = copied(model)
            del node.attribute[:]
            node.attribute.extend(kept)
            yield f"without attribute {name}", model, case.feeds
    for k, formal in enumerate(schema.inputs):
        if formal.option == OPTION.Single and k < len(case.model.graph.node[-1].input):
            model, node = copied(case.model)
            node.input[k] = ""
            yield f"without input {k}", model, case.feeds
    if schema.inputs and schema.inputs[0].option != OPTION.Variadic or not schema.inputs:
        model, node = copied(case.model)
        node.input.extend([""] * (len(schema.inputs) - len(node.input)) + [schema.name])
        model.graph.input.append(info(schema.name, np.float32, [2]))
        yield "one input too many", model, {**case.feeds, schema.name: np.ones(2, np.float32)}
    yield from wrong_types(case, schema)


def wrong_types(case: Case, schema: Any) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    for dtype, spelled in ((object, "tensor(string)"), (np.complex64, "tensor(complex64)"), (np.float32, "tensor(float)")):
        node = case.model.graph.node[-1]
        if not node.input or not schema.inputs or any(spelled in i.types for s in versions(schema.domain, schema.name) for i in s.inputs[:1]):
            continue
        model, node = copied(case.model)
        node.input[0] = schema.name
        model.graph.input.append(info(schema.name, dtype, [None]))
        yield f"a first input of {spelled}", model, {**case.feeds, schema.name: np.array(["a", "b"], object) if dtype is object else np.ones(2, dtype)}


@pytest.mark.parametrize("operator", ROWS, ids=lambda o: ".".join(o).lstrip("."))
def test_outside_its_schema(operator: tuple[str, str]) -> None:
    """Before any device is asked."""
    schema = versions(*operator)[0]

    @settings(max_examples=1, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(valid(ROWS[operator], schema))
    def example(case: Case) -> None:
        for what, model, feeds in wrong_models(case, schema):
            with pytest.raises(gpuonnx.GpuOnnxError, match=schema.name):
                on_devices.run(model, feeds)
                pytest.fail(f"{schema.name} ran with {what}")

    example()


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def i64(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


X = f32(2, 3)
NAN = float("nan")
Bad = tuple[str, list[Any], dict[str, Any]]
BAD: dict[str, Bad] = {
    "axis of a reduction": ("ReduceSum", [X, i64(2)], {}), "axis twice": ("ReduceSum", [X, i64(0, -2)], {}), "axis of a softmax": ("Softmax", [X], {"axis": 5}),
    "axis of a concat": ("Concat", [X, X], {"axis": 2}), "axis of a gather": ("Gather", [X, i64(0)], {"axis": -3}), "axis of argmax": ("ArgMax", [X], {"axis": 2}),
    "axis of a cumsum": ("CumSum", [X, np.array(2)], {}), "axis of topk": ("TopK", [X, i64(1)], {"axis": 2, "outputs": 2}), "axis of unsqueeze": ("Unsqueeze", [X, i64(5)], {}),
    "axes of unsqueeze": ("Unsqueeze", [X, i64(0, 0)], {}), "axis of squeeze": ("Squeeze", [f32(1, 3), i64(2)], {}), "squeeze of a long axis": ("Squeeze", [X, i64(1)], {}),
    "axis of flatten": ("Flatten", [X], {"axis": 3}), "axis of split": ("Split", [X, i64(1, 1)], {"axis": 2, "outputs": 2}), "axis of a one hot": ("OneHot", [i64(0), np.array(2), f32(2)], {"axis": 3}),
    "axis of a slice": ("Slice", [X, i64(0), i64(1), i64(2)], {}), "axis of quantisation": ("QuantizeLinear", [X, f32(2)], {"axis": 4}), "axis of a layer norm": ("LayerNormalization", [X, f32(3)], {"axis": 2}),
    "axis of hardmax": ("Hardmax", [X], {"axis": -4}), "axis of compress": ("Compress", [X, np.array([True])], {"axis": 2}), "axis of unique": ("Unique", [X], {"axis": 2}),
    "axis of an Lp norm": ("LpNormalization", [X], {"axis": 3}), "axis of gather elements": ("GatherElements", [X, i64([0])], {"axis": 2}), "axis of a DFT": ("DFT", [f32(2, 3, 1), None, np.array(5)], {}),
    "axes of a pad": ("Pad", [X, i64(1, 1), np.float32(0), i64(4)], {}), "axes of a crop": ("CenterCropPad", [X, i64(1)], {"axes": [3]}),
    "permutation too short": ("Transpose", [X], {"perm": [0]}), "permutation twice": ("Transpose", [X], {"perm": [0, 0]}), "permutation out of range": ("Transpose", [X], {"perm": [0, 2]}),
    "shapes that do not broadcast": ("Add", [X, f32(2)], {}), "expand down": ("Expand", [X, i64(2, 2)], {}), "reshape": ("Reshape", [X, i64(4, 2)], {}), "reshape with two unknowns": ("Reshape", [X, i64(-1, -1)], {}),
    "reshape copies an axis that is not there": ("Reshape", [X, i64(2, 3, 0)], {}), "product of vectors": ("MatMul", [f32(3), f32(4)], {}), "product of a scalar": ("MatMul", [f32(), X], {}),
    "gemm of vectors": ("Gemm", [f32(3), f32(3)], {}), "gemm sizes": ("Gemm", [X, f32(2, 2)], {}), "gemm's C": ("Gemm", [X, f32(3, 2), f32(3, 2)], {}), "einsum without equals": ("Einsum", [X, f32(2, 4)], {"equation": "ij,jk->ik"}),
    "einsum of another rank": ("Einsum", [X], {"equation": "i->i"}), "einsum of too few": ("Einsum", [X], {"equation": "ij,jk->ik"}), "einsum of nonsense": ("Einsum", [X], {"equation": "i1->>"}),
    "convolution of other channels": ("Conv", [f32(1, 3, 5, 5), f32(2, 2, 3, 3)], {}), "convolution of another rank": ("Conv", [f32(1, 2, 5), f32(2, 2, 3, 3)], {}),
    "window larger than the image": ("Conv", [f32(1, 2, 2, 2), f32(2, 2, 3, 3)], {}), "stride of 0": ("Conv", [f32(1, 2, 5, 5), f32(2, 2, 3, 3)], {"strides": [0, 1]}),
    "negative stride": ("MaxPool", [f32(1, 2, 5, 5)], {"kernel_shape": [2, 2], "strides": [-1, 1]}), "kernel of 0": ("MaxPool", [f32(1, 2, 5, 5)], {"kernel_shape": [0, 2]}),
    "dilation of 0": ("Conv", [f32(1, 2, 5, 5), f32(2, 2, 3, 3)], {"dilations": [0, 1]}), "groups of 0": ("Conv", [f32(1, 2, 5, 5), f32(2, 2, 3, 3)], {"group": 0}),
    "groups that do not divide": ("Conv", [f32(1, 3, 5, 5), f32(3, 1, 3, 3)], {"group": 2}), "too few pads": ("Conv", [f32(1, 2, 5, 5), f32(2, 2, 3, 3)], {"pads": [1, 1]}), "negative pads beyond the image": ("MaxPool", [f32(1, 2, 5, 5)], {"kernel_shape": [2, 2], "pads": [-3, 0, -3, 0]}),
    "padding by an unknown rule": ("Conv", [f32(1, 2, 5, 5), f32(2, 2, 3, 3)], {"auto_pad": "SOME"}), "kernel of another rank": ("AveragePool", [f32(1, 2, 5, 5)], {"kernel_shape": [2]}),
    "pool of a vector": ("GlobalAveragePool", [f32(3)], {}), "bias of another size": ("Conv", [f32(1, 2, 5, 5), f32(2, 2, 3, 3), f32(3)], {}), "transposed convolution": ("ConvTranspose", [f32(1, 3, 5), f32(2, 2, 3)], {}),
    "index above": ("Gather", [X, i64(2)], {}), "index below": ("Gather", [X, i64(-3)], {}), "element index": ("GatherElements", [X, i64([0, 1, 2])], {}), "tuple index": ("GatherND", [X, i64([0, 3])], {}),
    "tuple too long": ("GatherND", [X, i64([0, 0, 0])], {}), "scatter index": ("ScatterElements", [X, i64([0, 5, 0]), f32(1, 3)], {}), "scatter tuple": ("ScatterND", [X, i64([[2]]), f32(1, 3)], {}),
    "scatter sizes": ("ScatterElements", [X, i64([0, 0, 0]), f32(1, 2)], {}), "scatter tuples' sizes": ("ScatterND", [X, i64([[0]]), f32(1, 2)], {}), "scatter by an unknown rule": ("ScatterElements", [X, i64([0, 0, 0]), f32(1, 3)], {"reduction": "average"}),
    "feature index": ("ai.onnx.ml.ArrayFeatureExtractor", [X, i64([3])], {}), "integer division": ("Div", [i64(1, 2), i64(1, 0)], {}), "integer remainder": ("Mod", [i64(1, 2), i64(0)], {}),
    "slice by 0": ("Slice", [X, i64(0), i64(1), i64(0), i64(0)], {}), "slice of different lengths": ("Slice", [X, i64(0, 0), i64(1)], {}), "range by 0": ("Range", [np.array(0), np.array(3), np.array(0)], {}),
    "range by NaN": ("Range", [np.float64(0), np.float64(3), np.float64(NAN)], {}), "negative size": ("ConstantOfShape", [i64(2, -1)], {}), "negative repeats": ("Tile", [X, i64(1, -1)], {}), "too few repeats": ("Tile", [X, i64(1)], {}),
    "too few pads of a pad": ("Pad", [X, i64(1, 1)], {}), "pads below nothing": ("Pad", [X, i64(-2, 0, -2, 0)], {}), "pad by an unknown rule": ("Pad", [X, i64(0, 1, 0, 1)], {"mode": "mirror"}), "k too large": ("TopK", [X, i64(4)], {"outputs": 2}), "k negative": ("TopK", [X, i64(-1)], {"outputs": 2}),
    "parts that do not add up": ("Split", [X, i64(1, 1)], {"axis": 1, "outputs": 2}), "more parts than outputs": ("Split", [X, i64(1, 1, 1)], {"axis": 1, "outputs": 2}), "a negative part": ("Split", [X, i64(4, -1)], {"axis": 1, "outputs": 2}),
    "blocks that do not fit": ("DepthToSpace", [f32(1, 3, 2, 2)], {"blocksize": 2}), "blocks that do not fit in space": ("SpaceToDepth", [f32(1, 3, 3, 2)], {"blocksize": 2}), "blocks of 0": ("SpaceToDepth", [f32(1, 3, 2, 2)], {"blocksize": 0}),
    "depth of nothing": ("OneHot", [i64(0), np.array(-1), f32(2)], {}), "values of a one hot": ("OneHot", [i64(0), np.array(2), f32(3)], {}), "cast to nothing": ("Cast", [X], {"to": 99}), "bitcast of another width": ("BitCast", [X], {"to": 11}),
    "eye of a cube": ("EyeLike", [f32(2, 2, 2)], {}), "triangle of a vector": ("Trilu", [f32(3)], {}), "determinant of a rectangle": ("Det", [X], {}), "shift by nothing": ("BitShift", [np.uint8([1]), np.uint8([1])], {"direction": "UP"}),
    "scale of another size": ("BatchNormalization", [f32(2, 3, 4), f32(2), f32(3), f32(3), f32(3)], {}), "groups of channels": ("GroupNormalization", [f32(2, 3, 4), f32(3), f32(3)], {"num_groups": 2}), "scale of a layer norm": ("LayerNormalization", [X, f32(2)], {}),
    "heads": ("Attention", [f32(1, 3, 6), f32(1, 3, 6), f32(1, 3, 6)], {"q_num_heads": 4, "kv_num_heads": 4}), "heads that do not share": ("Attention", [f32(1, 3, 2, 4), f32(1, 2, 2, 4), f32(1, 2, 2, 4)], {}), "keys of another size": ("Attention", [f32(1, 2, 2, 4), f32(1, 2, 2, 3), f32(1, 2, 2, 4)], {}),
    "resize mode": ("Resize", [f32(1, 1, 2, 2), None, np.float32([1, 1, 2, 2])], {"mode": "area"}), "too few scales": ("Resize", [f32(1, 1, 2, 2), None, np.float32([2, 2])], {}), "negative scale": ("Resize", [f32(1, 1, 2, 2), None, np.float32([1, 1, -2, 2])], {}), "resize to nothing known": ("Resize", [f32(1, 1, 2, 2)], {}),
    "image of a region": ("RoiAlign", [f32(1, 1, 4, 4), np.float32([[0, 0, 2, 2]]), i64(3)], {"output_height": 1, "output_width": 1}), "grid of another rank": ("GridSample", [f32(1, 1, 4, 4), f32(1, 2, 2, 3)], {}), "grid mode": ("GridSample", [f32(1, 1, 4, 4), f32(1, 2, 2, 2)], {"mode": "best"}),
    "weights of another size": ("LSTM", [f32(2, 1, 3), f32(1, 8, 4), f32(1, 8, 2)], {"hidden_size": 2}), "unknown activation": ("RNN", [f32(2, 1, 3), f32(1, 2, 3), f32(1, 2, 2)], {"hidden_size": 2, "activations": ["Wobble"]}), "unknown direction": ("GRU", [f32(2, 1, 3), f32(1, 6, 3), f32(1, 6, 2)], {"hidden_size": 2, "direction": "up"}),
    "lengths of another batch": ("LSTM", [f32(2, 1, 3), f32(1, 8, 3), f32(1, 8, 2), None, np.int32([1, 1])], {"hidden_size": 2}),
    "class out of range": ("NegativeLogLikelihoodLoss", [X, i64(0, 3)], {}), "loss of an unknown kind": ("SoftmaxCrossEntropyLoss", [X, i64(0, 1)], {"reduction": "most"}), "negative length": ("ReverseSequence", [X, i64(-1, 1)], {"batch_axis": 0, "time_axis": 1}), "length of a sequence": ("ReverseSequence", [X, i64(9, 1)], {"batch_axis": 0, "time_axis": 1}),
    "labels missing": ("ai.onnx.ml.LinearClassifier", [X], {"coefficients": [1.0, 1.0, 1.0, 1.0], "classlabels_ints": [0, 1], "outputs": 2}), "category unknown": ("ai.onnx.ml.OneHotEncoder", [i64(7)], {"cats_int64s": [1], "zeros": 0}), "unknown norm": ("ai.onnx.ml.Normalizer", [X], {"norm": "L3"}),
    "threshold of another count": ("ai.onnx.ml.Scaler", [X], {"offset": [1.0, 2.0], "scale": [1.0, 2.0]}), "pattern that is none": ("RegexFullMatch", [np.array(["a"], object)], {"pattern": "("}), "window of negative size": ("HannWindow", [np.array(-3)], {}), "frames beyond the signal": ("STFT", [f32(1, 4, 1), np.array(1), f32(8)], {}),
    "indices beyond the output": ("MaxUnpool", [f32(1, 1, 1, 1), i64([[[99]]])], {"kernel_shape": [2, 2], "strides": [2, 2]}), "columns of an image": ("Col2Im", [f32(1, 4, 3), i64(3, 3), i64(2, 2)], {}), "cache position": ("TensorScatter", [f32(1, 1, 4, 2), f32(1, 1, 2, 2), i64(3)], {}),
    "position beyond the caches": ("RotaryEmbedding", [f32(1, 1, 2, 4), f32(3, 2), f32(3, 2), i64([0, 9])], {}), "scale of another count": ("DequantizeLinear", [np.uint8([[1, 2, 3]]), f32(2)], {"axis": 1}), "condition of another type": ("Where", [X, X, X], {}),
    "depth of a tree": ("ai.onnx.ml.TreeEnsembleRegressor", [X], {"nodes_treeids": [0], "nodes_nodeids": [0], "nodes_featureids": [9], "nodes_modes": ["BRANCH_LEQ"], "nodes_values": [0.0], "nodes_truenodeids": [0], "nodes_falsenodeids": [0],
                                                          "target_treeids": [0], "target_nodeids": [0], "target_ids": [0], "target_weights": [1.0], "n_targets": 1}),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("given_as", ["inputs", "weights"])
@pytest.mark.usefixtures("every_device")
def test_what_cannot_be(case: str, given_as: str) -> None:
    op, inputs, attributes = BAD[case]
    domain, _, name = op.rpartition(".")
    attributes = dict(attributes)
    outputs = attributes.pop("outputs", 1)
    opset = versions(domain, name)[0].since_version if domain else 28
    model = node_model(name, inputs, opset if not domain else {"TreeEnsembleRegressor": 3}.get(name, 1), outputs, domain, **attributes)
    feeds = {f"x{k}": np.asarray(x) for k, x in enumerate(inputs) if x is not None}
    if given_as == "weights":
        for k in list(feeds)[1:]:
            model.graph.initializer.append(onnx.numpy_helper.from_array(feeds.pop(k), k))
            model.graph.input.remove(next(i for i in model.graph.input if i.name == k))
    refuses(lambda: on_devices.run(model, feeds), name)


def refuses(run: Callable[[], Any], name: str) -> None:
    for _ in range(2):
        with pytest.raises(gpuonnx.GpuOnnxError, match=name):
            run()
