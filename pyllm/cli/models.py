"""pyllm models: the families of models that run."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ._options import add_json
from ._output import note, print_json, print_table


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", metavar="WORD", nargs="?", help="only families with this in a name or feature; capitals do not matter")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..supported import supported

    word = (args.word or "").lower()
    found = [f for f in supported() if any(word in text.lower() for text in (f.name, f.about, *f.classes, *f.features))]
    if args.json:
        print_json([asdict(family) for family in found])
        return 0
    if not found:
        note(f"no family has {args.word!r} in its names\nhint: `pyllm models` lists all")
        return 1
    print_table(("GGUF", "HUGGING FACE", "CHECKED WITH", "FEATURES"),
                [(f.name, ", ".join(f.classes), f.oracle, ", ".join(f.features) or "-") for f in found])
    return 0
