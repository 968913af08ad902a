"""A checkpoint's tokenizer as the tokenizer.* keys of a GGUF file: vocabulary, special tokens, chat template.

The vocabulary comes from tokenizer.json (vocab_json.py) or from sentencepiece's tokenizer.model (vocab_spm.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyllm import errors

from . import vocab_json, vocab_ranks, vocab_spm
from .fields import Field
from .folder import Folder
from .vocab_types import CONTROL, SPACE, UNUSED, Vocab

# Marks that end a turn or a message, beside the token that ends the text.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|return|>", "<turn|>")
_MESSAGE_END = "<|eom_id|>"
# Kinds of special tokens: name in Hugging Face's files, name in GGUF files.
_KINDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask"}


@dataclass
class _Settings:
    """What stands beside the vocabulary: tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json."""

    tokenizer: Mapping[str, Any]
    special: Mapping[str, Any]
    model: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)


def fields(folder: Folder, config: Mapping[str, Any], n_vocab: int | None, pre: str | None = None) -> dict[str, Field]:
    """The keys of a checkpoint's tokenizer. n_vocab: rows of the embedding, to which the vocabulary is filled up; None: as many as there
    are. pre: the pre-tokenizer's name instead of the one that its rules tell. Raises UnsupportedTokenizer, FormatError or FileError."""
    settings = _Settings(folder.json("tokenizer_config.json") or {}, folder.json("special_tokens_map.json") or {}, config,
                         folder.json("generation_config.json") or {})
    vocab = _read(folder, settings, pre)
    _fill(vocab, n_vocab, str(folder.path))
    found: dict[str, Any] = {"model": vocab.model, "pre": vocab.pre, "tokens": vocab.tokens, "token_type": np.array(vocab.types, np.int32)}
    if vocab.scores is not None:
        found["scores"] = np.array(vocab.scores, np.float32)
    if vocab.merges is not None:
        found["merges"] = vocab.merges
    found |= vocab.more
    found |= _special_ids(vocab, settings, template := _template(folder, settings.tokenizer))
    for name in ("bos", "eos"):
        adds = settings.tokenizer.get(f"add_{name}_token")
        found[f"add_{name}_token"] = adds if isinstance(adds, bool) else getattr(vocab, f"adds_{name}")
    keys = {f"tokenizer.ggml.{key}": Field.of(value) for key, value in found.items()}
    if template:
        named = {f"tokenizer.chat_template.{name}": text for name, text in template.items() if name != "default"}
        if "default" in template:
            keys["tokenizer.chat_template"] = Field.of(template["default"])
        keys |= {key: Field.of(text) for key, text in named.items()}
        if named:
            keys["tokenizer.chat_templates"] = Field.of([key.rpartition(".")[2] for key in named])
    return keys


def _read(folder: Folder, settings: _Settings, pre: str | None) -> Vocab:
    table = folder.json("tokenizer.json")
    if table is not None and (vocab_json.tells_all(table) or not folder.has("tokenizer.model")):
        return vocab_json.read(table, f"{folder.path}/tokenizer.json", pre)
    if table is None and (ranks := folder.json("tekken.json")) is not None:
        return vocab_ranks.tekken(ranks, f"{folder.path}/tekken.json", pre)
    data = folder.bytes("tokenizer.model")
    if data is None:
        raise errors.UnsupportedTokenizer(f"{folder.path} has neither tokenizer.json nor tekken.json nor tokenizer.model\n"
                                          "hint: save the tokenizer in its fast form, which writes tokenizer.json")
    vocab = vocab_spm.read(data, f"{folder.path}/tokenizer.model")
    for token, special, index in _added(folder, settings):
        vocab.put(index, token if special else token.replace(SPACE, " "), special)
    return vocab


def _added(folder: Folder, settings: _Settings) -> list[tuple[str, bool, int]]:
    """(text, whether it is special, id) of tokens that were added behind a sentencepiece model."""
    found = {int(i): (str(t.get("content")), bool(t.get("special")))
             for i, t in _table(settings.tokenizer.get("added_tokens_decoder")).items() if i.isdecimal() and isinstance(t, dict)}
    for token, i in (folder.json("added_tokens.json") or {}).items():
        if type(i) is int:
            found.setdefault(i, (token, token.startswith("<|") or token in _TURN_ENDS))
    return [(token, special, i) for i, (token, special) in sorted(found.items())]


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _fill(vocab: Vocab, n_vocab: int | None, where: str) -> None:
    """Exactly n_vocab tokens: unused ones fill up; added ones that the embedding has no row for (images) are left out."""
    if n_vocab is None:
        return
    while len(vocab.tokens) > n_vocab and (vocab.types[-1] == CONTROL or vocab.is_added(len(vocab.tokens) - 1)):
        vocab.pop()
    if len(vocab.tokens) > n_vocab:
        raise errors.FormatError(f"{where}: the tokenizer has {len(vocab.tokens)} tokens, the model {n_vocab}\n"
                                 "hint: tokenizer and weights belong to different models; download both again")
    while len(vocab.tokens) < n_vocab:
        vocab.append(f"[PAD{len(vocab.tokens)}]", UNUSED)


def _special_ids(vocab: Vocab, settings: _Settings, template: Mapping[str, str]) -> dict[str, int]:
    ids = {token: i for i, token in reversed(list(enumerate(vocab.tokens)))}
    found: dict[str, int] = {}
    for kind, key in _KINDS.items():
        id_ = _named(kind, ids, settings)
        if id_ is None:
            numbers = settings.model.get(f"{kind}_token_id")
            numbers = numbers if isinstance(numbers, list) else [numbers]
            id_ = numbers[0] if numbers and type(numbers[0]) is int and 0 <= numbers[0] < len(vocab.tokens) else None
        if id_ is None:
            id_ = vocab.special.get(kind)
        if id_ is not None:
            found[f"{key}_token_id"] = id_
    ends = settings.generation.get("eos_token_id")
    ends = [i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and 0 <= i < len(vocab.tokens)]
    ends += [ids[t] for t in _TURN_ENDS if t in ids and any(t in text for text in template.values())]
    ends = [i for i in ends if i != found.get("eos_token_id") and vocab.tokens[i] != _MESSAGE_END]
    if ends:
        found["eot_token_id"] = ends[0]
    if _MESSAGE_END in ids:
        found["eom_token_id"] = ids[_MESSAGE_END]
    return found


def _named(kind: str, ids: Mapping[str, int], settings: _Settings) -> int | None:
    """The id of a special token that a file gives as text, or as {"content": text}."""
    for table in (settings.tokenizer, settings.special):
        token = table.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            return ids[text]
    return None


def _template(folder: Folder, tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name, the usual one "default": a file of its own, or inside of tokenizer_config.json, alone or as a list."""
    found: dict[str, str] = {}
    inside = tokenizer.get("chat_template") or (folder.json("chat_template.json") or {}).get("chat_template")
    for entry in inside if isinstance(inside, list) else [{"name": "default", "template": inside}]:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
            found[entry["name"]] = entry["template"]
    own = folder.text("chat_template.jinja")
    if own is not None:
        found["default"] = own
    for path in sorted((folder.path / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = folder.text(f"additional_chat_templates/{path.name}") or ""
    return found
