"""pyllm compare: how far candidates stray from a reference model on a text."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ._options import MODEL_HELP, add_json, add_kv, add_text, add_threads, model_file, read_text
from ._output import clean, note, print_json, print_table, progress, size

if TYPE_CHECKING:
    from ..quantize.compare import Candidate, Comparison, Estimate


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REFERENCE", help=MODEL_HELP)
    parser.add_argument("candidates", metavar="CANDIDATE", nargs="+", help="the same, of the models to compare with it")
    add_text(parser)
    parser.add_argument("--plot", metavar="FILE", help="also draw KL divergence against file size, a PNG (needs the extra [plot])")
    add_threads(parser)
    add_kv(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import LLM, perplexity
    from ..quantize import compare
    from ..quantize.writer import output_path

    text = read_text(args.file)
    files = [model_file(spec) for spec in (args.reference, *args.candidates)]
    if args.plot:
        output_path(args.plot, files)       # what cannot be written is said before the work, not after it
    with ExitStack() as stack:
        models = [stack.enter_context(LLM(f, ctx=args.ctx, threads=args.threads, kv=args.kv)) for f in files]
        n = len(perplexity.split(models[0], text, args.ctx)[:args.chunks])
        show = stack.enter_context(progress("compare", "chunks"))
        for found in compare.estimates(models[0], models[1:], text, args.ctx, args.chunks):
            show(found.n_chunks, n)
    sizes = [os.path.getsize(f) for f in files]
    names = [clean(f.name.removesuffix(".gguf")) for f in files]
    if args.json:
        print_json(_json(args, [str(f) for f in files], sizes, found))
    else:
        print_table(("MODEL", "SIZE", "KL DIVERGENCE", "99 %", "MAX", "SAME TOP", "PERPLEXITY", "RATIO"),
                    [[names[0], size(sizes[0]), "", "", "", "", _text(found.perplexity, 3), ""],
                     *(_row(*row) for row in zip(names[1:], sizes[1:], found.candidates, strict=True))], right=(1,))
        note(f"{found.n_tokens} tokens of {found.n_chunks} chunks; nats; +- one standard error")
    if args.plot:
        compare.plot(args.plot, names[1:], sizes[1:], found)
    return 0


def _row(name: str, n_bytes: int, c: Candidate) -> list[str]:
    return [name, size(n_bytes), _text(c.kld, 5), _text(c.kld_99, 3), f"{c.kld_max:.2f}", f"{c.top.value:.2%} +- {c.top.error:.2%}",
            _text(c.perplexity, 3), _text(c.ratio, 4)]


def _text(e: Estimate, digits: int) -> str:
    return f"{e.value:.{digits}f} +- {e.error:.{digits}f}"


def _json(args: argparse.Namespace, files: list[str], sizes: list[int], found: Comparison) -> dict[str, Any]:
    def pair(e: Estimate) -> dict[str, float]:
        return {"value": e.value, "error": e.error}

    return {"file": args.file, "ctx": args.ctx, "chunks": found.n_chunks, "tokens": found.n_tokens, "kv": args.kv,
            "reference": {"model": files[0], "bytes": sizes[0], "perplexity": pair(found.perplexity)},
            "candidates": [{"model": f, "bytes": n, "kld": pair(c.kld), "kld_99": pair(c.kld_99), "kld_max": c.kld_max,
                            "same_top": pair(c.top), "perplexity": pair(c.perplexity), "perplexity_ratio": pair(c.ratio)}
                           for f, n, c in zip(files[1:], sizes[1:], found.candidates, strict=True)]}
