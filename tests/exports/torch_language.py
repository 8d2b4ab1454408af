"""PyTorch: more architectures of the transformers package: experts, sliding windows, speech, detection, caches in other types."""
from __future__ import annotations

from typing import Any

import torch
import transformers
from exports.torch_export import Made, ints, network, t
from exports.torch_transformers import IMAGE, SMALL, Named, cached, made, text
from exports.torch_types import BRAIN, HALF, in_type
from torch import nn

GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}


def attended(model: nn.Module) -> nn.Module:
    """Attention as one call of PyTorch's instead of plain products."""
    model.set_attn_implementation("sdpa")
    return model


def batched(model: nn.Module) -> nn.Module:
    """Experts as products of gathered weights; the grouped products that are the default have no translation in either exporter."""
    model.set_experts_implementation("batched_mm")
    return model


@network()
def mixtral_grouped() -> Made:
    return text(made("Mixtral", "MixtralForCausalLM", **EXPERTS), "logits", use_cache=False)


@network()
def mixtral() -> Made:
    return text(batched(made("Mixtral", "MixtralForCausalLM", **EXPERTS)), "logits", use_cache=False)


@network()
def qwen3_experts() -> Made:
    return text(batched(made("Qwen3Moe", "Qwen3MoeForCausalLM", **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)), "logits", use_cache=False)


@network()
def mistral_window() -> Made:
    return text(made("Mistral", "MistralForCausalLM", **GROUPED, sliding_window=3), "logits", use_cache=False)


@network()
def qwen3_attended() -> Made:
    return text(attended(made("Qwen3", "Qwen3ForCausalLM", **GROUPED)), "logits", use_cache=False)


@network()
def gemma3() -> Made:
    return text(made("Gemma3Text", "Gemma3ForCausalLM", **GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]), "logits", use_cache=False)


@network()
def phi3() -> Made:
    return text(made("Phi3", "Phi3ForCausalLM", **SMALL, num_key_value_heads=1, pad_token_id=0), "logits", use_cache=False)


@network()
def gpt_neox() -> Made:
    return text(made("GPTNeoX", "GPTNeoXForCausalLM", **SMALL), "logits", use_cache=False)


@network()
def falcon() -> Made:
    return text(made("Falcon", "FalconForCausalLM", vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2), "logits", use_cache=False)


@network()
def modern_bert() -> Made:
    return text(made("ModernBert", "ModernBertModel", **SMALL, pad_token_id=0, local_attention=4, global_attn_every_n_layers=2))


@network()
def bert_attended() -> Made:
    return text(attended(made("Bert", "BertForMaskedLM", **SMALL)), "logits")


@network()
def llama_attended_cached() -> Made:
    return cached(attended(made("Llama", "LlamaForCausalLM", **SMALL, num_key_value_heads=1)), 1, 8)


@network()
def mixtral_cached() -> Made:
    return cached(batched(made("Mixtral", "MixtralForCausalLM", **EXPERTS)), 1, 8)


@network(**HALF)
def llama_cached_half() -> Made:
    return in_type(cached(made("Llama", "LlamaForCausalLM", **SMALL, num_key_value_heads=1), 1, 8), torch.float16)


@network(exporters=("dynamo",), **BRAIN)
def qwen_cached_bfloat() -> Made:
    return in_type(cached(made("Qwen2", "Qwen2ForCausalLM", **SMALL, num_key_value_heads=1), 1, 8), torch.bfloat16)


@network(**HALF)
def bert_half() -> Made:
    return in_type(text(made("Bert", "BertModel", **SMALL), "last_hidden_state"), torch.float16)


WHISPER = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
           "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


@network()
def whisper() -> Made:
    return Named(made("Whisper", "WhisperForConditionalGeneration", **WHISPER), ("input_features", "decoder_input_ids"), ("logits",), use_cache=False), [
        (t(1, 8, 40), ints(50, 1, 4)), (t(2, 8, 40), ints(50, 2, 7))]


class Stepping(nn.Module):
    """A decoder's step: its own keys and values grow, those of the encoder stay."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor, *past: torch.Tensor) -> Any:
        own, cross = transformers.DynamicCache(), transformers.DynamicCache()
        for k in range(self.layers):
            own.update(past[4 * k], past[4 * k + 1], k)
            cross.update(past[4 * k + 2], past[4 * k + 3], k)
        cache = transformers.EncoderDecoderCache(own, cross)
        answer = self.model(decoder_input_ids=tokens, encoder_outputs=(memory,), past_key_values=cache, use_cache=True)
        kept = answer.past_key_values.self_attention_cache
        return answer.logits, *(z for layer in kept.layers for z in (layer.keys, layer.values))


def stepping(model: nn.Module, layers: int) -> Made:
    return Stepping(model, layers), [(ints(50, n, 1), t(n, source, 16), *(t(n, 2, size, 8) for _ in range(layers) for size in (past, past, source, source)))
                                     for n, past, source in ((2, 3, 6), (1, 5, 9))]


@network()
def t5_step() -> Made:
    return stepping(made("T5", "T5ForConditionalGeneration", vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0), 2)


@network()
def bart_step() -> Made:
    return stepping(made("Bart", "BartForConditionalGeneration", vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                         encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32), 1)


@network()
def siglip() -> Made:
    model = made("Siglip", "SiglipModel", text_config={**SMALL, "max_position_embeddings": 16, "projection_size": 16}, vision_config=IMAGE)
    return Named(model, ("input_ids", "pixel_values"), ("logits_per_image",)), [(ints(49, 2, 7), t(3, 3, 32, 32)), (ints(49, 4, 6), t(1, 3, 32, 32))]


@network()
def detr() -> Made:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"])
    model = made("Detr", "DetrForObjectDetection", use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=config, d_model=16, encoder_layers=1, decoder_layers=1,
                 encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=6, num_labels=4)
    return Named(model, ("pixel_values",), ("logits", "pred_boxes")), [t(1, 3, 64, 64), t(2, 3, 64, 96)]


@network()
def depth_anything() -> Made:
    backbone = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14, out_features=["stage1", "stage2"],
                                         apply_layernorm=True, reshape_hidden_states=False)
    model = made("DepthAnything", "DepthAnythingForDepthEstimation", backbone_config=backbone, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 16], fusion_hidden_size=8, head_hidden_size=8,
                 reassemble_hidden_size=16, patch_size=14)
    return Named(model, ("pixel_values",), ("predicted_depth",)), [t(2, 3, 28, 28), t(1, 3, 28, 28)]


@network()
def hubert() -> Made:
    return Named(made("Hubert", "HubertForCTC", **SMALL, conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
                      num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2), ("input_values",), ("logits",)), [t(1, 400), t(2, 300)]


@network()
def vits_flow() -> Made:
    """A decoder of speech: transposed convolutions and dilated residual blocks."""
    config = transformers.SpeechT5HifiGanConfig(model_in_dim=8, upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]])
    return transformers.SpeechT5HifiGan(config), [t(1, 10, 8), t(2, 6, 8)]
