"""pyllm list: the models on this machine, wherever their programs keep them, and the packed weights that pyllm keeps of some."""

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
    from ..pack_cache import Entry
    from ..stores import Found


def add(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import catalogue, pack_cache, stores

    names = {entry.path: name for name, entry in catalogue.CATALOGUE.items()}
    found = [(names.get(f.path, f.name), f) for f in stores.everything()]
    packed = pack_cache.entries()
    here = {Path(os.path.realpath(f.path)) for _, f in found}
    others = sorted({e.model for e in packed} - here)       # given as paths, from anywhere
    found += [(str(path), stores.Found(str(path), path, "file")) for path in others]
    rows = [_row(name, f, packed) for name, f in found]
    if args.json:
        print_json(rows)
        return 0
    good = [row for row in rows if row["error"] is None and row["where"] != "file"]
    if good:
        print_table(("NAME", "SIZE", "QUANT", "ARCH", "PARAMS", "WHERE"),
                    [(clean(r["name"]), size(r["bytes"]), r["quantization"] or "-", clean(r["architecture"]) or "-", count(r["n_params"]),
                      r["where"]) for r in good], right=(1, 4))
    _print_packed(rows, blank=bool(good))
    for row in rows:
        if row["error"] is not None:
            note(f"cannot be read: {clean(row['name'])} ({row['where']}): {clean(row['error'].splitlines()[0])}")
    if not rows:
        note("there are no models on this machine yet\nhint: `pyllm pull` fetches the demo model")
    return 0


def _print_packed(rows: Iterable[dict[str, Any]], blank: bool) -> None:
    """What --pack-cache has kept, once for each model, however many names it has."""
    packed = {os.path.realpath(row["path"]): row for row in rows if row["packed_bytes"] is not None}
    if packed:
        if blank:
            print()
        print_table(("PACKED WEIGHTS OF", "SIZE", "LAST USED"),
                    [(clean(row["name"]), size(row["packed_bytes"]), time.strftime("%Y-%m-%d %H:%M", time.localtime(row["packed_used"])))
                     for row in packed.values()], right=(1,))


def _row(name: str, found: Found, packed: Iterable[Entry]) -> dict[str, Any]:
    from ..describe import describe
    from ..errors import Error

    own = [e for e in packed if e.model == Path(os.path.realpath(found.path))]
    row: dict[str, Any] = {"name": name, "path": str(found.path), "where": found.where, "bytes": None, "quantization": None,
                           "architecture": None, "n_params": None, "error": None,
                           "packed_bytes": sum(e.bytes for e in own) if own else None,
                           "packed_used": max(e.used for e in own) if own else None}
    try:
        d = describe(found.path)
    except (Error, OSError) as e:       # one bad file does not hide the others
        return row | {"error": str(e)}
    return row | {"bytes": d.bytes, "quantization": d.quantization, "architecture": d.architecture, "n_params": d.n_params}
