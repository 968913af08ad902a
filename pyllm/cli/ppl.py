"""pyllm ppl: perplexity of a model on a text file. The estimate so far goes to stderr, the result to stdout."""

from __future__ import annotations

import argparse

from ._options import add_backend, add_json, add_kv, add_model, add_pack_cache, add_text, add_threads, model_file, read_text
from ._output import note, print_json


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_text(parser)
    add_threads(parser)
    add_kv(parser)
    add_backend(parser)
    add_pack_cache(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import LLM, perplexity

    text = read_text(args.file)
    with LLM(model_file(args.model), ctx=args.ctx, threads=args.threads, kv=args.kv, backend=args.backend,
             pack_cache=args.pack_cache) as llm:
        n = len(perplexity.split(llm, text, args.ctx)[:args.chunks])
        for result in perplexity.estimates(llm, text, args.ctx, args.chunks):
            note(f"[{result.n_chunks}/{n}] {result.value:.4f}")
    if args.json:
        print_json({"model": str(llm.path), "file": args.file, "perplexity": result.value, "error": result.error, "ctx": args.ctx,
                    "chunks": result.n_chunks, "tokens": result.n_tokens, "kv": args.kv})
    else:
        print(f"perplexity {result.value:.4f} +/- {result.error:.4f}")
    return 0
