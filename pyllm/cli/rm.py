"""pyllm rm: removes a model that pyllm fetched; other programs' models are theirs. Or what pyllm keeps of any model: packed
weights and conversations."""

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
    parser.add_argument("--packed", action="store_true", help="only the packed weights that --pack-cache has kept; of any model")
    parser.add_argument("--conversations", action="store_true", help="only the conversations that --disk-cache has kept; of any model")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    from .. import disk_cache, errors, pack_cache, stores

    if args.packed or args.conversations:
        model = _packed_model(args.model)
        files = [e.path for e in pack_cache.of_model(model)] if args.packed else []
        files += [e.path for e in disk_cache.of_model(model)] if args.conversations else []
        kinds = ["packed weights"] * args.packed + ["conversations"] * args.conversations
        what = f"the {' and '.join(kinds)} of {model}"
        if not files:
            raise errors.ModelNotFound(f"there are no {' or '.join(kinds)} of {args.model}\nhint: `pyllm list` shows what there is")
    else:
        found = _find(args.model)
        if found.where != stores.OWN:
            raise errors.ArgumentError(f"{args.model} is not in pyllm's cache but {found.path} ({found.where})\n"
                                       f"hint: {HINTS[found.where]}; --packed and --conversations remove what pyllm keeps of it")
        own = [p for p in stores.part_paths(found.path) if p.exists() or p.is_symlink()]
        if not own:
            raise errors.ModelNotFound(f"{found.path} is gone\nhint: `pyllm list` shows what is here")
        packed, kept = (cache.of_model(found.path) for cache in (pack_cache, disk_cache))
        files = [*own, *(e.path for e in packed), *(e.path for e in kept)]
        beside = ["packed weights"] * bool(packed) + ["conversations"] * bool(kept)
        what = f"{found.path} with its {' and '.join(beside)}" if beside else str(found.path)
    return _remove(files, what, args)


def _remove(files: list[Path], what: str, args: argparse.Namespace) -> int:
    from .. import errors

    total = sum(p.lstat().st_size for p in files if p.exists() or p.is_symlink())      # a server may have replaced some meanwhile
    if not args.yes:
        if not sys.stdin.isatty():
            raise errors.ArgumentError(f"nobody can be asked whether {what} may go\n"
                                       f"hint: pyllm rm -y {'--packed ' if args.packed else ''}"
                                       f"{'--conversations ' if args.conversations else ''}{args.model}")
        if not confirm(f"Remove {what} ({size(total)})?"):
            note("nothing was removed")
            return 1
    try:
        for path in files:
            path.unlink(missing_ok=True)
    except OSError as e:
        raise errors.FileError(f"{path} cannot be removed: {e.strerror}") from e
    note(f"removed {what} ({size(total)})")
    return 0


def _packed_model(name: str) -> Path:
    """The file of a name or path; it need not be there any more."""
    from .. import catalogue, stores

    if name in catalogue.CATALOGUE:
        return catalogue.CATALOGUE[name].path
    found = None if Path(name).exists() else stores.find(name)
    return found.path if found else Path(name)


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
