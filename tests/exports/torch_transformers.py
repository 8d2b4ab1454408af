"""PyTorch: the architectures of the transformers package, tiny and with random weights."""
from __future__ import annotations

from typing import Any

import torch
import transformers
from exports.torch_export import Made, ints, network, t
from torch import nn

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def made(kind: str, model: str, **options: Any) -> nn.Module:
    """A model by the name of its class, of a configuration with these options."""
    config = getattr(transformers, f"{kind}Config")(**options)
    config._attn_implementation = "eager"
    return getattr(transformers, model)(config).eval()


class Named(nn.Module):
    """Calls a model with named arguments and gives the tensors of its answer that are named."""

    def __init__(self, model: nn.Module, arguments: tuple[str, ...], results: tuple[str, ...] = ("last_hidden_state",), **fixed: Any) -> None:
        super().__init__()
        self.model, self.arguments, self.results, self.fixed = model, arguments, results, fixed

    def forward(self, *args: torch.Tensor) -> Any:
        given = dict(zip(self.arguments, args, strict=True))
        answer = self.model(**given, **self.fixed)
        return tuple(answer[r] for r in self.results)


TEXT = ("input_ids", "attention_mask")


def text(model: nn.Module, *results: str, **fixed: Any) -> Made:
    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(*shape, dtype=torch.int64)
    second = ones(3, 5)
    second[1, 3:] = 0
    return Named(model, TEXT, results or ("last_hidden_state",), **fixed), [(ints(50, 2, 7), ones(2, 7)), (ints(50, 3, 5), second)]


@network()
def bert() -> Made:
    return text(made("Bert", "BertModel", **SMALL), "last_hidden_state", "pooler_output")


@network()
def roberta_classifier() -> Made:
    return text(made("Roberta", "RobertaForSequenceClassification", **SMALL, max_position_embeddings=40, num_labels=3), "logits")


@network()
def distilbert() -> Made:
    return text(made("DistilBert", "DistilBertModel", vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32))


@network()
def albert() -> Made:
    return text(made("Albert", "AlbertModel", **SMALL, embedding_size=8))


@network()
def electra_tokens() -> Made:
    return text(made("Electra", "ElectraForTokenClassification", **SMALL, embedding_size=8), "logits")


@network()
def deberta() -> Made:
    return text(made("DebertaV2", "DebertaV2Model", **SMALL, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]))


@network()
def mpnet() -> Made:
    return text(made("MPNet", "MPNetModel", **SMALL))


@network()
def gpt2() -> Made:
    return text(made("GPT2", "GPT2LMHeadModel", vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32), "logits", use_cache=False)


@network()
def llama() -> Made:
    return text(made("Llama", "LlamaForCausalLM", **SMALL, num_key_value_heads=1), "logits", use_cache=False)


@network()
def qwen() -> Made:
    return text(made("Qwen2", "Qwen2ForCausalLM", **SMALL, num_key_value_heads=1), "logits", use_cache=False)


@network()
def gemma() -> Made:
    return text(made("Gemma", "GemmaForCausalLM", **SMALL, num_key_value_heads=1, head_dim=8), "logits", use_cache=False)


@network()
def opt() -> Made:
    return text(made("OPT", "OPTForCausalLM", vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=40),
                "logits", use_cache=False)


@network()
def bloom() -> Made:
    return text(made("Bloom", "BloomForCausalLM", vocab_size=50, hidden_size=16, n_layer=2, n_head=2), "logits", use_cache=False)


@network()
def phi() -> Made:
    return text(made("Phi", "PhiForCausalLM", **SMALL), "logits", use_cache=False)


class Cached(nn.Module):
    """A causal language model with its cache as plain inputs and outputs."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, tokens: torch.Tensor, *past: torch.Tensor) -> Any:
        cache = transformers.DynamicCache()
        for k in range(self.layers):
            cache.update(past[2 * k], past[2 * k + 1], k)
        answer = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        made = [z for layer in answer.past_key_values.layers for z in (layer.keys, layer.values)]
        return answer.logits, *made


def cached(model: nn.Module, heads: int, size: int) -> Made:
    return Cached(model, 2), [(ints(50, n, s), *(t(n, heads, past, size) for _ in range(4))) for n, s, past in ((2, 3, 5), (3, 2, 6), (2, 4, 9))]


@network()
def gpt2_cached() -> Made:
    return cached(made("GPT2", "GPT2LMHeadModel", vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32), 2, 8)


@network()
def llama_cached() -> Made:
    return cached(made("Llama", "LlamaForCausalLM", **SMALL, num_key_value_heads=1), 1, 8)


@network()
def t5() -> Made:
    model = made("T5", "T5ForConditionalGeneration", vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return Named(model, ("input_ids", "attention_mask", "decoder_input_ids"), ("logits",), use_cache=False), [
        (ints(50, 2, 7), torch.ones(2, 7, dtype=torch.int64), ints(50, 2, 4)), (ints(50, 3, 5), torch.ones(3, 5, dtype=torch.int64), ints(50, 3, 6))]


@network()
def bart() -> Made:
    model = made("Bart", "BartForConditionalGeneration", vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                 encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32)
    return Named(model, ("input_ids", "attention_mask", "decoder_input_ids"), ("logits",), use_cache=False), [
        (ints(50, 2, 7), torch.ones(2, 7, dtype=torch.int64), ints(50, 2, 4)), (ints(50, 3, 5), torch.ones(3, 5, dtype=torch.int64), ints(50, 3, 6))]


@network()
def whisper_encoder() -> Made:
    model = made("Whisper", "WhisperModel", vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                 decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    return Named(model.encoder, ("input_features",)), [t(1, 8, 40), t(2, 8, 40)]


@network()
def wav2vec2() -> Made:
    return Named(made("Wav2Vec2", "Wav2Vec2Model", **SMALL, conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
                      num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2), ("input_values",)), [t(1, 400), t(2, 300)]


IMAGE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}


@network()
def vit() -> Made:
    return Named(made("ViT", "ViTForImageClassification", **IMAGE, num_labels=5), ("pixel_values",), ("logits",)), [t(1, 3, 32, 32), t(3, 3, 32, 32)]


@network()
def deit() -> Made:
    return Named(made("DeiT", "DeiTModel", **IMAGE), ("pixel_values",)), [t(1, 3, 32, 32), t(3, 3, 32, 32)]


@network()
def swin() -> Made:
    return Named(made("Swin", "SwinModel", image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4), ("pixel_values",)), [t(2, 3, 32, 32), t(1, 3, 32, 32)]


@network()
def convnext_v2() -> Made:
    return Named(made("ConvNextV2", "ConvNextV2Model", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), ("pixel_values",)), [t(1, 3, 32, 32), t(2, 3, 48, 32)]


@network()
def segformer() -> Made:
    model = made("Segformer", "SegformerForSemanticSegmentation", num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
                 num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=4)
    return Named(model, ("pixel_values",), ("logits",)), [t(2, 3, 64, 32), t(1, 3, 32, 32)]


@network()
def mobilevit() -> Made:
    return Named(made("MobileViT", "MobileViTModel", hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], image_size=64, num_attention_heads=2), ("pixel_values",)), [
        t(1, 3, 64, 64), t(2, 3, 64, 64)]


@network()
def dinov2() -> Made:
    options = {k: v for k, v in IMAGE.items() if k != "intermediate_size"}
    return Named(made("Dinov2", "Dinov2Model", **options, mlp_ratio=2), ("pixel_values",)), [t(1, 3, 32, 32), t(2, 3, 32, 32)]


@network()
def clip() -> Made:
    model = made("CLIP", "CLIPModel", text_config={**SMALL, "max_position_embeddings": 16, "eos_token_id": 49, "projection_dim": 8}, vision_config={**IMAGE, "projection_dim": 8}, projection_dim=8)
    return Named(model, ("input_ids", "pixel_values", "attention_mask"), ("logits_per_image", "text_embeds")), [
        (ints(49, 2, 7), t(3, 3, 32, 32), torch.ones(2, 7, dtype=torch.int64)), (ints(49, 4, 6), t(1, 3, 32, 32), torch.ones(4, 6, dtype=torch.int64))]


@network()
def mamba_static() -> Made:
    return Named(made("Mamba", "MambaModel", vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4), ("input_ids",), use_cache=False), [ints(50, 2, 6)]


@network(broken={"torchscript": "what it adds to the patches is of another size"})
def time_series_patches() -> Made:
    model = made("PatchTST", "PatchTSTForPrediction", num_input_channels=2, context_length=16, patch_length=4, patch_stride=4, d_model=8, num_hidden_layers=1, num_attention_heads=2,
                 ffn_dim=16, prediction_length=4)
    return Named(model, ("past_values",), ("prediction_outputs",)), [t(2, 16, 2), t(1, 16, 2)]
