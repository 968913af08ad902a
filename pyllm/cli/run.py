"""pyllm run: one answer."""

from __future__ import annotations

import argparse
import sys


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", help="[MODEL] PROMPT")
    parser.add_argument("--seed", type=int)


def run(args: argparse.Namespace) -> int:
    from .. import LLM

    with LLM() as llm:
        for chunk in llm.stream(" ".join(args.words), seed=args.seed):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        print()
    return 0
