"""Tiny models with random weights of the causal language model families that transformers has."""

import inspect
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 64
WINDOW = 8
CONTEXT = 128

# Of a family's settings those that it has are made small.
_SMALL: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    **{"hidden_size": 32, "d_model": 32, "n_embd": 32, "embedding_size": 32, "dim": 32},
    **{"intermediate_size": 64, "ffn_dim": 64, "n_inner": 64, "ffn_hidden_size": 64, "d_inner": 64, "dff": 64},
    **{"num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2},
    **{"num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4},
    **{"num_key_value_heads": 2, "num_global_key_value_heads": 2},
    **{"head_dim": 8, "global_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    **{"kv_channels": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "rotary_dim": 8, "index_head_dim": 16},
    **{"max_position_embeddings": CONTEXT, "n_positions": CONTEXT, "max_seq_len": CONTEXT, "n_ctx": CONTEXT},
    **{"sliding_window": WINDOW, "window_size": WINDOW, "attention_chunk_size": 16},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16},
    **{"shared_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "moe_k": 2},
    **{"state_size": 8, "conv_kernel": 4, "time_step_rank": 4, "num_heads_mamba": 4, "n_groups": 1},
    **{"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_dt_rank": 4},
    **{"mamba_chunk_size": 16, "chunk_size": 16, "attention_hidden_size": 32, "rwkv_hidden_size": 32},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "lru_width": 32},
    **{"dim_model": 32, "dim_ff": 64, "dim_head": 8, "query_pre_attn_scalar": 8},
}

# What a family needs beside that.
_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_expand": 2},
    "phi3": {"pad_token_id": 0},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "full_attention"]},
    "zamba": {"layer_types": ["linear_attention", "hybrid"]},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "dots1": {"moe_intermediate_size": 16, "n_shared_experts": 1},
    "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "whisper": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{
        family: {"num_key_value_heads": 4}
        for family in ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text")
    },
    **{family: {"num_key_value_heads": 4} for family in ("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu")},
}


def families() -> list[str]:
    """Their names, as a config.json has them."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of(family: str, **settings: Any) -> PreTrainedConfig:
    """A small config of a family; `settings` go before what is chosen here."""
    kind = transformers.CONFIG_MAPPING[family]
    known: set[str] = set()
    for base in kind.__mro__:
        if issubclass(base, PreTrainedConfig) and base is not PreTrainedConfig:
            known |= set(inspect.signature(base.__init__).parameters) | set(getattr(base, "__annotations__", {}))
    chosen = {name: value for name, value in _SMALL.items() if name in known}
    return kind(**{**chosen, **_FAMILIES.get(family, {}), **settings})


def build(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
    """A model of a family whose weights are large enough to tell its layouts apart."""
    torch.manual_seed(0)
    config = config_of(family, **settings)
    with torch.device("meta"):
        size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > 5_000_000:
        raise ValueError(f"not small: {size} parameters")
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 and not name.endswith(("A_log", "dt_bias")):
                parameter.normal_(0, 0.3)
    return made.to(dtype).eval()
