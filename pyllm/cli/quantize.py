"""pyllm quantize: a smaller copy of a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ._options import add_threads, model_file
from ._output import count, note, print_table, progress, size

if TYPE_CHECKING:
    from ..quantize import Options, Plan


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="MODEL", help="the model, in F32, F16, BF16 or Q8_0: a GGUF file, or a name as for `run`")
    parser.add_argument("output", metavar="OUT.gguf", help="the file to write")
    parser.add_argument("mix", metavar="TYPE", help="Q4_K_M, Q8_0, IQ4_XS, F16, ...: which type each tensor gets")
    add_recipe(parser)
    parser.add_argument("--allow-requantize", action="store_true", help="also from files that are quantized already, which loses quality")
    parser.add_argument("--dry-run", action="store_true", help="show every tensor's type and the file's size, and write nothing")
    parser.add_argument("--evaluate", metavar="TEXT", help="compare with MODEL on the text of a file; figures go into the receipt")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """What `quantize` and `convert` share: options above the mix, and how to write."""
    parser.add_argument("--tensor-type", metavar="REGEX=TYPE", type=_tensor_type, action="append", default=[],
                        help="type of the tensors whose name matches; again for more, the last that matches counts")
    parser.add_argument("--output-type", metavar="TYPE", help="type of the output matrix")
    parser.add_argument("--token-embedding-type", metavar="TYPE", help="type of the token embedding")
    parser.add_argument("--pure", action="store_true", help="one type for all tensors that are quantized")
    parser.add_argument("--imatrix", metavar="FILE", help="importance matrix, of `pyllm imatrix` or llama.cpp")
    parser.add_argument("--verify", action="store_true", help="read the file back from the disk and compare before it gets its name")
    add_threads(parser)


def recipe(args: argparse.Namespace, mix: str) -> Options:
    from ..quantize import Options

    return Options(mix, args.tensor_type, args.output_type, args.token_embedding_type, args.pure)


def run(args: argparse.Namespace) -> int:
    from ..quantize import plan_file, quantize

    options = recipe(args, args.mix)
    if args.dry_run:
        _print_plan(plan_file(model_file(args.input), options, imatrix=args.imatrix, allow_requantize=args.allow_requantize))
        return 0
    source = model_file(args.input)
    with progress(args.output) as show:
        done = quantize(source, args.output, options, imatrix=args.imatrix, allow_requantize=args.allow_requantize,
                        n_threads=args.threads, verify=args.verify, evaluate=args.evaluate, progress=show)
    for path in done.removed:
        note(f"removed {path}, left behind by a process that was killed")
    if done.evaluation:
        e = done.evaluation
        note(f"KL divergence {e.kld:.5f} ± {e.kld_error:.5f} (99 %: {e.kld_99:.4f}, most: {e.kld_max:.4f}), same choice "
             f"{e.same_top:.2%}, perplexity {e.perplexity:.4f} (input: {e.source_perplexity:.4f})")
    print(done.path)
    return 0


def _tensor_type(text: str) -> tuple[str, str]:
    pattern, is_there, kind = text.rpartition("=")
    if not is_there or not pattern or not kind:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form REGEX=TYPE")
    return pattern, kind


def _print_plan(plan: Plan) -> None:
    rows = [(t.name, " x ".join(map(str, t.dims)), t.before.upper(), t.after.upper(), str(t.n_bytes)) for t in plan.tensors]
    print_table(("TENSOR", "SHAPE", "FROM", "TO", "BYTES"), rows, right=(4,))
    bits = 8 * plan.n_bytes / plan.n_params
    print(f"\nfile {size(plan.n_bytes)} ({plan.n_bytes} bytes), {count(plan.n_params)} parameters, {bits:.2f} bits each")
