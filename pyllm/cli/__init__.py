"""The pyllm command."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pyllm", description="Run language models on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="answer a prompt, or chat")
    run.add_argument("words", nargs="*", help="[MODEL] PROMPT")
    run.add_argument("--seed", type=int)
    args = parser.parse_args(argv)

    from .. import LLM, Error

    try:
        with LLM() as llm:
            stream = llm.stream(" ".join(args.words), seed=args.seed)
            for chunk in stream:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
            print()
    except Error as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0
