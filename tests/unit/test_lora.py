"""LoRA adapters: two at once beside a model give the logits of transformers with both merged by PEFT (tests/golden/lora), from the
interpreter and from the engine, whatever the batch; and what is no adapter is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import goldens

import pyllm
from pyllm import build, errors, lora, ref
from pyllm._core import ffi, lib
from pyllm.gguf import GGUF
from pyllm.quantize.convert import convert
from pyllm.quantize.lora import convert_adapter

BAR, REF_BAR = 2e-4, 1e-5       # of max |logit|: the project's bar against transformers in float32; the float64 interpreter's
NAMES = sorted(path.stem for path in (goldens.FOLDER / "lora").glob("*.npy"))


class Files:
    """A golden's checkpoint and GGUF file, its two adapters as PEFT folders and GGUF files."""

    def __init__(self, name: str, folder: Path) -> None:
        self.golden, self.folder = goldens.load(name), folder
        goldens.write_checkpoint(folder / "base", self.golden.weights, self.golden.config, self.golden.hf_class)
        self.model = convert(folder / "base", folder / "base.gguf", "F32", n_threads=1).path
        for adapter in goldens.ADAPTERS:
            goldens.write_adapter(folder / adapter, self.golden, adapter)
            convert_adapter(folder / adapter, folder / f"{adapter}.gguf", "F32", base=folder / "base")
        self.adapters = [(folder / f"{adapter}.gguf", scale) for adapter, scale in goldens.ADAPTERS.items()]
        self.merged = np.load(goldens.FOLDER / "lora" / f"{name}.npy")

    def worst(self, got: Any) -> float:
        return float(np.abs(got - self.merged).max() / np.abs(self.merged).max())


@pytest.fixture(scope="module", params=NAMES)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files("llama", tmp_path_factory.mktemp("llama"))


def test_there_are_goldens() -> None:
    assert NAMES == ["gemma3", "llama", "phi3"]


def test_two_at_once_are_the_merged_model(files: Files) -> None:
    assert np.abs(files.golden.logits - files.merged).max() > 100 * BAR * np.abs(files.merged).max()
    with GGUF(files.model) as gguf:
        for path, scale in files.adapters:
            lora.attach(gguf, path, scale)
        assert files.worst(ref.run(build.tape_text(gguf), gguf.read, files.golden.ids)) < REF_BAR
    for threads in (1, 2):
        with pyllm.LLM(files.model, ctx=64, kv="f32", threads=threads, adapters=files.adapters) as llm:
            assert files.worst(llm.logits(files.golden.ids)) < BAR
            assert llm.info["n_params"] == sum(int(np.prod(s)) for s in files.golden.shapes.values())


def test_the_scale_and_the_order_matter(llama: Files) -> None:
    one, two = (path for path, _ in llama.adapters)
    for wrong in ([one, two], [(one, 0.5), (two, 1.0)], [one], []):
        with pyllm.LLM(llama.model, ctx=64, kv="f32", adapters=wrong) as llm:
            assert llama.worst(llm.logits(llama.golden.ids)) > 10 * BAR
    with pyllm.LLM(llama.model, ctx=64, kv="f32", adapters=[(one, 0.0)]) as llm:
        plain = float(np.abs(llm.logits(llama.golden.ids) - llama.golden.logits).max() / np.abs(llama.golden.logits).max())
        assert plain < BAR


def test_same_bits_on_every_level(files: Files) -> None:
    seen = set()
    for level in ffi.string(lib.pyllm_cpu_levels()).decode().split():
        for threads in (1, 3):
            with pyllm.LLM(files.model, ctx=64, level=level, threads=threads, adapters=files.adapters) as llm:
                seen.add(hashlib.sha256(np.ascontiguousarray(llm.logits(files.golden.ids)).tobytes()).hexdigest())
    assert len(seen) == 1


def test_beside_quantized_weights(llama: Files) -> None:
    """The base stays as it is coded; only its own error is left."""
    convert(llama.folder / "base", llama.folder / "q8.gguf", "Q8_0")
    with pyllm.LLM(llama.folder / "q8.gguf", ctx=64, kv="f32", adapters=llama.adapters) as adapted, \
            pyllm.LLM(llama.folder / "q8.gguf", ctx=64, kv="f32") as plain:
        base = float(np.abs(plain.logits(llama.golden.ids) - llama.golden.logits).max() / np.abs(llama.golden.logits).max())
        assert llama.worst(adapted.logits(llama.golden.ids)) < 3 * base < 0.2


def test_saved_states_know_their_adapters(llama: Files, tmp_path: Path) -> None:
    with pyllm.LLM(llama.model, ctx=64, adapters=llama.adapters, chat_template="{{ messages[0].content }}") as llm:
        session = llm.session()
        session.chat("w1", max_tokens=4)
        session.save(tmp_path / "s")
    for adapters, good in ((llama.adapters, True), (llama.adapters[:1], False), ([], False)):
        with pyllm.LLM(llama.model, ctx=64, adapters=adapters, chat_template="{{ messages[0].content }}") as llm:
            session = llm.session()
            if good:
                session.load(tmp_path / "s")
                continue
            with pytest.raises(errors.StateError):
                session.load(tmp_path / "s")


# ---- files ----

def test_layout_of_the_file(llama: Files) -> None:
    """The names, shapes and keys that readers of GGUF adapters rely on; B's rows are in the order of GGUF's q and k."""
    with GGUF(llama.folder / "one.gguf") as file:
        assert {k: file.kv[k] for k in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")} == {
            "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": goldens.ALPHA}
        assert file.tensors["blk.0.attn_q.weight.lora_a"].shape == (64, 8) and file.tensors["blk.0.ffn_down.weight.lora_b"].shape == (8, 64)
        name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
        want = goldens.tensor("lora-one", name, [64, 8])[16:32]         # the second of 4 heads
        got = file.read("blk.1.attn_q.weight.lora_b")
        np.testing.assert_array_equal(got[16:32:2], want[:8])
        np.testing.assert_array_equal(got[17:32:2], want[8:])


@pytest.mark.parametrize(("more", "factor"), [({"use_rslora": True}, 8 ** 0.5), ({"alpha_pattern": {"q_proj": 32}}, 2.0)])
def test_scales_of_peft(more: dict[str, Any], factor: float, llama: Files, tmp_path: Path) -> None:
    """alpha / rank unless PEFT says otherwise: the difference is in B."""
    goldens.write_adapter(tmp_path / "a", llama.golden, "one", **more)
    convert_adapter(tmp_path / "a", tmp_path / "a.gguf", "F32", base=llama.folder / "base")
    with GGUF(tmp_path / "a.gguf") as file, GGUF(llama.folder / "one.gguf") as plain:
        b = "blk.0.attn_q.weight.lora_b"
        np.testing.assert_allclose(file.read(b), plain.read(b) * np.float32(factor), rtol=1e-6)


def test_types_of_the_file(llama: Files, tmp_path: Path) -> None:
    goldens.write_adapter(tmp_path / "a", llama.golden, "one", dtype="F16")
    convert_adapter(tmp_path / "a", tmp_path / "a.gguf", base=llama.folder / "base", verify=True)
    with GGUF(tmp_path / "a.gguf") as file:
        assert {t.type for t in file.tensors.values()} == {"f16"}
    convert_adapter(tmp_path / "a", tmp_path / "wide.gguf", "F32", base=llama.folder / "base")
    logits = []
    for name in ("a.gguf", "wide.gguf"):        # weights widen exactly, so the same values give the same bits
        with pyllm.LLM(llama.model, ctx=64, kv="f32", adapters=[tmp_path / name]) as llm:
            logits.append(llm.logits(llama.golden.ids))
    np.testing.assert_array_equal(*logits)
    with pytest.raises(errors.ArgumentError, match="an adapter cannot be Q4_K_M"):
        convert_adapter(tmp_path / "a", tmp_path / "b.gguf", "Q4_K_M", base=llama.folder / "base")


@pytest.mark.parametrize("change", [{"peft_type": "LOHA"}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]},
                                    {"fan_in_fan_out": True}])
def test_other_adapters_are_refused(change: dict[str, Any], llama: Files, tmp_path: Path) -> None:
    goldens.write_adapter(tmp_path / "a", llama.golden, "one", **change)
    with pytest.raises(errors.UnsupportedModel, match="cannot be converted"):
        convert_adapter(tmp_path / "a", tmp_path / "a.gguf", base=llama.folder / "base")
    assert not (tmp_path / "a.gguf").exists()


def test_base_models(llama: Files, tmp_path: Path) -> None:
    goldens.write_adapter(tmp_path / "a", llama.golden, "one", base_model_name_or_path=str(llama.folder / "base"))
    convert_adapter(tmp_path / "a", tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").exists()
    with pytest.raises(errors.FileError, match="'llama' is not on this machine"):
        convert_adapter(llama.folder / "one", tmp_path / "b.gguf")


def test_what_does_not_fit_is_refused(llama: Files, tmp_path: Path) -> None:
    other = Files("phi3", tmp_path)
    for adapters, message in ((["x"], "x"), ([llama.model], "is not a LoRA adapter"),
                              ([other.adapters[0]], "is for models of architecture"),
                              ([(llama.adapters[0][0], "big")], "must be a number"), ([1], "must be a list"), (5, "must be a list")):
        with pytest.raises(errors.Error, match=message):
            pyllm.LLM(llama.model, ctx=64, adapters=adapters)
    wide = goldens.load("llama-tied-bias")      # heads of another size
    goldens.write_adapter(tmp_path / "wide", wide, "one")
    convert_adapter(tmp_path / "wide", tmp_path / "wide.gguf", base=llama.folder / "base")
    with pytest.raises(errors.ArgumentError, match="does not fit"):
        pyllm.LLM(llama.model, ctx=64, adapters=[tmp_path / "wide.gguf"])


def test_damaged_folders(llama: Files, tmp_path: Path) -> None:
    goldens.write_adapter(tmp_path / "a", llama.golden, "one")
    path = tmp_path / "a" / "adapter_config.json"
    good = json.loads(path.read_text())
    for change in ({"lora_alpha": "x"}, {"lora_alpha": None}, {"lora_alpha": -1}):
        path.write_text(json.dumps(good | change))
        with pytest.raises(errors.FormatError):
            convert_adapter(tmp_path / "a", tmp_path / "a.gguf", base=llama.folder / "base")
    path.write_text(json.dumps(good))
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"layers.0.mlp.up_proj.lora_A", b"layers.9.mlp.up_proj.lora_A"))
    with pytest.raises(errors.FormatError, match="lacks A or B"):
        convert_adapter(tmp_path / "a", tmp_path / "a.gguf", base=llama.folder / "base")
    weights.unlink()
    with pytest.raises(errors.FileError, match=r"neither adapter_model\.safetensors nor"):
        convert_adapter(tmp_path / "a", tmp_path / "a.gguf", base=llama.folder / "base")
