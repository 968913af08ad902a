"""pyllm convert: a Hugging Face checkpoint, or a LoRA adapter, becomes a GGUF file."""

from __future__ import annotations

import argparse

from ._output import note, progress
from .quantize import add_recipe, recipe


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DIR", help="folder of a checkpoint (config.json, safetensors or .bin, tokenizer) or of a PEFT "
                                                      "adapter, or user/repo of the Hugging Face hub")
    parser.add_argument("output", metavar="OUT.gguf", help="the file to write")
    parser.add_argument("-q", "--type", default="F16", metavar="TYPE",
                        help="which type each tensor gets: F16, BF16, F32, Q8_0, Q4_K_M, ... (default: F16)")
    parser.add_argument("--name", metavar="NAME", help="the model's name in the file, instead of the checkpoint's own")
    parser.add_argument("--pre", metavar="NAME", help="pre-tokenizer (llama-bpe, qwen2, ...), instead of the one that its rules tell")
    parser.add_argument("--base", metavar="DIR", help="of a LoRA adapter: folder with the config.json of the model that it was trained on")
    parser.add_argument("--vocab-only", action="store_true", help="only the tokenizer, no tensors")
    add_recipe(parser)


def run(args: argparse.Namespace) -> int:
    from ..quantize import convert, lora
    from ..quantize.folder import find

    with progress(args.source) as show:
        source = find(args.source, show)
    if lora.is_adapter(source):
        print(lora.convert_adapter(source, args.output, args.type, base=args.base, verify=args.verify).path)
        return 0
    with progress(args.output) as show:
        done = convert(source, args.output, recipe(args, args.type), name=args.name, pre=args.pre, vocab_only=args.vocab_only,
                       imatrix=args.imatrix, n_threads=args.threads, verify=args.verify, progress=show)
    for path in done.removed:
        note(f"removed {path}, left behind by a process that was killed")
    print(done.path)
    return 0
