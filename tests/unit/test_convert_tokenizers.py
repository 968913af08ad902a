"""Tokenizers out of Hugging Face's files: every family's tokenizer.json gives the ids of Hugging Face's own library, names its
pre-tokenizer from the rules alone, and gives the vocabulary that the family's GGUF files have."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tok_oracle
import tok_texts
from checkpoints import added_tokens, goldens, tokenizer_json
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, pre_tokenizers, processors

from pyllm import Tokenizer, errors
from pyllm.gguf import GGUF
from pyllm.quantize import vocab_ranks
from pyllm.quantize.convert import convert
from pyllm.quantize.pretokenizers import recognise

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "max_position_embeddings": 64, "hidden_size": 64,
          "intermediate_size": 64, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
# A family's rules may have another family's name where the rules are the same.
SAME = {"starcoder": "smollm", "refact": "smollm", "mpt": "olmo"}


def write(folder: Path, tokenizer: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """A checkpoint's folder without weights: config.json, tokenizer.json, and files by their stem (a table, or the text of a template)."""
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, content in files.items():
        (folder / (name + ".json" if isinstance(content, dict) else name + ".jinja")).write_text(
            json.dumps(content) if isinstance(content, dict) else content)
    return folder


def vocabulary_of(folder: Path, **options: Any) -> Path:
    convert(folder, folder / "vocab.gguf", n_threads=1, vocab_only=True, **options)
    return folder / "vocab.gguf"


@pytest.mark.parametrize("family", tok_oracle.FAMILIES)
def test_ids_are_those_of_hugging_face(family: str, tmp_path: Path) -> None:
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary(tok_oracle.FAMILIES[family]))
    hf = tok_oracle.hf_bpe(meta, family)
    path = vocabulary_of(write(tmp_path, tokenizer_json(meta, family), {"vocab_size": len(meta["tokenizer.ggml.tokens"])}))
    with GGUF(path) as file:
        assert file.kv["tokenizer.ggml.pre"] == SAME.get(family, family)
        assert file.kv["tokenizer.ggml.tokens"] == meta["tokenizer.ggml.tokens"]
        assert list(file.kv["tokenizer.ggml.token_type"]) == meta["tokenizer.ggml.token_type"]
        assert set(file.kv["tokenizer.ggml.merges"]) <= set(meta["tokenizer.ggml.merges"])
    tokenizer = Tokenizer(path)
    for text in tok_texts.texts(11, 200):
        assert tokenizer.encode(text, add_special=False) == hf.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_sentencepiece_models(name: str, tmp_path: Path) -> None:
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary(name))
    oracle = tok_oracle.sentencepiece_bpe(meta)
    (tmp_path / "tokenizer.model").write_bytes(oracle.serialized_model_proto())
    path = vocabulary_of(write(tmp_path, config={"vocab_size": len(meta["tokenizer.ggml.tokens"])}, tokenizer_config=added_tokens(meta)))
    with GGUF(path) as file:
        types = meta["tokenizer.ggml.token_type"]       # a sentencepiece model has one unknown token; others became control tokens
        meta["tokenizer.ggml.token_type"] = [3 if kind == 2 and i else kind for i, kind in enumerate(types)]
        for key in ("tokens", "scores", "token_type"):
            assert list(file.kv[f"tokenizer.ggml.{key}"]) == meta[f"tokenizer.ggml.{key}"], key
        assert (file.kv["tokenizer.ggml.bos_token_id"], file.kv["tokenizer.ggml.add_space_prefix"]) == (1, True)
    tokenizer = Tokenizer(path)
    for text in tok_texts.texts(12, 200):
        if not any(t in text for t in tok_texts.SPECIALS) and "\0" not in text:
            assert tokenizer.encode(text, add_special=False) == oracle.encode(text), text


def tekken(n: int, **more: Any) -> dict[str, Any]:
    """A tekken.json of Llama 3's first n tokens."""
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary("llama-bpe"))
    letters = {c: b for b, c in vocab_ranks._ALPHABET.items()}
    words = [bytes(letters[c] for c in token) for token in meta["tokenizer.ggml.tokens"][:n]]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(w).decode(), "token_str": None} for i, w in enumerate(words)]
    return {"config": {"pattern": tok_oracle.TEKKEN, "default_vocab_size": n + 20, "default_num_special_tokens": 20}, "vocab": vocab} | more


def test_ranks_instead_of_merges(tmp_path: Path) -> None:
    """Against all pairs that make a token, in the order of what they make: the rule that files with ranks mean."""
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(6000)))
    path = vocabulary_of(write(tmp_path, config={"vocab_size": 6020}))
    with GGUF(path) as file:
        tokens = file.kv["tokenizer.ggml.tokens"]
        assert (file.kv["tokenizer.ggml.pre"], file.kv["tokenizer.ggml.bos_token_id"]) == ("tekken", 1)
        assert (tokens[1], tokens[17]) == ("<s>", "[SYSTEM_PROMPT]")
    vocab = {token: i for i, token in enumerate(tokens) if i >= 20}
    merges = [(t[:i], t[i:]) for t in vocab for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    hf = HuggingFace(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    hf.pre_tokenizer = pre_tokenizers.Sequence(tok_oracle._stages("tekken"))
    tokenizer = Tokenizer(path)
    for text in tok_texts.texts(14, 300):
        assert tokenizer.encode(text, add_special=False, parse_special=False) == hf.encode(text).ids, text


@pytest.mark.parametrize("damage", [
    {"config": None}, {"config": {"default_vocab_size": 10}}, {"vocab": None}, {"vocab": [{"token_bytes": "!"}]}, {"vocab": [5]},
    {"vocab": [{"token_bytes": ""}]}, {"vocab": [{"token_bytes": "YWI="}]}, {"special_tokens": 5}, {"special_tokens": [{"rank": 20}]},
    {"special_tokens": [{"rank": 20, "token_str": "x"}]},
    {"config": {"pattern": "x", "default_vocab_size": 320, "default_num_special_tokens": 20}},
])
def test_damaged_ranks(damage: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(300) | damage))
    with pytest.raises((errors.FormatError, errors.UnsupportedTokenizer)):
        vocabulary_of(write(tmp_path))


# ---- the rules ----

def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
BOTH_CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
TIKTOKEN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")


@pytest.mark.parametrize(("rules", "ignore_merges", "name"), [
    ([split(tok_oracle.LLAMA3), BYTES], True, "llama-bpe"),
    ([split(tok_oracle.LLAMA3), BYTES], False, "smaug-bpe"),
    ([split(TIKTOKEN), BYTES], False, "smaug-bpe"),
    ([split(tok_oracle.LLAMA3.replace(tok_oracle.FOLDED, BOTH_CASES)), BYTES], True, "llama-bpe"),
    ([split(tok_oracle.QWEN2, "Removed", True), BYTES], False, "hunyuan"),
    ([split(tok_oracle.GPT2), BYTES], False, "gpt-2"),
    ([split(r"\p{N}"), split(tok_oracle.GPT2), BYTES], False, "smollm"),
])
def test_spellings_of_the_same_rules(rules: list[Any], ignore_merges: bool, name: str) -> None:
    assert recognise({"type": "Sequence", "pretokenizers": rules}, ignore_merges, False, "tokenizer.json") == name


def test_unknown_rules_name_the_nearest(tmp_path: Path) -> None:
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary("gpt-2"))
    table = tokenizer_json(meta, "gpt-2")
    table["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split(tok_oracle.QWEN2 + "|x"), BYTES]}
    write(tmp_path, table)
    with pytest.raises(errors.UnsupportedTokenizer, match="no family that is known splits text by") as caught:
        vocabulary_of(tmp_path)
    assert "the nearest is hunyuan" in (caught.value.hint or "") and not (tmp_path / "vocab.gguf").exists()
    with GGUF(vocabulary_of(tmp_path, pre="qwen2")) as file:
        assert file.kv["tokenizer.ggml.pre"] == "qwen2"


# ---- what stands beside the vocabulary ----

def table(*tokens: str, added: tuple[tuple[str, bool], ...] = (), **more: Any) -> dict[str, Any]:
    """A small tokenizer.json: the bytes of ASCII letters, then tokens, then added ones (text, special)."""
    words = [*"abcdefghijklmnopqrstuvwxyz", *tokens]
    return {"model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(words)}, "merges": [["a", "b"]] if "ab" in tokens else []},
            "added_tokens": [{"id": len(words) + i, "content": t, "special": s} for i, (t, s) in enumerate(added)],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, **more}


def keys(folder: Path) -> dict[str, Any]:
    with GGUF(vocabulary_of(folder)) as file:
        return dict(file.kv)


def test_special_tokens_and_ends(tmp_path: Path) -> None:
    added = (("<|begin|>", True), ("<|end_of_text|>", True), ("<|eot_id|>", True), ("<|eom_id|>", True), ("<tool>", False))
    write(tmp_path, table("ab", added=added), tokenizer_config={"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end_of_text|>"},
          generation_config={"eos_token_id": [28, 30, 29], "temperature": 0.6, "top_p": 0.9, "top_k": 40},
          config={"vocab_size": 40, "pad_token_id": 28})
    kv = keys(tmp_path)
    wanted = {"bos": 27, "eos": 28, "eot": 29, "eom": 30, "padding": 28}
    assert {k: kv[f"tokenizer.ggml.{k}_token_id"] for k in wanted} == wanted
    assert list(kv["tokenizer.ggml.token_type"][26:33]) == [1, 3, 3, 3, 3, 4, 5] and len(kv["tokenizer.ggml.tokens"]) == 40
    assert kv["tokenizer.ggml.tokens"][39] == "[PAD39]"
    assert (kv["general.sampling.temp"], kv["general.sampling.top_k"]) == (pytest.approx(0.6), 40)
    tokenizer = Tokenizer(tmp_path / "vocab.gguf")
    assert [i for i in range(40) if tokenizer.is_end(i)] == [28, 29, 30]


def test_bos_is_added_as_the_template_of_tokenizer_json_says(tmp_path: Path) -> None:
    processor = {"type": "Sequence", "processors": [BYTES, {"type": "TemplateProcessing", "pair": [], "special_tokens": {}, "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}]}
    write(tmp_path, table(added=(("<s>", True),), post_processor=processor), tokenizer_config={"bos_token": "<s>"})
    assert (keys(tmp_path)["tokenizer.ggml.add_bos_token"], keys(tmp_path)["tokenizer.ggml.add_eos_token"]) == (True, False)
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "add_bos_token": False})
    assert keys(tmp_path)["tokenizer.ggml.add_bos_token"] is False


def test_templates_of_all_places(tmp_path: Path) -> None:
    write(tmp_path, table())
    assert "tokenizer.chat_template" not in keys(tmp_path)
    write(tmp_path, tokenizer_config={"chat_template": "inside"})
    assert keys(tmp_path)["tokenizer.chat_template"] == "inside"
    write(tmp_path, tokenizer_config={"chat_template": [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]})
    kv = keys(tmp_path)
    assert (kv["tokenizer.chat_template"], kv["tokenizer.chat_template.rag"], kv["tokenizer.chat_templates"]) == ("one", "two", ["rag"])
    write(tmp_path, chat_template="a file of its own")
    assert keys(tmp_path)["tokenizer.chat_template"] == "a file of its own"


def test_model_card(tmp_path: Path) -> None:
    write(tmp_path, table())
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: fair\nlanguage:\n- en\n- fr\nbase_model: someone/small\n"
                                        "pipeline_tag: text-generation\n---\n# Text\n")
    kv = keys(tmp_path)
    assert (kv["general.license"], kv["general.license.name"], kv["general.languages"]) == ("other", "fair", ["en", "fr"])
    assert (kv["general.base_model.0.name"], kv["general.base_model.0.organization"]) == ("small", "someone")
    assert kv["general.tags"] == ["text-generation"] and kv["general.name"] == tmp_path.name
    (tmp_path / "README.md").write_text("---\n{[\n---\n")
    assert "general.license" not in keys(tmp_path)


def test_sentencepiece_in_tokenizer_json(tmp_path: Path) -> None:
    """Scores follow from the merges: the ids are those of the sentencepiece model that the merges were made from."""
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary("llama-spm"))
    tokens, scores, types = (meta[f"tokenizer.ggml.{k}"] for k in ("tokens", "scores", "token_type"))
    score = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == 1}
    merges = sorted(((a, t[len(a):]) for t in score for a in (t[:i] for i in range(1, len(t))) if a in score and t[len(a):] in score),
                    key=lambda pair: -score[pair[0] + pair[1]])
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [list(m) for m in merges], "byte_fallback": True,
             "unk_token": "<unk>", "fuse_unk": True}
    added = [{"id": i, "content": tokens[i], "special": True} for i in range(3)]
    write(tmp_path, {"model": model, "pre_tokenizer": None, "added_tokens": added,
                     "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}})
    ours = Tokenizer(vocabulary_of(tmp_path))
    oracle = tok_oracle.sentencepiece_bpe(meta)
    for text in tok_texts.texts(13, 200):
        if not any(t in text for t in tok_texts.SPECIALS) and "\0" not in text:
            assert ours.encode(text, add_special=False) == oracle.encode(text), text


# ---- damage ----

@pytest.mark.parametrize(("damage", "message"), [
    ({"model": {"type": "WordLevel", "vocab": {}}}, "tokenizer model 'WordLevel' cannot be converted"),
    ({"model": {"type": "Unigram", "vocab": []}}, "no list of texts and scores"),
    ({"model": None}, "tokenizer model None"),
    ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "no table of ids"),
    ({"model": {"type": "BPE", "vocab": {"a": 1 << 30}, "merges": []}}, "no table of ids"),
    ({"model": {"type": "BPE", "vocab": {"\ud800": 0}, "merges": []}}, "half a surrogate pair"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}}, "no pair"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 5}}, "no merges"),
    ({"added_tokens": [{"id": "x", "content": "y"}]}, "no id or content"),
    ({"added_tokens": [{"id": 1 << 40, "content": "y"}]}, "has the id"),
    ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase'"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "the pre-tokenizer"),
])
def test_damaged_tokenizers(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, table() | damage)
    with pytest.raises((errors.FormatError, errors.UnsupportedTokenizer), match=message):
        vocabulary_of(tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_damaged_sentencepiece_models(tmp_path: Path) -> None:
    write(tmp_path)
    whole = goldens.sentencepiece_model(300)
    for data in (b"", whole[:-1], whole[:100], b"\x0a" + 11 * b"\xff", b"\xff" * 20, b"\x08\x01", b"\x12\x02\x18\x03"):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(errors.Error):
            vocabulary_of(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(errors.UnsupportedTokenizer, match=r"neither tokenizer.json nor tekken.json nor tokenizer.model"):
        vocabulary_of(tmp_path)


# ---- encoders' tokenizers ----

def compare_with(hf: Any, folder: Path, special: dict[str, Any], n: int = 300) -> Tokenizer:
    """Converts a tokenizer of Hugging Face's library and compares ids with its own, special tokens around them included."""
    config = {"vocab_size": hf.get_vocab_size()}
    tokenizer = Tokenizer(vocabulary_of(write(folder, json.loads(hf.to_str()), config, tokenizer_config=special)))
    for text in tok_texts.texts(11, n):
        assert tokenizer.encode(text) == hf.encode(text).ids, repr(text)
    return tokenizer


@pytest.mark.parametrize("lowercase, strip", [(True, None), (False, None), (True, False), (False, True)])
def test_wordpiece(lowercase: bool, strip: bool | None, tmp_path: Path) -> None:
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary("bert-bge"))
    hf = tok_oracle.hf_wordpiece(meta, lowercase, strip)
    tokenizer = compare_with(hf, tmp_path, {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"})
    assert (tokenizer.bos, tokenizer.eos) == (101, 102)
    with GGUF(tmp_path / "vocab.gguf") as gguf:
        pairs = zip(gguf.kv["tokenizer.ggml.tokens"], meta["tokenizer.ggml.tokens"], strict=True)
        assert all(ours == theirs for ours, theirs in pairs if "[unused" not in theirs)
        assert gguf.kv["tokenizer.ggml.mask_token_id"] == 103 and gguf.kv["tokenizer.ggml.cls_token_id"] == 101


def test_unigram(tmp_path: Path) -> None:
    meta = tok_oracle.read_metadata(tok_oracle.vocabulary("unigram"))
    hf = tok_oracle.hf_unigram(meta)
    hf.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    compare_with(hf, tmp_path, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    with GGUF(tmp_path / "vocab.gguf") as gguf:
        assert gguf.kv["tokenizer.ggml.model"] == "t5"
        for key in ("tokens", "scores", "precompiled_charsmap"):
            assert list(gguf.kv[f"tokenizer.ggml.{key}"]) == list(meta[f"tokenizer.ggml.{key}"]), key
        assert gguf.kv["tokenizer.ggml.unknown_token_id"] == 0


@pytest.mark.parametrize("change, said", [
    ({"normalizer": {"type": "NFKC"}}, "Unigram with NFKC"), ({"pre_tokenizer": {"type": "Whitespace"}}, "Unigram with Whitespace"),
    ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "other marks"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "base64")])
def test_other_unigrams_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    table = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1]]}, "pre_tokenizer": {"type": "Metaspace"}}
    with pytest.raises(errors.Error, match=said):
        vocabulary_of(write(tmp_path, table | change, {"vocab_size": 2}))


@pytest.mark.parametrize("change, said", [
    ({"normalizer": {"type": "Lowercase"}}, "a Lowercase in place of"), ({"pre_tokenizer": {"type": "Whitespace"}}, "a Whitespace"),
    ({"normalizer": {"type": "BertNormalizer", "clean_text": False}}, "clean_text off")])
def test_other_wordpieces_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    table = {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1}}, "normalizer": {"type": "BertNormalizer"},
             "pre_tokenizer": {"type": "BertPreTokenizer"}}
    with pytest.raises(errors.UnsupportedTokenizer, match=said):
        vocabulary_of(write(tmp_path, table | change, {"vocab_size": 2}))
