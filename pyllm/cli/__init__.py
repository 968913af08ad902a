"""The pyllm command: `pyllm COMMAND --help`. Answers go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed (the reason and the next step are on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from difflib import get_close_matches
from typing import NoReturn

# name -> (module of this package, one line of help). A module has add(parser) and run(args) -> exit code.
COMMANDS = {
    "run": ("run", "answer a prompt, or chat"),
    "pull": ("pull", "fetch a model into the cache"),
    "list": ("list", "models on this machine"),
    "show": ("show", "what a model is"),
    "rm": ("rm", "remove a fetched model"),
    "tokenize": ("tokenize", "token ids and pieces of a text"),
    "bench": ("bench", "measure prefill and decode speed"),
    "ppl": ("ppl", "perplexity of a model on a text file"),
    "inspect": ("inspect", "metadata, tensors and tape of a GGUF file"),
    "doctor": ("doctor", "check this installation and machine"),
}


class Parser(argparse.ArgumentParser):
    """argparse that suggests what was meant."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n{self._hint(message)}")

    def _hint(self, message: str) -> str:
        if not message.startswith("unrecognized arguments:"):
            return ""
        options = [o for a in self._actions for o in a.option_strings]
        given = next((w for w in message.split()[2:] if w.startswith("-")), "")
        near = get_close_matches(given.split("=")[0], options, 1)
        return f"hint: did you mean {near[0]}?\n" if near else f"hint: {self.prog} --help lists the options\n"


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of one command; only that command's module is imported."""
    from .. import __version__

    top = Parser(prog="pyllm", description="Run language models on this machine.", formatter_class=argparse.RawDescriptionHelpFormatter,
                 usage="pyllm COMMAND [OPTIONS]",
                 epilog="commands:\n" + "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()))
    top.add_argument("--version", action="version", version=f"pyllm {__version__}")
    if not argv or argv[0].startswith("-"):
        top.parse_args(argv)
        top.print_help(sys.stderr)
        sys.exit(2)
    name = argv[0]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "pyllm --help lists them"
        top.exit(2, f"error: there is no command {name!r}\nhint: {hint}\n")
    module = importlib.import_module(f".{COMMANDS[name][0]}", __name__)
    parser = Parser(prog=f"pyllm {name}", description=COMMANDS[name][1].capitalize() + ".", allow_abbrev=False)
    module.add(parser)
    parser.set_defaults(command=module.run)
    return parser.parse_intermixed_args(argv[1:])    # options may stand between words


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:                         # the reader went away; nothing to say, and nothing more to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:
        from ..errors import Error

        if not isinstance(e, Error):
            raise
        print(f"error: {e}", file=sys.stderr)       # the message carries its own "hint: ..." line
        return 1
