"""Several input shapes in one session, each against ONNX Runtime: errors, variants with their keys, kernels compiled late.

    python benchmarks/shapes.py FOLDER [--inputs DIR] [--only A,B] [--device cpu]

FOLDER holds the models; DIR holds `inputs.py` of the zoo (SPECS: {model: {input: (shape, generator)}}, tolerance(model)).
An error counts as right up to the zoo's tolerance, or twice what ONNX Runtime differs from itself without its optimisations, or
with exact 8-bit products, at this shape. A shape that an earlier variant serves must compile no kernel. Exit status: 0 when every
answer is right and no kernel was late.
"""
from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gpuonnx

Shapes = dict[str, tuple[int, ...]]


def each(*names: str, shapes: list[tuple[int, ...]]) -> list[Shapes]:
    """The same shape for all of `names`."""
    return [dict.fromkeys(names, shape) for shape in shapes]


def graphs(atoms: int, edges: int, residues: int) -> Shapes:
    by_atom = {"element": (), "amino_acid": (), "atom_role": (), "bfactor": (), "pos": (3,), "node_normal": (3,)}
    by_edge = ("edge_dist", "seq_sep", "same_residue", "is_hbond", "hb_cos")
    by_residue = {"target_indices": (6,), "target_mask": (6,), "residue_types": (), "residue_geometry": (52,), "target_environment": (6, 15),
                  "temperature_feature": (1,), "target_atom_rsasa": (6,)}
    return {**{k: (atoms, *v) for k, v in by_atom.items()}, "edge_index": (2, edges), **dict.fromkeys(by_edge, (edges,)),
            **{k: (residues, *v) for k, v in by_residue.items()}}


SHAPES: dict[str, list[Shapes]] = {
    "minilm_l6_int8": each("input_ids", "attention_mask", "token_type_ids", shapes=[(4, 32), (1, 7), (2, 128), (9, 33), (1, 1)]),
    "ppocrv4_rec": each("x", shapes=[(2, 3, 48, 320), (1, 3, 48, 160), (3, 3, 48, 200), (1, 3, 48, 328), (5, 3, 48, 64)]),
    "ppocr_v2_cls": each("x", shapes=[(4, 3, 48, 192), (1, 3, 48, 192), (2, 3, 48, 100), (7, 3, 48, 64), (1, 3, 64, 256)]),
    "ppocrv6_det_tiny": each("x", shapes=[(1, 3, 320, 480), (1, 3, 64, 64), (2, 3, 96, 160), (1, 3, 256, 224), (1, 3, 128, 640)]),
    "ppocrv6_rec_tiny_w8": each("x", shapes=[(2, 3, 48, 320), (1, 3, 48, 160), (3, 3, 48, 200), (1, 3, 48, 328), (5, 3, 48, 64)]),
    "magika_v3_3": each("bytes", shapes=[(8, 2048), (1, 2048), (3, 2048), (16, 2048), (2, 2048)]),
    "dnsmos_p808": each("input_1", shapes=[(1, 900, 120), (2, 900, 120), (3, 900, 120), (1, 900, 120), (4, 900, 120)]),
    "aecmos_48k_gru": each("input", shapes=[(1, 3, 100, 160), (1, 3, 64, 160), (1, 3, 200, 160), (1, 3, 33, 160), (1, 3, 101, 160)]),
    "slovorez_fp16": each("input_layer", shapes=[(4, 20), (1, 9), (2, 33), (16, 5), (1, 1)]),
    "tashkeel_bilstm_int8": each("input_ids", shapes=[(2, 64), (1, 9), (5, 33), (3, 100), (1, 1)]),
    "thai2rom_encoder": [{"input_tensor": (1, n)} for n in (12, 20, 33, 12, 60)],
    "thai2rom_decoder": [{"encoder_outputs": (1, n, 256), "mask": (1, n)} for n in (11, 1, 30, 64, 5)],
    "caustic_painn_gnn": [graphs(120, 600, 15), graphs(130, 10, 3), graphs(125, 999, 1), graphs(200, 2000, 40), graphs(121, 1, 7)],
    "atspm_funcnet_pair": each("x", shapes=[(16, 15, 240), (1, 15, 100), (3, 15, 64), (33, 15, 241), (2, 15, 17)]),
    "atspm_phase_trees_f64": each("X", shapes=[(64, 261), (1, 261), (7, 261), (300, 261), (2, 261)]),
    "surfaces_gbr_mlp": each("input", shapes=[(32, 4), (1, 4), (7, 4), (1000, 4), (2, 4)]),
    "silero_vad_v6_batch": each("input", shapes=[(100, 576), (1, 576), (7, 576), (33, 576), (2, 576)]),
    "silero_vad_half": [{"input": (b, 576), "state": (2, b, 128)} for b in (1, 2, 5, 16, 3)],
    "eeg_seizure_convlstm": each("x", shapes=[(1, 100, 300), (2, 100, 300), (1, 100, 200), (3, 100, 64), (1, 100, 333)]),
    "kokoro_82m_int8": [{"tokens": (1, n)} for n in (32, 20, 12, 27, 32)],
    "ddddocr_old_int8": each("input1", shapes=[(1, 1, 64, 160), (1, 1, 64, 96), (1, 1, 64, 200), (1, 1, 64, 300), (1, 1, 64, 64)]),
}
NUMPY = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
         "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}


def feeds(zoo: Any, name: str, wanted: list[tuple[str, Any]], folder: str) -> Iterator[tuple[Shapes, dict[str, np.ndarray]]]:
    """Each list of shapes with values for it, seeded; inputs that SHAPES does not name keep their shape."""
    for number, shapes in enumerate(SHAPES[name]):
        r = np.random.default_rng(zlib.crc32(name.encode()) + number)
        spec = zoo.SPECS[name]
        feed = {k: np.asarray(spec[k][1](r, shapes.get(k, spec[k][0]), folder)).astype(dtype) for k, dtype in wanted}
        if name == "thai2rom_encoder":
            feed["input_lengths"][:] = shapes["input_tensor"][1]
        if name == "kokoro_82m_int8":
            feed["tokens"] = np.append(feed["tokens"][:, :shapes["tokens"][1] - 1], [[0]], 1)
        yield shapes, feed


def difference(expected: Any, got: Any) -> float:
    """Largest |difference| relative to the largest |expected|; inf where they cannot be compared."""
    if not isinstance(expected, np.ndarray):
        rows = [[list(row.values()) for row in rows] for rows in (expected, got)]
        return 0.0 if np.allclose(rows[0], rows[1], 1e-4) else float("inf")
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    if expected.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    if not expected.size:
        return 0.0
    e, g = expected.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isnan(e), np.isnan(g)):
        return float("inf")
    return float(np.nanmax(np.abs(e - g)) / max(1e-12, float(np.nanmax(np.abs(e)))))


def self_difference(path: str, feed: dict[str, np.ndarray], expected: list[Any]) -> float:
    """How far ONNX Runtime is from itself without its optimisations, and with 8-bit products that do not saturate."""
    import onnxruntime as ort
    plain, precise = ort.SessionOptions(), ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    precise.add_session_config_entry("session.x64quantprecision", "1")
    runs = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed) for options in (plain, precise)]
    return max(difference(e, g) for again in runs for e, g in zip(expected, again, strict=True))


def variants(session: gpuonnx.Session) -> list[str]:
    """The headings of explain(): one for each variant compiled so far, with its key."""
    return [line[3:] for line in session.explain("kernels").splitlines() if line.startswith("== ")]


def one(name: str, folder: str, zoo: Any, device: str) -> bool:
    """One model; prints a line for each shape and each variant."""
    import onnxruntime as ort
    ort.set_default_logger_severity(4)
    path = str(Path(folder) / f"{name}.onnx")
    peer = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    session = gpuonnx.load(path, device=device)
    fine, worst, late = True, 0.0, 0
    measure = zoo.sound_difference if name.startswith("kokoro") else difference
    for shapes, feed in feeds(zoo, name, [(i.name, NUMPY[i.type]) for i in peer.get_inputs()], folder):
        try:
            expected = peer.run(None, feed)
        except Exception as error:
            print(f"  {shapes}: ONNX Runtime refuses: {str(error)[:100]}")
            continue
        known, compiled = session.stats.variants, session.stats.compiled
        try:
            got = list(session.run(feed).values())
        except gpuonnx.GpuOnnxError as error:
            print(f"  {shapes}: {type(error).__name__}: {error}")
            fine = False
            continue
        error = max(measure(e, g) for e, g in zip(expected, got, strict=True))
        worst = max(worst, error)
        if session.stats.variants == known:
            late += session.stats.compiled - compiled
        if error > zoo.tolerance(name):
            own = self_difference(path, feed, expected)
            fine = fine and error <= 2 * own
            print(f"  {shapes}: error {error:.1e}; ONNX Runtime differs from itself by {own:.1e}")
    names = variants(session)
    print(f"{name:24} {'right' if fine else 'WRONG'} {len(SHAPES[name])} shapes, worst error {worst:.1e}, {len(names)} variants, "
          f"{session.stats.compiled} kernels compiled, {late} for shapes that a variant served")
    for text in names if len(names) > 1 else []:
        print(f"    {text}")
    return fine and not late


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--inputs", default="/work/shared/zoo")
    parser.add_argument("--only", default="")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    sys.path.insert(0, a.inputs)
    import inputs as zoo
    names = [n for n in SHAPES if (not a.only or n in a.only.split(",")) and (Path(a.folder) / f"{n}.onnx").exists()]
    bad = []
    for name in names:
        try:
            if not one(name, a.folder, zoo, a.device):
                bad.append(name)
        except gpuonnx.GpuOnnxError as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            bad.append(name)
    print(f"{len(names) - len(bad)} of {len(names)} right" + (f"; not: {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
