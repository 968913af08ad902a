"""pyllm convert: a Hugging Face checkpoint, or a LoRA adapter, becomes a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._options import add_threads
from ._output import clean, note, progress, size


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DIR", help="folder of a checkpoint (config.json, safetensors or .bin, tokenizer), or user/repo "
                                                      "of the Hugging Face hub")
    parser.add_argument("out", metavar="OUT.gguf", help="file to write")
    parser.add_argument("-q", "--type", default="F16", metavar="TYPE",
                        help="tensor type or mix: F16 (default), BF16, F32, Q8_0, Q4_K_M ...")
    parser.add_argument("--name", help="general.name, instead of the checkpoint's own")
    parser.add_argument("--pre", metavar="NAME", help="pre-tokenizer (tokenizer.ggml.pre), instead of the one that its rules tell")
    parser.add_argument("--vocab-only", action="store_true", help="only the tokenizer, no tensors")
    parser.add_argument("--verify", action="store_true", help="read the file back and compare before it gets its name")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from .._core import lib
    from ..quantize import folder
    from ..quantize.convert import convert

    with progress(args.source) as show:
        source = folder.find(args.source, show)
    with progress(Path(args.out).name) as show:
        made = convert(source, args.out, args.type, n_threads=args.threads or lib.pyllm_threads_default(), name=args.name, pre=args.pre,
                       vocab_only=args.vocab_only, verify=args.verify, progress=show)
    note(f"wrote {size(made.n_bytes)}")
    print(clean(str(made.path)))
    return 0
