"""Hugging Face checkpoints out of GGUF files, so that conversion can be tried on real models: dequantized weights as bf16 safetensors, as
tools/make_checkpoint.py makes them with transformers, here without it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tok_oracle
from conftest import ROOT
from numpy.typing import NDArray

from pyllm.gguf import GGUF
from pyllm.hparams import TABLE
from pyllm.models import families

_spec = importlib.util.spec_from_file_location("write_gguf", ROOT / "tests/golden/write_gguf.py")
assert _spec and _spec.loader
goldens = sys.modules.setdefault("write_gguf", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(goldens)

SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}


def bf16(values: NDArray[np.float32]) -> bytes:
    bits = values.view("<u4")
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def from_gguf(path: Path, folder: Path) -> None:
    """A checkpoint of a llama, qwen2 or gemma3 file: config.json, model.safetensors and its tokenizer's files."""
    folder.mkdir(exist_ok=True)
    with GGUF(path) as gguf:
        hf_names = {ours: theirs for theirs, ours in families()[gguf.architecture].tensors.items()}
        weights = {}
        for name in gguf.tensors:
            stem, _, kind = name.rpartition(".")
            layer = next((part for part in stem.split(".") if part.isdigit()), "")
            hf_name = hf_names[stem.replace(f".{layer}.", ".{i}.") if layer else stem].replace("{i}", layer)
            values = _as_trained(gguf, name)
            weights[f"{hf_name}.{kind}"] = ("BF16", values.shape, bf16(np.ascontiguousarray(values)))
        goldens.write_safetensors(folder / "model.safetensors", weights)
        (folder / "config.json").write_text(json.dumps(config_of(gguf)))
    meta = tok_oracle.read_metadata(path.read_bytes()[:1 << 26])
    write_tokenizer(meta, folder)


def _as_trained(gguf: GGUF, name: str) -> NDArray[np.float32]:
    """Without what GGUF files change: the order of llama's q and k, and the 1 that gemma's norms have there."""
    values = gguf.read(name)
    if gguf.architecture == "gemma3" and "norm" in name:
        return values - 1
    if gguf.architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = gguf.kv["llama.attention.head_count" + ("_kv" if ".attn_k." in name else "")]
        return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    return values


def config_of(gguf: GGUF) -> dict[str, Any]:
    arch = gguf.architecture
    config = {spec.hf: gguf.kv[f"{arch}.{spec.key}"] for spec in TABLE.values() if spec.hf and f"{arch}.{spec.key}" in gguf.kv}
    config |= {"architectures": [CLASSES[arch]], "rope_theta": gguf.kv[f"{arch}.rope.freq_base"], "query_pre_attn_scalar": 256,
               "vocab_size": gguf.tensors["token_embd.weight"].shape[1], "tie_word_embeddings": "output.weight" not in gguf.tensors}
    return config


def tokenizer_json(meta: dict[str, Any], family: str) -> dict[str, Any]:
    """As publishers' files have it: no unused tokens, and added tokens that are part of the text are not special."""
    table: dict[str, Any] = json.loads(tok_oracle.hf_bpe(meta, family).to_str())
    types = meta["tokenizer.ggml.token_type"]
    table["model"]["vocab"] = {token: i for token, i in table["model"]["vocab"].items() if types[i] != 5}
    for token in table["added_tokens"]:
        token["special"] = types[token["id"]] == tok_oracle.CONTROL
    return table


def added_tokens(meta: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says of the control tokens, those of a sentencepiece model included."""
    pairs = enumerate(zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"], strict=True))
    return {"added_tokens_decoder": {str(i): {"content": t, "special": True} for i, (t, kind) in pairs if kind == tok_oracle.CONTROL}}


def write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """tokenizer.json of byte-level BPE, or tokenizer.model of sentencepiece; tokenizer_config.json; chat_template.jinja."""
    tokens = meta["tokenizer.ggml.tokens"]
    if meta["tokenizer.ggml.model"] == "gpt2":
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(meta, meta["tokenizer.ggml.pre"])))
    else:
        (folder / "tokenizer.model").write_bytes(tok_oracle.sentencepiece_bpe(meta).serialized_model_proto())
    ids = {kind: meta.get(f"tokenizer.ggml.{key}_token_id") for kind, key in SPECIAL.items()}
    special = {f"{kind}_token": tokens[i] for kind, i in ids.items() if i is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | added_tokens(meta)))
    if "tokenizer.chat_template" in meta:
        (folder / "chat_template.jinja").write_text(meta["tokenizer.chat_template"])
