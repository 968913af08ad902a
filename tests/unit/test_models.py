"""Every family against transformers: tiny models whose weights follow from their names, logits committed in tests/golden."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm
from pyllm import build, hf, ref
from pyllm.engine import Engine
from pyllm.gguf import GGUF
from pyllm.models import families
from pyllm.quantize.convert import convert as hf_convert

_spec = importlib.util.spec_from_file_location("write_gguf", Path(__file__).parent.parent / "golden" / "write_gguf.py")
assert _spec and _spec.loader
goldens = sys.modules["write_gguf"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(goldens)

BAR = 2e-4                  # of max |logit|, the project's bar against transformers in float32
REF_BAR = 1e-5              # the interpreter computes in float64: what is left is transformers' own rounding


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, GGUF]]:
    """Golden by name, with its GGUF file open."""
    made: dict[str, tuple[Any, GGUF]] = {}

    def get(name: str) -> tuple[Any, GGUF]:
        if name not in made:
            golden = goldens.load(name)
            path = tmp_path_factory.mktemp("golden") / f"{name}.gguf"
            goldens.write_gguf(path, golden.weights, golden.config, golden.hf_class)
            made[name] = golden, GGUF(path)
        return made[name]

    return get


def worst(got: Any, golden: Any) -> float:
    """Largest difference in units of max |logit|."""
    assert got.shape == golden.logits.shape
    return float(np.abs(got - golden.logits).max() / np.abs(golden.logits).max())


def test_every_family_has_a_golden() -> None:
    seen = {families()[goldens.load(name).hf_class].name for name in goldens.names()}
    assert seen == {family.name for family in families().values()}


def tape_of(file: GGUF, golden: Any) -> str:
    """A golden has every position's output: encoders' rows before they are pooled."""
    return re.sub(r"^pool (.*) kind=\d", r"rows \1", build.tape_text(file, golden.ctx), flags=re.M)


@pytest.mark.parametrize("name", goldens.names())
def test_tape_is_the_model(name: str, model: Any) -> None:
    golden, file = model(name)
    assert worst(ref.run(tape_of(file, golden), file.read, golden.ids), golden) < REF_BAR


def batches(n: int, how: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of the engine steps that feed n tokens."""
    size = {"prefill": n, "decode": 1, "chunked": 7}[how]
    return ((i, min(i + size, n)) for i in range(0, n, size))


@pytest.mark.parametrize("how", ["prefill", "decode", "chunked"])
@pytest.mark.parametrize("name", goldens.names())
def test_engine_is_the_model(name: str, how: str, model: Any) -> None:
    golden, file = model(name)
    engine = Engine(file.handle, tape_of(file, golden), threads=2, kv="f32", n_positions=64, level=None)
    try:
        seq = engine.open_seq()
        if how != "prefill" and families()[golden.hf_class].encoder:
            engine.step([(seq, golden.ids[:7], 1)])
            with pytest.raises(pyllm.ArgumentError, match="as a whole"):
                engine.step([(seq, golden.ids[7:], 1)])
            assert engine.length(seq) == 7
            return
        rows = []
        for a, b in batches(len(golden.ids), how):
            n = engine.step([(seq, golden.ids[a:b], b - a)])
            rows.append(engine.logits[:n].copy())
    finally:
        engine.close()
    assert worst(np.concatenate(rows), golden) < BAR


@pytest.mark.parametrize("name", goldens.names())
def test_llm_is_the_model(name: str, model: Any) -> None:
    """The same through the front door, which writes its own tape for the context that is asked for."""
    golden, file = model(name)
    with pyllm.LLM(file.path, ctx=golden.ctx or 64, kv="f32", threads=1) as llm:
        assert worst(llm.token_embeddings(golden.ids) if llm.encodes else llm.logits(golden.ids), golden) < BAR


# (golden, pattern in its tape, mistake in its place): every one must show in the logits.
MISTAKES = [
    ("llama", r"neox=0", "neox=1"),
    ("llama", r"(attn .*) scale=\S+", r"\1 scale=0x1p-3"),
    ("llama", r"act=silu", "act=gelu"),
    ("llama", r"(norm attn_norm1 .*)blk.1.attn_norm", r"\1blk.1.ffn_norm"),
    ("llama-tied-bias", r"blk.1.attn_v.bias", "-"),
    ("llama-tied-bias", r"blk.2.attn_output.bias", "-"),
    ("llama-yarn", r"mscale=\S+", "mscale=0x1p+0"),
    ("llama-llama3", r"table rope0 \S+ \S+ \S+", "table rope0 0x1p+0 0x1p-2 0x1p-3"),
    ("mistral", r"window=8", "window=9"),
    ("mistral", r"window=8", "window=7"),
    ("qwen2", r"neox=1", "neox=0"),
    ("qwen3", r"norm=blk.(\d).attn_q_norm.weight,blk.\d.attn_k_norm.weight", r"norm=blk.\1.attn_k_norm.weight,blk.\1.attn_q_norm.weight"),
    ("gemma2", r"softcap=0x1p\+1", "softcap=0x0p+0"),
    ("gemma2", r"window=0", "window=8"),
    ("gemma2", r"cap=0x1.4p\+2", "cap=0x1.5p+2"),
    ("gemma2", r"(embed .*) scale=\S+", r"\1 scale=0x1p+2"),
    ("gemma3", r"window=0", "window=8"),
    ("gemma3", r"(rope .*5 in=.*) angles=\S+", r"\1 angles=angles"),
    ("gemma3", r"act=gelu", "act=silu"),
    ("gemma3n", r"(attn attn5) in=q_rope5,k_rope3,norm3 layer=3", r"\1 in=q_rope5,k_rope1,norm1 layer=1"),
    ("gemma3n", r"(attn attn5 .*) window=0", r"\1 window=8"),
    ("gemma3n", r"(norm norm1 .*) groups=2", r"\1"),
    ("gemma3n", r"(cutoff cut1 .*) by=\S+", r"\1 by=0x1p+0"),
    ("gemma3n", r"(blend blend4 .*) plus=\S+", r"\1 plus=0x1p+0"),
    ("gemma3n", r"(blend blend4.2 .*) plus=\S+", r"\1 plus=0x0p+0"),
    ("gemma3n", r"(blend .*) from=1", r"\1"),
    ("gemma3n", r"(match matched.3 in=)proj.4,part", r"\1proj.4,proj.4"),
    ("gemma3n", r"floor=\S+", "floor=0x1p+4"),
    ("gemma3n", r"(scale scaled.*) w=blk.3.altup_correct_scale.weight", r"\1 w=blk.2.altup_correct_scale.weight"),
    ("gemma3n", r"(norm laurel_post_norm2 .*) add=\S+", r"\1"),
    ("gemma3n", r"(rope q_rope7 .*) angles=\S+", r"\1 angles=angles"),
    ("gemma3n", r"(take part3.* in=scaled .*)from=48 to=64", r"\1from=32 to=48"),
    ("gemma3n", r"(norm per_layer_proj_norm .*) add=\S+", r"\1"),
    ("phi3", r"window=8", "window=0"),
    ("phi3", r"ffn_up.weight\[0:96\],blk.(\d).ffn_up.weight\[96:192\]", r"ffn_up.weight[96:192],blk.\1.ffn_up.weight[0:96]"),
    ("phi3-longrope", r"mscale=\S+", "mscale=0x1p+0"),
    ("smollm3", r"(attn .*) in=q3,k3,", r"\1 in=q_rope2,k_rope2,"),
    ("gemma", r"act=gelu", "act=silu"),
    ("granite", r"(attn .*) scale=\S+", r"\1 scale=0x1p-2"),
    ("granite", r"(scale logits .*) by=\S+", r"\1 by=0x1p+0"),
    ("granite", r"(scale scaled.*) by=\S+", r"\1 by=0x1p+0"),
    ("olmo2", r"(norm attn_q_norm1 .*)blk.1.attn_q_norm", r"\1blk.1.attn_k_norm"),
    ("olmo2", r"(norm post_ffw_norm1 .*)blk.1.post_ffw_norm", r"\1blk.1.post_attention_norm"),
    ("olmo2", r"(norm attn_q_norm1 .*eps=\S+)", r"\1 groups=4"),
    ("olmo3", r"window=8", "window=0"),
    ("olmo3", r"(rope .*3 in=.*) angles=\S+", r"\1 angles=angles"),
    ("glm4", r"neox=0", "neox=1"),
    ("glm4", r"ffn_up.weight\[0:96\],blk.(\d).ffn_up.weight\[96:192\]", r"ffn_up.weight[96:192],blk.\1.ffn_up.weight[0:96]"),
    ("ministral3", r"length=16", "length=15"),
    ("ministral3", r"mscale=\S+", "mscale=0x1.4p+0"),
    ("exaone4", r"(attn .*) in=attn_q_norm3,attn_k_norm3,", r"\1 in=q_rope2,k_rope2,"),
    ("exaone4", r"window=8", "window=9"),
    ("exaone4", r"window=0", "window=8"),
    ("exaone4-global", r"norm=blk.(\d).attn_q_norm.weight,blk.\d.attn_k_norm.weight",
     r"norm=blk.\1.attn_k_norm.weight,blk.\1.attn_q_norm.weight"),
    ("stablelm", r"(layernorm attn_norm1 .*) bias=\S+", r"\1 bias=-"),
    ("stablelm", r"layernorm (output_norm .*) bias=\S+", r"norm \1"),
    ("stablelm-12b", r"in=attn_norm1 (w=blk.1.ffn_gate)", r"in=output0 \1"),
    ("starcoder2", r"act=gelu", "act=relu"),
    ("starcoder2", r"window=8", "window=7"),
    ("gpt2", r"(layernorm attn_norm0 )in=\S+", r"\1in=x"),
    ("gpt2", r"blk.1.ffn_up.bias", "-"),
    ("gptneox", r"neox=1", "neox=0"),
    ("gptneox", r"(layernorm ffn_norm1 )in=\S+", r"\1in=output1"),
    ("gptneox-serial", r"(layernorm ffn_norm1 )in=\S+", r"\1in=down0"),
    ("falcon-7b", r"(linear qkv0.*)\[64:80\],(\S+)\[80:96\]", r"\1[80:96],\2[64:80]"),
    ("falcon-40b", r"(layernorm attn_norm_2\S+ .*)attn_norm_2.weight", r"\1attn_norm.weight"),
    ("falcon-40b", r"act=gelu_erf", "act=relu"),
    ("phi2", r"(linear logits .*)=output.bias", r"\1=-"),
    ("phi2", r"act=gelu", "act=silu"),
    ("command-r", r"(scale logits .*) by=\S+", r"\1 by=0x1p+0"),
    ("command-r", r"neox=0", "neox=1"),
    ("command-r-plus", r"(layernorm attn_k_norm1 .*)",
     r"norm attn_k_norm1 in=k1 w=blk.1.attn_k_norm.weight eps=0x1.4f8b58p-17 groups=2"),
    ("cohere2", r"(attn .*) in=q3,k3,", r"\1 in=q_rope2,k_rope2,"),
    ("cohere2", r"window=0", "window=8"),
    ("nemotron", r"act=relu2", "act=relu"),
    ("nemotron", r"(layernorm attn_norm1 .*) bias=\S+", r"\1 bias=-"),
    ("mixtral", r"renorm=1", "renorm=0"),
    ("mixtral", r"(moe_gated experts1 .*)k.1.ffn_gate_exps.weight,blk.1.ffn_up_exps", r"\1k.1.ffn_up_exps.weight,blk.1.ffn_gate_exps"),
    ("qwen3moe", r"k=3", "k=2"),
    ("qwen3moe", r"gate=0 renorm=1", "gate=1 renorm=1"),
    ("qwen2moe", r"renorm=0", "renorm=1"),
    ("qwen2moe", r"act=sigmoid", "act=silu"),
    ("olmoe", r"gate=0 renorm=0", "gate=2 renorm=0"),
    ("granitemoe", r"(scale scaled.*) by=\S+", r"\1 by=0x1p+0"),
    ("granitemoe-shared", r"(moe_down moe1 .*) add=\S+", r"\1"),
    ("gpt-oss", r"gate=2", "gate=0"),
    ("gpt-oss", r" sinks=\S+", ""),
    ("gpt-oss", r"act=swiglu_oai", "act=silu"),
    ("gpt-oss", r"window=8", "window=0"),
    ("gpt-oss", r"blk.1.ffn_down_exps.bias", "-"),
    ("gpt-oss", r"blk.2.ffn_up_exps.bias", "-"),
    ("deepseek2", r"mscale=\S+", "mscale=0x1.4p+0"),
    ("deepseek2", r"(attn .*) scale=\S+", r"\1 scale=0x1.ep-4"),
    ("deepseek2", r"renorm=0", "renorm=1"),
    ("deepseek2", r"neox=0", "neox=1"),
    ("deepseek2-groups", r" groups=\S+", ""),
    ("deepseek2-groups", r"groups=4,2,1", "groups=4,2,2"),
    ("deepseek2-groups", r"(norm attn_q_a_norm1 .*)blk.1.attn_q_a_norm", r"\1blk.0.attn_q_a_norm"),
    ("deepseek3", r"groups=3,2,2", "groups=3,2,1"),
    ("deepseek3", r"bias=blk.1.exp_probs_b.bias", "bias=-"),
    ("deepseek3", r"renorm=1", "renorm=0"),
    ("deepseek3", r"(moe_down moe1 .*) add=\S+", r"\1 add=output1"),
    ("deepseek3-halves", r"neox=0", "neox=1"),
    ("minicpm3", r"neox=1", "neox=0"),
    ("minicpm3", r"(embed .*) scale=\S+", r"\1 scale=0x1p+3"),
    ("minicpm3", r"(norm attn_kv_a_norm1 .*) eps=\S+", r"\1 eps=0x1p-3"),
    ("glm4moe", r"neox=1", "neox=0"),
    ("glm4moe", r"bias=blk.1.exp_probs_b.bias", "bias=-"),
    ("glm4moe", r"blk.1.attn_v.bias", "-"),
    ("dots1", r"gate=1 renorm=1", "gate=0 renorm=1"),
    ("dots1", r"norm=blk.(\d).attn_q_norm.weight,blk.\d.attn_k_norm.weight", r"norm=blk.\1.attn_k_norm.weight,blk.\1.attn_q_norm.weight"),
    ("minimax-m2", r"(norm attn_q_norm1 .*eps=\S+)", r"\1 groups=4"),
    ("minimax-m2", r"bias=blk.1.exp_probs_b.bias", "bias=-"),
    ("ernie4_5-moe", r"gate=0 renorm=1", "gate=1 renorm=1"),
    ("ernie4_5-moe", r"bias=blk.1.exp_probs_b.bias", "bias=-"),
    ("ernie4_5-moe", r"(moe_down moe1 .*) add=\S+", r"\1"),
    ("arcee", r"act=relu2", "act=relu"),
    ("seed-oss", r"blk.1.attn_v.bias", "-"),
    ("ernie4_5", r"neox=0", "neox=1"),
    ("ernie4_5", r"blk.1.ffn_gate.bias", "-"),
    ("bert", r" causal=0", ""),
    ("bert", r"(positions x.3 .*) row=0", r"\1 row=1"),
    ("bert", r"(layernorm attn_output_norm1 .*)w=blk.1.attn_output_norm", r"\1w=blk.1.layer_output_norm"),
    ("bert", r"act=gelu_erf", "act=relu"),
    ("bert", r"blk.1.attn_v.bias", "blk.1.attn_q.bias"),
    ("nomic-bert", r" causal=0", ""),
    ("nomic-bert", r"neox=1", "neox=0"),
    ("nomic-bert", r"ffn_gate.weight,blk.(\d).ffn_up.weight", r"ffn_up.weight,blk.\1.ffn_gate.weight"),
    ("gemma-embedding", r" causal=0", ""),
    ("gemma-embedding", r"window=16", "window=14"),
    ("gemma-embedding", r"window=16", "window=18"),
    ("gemma-embedding", r"window=0", "window=16"),
    ("xlm-roberta", r"(positions x.2 .*)", r"\1 row=3"),
    ("mamba", r"act=softplus", "act=relu"),
    ("mamba", r"(ssm ssm1 in=\S+),([\w.]+),([\w.]+) ", r"\1,\3,\2 "),
    ("mamba", r"(glu glu1 in=)([\w.]+),([\w.]+)", r"\1\3,\2"),
    ("mamba", r"blk.1.ssm_conv1d.bias", "-"),
    ("falcon-mamba", r"(norm norm1.2 .*) eps=\S+", r"\1 eps=0x1.4f8b58p-17"),
    ("mamba2", r"(norm ssm_norm1 .*) groups=2", r"\1"),
    ("mamba2", r"(ssd ssd1 .*) d=\S+", r"\1 d=blk.1.ssm_a"),
    ("mamba2", r"blk.1.ssm_dt.bias", "-"),
    ("granite-hybrid", r"(norm ssm_norm1 .*) groups=2", r"\1"),
    ("granite-hybrid", r"(scale scaled.*) by=\S+", r"\1 by=0x1p+0"),
    ("granite-hybrid-dense", r"(attn .*) in=q_rope2,k_rope2,", r"\1 in=q2,k2,"),
    ("lfm2", r"(mul product2 in=)([\w.]+),([\w.]+)", r"\1\2,\2"),
    ("lfm2", r"(conv conv2 .*) w=\S+", r"\1 w=blk.3.shortconv.conv.weight"),
    ("lfm2", r"norm=blk.(\d).attn_q_norm.weight,blk.\d.attn_k_norm.weight", r"norm=blk.\1.attn_k_norm.weight,blk.\1.attn_q_norm.weight"),
    ("qwen3next", r"(delta delta1 .*),part1.5,part1.4", r"\1,part1.4,part1.5"),
    ("qwen3next", r"act=sigmoid", "act=silu"),
    ("qwen3next", r"(delta delta1 .*) bias=\S+", r"\1 bias=blk.1.ssm_a"),
    ("qwen3next", r"(scale scaled1 .*) by=\S+", r"\1 by=0x1p-2"),
    ("qwen3next", r"(glu glu1 in=)gate1,ssm_norm1", r"\1ssm_norm1,gate1"),
    ("rwkv5", r"(mix mix1 in=)(\w+),(\w+)", r"\1\3,\2"),
    ("rwkv5", r"groups=4", "groups=2"),
    ("rwkv5", r"u=blk.1.time_mix_first.weight", "u=blk.1.time_mix_decay.weight"),
    ("rwkv6", r"(wkv wkv1 .*) by=\S+", r"\1"),
    ("rwkv6", r"(mix mix1.2 .*) by=\S+", r"\1"),
    ("rwkv6", r"act=tanh", "act=sigmoid"),
    ("rwkv7", r"(mix mix2.7 in=)(\w+),\w+", r"\1\2,\2"),
    ("rwkv7", r"k_a=blk.1.time_mix_k_a.weight", "k_a=blk.1.time_mix_k_k.weight"),
    ("rwkv7", r"(add sum1 in=\S+),bonus1", r"\1,wkv1"),
    ("rwkv7", r"bias=blk.1.time_mix_w0.weight", "bias=-"),
]


@pytest.mark.parametrize("name, old, new", MISTAKES)
def test_goldens_see_mistakes(name: str, old: str, new: str, model: Any) -> None:
    golden, file = model(name)
    tape = tape_of(file, golden)
    wrong = re.sub(old, new, tape)
    assert wrong != tape
    assert worst(ref.run(wrong, file.read, golden.ids), golden) > 10 * BAR


def test_gemma3n_that_sees_and_hears(model: Any, tmp_path: Path) -> None:
    """A checkpoint as it is published: the text model under another prefix beside other parts, embeddings of images' tokens behind the
    text's, and matrices of layers that have no use for them."""
    golden, file = model("gemma3n")
    text = {name.replace("model.", "model.language_model.", 1): w for name, w in golden.weights.items()}
    name = "model.language_model.embed_tokens.weight"
    text[name] = np.concatenate([text[name], np.ones_like(text[name][:16])])
    for layer, part in itertools.product((5, 6, 7), ("k_proj", "v_proj", "k_norm")):
        prefix = "model.language_model.layers.{}.self_attn." + f"{part}.weight"
        text[prefix.format(layer)] = text[prefix.format(0)]
    others = {f"model.{part}.weight": np.ones((16, 16), np.float32) for part in ("vision_tower.x", "audio_tower.x", "embed_audio.x")}
    config = {"text_config": golden.config | {"vocab_size": 288, "intermediate_size": 8 * [96]}, "vocab_size": 272, "vision_config": {}}
    folder = tmp_path / "checkpoint"
    goldens.write_checkpoint(folder, text | others, config, "Gemma3nForConditionalGeneration")
    hf_convert(folder, tmp_path / "out.gguf", "F32", n_threads=1)
    with GGUF(tmp_path / "out.gguf") as got:
        assert got.kv["gemma3n.feed_forward_length"] == 96 and got.tensors["altup_proj.weight"].shape == (64, 64, 2)
        assert got.tensors["token_embd.weight"].shape == (64, 272)
        logits = [ref.run(tape_of(f, golden), f.read, golden.ids) for f in (got, file)]
        np.testing.assert_array_equal(*logits)
    with pyllm.LLM(tmp_path / "out.gguf", ctx=64, kv="f32", threads=1) as llm:
        assert worst(llm.logits(golden.ids), golden) < BAR


def test_longrope_follows_the_context(model: Any) -> None:
    golden, file = model("phi3-longrope")
    tapes = {ctx: build.tape_text(file, ctx) for ctx in (None, 16, 32, 33, 256)}
    assert tapes[16] == tapes[32] != tapes[33] == tapes[256] == tapes[None]
    assert golden.config["rope_parameters"]["original_max_position_embeddings"] == 32


def test_config_json_of_both_generations() -> None:
    """Files written before transformers 5 have rope_theta and rope_scaling, with "type" for "rope_type"."""
    new = goldens.load("llama-yarn").config
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    rope = dict(new["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = {"type": rope.pop("rope_type")} | rope
    family = families()[goldens.load("llama-yarn").hf_class]
    assert hf.metadata(old, family) == hf.metadata(new, family)


def test_gguf_of_a_checkpoint_has_the_conventions(model: Any) -> None:
    """What readers of GGUF rely on: llama's q rows in neighbouring pairs, gemma's norms with their 1, no copy of a tied head."""
    golden, file = model("llama")
    q = golden.weights["model.layers.1.self_attn.q_proj.weight"]
    got = file.read("blk.1.attn_q.weight")
    head = q[16:32]         # the second of 4 heads of 16
    np.testing.assert_array_equal(got[16:32:2], head[:8])
    np.testing.assert_array_equal(got[17:32:2], head[8:])
    golden, file = model("gemma3")
    np.testing.assert_array_equal(file.read("output_norm.weight"), golden.weights["model.norm.weight"] + np.float32(1))
    assert "output.weight" not in file.tensors
    assert file.kv["gemma3.attention.sliding_window_pattern"] == 6
