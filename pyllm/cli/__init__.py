"""The pyllm command: `pyllm COMMAND --help`. Answers go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed (the reason and the next step are on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from difflib import get_close_matches
from typing import NoReturn

from ._output import clean, note, show_warnings

# name -> (module of this package, one line of help). A module has add(parser) and run(args) -> exit code.
COMMANDS = {
    "run": ("run", "answer a prompt, or chat"),
    "serve": ("serve", "serve models over HTTP"),
    "batch": ("batch", "answer a file of requests"),
    "pull": ("pull", "fetch a model into the cache"),
    "list": ("list", "models on this machine"),
    "models": ("models", "families of models that run"),
    "show": ("show", "what a model is"),
    "rm": ("rm", "remove a fetched model"),
    "convert": ("convert", "a Hugging Face checkpoint becomes a GGUF file"),
    "embed": ("embed", "texts as vectors"),
    "tokenize": ("tokenize", "token ids and pieces of a text"),
    "quantize": ("quantize", "a smaller copy of a model"),
    "bench": ("bench", "measure prefill and decode speed"),
    "ppl": ("ppl", "perplexity of a model on a text file"),
    "compare": ("compare", "KL divergence of models from a reference, on a text file"),
    "imatrix": ("imatrix", "importance matrix of a model, measured on a text file"),
    "inspect": ("inspect", "metadata, tensors and tape of a GGUF file"),
    "doctor": ("doctor", "check this installation and machine"),
}
_WORD = "\0"        # marks what stands behind --, which parse_intermixed_args would take for options; no program is given a NUL


class Parser(argparse.ArgumentParser):
    """argparse that suggests what was meant."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        message = message.replace(_WORD, "")
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
    parser.register("type", None, lambda word: word.removeprefix(_WORD))
    end = argv.index("--") if "--" in argv else len(argv)
    # options may stand between words
    return parser.parse_intermixed_args([*argv[1:end], *(_WORD + word for word in argv[end + 1:])])


def main(argv: list[str] | None = None) -> int:
    _prepare_streams()
    try:
        try:
            args = parse(sys.argv[1:] if argv is None else argv)
            if getattr(args, "pack_cache", False) or getattr(args, "disk_cache", False):
                show_warnings()
            code: int = args.command(args)
            return code
        finally:
            sys.stdout.flush()                      # here, where its failure can be explained
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:                         # the reader went away; nothing to say
        _drop_output()
        return 1
    except Exception as e:
        from ..errors import Error

        if isinstance(e, Error):
            _explain(str(e))
        elif isinstance(e, OSError) and e.filename is None:     # of a standard stream: whatever else fails names its file
            _drop_output()
            _explain(f"standard input or output failed: {e.strerror or e}\nhint: look where they lead; a disk may be full")
        else:
            raise
        return 1


def _prepare_streams() -> None:
    """Standard streams that are closed lead nowhere; a character that an output lacks shows as ?."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))    # noqa: SIM115  # as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What is not written yet goes nowhere: at exit it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: str) -> None:
    """The message of an error and its hint on stderr, a line each. What model files, templates and servers wrote into it can make no
    lines of its own: the hint is what follows the last "hint: "."""
    message, is_there, hint = error.rpartition("\nhint: ")
    note(f"error: {clean(message if is_there else hint)}")
    if is_there:
        note(f"hint: {clean(hint)}")
