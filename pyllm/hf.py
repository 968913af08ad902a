"""From a Hugging Face checkpoint to what a GGUF file holds: metadata, tensor names, rope factor tensors.

The knowledge of each family is in models/: its name map and the few changes to tensors. Here is what all of them share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt  # correctly rounded everywhere (IEEE 754), unlike exp, log and pow
from typing import Any

from . import errors
from ._core import lib
from .hparams import TABLE, key_of
from .models import Arch, families
from .rope import PI, base_frequencies, growth

Config = Mapping[str, Any]      # the parsed config.json, of the text model where a checkpoint holds several


# Parts of a checkpoint that the text model does not need, and prefixes that its tensors have where a checkpoint also reads images.
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.",
                "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")
_PREFIXES = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
_HEADS = ("lm_head.weight", "embed_out.weight")


def find_family(config: Config, where: str) -> Arch:
    """The family of a checkpoint by the class that its config.json names. Raises UnsupportedModel."""
    classes = config.get("architectures")
    classes = classes if isinstance(classes, list) else []
    for name in classes:
        if isinstance(name, str) and name in families():
            return families()[name]
    from .supported import advice

    name = ", ".join(map(str, classes))
    raise errors.UnsupportedModel(f"{where}: models of class {name or 'unknown'} are not supported{advice(name, config)}")


def text_config(config: Config, arch: Arch) -> dict[str, Any]:
    """The entries of the text model, with those that its family's files may leave out."""
    inside = config.get("text_config")
    given = {**config, **(inside if isinstance(inside, dict) else {})}
    return {**arch.hf_defaults, **given, **{usual: given[own] for usual, own in arch.hf_keys.items() if own in given}}


def gguf_names(hf_name: str, config: Config, arch: Arch, where: str) -> tuple[str, ...]:
    """GGUF's names of a checkpoint's tensor; none for what the model does without. Raises UnsupportedModel for what it cannot."""
    if hf_name.startswith(_OTHER_PARTS) or arch.ignores(hf_name) or (hf_name in _HEADS and config.get("tie_word_embeddings")):
        return ()
    layer = re.match(r"model\.layers\.(\d+)\.", hf_name)
    if layer and config.get("num_nextn_predict_layers") and int(layer[1]) >= config["num_hidden_layers"]:
        return ()                   # layers that guess further tokens
    prefix = next((p for p in _PREFIXES if hf_name.startswith(p)), "")
    names = arch.gguf_names(_PREFIXES.get(prefix, "") + hf_name.removeprefix(prefix))
    if not names:
        raise errors.UnsupportedModel(f"{where}: tensor {hf_name} is not part of {arch.name} as described in models/\n"
                                      "hint: the checkpoint is a variant that needs its own description")
    return names


def metadata(config: Config, arch: Arch) -> dict[str, Any]:
    """The architecture's GGUF keys and values. config: of the text model."""
    found: dict[str, Any] = {}
    for name, spec in TABLE.items():
        if spec.hf and config.get(spec.hf) is not None:
            found[key_of(name, arch)] = spec.type(_same_for_all_layers(spec.hf, config[spec.hf]))
    if config.get("use_sliding_window") is False:       # Qwen2's files name a window that is not in force
        found.pop("attention.sliding_window", None)
    kinds = config.get("layer_types")
    if kinds and found.get("attention.sliding_window"):
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    if arch.attends:
        found.update(_rope_metadata(config))
    found.update(arch.hf_hparams(config))
    return {f"{arch.name}.{key}": value for key, value in found.items()}


def _same_for_all_layers(entry: str, value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if any(v != value[0] for v in value):
        raise errors.UnsupportedModel(f"{entry} differs from layer to layer\n"
                                      "hint: the checkpoint is a variant that needs its own description")
    return value[0] if value else 0


def rope_parameters(config: Config) -> dict[str, Any]:
    """Rotary parameters in one form: files have them as rope_theta and rope_scaling, or as rope_parameters, there also one
    set a layer type (then those of the full-attention layers)."""
    rope = dict(config.get("rope_parameters") or {})
    rope = dict(rope.get("full_attention") or rope)
    rope.update(config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    for name in ("original_max_position_embeddings", "max_position_embeddings"):
        if config.get(name):
            rope.setdefault("original_max_position_embeddings", config[name])
    return rope


def rope_tensors(config: Config) -> dict[str, list[float]]:
    """Divisors of the rope frequencies, which GGUF keeps as tensors."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config, rope)}
    if rope["rope_type"] in ("longrope", "su"):
        return {f"rope_factors_{name}.weight": [float(x) for x in rope[f"{name}_factor"]] for name in ("long", "short")}
    return {}


def _n_rot(config: Config, rope: Mapping[str, Any]) -> int:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(head_dim * rope["partial_rotary_factor"])


def _rope_metadata(config: Config) -> dict[str, Any]:
    rope = rope_parameters(config)
    kind = "longrope" if rope["rope_type"] == "su" else rope["rope_type"]
    found: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": _n_rot(config, rope)}
    if kind in ("default", "llama3"):
        return found
    if kind not in ("linear", "yarn", "longrope"):
        raise errors.UnsupportedModel(f"rope scaling {kind!r} cannot be converted\nhint: linear, yarn, llama3 and longrope can")
    found["rope.scaling.type"] = kind
    if kind != "longrope":
        found["rope.scaling.factor"] = float(rope["factor"])
    if kind != "linear":
        found["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    if kind == "longrope":
        found["rope.scaling.attn_factor"] = _longrope_growth(config, rope)
    if kind == "yarn":
        for name, key in (("attention_factor", "attn_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
            if rope.get(name) is not None:
                found[f"rope.scaling.yarn_{key}"] = float(rope[name])
        if rope.get("attention_factor") is None and rope.get("mscale") and rope.get("mscale_all_dim"):
            found["rope.scaling.yarn_log_multiplier"] = float(rope["mscale_all_dim"])
            if rope["mscale"] != 1:
                grow, less = (growth(rope["factor"], rope[name]) for name in ("mscale", "mscale_all_dim"))
                found["rope.scaling.yarn_attn_factor"] = grow / less
    return found


def _longrope_growth(config: Config, rope: Mapping[str, Any]) -> float:
    """LongRoPE's factor on cos and sin (Ding et al., arXiv:2402.13753): sqrt(1 + ln(s) / ln(trained)), s the stretch."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    trained = rope["original_max_position_embeddings"]
    stretch = rope.get("factor") or config["max_position_embeddings"] / trained
    return sqrt(1 + lib.pyllm_math_log(stretch) / lib.pyllm_math_log(trained)) if stretch > 1 else 1.0


def _llama3_factors(config: Config, rope: Mapping[str, Any]) -> list[float]:
    """Llama 3.1: pairs that turn often in the trained context stay (1), slow ones are divided by factor, smoothly between."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    out = []
    for f in base_frequencies(rope["rope_theta"], _n_rot(config, rope)):
        turns = rope["original_max_position_embeddings"] * f / (2 * PI)
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        out.append(1.0 / ((1 - smooth) / rope["factor"] + smooth))
    return out
