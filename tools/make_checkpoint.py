#!/usr/bin/env python3
"""Makes a Hugging Face checkpoint (bf16 safetensors, tokenizer.json, config.json) out of a real GGUF file, to try conversion with.

    python tools/make_checkpoint.py IN.gguf OUTDIR [--shard 200MB]         (needs the [oracle] extra and accelerate)

The weights are the GGUF's, dequantized: they are not what the model's publisher released, and must not be shown as such.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# The pre-tokenizer of SmolLM2, of which transformers loses the first step when it reads a GGUF file.
DIGITS_THEN_GPT2 = {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard", default="50GB", help="largest safetensors file")
    args = parser.parse_args()
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(args.gguf.parent), "gguf_file": args.gguf.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(args.out)
    fix_tokenizer(args.out / "tokenizer.json", "smollm" in args.gguf.name.lower())
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(args.out, max_shard_size=args.shard)
    print(*sorted(p.name for p in args.out.iterdir()))


def fix_tokenizer(path: Path, individual_digits: bool) -> None:
    tokenizer = json.loads(path.read_text())
    if individual_digits:
        tokenizer["pre_tokenizer"] = DIGITS_THEN_GPT2
        path.write_text(json.dumps(tokenizer, ensure_ascii=False))


if __name__ == "__main__":
    main()
