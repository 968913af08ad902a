"""GGUF files byte by byte, also those that no writer would write; and a tiny llama of any tensor type."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import format_oracle
import numpy as np

N_VOCAB, N_EMBD, N_FF, HEADS, KV_HEADS = 300, 256, 512, 4, 2
Tensor = tuple[str, int, Sequence[int], bytes]      # name, type id, sizes with the contiguous one first, data


def string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(v: Any) -> bytes:
    """Type id and bytes of a value: bool, int (u32), float (f32), text, bytearray (u8), or a list of one of these (ints: i32)."""
    if isinstance(v, bytearray):
        return struct.pack("<IIQ", 9, 0, len(v)) + bytes(v)
    if isinstance(v, (str, bytes)):
        return struct.pack("<I", 8) + string(v)
    if isinstance(v, list):
        kind = 8 if isinstance(v[0], (str, bytes)) else 6 if isinstance(v[0], float) else 5
        items = b"".join(map(string, v)) if kind == 8 else struct.pack(f"<{len(v)}{'f' if kind == 6 else 'i'}", *v)
        return struct.pack("<IIQ", 9, kind, len(v)) + items
    code, kind = ("?", 7) if isinstance(v, bool) else ("I", 4) if isinstance(v, int) else ("f", 6)
    return struct.pack("<I" + code, kind, v)


def build(kv: Mapping[str, Any], tensors: Sequence[Tensor], version: int = 3, align: int = 32) -> tuple[bytes, int]:
    """(the file, how many bytes of it are the header)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(kv))
    head += b"".join(string(key) + value(v) for key, v in kv.items())
    data = b""
    for name, kind, shape, raw in tensors:
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += raw + bytes(-len(raw) % align)
    return head + bytes(-len(head) % align) + data, len(head)


def vocabulary(n: int = N_VOCAB) -> dict[str, Any]:
    """A sentencepiece vocabulary: control tokens, all bytes, and n - 259 words."""
    words = n - 259
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(f"\u2581w{i}" for i in range(words))],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(words)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * words,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }


def metadata(n_layers: int = 2, n_embd: int = N_EMBD, n_ff: int = N_FF, heads: int = HEADS, kv_heads: int = KV_HEADS,
             ctx: int = 128) -> dict[str, Any]:
    return {
        "general.architecture": "llama", "general.name": "tiny", "llama.block_count": n_layers, "llama.context_length": ctx,
        "llama.embedding_length": n_embd, "llama.feed_forward_length": n_ff, "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": n_embd // heads,
    }


def shapes(n_layers: int = 2, n_embd: int = N_EMBD, n_ff: int = N_FF, heads: int = HEADS, kv_heads: int = KV_HEADS, tied: bool = False,
           n_vocab: int = N_VOCAB) -> dict[str, tuple[int, ...]]:
    """Sizes of a llama's tensors by name, the contiguous one first."""
    kv_width = n_embd // heads * kv_heads
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_embd, n_vocab), "output_norm.weight": (n_embd,)}
    if not tied:
        found["output.weight"] = (n_embd, n_vocab)
    for i in range(n_layers):
        layer = {"attn_norm": (n_embd,), "attn_q": (n_embd, n_embd), "attn_k": (n_embd, kv_width), "attn_v": (n_embd, kv_width),
                 "attn_output": (n_embd, n_embd), "ffn_norm": (n_embd,), "ffn_gate": (n_embd, n_ff), "ffn_up": (n_embd, n_ff),
                 "ffn_down": (n_ff, n_embd)}
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found


def tensors(kind: str, which: Mapping[str, tuple[int, ...]], seed: int = 1) -> list[Tensor]:
    """Random weights: matrices of a type, vectors (norms, around 1) in f32."""
    rng = np.random.default_rng(seed)
    made: list[Tensor] = []
    for name, shape in which.items():
        if len(shape) == 1:
            made.append((name, 0, shape, (1 + 0.2 * rng.normal(size=shape)).astype(np.float32).tobytes()))
        else:
            made.append((name, format_oracle.TYPES[kind], shape, format_oracle.random_matrix(kind, shape[1], shape[0], rng).tobytes()))
    return made


def llama(kind: str = "f32", tied: bool = False, seed: int = 1, **sizes: int) -> tuple[bytes, int]:
    """A tiny llama with all matrices of one type: (the file, bytes of its header)."""
    n_vocab = sizes.pop("n_vocab", N_VOCAB)
    ctx = {"ctx": sizes.pop("ctx")} if "ctx" in sizes else {}
    kv = metadata(**sizes, **ctx) | vocabulary(n_vocab)
    return build(kv, tensors(kind, shapes(**sizes, tied=tied, n_vocab=n_vocab), seed))
