"""GreedySearch and BeamSearch against ONNX Runtime."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from decoders import counter, decoder, search, translator

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
