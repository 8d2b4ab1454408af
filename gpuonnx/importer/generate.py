"""GreedySearch and BeamSearch of com.microsoft: the decoder once for the prompt, in place; then a Loop whose body is the decoder for one more word
and a step of ops/search_steps.py."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import ModelError
from gpuonnx.importer.control import Lowering, Results, loop, within
from gpuonnx.importer.procedure import type_name
from gpuonnx.ir.build import Tensor, builder, cast, const, dim, full, size_scalar, tensor_map, tensor_prefix
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import guard
from gpuonnx.ir.formula import both, equal, less, not_equal, select
from gpuonnx.ops.search_steps import NONE, SEARCH, Kept, beam_step, best_sequences, greedy_step

if TYPE_CHECKING:
    import onnx

    from gpuonnx.importer.lower import Frame

GREEDY = ("input_ids", "max_length", "min_length", "repetition_penalty", "vocab_mask", "prefix_vocab_mask", "attention_mask")
BEAM = ("input_ids", "max_length", "min_length", "num_beams", "num_return_sequences", "length_penalty", "repetition_penalty", "vocab_mask",
        "prefix_vocab_mask", "attention_mask", "decoder_input_ids", "logits_processor")
FED = ("input_ids", "position_ids", "attention_mask")
WORST = -1e9
OWN = "gpuonnx.search."


@dataclass(frozen=True)
class Decoder:
    """A sub-graph from input_ids[R, S], position_ids[R, S], attention_mask[R, T] and pasts[2, R, heads, P, size] to logits[R, S, V] and
    presents[2, R, heads, T, size]."""

    name: str
    graph: onnx.GraphProto
    layers: int

    @staticmethod
    def of(name: str, graph: Any) -> Decoder:
        if graph is None:
            raise ModelError(f"{builder().origin}: the sub-graph {name} is missing")
        inputs, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
        layers = len(inputs) - len(FED)
        wanted = [*FED, *(f"past_{k}" for k in range(layers))], ["logits", *(f"present_{k}" for k in range(layers))]
        if layers < 1 or inputs != wanted[0] or outputs != wanted[1]:
            raise ModelError(f"{builder().origin}: {name} goes from {', '.join(inputs)} to {', '.join(outputs)}; input_ids, position_ids, "
                             "attention_mask, past_0, ... to logits, present_0, ... is expected")
        return Decoder(name, graph, layers)

    def empty_pasts(self, rows: Dim) -> list[Tensor]:
        """Pasts without columns, of the heads and sizes that the sub-graph declares."""
        made = []
        for info in self.graph.input[len(FED):]:
            dtype, dims = type_name(info.type)
            if dims is None or len(dims) != 5 or not isinstance(dims[2], int) or not isinstance(dims[4], int):
                raise ModelError(f"{builder().origin}: {info.name} of {self.name} is declared as {list(dims or ())}; [2, batch, heads, columns, "
                                 "size] with numbers for heads and size is expected")
            made.append(full((2, rows, dims[2], 0, dims[4]), 0, dtype))
        return made

    def run(self, frame: Frame, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """In place: logits and presents."""
        from gpuonnx.importer.lower import inline
        logits, *presents = inline(frame, self.graph, {i.name: t for i, t in zip(self.graph.input, tensors, strict=True)})
        return logits, presents


@dataclass(frozen=True)
class Prompt:
    """Sequences [R, M] that begin with the prompt, its words [R, S], their positions and mask, the last position [R, 1], and how many words there
    are to come at most."""

    sequences: Tensor
    words: Tensor
    positions: Tensor
    mask: Tensor
    last: Tensor
    more: Dim

    @staticmethod
    def of(ids: Tensor, mask: Tensor | None, longest: Tensor, beams: Dim, pad: int) -> Prompt:
        """Each row of ids[B, S] `beams` times. Without a mask[B, S] all but padding is seen; positions count all but padding, as ONNX
        Runtime has it."""
        if ids.rank != 2:
            raise ModelError(f"{builder().origin}: input_ids of shape {list(ids.shape)}; [batch, words] is expected")
        batch, length = ids.shape
        most = number(longest)
        builder().require(most - length - 1, f"max_length must be more than the {length} words of the prompt")
        shape = (batch * beams, length)
        words = tensor_map(shape, "i32", lambda r, s: cast(ids.at(r // dim(beams), s), "i32"))
        counted = tensor_map(shape, "i32", lambda r, s: cast(not_equal(words.at(r, s), pad), "i32"))
        shown = counted if mask is None else tensor_map(shape, "i32", lambda r, s: cast(mask.at(r // dim(beams), s), "i32"))
        before = tensor_prefix(counted, 1, exclusive=True)
        positions = tensor_map(shape, "i32", lambda r, s: select(equal(counted.at(r, s), 0), const(0, "i32"), before.at(r, s)))
        sequences = tensor_map((shape[0], most), "i32", lambda r, m: guard(less(m, dim(length)), words.at(r, m), const(pad, "i32")))
        return Prompt(sequences, words, positions, shown, counted.sum([1], keepdims=True) - 1, most - length)


def number(t: Tensor) -> Dim:
    """The only element of a tensor."""
    found = builder().read(t).ravel()
    if len(found) != 1:
        raise ModelError(f"{builder().origin}: {t.value.name or 'a size'} has {len(found)} elements, not 1")
    value: Dim = found[0]
    return value


@dataclass(frozen=True)
class Loop:
    """A decoder and the step behind it as the body of a Loop. `fixed`: what the step reads and never changes, by name; `state`: what both
    carry, by name: the decoder's inputs first, then the step's own."""

    decoder: Decoder
    step: str
    fixed: Mapping[str, Tensor | None]
    reads: Sequence[str]
    gives: Sequence[str]
    scans: Sequence[str] = ()

    def body(self, carried: Sequence[str], attributes: Mapping[str, Any]) -> Any:
        """(number, condition, carried) -> (condition, carried, scans)"""
        import onnx
        graph = onnx.GraphProto()
        graph.initializer.extend(self.decoder.graph.initializer)
        graph.sparse_initializer.extend(self.decoder.graph.sparse_initializer)
        for name in (OWN + "number", OWN + "condition", *carried):
            graph.input.add(name=name)
        graph.node.extend(self.decoder.graph.node)
        reads = ["" if name in self.fixed and self.fixed[name] is None else name for name in self.reads]
        outputs = [OWN + "next." + name for name in self.gives]
        graph.node.append(onnx.helper.make_node(self.step, reads, outputs, domain=SEARCH, **attributes))
        made = dict(zip(self.gives, outputs, strict=True)) | {f"past_{k}": o.name for k, o in enumerate(self.decoder.graph.output[1:])}
        made |= {name: OWN + "next." + name for name in self.gives}
        for name in (OWN + "condition", *carried, *self.scans):
            graph.output.add(name=made[name])
        return graph

    def run(self, frame: Frame, trips: Dim, going: Tensor, state: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is carried after the last turn, and the scans."""
        scope = {name: t for name, t in self.fixed.items() if t is not None}
        results = loop(within(frame, scope), self.body(list(state), attributes), size_scalar(trips), going, list(state.values()))
        return {name: t for name, t in zip([*state, *self.scans], results, strict=True) if t is not None}


def named(names: Sequence[str], inputs: Sequence[Tensor | None], required: Sequence[str]) -> dict[str, Tensor | None]:
    found = dict(zip(names, [*inputs, *[None] * (len(names) - len(inputs))], strict=True))
    missing = [n for n in required if found[n] is None]
    if missing:
        raise ModelError(f"{builder().origin}: the input {missing[0]} is missing")
    return found


def settings(attributes: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """Attributes of the step."""
    for name in ("eos_token_id", "pad_token_id"):
        if name not in attributes:
            raise ModelError(f"{builder().origin}: the attribute {name} is missing")
    return {k: attributes[k] for k in ("eos_token_id", "pad_token_id", "no_repeat_ngram_size", "vocab_size", *more) if k in attributes}


def decoders(attributes: Mapping[str, Any]) -> tuple[Decoder, Decoder]:
    """For the prompt, and for what comes after it."""
    if attributes.get("model_type", 0) != 0 or "encoder" in attributes:
        raise ModelError(f"{builder().origin}: model_type {attributes.get('model_type', 0)}, or an encoder, is not supported; "
                         "a decoder alone (model_type 0) is")
    after = Decoder.of("decoder", attributes.get("decoder"))
    first = Decoder.of("init_decoder", attributes["init_decoder"]) if "init_decoder" in attributes else after
    if first.layers != after.layers:
        raise ModelError(f"{builder().origin}: init_decoder has {first.layers} presents, decoder {after.layers}")
    return first, after


def lower_greedy(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    given: dict[str, Any] = named(GREEDY, inputs, GREEDY[:2])
    first, after = decoders(attributes)
    options = settings(attributes)
    prompt = Prompt.of(given["input_ids"], given["attention_mask"], given["max_length"], 1, attributes["pad_token_id"])
    rows = prompt.words.shape[0]
    logits, pasts = first.run(frame, [prompt.words, prompt.positions, prompt.mask, *first.empty_pasts(rows)])
    rules = ("min_length", "repetition_penalty", "vocab_mask")
    fixed = {OWN + k: given[k] for k in rules}
    own = [OWN + k for k in ("sequences", "length", "done")]
    gives = [OWN + "condition", *FED, *own]
    step = Loop(after, "GreedyStep", fixed, ["logits", *own, *FED[1:], *fixed], gives)
    going, *state = greedy_step(logits, prompt.sequences, size_scalar(prompt.words.shape[1]), full((rows,), False, "bool"), prompt.last, prompt.mask,
                                prefix_vocab_mask=given["prefix_vocab_mask"], **{k: given[k] for k in rules}, **options)
    carried = dict(zip(gives[1:], state, strict=True)) | {f"past_{k}": t for k, t in enumerate(pasts)}
    return [step.run(frame, prompt.more - 1, going, carried, options)[OWN + "sequences"]]


def lower_beam(frame: Frame, node: onnx.NodeProto, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]) -> Results:
    given: dict[str, Any] = named(BEAM, inputs, ("input_ids", "max_length", "num_beams", "num_return_sequences"))
    if given["decoder_input_ids"] is not None or given["logits_processor"] is not None:
        raise ModelError(f"{builder().origin}: decoder_input_ids and logits_processor are not supported")
    first, after = decoders(attributes)
    options, pad = settings(attributes, "early_stopping"), attributes["pad_token_id"]
    beams = number(given["num_beams"])
    builder().require(beams - 1, "num_beams must be at least 1")
    prompt = Prompt.of(given["input_ids"], given["attention_mask"], given["max_length"], beams, pad)
    batch, rows = given["input_ids"].shape[0], prompt.words.shape[0]
    logits, presents = first.run(frame, [prompt.words, prompt.positions, prompt.mask, *first.empty_pasts(rows)])
    fixed = {OWN + k: given[k] for k in ("length_penalty", "min_length", "repetition_penalty", "vocab_mask")}
    own = [OWN + k for k in ("sequences", "length", "sums", "kept_scores", "kept_words", "done")]
    pasts = [f"past_{k}" for k in range(after.layers)]
    gives = [OWN + "condition", *FED, *own, OWN + "scores", *pasts]
    step = Loop(after, "BeamStep", fixed, ["logits", *own, *FED[1:], *fixed, "", *(f"present_{k}" for k in range(after.layers))], gives,
                [OWN + "scores"] if len(node.output) > 2 and node.output[2] else [])
    sums = tensor_map((batch, beams), "f32", lambda b, k: select(equal(k, dim(0)), const(0.0, "f32"), const(WORST, "f32")))
    going, *state = beam_step(
        logits, prompt.sequences, size_scalar(prompt.words.shape[1]), sums, full((batch, beams), NONE, "f32"),
        full((batch, beams, prompt.sequences.shape[1]), pad, "i32"), full((batch,), False, "bool"), prompt.last, prompt.mask, *fixed.values(),
        given["prefix_vocab_mask"], *presents, **options)
    carried = dict(zip(gives[1:], state, strict=True))
    scores = carried.pop(OWN + "scores")
    last = step.run(frame, prompt.more - 1, going, carried, options)
    kept = Kept(last[OWN + "kept_scores"], last[OWN + "kept_words"])
    found = best_sequences(last[OWN + "sequences"], last[OWN + "length"], last[OWN + "sums"], kept, last[OWN + "done"], given["length_penalty"], pad,
                           number(given["num_return_sequences"]))
    if not step.scans:
        return found
    later = last[OWN + "scores"]
    return [*found, tensor_map((prompt.more, *scores.shape), "f32", lambda t, *i: select(equal(t, dim(0)), scores.at(*i), guard(
        both(less(dim(0), t), less(t, dim(later.shape[0] + 1))), later.at(t - 1, *i), const(0.0, "f32"))))]


LOWERINGS: dict[tuple[str, str], Lowering] = {("com.microsoft", "GreedySearch"): lower_greedy, ("com.microsoft", "BeamSearch"): lower_beam}
