"""pyllm tokenize: token ids and pieces of a text."""

from __future__ import annotations

import argparse
import os
import sys

from ._options import add_json, add_model, model_file
from ._output import note, print_json, styled


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("text", metavar="TEXT", nargs="?", default="-", help="the text; - or nothing: standard input")
    parser.add_argument("--ids", action="store_true", help="only the ids, on one line")
    add_json(parser)
    parser.add_argument("--no-special", action="store_true", help="neither BOS or EOS nor control tokens written in the text")


def run(args: argparse.Namespace) -> int:
    from .. import Tokenizer

    tokenizer = Tokenizer(model_file(args.model))
    text = _stdin() if args.text == "-" else os.fsencode(args.text)
    ids = tokenizer.encode(text, add_special=not args.no_special, parse_special=not args.no_special)
    if args.json:
        print_json([{"id": i, "piece": tokenizer.token_bytes(i, special=True).decode("utf-8", "backslashreplace")} for i in ids])
    elif args.ids:
        print(" ".join(map(str, ids)))
    else:
        for i in ids:
            print(f"{i:>7}  {styled(piece(tokenizer.token_bytes(i, special=True)), 'cyan')}")
    note(f"{len(ids)} token{'' if len(ids) == 1 else 's'}")
    return 0


def piece(data: bytes) -> str:
    """A token's bytes on one line: control characters and bytes that are no UTF-8 by themselves as escapes, a backslash doubled."""
    text = data.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else
                   c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _stdin() -> bytes:
    if sys.stdin.isatty():
        note("reading the text from the terminal; Ctrl-D ends it")
    return sys.stdin.buffer.read()
