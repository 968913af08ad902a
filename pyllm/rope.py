"""Rotary frequencies: the base formula and its stretched forms (linear, yarn, llama3, longrope).

Pair i of a head's first n_rot values turns by position * f[i], f[i] = base^(-2i / n_rot). Everything here is + - * / and
the library's own pow and log, never math.log and the like, so that a tape has the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor  # exact
from typing import TYPE_CHECKING

from . import errors
from ._core import lib
from .hparams import Config

if TYPE_CHECKING:
    from .models import Arch

PI = 3.141592653589793


def frequencies(c: Config, factors: Sequence[float] | None, arch: Arch) -> tuple[list[float], float]:
    """(radians a position for every pair, factor on cos and sin) of a model's global layers.

    factors: divisors of the frequencies from the file's tensors (llama3's rope_freqs, longrope's long or short ones)."""
    plain = base_frequencies(c.rope_base, c.n_rot)
    if factors is not None:
        if len(factors) != len(plain) or not all(0 < x < 1e30 for x in factors):
            raise errors.FormatError(f"{c.path}: the rope factors are not {len(plain)} positive numbers\n"
                                     "hint: the file is damaged; download or convert it again")
        plain = [f / x for f, x in zip(plain, factors, strict=True)]
    if c.rope_scaling in ("none", "longrope", "su"):
        return plain, c.rope_attn_factor
    if c.rope_scaling == "linear":
        return [f / c.rope_factor for f in plain], c.rope_attn_factor
    if c.rope_scaling == "yarn":
        return _yarn(c, plain, arch)
    raise errors.UnsupportedModel(f"{c.path}: rope scaling {c.rope_scaling!r} is not known\nhint: linear, yarn, llama3 and longrope are")


def base_frequencies(base: float, n_rot: int) -> list[float]:
    return [1.0 / lib.pyllm_math_pow(base, 2 * i / n_rot) for i in range(n_rot // 2)]


def _yarn(c: Config, plain: list[float], arch: Arch) -> tuple[list[float], float]:
    """YaRN (Peng et al., arXiv:2309.00071): pairs that turn often within the trained context stay, slow ones are
    interpolated, with a ramp between; cos and sin grow by 0.1 ln(factor) + 1, less what the file's multiplier says."""

    def pair_of(rotations: float) -> float:         # the pair that makes so many turns in the trained context
        x: float = c.n_rot * lib.pyllm_math_log(c.rope_n_ctx / (rotations * 2 * PI)) / (2 * lib.pyllm_math_log(c.rope_base))
        return x

    if c.rope_base <= 1:
        raise errors.FormatError(f"{c.path}: yarn needs a rope.freq_base above 1, not {c.rope_base}\nhint: the file is damaged")
    low, high = pair_of(c.yarn_beta_fast), pair_of(c.yarn_beta_slow)
    if arch.yarn_truncates:
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, c.n_rot - 1)
    width = max(high - low, 0.001)
    ramp = [min(1.0, max(0.0, (i - low) / width)) for i in range(len(plain))]
    mixed = [f / c.rope_factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]
    scores_grow = arch.yarn_scales_scores and c.yarn_log_mul
    grow = 1.0 if scores_grow else growth(c.rope_factor, 1.0) / growth(c.rope_factor, c.yarn_log_mul)
    return mixed, (grow if c.yarn_attn_factor is None else c.yarn_attn_factor) * c.rope_attn_factor


def growth(factor: float, by: float) -> float:
    """0.1 by ln(factor) + 1: how much scores grow with a stretch of the context."""
    return 0.1 * by * lib.pyllm_math_log(factor) + 1 if factor > 1 else 1.0
