"""The first run of what GreedySearch and BeamSearch search through: a decoder alone, or one behind an encoder."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuonnx.errors import ModelError
from gpuonnx.importer.procedure import type_name
from gpuonnx.ir.build import Tensor, builder, cast, const, dim, full, size_scalar, tensor_map, tensor_prefix
from gpuonnx.ir.dims import Dim
from gpuonnx.ir.expr import guard
from gpuonnx.ir.formula import equal, less, not_equal, select
from gpuonnx.ir.types import compute

if TYPE_CHECKING:
    import onnx

    from gpuonnx.importer.lower import Frame

FED = ("input_ids", "position_ids", "attention_mask")
BESIDE = ("encoder_input_ids", "encoder_attention_mask", "encoder_hidden_states")
BUFFERED = ("past_sequence_length", "beam_width", "cache_indirection")
STEPPED = ("position_ids", "attention_mask", "past_sequence_length")
"""What a decoder is fed anew for every word, beside the word."""


@dataclass(frozen=True)
class Decoder:
    """A sub-graph from input_ids[R, S], position_ids[R, S], attention_mask[R, T] and pasts[2, R, heads, P, size] to logits[R, S, V] and
    presents[2, R, heads, T, size]; or, where it reads past_sequence_length, with buffers of one size for pasts and presents (`Buffers`)."""

    graph: onnx.GraphProto
    layers: int

    @staticmethod
    def of(name: str, graph: Any) -> Decoder:
        if graph is None:
            raise ModelError(f"{builder().origin}: the sub-graph {name} is missing")
        inputs, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
        given = [n for n in inputs if n not in BUFFERED]
        layers = len(given) - len(FED)
        wanted = [*FED, *(f"past_{k}" for k in range(layers))], ["logits", *(f"present_{k}" for k in range(layers))]
        if layers < 1 or given != wanted[0] or outputs != wanted[1]:
            raise ModelError(f"{builder().origin}: {name} goes from {', '.join(inputs)} to {', '.join(outputs)}; input_ids, position_ids, "
                             f"attention_mask, past_0, ... (and {', '.join(BUFFERED)}) to logits, present_0, ... is expected")
        return Decoder(graph, layers)


@dataclass(frozen=True)
class Buffers:
    """How much room pasts have: `columns` from the start, where a decoder takes buffers, and what such a decoder reads beside them; else none.
    Beams are moved in the buffers, so each column of a beam is the beam's own."""

    columns: Dim
    fixed: dict[str, Tensor]

    @staticmethod
    def of(graph: Any, batch: Dim, beams: Dim, most: Dim) -> Buffers:
        if BUFFERED[0] not in [i.name for i in graph.input]:
            return Buffers(0, {})
        own = tensor_map((batch, beams, most), "i32", lambda b, k, m: cast(k, "i32"))
        return Buffers(most, {"beam_width": size_scalar(beams).reshape(1).cast("i32"), "cache_indirection": own})

    def empty(self, info: Any, rows: Dim) -> Tensor:
        """A past in which nothing is, of the heads and size that a sub-graph declares: [2, rows, heads, columns, size], or without the first axis."""
        dtype, dims = type_name(info.type)
        if dims is None or len(dims) not in (4, 5) or not isinstance(dims[-3], int) or not isinstance(dims[-1], int):
            raise ModelError(f"{builder().origin}: {info.name} is declared as {list(dims or ())}; [batch, heads, columns, size], or [2, batch, "
                             "heads, columns, size], with numbers for heads and size is expected")
        lead: tuple[Dim, ...] = (2,) if len(dims) == 5 else ()
        return full((*lead, rows, dims[-3], self.columns, dims[-1]), 0, dtype)

    def holding(self, t: Tensor) -> Tensor:
        """t[R, heads, columns, size] where no more room is needed, else in a buffer."""
        if not self.fixed:
            return t
        builder().require(self.columns - t.shape[2], "max_length must be at least the columns that the encoder gives")
        return tensor_map((*t.shape[:2], self.columns, t.shape[3]), t.dtype, lambda r, n, j, e: guard(
            less(j, dim(t.shape[2])), t.at(r, n, j, e), const(0, compute(t.dtype))))

    def used(self, count: Dim) -> dict[str, Tensor]:
        """past_sequence_length of a step, [1]."""
        return {BUFFERED[0]: size_scalar(count).reshape(1).cast("i32")} if self.fixed else {}


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
class Start:
    """Where the Loop begins. logits: of the first run; sequences [R, M] of `length` words; fed: what of STEPPED the decoder reads, as it is for the
    last word; pasts: inputs that outputs replace, by input and output name; fixed: those that stay; more: how many words there are to come at
    most."""

    decoder: onnx.GraphProto
    logits: Tensor
    sequences: Tensor
    length: Dim
    fed: Mapping[str, Tensor]
    pasts: Mapping[tuple[str, str], Tensor]
    fixed: Mapping[str, Tensor]
    more: Dim


def begin(frame: Frame, attributes: Mapping[str, Any], given: Mapping[str, Any], beams: Dim) -> Start:
    """A decoder alone, run for the prompt."""
    after = Decoder.of("decoder", attributes.get("decoder"))
    first = Decoder.of("init_decoder", attributes["init_decoder"]) if "init_decoder" in attributes else after
    if first.layers != after.layers:
        raise ModelError(f"{builder().origin}: init_decoder has {first.layers} presents, decoder {after.layers}")
    prompt = Prompt.of(given["input_ids"], given["attention_mask"], given["max_length"], beams, attributes["pad_token_id"])
    rows, length = prompt.words.shape
    room = Buffers.of(after.graph, given["input_ids"].shape[0], beams, prompt.sequences.shape[1])
    names = {f"past_{k}": f"present_{k}" for k in range(after.layers)}
    feeds = dict(zip(FED, (prompt.words, prompt.positions, prompt.mask), strict=True)) | room.fixed | room.used(0)
    made = run_by_name(frame, "decoder", first.graph, feeds | {i.name: room.empty(i, rows) for i in first.graph.input if i.name in names})
    pasts = {(past, present): made[present] for past, present in names.items()}
    fed = {"position_ids": prompt.last, "attention_mask": prompt.mask} | room.used(length - 1)
    return Start(after.graph, made["logits"], prompt.sequences, length, fed, pasts, room.fixed, prompt.more)


def translate(frame: Frame, attributes: Mapping[str, Any], given: Mapping[str, Any], beams: Dim) -> Start:
    """An encoder, run once, and a decoder that begins with decoder_input_ids, or with decoder_start_token_id. An encoder that gives logits has run
    the decoder for these words already; any other gives present_key_cross_0, ... only. Without a mask only the padding before the first word is
    hidden, as ONNX Runtime has it; sound has none."""
    decoder, ids, first = attributes.get("decoder"), given["input_ids"], attributes.get("decoder_start_token_id", -1)
    batch, words = ids.shape[0], given.get("decoder_input_ids")
    if decoder is None or words is None and first < 0:
        raise ModelError(f"{builder().origin}: the {'sub-graph decoder' if decoder is None else 'attribute decoder_start_token_id'} is missing")
    declared = type_name(decoder.input[0].type)[1] if decoder.input else None
    if declared is None or len(declared) != 2 or declared[1] != 1:
        raise ModelError(f"{builder().origin}: the first input of decoder is declared as {list(declared or ())}; [batch, 1] is expected")
    words = full((batch, 1), first, "i32") if words is None else words
    most, length, pad = number(given["max_length"]), words.shape[1], attributes["pad_token_id"]
    builder().require(most - length - 1, f"max_length must be more than {length}, the words that the decoder begins with")
    beside = {"encoder_input_ids": ids} | ({} if ids.rank != 2 else {"encoder_attention_mask": seen(ids, pad, given["attention_mask"])})
    made = run_by_name(frame, "encoder", attributes["encoder"], {**beside, "decoder_input_ids": words})
    known = {name: repeated(t, beams) for name, t in {**made, **beside}.items()}
    room = Buffers.of(decoder, batch, beams, most)
    pasts, fixed = {}, dict(room.fixed)
    outputs = [o.name for o in decoder.output]
    for info in decoder.input[1:]:
        present = info.name.replace("past_", "present_", 1)
        if present != info.name and present in outputs:
            pasts[info.name, present] = room.holding(known[present]) if "logits" in made else room.empty(info, batch * beams)
        elif (found := known.get(info.name if info.name in BESIDE else present)) is not None:
            fixed[info.name] = found
        elif info.name not in BUFFERED:
            raise ModelError(f"{builder().origin}: decoder reads {info.name}, which neither encoder nor decoder gives")
    begun = repeated(words, beams)
    if "logits" in made:
        logits = known["logits"]
    else:
        feeds = {decoder.input[0].name: begun, **{past: t for (past, _), t in pasts.items()}, **fixed, **room.used(0)}
        results = run_by_name(frame, "decoder", decoder, feeds)
        logits, pasts = results["logits"], {(past, present): results[present] for past, present in pasts}
    sequences = tensor_map((batch * beams, most), "i32", lambda r, m: guard(less(m, dim(length)), begun.at(r, m), const(pad, "i32")))
    return Start(decoder, logits, sequences, length, room.used(length - 1), pasts, fixed, most - length)


def seen(ids: Tensor, pad: int, mask: Tensor | None) -> Tensor:
    """The mask [B, S], or what is behind the padding before the first word."""
    return tensor_prefix(tensor_map(ids.shape, "i32", lambda b, s: cast(not_equal(ids.at(b, s), pad), "i32")), 1, "max") if mask is None else mask


def run_by_name(frame: Frame, name: str, graph: onnx.GraphProto, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In place: outputs by name."""
    from gpuonnx.importer.lower import inline
    missing = [i.name for i in graph.input if i.name not in feeds]
    if missing:
        raise ModelError(f"{builder().origin}: {name} reads {missing[0]}; {', '.join(feeds)} are what it can read")
    results = inline(frame, graph, {i.name: feeds[i.name] for i in graph.input})
    return {o.name: t for o, t in zip(graph.output, results, strict=True)}


def repeated(t: Tensor, beams: Dim) -> Tensor:
    """t[B, ...] with each row `beams` times."""
    return tensor_map((t.shape[0] * beams, *t.shape[1:]), t.dtype, lambda r, *i: t.at(r // dim(beams), *i))

