"""pyllm ppl: perplexity of a model on a text file. The estimate so far goes to stderr, the result to stdout."""

from __future__ import annotations

import argparse
import sys

from ._options import add_json, add_kv, add_model, add_pack_cache, add_threads, model_file, whole
from ._output import note, print_json


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the text, UTF-8; - for standard input")
    parser.add_argument("--ctx", type=whole(4, 1 << 24), default=512, metavar="N", help="tokens of a chunk (default: 512)")
    parser.add_argument("--chunks", type=whole(1, 1 << 30), metavar="N", help="only the first N chunks (default: all)")
    add_threads(parser)
    add_kv(parser)
    add_pack_cache(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import LLM, perplexity

    text = _read(args.file)
    with LLM(model_file(args.model), ctx=args.ctx, threads=args.threads, kv=args.kv, pack_cache=args.pack_cache) as llm:
        n = len(perplexity.split(llm, text, args.ctx)[:args.chunks])
        for result in perplexity.estimates(llm, text, args.ctx, args.chunks):
            note(f"[{result.n_chunks}/{n}] {result.value:.4f}")
    if args.json:
        print_json({"model": str(llm.path), "file": args.file, "perplexity": result.value, "error": result.error, "ctx": args.ctx,
                    "chunks": result.n_chunks, "tokens": result.n_tokens, "kv": args.kv})
    else:
        print(f"perplexity {result.value:.4f} +/- {result.error:.4f}")
    return 0


def _read(file: str) -> bytes:
    from ..errors import FileError

    try:
        if file == "-":
            return sys.stdin.buffer.read()
        with open(file, "rb") as f:
            return f.read()
    except OSError as e:
        raise FileError(f"{file}: {e.strerror}\nhint: -f takes the path of a text file") from e
