"""What runs: every family of models/ with its names and features, and of a model that does not run the nearest one that does.

Features are found, not written down: a family's forward pass runs over a file that has every tensor, and its steps tell.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from types import SimpleNamespace
from typing import Any

from . import hparams
from .build import Builder, Value
from .models import Arch, families

EXPERTS, LATENT, BOTH_WAYS = "experts", "compressed KV (MLA)", "attention in both directions"
STATE_SPACE, TIME_MIXING, SHORT_CONVOLUTIONS = "state-space layers", "RWKV time mixing", "short convolutions"
DELTA_NETS, LAYER_INPUTS = "gated delta nets", "embeddings in each layer"

# Ops of the tape that are a feature of their own.
_OPS = {"wkv": TIME_MIXING, "wkv7": TIME_MIXING, "ssm": STATE_SPACE, "ssd": STATE_SPACE, "delta": DELTA_NETS,
        "moe_gated": EXPERTS, "headwise": LATENT, "positions": "learned positions", "layernorm": "layer norms",
        "temperature": "scaled queries", "blend": "alternating updates (AltUp)"}

# What a model may need: feature, beginnings of GGUF keys without the architecture's name, entries of config.json.
_NEEDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (EXPERTS, ("expert_count",), ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")),
    (LATENT, ("attention.kv_lora_rank",), ("kv_lora_rank",)),
    ("sparse attention by an index", ("attention.indexer.",), ("index_topk",)),
    (STATE_SPACE, ("ssm.",), ("mamba_d_state", "mamba_num_heads", "ssm_state_size", "state_size")),
    (DELTA_NETS, (), ("linear_num_value_heads", "linear_attn_config")),
    (TIME_MIXING, ("wkv.",), ("attention_hidden_size", "head_size_divisor")),
    (SHORT_CONVOLUTIONS, ("shortconv.",), ("conv_L_cache",)),
    (LAYER_INPUTS, ("embedding_length_per_layer_input",), ("hidden_size_per_layer_input",)),
    ("ALiBi", ("attention.max_alibi_bias",), ("alibi",)),
    ("positions in several dimensions", ("rope.dimension_sections",), ("mrope_section",)),
    ("an encoder beside the decoder", ("decoder_start_token_id",), ("is_encoder_decoder",)),
    (BOTH_WAYS, ("pooling_type",), ("position_embedding_type",)),
    ("images", ("vision.", "clip."), ("vision_config", "vision_cfg")),
    ("sound", ("audio.",), ("audio_config",)),
)


@dataclass(frozen=True)
class Family:
    """name: GGUF's general.architecture; classes: of Hugging Face checkpoints; about: first line of its file in models/; features: what its
    files may have beside plain causal attention; oracle: whose logits the tests compare with."""

    name: str
    classes: tuple[str, ...]
    about: str
    features: tuple[str, ...]
    oracle: str


@cache
def supported() -> tuple[Family, ...]:
    """Every family, by name."""
    found = sorted(set(families().values()), key=lambda arch: arch.name)
    return tuple(Family(arch.name, arch.names[1:], _about(arch), tuple(sorted(_features(arch))), arch.oracle) for arch in found)


def advice(name: str, values: Mapping[str, Any]) -> str:
    """For a model that cannot run: the nearest that can, what this one has beyond it, and a hint. name: its architecture or class; values:
    GGUF's metadata or config.json."""
    needs = set(_needs(values))
    near = _nearest(name, needs)
    missing = sorted(needs - set(near.features))
    has = f"this one also has {', '.join(missing)}" if missing else "what differs does not show in the metadata"
    return (f"; the nearest that is: {near.name}, but {has}\n"
            "hint: `pyllm models` lists what runs; docs/adding-a-model.md shows how to add a family")


def _nearest(name: str, needs: Collection[str]) -> Family:
    """By name, or else by what is common to both and little beyond."""
    own = _plain(name)
    likeness = {f: max(SequenceMatcher(None, own, _plain(n)).ratio() for n in (f.name, *f.classes)) for f in supported()}
    best = max(likeness, key=lambda f: likeness[f])
    if own and likeness[best] >= 0.7:
        return best
    return min(supported(), key=lambda f: (-len({*needs} & {*f.features}), "llama" not in f.name, len(f.features), -likeness[f]))


def _plain(name: str) -> str:
    """A name without what all have: "Qwen3VLForConditionalGeneration" and "qwen3vl" are the same."""
    name = name[:100]       # of a file that says what it likes
    return re.sub(r"For[A-Z].*$|(LMHead)?Model$|[-_ ]", "", name).lower()


def _needs(values: Mapping[str, Any]) -> Iterator[str]:
    arch = values.get("general.architecture")
    if isinstance(arch, str):
        given = {key.removeprefix(f"{arch}.") for key in values if values[key] is not False and not _is_zero(values[key])}
        yield from (feature for feature, keys, _ in _NEEDS if any(k.startswith(keys) for k in given if keys))
        return
    inside = values.get("text_config")
    rope = [values.get(key) for key in ("rope_scaling", "rope_parameters")]
    parts = [p for p in (values, inside, *rope) if isinstance(p, dict)]
    for feature, _, entries in _NEEDS:
        if any(part.get(entry) not in (None, False, 0) for part in parts for entry in entries):
            yield feature


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _about(arch: Arch) -> str:
    text = (sys.modules[type(arch).__module__].__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split())


# ---- features ----

class _Everything:
    """A file with every weight of the family's name map."""

    path, adapters = "", ()

    def __init__(self, arch: Arch) -> None:
        self.tensors = self
        names = (name for found in arch.tensors.values() for name in ((found,) if isinstance(found, str) else found))
        self._names = {name.removesuffix(".weight") + ".weight" for name in names}
        sizes = {"block_count": 12, "context_length": 4096, "embedding_length": 128, "feed_forward_length": 128, "attention.head_count": 4,
                 "attention.head_count_kv": 2, "expert_count": 8, "expert_used_count": 2, "attention.sliding_window": 64,
                 "attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0, "attention.temperature_scale": 0.5,
                 "attention.shared_kv_layers": 4}
        sizes |= {"ssm.inner_size": 128, "ssm.state_size": 16, "ssm.time_step_rank": 8}
        self.kv: dict[str, Any] = {f"{arch.name}.{key}": value for key, value in sizes.items()}
        if arch.hybrid:
            self.kv[f"{arch.name}.attention.head_count_kv"] = 6 * (0, 2)
        self.kv |= {f"{arch.name}.{hparams.key_of('eps', arch)}": 1e-5}

    def __contains__(self, name: str) -> bool:
        return re.sub(r"^blk\.\d+\.", "blk.{i}.", name) in self._names

    def __getitem__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(shape=(128, 256))


class _Notes(Builder):
    """A builder that notes steps and writes no tape."""

    def __init__(self, arch: Arch) -> None:
        file: Any = _Everything(arch)
        super().__init__(file, arch, hparams.read(file.kv, arch, "", n_vocab=256, n_ctx=None))
        self.steps: list[tuple[str, dict[str, str]]] = []

    def _step(self, op: str, labels: list[str], params: list[tuple[str, object]]) -> tuple[Value, ...]:
        self.steps.append((op, {key: str(value) for key, value in params}))
        return super()._step(op, labels, params)


def _features(arch: Arch) -> set[str]:
    notes = _Notes(arch)
    arch.forward(notes, notes.c)
    found = {_OPS[op] for op, _ in notes.steps if op in _OPS}
    if "conv" in {op for op, _ in notes.steps} and not {STATE_SPACE, DELTA_NETS} & found:
        found.add(SHORT_CONVOLUTIONS)
    attention = [params for op, params in notes.steps if op == "attn"]
    windows = {params["window"] for params in attention} - {"0"}
    if windows:
        found.add("windows" if all(params["window"] != "0" for params in attention) else "windows in some layers")
    if len({params["layer"] for params in attention}) < len(attention):
        found.add("keys and values of other layers")
    if sum(op == "embed" for op, _ in notes.steps) > 1:
        found.add(LAYER_INPUTS)
    if any("causal" in params for params in attention):
        found.add(BOTH_WAYS)
    if any("sinks" in params for params in attention):
        found.add("sinks")
    if any(op == "softcap" or params.get("softcap", "0.0") != "0.0" for op, params in notes.steps):
        found.add("soft caps")
    if sum(op == "rope" for op, _ in notes.steps) < len(attention) and "learned positions" not in found:
        found.add("layers without rope")
    return found
