"""Small random decoders as GreedySearch and BeamSearch take them, and models of one search."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

HEADS, SIZE, WIDTH = 2, 4, 8
INPUTS = {
    "GreedySearch": ("input_ids", "max_length", "min_length", "repetition_penalty", "vocab_mask", "prefix_vocab_mask", "attention_mask"),
    "BeamSearch": ("input_ids", "max_length", "min_length", "num_beams", "num_return_sequences", "length_penalty", "repetition_penalty", "vocab_mask",
                   "prefix_vocab_mask", "attention_mask", "decoder_input_ids", "logits_processor"),
    "Sampling": ("input_ids", "max_length", "min_length", "repetition_penalty", "vocab_mask", "prefix_vocab_mask", "attention_mask",
                 "presence_mask", "seed")}
INPUTS["WhisperBeamSearch"] = (*INPUTS["BeamSearch"], "cross_qk_layer_head", "extra_decoding_ids", "temperature")
OUTPUTS = {"Sampling": ("sequences", "filtered_logits"), "WhisperBeamSearch": ("sequences", "sequences_scores", "scores", "", "silence")}
SEARCHED = ("sequences", "sequences_scores", "scores")

BEGIN = """
  words = Gather (word_table, input_ids)
  places = Gather (place_table, position_ids)
  x0 = Add (words, places)
  seen = Cast <to = 1> (attention_mask)
  unseen = Sub (one, seen)
  unseen_low = Mul (unseen, low)
  unseen_bias = Unsqueeze (unseen_low, axes12)
  total_shape = Shape <start = 1, end = 2> (attention_mask)
  total = Squeeze (total_shape)
  rows_shape = Shape <start = 1, end = 2> (input_ids)
  rows = Squeeze (rows_shape)
  first = Sub (total, rows)
  columns = Range (zero, total, step)
  here = Range (first, total, step)
  here_column = Unsqueeze (here, last)
  earlier = LessOrEqual (columns, here_column)
  earlier_float = Cast <to = 1> (earlier)
  later = Sub (one, earlier_float)
  later_bias = Mul (later, low)
"""
LAYER = """
  qL = MatMul (xL, wqL)
  kL = MatMul (xL, wkL)
  vL = MatMul (xL, wvL)
  qrL = Reshape (qL, heads)
  krL = Reshape (kL, heads)
  vrL = Reshape (vL, heads)
  qhL = Transpose <perm = [0, 2, 1, 3]> (qrL)
  khL = Transpose <perm = [0, 2, 1, 3]> (krL)
  vhL = Transpose <perm = [0, 2, 1, 3]> (vrL)
  kuL = Unsqueeze (khL, axis0)
  vuL = Unsqueeze (vhL, axis0)
  newL = Concat <axis = 0> (kuL, vuL)
  present_L = Concat <axis = 3> (past_L, newL)
  keysL = Gather <axis = 0> (present_L, zero)
  valuesL = Gather <axis = 0> (present_L, step)
  ktL = Transpose <perm = [0, 1, 3, 2]> (keysL)
  sL = MatMul (qhL, ktL)
  tL = Add (sL, later_bias)
  uL = Add (tL, unseen_bias)
  pL = Softmax (uL)
  oL = MatMul (pL, valuesL)
  otL = Transpose <perm = [0, 2, 1, 3]> (oL)
  ofL = Reshape (otL, flat)
  xN = Add (xL, ofL)
"""
BUFFERED = f"""
  oL, present_L = com.microsoft.Attention <num_heads = {HEADS}, past_present_share_buffer = 1, scale = 1.0, unidirectional = 1>
    (xL, wqkvL, "", attention_mask, past_L, "", past_sequence_length)
  xN = Add (xL, oL)
"""
SHARED = ", int32[1] past_sequence_length, int32[1] beam_width, int32[batch, k, m] cache_indirection"


def decoder(vocabulary: int = 20, layers: int = 2, seed: int = 0, eos_bias: float = 0.0, eos: int = 1, longest: int = 32,
            buffered: bool = False) -> onnx.GraphProto:
    """input_ids, position_ids, attention_mask, past_0, ... to logits, present_0, ...; `eos_bias` is added to the score of `eos`; `buffered`: the
    same in buffers."""
    rng = np.random.default_rng(seed)

    def some(*shape: int, scale: float = 0.7) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)
    weights: dict[str, Any] = {
        "word_table": some(vocabulary, WIDTH, scale=1.5), "place_table": some(longest, WIDTH), "one": np.float32(1), "low": np.float32(-1e4),
        "axes12": np.array([1, 2]), "zero": np.array(0), "step": np.array(1), "last": np.array([-1]), "axis0": np.array([0]),
        "heads": np.array([0, 0, HEADS, SIZE]), "flat": np.array([0, 0, WIDTH]), "out": some(WIDTH, vocabulary, scale=1.0),
        "bias": np.where(np.arange(vocabulary) == eos, eos_bias, 0).astype(np.float32)}
    for k in range(layers):
        weights |= {f"w{part}{k}": some(WIDTH, WIDTH) for part in "qkv"}
        weights[f"wqkv{k}"] = np.concatenate([weights[f"w{part}{k}"] for part in "qkv"], 1)
    pasts = ", ".join(f"float[2, b, {HEADS}, p, {SIZE}] past_{k}" for k in range(layers))
    presents = ", ".join(f"float[2, b, {HEADS}, t, {SIZE}] present_{k}" for k in range(layers))
    layer = BUFFERED if buffered else LAYER
    body = "".join(layer.replace("present_L", f"present_{k}").replace("past_L", f"past_{k}").replace("xN", f"x{k + 1}").replace("L ", f"{k} ")
                   .replace("L,", f"{k},").replace("L)", f"{k})") for k in range(layers))
    graph = parser.parse_graph(f"""decoder (int32[b, s] input_ids, int32[b, s] position_ids, int32[b, t] attention_mask, {pasts}{SHARED * buffered})
        => (float[b, s, {vocabulary}] logits, {presents}) {{ {BEGIN} {body}
        bent = Tanh (x{layers}) plain = MatMul (bent, out) logits = Add (plain, bias) }}""")
    graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return graph


def counter(vocabulary: int = 16, of: str = "position_ids") -> onnx.GraphProto:
    """The next word is the last position, or how many columns the mask shows."""
    value = {"position_ids": "n = Cast <to = 1> (position_ids)",
             "attention_mask": "m = ReduceSum (attention_mask, axis1) z = Sub (input_ids, input_ids) w = Add (m, z) n = Cast <to = 1> (w)"}[of]
    graph = parser.parse_graph(f"""counter (int32[b, s] input_ids, int32[b, s] position_ids, int32[b, t] attention_mask, float[2, b, 1, p, 1] past_0)
        => (float[b, s, {vocabulary}] logits, float[2, b, 1, t, 1] present_0) {{
        {value} nu = Unsqueeze (n, axis2) difference = Sub (every, nu) distance = Abs (difference) logits = Neg (distance)
        words = Cast <to = 1> (input_ids) rows = Unsqueeze (words, axes) new = Expand (rows, twice) present_0 = Concat <axis = 3> (past_0, new) }}""")
    weights = {"every": np.arange(vocabulary, dtype=np.float32), "axis1": np.array([1]), "axis2": np.array([2]), "axes": np.array([0, 2, 4]),
               "twice": np.array([2, 1, 1, 1, 1])}
    graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    return graph


def search(op_type: str, feeds: dict[str, np.ndarray], graph: onnx.GraphProto | None, outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    """A model of one search, its inputs those of `feeds`; eos is 1 and padding 0 where `attributes` do not say."""
    names = [n if n in feeds else "" for n in INPUTS[op_type]]
    while not names[-1]:
        names.pop()
    given = {"eos_token_id": 1, "pad_token_id": 0} | ({} if graph is None else {"decoder": graph}) | attributes
    results = OUTPUTS.get(op_type, SEARCHED)[:outputs]
    node = helper.make_node(op_type, names, results, domain="com.microsoft", name="the_search", **given)
    kinds = {np.dtype(np.int32): 6, np.dtype(np.float32): 1}
    inputs = [helper.make_tensor_value_info(n, kinds[feeds[n].dtype], [None] * feeds[n].ndim) for n in names if n]
    made = [helper.make_tensor_value_info(o, 6 if o == "sequences" else 1, None) for o in results if o]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", inputs, made), opset_imports=opsets, ir_version=9)


ATTEND = """
  qL = MatMul (xL, wqL)
  qrL = Reshape (qL, heads)
  qhL = Transpose <perm = [0, 2, 1, 3]> (qrL)
  ktL = Transpose <perm = [0, 1, 3, 2]> (KEYS)
  sL = MatMul (qhL, ktL)
  tL = Add (sL, BIAS)
  pL = Softmax (tL)
  oL = MatMul (pL, VALUES)
  otL = Transpose <perm = [0, 2, 1, 3]> (oL)
  ofL = Reshape (otL, flat)
  xN = Add (xL, ofL)
"""
SPLIT = """
  kL = MatMul (FROM, wkL)
  vL = MatMul (FROM, wvL)
  krL = Reshape (kL, heads)
  vrL = Reshape (vL, heads)
  NEWKEYS = Transpose <perm = [0, 2, 1, 3]> (krL)
  NEWVALUES = Transpose <perm = [0, 2, 1, 3]> (vrL)
"""


def filled(text: str, label: str, after: str = "", **parts: str) -> str:
    for key, value in parts.items():
        text = text.replace(key, value)
    for end in " ,)":
        text = text.replace("L" + end, label + end)
    return text.replace("xN", "x" + after)


def translator(vocabulary: int = 20, seed: int = 0, eos_bias: float = 0.0, whole: bool = False) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """An encoder of one layer and a decoder of one; `whole`: the encoder runs the decoder for its first word too."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {
        "word_table": rng.standard_normal((vocabulary, WIDTH)).astype(np.float32) * 1.5, "one": np.float32(1), "low": np.float32(-1e4), "zero": np.float32(0),
        "axes12": np.array([1, 2]), "heads": np.array([0, 0, HEADS, SIZE]), "flat": np.array([0, 0, WIDTH]),
        "out": rng.standard_normal((WIDTH, vocabulary)).astype(np.float32), "bias": np.where(np.arange(vocabulary) == 1, eos_bias, 0).astype(np.float32)}
    weights |= {f"w{part}{k}": (rng.standard_normal((WIDTH, WIDTH)) * 0.7).astype(np.float32) for part in "qkv" for k in "esc"}
    mask = """seen = Cast <to = 1> (encoder_attention_mask) unseen = Sub (one, seen) unseen_low = Mul (unseen, low)
        unseen_bias = Unsqueeze (unseen_low, axes12)"""
    encoder = "xe = Gather (word_table, encoder_input_ids) " + mask + filled(SPLIT, "e", FROM="xe", NEWKEYS="keys_e", NEWVALUES="values_e")
    encoder += filled(ATTEND, "e", "h", KEYS="keys_e", BIAS="unseen_bias", VALUES="values_e") + "encoder_hidden_states = Tanh (xh)"
    encoder += filled(SPLIT, "c", FROM="encoder_hidden_states", NEWKEYS="present_key_cross_0", NEWVALUES="present_value_cross_0")
    says = "xs = Gather (word_table, WORDS) " + filled(SPLIT, "s", FROM="xs", NEWKEYS="new_keys", NEWVALUES="new_values") + "JOINED"
    says += filled(ATTEND, "s", "c", KEYS="present_key_self_0", BIAS="zero", VALUES="present_value_self_0")
    says += filled(ATTEND, "c", "o", KEYS="CROSSKEYS", BIAS="unseen_bias", VALUES="CROSSVALUES")
    says += "bent = Tanh (xo) plain = MatMul (bent, out) logits = Add (plain, bias)"

    def kept(names: str, columns: str) -> list[str]:
        return [f"float[b, {HEADS}, {columns}, {SIZE}] {n}" for n in names.split()]
    cross, own = kept("present_key_cross_0 present_value_cross_0", "s"), kept("present_key_self_0 present_value_self_0", "t")
    reads, gives = ["int32[b, s] encoder_input_ids", "int32[b, s] encoder_attention_mask"], cross
    if whole:
        reads.append("int32[b, one_word] decoder_input_ids")
        gives = [f"float[b, one_word, {vocabulary}] logits", f"float[b, s, {WIDTH}] encoder_hidden_states", *own, *cross]
        encoder += filled(says, "", WORDS="decoder_input_ids", JOINED="present_key_self_0 = Identity (new_keys) present_value_self_0 = Identity (new_values)",
                          CROSSKEYS="present_key_cross_0", CROSSVALUES="present_value_cross_0")
    joined = """present_key_self_0 = Concat <axis = 2> (past_key_self_0, new_keys)
        present_value_self_0 = Concat <axis = 2> (past_value_self_0, new_values)"""
    pasts = kept("past_key_self_0 past_value_self_0", "p") + kept("past_key_cross_0 past_value_cross_0", "s")
    decoder_reads = ["int32[b, 1] input_ids", "int32[b, s] encoder_attention_mask", *pasts]
    says = mask + " " + filled(says, "", WORDS="input_ids", JOINED=joined, CROSSKEYS="past_key_cross_0", CROSSVALUES="past_value_cross_0")
    graphs = []
    for name, inputs, outputs, text in (("encoder", reads, gives, encoder), ("decoder", decoder_reads, [f"float[b, 1, {vocabulary}] logits", *own], says)):
        graph = parser.parse_graph(f"{name} ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {text} }}")
        used = {i for n in graph.node for i in n.input}
        graph.initializer.extend(numpy_helper.from_array(np.asarray(w), key) for key, w in weights.items() if key in used)
        graphs.append(graph)
    return graphs[0], graphs[1]


def listener(vocabulary: int = 20, seed: int = 0, eos_bias: float = 0.0, attention: str = "MultiHeadAttention",
             buffered: bool = False) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """An encoder of sound [b, 3, frames], which runs the decoder for its first words too, and the decoder; `buffered`: with buffers for pasts."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {
        "word_table": rng.standard_normal((vocabulary, WIDTH)).astype(np.float32) * 1.5, "ears": rng.standard_normal((3, WIDTH)).astype(np.float32),
        "heads": np.array([0, 0, HEADS, SIZE]), "out": rng.standard_normal((WIDTH, vocabulary)).astype(np.float32),
        "bias": np.where(np.arange(vocabulary) == 1, eos_bias, 0).astype(np.float32)}
    weights |= {f"w{part}{k}": (rng.standard_normal((WIDTH, WIDTH)) * 0.7).astype(np.float32) for part in "qkv" for k in "sc"}
    own = "present_key_self_0, present_value_self_0"

    def says(words: str, past: str, cross: str, op: str, attributes: str = "") -> str:
        return f"""xs = Gather (word_table, {words}) q = MatMul (xs, wqs) k = MatMul (xs, wks) v = MatMul (xs, wvs)
            y, {own} = com.microsoft.{op} <num_heads = {HEADS} {attributes}> (q, k, v, "", "" {past})
            xc = Add (xs, y) qc = MatMul (xc, wqc) o = com.microsoft.MultiHeadAttention <num_heads = {HEADS}> (qc, {cross})
            xo = Add (xc, o) bent = Tanh (xo) plain = MatMul (bent, out) logits = Add (plain, bias)"""

    def kept(names: str, columns: str) -> str:
        return ", ".join(f"float[b, {HEADS}, {columns}, {SIZE}] {n}" for n in names.split(", "))
    split = " ".join(f"{p}c = MatMul (encoder_hidden_states, w{p}c) {p}r = Reshape ({p}c, heads) "
                     f"present_{name}_cross_0 = Transpose <perm = [0, 2, 1, 3]> ({p}r)" for p, name in (("k", "key"), ("v", "value")))
    cross = "present_key_cross_0, present_value_cross_0"
    encoder = f"""encoder (float[b, 3, s] encoder_input_ids, int32[b, n] decoder_input_ids) => (float[b, n, {vocabulary}] logits,
        float[b, s, {WIDTH}] encoder_hidden_states, {kept(own, 'n')}, {kept(cross, 's')}) {{
        turned = Transpose <perm = [0, 2, 1]> (encoder_input_ids) xe = MatMul (turned, ears) encoder_hidden_states = Tanh (xe) {split}
        {says('decoder_input_ids', '', cross, 'MultiHeadAttention', ', unidirectional = 1')} }}"""
    masked = attention.startswith("Decoder")
    extra = ["past_sequence_length", *(["beam_width"] if masked else []), "cache_indirection"] if buffered else []
    past = own.replace("present", "past")
    read = ", " + ", ".join([*([] if masked else ['""']), past, *extra])
    decoder = f"""decoder (int32[b, 1] input_ids, {kept(past, 'p')}, {kept(cross.replace('present', 'past'), 's')}{SHARED * buffered}) =>
        (float[b, 1, {vocabulary}] logits, {kept(own, 't')}) {{ {says('input_ids', read, cross.replace('present', 'past'), attention,
        ', past_present_share_buffer = 1' if masked and buffered else '')} }}"""
    graphs = []
    for text in (encoder, decoder):
        graph = parser.parse_graph(text)
        used = {i for n in graph.node for i in n.input}
        graph.initializer.extend(numpy_helper.from_array(np.asarray(w), key) for key, w in weights.items() if key in used)
        graphs.append(graph)
    return graphs[0], graphs[1]
