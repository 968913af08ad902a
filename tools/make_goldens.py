"""Makes tests/golden/NAME.{json,npy}: tiny models of every family run by transformers in float32 with eager attention; and
tests/golden/lora/NAME.npy: some of them with two LoRA adapters that PEFT merged.

    python tools/make_goldens.py [NAME...] [lora/NAME...]       (needs the [oracle] extra)

Weights come from tests/golden/write_gguf.py, so a golden is small: its config, tensor shapes, token ids and logits.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import transformers

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
_spec = importlib.util.spec_from_file_location("write_gguf", FOLDER / "write_gguf.py")
assert _spec and _spec.loader
write_gguf = importlib.util.module_from_spec(_spec)
sys.modules["write_gguf"] = write_gguf
_spec.loader.exec_module(write_gguf)

def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


SMALL = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GEMMA = SMALL | {"num_attention_heads": 4, "head_dim": 32, "tie_word_embeddings": True, "sliding_window": 8, "rms_norm_eps": 1e-6}
GEMMA3_ROPE = {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                   "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
OLMO3_YARN = rope("yarn", factor=8.0, original_max_position_embeddings=32, attention_factor=1.2)["rope_parameters"]
OLMO3_ROPE = {"rope_parameters": {"full_attention": OLMO3_YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32,
            "short_factor": [1.0 + i / 8 for i in range(12)], "long_factor": [1.5 + i * i / 4 for i in range(12)]}
HALF = rope("default", partial_rotary_factor=0.5)
MOE = SMALL | {"output_router_logits": False}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 64, "qk_nope_head_dim": 48, "qk_rope_head_dim": 32, "v_head_dim": 48,
          "rms_norm_eps": 1e-6}
DEEPSEEK = MOE | LATENT | {"num_experts_per_tok": 3, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
GRANITE = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625, "logits_scaling": 8.0,
           "tie_word_embeddings": True}
PLAIN = SMALL | {"layer_norm_eps": 1e-5}
FALCON = {"vocab_size": 272, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 256,
          "bos_token_id": 1, "eos_token_id": 2}
BERT = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                    "max_position_embeddings")} | {"pad_token_id": 0}
MAMBA = {"vocab_size": 272, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 3, "expand": 2, "conv_kernel": 4,
         "time_step_rank": 12, "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
         "tie_word_embeddings": False}
MAMBA2 = {**MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16}
HYBRID = MOE | GRANITE | {"num_hidden_layers": 4, "layer_types": ["mamba", "mamba", "attention", "mamba"], "mamba_n_heads": 8,
                          "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16, "shared_intermediate_size": 48,
                          "intermediate_size": 32}
PHI3 = SMALL | {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1}


# name: (class, config, tokens, ctx). A name with a dot shares its weights with the part before it.
GOLDENS: dict[str, tuple[str, dict[str, Any], int, int | None]] = {
    "llama": ("LlamaForCausalLM", SMALL, 40, None),
    "llama-tied-bias": ("LlamaForCausalLM", SMALL | {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 32}, 40, None),
    "llama-linear": ("LlamaForCausalLM", SMALL | rope("linear", factor=4.0), 40, None),
    "llama-yarn": ("LlamaForCausalLM", SMALL | rope("yarn", factor=4.0, original_max_position_embeddings=64), 40, None),
    "llama-llama3": ("LlamaForCausalLM", SMALL | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                      original_max_position_embeddings=64), 40, None),
    "mistral": ("MistralForCausalLM", SMALL | {"sliding_window": 8, "head_dim": 16}, 40, None),
    "qwen2": ("Qwen2ForCausalLM", SMALL | rope("default") | {"rope_theta": 1e6}, 40, None),
    "qwen3": ("Qwen3ForCausalLM", SMALL | {"head_dim": 32, "tie_word_embeddings": True}, 40, None),
    "gemma2": ("Gemma2ForCausalLM", GEMMA | {"num_hidden_layers": 4, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
                                             "final_logit_softcapping": 5.0}, 40, None),
    "gemma3": ("Gemma3ForCausalLM", GEMMA | GEMMA3_ROPE | {"num_hidden_layers": 7, "query_pre_attn_scalar": 32, "num_key_value_heads": 1},
               40, None),
    "gemma3n": ("Gemma3nForCausalLM", GEMMA | {
        "num_hidden_layers": 8, "vocab_size_per_layer_input": 272, "hidden_size_per_layer_input": 16, "laurel_rank": 16,
        "altup_num_inputs": 3, "altup_active_idx": 1, "num_kv_shared_layers": 3, "activation_sparsity_pattern": [0.95, 0.7, *6 * [0.0]],
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "full", "sliding", "full", "sliding", "full")],
        "final_logit_softcapping": 10.0}, 40, None),
    "gemma": ("GemmaForCausalLM", SMALL | {"num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True}, 40, None),
    "granite": ("GraniteForCausalLM", SMALL | GRANITE, 40, None),
    "olmo2": ("Olmo2ForCausalLM", SMALL | {"num_key_value_heads": 4}, 40, None),
    "olmo3": ("Olmo3ForCausalLM", SMALL | {"num_hidden_layers": 5, "sliding_window": 8} | OLMO3_ROPE, 40, None),
    "glm4": ("Glm4ForCausalLM", SMALL | {"head_dim": 32}, 40, None),
    "ministral3": ("Ministral3ForCausalLM", SMALL | {"head_dim": 16} | rope(
        "yarn", factor=16.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5), 40, None),
    "exaone4": ("Exaone4ForCausalLM", SMALL | {"num_hidden_layers": 5, "sliding_window": 8, "sliding_window_pattern": 4}, 40, None),
    "exaone4-global": ("Exaone4ForCausalLM", SMALL | {"sliding_window": None, "layer_types": 3 * ["full_attention"]}, 40, None),
    "stablelm": ("StableLmForCausalLM", PLAIN | {"head_dim": None, "use_qkv_bias": True, "partial_rotary_factor": 0.25}, 40, None),
    "stablelm-12b": ("StableLmForCausalLM", PLAIN | {"qk_layernorm": True, "use_parallel_residual": True}, 40, None),
    "starcoder2": ("Starcoder2ForCausalLM", PLAIN | {"norm_epsilon": 1e-5, "sliding_window": 8, "tie_word_embeddings": True}, 40, None),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 272, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
                                 "eos_token_id": 2}, 40, None),
    "gptneox": ("GPTNeoXForCausalLM", PLAIN | {"num_key_value_heads": None, "rotary_pct": 0.25, "hidden_act": "gelu"}, 40, None),
    "gptneox-serial": ("GPTNeoXForCausalLM", PLAIN | {"num_key_value_heads": None, "rotary_pct": 0.5,
                                                  "use_parallel_residual": False,
                                                  "attention_bias": False}, 40, None),
    "falcon-7b": ("FalconForCausalLM", FALCON | {"multi_query": True, "bias": False}, 40, None),
    "falcon-40b": ("FalconForCausalLM", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}, 40, None),
    "phi2": ("PhiForCausalLM", PLAIN | {"num_key_value_heads": 4, "hidden_act": "gelu_new"} | HALF, 40, None),
    "command-r": ("CohereForCausalLM", PLAIN | {"logit_scale": 0.25, "hidden_act": "silu", "tie_word_embeddings": True}, 40, None),
    "command-r-plus": ("CohereForCausalLM", PLAIN | {"logit_scale": 0.8, "use_qk_norm": True, "hidden_act": "silu",
                                                     "tie_word_embeddings": True}, 40, None),
    "cohere2": ("Cohere2ForCausalLM", PLAIN | {"num_hidden_layers": 5, "sliding_window": 8, "logit_scale": 0.25, "hidden_act": "silu",
                                               "tie_word_embeddings": True}, 40, None),
    "nemotron": ("NemotronForCausalLM", PLAIN | {"norm_eps": 1e-5, "hidden_act": "relu2"} | HALF, 40, None),
    "mixtral": ("MixtralForCausalLM", MOE | {"num_local_experts": 4, "num_experts_per_tok": 2}, 40, None),
    "qwen3moe": ("Qwen3MoeForCausalLM", MOE | {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 32,
                                               "norm_topk_prob": True, "mlp_only_layers": [1]}, 40, None),
    "qwen2moe": ("Qwen2MoeForCausalLM", MOE | {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                                               "shared_expert_intermediate_size": 64}, 40, None),
    "olmoe": ("OlmoeForCausalLM", MOE | {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 48}, 40, None),
    "granitemoe": ("GraniteMoeForCausalLM", MOE | GRANITE | {"num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32},
                   40, None),
    "granitemoe-shared": ("GraniteMoeSharedForCausalLM", MOE | GRANITE | {
        "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32, "shared_intermediate_size": 48}, 40, None),
    "gpt-oss": ("GptOssForCausalLM", MOE | {
        "num_hidden_layers": 4, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
        "intermediate_size": 32} | rope("yarn", factor=8.0, original_max_position_embeddings=32, truncate=False), 40, None),
    "deepseek2": ("DeepseekV2ForCausalLM", DEEPSEEK | {
        "n_routed_experts": 8, "n_shared_experts": 2, "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1}
        | rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707, beta_fast=8.0, beta_slow=2.0),
        40, None),
    "deepseek2-groups": ("DeepseekV2ForCausalLM", DEEPSEEK | {
        "n_routed_experts": 12, "n_shared_experts": 1, "q_lora_rank": 32, "topk_method": "group_limited_greedy", "n_group": 4,
        "topk_group": 2, "routed_scaling_factor": 4.0}, 40, None),
    "deepseek3": ("DeepseekV3ForCausalLM", DEEPSEEK | {
        "n_routed_experts": 12, "n_shared_experts": 1, "q_lora_rank": 32, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5,
        "num_mtp_layers": 0}
        | rope("yarn", factor=16.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0), 40, None),
    "deepseek3-halves": ("DeepseekV3ForCausalLM", DEEPSEEK | {
        "n_routed_experts": 12, "n_shared_experts": 1, "q_lora_rank": None, "n_group": 3, "topk_group": 2, "rope_interleave": False,
        "num_mtp_layers": 0}, 40, None),
    "minicpm3": ("MiniCPM3ForCausalLM", SMALL | LATENT | {"rms_norm_eps": 1e-5, "q_lora_rank": 32, "scale_emb": 12, "scale_depth": 1.4,
                                                        "dim_model_base": 32, "tie_word_embeddings": True}, 40, None),
    "glm4moe": ("Glm4MoeForCausalLM", MOE | HALF | {
        "head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5, "use_qk_norm": True,
        "attention_bias": True, "num_mtp_layers": 0}, 40, None),
    "dots1": ("Dots1ForCausalLM", MOE | {
        "head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True}, 40, None),
    "minimax-m2": ("MiniMaxM2ForCausalLM", MOE | HALF | {
        "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32}, 40, None),
    "ernie4_5-moe": ("Ernie4_5_MoeForCausalLM", MOE | {
        "moe_num_experts": 8, "moe_num_shared_experts": 1, "moe_k": 3, "moe_intermediate_size": 32, "moe_layer_start_index": 1,
        "head_dim": 16, "tie_word_embeddings": True}, 40, None),
    "arcee": ("ArceeForCausalLM", SMALL, 40, None),
    "seed-oss": ("SeedOssForCausalLM", SMALL | {"head_dim": 32, "attention_bias": True}, 40, None),
    "ernie4_5": ("Ernie4_5ForCausalLM", SMALL | {"use_bias": True, "tie_word_embeddings": True, "head_dim": 16}, 40, None),
    "bert": ("BertModel", BERT, 40, None),
    "nomic-bert": ("NomicBertModel", BERT, 40, None),
    "gemma-embedding": ("Gemma3TextModel", GEMMA | GEMMA3_ROPE | {
        "num_hidden_layers": 7, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_key_value_heads": 1,
        "use_bidirectional_attention": True}, 40, None),
    "xlm-roberta": ("XLMRobertaModel", BERT | {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, 40, None),
    "mamba": ("MambaForCausalLM", MAMBA | {"tie_word_embeddings": True}, 40, None),
    "falcon-mamba": ("FalconMambaForCausalLM", MAMBA | {"mixer_rms_eps": 1e-2}, 40, None),
    "mamba2": ("Mamba2ForCausalLM", MAMBA2, 40, None),
    "granite-hybrid": ("GraniteMoeHybridForCausalLM", HYBRID | {"num_local_experts": 4, "num_experts_per_tok": 2,
                                                                "mamba_n_groups": 2}, 40, None),
    "granite-hybrid-dense": ("GraniteMoeHybridForCausalLM", HYBRID | {"num_local_experts": 0, "position_embedding_type": "rope"}, 40, None),
    "lfm2": ("Lfm2ForCausalLM", SMALL | {
        "num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"], "norm_eps": 1e-5, "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0, "tie_word_embeddings": True}, 40, None),
    "qwen3next": ("Qwen3NextForCausalLM", MOE | {
        "num_hidden_layers": 4, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
        "linear_value_head_dim": 32, "rms_norm_eps": 1e-6}, 40, None),
    "phi3": ("Phi3ForCausalLM", PHI3 | {"sliding_window": 8}, 40, None),
    "phi3-longrope": ("Phi3ForCausalLM", PHI3 | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}, 40, None),
    "phi3-longrope.short": ("Phi3ForCausalLM", PHI3 | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}, 24, 32),
    "smollm3": ("SmolLM3ForCausalLM", SMALL | {"num_hidden_layers": 5, "tie_word_embeddings": True} | rope(
        "yarn", factor=2.0, original_max_position_embeddings=128, beta_fast=8.0, beta_slow=2.0, attention_factor=0.9), 40, None),
}


transformers.logging.disable_progress_bar()
LORAS = ("llama", "gemma3", "phi3")     # with adapters: reordered rows, other rope and norms, fused matrices


def make(name: str) -> None:
    hf_class, settings, n, ctx = GOLDENS[name]
    model_class = getattr(transformers, hf_class)
    config = model_class.config_class(**settings)
    saved = {k: v for k, v in config.to_dict().items() if v is not None and not k.startswith("_") and k != "transformers_version"}
    with tempfile.TemporaryDirectory() as folder:           # names and shapes as published checkpoints have them
        path = Path(folder)
        model_class(config).save_pretrained(path)
        with safetensors.safe_open(path / "model.safetensors", "np") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
        weights = {key: write_gguf.tensor(name.partition(".")[0], key, shape) for key, shape in shapes.items()}
        safetensors.numpy.save_file(weights, path / "model.safetensors", {"format": "pt"})
        model, report = model_class.from_pretrained(path, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values()), report
    ids = [(37 * i * i + 11 * i + 5) % settings["vocab_size"] for i in range(n)]
    with torch.no_grad():
        out = model.eval()(torch.tensor([ids]))
        logits = (out.logits if "logits" in out else out.last_hidden_state)[0].numpy()
    text = json.dumps({"hf_class": hf_class, "config": saved, "shapes": shapes, "ids": ids, "ctx": ctx}, sort_keys=True)
    (FOLDER / f"{name}.json").write_text(text + "\n")
    np.save(FOLDER / f"{name}.npy", logits.astype(np.float32))
    print(f"{name}: {logits.shape}, max |logit| {np.abs(logits).max():.2f}")


def make_lora(name: str) -> None:
    """tests/golden/lora/NAME.npy: logits of a golden's model with two LoRA adapters merged into its weights by PEFT."""
    import peft

    golden = write_gguf.load(name)
    model_class = getattr(transformers, golden.hf_class)
    model = model_class(model_class.config_class(**golden.config, attn_implementation="eager")).eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in golden.weights.items()}, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        for i, adapter in enumerate(write_gguf.ADAPTERS):
            path = Path(folder) / adapter
            write_gguf.write_adapter(path, golden, adapter)
            if i:
                model.load_adapter(str(path), adapter)
            else:
                model = peft.PeftModel.from_pretrained(model, str(path), adapter)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for adapter, scale in write_gguf.ADAPTERS.items():
                module.set_scale(adapter, scale)
    model = model.merge_and_unload(adapter_names=list(write_gguf.ADAPTERS))
    with torch.no_grad():
        logits = model(torch.tensor([golden.ids])).logits[0].numpy()
    (FOLDER / "lora").mkdir(exist_ok=True)
    np.save(FOLDER / "lora" / f"{name}.npy", logits.astype(np.float32))
    print(f"lora/{name}: {logits.shape}, changed by {np.abs(logits - golden.logits).max():.2f} of {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    for golden in sys.argv[1:] or [*GOLDENS, *(f"lora/{name}" for name in LORAS)]:
        if golden.startswith("lora/"):
            make_lora(golden.removeprefix("lora/"))
        else:
            make(golden)
