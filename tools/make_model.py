#!/usr/bin/env python3
"""Writes a model of any shape and tensor types with random weights, for speed tests of what no small download offers.

    python tools/make_model.py OUT [--like llama] [--layers 16] [--embd 2048] [--heads 32] [--head-dim N] [--kv-heads 8] [--ff 8192]
                               [--experts N] [--used N] [--vocab 128256] [--untied] [--type q4_0] [--tensor PATTERN=TYPE ...] [--seed 1]

--like: llama (the defaults are the shape of a 1.2B model), qwen3moe (64 experts, 8 used, 1.1 of 5.6 billion parameters active), or gpt-oss
(32 experts, 4 used, in MXFP4, everything else in Q8_0; a third of the layers of the 20B model: 1.6 of 7.7 billion active). Codes are random
bytes under scales that keep activations in the usual range, so every kernel works as it does on a real model; the text is noise. `--tensor`
gives tensors whose name holds PATTERN another type; the last match counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

# Offsets of the f16 scales in a block; minima get the same value, which is fine for noise.
SCALES = {"q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2),
          "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,), "mxfp4": ()}
FLOATS = ("f32", "f16", "bf16")
LIKE: dict[str, dict[str, Any]] = {
    "llama": {"layers": 16, "embd": 2048, "heads": 32, "kv_heads": 8, "ff": 8192, "vocab": 128256, "experts": 0, "used": 0,
              "type": "q4_0"},
    "qwen3moe": {"layers": 16, "embd": 2048, "heads": 16, "kv_heads": 4, "ff": 768, "vocab": 151936, "experts": 64, "used": 8,
                 "untied": True, "type": "q4_0"},
    "gpt-oss": {"layers": 8, "embd": 2880, "heads": 64, "head_dim": 64, "kv_heads": 8, "ff": 2880, "vocab": 201088, "experts": 32,
                "used": 4, "untied": True, "type": "mxfp4", "tensor": ["attn_=q8_0", "token_embd=q8_0", "output.=q8_0"]},
}


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
        if kind == "mxfp4":                 # a power of two
            blocks[:, 0] = round(127 + np.log2(target))
    return blocks.reshape(rows, -1)


def shapes(args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """[out, in], [experts, out, in] or [n] by name."""
    embd, ff, q, kv = args.embd, args.ff, args.head_dim * args.heads, args.head_dim * args.kv_heads
    stack = (args.experts,) if args.experts else ()
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (args.vocab, embd), "output_norm.weight": (embd,)}
    if args.untied:
        found["output.weight"] = (args.vocab, embd)
    for i in range(args.layers):
        layer: dict[str, tuple[int, ...]] = {"attn_norm": (embd,), "attn_q": (q, embd), "attn_k": (kv, embd), "attn_v": (kv, embd),
                                             "attn_output": (embd, q)}
        layer["post_attention_norm" if args.like == "gpt-oss" else "ffn_norm"] = (embd,)
        if args.like == "qwen3moe":
            layer |= {"attn_q_norm": (args.head_dim,), "attn_k_norm": (args.head_dim,)}
        if args.like == "gpt-oss":
            layer["attn_sinks"] = (args.heads,)
        end = "_exps" if stack else ""
        layer |= {f"ffn_{part}{end}": stack + ((embd, ff) if part == "down" else (ff, embd)) for part in ("gate", "up", "down")}
        if stack:
            layer["ffn_gate_inp"] = (*stack, embd)
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        if args.like == "gpt-oss":          # a bias beside every matrix
            found |= {f"blk.{i}.{name}.bias": shape[:-1] for name, shape in layer.items() if len(shape) > 1}
    return found


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
    w.add_rope_dimension_count(args.head_dim)
    w.add_key_length(args.head_dim)
    w.add_value_length(args.head_dim)
    if args.experts:
        w.add_expert_count(args.experts)
        w.add_expert_used_count(args.used)
        w.add_expert_feed_forward_length(args.ff)
    if args.like == "gpt-oss":
        w.add_sliding_window(128)
    w.add_vocab_size(args.vocab)
    words = args.vocab - 259                # a SentencePiece vocabulary: control tokens, all bytes, made-up words
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(f"\u2581w{i}" for i in range(words))])
    w.add_token_scores([0.0] * 259 + [-float(i) for i in range(words)])
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * words)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=LIKE, default="llama", help="architecture, and the defaults of everything else")
    for name in ("layers", "embd", "heads", "head-dim", "kv-heads", "ff", "experts", "used", "vocab"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--untied", action="store_true", default=None, help="an output matrix of its own")
    parser.add_argument("--type", choices=(*SCALES, *FLOATS))
    parser.add_argument("--tensor", action="append", metavar="PATTERN=TYPE")
    args = parser.parse_args()
    for name, value in LIKE[args.like].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.head_dim, args.tensor = args.head_dim or args.embd // args.heads, args.tensor or []
    if args.vocab < 300:
        parser.error("--vocab: at least 300")
    if (args.like == "llama" and args.experts) or (args.like != "llama" and not 0 < args.used <= args.experts):
        parser.error("--experts and --used: none of a llama, some of the others")
    return args


def main() -> None:
    args = parse()
    rng, w = np.random.default_rng(args.seed), gguf.GGUFWriter(args.out, args.like, use_temp_file=True)
    write_metadata(w, args)
    for name, shape in shapes(args).items():
        if len(shape) == 1 or name.endswith(".bias") or "ffn_gate_inp" in name:     # as files have them: always in F32
            if "norm" in name:
                w.add_tensor(name, np.ones(shape, np.float32))
            else:
                w.add_tensor(name, rng.standard_normal(shape, np.float32) / np.float32(args.embd ** 0.5))
            continue
        kind = next((t for p, _, t in reversed([rule.partition("=") for rule in args.tensor]) if p in name), args.type)
        rows, stack = int(np.prod(shape[:-1])), shape[:-2]
        data = matrix(kind, rows, shape[-1], rng)
        w.add_tensor(name, data.reshape(*stack, shape[-2], -1), raw_dtype=Type[kind.upper()])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
