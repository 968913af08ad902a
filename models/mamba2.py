"""Mamba 2 (Dao and Gu, arXiv:2405.21060): heads whose states decay at one rate, all inputs of the scan from one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pyllm import errors

from .mamba import Mamba

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Mamba2(Mamba):
    names: ClassVar[tuple[str, ...]] = ("mamba2", "Mamba2ForCausalLM")
    tensors: ClassVar[dict[str, Any]] = Mamba.tensors | {
        "backbone.layers.{i}.mixer.dt_bias": "blk.{i}.ssm_dt.bias",
        "backbone.layers.{i}.mixer.norm": "blk.{i}.ssm_norm",
    }

    def mixer(self, g: Builder, c: Config, h: Value) -> Value:
        return mamba2(g, c, h)

    def shape(self, name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
        return scan_shape(name, shape, config["n_groups"])

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"feed_forward_length": 0, "attention.head_count": 0,
                **scan_hparams(config, config["num_heads"], config["expand"], config["state_size"], config["conv_kernel"],
                               config["n_groups"])}


def mamba2(g: Builder, c: Config, h: Value) -> Value:
    """What a layer's mixer has before its last matrix. Granite's hybrids have it, too."""
    n, wide = c.ssm_inner, c.ssm_inner + 2 * c.ssm_groups * c.ssm_states
    gate, xbc = g.linear(h, f"ssm_in[0:{n}]", f"ssm_in[{n}:{n + wide}]")
    dt = g.linear(h, f"ssm_in[{n + wide}:{n + wide + c.ssm_rank}]", bias="ssm_dt.bias", act="softplus")
    y = g.ssd(g.conv(xbc, "ssm_conv1d", act="silu"), dt, c.ssm_rank, c.ssm_groups, c.ssm_states)
    return g.norm(g.glu(gate, y, act="silu"), "ssm_norm", groups=c.ssm_groups)


def scan_shape(name: str, shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """What belongs to heads and groups has a dimension for these."""
    if name.endswith((".ssm_a", ".ssm_d")):
        return (*shape, 1)
    return (groups, shape[0] // groups) if ".ssm_norm." in name else shape


def scan_hparams(config: Mapping[str, Any], heads: int, expand: float, states: int, kernel: int, groups: int) -> dict[str, Any]:
    """GGUF's keys. Raises UnsupportedModel for limited time steps."""
    low, high = config.get("time_step_limit") or (0.0, float("inf"))
    if low > 0 or float(high) < float("inf"):
        raise errors.UnsupportedModel(f"time_step_limit is {low} to {high}, and limited time steps cannot run\n"
                                      "hint: published Mamba 2 models have none")
    return {"ssm.conv_kernel": int(kernel), "ssm.inner_size": int(expand * config["hidden_size"]), "ssm.state_size": int(states),
            "ssm.time_step_rank": int(heads), "ssm.group_count": int(groups)}
