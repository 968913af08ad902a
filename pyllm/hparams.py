"""Hyperparameters: one table says each one's GGUF key, type, range and default, and its name in Hugging Face's config.json.

`read` checks every value before a tape is built; pyllm/hf.py writes the same keys when a checkpoint is converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from .models import Arch

REQUIRED: Any = object()
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """One row of the table. key: without the architecture's prefix; default: a value, or a function of the values before it; per_layer:
    least and greatest entry where a file may have a list of one entry a layer."""

    key: str
    type: type
    low: float
    high: float
    default: Any
    hf: str
    per_layer: tuple[float, float] | None = None


def _row(key: str, kind: type, low: float, high: float, default: Any = REQUIRED, hf: str = "", *,
         per_layer: tuple[float, float] | None = None) -> Any:
    return field(metadata={"spec": Spec(key, kind, low, high, default, hf, per_layer)})


def _default_head_dim(v: Values) -> int:
    return int(v["n_embd"]) // int(v["n_heads"])


@dataclass(frozen=True)
class Config:
    """A model's hyperparameters, checked. Widths and lengths are in values and tokens."""

    path: str
    arch: str
    n_vocab: int
    n_ctx: int          # context that the tape is written for: longrope picks its factors by it
    recurrent_layers: frozenset[int]        # of hybrids: those without attention
    n_layers: int = _row("block_count", int, 1, 1024, hf="num_hidden_layers")
    n_guessing: int = _row("nextn_predict_layers", int, 0, 64, 0)       # of these the last, which guess further tokens
    n_ctx_train: int = _row("context_length", int, 1, 1 << 30, hf="max_position_embeddings")
    n_embd: int = _row("embedding_length", int, 1, 1 << 20, hf="hidden_size")
    n_ff: int = _row("feed_forward_length", int, 0, 1 << 24, hf="intermediate_size")
    n_experts: int = _row("expert_count", int, 0, 4096, 0, "num_experts")
    n_experts_used: int = _row("expert_used_count", int, 0, 64, 0, "num_experts_per_tok")
    expert_ff: int = _row("expert_feed_forward_length", int, 0, 1 << 24, lambda v: v["n_ff"], "moe_intermediate_size")
    n_expert_groups: int = _row("expert_group_count", int, 0, 4096, 0, "n_group")
    n_expert_groups_used: int = _row("expert_group_used_count", int, 0, 4096, lambda v: v["n_expert_groups"], "topk_group")
    expert_gating: int = _row("expert_gating_func", int, 1, 3, 1)
    expert_norm: bool = _row("expert_weights_norm", bool, 0, 1, True, "norm_topk_prob")
    expert_scale: float = _row("expert_weights_scale", float, 0, 1e6, 1.0, "routed_scaling_factor")
    n_heads: int = _row("attention.head_count", int, 1, 65536, hf="num_attention_heads")
    n_kv_heads: int = _row("attention.head_count_kv", int, 1, 65536, lambda v: v["n_heads"], "num_key_value_heads",
                           per_layer=(0, 65536))
    head_dim: int = _row("attention.key_length", int, 16, 1024, _default_head_dim, "head_dim")
    value_dim: int = _row("attention.value_length", int, 16, 1024, lambda v: v["head_dim"], "head_dim")
    latent: int = _row("attention.kv_lora_rank", int, 0, 1008, 0, "kv_lora_rank")
    latent_head_dim: int = _row("attention.key_length_mla", int, 16, 1024, lambda v: v["head_dim"])
    latent_value_dim: int = _row("attention.value_length_mla", int, 16, 1024, lambda v: v["value_dim"])
    eps: float = _row("attention.layer_norm_rms_epsilon", float, 1e-20, 1.0, hf="rms_norm_eps")
    group_eps: float = _row("attention.group_norm_epsilon", float, 1e-20, 1.0, 64e-5)
    attn_scale: float = _row("attention.scale", float, 1e-9, 1e9, None)
    attn_temperature: float = _row("attention.temperature_scale", float, 0, 1e3, 0.0)
    temperature_length: int = _row("attention.temperature_length", int, 1, 1 << 30, lambda v: v["n_ctx_train"])
    pooling: int = _row("pooling_type", int, 0, 4, None)
    embedding_scale: float = _row("embedding_scale", float, -1e9, 1e9, 1.0, "embedding_multiplier")
    residual_scale: float = _row("residual_scale", float, -1e9, 1e9, 1.0, "residual_multiplier")
    logit_scale: float = _row("logit_scale", float, 1e-9, 1e9, 1.0, "logit_scale")
    parallel: bool = _row("use_parallel_residual", bool, 0, 1, False, "use_parallel_residual")
    attn_softcap: float = _row("attn_logit_softcapping", float, 0, 1e9, 0.0, "attn_logit_softcapping")
    final_softcap: float = _row("final_logit_softcapping", float, 0, 1e9, 0.0, "final_logit_softcapping")
    kv_reusers: int = _row("attention.shared_kv_layers", int, 0, 1023, 0, "num_kv_shared_layers")      # the last: without keys of their own
    layer_embd: int = _row("embedding_length_per_layer_input", int, 0, 1 << 20, 0, "hidden_size_per_layer_input")
    altup_inputs: int = _row("altup.num_inputs", int, 1, 64, 1, "altup_num_inputs")
    altup_active: int = _row("altup.active_idx", int, 0, 63, 0, "altup_active_idx")
    cutoffs: float | tuple[float, ...] | None = _row("activation_sparsity_scale", float, -1e3, 1e3, None, per_layer=(-inf, 1e3))
    window: int = _row("attention.sliding_window", int, 0, 1 << 30, 0, "sliding_window")
    window_pattern: int | tuple[int, ...] = _row("attention.sliding_window_pattern", int, 1, 1024, 1, per_layer=(0, 1))
    n_rot: int = _row("rope.dimension_count", int, 2, 1024, lambda v: v["head_dim"])
    rope_base: float = _row("rope.freq_base", float, 1.0, 1e15, 10000.0)
    rope_base_local: float = _row("rope.freq_base_swa", float, 1.0, 1e15, lambda v: v["rope_base"])
    rope_scaling: str = _row("rope.scaling.type", str, 0, 32, "none")
    rope_factor: float = _row("rope.scaling.factor", float, 1e-3, 1e6, 1.0)
    rope_n_ctx: int = _row("rope.scaling.original_context_length", int, 2, 1 << 30, lambda v: max(2, v["n_ctx_train"]))
    rope_attn_factor: float = _row("rope.scaling.attn_factor", float, 1e-3, 1e3, 1.0)
    yarn_attn_factor: float = _row("rope.scaling.yarn_attn_factor", float, 1e-3, 1e3, None)
    yarn_log_mul: float = _row("rope.scaling.yarn_log_multiplier", float, 0, 1e3, 0.0)
    yarn_beta_fast: float = _row("rope.scaling.yarn_beta_fast", float, 1e-3, 1e6, 32.0)
    yarn_beta_slow: float = _row("rope.scaling.yarn_beta_slow", float, 1e-3, 1e6, 1.0)

    rope_used: bool = _row("rope.scaling.finetuned", bool, 0, 1, True)       # Granite's hybrids say with this whether they have rope
    ssm_inner: int = _row("ssm.inner_size", int, 0, 1 << 20, 0)
    ssm_states: int = _row("ssm.state_size", int, 0, 256, 0)
    ssm_rank: int = _row("ssm.time_step_rank", int, 0, 65536, 0)
    ssm_groups: int = _row("ssm.group_count", int, 1, 65536, 1)
    ssm_norms: bool = _row("ssm.dt_b_c_rms", bool, 0, 1, False)
    attention_interval: int = _row("full_attention_interval", int, 0, 1024, 0)
    wkv_head: int = _row("wkv.head_size", int, 1, 256, 64, "head_size")
    rescale_every: int = _row("rescale_every_n_layers", int, 0, 1024, 0, "rescale_every")

    def attends(self, layer: int) -> bool:
        return layer not in self.recurrent_layers

    def is_local(self, layer: int) -> bool:
        """Whether a layer attends only within the window: in patterns of n, the last layer of every n is global."""
        if isinstance(self.window_pattern, tuple):
            return bool(self.window_pattern[layer])
        return (layer + 1) % self.window_pattern != 0

    def window_of(self, layer: int) -> int:
        return self.window if self.is_local(layer) else 0

    def cutoff_of(self, layer: int) -> float:
        """How many standard deviations above their mean a layer's gates are cut off; -inf: nowhere."""
        return self.cutoffs[layer] if isinstance(self.cutoffs, tuple) else -inf if self.cutoffs is None else self.cutoffs


_ATTENTION = ("attention.head_count", "attention.key_length", "attention.value_length", "rope.")     # nothing to models without attention
TABLE: dict[str, Spec] = {f.name: f.metadata["spec"] for f in fields(Config) if "spec" in f.metadata}


def key_of(name: str, arch: Arch) -> str:
    """The GGUF key of a row of the table, without prefix: layer norms have their own for eps."""
    return "attention.layer_norm_epsilon" if name == "eps" and arch.layer_norm else TABLE[name].key


def read(kv: Values, arch: Arch, path: str, n_vocab: int, n_ctx: int | None) -> Config:
    """The table's values from a file's metadata; raises FormatError or UnsupportedModel naming key, value, range and file."""
    values: dict[str, Any] = {}
    for name, spec in TABLE.items():
        key = f"{arch.name}.{key_of(name, arch)}"
        raw = kv.get(key)
        if not arch.attends and key_of(name, arch).startswith(_ATTENTION):
            values[name] = spec.default if isinstance(spec.default, int | float | str) else None if spec.default is None else 0
            continue
        if raw is None:
            default = arch.defaults.get(name, spec.default)
            if default is REQUIRED:
                raise errors.FormatError(f"{path}: the metadata has no {key}\nhint: the file is incomplete; download or convert it again")
            raw = default(values) if callable(default) else default
            if raw is None:
                values[name] = None
                continue
        if spec.per_layer and hasattr(raw, "__len__") and not isinstance(raw, str):
            values[name] = _layers(key, spec, raw, values["n_layers"], path)
        else:
            values[name] = _checked(key, spec, _same_for_all_layers(key, raw, path), path)
    recurrent = _recurrent_layers(values, arch, path)
    config = Config(path=path, recurrent_layers=recurrent, arch=arch.name, n_vocab=n_vocab, n_ctx=n_ctx or values["n_ctx_train"], **values)
    if arch.attends:
        _check_together(config)
    return config


def _recurrent_layers(values: dict[str, Any], arch: Arch, path: str) -> frozenset[int]:
    """Layers without heads of keys and values; n_kv_heads becomes the number of the others."""
    heads = values["n_kv_heads"]
    if not isinstance(heads, tuple):
        every = values["attention_interval"] if arch.hybrid else 0      # every so many layers, the last one attends
        return frozenset(i for i in range(values["n_layers"]) if every and (i + 1) % every)
    recurrent = frozenset(i for i, n in enumerate(heads) if not n) if arch.hybrid else frozenset[int]()
    values["n_kv_heads"] = values["n_heads"]
    if len(recurrent) < len(heads):
        counts = [_Count(n) for i, n in enumerate(heads) if i not in recurrent]
        values["n_kv_heads"] = _same_for_all_layers(f"{arch.name}.attention.head_count_kv", counts, path)
    if not values["n_kv_heads"]:
        raise errors.FormatError(f"{path}: {arch.name}.attention.head_count_kv is 0\n"
                                 "hint: the file is damaged; download or convert it again")
    return recurrent


class _Count(int):
    def item(self) -> int:
        return int(self)


def _layers(key: str, spec: Spec, raw: Any, n_layers: int, path: str) -> tuple[Any, ...]:
    if len(raw) != n_layers:
        raise errors.FormatError(f"{path}: {key} is a list of {len(raw)} for {n_layers} layers\n"
                                 "hint: the file is damaged; download or convert it again")
    entry = replace(spec, low=spec.per_layer[0], high=spec.per_layer[1]) if spec.per_layer else spec
    items = (x.item() if hasattr(x, "item") else x for x in raw)
    return tuple(_checked(key, entry, int(x) if isinstance(x, bool) else x, path) for x in items)


def _same_for_all_layers(key: str, raw: Any, path: str) -> Any:
    if isinstance(raw, str) or not hasattr(raw, "__len__"):
        return raw
    items = {x if isinstance(x, str) else x.item() for x in raw}
    if len(items) != 1:
        raise errors.UnsupportedModel(f"{path}: {key} differs from layer to layer, which this architecture cannot express\n"
                                      "hint: the file may be a variant that needs its own description in models/")
    return items.pop()


def _checked(key: str, spec: Spec, raw: Any, path: str) -> Any:
    if spec.type is bool:
        good = isinstance(raw, bool)
    else:
        good = isinstance(raw, str) if spec.type is str else isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if good and spec.type is int:
        good = raw == int(raw) if isfinite(raw) else False
    if good:
        value = spec.type(raw)
        size = len(value) if spec.type is str else value
        if spec.low <= size <= spec.high:
            return value
    number = f"{'a whole' if spec.type is int else 'a'} number from {spec.low:g} to {spec.high:g}"
    wanted = {str: "a short name", bool: "true or false"}.get(spec.type, number)
    raise errors.FormatError(f"{path}: {key} is {raw!r}, not {wanted}\nhint: the file is damaged; download or convert it again")


def _check_together(c: Config) -> None:
    def fail(what: str) -> None:
        raise errors.FormatError(f"{c.path}: {what}\nhint: the file is damaged; download or convert it again")

    if c.kv_reusers >= c.n_layers:
        fail(f"{c.kv_reusers} of {c.n_layers} layers have no keys and values of their own")
    if c.altup_active >= c.altup_inputs:
        fail(f"{c.arch}.altup.active_idx {c.altup_active} is none of {c.altup_inputs} inputs")
    if c.n_guessing >= c.n_layers:
        fail(f"{c.n_guessing} of {c.n_layers} layers guess further tokens")
    if c.n_heads % c.n_kv_heads:
        fail(f"{c.arch}.attention.head_count {c.n_heads} is not a multiple of head_count_kv {c.n_kv_heads}")
    if c.n_rot % 2 or c.n_rot > c.head_dim:
        fail(f"{c.arch}.rope.dimension_count {c.n_rot} is not even or exceeds the head size {c.head_dim}")
    if c.head_dim % 16 or c.value_dim % 16:
        raise errors.UnsupportedModel(f"{c.path}: attention heads of {c.head_dim} (keys) and {c.value_dim} (values) cannot run: "
                                      "both must be multiples of 16\nhint: choose a model with another head size")
    if c.latent and (c.n_rot >= c.latent_head_dim or (c.latent_head_dim - c.n_rot) % 16 or c.n_rot % 16 or c.latent % 16):
        fail(f"keys of {c.latent_head_dim}, of which {c.n_rot} turn, and a latent vector of {c.latent} are not multiples of 16")
