"""Writes tests/data/vocabs/unigram.gguf.xz: a Unigram vocabulary that sentencepiece trains on the texts of the tests, with its table of
replacements (nmt_nfkc): `python tools/make_unigram_vocab.py`."""

from __future__ import annotations

import io
import lzma
import sys
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
import tiny_gguf  # noqa: E402

SIZE = 2700


def main() -> None:
    lines = [line for path in sorted((ROOT / "tests/data/text").glob("*.txt")) for line in path.read_text("utf-8").splitlines() if line]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=trained, vocab_size=SIZE, model_type="unigram",
                                             normalization_rule_name="nmt_nfkc", num_threads=1, minloglevel=2)
    model = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    kv = {"general.architecture": "t5encoder", "tokenizer.ggml.model": "t5", "tokenizer.ggml.pre": "default",
          "tokenizer.ggml.tokens": [p.piece for p in model.pieces], "tokenizer.ggml.scores": [float(p.score) for p in model.pieces],
          "tokenizer.ggml.token_type": [int(p.type) for p in model.pieces], "tokenizer.ggml.unknown_token_id": 0,
          "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
          "tokenizer.ggml.precompiled_charsmap": bytearray(model.normalizer_spec.precompiled_charsmap)}
    out = ROOT / "tests/data/vocabs/unigram.gguf.xz"
    out.write_bytes(lzma.compress(tiny_gguf.build(kv, [])[0], preset=9))
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
