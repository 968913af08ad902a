"""Arguments that several commands share, and how a command gets from its MODEL to a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ._output import progress

MODEL_HELP = ("a GGUF file, a name of `pyllm list`, user/repo[:QUANT] of the Hugging Face hub, [ollama:]name[:tag], "
              "or smollm2, the demo model")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=whole(1, 1024), metavar="N", help="worker threads (default: the physical cores)")


def add_parallel(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--parallel", type=whole(1, 512), metavar="N",
                        help=f"{what} (default: 16, or fewer where recurrent states would take much memory)")


def add_kv(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kv", choices=("f16", "f32", "q8_0", "q4_0"), default="f16", help="type of the KV cache (default: f16)")


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=("cpu", "metal", "auto"), default="cpu",
                        help="what runs the model: the CPU, an Apple GPU, or that if it can, else the CPU (default: cpu)")


def add_text(parser: argparse.ArgumentParser) -> None:
    """A text and how it is cut."""
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the text, UTF-8; - for standard input")
    parser.add_argument("--ctx", type=whole(4, 1 << 24), default=512, metavar="N", help="tokens of a chunk (default: 512)")
    parser.add_argument("--chunks", type=whole(1, 1 << 30), metavar="N", help="only the first N chunks (default: all)")


def read_text(file: str, option: str = "-f") -> bytes:
    """A text from a file; -: standard input."""
    from ..errors import FileError

    try:
        if file == "-":
            return sys.stdin.buffer.read()
        with open(file, "rb") as f:
            return f.read()
    except OSError as e:
        raise FileError(f"{file}: {e.strerror}\nhint: {option} takes the path of a text file") from e


def add_pack_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack-cache", action="store_true",
                        help="keep the packed weights on disk and map them the next time: more disk space for a faster start")


def add_speculation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draft", metavar="MODEL",
                        help="a smaller model of the same vocabulary that guesses what the model is going to say: the same text, sooner")
    parser.add_argument("--speculate", type=speculation, default="auto", metavar="HOW",
                        help="guess following tokens and check them together: auto, lookup (from the text itself), off, or a number "
                             "of tokens (default: auto)")


def speculation(text: str) -> str | int:
    """argparse type: what LLM takes as `speculate`."""
    from ..engine import MAX_DRAFTS

    if text in ("auto", "lookup", "off"):
        return text
    if text.isdecimal() and int(text) <= MAX_DRAFTS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of auto, lookup, off and 0 to {MAX_DRAFTS}")


def add_disk_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--disk-cache", action="store_true",
                        help="keep what was computed of conversations on disk, so that a later start goes on with them at once")


def whole(low: int, high: int) -> Callable[[str], int]:
    """argparse type: a whole number in [low, high]."""
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)
    return parse


def whole_list(low: int, high: int) -> Callable[[str], list[int]]:
    """argparse type: whole numbers with commas between them."""
    one = whole(low, high)
    return lambda text: [one(part) for part in text.split(",")]


def model_file(spec: str) -> Path:
    """The model's file; shows a progress bar while it is fetched."""
    from ..catalogue import resolve

    with progress(spec) as show:
        return resolve(spec, show)
