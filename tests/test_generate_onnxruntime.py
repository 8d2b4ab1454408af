"""GreedySearch and BeamSearch against ONNX Runtime."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from decoders import counter, decoder, listener, search, translator

import gpuonnx

onnxruntime = pytest.importorskip("onnxruntime", reason="com.microsoft operators are compared with ONNX Runtime: pip install gpuonnx[bench]")

VOCABULARY = 20


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def number(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def both(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    ours = gpuonnx.load(model, device="cpu", threads=1).run(feeds)
    return list(zip(ours.values(), theirs, strict=True))


def prompt(seed: int, batch: int = 2, length: int = 3) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(2, VOCABULARY, (batch, length))
    return {"input_ids": ids.astype(np.int32), "max_length": ints(length + 7), "min_length": ints(0)}


def masks(seed: int, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    allowed, first = (rng.random(VOCABULARY) < 0.7).astype(np.int32), (rng.random((batch, VOCABULARY)) < 0.7).astype(np.int32)
    allowed[:4], first[:, :4] = 1, 1
    return {"vocab_mask": allowed, "prefix_vocab_mask": first}


GREEDY: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "plain": ({}, {}), "least": ({"min_length": ints(6)}, {}), "penalty": ({"repetition_penalty": number(2.5)}, {}),
    "bonus": ({"repetition_penalty": number(0.6)}, {}), "masks": (masks(1), {}), "runs of 1": ({}, {"no_repeat_ngram_size": 1}),
    "runs of 2": ({}, {"no_repeat_ngram_size": 2}), "runs of 3": ({}, {"no_repeat_ngram_size": 3}), "all": ({"min_length": ints(5), "repetition_penalty": number(1.5), **masks(2)}, {"no_repeat_ngram_size": 2})}


@pytest.mark.parametrize(("bias", "seed"), [(-50.0, 0), (3.0, 1)])
@pytest.mark.parametrize("name", GREEDY)
def test_greedy(name: str, bias: float, seed: int) -> None:
    """ONNX Runtime leaves what is behind the end of all sequences as it finds it in memory; here it is padding."""
    more, attributes = GREEDY[name]
    feeds = prompt(seed) | more
    ((ours, theirs),) = both(search("GreedySearch", feeds, decoder(VOCABULARY, seed=seed, eos_bias=bias), **attributes), feeds)
    used = max((np.flatnonzero(row)[-1] + 1 for row in ours), default=0)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert ours[:, :used].tolist() == theirs[:, :used].tolist() and not ours[:, used:].any()


@pytest.mark.parametrize("of", ["position_ids", "attention_mask"])
@pytest.mark.parametrize(("ids", "mask"), [([5, 6, 7, 8], None), ([0, 6, 7, 8], None), ([5, 6, 0, 8], None), ([5, 6, 7, 0], None), ([5, 6, 7, 8], [0, 1, 1, 1]),
                                           ([5, 6, 7, 8], [1, 1, 0, 1]), ([0, 6, 7, 8], [1, 1, 1, 1]), ([0, 6, 7, 8], [0, 1, 1, 1])])
def test_positions_and_masks_of_padded_prompts(ids: list[int], mask: list[int] | None, of: str) -> None:
    feeds = {"input_ids": ints(*ids)[None], "max_length": ints(8), "min_length": ints(0)} | ({} if mask is None else {"attention_mask": ints(*mask)[None]})
    ((ours, theirs),) = both(search("GreedySearch", feeds, counter(of=of)), feeds)
    assert ours.tolist() == theirs.tolist()


BEAMS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "one beam": ({"num_beams": ints(1), "num_return_sequences": ints(1)}, {}), "four beams": ({"num_beams": ints(4), "num_return_sequences": ints(4)}, {}),
    "short": ({"length_penalty": number(-1.0)}, {}), "long": ({"length_penalty": number(2.0)}, {}), "early": ({}, {"early_stopping": 1}),
    "one step": ({"max_length": ints(4)}, {})} | GREEDY


@pytest.mark.parametrize("bias", [-50.0, 2.0])
@pytest.mark.parametrize("name", BEAMS)
def test_beams(name: str, bias: float) -> None:
    """One batch entry at a time, and two with the same answers: in ONNX Runtime a batch entry's end hangs on the scores of the entry before. It
    leaves scores of steps that are not taken as it finds them in memory."""
    more, attributes = BEAMS[name]
    neutral = {"length_penalty": number(1.0), "repetition_penalty": number(1.0), "vocab_mask": np.ones(VOCABULARY, np.int32),
               "prefix_vocab_mask": np.ones((2, VOCABULARY), np.int32)}
    feeds = prompt(3) | {"num_beams": ints(3), "num_return_sequences": ints(2)} | neutral | more
    model = search("BeamSearch", feeds, decoder(VOCABULARY, seed=3, eos_bias=bias), 3, **attributes)
    session, entries = gpuonnx.load(model, device="cpu", threads=1), []
    for b in range(2):
        one = feeds | {k: feeds[k][b:b + 1] for k in ("input_ids", "prefix_vocab_mask")}
        (ours, theirs), (scores, their_scores), (every, their_every) = both(model, one)
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()
        np.testing.assert_allclose(scores, their_scores, rtol=1e-4, atol=1e-4)
        steps = np.flatnonzero(every.any((1, 2, 3)))[-1] + 1
        assert every.shape == their_every.shape
        np.testing.assert_allclose(every[:steps], their_every[:steps], rtol=1e-4, atol=1e-3)
        entries.append((ours, scores))
    whole, together = list(session.run(feeds).values())[:2]
    assert whole.tolist() == np.concatenate([e[0] for e in entries]).tolist()
    np.testing.assert_allclose(together, np.concatenate([e[1] for e in entries]), rtol=1e-4, atol=1e-5)


def translation(more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    neutral = {"length_penalty": number(1.0), "repetition_penalty": number(1.0), "vocab_mask": np.ones(VOCABULARY, np.int32),
               "prefix_vocab_mask": np.ones((1, VOCABULARY), np.int32)}
    return prompt(3, 1, 4) | {"max_length": ints(8), "num_beams": ints(3), "num_return_sequences": ints(2)} | neutral | more


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("bias", [-50.0, 2.0])
@pytest.mark.parametrize("more", [{}, {"input_ids": ints(0, 6, 0, 0)[None]}, {"input_ids": ints(5, 6, 7, 8)[None], "attention_mask": ints(1, 0, 1, 1)[None]},
                                  {"repetition_penalty": number(2.0), "min_length": ints(5), "num_beams": ints(4)}, {"max_length": ints(3)}])
def test_beams_behind_an_encoder(more: dict[str, np.ndarray], bias: float, whole: bool) -> None:
    encoder, after = translator(VOCABULARY, 5, bias, whole)
    feeds = translation(more)
    model = search("BeamSearch", feeds, after, 3, encoder=encoder, model_type=1, decoder_start_token_id=2)
    (ours, theirs), (scores, their_scores), (every, their_every) = both(model, feeds)
    steps = np.flatnonzero(every.any((1, 2, 3)))[-1] + 1
    assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist() and every.shape == their_every.shape
    np.testing.assert_allclose(scores, their_scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(every[:steps], their_every[:steps], rtol=1e-4, atol=1e-3)


SPOKEN = {"input_ids": np.random.default_rng(1).standard_normal((1, 3, 6)).astype(np.float32), "max_length": ints(12), "min_length": ints(0),
          "num_beams": ints(3), "num_return_sequences": ints(2), "length_penalty": number(1), "repetition_penalty": number(1)}
TIMES = {"beginning_timestamp_token_id": 12, "translate_token_id": 8, "transcribe_token_id": 9, "start_of_lm_token_id": 10, "no_timestamps_token_id": 11}


def same_steps(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Sequences, their scores and the scores of the steps that are taken."""
    (ours, theirs), (scores, their_scores), (every, their_every) = pairs
    assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist() and every.shape == their_every.shape
    np.testing.assert_allclose(scores, their_scores, rtol=1e-4, atol=1e-4)
    steps = np.flatnonzero(every.any((1, 2, 3)))[-1] + 1
    np.testing.assert_allclose(every[:steps], their_every[:steps], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("op_type", ["BeamSearch", "WhisperBeamSearch"])
@pytest.mark.parametrize("bias", [-50.0, 2.0])
@pytest.mark.parametrize("more", [{}, {"decoder_input_ids": ints(4, 5)[None]}, {"decoder_input_ids": ints(4)[None], "max_length": ints(3)},
                                  {"repetition_penalty": number(2), "min_length": ints(5), "num_beams": ints(1), "num_return_sequences": ints(1)}])
def test_beams_behind_an_encoder_of_sound(more: dict[str, np.ndarray], bias: float, op_type: str) -> None:
    encoder, after = listener(VOCABULARY, 5, bias)
    feeds = SPOKEN | {"decoder_input_ids": ints(2)[None], "vocab_mask": np.ones(VOCABULARY, np.int32)} | more
    same_steps(both(search(op_type, feeds, after, 3, encoder=encoder, model_type=2, decoder_start_token_id=2), feeds))


@pytest.mark.parametrize("words", [[4, 5], [7, 8, 3], [13, 5], [13, 14], [13, 14, 5], [13, 5, 20], [20, 5], [5, 13], [70], [13, 5, 20, 21, 6, 22]])
@pytest.mark.parametrize("seed", [0, 1])
def test_times_that_are_spoken(words: list[int], seed: int) -> None:
    encoder, after = listener(80, seed, 2.0 - seed)
    feeds = SPOKEN | {"decoder_input_ids": ints(*words)[None], "max_length": ints(len(words) + 7), "logits_processor": ints(1), "temperature": number(1.5),
                      "vocab_mask": np.ones(80, np.int32), "num_return_sequences": ints(1)}
    model = search("WhisperBeamSearch", feeds, after, 3, encoder=encoder, model_type=2, decoder_start_token_id=7, eos_token_id=6, **TIMES)
    same_steps(both(model, feeds))


@pytest.mark.parametrize("attributes", [{"top_p": 1e-4, "min_tokens_to_keep": 1}, {"top_p": 1e-4, "custom": 1}, {"top_p": 1e-4, "temperature": 3.0, "no_repeat_ngram_size": 1}])
@pytest.mark.parametrize("bias", [-50.0, 3.0])
def test_a_draw_from_one_word(attributes: dict[str, Any], bias: float) -> None:
    feeds = prompt(4) | {"seed": ints(1), "repetition_penalty": number(1.2)}
    ((ours, theirs),) = both(search("Sampling", feeds, decoder(VOCABULARY, seed=4, eos_bias=bias), **attributes), feeds)
    used = max((np.flatnonzero(row)[-1] + 1 for row in ours), default=0)
    assert ours.dtype == theirs.dtype and ours[:, :used].tolist() == theirs[:, :used].tolist()


@pytest.mark.parametrize("attributes", [{"top_p": 1.0}, {"top_p": 0.7}, {"top_p": 0.5, "min_tokens_to_keep": 4}, {"top_p": 0.5, "custom": 1, "min_tokens_to_keep": 4},
                                        {"top_p": 0.8, "temperature": 1.7}, {}, {"top_p": 0.3, "filter_value": -3.0}])
def test_draws_are_distributed_alike(attributes: dict[str, Any]) -> None:
    """The same prompt 3,000 times: no word is drawn more often by one than by the other beyond five deviations."""
    rows = 3000
    feeds = {"input_ids": np.tile(ints(5, 6, 7), (rows, 1)), "max_length": ints(4), "min_length": ints(0), "seed": ints(2)}
    model = search("Sampling", feeds, decoder(8, 1, seed=4, eos_bias=-50.0), **attributes)
    ours, theirs = (np.bincount(made[:, 3], minlength=8) / rows for made in both(model, feeds)[0])
    share = (ours + theirs) / 2
    assert (np.abs(ours - theirs) <= 5 * np.sqrt(2 * share * (1 - share) / rows)).all()
