"""Files that are no models, external data, unsorted graphs, opsets, functions, bounds."""
from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpuonnx.codegen.cache import KernelCache
from gpuonnx.errors import ModelError, UnsupportedType
from gpuonnx.importer import load
from gpuonnx.importer.load import Limits, LoadedModel, load_model, open_model
from gpuonnx.importer.tensors import Folder, sparse_array, tensor_array
from gpuonnx.importer.wire import weights
from gpuonnx.ir.types import BY_ONNX


def info(name: str, shape: Any = ("N", 4), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes: list[onnx.NodeProto] | None = None, initializers: Any = (), inputs: Any = ("x",), outputs: Any = ("y",), opset: int = 20,
          **extra: Any) -> onnx.ModelProto:
    nodes = nodes if nodes is not None else [helper.make_node("Relu", ["x"], ["y"], "relu")]
    graph = helper.make_graph(nodes, "g", [info(n) for n in inputs], [info(n) for n in outputs], list(initializers))
    imports = extra.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **extra)


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x" * 20)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


NOT_MODELS = {
    "empty": (b"", "empty file"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "gzip": (gzip.compress(b"abc"), "gunzip"),
    "pytorch": (zipped("archive/data.pkl"), "torch.onnx.export"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(20), "Keras"),
    "pickle": (pickle.dumps({"sklearn": 1}, 4), "pickle"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0" + b'{"a":{"b":1}}   ', "safetensors"),
    "numpy": (npy(), "--input"),
    "json": (b'{"model": 1}', "JSON"),
    "text": (b"hello, this is a text\nof two lines", "text file that begins with 'hello"),
    "zeros": (bytes(1000), "zeros"),
    "tensor": (numpy_helper.from_array(np.arange(6, dtype=np.float32)).SerializeToString(), "a tensor"),
    "elf": (b"\x7fELF" + bytes(64), "compiled program"),
    "textproto": (b"ir_version: 8\ngraph {\n}", "text form"),
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_not_a_model(name: str, tmp_path: Path) -> None:
    data, words = NOT_MODELS[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for given in (path, data):
        with pytest.raises(ModelError) as raised:
            load_model(given)
        assert words in str(raised.value)


def test_truncated_model_says_where() -> None:
    weight = numpy_helper.from_array(np.zeros((100, 4), np.float32), "w")
    data = model([helper.make_node("Add", ["x", "w"], ["y"])], [weight]).SerializeToString()
    with pytest.raises(ModelError, match="truncated.*bytes more.*fetch it again"):
        load_model(data[:len(data) // 2])


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_are_a_model_error_or_a_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(model().SerializeToString())
    for at in rng.integers(0, len(data), 3):
        data[at] = rng.integers(0, 256)
    try:
        load_model(bytes(data))
    except (ModelError, UnsupportedType) as error:
        assert len(str(error)) > 20


def test_missing_file_says_which_is_near(tmp_path: Path) -> None:
    (tmp_path / "resnet.onnx").write_bytes(model().SerializeToString())
    with pytest.raises(ModelError, match=r"did you mean .*resnet\.onnx"):
        load_model(tmp_path / "resnett.onnx")
    with pytest.raises(ModelError, match=r"is a folder; give the \.onnx file in it: resnet\.onnx"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="its folder .* does not exist"):
        load_model(tmp_path / "nowhere" / "a.onnx")


def test_every_way_to_give_a_model(tmp_path: Path) -> None:
    proto = model()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    with path.open("rb") as file:
        given = [path, str(path), path.read_bytes(), proto, file, io.BytesIO(path.read_bytes()), bytearray(path.read_bytes())]
        digests = {load_model(one).digest for one in given}
    assert len(digests) == 1
    with pytest.raises(ModelError, match="not int"):
        load_model(3)
    with pytest.raises(ModelError, match="binary mode"):
        load_model(io.StringIO("text"))


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, path = KernelCache(tmp_path / "cache"), tmp_path / "m.onnx"
    path.write_bytes(b"0" * 5000)
    first = open_model(path, cache=cache).digest
    assert first == hashlib.sha256(b"0" * 5000).hexdigest() and cache.sizes()["blobs"] == (0, 0), "a file changed just now is not trusted"
    monkeypatch.setattr(load, "SETTLED_NS", -1)
    assert open_model(path, cache=cache).digest == first and cache.sizes()["blobs"][0] == 1
    monkeypatch.setattr(load.hashlib, "sha256", None)
    assert open_model(path, cache=cache).digest == first
    monkeypatch.undo()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    time.sleep(0.05)
    path.write_bytes(b"1" * 5000)
    os.utime(path, ns=times)
    assert open_model(path, cache=cache).digest == hashlib.sha256(b"1" * 5000).hexdigest()


def external_model(folder: Path, location: str = "weights.bin", data: np.ndarray | None = None) -> Path:
    values = np.arange(4, dtype=np.float32) if data is None else data
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="length", value="16")
    path = folder / "m.onnx"
    path.write_bytes(model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor]).SerializeToString())
    if location == "weights.bin":
        (folder / location).write_bytes(values.tobytes())
    return path


def weight(loaded: LoadedModel) -> np.ndarray:
    return loaded.array(loaded.defaults["w"])


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    loaded = load_model(external_model(tmp_path))
    array = weight(loaded)
    assert loaded.external == ("weights.bin",)
    np.testing.assert_array_equal(array, [0, 1, 2, 3])
    assert not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../b", "", "C:\\x.bin", "..\\x", "a\0b"])
def test_external_data_stays_beside_the_model(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    with pytest.raises(ModelError, match="outside the model's folder"):
        weight(load_model(external_model(folder, location)))


def test_external_data_may_not_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret.bin"
    folder.mkdir()
    secret.write_bytes(bytes(16))
    path = external_model(folder)
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(secret)
    with pytest.raises(ModelError, match="is a link to .*secret"):
        weight(load_model(path))


def test_hugging_face_cache_is_accepted(tmp_path: Path) -> None:
    """snapshots/REV/{m.onnx,weights.bin} are links to ../../blobs/HASH."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    path = external_model(tmp_path)
    os.rename(path, blobs / "11")
    os.rename(tmp_path / "weights.bin", blobs / "22")
    (snapshot / "m.onnx").symlink_to(Path("../../blobs/11"))
    (snapshot / "weights.bin").symlink_to(Path("../../blobs/22"))
    np.testing.assert_array_equal(weight(load_model(snapshot / "m.onnx")), [0, 1, 2, 3])


def test_external_data_missing_short_or_without_a_path(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    with pytest.raises(ModelError, match="load it by its path"):
        weight(load_model(path.read_bytes()))
    (tmp_path / "weights.bin").write_bytes(bytes(7))
    with pytest.raises(ModelError, match="bytes 0 to 16 of 'weights.bin', which has 7"):
        weight(load_model(path))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="is missing from .*copy it beside the model"):
        weight(load_model(path))


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(ModelError, match="no regular file"):
        Folder.of(tmp_path / "m.onnx").locate("weights")


def test_unsorted_nodes_are_sorted() -> None:
    nodes = [helper.make_node("Relu", ["b"], ["y"]), helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Abs", ["x"], ["a"])]
    assert [node.op_type for node in load_model(model(nodes)).proto.graph.node] == ["Abs", "Neg", "Relu"]


def test_a_node_before_what_its_body_captures_is_sorted() -> None:
    body = helper.make_graph([helper.make_node("Add", ["late", "late"], ["r"])], "b", [], [info("r")])
    other = helper.make_graph([helper.make_node("Neg", ["late"], ["s"])], "c", [], [info("s")])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other), helper.make_node("Relu", ["x"], ["late"])]
    proto = model(nodes)
    proto.graph.input.append(info("c", (), TensorProto.BOOL))
    assert [node.op_type for node in load_model(proto).proto.graph.node] == ["Relu", "If"]


BROKEN_GRAPHS = {
    "circle": ([("Add", ["x", "b"], ["a"]), ("Neg", ["a"], ["b"]), ("Relu", ["b"], ["y"])], "circle: .*Neg.*->"),
    "made twice": ([("Relu", ["x"], ["y"]), ("Neg", ["x"], ["y"])], "made twice"),
    "nothing makes": ([("Add", ["x", "ghost"], ["y"])], "reads 'ghost', which nothing makes"),
    "output": ([("Relu", ["x"], ["z"])], "output 'y' is made by no node"),
    "shadows": ([("Relu", ["x"], ["x"]), ("Neg", ["x"], ["y"])], "is an input or an initializer"),
    "no op_type": ([("", ["x"], ["y"])], "without op_type"),
}


@pytest.mark.parametrize("name", BROKEN_GRAPHS)
def test_broken_graphs(name: str) -> None:
    nodes, words = BROKEN_GRAPHS[name]
    with pytest.raises(ModelError, match=words):
        load_model(model([helper.make_node(*node) for node in nodes]))


def test_opsets() -> None:
    unused = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 99), helper.make_opsetid("com.example", 7)]
    assert load_model(model(opset_imports=unused)).opsets["com.example"] == 7
    with pytest.raises(ModelError, match="wants opset 99 of ai.onnx; gpuonnx knows 1 to"):
        load_model(model(opset=99))
    with pytest.raises(ModelError, match="which opset"):
        load_model(model(opset_imports=[helper.make_opsetid("com.example", 1)]))
    with pytest.raises(ModelError, match="opset 19 and opset 20|opset 20 and opset 19"):
        load_model(model(opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx", 19)]))


def function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("f", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)])


def calling(name: str, functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    return model([helper.make_node(name, ["x"], ["y"], domain="f")], opset_imports=imports, functions=functions)


def test_functions_are_kept_sorted_and_bounded() -> None:
    inner = function("Twice", [helper.make_node("Neg", ["t"], ["b"]), helper.make_node("Neg", ["a"], ["t"])])
    loaded = load_model(calling("Twice", [inner]))
    assert [node.input[0] for node in loaded.functions["f", "Twice"].node] == ["a", "t"]
    with pytest.raises(ModelError, match="functions call themselves: f.A -> f.B -> f.A"):
        load_model(calling("A", [function("A", [helper.make_node("B", ["a"], ["b"], domain="f")]),
                                 function("B", [helper.make_node("A", ["a"], ["b"], domain="f")])]))


def test_functions_that_explode_are_refused() -> None:
    def tenfold(name: str, inner: str, domain: str) -> onnx.FunctionProto:
        names = ["a", *(f"t{k}" for k in range(9)), "b"]
        return function(name, [helper.make_node(inner, [one], [two], domain=domain) for one, two in zip(names, names[1:], strict=False)])
    functions = [tenfold("F0", "Neg", "")] + [tenfold(f"F{k}", f"F{k - 1}", "f") for k in range(1, 12)]
    with pytest.raises(ModelError, match="expand to more than 1000000 nodes"):
        load_model(calling("F11", functions))


def test_limits() -> None:
    many = [helper.make_node("Relu", ["x"], ["y0"])] + [helper.make_node("Relu", [f"y{k}"], [f"y{k + 1}"]) for k in range(10)]
    with pytest.raises(ModelError, match=r"more than 5 nodes; raise limits=gpuonnx\.Limits"):
        load_model(model(many, outputs=("y10",)), Limits(nodes=5))
    with pytest.raises(ModelError, match="more than the limit of 10"):
        open_model(model(), Limits(file_bytes=10))
    huge = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 20])
    with pytest.raises(ModelError, match="more than the limit"):
        tensor_array(huge)
    deep = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "leaf", [], [info("r")])
    for _ in range(6):
        leaf = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "leaf", [], [info("r")])
        deep = helper.make_graph([helper.make_node("If", ["c"], ["r"], then_branch=deep, else_branch=leaf)], "b", [], [info("r")])
    proto = model([helper.make_node("If", ["c"], ["y"], then_branch=deep, else_branch=deep)])
    proto.graph.input.append(info("c", (), TensorProto.BOOL))
    load_model(proto)
    with pytest.raises(ModelError, match="deep in each other"):
        load_model(proto, Limits(depth=4))


TYPES = [number for number, name in BY_ONNX.items() if name != "str"]


@pytest.mark.parametrize("dtype", TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("raw", [False, True], ids=["field", "raw"])
def test_every_element_type(dtype: int, raw: bool) -> None:
    """Read as onnx reads it; packed types hold one code a byte."""
    values = np.arange(5) % 2
    target = helper.tensor_dtype_to_np_dtype(dtype)
    tensor = numpy_helper.from_array(values.astype(np.float32).astype(target), "t")
    if not raw:
        tensor = helper.make_tensor("t", dtype, [5], values.astype(np.float32).astype(target))
    got, expected = tensor_array(tensor), numpy_helper.to_array(tensor)
    assert got.shape == (5,) and got.dtype.itemsize == expected.dtype.itemsize
    np.testing.assert_array_equal(got.astype(np.complex64), expected.astype(np.complex64))


def test_strings_and_sparse_tensors() -> None:
    strings = numpy_helper.from_array(np.array(["a", "b", "c"], dtype=object), "s")
    assert tensor_array(strings).tolist() == ["a", "b", "c"]
    sparse = helper.make_sparse_tensor(helper.make_tensor("v", TensorProto.FLOAT, [2], [3, 4]),
                                       helper.make_tensor("i", TensorProto.INT64, [2], [1, 5]), [2, 3])
    assert sparse_array(sparse).tolist() == [[0, 3, 0], [0, 0, 4]]
    sparse.indices.int64_data[1] = 6
    with pytest.raises(ModelError, match="index outside its shape"):
        sparse_array(sparse)


@pytest.mark.parametrize("count", [3, 5])
def test_wrong_amount_of_data(count: int) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(4 * count))
    with pytest.raises(ModelError, match=f"needs 16 bytes of data, the file has {4 * count}"):
        tensor_array(tensor)
    with pytest.raises(UnsupportedType, match="element type number 99"):
        tensor_array(TensorProto(name="w", data_type=99))
    with pytest.raises(ModelError, match="negative size"):
        tensor_array(TensorProto(name="w", data_type=1, dims=[-2]))


def test_where_weights_lie_in_a_file() -> None:
    value = np.arange(8, dtype=np.float32)
    data = model([helper.make_node("Add", ["x", "w"], ["y"])], [numpy_helper.from_array(value, "w")]).SerializeToString()
    offset, length = weights(memoryview(data))["w"]
    assert data[offset:offset + length] == value.tobytes()
