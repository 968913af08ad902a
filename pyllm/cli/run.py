"""pyllm run: one answer to a prompt, or a conversation in the terminal."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .. import errors
from ._options import add_backend, add_disk_cache, add_kv, add_pack_cache, add_speculation, add_threads, whole
from ._output import has_colour, note, progress, styled
from .screen import safe

if TYPE_CHECKING:
    from ..llm import LLM
    from ..replies import Reply

N = TypeVar("N", int, float)

EPILOG = """\
The first word is the model if it is the path of a GGUF file, a name that
pyllm list shows, or user/repo of the hub. Otherwise all words are the prompt, for
the demo model smollm2, which is fetched by itself the first time. --model
names it beyond doubt.

Piped text is the prompt, or follows the prompt's words after an empty line:
  git diff | pyllm run "Write a commit message for this."
If the pipe says nothing for 10 seconds, the words alone are the prompt; the
word - makes it wait as long as it takes.

Without a prompt, on a terminal, it is a conversation; /help lists commands.
"""
PATIENCE = 10.0     # seconds that a silent pipe is waited for when there is a prompt without it
# options of the sampler: option -> (name in the API, metavar, type, smallest, largest, help)
SAMPLING: dict[str, tuple[str, str, type, float, float, str]] = {
    "temp": ("temperature", "T", float, 0, 100, "temperature; 0 always takes the likeliest token (default 0.8)"),
    "top-k": ("top_k", "K", int, 0, 1 << 30, "choose among the K likeliest tokens; 0: all (default 40)"),
    "top-p": ("top_p", "P", float, 0, 1, "choose among the likeliest tokens that have probability P together (default 0.95)"),
    "min-p": ("min_p", "P", float, 0, 1, "leave out tokens less than P times as likely as the likeliest (default 0.05)"),
    "repeat-penalty": ("repeat_penalty", "R", float, 0.01, 100, "above 1: tokens of the last 64 become less likely (default 1)"),
    "seed": ("seed", "S", int, -(1 << 63), (1 << 64) - 1, "the same seed gives the same answer (default: a new one each time)"),
    "max-tokens": ("max_tokens", "N", int, 1, 1 << 30, "longest answer (default: to the end of the context)"),
}


def number(kind: Callable[[str], N], low: float, high: float) -> Callable[[str], N]:
    """A converter of argparse that checks the range."""
    def convert(text: str) -> N:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} to {high}")
        return value
    convert.__name__ = "number"         # argparse: "invalid number value"
    return convert


def add(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.usage = "pyllm run [OPTIONS] [MODEL] [PROMPT ...]"
    parser.add_argument("words", nargs="*", metavar="[MODEL] PROMPT", help="see below")
    parser.add_argument("-m", "--model", metavar="MODEL", help="the model; all words are the prompt")
    for option, (name, metavar, kind, low, high, text) in SAMPLING.items():
        flags = ["-n", "--max-tokens"] if option == "max-tokens" else [f"--{option}"]
        parser.add_argument(*flags, dest=name, type=number(kind, low, high), metavar=metavar, help=text)
    parser.add_argument("--ctx", type=whole(1, 1 << 24), metavar="N",
                        help="tokens of the whole conversation (default: what the model knows and half of the free memory holds)")
    add_threads(parser)
    add_kv(parser)
    add_backend(parser)
    parser.add_argument("--lora", metavar="FILE[:SCALE]", type=adapter, action="append", default=[],
                        help="a LoRA adapter (GGUF) beside the model; again for more")
    add_pack_cache(parser)
    add_disk_cache(parser)
    add_speculation(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message: how the model shall behave")
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja template instead of the model's own")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--schema", metavar="FILE", help="the answer is JSON that follows the JSON schema in FILE")
    form.add_argument("--grammar", metavar="FILE", help="the answer follows the grammar (Lark or GBNF) in FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")


def adapter(text: str) -> tuple[str, float]:
    """argparse type: FILE or FILE:SCALE."""
    path, is_there, scale = text.rpartition(":")
    try:
        return (os.path.expanduser(path), float(scale)) if is_there and path else (os.path.expanduser(text), 1.0)
    except ValueError:              # the colon is part of the name
        return os.path.expanduser(text), 1.0


def run(args: argparse.Namespace) -> int:
    spec, words = split_words(args.words, args.model)
    prompt = read_prompt(words)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if prompt is None and (args.json or not terminal):
        note("error: there is no prompt\nhint: pyllm run \"Why is the sky blue?\", or pipe a text into it")
        return 2
    options = {name: getattr(args, name) for name, *_ in SAMPLING.values() if getattr(args, name) is not None} | form(args)
    with load(spec, args) as llm:
        if prompt is None:
            from .chat import Chat

            return Chat(llm, options, args.system).run()
        messages = [{"role": "system", "content": args.system}] if args.system else []
        return answer(llm, [*messages, {"role": "user", "content": prompt}], options, args.json)


def form(args: argparse.Namespace) -> dict[str, Any]:
    """The options that --schema and --grammar stand for."""
    if args.grammar is not None:
        return {"grammar": read_file(args.grammar)}
    if args.schema is None:
        return {}
    try:
        return {"schema": json.loads(read_file(args.schema))}
    except (ValueError, RecursionError) as e:
        raise errors.ArgumentError(f"{args.schema} is no JSON: {e}") from None


def read_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise errors.FileError(f"{path}: {getattr(e, 'strerror', None) or e}") from e


# ---- which words are what ----

# user/repo[:QUANT], but not and/or
_HUB = re.compile(r"(?=[\w.-]*[A-Za-z])[A-Za-z0-9][\w.-]*/(?=[\w.:-]*[\d.:_-])[A-Za-z0-9][\w.-]*(:[\w.-]+)?")


def split_words(words: Sequence[str], model: str | None) -> tuple[str | None, list[str]]:
    """(model spec or None for the demo model, words of the prompt)."""
    # what is not UTF-8 on the command line
    words = [w.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for w in words]
    if model is not None or not words:
        return model, words
    return (words[0], words[1:]) if names_model(words[0], alone=len(words) == 1) else (None, words)


def names_model(word: str, alone: bool) -> bool:
    """Whether the first word is meant as a model, also one that does not exist. alone: nothing follows."""
    from .. import stores
    from ..catalogue import CATALOGUE

    try:
        file = Path(word).is_file()
    except (OSError, ValueError):       # too long for a path, or with a NUL
        return False
    if file and (alone or is_gguf(word)):
        return True
    if word.lower().endswith(".gguf"):
        return True
    if re.search(r"\s", word):
        return False
    if re.match(r"(/|~/|\.\.?/|ollama:)", word) or _HUB.fullmatch(word):
        return True
    return bool(get_close_matches(word.lower(), CATALOGUE, 1, 0.8)) or stores.find(word) is not None


def is_gguf(path: str) -> bool:
    try:
        with open(path, "rb") as f:
            return f.read(4) == b"GGUF"
    except OSError:
        return False


def read_prompt(words: list[str]) -> str | None:
    """The words and what is piped in; None if there is neither."""
    wait = "-" in words
    text = " ".join(w for w in words if w != "-") if wait else " ".join(words)
    parts = [text, piped(bool(text) and not wait)]
    return "\n\n".join(p for p in parts if p.strip()) or None


def piped(optional: bool) -> str:
    """The text on standard input if that is no terminal, without line breaks at its end; bytes that are no UTF-8 become U+FFFD."""
    if sys.stdin.isatty():
        return ""
    if optional and os.name == "posix" and not arrives(1.0):
        note("waiting for standard input; < /dev/null says that there is none")
        if not arrives(PATIENCE - 1):
            note("standard input says nothing: going on without it")
            return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")


def arrives(seconds: float) -> bool:
    """Whether standard input has something to read, or has ended, within that time."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


# ---- one answer ----

def load(spec: str | None, args: argparse.Namespace) -> LLM:
    """The model, with a bar while it is fetched and a passing note while it loads."""
    from ..llm import LLM

    template = None if args.chat_template is None else read_file(args.chat_template)
    name = os.path.basename(spec) if spec else "smollm2"
    passing = has_colour(sys.stderr)
    if passing:
        sys.stderr.write(styled(f"loading {name} ...", "dim", sys.stderr))
        sys.stderr.flush()
    try:
        with progress(name) as show:
            return LLM(spec and os.path.expanduser(spec), args.ctx, args.threads, args.kv, chat_template=template, adapters=args.lora,
                       pack_cache=args.pack_cache, disk_cache=args.disk_cache, backend=args.backend,
                       draft=args.draft and os.path.expanduser(args.draft), speculate=args.speculate, progress=show)
    finally:
        if passing:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def answer(llm: LLM, messages: list[dict[str, str]], options: dict[str, Any], as_json: bool) -> int:
    options = {"seed": secrets.randbits(32), **options}
    if as_json:
        print(json.dumps(report(llm, llm.chat(messages, **options), options["seed"])))
        return 0
    terminal = sys.stdout.isatty()
    stream = llm.stream(messages, **options)
    try:
        for chunk in stream:
            sys.stdout.write(safe(chunk.text) if terminal else chunk.text)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")          # also when it is interrupted: the shell's prompt gets its own line
    if has_colour(sys.stderr):
        note(styled(summary(stream.reply, options["seed"]), "dim", sys.stderr))
    return 0


def report(llm: LLM, reply: Reply, seed: int) -> dict[str, Any]:
    """What --json prints."""
    return {"text": reply.text, "reasoning": reply.reasoning, "tokens": len(reply.tokens), "finish_reason": reply.finish_reason,
            "usage": {**asdict(reply.usage), "total_tokens": reply.usage.total_tokens}, "timings": asdict(reply.timings),
            "model": llm.path, "seed": seed}


def summary(reply: Reply, seed: int) -> str:
    """A line about an answer, for people."""
    parts = [f"{len(reply.tokens)} tokens", f"{reply.timings.predicted_per_s:.0f} tokens/s", f"seed {seed}"]
    if reply.usage.drafted_tokens:
        parts.append(f"{reply.usage.accepted_tokens} of {reply.usage.drafted_tokens} guesses right")
    if reply.finish_reason == "length":
        parts.append("cut off (-n, --ctx)")
    return " · ".join(parts)
