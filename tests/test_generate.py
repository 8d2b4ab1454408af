"""GreedySearch and BeamSearch: against a search in NumPy that asks the decoder for every sequence anew, and their errors. Against ONNX
Runtime: test_generate_onnxruntime.py."""
from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from decoders import HEADS, SIZE, counter, decoder, listener, search, translator
from onnx import helper, numpy_helper

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
    ("Sampling", decoder(), {"model_type": 1}, "model_type 1"),
    ("Sampling", decoder(), {"min_tokens_to_keep": 20}, "min_tokens_to_keep must be less"),
    ("GreedySearch", decoder(), {"vocab_size": 99}, "vocab_size must be at most 20"),
])
def test_what_is_no_decoder(op_type: str, graph: Any, attributes: dict[str, Any], text: str) -> None:
    feeds = {"input_ids": IDS, "max_length": ints(6)} | ({"num_beams": ints(2), "num_return_sequences": ints(1)} if op_type == "BeamSearch" else {})
    with pytest.raises((ModelError, ShapeError), match=f"{op_type} the_search.*{text}"):
        gpuonnx.load(search(op_type, feeds, graph, **attributes), device="cpu").run(feeds)


@pytest.mark.parametrize(("changed", "text"), [({"max_length": ints(3)}, "max_length must be more than"), ({"num_return_sequences": ints(3)}, "at most num_beams"),
                                               ({"num_beams": ints(0)}, "num_beams must be at least 1"), ({"max_length": ints(6, 6)}, "2 elements"),
                                               ({"decoder_input_ids": IDS}, "decoder_input_ids.*supported for sound only")])
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


@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
@pytest.mark.parametrize("op_type", ["GreedySearch", "BeamSearch", "Sampling"])
def test_a_past_in_buffers_is_a_past(op_type: str, device: str) -> None:
    feeds = {"input_ids": np.array([[5, 6, 7], [0, 9, 2]], np.int32), "max_length": ints(9)}
    feeds |= {"num_beams": ints(3), "num_return_sequences": ints(2)} if op_type == "BeamSearch" else {"seed": ints(5)} if op_type == "Sampling" else {}
    attributes = {"top_p": 0.9} if op_type == "Sampling" else {}
    found = [gpuonnx.load(search(op_type, feeds, decoder(seed=3, eos_bias=-3, buffered=buffered), **attributes), device=device).run(feeds)["sequences"]
             for buffered in (False, True)]
    assert found[0].tolist() == found[1].tolist()


SOUND = np.random.default_rng(1).standard_normal((2, 3, 6)).astype(np.float32)
SPOKEN = {"input_ids": SOUND, "max_length": ints(9), "num_beams": ints(3), "num_return_sequences": ints(2), "decoder_input_ids": ints(4, 5, 4, 6).reshape(2, 2)}


@pytest.mark.parametrize("attention", ["MultiHeadAttention", "DecoderMaskedMultiHeadAttention"])
@pytest.mark.parametrize("op_type", ["BeamSearch", "WhisperBeamSearch"])
def test_a_past_in_buffers_behind_an_encoder(op_type: str, attention: str) -> None:
    """ONNX Runtime hands such a decoder memory that nobody has written, on the CPU."""
    found = []
    for buffered in (False, True):
        encoder, after = listener(attention=attention if buffered else "MultiHeadAttention", buffered=buffered)
        model = search(op_type, SPOKEN, after, 2, encoder=encoder, model_type=2, decoder_start_token_id=2)
        found.append(gpuonnx.load(model, device="cpu").run(SPOKEN))
    assert found[0]["sequences"].tolist() == found[1]["sequences"].tolist()
    np.testing.assert_allclose(found[0]["sequences_scores"], found[1]["sequences_scores"], rtol=1e-5)


def test_how_likely_it_is_that_nobody_speaks() -> None:
    encoder, after = listener()
    model = search("WhisperBeamSearch", SPOKEN, after, 5, encoder=encoder, decoder_start_token_id=2, no_speech_token_id=7)
    made = gpuonnx.load(model, device="cpu").run(SPOKEN)
    alone = helper.make_model(encoder, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9)
    scores = gpuonnx.run(alone, {"encoder_input_ids": SOUND, "decoder_input_ids": SPOKEN["decoder_input_ids"]}, device="cpu")["logits"][:, -1]
    np.testing.assert_allclose(made["silence"], np.exp(scores[:, 7]) / np.exp(scores).sum(1), rtol=1e-5)


@pytest.mark.parametrize(("more", "attributes", "text"), [
    ({"extra_decoding_ids": ints(3, 4)[:, None]}, {}, "cross_qk"), ({"logits_processor": ints(2)}, {}, "logits_processor 2"),
    ({"logits_processor": ints(1)}, {}, "logits_processor 1 without beginning_timestamp_token_id")])
def test_what_is_no_listener(more: dict[str, np.ndarray], attributes: dict[str, Any], text: str) -> None:
    encoder, after = listener()
    model = search("WhisperBeamSearch", SPOKEN | more, after, encoder=encoder, decoder_start_token_id=2, **attributes)
    with pytest.raises(ModelError, match=f"WhisperBeamSearch the_search.*{text}"):
        gpuonnx.load(model, device="cpu").run(SPOKEN | more)


SHARES = np.array([0.05, 0.4, 0.15, 0.1, 0.3])


def always(shares: np.ndarray) -> onnx.GraphProto:
    """Whatever the words, the next one is drawn by `shares`: the counter's scores are distances from position 2."""
    graph = counter(len(shares))
    next(t for t in graph.initializer if t.name == "every").CopyFrom(numpy_helper.from_array((2 - np.log(shares)).astype(np.float32), "every"))
    return graph


def drawn(device: str, more: dict[str, np.ndarray], rows: int = 4000, **attributes: Any) -> np.ndarray:
    """How often each word came behind a prompt."""
    feeds = {"input_ids": np.tile(ints(3, 2, 4), (rows, 1)), "max_length": ints(4), "seed": ints(3)} | more
    made = gpuonnx.load(search("Sampling", feeds, always(SHARES), eos_token_id=9, **attributes), device=device).run(feeds)["sequences"]
    return np.bincount(made[:, 3], minlength=5) / rows


@pytest.mark.parametrize(("attributes", "shares"), [
    ({"top_p": 1.0}, SHARES), ({"top_p": 1.0, "temperature": 2.0}, SHARES**0.5), ({"top_p": 1.0, "temperature": 0.0}, SHARES),
    ({"top_p": 0.45}, SHARES * (SHARES > 0.2)), ({"top_p": 0.35, "min_tokens_to_keep": 3}, SHARES * (SHARES > 0.12)),
    ({"top_p": 0.0}, np.ones(5)), ({"top_p": 0.0, "custom": 1}, np.eye(5)[1]), ({"top_p": 0.6, "filter_value": -1.0}, np.array([0.368, 0.4, 0.368, 0.368, 0.3])),
    ({"top_p": 1.0, "presence_penalty": 1.0}, SHARES * np.exp([0, -1, 0, 0, 0]))])
@pytest.mark.parametrize("device", ["cpu", "emulated-cuda"])
def test_words_are_drawn_by_their_scores(attributes: dict[str, Any], shares: np.ndarray, device: str) -> None:
    """Against what ONNX Runtime's documents say; against itself in test_generate_onnxruntime.py. Four deviations are allowed."""
    rows = 4000 if device == "cpu" else 300
    more = {"presence_mask": np.tile(ints(0, 1, 0, 0, 0), (rows, 1))} if "presence_penalty" in attributes else {}
    wanted = shares / shares.sum()
    assert (np.abs(drawn(device, more, rows, **attributes) - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / rows)).all()


def test_a_seed_draws_the_same_words_and_none_draws_others() -> None:
    feeds = {"input_ids": IDS, "max_length": ints(20)}
    session = gpuonnx.load(search("Sampling", feeds | {"seed": ints(1)}, decoder(eos_bias=-9), 2, top_p=1.0), device="cpu")
    first, again, other = (session.run(feeds | {"seed": ints(k)})["sequences"].tolist() for k in (1, 1, 2))
    assert first == again != other
    free = gpuonnx.load(search("Sampling", feeds, decoder(eos_bias=-9), top_p=1.0), device="cpu")
    assert free.run(feeds)["sequences"].tolist() != free.run(feeds)["sequences"].tolist()
