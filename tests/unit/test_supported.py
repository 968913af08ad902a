"""The list of what runs, and what is said of models that do not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pyllm import errors, hf
from pyllm.build import tape_text
from pyllm.models import families
from pyllm.supported import supported


def test_every_name_is_listed_once() -> None:
    assert sorted(name for f in supported() for name in (f.name, *f.classes)) == sorted(families())
    assert all(f.about and f.oracle for f in supported())


def test_features_are_those_of_the_forward_passes() -> None:
    found = {f.name: set(f.features) for f in supported()}
    assert found["qwen3"] == set() and found["qwen3moe"] == {"experts"}
    assert found["gpt-oss"] == {"experts", "sinks", "windows in some layers"}
    assert found["gemma2"] == {"soft caps", "windows in some layers"}
    assert found["smollm3"] == {"layers without rope", "windows"}       # Llama's forward pass, without its experts
    assert found["bert"] == {"attention in both directions", "layer norms", "learned positions"}
    assert found["gemma3n"] - found["gemma3"] == {"alternating updates (AltUp)", "embeddings in each layer",
                                                  "keys and values of other layers"}
    assert found["gpt2"] == {"layer norms", "learned positions"}


@pytest.mark.parametrize("name, config, said", [
    ("Qwen3VLForConditionalGeneration", {"vision_config": {"depth": 2}}, "nearest that is: qwen3, but this one also has images"),
    ("Gemma2ForSomethingElse", {"vision_config": None}, "nearest that is: gemma2, but what differs"),
    ("BloomForCausalLM", {"alibi": True}, "nearest that is: llama, but this one also has ALiBi"),
    ("GlobstarForCausalLM", {"text_config": {"num_experts": 8}, "is_encoder_decoder": True}, "has an encoder beside the decoder"),
])
def test_a_checkpoint_that_cannot_run(name: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.UnsupportedModel, match=rf"config.json: models of class {name} are not supported") as e:
        hf.find_family(config | {"architectures": [name]}, "config.json")
    assert said in str(e.value) and "\nhint: `pyllm models`" in str(e.value)


@pytest.mark.parametrize("config", [{}, {"architectures": "LlamaForCausalLM"}, {"architectures": [7], "rope_scaling": [1]}])
def test_a_checkpoint_without_a_class(config: dict[str, Any]) -> None:
    with pytest.raises(errors.UnsupportedModel, match="nearest that is"):
        hf.find_family(config, "config.json")


class File:
    path, adapters, tensors = "x.gguf", (), {}

    def __init__(self, **kv: Any) -> None:
        self.kv = {key.replace("__", "."): value for key, value in kv.items()}


@pytest.mark.parametrize("kv, said", [
    ({"general__architecture": "qwen3vlmoe", "qwen3vlmoe__expert_count": 8, "qwen3vlmoe__rope__dimension_sections": [1, 2]},
     "nearest that is: qwen3moe, but this one also has positions in several dimensions"),
    ({"general__architecture": "xyzzy", "xyzzy__expert_count": 8, "xyzzy__ssm__state_size": 16},
     "nearest that is: granitehybrid, but what"),
    ({"general__architecture": "xyzzy", "xyzzy__attention__max_alibi_bias": 8.0}, "also has ALiBi"),
    ({"general__architecture": "xyzzy", "xyzzy__expert_count": 0}, "what differs does not show"),
])
def test_a_file_that_cannot_run(kv: dict[str, Any], said: str) -> None:
    file: Any = File(**kv)
    with pytest.raises(errors.UnsupportedModel, match=r"x.gguf: models of architecture '\w+' are not supported") as e:
        tape_text(file)
    assert said in str(e.value)


def test_the_name_of_a_model_may_be_long() -> None:
    """It is compared with every family's: of a file that says what it likes no more than a beginning."""
    begin = time.perf_counter()
    with pytest.raises(errors.UnsupportedModel, match="the nearest that is"):
        hf.find_family({"architectures": ["Qwen3VL" * 40_000]}, "config.json")
    assert time.perf_counter() - begin < 2          # of a second it takes a hundredth; for the whole name, ten
