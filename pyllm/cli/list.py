"""pyllm list: the models on this machine, wherever their programs keep them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._options import add_json
from ._output import clean, count, note, print_json, print_table, size

if TYPE_CHECKING:
    from ..stores import Found


def add(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import catalogue, stores

    entries = {entry.path: name for name, entry in catalogue.CATALOGUE.items()}
    rows = [_row(entries.get(found.path, found.name), found) for found in stores.everything()]
    if args.json:
        print_json(rows)
        return 0
    good = [row for row in rows if row["error"] is None]
    if good:
        print_table(("NAME", "SIZE", "QUANT", "ARCH", "PARAMS", "WHERE"),
                    [(clean(r["name"]), size(r["bytes"]), r["quantization"] or "-", clean(r["architecture"]) or "-", count(r["n_params"]),
                      r["where"]) for r in good], right=(1, 4))
    for row in rows:
        if row["error"] is not None:
            note(f"cannot be read: {clean(row['name'])} ({row['where']}): {clean(row['error'].splitlines()[0])}")
    if not rows:
        note("there are no models on this machine yet\nhint: `pyllm pull` fetches the demo model")
    return 0


def _row(name: str, found: Found) -> dict[str, Any]:
    from ..describe import describe
    from ..errors import Error

    row: dict[str, Any] = {"name": name, "path": str(found.path), "where": found.where, "bytes": None, "quantization": None,
                           "architecture": None, "n_params": None, "error": None}
    try:
        d = describe(found.path)
    except (Error, OSError) as e:       # one bad file does not hide the others
        return row | {"error": str(e)}
    return row | {"bytes": d.bytes, "quantization": d.quantization, "architecture": d.architecture, "n_params": d.n_params}
