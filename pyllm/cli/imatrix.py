"""pyllm imatrix: an importance matrix for the quantizer, measured on a text."""

from __future__ import annotations

import argparse
import os

from ._options import add_kv, add_model, add_text, add_threads, model_file, read_text
from ._output import note, progress


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_text(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the importance matrix, a GGUF file")
    parser.add_argument("--process-output", action="store_true", help="also for the matrix that makes the logits")
    add_threads(parser)
    add_kv(parser)


def run(args: argparse.Namespace) -> int:
    from .. import LLM, perplexity
    from ..quantize import imatrix
    from ..quantize.writer import output_path

    text = read_text(args.file)
    model = model_file(args.model)
    output_path(args.output, [model])       # what cannot be written is said before the work, not after it
    name = "standard input" if args.file == "-" else os.path.basename(args.file)
    with LLM(model, ctx=args.ctx, threads=args.threads, kv=args.kv) as llm, progress("importance matrix", "chunks") as show:
        n = len(perplexity.split(llm, text, args.ctx)[:args.chunks])
        show(0, n)
        for found in imatrix.estimates(llm, text, name, args.ctx, args.chunks, output=args.process_output):
            show(found.chunk_count, n)
    found.save(args.output)
    note(f"{args.output}: {len(found.sums)} matrices, {found.chunk_count} chunks of {found.chunk_size} tokens")
    return 0
