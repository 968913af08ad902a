"""pyllm quantize: a smaller copy of a model."""

from __future__ import annotations

import argparse
import math
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from ._options import add_threads, model_file, read_text
from ._output import count, note, print_table, progress, size

if TYPE_CHECKING:
    from ..quantize import Options, Plan, Target


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="MODEL", help="the model, in F32, F16, BF16 or Q8_0: a GGUF file, or a name as for `run`")
    parser.add_argument("output", metavar="OUT.gguf", help="the file to write")
    parser.add_argument("mix", metavar="TYPE", nargs="?", help="Q4_K_M, Q8_0, IQ4_XS, F16, ...: which type each tensor gets")
    for kind, metavar, parse, help in _TARGETS:
        parser.add_argument(f"--target-{kind}", metavar=metavar, type=parse, help=help)
    parser.add_argument("--calibration", metavar="TEXT", help="file with a text that the model is run on, for a target")
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


def recipe(args: argparse.Namespace, mix: str | None) -> Options:
    from ..quantize import Options

    return Options(mix, args.tensor_type, args.output_type, args.token_embedding_type, args.pure)


def run(args: argparse.Namespace) -> int:
    from ..quantize import plan_file, quantize

    if wrong := _wrong_usage(args):
        note(wrong)
        return 2
    options = replace(recipe(args, args.mix), target=_target(args))
    source = model_file(args.input)
    with progress("measuring", "runs") as measured, progress(args.output) as written:
        common = {"imatrix": args.imatrix, "allow_requantize": args.allow_requantize, "n_threads": args.threads, "measuring": measured}
        if args.dry_run:
            _print_plan(plan_file(source, options, **common))
            return 0
        done = quantize(source, args.output, options, verify=args.verify, evaluate=args.evaluate, progress=written, **common)
    for path in done.removed:
        note(f"removed {path}, left behind by a process that was killed")
    if done.evaluation:
        e = done.evaluation
        note(f"KL divergence {e.kld:.5f} ± {e.kld_error:.5f} (99 %: {e.kld_99:.4f}, most: {e.kld_max:.4f}), same choice "
             f"{e.same_top:.2%}, perplexity {e.perplexity:.4f} (input: {e.source_perplexity:.4f})")
    print(done.path)
    return 0


def _number(text: str) -> float:
    """argparse type: above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _bytes(text: str) -> float:
    """argparse type: 900MB, 1.2GiB, 1000000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]?)(i?)b?", text.lower())
    if not found or (found[3] and not found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 900MB or 1.2GiB")
    return float(found[1]) * float(1024 if found[3] else 1000) ** " kmg".index(found[2] or " ")


# kind of a target, its value, how that is read, help
_TARGETS = (("size", "BYTES", _bytes, "instead of TYPE: the best types for a file of at most this size, as 900MB or 1.2GiB"),
            ("bpw", "BITS", _number, "the same, for this many bits of tensor data for each parameter, as 4.5"),
            ("kld", "NATS", _number, "instead of TYPE: the smallest file whose KL divergence from MODEL is at most this, as 0.02"))


def _tensor_type(text: str) -> tuple[str, str]:
    pattern, is_there, kind = text.rpartition("=")
    if not is_there or not pattern or not kind:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form REGEX=TYPE")
    return pattern, kind


def _targets(args: argparse.Namespace) -> list[tuple[str, float]]:
    """(kind, value) of those that were given."""
    return [(kind, value) for kind, *_ in _TARGETS if (value := getattr(args, f"target_{kind}")) is not None]


def _wrong_usage(args: argparse.Namespace) -> str:
    """Where TYPE, targets and the text do not go together."""
    given = _targets(args)
    if len(given) + (args.mix is not None) != 1:
        options = ", ".join(f"--target-{kind}" for kind, *_ in _TARGETS)
        return f"error: give either TYPE or one of {options}\nhint: pyllm quantize MODEL OUT.gguf Q4_K_M"
    if given and args.calibration is None:
        return "error: a target needs a text that the model is run on\nhint: --calibration TEXT, a file of some thousand words"
    if given and args.pure:
        return "error: --pure is one type for all tensors, a target finds one for each\nhint: leave one of them out"
    return "error: --calibration belongs to a target\nhint: leave it out, or see --imatrix" if args.calibration and not given else ""


def _target(args: argparse.Namespace) -> Target | None:
    from ..quantize import Target

    given = _targets(args)
    return Target(*given[0], read_text(args.calibration, "--calibration"), os.path.basename(args.calibration)) if given else None


def _print_plan(plan: Plan) -> None:
    rows = [(t.name, " x ".join(map(str, t.dims)), t.before.upper(), t.after.upper(), str(t.n_bytes)) for t in plan.tensors]
    print_table(("TENSOR", "SHAPE", "FROM", "TO", "BYTES"), rows, right=(4,))
    bits = 8 * sum(t.n_bytes for t in plan.tensors) / plan.n_params
    print(f"\nfile {size(plan.n_bytes)} ({plan.n_bytes} bytes), {count(plan.n_params)} parameters, {bits:.4f} bits each")
