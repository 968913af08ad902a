"""The tape builder: hyperparameters and names that files get wrong, and the numbers that go on a tape."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm import build, errors, hparams, rope
from pyllm.models import families

KV: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 512, "llama.embedding_length": 64,
    "llama.feed_forward_length": 128, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


class FakeFile:
    """A GGUF header without a file."""

    def __init__(self, **kv: Any) -> None:
        self.path = "some/model.gguf"
        self.adapters = ()
        self.kv = KV | {key.replace("__", "."): value for key, value in kv.items()}
        names = ["token_embd", "output_norm", "output", *(f"blk.{i}.{n}" for i in range(2) for n in LAYER)]
        self.tensors = {f"{name}.weight": SimpleNamespace(shape=(64, 320)) for name in names}

    def read(self, name: str) -> Any:
        raise AssertionError(f"{name} is not needed")


def test_tape_of_a_small_llama() -> None:
    lines = build.tape_text(FakeFile()).splitlines()
    assert lines[:3] == ["pyllm-tape 1", "hparam n_vocab 320", "hparam n_ctx_train 512"]
    assert lines[3].startswith("table rope0 0x1p+0 0x1.43d136p-2 ")
    assert lines[4:13] == [
        "embed x w=token_embd.weight scale=0x1p+0",
        "norm attn_norm0 in=x w=blk.0.attn_norm.weight eps=0x1.4f8b58p-17",
        "linear q0,k0,v0 in=attn_norm0 w=blk.0.attn_q.weight,blk.0.attn_k.weight,blk.0.attn_v.weight bias=-,-,-",
        "angles angles table=rope0 mscale=0x1p+0",
        "rope q_rope0,k_rope0 in=q0,k0 angles=angles heads=4,2 dim=16 rot=16 neox=0 norm=-,- eps=0x0p+0",
        "attn attn0 in=q_rope0,k_rope0,v0 layer=0 heads=4 kv_heads=2 dim=16 scale=0x1p-2 window=0 softcap=0x0p+0",
        "linear output0 in=attn0 w=blk.0.attn_output.weight bias=- add=x",
        "norm ffn_norm0 in=output0 w=blk.0.ffn_norm.weight eps=0x1.4f8b58p-17",
        "gated ffn0 in=ffn_norm0 w=blk.0.ffn_gate.weight,blk.0.ffn_up.weight act=silu",
    ]
    assert lines[-3:] == ["rows rows in=down1", "norm output_norm in=rows w=output_norm.weight eps=0x1.4f8b58p-17",
                          "linear logits in=output_norm w=output.weight bias=-"]


def test_missing_output_is_the_tied_embedding() -> None:
    file = FakeFile()
    del file.tensors["output.weight"]
    assert build.tape_text(file).endswith("linear logits in=output_norm w=token_embd.weight bias=-\n")


def test_biases_are_used_where_the_file_has_them() -> None:
    file = FakeFile()
    file.tensors["blk.1.attn_k.bias"] = SimpleNamespace(shape=(32,))
    biases = [line.split(" bias=")[1] for line in build.tape_text(file).splitlines() if line.startswith("linear q")]
    assert biases == ["-,-,-", "-,blk.1.attn_k.bias,-"]


def test_missing_tensor_is_named() -> None:
    file = FakeFile()
    del file.tensors["blk.1.ffn_up.weight"]
    with pytest.raises(errors.FormatError, match=r"some/model\.gguf: tensor blk\.1\.ffn_up\.weight is missing"):
        build.tape_text(file)


@pytest.mark.parametrize("architecture", [None, 7, "LlamaForCausalLM", ""])
def test_architecture_must_be_a_gguf_name(architecture: Any) -> None:
    with pytest.raises((errors.FormatError, errors.UnsupportedModel)):
        build.tape_text(FakeFile(general__architecture=architecture))


def wrong_values(spec: hparams.Spec) -> list[Any]:
    if spec.type is str:
        return [1, True, "x" * 33]
    if spec.type is bool:
        return [1, "yes", [True, False]]
    below = spec.low - 1 if spec.type is int else spec.low - 0.5
    wrong = [below, spec.high * 2, "12", True, float("nan"), float("inf"), -float("inf"), -(2**63), [1, 2, 1]]
    return [*wrong, 1.5] if spec.type is int else wrong


@pytest.mark.parametrize("name, value", [(name, v) for name, spec in hparams.TABLE.items() for v in wrong_values(spec)])
def test_every_hyperparameter_is_checked(name: str, value: Any) -> None:
    key = "llama." + hparams.TABLE[name].key
    file = FakeFile()
    file.kv[key] = np.array(value) if isinstance(value, list) else value
    with pytest.raises(errors.Error) as e:
        build.tape_text(file)
    assert key in str(e.value) and file.path in str(e.value) and e.value.hint
    assert isinstance(value, list) or repr(value) in str(e.value)


@pytest.mark.parametrize("name", [n for n, spec in hparams.TABLE.items() if spec.default is hparams.REQUIRED])
def test_required_hyperparameters_are_named_when_absent(name: str) -> None:
    file = FakeFile()
    key = "llama." + hparams.TABLE[name].key
    del file.kv[key]
    with pytest.raises(errors.FormatError, match=f"has no {key}"):
        build.tape_text(file)


@pytest.mark.parametrize("kv", [
    {"llama__attention__head_count": 3}, {"llama__rope__dimension_count": 18}, {"llama__rope__dimension_count": 15},
    {"llama__attention__key_length": 24}, {"llama__attention__value_length": 24}, {"llama__rope__scaling__type": "spiral"},
    {"llama__rope__scaling__type": "yarn", "llama__rope__freq_base": 1.0}, {"llama__attention__head_count_kv": np.array([2, 1])},
])
def test_hyperparameters_that_contradict_each_other(kv: dict[str, Any]) -> None:
    with pytest.raises((errors.FormatError, errors.UnsupportedModel), match=r"some/model\.gguf: "):
        build.tape_text(FakeFile(**kv))


def test_per_layer_arrays_of_one_value_are_that_value() -> None:
    assert build.tape_text(FakeFile(llama__attention__head_count_kv=np.array([2, 2]))) == build.tape_text(FakeFile())


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_floats_on_the_tape_are_exact(x: float) -> None:
    text = build.f32_hex(x)
    assert struct.pack("<d", float.fromhex(text)) == struct.pack("<d", x)
    assert len(text) < 24 and " " not in text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e38, max_value=1e38))
def test_floats_on_the_tape_are_rounded_to_f32(x: float) -> None:
    assert float.fromhex(build.f32_hex(x)) == float(np.float32(x))


@pytest.mark.parametrize("x", [1e39, float("inf")])
def test_floats_beyond_f32_are_refused(x: float) -> None:
    with pytest.raises(errors.FormatError):
        build.f32_hex(x)


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6, 2e6])
def test_base_frequencies(base: float) -> None:
    got = np.array(rope.base_frequencies(base, 128))
    want = np.longdouble(base) ** (-np.arange(64, dtype=np.longdouble) / 64)
    np.testing.assert_allclose(got, want.astype(float), rtol=2**-44)


def test_gemma3_alternates_five_to_one() -> None:
    config = hparams.read({f"gemma3.{k.partition('.')[2]}": v for k, v in KV.items()}, families()["gemma3"], "x", 320, None)
    assert [config.is_local(i) for i in range(12)] == [True] * 5 + [False] + [True] * 5 + [False]
    assert (config.window, config.rope_base, config.rope_base_local, config.n_ctx) == (1024, 1e6, 1e4, 512)
