"""Mamba (Gu and Dao, arXiv:2312.00752) and Falcon Mamba (arXiv:2410.05355): a convolution and a selective scan in each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from . import Arch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Mamba(Arch):
    names: ClassVar[tuple[str, ...]] = ("mamba", "MambaForCausalLM", "FalconMambaForCausalLM")
    attends = False
    defaults: ClassVar[dict[str, Any]] = {"n_ff": 0, "group_eps": 1e-6}
    hf_keys = {"rms_norm_eps": "layer_norm_epsilon"}
    hf_defaults = {"max_position_embeddings": 1 << 20}
    tensors: ClassVar[dict[str, Any]] = {
        "backbone.embeddings": "token_embd",
        "backbone.layers.{i}.norm": "blk.{i}.attn_norm",
        "backbone.layers.{i}.mixer.in_proj": "blk.{i}.ssm_in",
        "backbone.layers.{i}.mixer.conv1d": "blk.{i}.ssm_conv1d",
        "backbone.layers.{i}.mixer.x_proj": "blk.{i}.ssm_x",
        "backbone.layers.{i}.mixer.dt_proj": "blk.{i}.ssm_dt",
        "backbone.layers.{i}.mixer.A_log": "blk.{i}.ssm_a",
        "backbone.layers.{i}.mixer.D": "blk.{i}.ssm_d",
        "backbone.layers.{i}.mixer.out_proj": "blk.{i}.ssm_out",
        "backbone.norm_f": "output_norm",
        "lm_head": "output",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            x = g.linear(self.mixer(g, c, g.norm(x, "attn_norm")), "ssm_out", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def mixer(self, g: Builder, c: Config, h: Value) -> Value:
        n, rank, states = c.ssm_inner, c.ssm_rank, c.ssm_states
        y, gate = g.linear(h, f"ssm_in[0:{n}]", f"ssm_in[{n}:{2 * n}]")
        y = g.conv(y, "ssm_conv1d", act="silu")
        parts = g.linear(y, "ssm_x")
        spans = ((0, rank), (rank, rank + states), (rank + states, rank + 2 * states))
        dt, b, c_ = (g.take(parts, 1, begin, end) for begin, end in spans)
        if c.ssm_norms:
            dt, b, c_ = (g.norm(v, "", eps=c.group_eps) for v in (dt, b, c_))
        return g.glu(gate, g.ssm(y, g.linear(dt, "ssm_dt", act="softplus"), b, c_, states), act="silu")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"feed_forward_length": 0, "attention.head_count": 0, "ssm.conv_kernel": int(config["conv_kernel"]),
                "ssm.inner_size": int(config["expand"] * config["hidden_size"]), "ssm.state_size": int(config["state_size"]),
                "ssm.time_step_rank": int(config["time_step_rank"]), "ssm.dt_b_c_rms": "mixer_rms_eps" in config,
                **({"attention.group_norm_epsilon": float(config["mixer_rms_eps"])} if "mixer_rms_eps" in config else {})}

    def change(self, name: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
        return minus_exp if name.endswith(".ssm_a") else None


def minus_exp(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Checkpoints have the logarithm of minus what states grow by."""
    import numpy as np

    return (-np.exp(values.astype(np.float64))).astype(np.float32)
