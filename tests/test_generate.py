"""GreedySearch and BeamSearch: against a search in NumPy that asks the decoder for every sequence anew, and their errors. Against ONNX
Runtime: test_generate_onnxruntime.py."""
from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from decoders import HEADS, SIZE, counter, decoder, search, translator
from onnx import helper

import gpuonnx
from gpuonnx.errors import ModelError, ShapeError

IDS = np.array([[5, 6, 7], [8, 9, 2]], np.int32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def following(graph: onnx.GraphProto) -> Any:
    """Scores of the word behind each of some sequences [R, S], by the decoder as a model of its own, without a past."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session, layers = gpuonnx.load(model, device="cpu", threads=1), len(graph.output) - 1

    def scores(words: np.ndarray) -> np.ndarray:
        places = np.tile(np.arange(words.shape[1], dtype=np.int32), (len(words), 1))
        past = np.zeros((2, len(words), HEADS, 0, SIZE), np.float32)
        made = session.run({"input_ids": words, "position_ids": places, "attention_mask": np.ones_like(words), **{f"past_{k}": past for k in range(layers)}})
        return np.asarray(made["logits"][:, -1], np.float64)
    return scores


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
def test_greedy(device: str) -> None:
    graph = decoder(seed=3, eos_bias=-9)
    session = gpuonnx.load(search("GreedySearch", {"input_ids": IDS, "max_length": ints(9)}, graph), device=device)
    scores = following(graph)
    for ids in (IDS, IDS[:1], IDS[:, :1]):
        words = ids
        while words.shape[1] < 9:
            words = np.concatenate([words, scores(words).argmax(1).astype(np.int32)[:, None]], 1)
        assert session.run({"input_ids": ids, "max_length": ints(9)})["sequences"].tolist() == words.tolist()


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
def test_beams_find_the_best_of_all_sequences(device: str) -> None:
    """With as many beams as there are words, two steps miss nothing."""
    graph = decoder(vocabulary=6, seed=4, eos_bias=-99)
    feeds = {"input_ids": ints(5, 2)[None], "max_length": ints(4), "num_beams": ints(6), "num_return_sequences": ints(3)}
    made = gpuonnx.load(search("BeamSearch", feeds, graph, 2), device=device).run(feeds)
    scores, totals = following(graph), {}

    def logs(words: list[int]) -> np.ndarray:
        s = scores(np.array([words], np.int32))[0]
        return np.asarray(s - np.log(np.exp(s).sum()))
    for a, b in product(range(6), repeat=2):
        totals[a, b] = (logs([5, 2])[a] + logs([5, 2, a])[b]) / 4
    best = sorted(totals, key=lambda k: -totals[k])[:3]
    assert made["sequences"].tolist() == [[[5, 2, *words] for words in best]]
    np.testing.assert_allclose(made["sequences_scores"], [[totals[words] for words in best]], rtol=1e-4)


def test_a_longer_search_compiles_nothing() -> None:
    graph = decoder(seed=5, eos_bias=-9)
    feeds = {"input_ids": IDS, "max_length": ints(6), "num_beams": ints(2), "num_return_sequences": ints(1)}
    session = gpuonnx.load(search("BeamSearch", feeds, graph), device="cpu", threads=1)
    session.run(feeds)
    compiled = session.stats.compiled
    longer = session.run(feeds | {"max_length": ints(12), "num_beams": ints(3)})["sequences"]
    assert longer.shape == (2, 1, 12) and session.stats.compiled == compiled


def test_a_first_decoder_of_its_own() -> None:
    """The word behind the prompt comes from init_decoder, the others from decoder."""
    first, after = counter(of="attention_mask"), counter()
    feeds = {"input_ids": IDS, "max_length": ints(6)}
    found = gpuonnx.load(search("GreedySearch", feeds, after, init_decoder=first)).run(feeds)["sequences"]
    assert found.tolist() == [[5, 6, 7, 3, 3, 4], [8, 9, 2, 3, 3, 4]]


def test_a_vocabulary_that_is_less_than_all_scores() -> None:
    feeds = {"input_ids": IDS, "max_length": ints(6)}
    found = gpuonnx.load(search("GreedySearch", feeds, counter(), vocab_size=3)).run(feeds)["sequences"]
    assert found.tolist() == [[5, 6, 7, 2, 2, 2], [8, 9, 2, 2, 2, 2]]


def test_a_decoder_that_captures() -> None:
    graph = counter()
    table = next(t for t in graph.initializer if t.name == "every")
    graph.initializer.remove(table)
    feeds = {"input_ids": IDS, "max_length": ints(5)}
    model = search("GreedySearch", feeds, graph)
    table.name = "stored"
    model.graph.initializer.append(table)
    model.graph.node.insert(0, helper.make_node("Identity", ["stored"], ["every"]))
    assert gpuonnx.load(model).run(feeds)["sequences"].tolist() == [[5, 6, 7, 2, 3], [8, 9, 2, 2, 3]]


def renamed(graph: onnx.GraphProto, old: str, new: str) -> onnx.GraphProto:
    for info in [*graph.input, *graph.output]:
        info.name = new if info.name == old else info.name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if n == old else n for n in names]
    return graph


def without_sizes(graph: onnx.GraphProto) -> onnx.GraphProto:
    graph.input[3].type.tensor_type.shape.dim[2].dim_param = "heads"
    return graph


@pytest.mark.parametrize(("op_type", "graph", "attributes", "text"), [
    ("GreedySearch", None, {}, "sub-graph decoder is missing"),
    ("GreedySearch", renamed(decoder(), "position_ids", "spots"), {}, "decoder goes from input_ids, spots"),
    ("GreedySearch", renamed(decoder(), "present_1", "kept"), {}, "to logits, present_0, kept"),
    ("GreedySearch", decoder(), {"init_decoder": decoder(layers=1)}, "init_decoder has 1 presents, decoder 2"),
    ("GreedySearch", without_sizes(decoder()), {}, "past_0 is declared as"),
    ("BeamSearch", decoder(), {"model_type": 2}, "model_type 2"),
    ("GreedySearch", decoder(), {"vocab_size": 99}, "vocab_size must be at most 20"),
])
def test_what_is_no_decoder(op_type: str, graph: Any, attributes: dict[str, Any], text: str) -> None:
    feeds = {"input_ids": IDS, "max_length": ints(6)} | ({"num_beams": ints(2), "num_return_sequences": ints(1)} if op_type == "BeamSearch" else {})
    with pytest.raises((ModelError, ShapeError), match=f"{op_type} the_search.*{text}"):
        gpuonnx.load(search(op_type, feeds, graph, **attributes), device="cpu").run(feeds)


@pytest.mark.parametrize(("changed", "text"), [({"max_length": ints(3)}, "max_length must be more than"), ({"num_return_sequences": ints(3)}, "at most num_beams"),
                                               ({"num_beams": ints(0)}, "num_beams must be at least 1"), ({"max_length": ints(6, 6)}, "2 elements"),
                                               ({"decoder_input_ids": IDS}, "decoder_input_ids.*not supported")])
def test_what_cannot_be_searched(changed: dict[str, np.ndarray], text: str) -> None:
    feeds = {"input_ids": IDS, "max_length": ints(6), "num_beams": ints(2), "num_return_sequences": ints(1)} | changed
    with pytest.raises((ModelError, ShapeError), match=f"BeamSearch the_search.*{text}"):
        gpuonnx.load(search("BeamSearch", feeds, decoder()), device="cpu").run(feeds)


def test_required_inputs() -> None:
    model = search("BeamSearch", {"input_ids": IDS, "max_length": ints(6), "num_return_sequences": ints(1)}, decoder())
    with pytest.raises(ModelError, match="the_search.*the input num_beams is missing"):
        gpuonnx.load(model, device="cpu").run({"input_ids": IDS, "max_length": ints(6), "num_return_sequences": ints(1)})


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
def test_entries_behind_an_encoder_do_not_hang_on_each_other(device: str) -> None:
    encoder, after = translator(seed=6, eos_bias=1.0)
    feeds = {"input_ids": IDS, "max_length": ints(7), "num_beams": ints(3), "num_return_sequences": ints(2)}
    model = search("BeamSearch", feeds, after, 2, encoder=encoder, model_type=1, decoder_start_token_id=2)
    session = gpuonnx.load(model, device=device)
    whole = session.run(feeds)
    assert (whole["sequences"][:, :, 0] == 2).all() and whole["sequences"].shape == (2, 2, 7)
    for b in range(2):
        one = session.run(feeds | {"input_ids": IDS[b:b + 1]})
        assert one["sequences"].tolist() == whole["sequences"][b:b + 1].tolist()
        np.testing.assert_allclose(one["sequences_scores"], whole["sequences_scores"][b:b + 1], rtol=1e-4)


def wider(graph: onnx.GraphProto) -> onnx.GraphProto:
    graph.input[0].type.tensor_type.shape.dim[1].dim_param = "words"
    return graph


@pytest.mark.parametrize(("encoder", "after", "attributes", "text"), [
    (*translator(), {}, "attribute decoder_start_token_id is missing"),
    (translator()[0], wider(translator()[1]), {"decoder_start_token_id": 2}, r"\[batch, 1\] is expected"),
    (renamed(translator()[0], "present_key_cross_0", "keys"), translator()[1], {"decoder_start_token_id": 2}, "decoder reads past_key_cross_0"),
    (renamed(translator()[0], "encoder_input_ids", "text"), translator()[1], {"decoder_start_token_id": 2}, "encoder reads text"),
])
def test_what_is_no_translator(encoder: onnx.GraphProto, after: onnx.GraphProto, attributes: dict[str, Any], text: str) -> None:
    feeds = {"input_ids": IDS, "max_length": ints(7), "num_beams": ints(3), "num_return_sequences": ints(2)}
    with pytest.raises(ModelError, match=f"BeamSearch the_search.*{text}"):
        gpuonnx.load(search("BeamSearch", feeds, after, encoder=encoder, model_type=1, **attributes), device="cpu").run(feeds)
