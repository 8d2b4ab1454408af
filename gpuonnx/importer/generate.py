"""GreedySearch and BeamSearch of com.microsoft: the decoder once for the prompt, in place; then a Loop whose body is the decoder for one more word
and a step of ops/search_steps.py."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import ModelError
from gpuonnx.importer.control import Lowering, Results, loop, within
from gpuonnx.importer.decoders import STEPPED, Start, begin, number, translate
from gpuonnx.ir.build import Tensor, builder, const, dim, full, size_scalar, tensor_map
from gpuonnx.ir.expr import guard
from gpuonnx.ir.formula import both, equal, less, select
from gpuonnx.ops.activation import softmax
from gpuonnx.ops.random import key_of
from gpuonnx.ops.search_steps import NONE, SEARCH, Kept, beam_step, best_sequences, following, greedy_step, last_scores, sample_step

if TYPE_CHECKING:
    import onnx

    from gpuonnx.importer.lower import Frame

GREEDY = ("input_ids", "max_length", "min_length", "repetition_penalty", "vocab_mask", "prefix_vocab_mask", "attention_mask")
BEAM = ("input_ids", "max_length", "min_length", "num_beams", "num_return_sequences", "length_penalty", "repetition_penalty", "vocab_mask",
        "prefix_vocab_mask", "attention_mask", "decoder_input_ids", "logits_processor")
SAMPLED = ("custom", "filter_value", "min_tokens_to_keep", "presence_penalty", "temperature", "top_p")
NEEDED = ("input_ids", "max_length", "num_beams", "num_return_sequences")
CROSS = ("cross_qk_layer_head", "extra_decoding_ids")
WHISPER = (*BEAM, *CROSS, "temperature")
TIMES = ("beginning_timestamp_token_id", "eos_token_id", "decoder_start_token_id", "translate_token_id", "transcribe_token_id",
         "start_of_lm_token_id", "no_timestamps_token_id")
WORST = -1e9
OWN = "gpuonnx.search."


@dataclass(frozen=True)
class Loop:
    """A decoder and the step behind it as the body of a Loop. reads and gives: names of the step's inputs and outputs; what is given and carried
    has one name; scans are given too. rules: what the step reads and never changes."""

    start: Start
    step: str
    rules: Mapping[str, Tensor | None]
    reads: Sequence[str]
    gives: Sequence[str]
    scans: Sequence[str] = ()

    def body(self, carried: Sequence[str], attributes: Mapping[str, Any]) -> Any:
        """(number, condition, carried) -> (condition, carried, scans)"""
        import onnx
        graph, decoder = onnx.GraphProto(), self.start.decoder
        graph.initializer.extend(decoder.initializer)
        graph.sparse_initializer.extend(decoder.sparse_initializer)
        for name in (OWN + "number", OWN + "condition", *carried):
            graph.input.add(name=name)
        graph.node.extend(decoder.node)
        reads = ["" if name in self.rules and self.rules[name] is None else name for name in self.reads]
        fed = [name if name in self.start.fed else "" for name in STEPPED]
        made = {past: present for past, present in self.start.pasts} | {name: OWN + "next." + name for name in [*self.gives, *fed]} | {"": ""}
        for step, inputs, names, given in ((self.step, reads, self.gives, attributes), ("Following", fed, fed, {})):
            graph.node.append(onnx.helper.make_node(step, inputs, [made[name] for name in names], domain=SEARCH, **given))
        for name in (OWN + "condition", *carried, *self.scans):
            graph.output.add(name=made[name])
        return graph

    def run(self, frame: Frame, going: Tensor, state: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is carried after the last turn, and the scans. `state`: what the first step gives, and the pasts."""
        fed = dict(zip(STEPPED, following(*map(self.start.fed.get, STEPPED)), strict=True))
        carried = {**state, **{name: t for name, t in fed.items() if t is not None}}
        scope = {**{name: t for name, t in self.rules.items() if t is not None}, **self.start.fixed}
        results = loop(within(frame, scope), self.body(list(carried), attributes), size_scalar(self.start.more - 1), going, list(carried.values()))
        return {name: t for name, t in zip([*carried, *self.scans], results, strict=True) if t is not None}


def named(names: Sequence[str], inputs: Sequence[Tensor | None], required: Sequence[str]) -> dict[str, Tensor | None]:
    found = dict(zip(names, [*inputs, *[None] * (len(names) - len(inputs))], strict=True))
    missing = [n for n in required if found[n] is None]
    if missing:
        raise ModelError(f"{builder().origin}: the input {missing[0]} is missing")
    return found


def settings(attributes: Mapping[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    """Attributes of the step."""
    for name in ("eos_token_id", "pad_token_id"):
        if name not in attributes:
            raise ModelError(f"{builder().origin}: the attribute {name} is missing")
    return {k: attributes[k] for k in ("eos_token_id", "pad_token_id", "no_repeat_ngram_size", "vocab_size", *more) if k in attributes}


def lower_greedy(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    given = named(GREEDY, inputs, GREEDY[:2])
    return [word_by_word(frame, given, attributes, settings(attributes), greedy_step, "GreedyStep", {})[OWN + "sequences"]]


def lower_sampling(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    given = named((*GREEDY, "presence_mask", "seed"), inputs, GREEDY[:2])
    seed = given["seed"]
    rules = {"presence_mask": given["presence_mask"], "key": key_of(None) if seed is None else seed.reshape().cast("i64")}
    found = word_by_word(frame, given, attributes, settings(attributes, SAMPLED), sample_step, "SampleStep", rules, ["filtered"])
    return [found[OWN + "sequences"], found[OWN + "filtered"]]


def word_by_word(frame: Frame, given: Mapping[str, Any], attributes: Mapping[str, Any], options: Mapping[str, Any],
                 function: Callable[..., tuple[Tensor, ...]], name: str, more: dict[str, Tensor | None],
                 gives: Sequence[str] = ()) -> dict[str, Tensor]:
    """One sequence a batch entry, each word by `function`, the step called `name`: what is carried after the last."""
    if attributes.get("model_type", 0) != 0 or "encoder" in attributes:
        raise ModelError(f"{builder().origin}: model_type {attributes.get('model_type', 0)}, or an encoder, is not supported; "
                         "a decoder alone (model_type 0) is")
    start = begin(frame, attributes, given, 1)
    kinds = {k: given[k] for k in ("min_length", "repetition_penalty", "vocab_mask")} | more
    rules, own = {OWN + k: t for k, t in kinds.items()}, [OWN + k for k in ("sequences", "length", "done")]
    step = Loop(start, name, rules, ["logits", *own, *rules], [OWN + "condition", "input_ids", *own, *(OWN + k for k in gives)])
    going, *state = function(start.logits, start.sequences, size_scalar(start.length), full((start.sequences.shape[0],), False, "bool"),
                             prefix_vocab_mask=given["prefix_vocab_mask"], **kinds, **options)
    carried = dict(zip(step.gives[1:], state, strict=True)) | {past: t for (past, _), t in start.pasts.items()}
    return step.run(frame, going, carried, options)


def lower_beam(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    return beam_search(frame, named(BEAM, inputs, NEEDED), attributes, len(node.output) > 2 and bool(node.output[2]))[:3]


def lower_whisper(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    """BeamSearch of sound, which gives the probability too that nobody speaks."""
    given, names = named(WHISPER, inputs, NEEDED), dict(zip(("sequences", "scores", "every", "cross_qk", "silence"), node.output, strict=False))
    if names.get("cross_qk") or any(given[n] is not None for n in CROSS):
        raise ModelError(f"{builder().origin}: cross_qk, {' and '.join(CROSS)} are not supported: what attention scores a decoder gives as outputs "
                         "of its own is ONNX Runtime's affair on CUDA only")
    found, scores, *every, first = beam_search(frame, given, {"model_type": 2, **attributes}, bool(names.get("every")))
    silence = softmax(first, axis=1).slice(1, attributes.get("no_speech_token_id", 0), 1).squeeze([1])
    return [found, scores, every[0] if every else None, None, silence]


def beam_search(frame: Frame, given: Mapping[str, Any], attributes: Mapping[str, Any], every: bool) -> list[Tensor]:
    """Sequences, their scores, the scores of all steps where `every` says so, and the scores [B, V] before all rules of the first step."""
    options, pad = settings(attributes, ["early_stopping"]), attributes["pad_token_id"]
    options |= {"times": times} if (times := spoken_times(given, attributes)) else {}
    beams, batch, kind = number(given["num_beams"]), given["input_ids"].shape[0], attributes.get("model_type", 0)
    builder().require(beams - 1, "num_beams must be at least 1")
    if kind not in (0, 1, 2) or ("encoder" in attributes) != (kind > 0):
        raise ModelError(f"{builder().origin}: model_type {kind} with{'' if 'encoder' in attributes else 'out'} an encoder is not supported; 0, a "
                         "decoder alone, 1, one behind an encoder of text, and 2, of sound, are")
    if kind != 2 and (given["decoder_input_ids"] is not None or given["logits_processor"] is not None):
        raise ModelError(f"{builder().origin}: decoder_input_ids and logits_processor are supported for sound only (model_type 2)")
    start = translate(frame, attributes, given, beams) if kind else begin(frame, attributes, given, beams)
    rules: dict[str, Any] = {OWN + k: given.get(k) for k in ("length_penalty", "min_length", "repetition_penalty", "vocab_mask", "temperature")}
    own = [OWN + k for k in ("sequences", "length", "sums", "kept_scores", "kept_words", "done")]
    gives = [OWN + "condition", "input_ids", *own, OWN + "scores", *(past for past, _ in start.pasts)]
    step = Loop(start, "BeamStep", rules, ["logits", *own, *rules, "", *(present for _, present in start.pasts)], gives,
                [OWN + "scores"] if every else [])
    sums = tensor_map((batch, beams), "f32", lambda b, k: select(equal(k, dim(0)), const(0.0, "f32"), const(WORST, "f32")))
    going, *state = beam_step(
        start.logits, start.sequences, size_scalar(start.length), sums, full((batch, beams), NONE, "f32"),
        full((batch, beams, start.sequences.shape[1]), pad, "i32"), full((batch,), False, "bool"), *rules.values(),
        given["prefix_vocab_mask"], *start.pasts.values(), **options)
    carried = dict(zip(gives[1:], state, strict=True))
    scores = carried.pop(OWN + "scores")
    last = step.run(frame, going, carried, options)
    kept = Kept(last[OWN + "kept_scores"], last[OWN + "kept_words"])
    found = best_sequences(last[OWN + "sequences"], last[OWN + "length"], last[OWN + "sums"], kept, last[OWN + "done"], given["length_penalty"], pad,
                           number(given["num_return_sequences"]))
    raw = last_scores(start.logits, options.get("vocab_size", -1))
    first = tensor_map((batch, raw.shape[1]), raw.dtype, lambda b, v: raw.at(b * dim(beams), v))
    if not step.scans:
        return [*found, first]
    later = last[OWN + "scores"]
    return [*found, tensor_map((start.more, *scores.shape), "f32", lambda t, *i: select(equal(t, dim(0)), scores.at(*i), guard(
        both(less(dim(0), t), less(t, dim(later.shape[0] + 1))), later.at(t - 1, *i), const(0.0, "f32")))), first]


def spoken_times(given: Mapping[str, Any], attributes: Mapping[str, Any]) -> list[int]:
    """The words of timed(), where the input logits_processor asks for its rules."""
    kind = 0 if given["logits_processor"] is None else int(builder().numbers(given["logits_processor"]).reshape(-1)[0])
    if kind == 0:
        return []
    missing = [n for n in TIMES if n not in attributes]
    if kind != 1 or missing:
        raise ModelError(f"{builder().origin}: logits_processor {kind}{' without ' + missing[0] if missing else ''} is not supported; 0, none, and "
                         f"1, the times of Whisper with {', '.join(TIMES)}, are")
    return [attributes[n] for n in TIMES]


LOWERINGS: dict[tuple[str, str], Lowering] = {("com.microsoft", name): lowering for name, lowering in (
    ("GreedySearch", lower_greedy), ("Sampling", lower_sampling), ("BeamSearch", lower_beam), ("WhisperBeamSearch", lower_whisper))}
