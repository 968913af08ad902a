"""pyllm doctor: what this installation and machine have, and whether they compute right. Exit status 1 if something is wrong."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ._options import add_json
from ._output import note, print_json, size, styled

REQUIRED = ("cffi", "numpy", "gguf", "sentencepiece", "minijinja")
EXTRAS = {"chat": (("rich", "prompt_toolkit"), "Markdown and line editing in chats"),
          "hub": (("huggingface_hub",), "models from the Hugging Face hub"),
          "server": (("starlette", "uvicorn"), "pyllm serve"),
          "plot": (("matplotlib",), "plots")}
MARKS = {True: ("ok", "green"), False: ("WRONG", "red"), None: ("-", "dim")}


class Check(NamedTuple):
    """ok None: a fact that cannot be wrong. hint: what to do if it is."""

    name: str
    ok: bool | None
    value: str
    hint: str = ""


def add(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    checks = []
    for check in _checks():
        checks.append(check)
        if not args.json:
            _print(check)
    wrong = sum(check.ok is False for check in checks)
    if args.json:
        print_json({"ok": not wrong, "checks": [check._asdict() for check in checks]})
    elif wrong:
        note(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong")
    return 1 if wrong else 0


def _print(check: Check) -> None:
    mark, style = MARKS[check.ok]
    print(f"{styled(f'{mark:<5}', style)}  {styled(f'{check.name:<16}', 'bold')}  {check.value}", flush=True)
    if check.hint:
        print(f"{'':<25}hint: {check.hint}")


def _checks() -> Iterator[Check]:
    from .. import __version__

    yield Check("pyllm", None, f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    packages = list(_packages())
    yield from packages
    if any(check.ok is False for check in packages):
        return                          # what follows needs them
    try:
        core = importlib.import_module("pyllm._core")
    except ImportError as e:
        message, _, hint = str(e).partition("\nhint: ")
        yield Check("library", False, message, hint)
        return
    yield Check("library", True, str(Path(core.__file__ or "").with_name(core._NAME)))
    yield from _machine()
    yield _cache()
    yield _self_test()


def _packages() -> Iterator[Check]:
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    yield Check("packages", not missing, f"{', '.join(missing)} missing" if missing else ", ".join(REQUIRED),
                f"{sys.executable} -m pip install {' '.join(missing)}" if missing else "")
    for extra, (names, purpose) in EXTRAS.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        yield Check(f"extra [{extra}]", None, f"{'not installed' if missing else 'installed'}: {purpose}",
                    f"pip install 'pyllm[{extra}]'" if missing else "")


def _machine() -> Iterator[Check]:
    from .. import memory, selftest
    from .._core import ffi, lib
    from ..errors import OutOfMemory
    from ..limits import read_bandwidth

    threads = lib.pyllm_threads_default()
    chosen = lib.pyllm_cpu_level()
    if chosen == ffi.NULL:
        yield Check("CPU level", False, "PYLLM_CPU names a level that this machine does not have",
                    f"unset it, or: {', '.join(selftest.levels())}")
    else:
        yield Check("CPU level", True, f"{ffi.string(chosen).decode()} (of {', '.join(selftest.levels())})")
    yield Check("threads", None, f"{threads} (physical cores that this process may use)")
    yield Check("memory", None, f"{size(memory.available())} available")
    try:
        yield Check("memory reads", None, f"{size(read_bandwidth(threads))}/s with {threads} thread{'s' if threads > 1 else ''}")
    except OutOfMemory as e:
        yield Check("memory reads", False, e.message, "end other programs")


def _cache() -> Check:
    from ..stores import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return Check("model cache", True, f"{folder}, {size(shutil.disk_usage(folder).free)} free")
    except OSError as e:
        return Check("model cache", False, f"{folder} cannot be written: {e.strerror}", "set PYLLM_HOME to a folder that can")


def _self_test() -> Check:
    from .. import selftest
    from .._core import lib
    from ..errors import Error

    try:
        faults = selftest.run(lib.pyllm_threads_default())
    except (Error, ImportError) as e:
        faults = [str(e).splitlines()[0]]
    if faults:
        return Check("self-test", False, "; ".join(faults), "run again; if it stays, the CPU, its memory or this build is faulty")
    return Check("self-test", True, f"a tiny model gives the right bits on {', '.join(selftest.levels())}")
