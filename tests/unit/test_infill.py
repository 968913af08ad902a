"""Fill-in-the-middle marks out of a file's metadata, and the prompt that is made of them; long texts, refused before they are tokenized."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import pyllm
from pyllm.infill import find_marks

KEYS = {"tokenizer.ggml.fim_pre_token_id": 5, "tokenizer.ggml.fim_suf_token_id": 6, "tokenizer.ggml.fim_mid_token_id": 7}


def test_marks_come_from_the_metadata(smollm2: Path) -> None:
    tokenizer = pyllm.Tokenizer(smollm2)
    marks = find_marks(KEYS, tokenizer)
    older = {"tokenizer.ggml.prefix_token_id": 5, "tokenizer.ggml.suffix_token_id": 6, "tokenizer.ggml.middle_token_id": 7}
    assert marks == find_marks(older, tokenizer) == (5, 6, 7)
    assert marks.prompt(tokenizer, "a <|im_end|>", "") == [5, *tokenizer.encode("a <|im_end|>", parse_special=False), 6, 7]


@pytest.mark.parametrize("damage", [{"tokenizer.ggml.fim_mid_token_id": 10**6}, {"tokenizer.ggml.fim_pre_token_id": "x"}])
def test_wrong_marks_are_none(smollm2: Path, damage: dict[str, object]) -> None:
    tokenizer = pyllm.Tokenizer(smollm2)
    assert find_marks(KEYS | damage, tokenizer) is None and find_marks({}, tokenizer) is None


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "hello " * 200_000])
def test_texts_far_beyond_the_context_are_refused_early(smollm2: Path, text: str) -> None:
    with pyllm.LLM(smollm2, ctx=512) as llm:
        whole = time.process_time()
        n = len(llm.tokenize(text))
        early = time.process_time()
        with pytest.raises(pyllm.ContextOverflow) as e:
            llm.complete(text)
        assert 4 * (time.process_time() - early) < early - whole
        assert 0.9 < e.value.n_tokens / n < 1.1


def test_a_long_text_that_fits_is_taken(smollm2: Path) -> None:
    with pyllm.LLM(smollm2, ctx=4096) as llm:
        text = " " * 200_000
        assert llm._encode(text) == llm.tokenize(text)
