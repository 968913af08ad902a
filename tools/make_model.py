#!/usr/bin/env python3
"""Writes a llama of any shape and tensor types with random weights, for speed tests of what no small download offers.

    python tools/make_model.py OUT [--layers 16] [--embd 2048] [--heads 32] [--kv-heads 8] [--ff 8192] [--vocab 128256]
                               [--untied] [--type q4_0] [--tensor PATTERN=TYPE ...] [--seed 1]

The default is the shape of a 1.2B model. Codes are random bytes under scales that keep activations in the usual range, so every kernel
works as it does on a real model; the text is noise. `--tensor` gives tensors whose name holds PATTERN another type; the last match counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

# Offsets of the f16 scales in a block; minima get the same value, which is fine for noise.
SCALES = {"q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2),
          "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,)}
FLOATS = ("f32", "f16", "bf16")


def matrix(kind: str, rows: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [rows, bytes of a row]: values of a variance of about 1/k, so that a product keeps the size of its input."""
    if kind in FLOATS:
        values = rng.standard_normal((rows, k), np.float32) / np.float32(k ** 0.5)
        if kind == "bf16":
            return np.ascontiguousarray(values.view("<u4") >> 16).astype("<u2").view(np.uint8)
        return values.astype("<f2" if kind == "f16" else "<f4").view(np.uint8)
    elems, size = gguf.GGML_QUANT_SIZES[Type[kind.upper()]]
    if k % elems:
        raise SystemExit(f"rows of {k} values are no whole blocks of {kind} ({elems})\nhint: --tensor PATTERN=TYPE, for example q8_0")
    blocks = rng.integers(0, 256, (rows * k // elems, size), np.uint8)
    for target in (1.0, None):              # once to see how large values are, once as wanted
        if target is None:
            target = k ** -0.5 / float(np.std(gguf.dequantize(blocks[:1000].reshape(1, -1), Type[kind.upper()])))
        for at in SCALES[kind]:
            blocks[:, at:at + 2] = np.array([target], "<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def shapes(args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """[out, in] or [n] by name."""
    embd, ff, kv = args.embd, args.ff, args.embd // args.heads * args.kv_heads
    found: dict[str, tuple[int, ...]] = {"token_embd": (args.vocab, embd), "output_norm": (embd,)}
    if args.untied:
        found["output"] = (args.vocab, embd)
    for i in range(args.layers):
        layer = {"attn_norm": (embd,), "attn_q": (embd, embd), "attn_k": (kv, embd), "attn_v": (kv, embd), "attn_output": (embd, embd),
                 "ffn_norm": (embd,), "ffn_gate": (ff, embd), "ffn_up": (ff, embd), "ffn_down": (embd, ff)}
        found |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in found.items()}


def write_metadata(w: gguf.GGUFWriter, args: argparse.Namespace) -> None:
    w.add_name(args.out.stem)
    w.add_block_count(args.layers)
    w.add_context_length(131072)
    w.add_embedding_length(args.embd)
    w.add_feed_forward_length(args.ff)
    w.add_head_count(args.heads)
    w.add_head_count_kv(args.kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(500000.0)
    w.add_rope_dimension_count(args.embd // args.heads)
    w.add_vocab_size(args.vocab)
    words = args.vocab - 259                # a SentencePiece vocabulary: control tokens, all bytes, made-up words
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(f"\u2581w{i}" for i in range(words))])
    w.add_token_scores([0.0] * 259 + [-float(i) for i in range(words)])
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * words)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, default in (("layers", 16), ("embd", 2048), ("heads", 32), ("kv-heads", 8), ("ff", 8192), ("vocab", 128256), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--untied", action="store_true", help="an output matrix of its own")
    parser.add_argument("--type", default="q4_0", choices=(*SCALES, *FLOATS))
    parser.add_argument("--tensor", action="append", default=[], metavar="PATTERN=TYPE")
    args = parser.parse_args()
    if args.vocab < 300:
        parser.error("--vocab: at least 300")
    rng, w = np.random.default_rng(args.seed), gguf.GGUFWriter(args.out, "llama", use_temp_file=True)
    write_metadata(w, args)
    for name, shape in shapes(args).items():
        if len(shape) == 1:
            w.add_tensor(name, np.ones(shape, np.float32))
            continue
        kind = next((t for p, _, t in reversed([rule.partition("=") for rule in args.tensor]) if p in name), args.type)
        data = matrix(kind, *shape, rng)
        w.add_tensor(name, data, raw_dtype=Type[kind.upper()])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
