"""What a file that is no ONNX model looks like, and how to come by the model."""
from __future__ import annotations

import re

from gpuonnx.importer import wire

_EXPORT = "export the network to ONNX"
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs.github.com/spec", "a Git LFS pointer, which stands for the real file: run `git lfs pull` in its repository, "
                                                    "or download the file itself"),
    (0, b"\x89HDF", f"an HDF5 file (Keras): {_EXPORT} with `model.export(..., format=\"onnx\")` or tf2onnx"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it (`gunzip`) and give the .onnx file inside"),
    (0, b"BZh", "a bzip2 archive: unpack it and give the .onnx file inside"),
    (0, b"\xfd7zXZ", "an xz archive: unpack it and give the .onnx file inside"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard archive: unpack it and give the .onnx file inside"),
    (0, b"7z\xbc\xaf", "a 7-zip archive: unpack it and give the .onnx file inside"),
    (257, b"ustar", "a tar archive: unpack it and give the .onnx file inside"),
    (0, b"GGUF", f"a GGUF file (llama.cpp): {_EXPORT} from the original checkpoint"),
    (4, b"TFL3", f"a TensorFlow Lite model: {_EXPORT} with `tf2onnx --tflite`"),
    (4, b"ORTM", "a model in ONNX Runtime's own .ort format: give the .onnx file it was made from"),
    (0, b"\x93NUMPY", "a NumPy array: give it as an input, `--input NAME=FILE.npy`"),
    (0, b"\x7fELF", "a compiled program or library"),
    (0, b"MZ", "a Windows program or library"),
    (0, b"\x89PNG", "a PNG picture"), (0, b"\xff\xd8\xff", "a JPEG picture"), (0, b"%PDF", "a PDF document"),
    (0, b"ftrt", "a TensorRT engine, which is bound to one GPU and one version: give the .onnx file it was built from"),
    (0, b"ptrt", "a TensorRT engine, which is bound to one GPU and one version: give the .onnx file it was built from"),
)


def looks_like(data: memoryview, name: str = "") -> str | None:
    """What the bytes are, with the mend, where that can be told; None for what may be a model."""
    if not len(data):
        return "an empty file (0 bytes): download or export it again"
    head = bytes(data[:4096])
    for offset, magic, text in _MAGIC:
        if head[offset:offset + len(magic)] == magic:
            return text
    return _archive(data, head) or _text(head) or _protobuf(data, head, name)


def _archive(data: memoryview, head: bytes) -> str | None:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        everything = bytes(data[-65536:]) + head
        if b"data.pkl" in everything or b"constants.pkl" in everything:
            return f"a PyTorch checkpoint (.pt): {_EXPORT} with `torch.onnx.export(model, args, \"model.onnx\")`"
        if b"config.json" in everything and b".weights.h5" in everything:
            return f"a Keras model (.keras): {_EXPORT} with `model.export(..., format=\"onnx\")`"
        if b".npy" in everything:
            return "a NumPy archive (.npz): give it as an input, `--input NAME=FILE.npz`"
        return "a zip archive: unpack it and give the .onnx file inside"
    if len(head) > 1 and head[0] == 0x80 and head[1] in (2, 3, 4, 5) and (b"torch" in head or b"collections" in head or b"sklearn" in head
                                                                         or head[2:3] in (b"}", b"]", b"\x8a", b"c", b"\x95")):
        return f"a Python pickle (an old PyTorch checkpoint or a scikit-learn estimator): {_EXPORT} with torch.onnx.export or skl2onnx"
    if len(head) > 10 and head[8:10] in (b'{"', b"{ ") and int.from_bytes(head[:8], "little") <= len(data):
        return f"a safetensors file, which holds weights but no graph: {_EXPORT} with torch.onnx.export or `optimum-cli export onnx`"
    return None


def _text(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:512].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "a web page, not the file behind it: download the file itself (on GitHub the \"raw\" link, on Hugging Face the \"download\" link)"
    if re.match(rb"<\s*(ir_version|opset_import|producer_name)", start):
        return "a model in ONNX's text form: turn it into a file with `onnx.save(onnx.parser.parse_model(text), \"model.onnx\")`"
    if re.match(rb"(ir_version|producer_name|graph|opset_import)\s*[:{]", start):
        return "a model in protobuf's text form: turn it into a file with `onnx.load(path, format=\"textproto\")` and `onnx.save`"
    if start.startswith(b"{"):
        return "a JSON document: give the .onnx file it belongs to"
    if head and not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", head[:1024]) and _is_utf8(head[:1024]):
        line = head.strip().split(b"\n", 1)[0][:60].decode("utf-8", "replace")
        return f"a text file that begins with {line!r}: give the .onnx file"
    return None


def _is_utf8(data: bytes) -> bool:
    try:
        data[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _protobuf(data: memoryview, head: bytes, name: str) -> str | None:
    if not any(head):
        return "a file of zeros: the download or the disk failed; fetch it again"
    if name.endswith("saved_model.pb") or head.startswith(b"\x08\x01\x12") and b"\x0a\x05serve" in head:
        return f"a TensorFlow SavedModel: {_EXPORT} with `python -m tf2onnx.convert --saved-model FOLDER --output model.onnx`"
    if head[:1] == b"\x0a" and not wire.is_model(data):
        return f"a TensorFlow graph (frozen .pb) or another protobuf file: {_EXPORT} with `python -m tf2onnx.convert --graphdef FILE ...`"
    if wire.is_tensor(data):
        return "a tensor (such as the input_0.pb of a test), not a model: give it as an input, `--input NAME=FILE.pb`"
    return None


def why_broken(data: memoryview) -> str:
    """What is wrong with bytes that begin like a model and do not parse."""
    broken = wire.where_broken(data)
    if broken is None:
        return "its protobuf structure is damaged: export or download it again"
    if broken.missing:
        return (f"it is truncated: at byte {broken.offset} a part begins that needs {broken.missing} bytes more than the {len(data)} there are; "
                "the download stopped early, fetch it again")
    return f"it is no protobuf from byte {broken.offset} of {len(data)} on: the file is damaged or no ONNX model; export or download it again"
