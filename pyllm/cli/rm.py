"""pyllm rm: removes a model that pyllm fetched; other programs' models are theirs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._output import confirm, note, size

if TYPE_CHECKING:
    from ..stores import Found

HINTS = {"hub cache": "remove it with `hf cache`", "LM Studio": "remove it in LM Studio", "Ollama": "remove it with `ollama rm`"}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="a name of `pyllm list`")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    from .. import errors, stores

    found = _find(args.model)
    if found.where != stores.OWN:
        raise errors.ArgumentError(f"{args.model} is not in pyllm's cache but {found.path} ({found.where})\nhint: {HINTS[found.where]}")
    files = [p for p in stores.part_paths(found.path) if p.exists() or p.is_symlink()]
    if not files:
        raise errors.ModelNotFound(f"{found.path} is gone\nhint: `pyllm list` shows what is here")
    total = sum(p.lstat().st_size for p in files)
    if not args.yes:
        if not sys.stdin.isatty():
            raise errors.ArgumentError(f"nobody can be asked whether {found.path} may go\nhint: pyllm rm -y {args.model}")
        if not confirm(f"Remove {found.path} ({size(total)})?"):
            note("nothing was removed")
            return 1
    try:
        for path in files:
            path.unlink()
    except OSError as e:
        raise errors.FileError(f"{found.path} cannot be removed: {e.strerror}") from e
    note(f"removed {found.path} ({size(total)})")
    return 0


def _find(name: str) -> Found:
    """Only what is here already: rm must never fetch."""
    from .. import catalogue, errors, stores

    entry = catalogue.CATALOGUE.get(name)
    if entry is not None:
        if not entry.path.is_file():
            raise errors.ModelNotFound(f"{name} is not in the cache\nhint: `pyllm list` shows what is")
        return stores.Found(name, entry.path, stores.OWN)
    own = [m for m in stores.own_cache() if Path(name).absolute() == m.path.absolute()]
    if found := next(iter(own), None) or stores.find(name):
        return found
    if Path(name).is_file():
        raise errors.ArgumentError(f"{name} is not in pyllm's cache\nhint: remove the file yourself if you want it gone")
    raise catalogue.not_found(name)
