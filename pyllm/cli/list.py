"""pyllm list: the models on this machine, wherever their programs keep them, and the packed weights and conversations that pyllm
keeps of some."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._options import add_json
from ._output import clean, count, note, print_json, print_table, size

if TYPE_CHECKING:
    from .. import disk_cache
    from ..pack_cache import Entry
    from ..stores import Found


def add(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import catalogue, disk_cache, pack_cache, stores

    names = {entry.path: name for name, entry in catalogue.CATALOGUE.items()}
    found = [(names.get(f.path, f.name), f) for f in stores.everything()]
    packed, kept = pack_cache.entries(), disk_cache.entries()
    here = {Path(os.path.realpath(f.path)) for _, f in found}
    others = sorted(({e.model for e in packed} | {e.model for e in kept}) - here)       # given as paths, from anywhere
    found += [(str(path), stores.Found(str(path), path, "file")) for path in others]
    rows = [_row(name, f, packed, kept) for name, f in found]
    if args.json:
        print_json(rows)
        return 0
    good = [row for row in rows if row["error"] is None and row["where"] != "file"]
    if good:
        print_table(("NAME", "SIZE", "QUANT", "ARCH", "PARAMS", "WHERE"),
                    [(clean(r["name"]), size(r["bytes"]), r["quantization"] or "-", clean(r["architecture"]) or "-", count(r["n_params"]),
                      r["where"]) for r in good], right=(1, 4))
    shown = _print_kept(rows, "packed", "PACKED WEIGHTS OF", blank=bool(good))
    _print_kept(rows, "conversations", "CONVERSATIONS WITH", blank=bool(good) or shown)
    for row in rows:
        if row["error"] is not None:
            note(f"cannot be read: {clean(row['name'])} ({row['where']}): {clean(row['error'].splitlines()[0])}")
    if not rows:
        note("there are no models on this machine yet\nhint: `pyllm pull` fetches the demo model")
    return 0


def _print_kept(rows: Iterable[dict[str, Any]], kind: str, heading: str, blank: bool) -> bool:
    """What --pack-cache or --disk-cache has kept, once for each model, however many names it has; False if it is nothing."""
    kept = {os.path.realpath(row["path"]): row for row in rows if row[f"{kind}_bytes"] is not None}
    if kept:
        if blank:
            print()
        print_table((heading, "SIZE", "LAST USED"),
                    [(clean(row["name"]), size(row[f"{kind}_bytes"]), time.strftime("%Y-%m-%d %H:%M", time.localtime(row[f"{kind}_used"])))
                     for row in kept.values()], right=(1,))
    return bool(kept)


def _row(name: str, found: Found, packed: Iterable[Entry], kept: Iterable[disk_cache.Entry]) -> dict[str, Any]:
    from ..describe import describe
    from ..errors import Error

    real = Path(os.path.realpath(found.path))
    own, talks = [e for e in packed if e.model == real], [e for e in kept if e.model == real]
    row: dict[str, Any] = {"name": name, "path": str(found.path), "where": found.where, "bytes": None, "quantization": None,
                           "architecture": None, "n_params": None, "error": None,
                           "packed_bytes": sum(e.bytes for e in own) if own else None,
                           "packed_used": max(e.used for e in own) if own else None,
                           "conversations_bytes": sum(e.bytes for e in talks) if talks else None,
                           "conversations_used": max(e.used for e in talks) if talks else None}
    try:
        d = describe(found.path)
    except (Error, OSError) as e:       # one bad file does not hide the others
        return row | {"error": str(e)}
    return row | {"bytes": d.bytes, "quantization": d.quantization, "architecture": d.architecture, "n_params": d.n_params}
