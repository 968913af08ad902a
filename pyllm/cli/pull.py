"""pyllm pull: fetches a model, or makes sure that the one in the cache is whole."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._output import note, progress


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?",
                        help="smollm2 (the demo model, default) or user/repo[:QUANT] of the Hugging Face hub; QUANT is Q4_K_M unless given")


def run(args: argparse.Namespace) -> int:
    from .. import catalogue, errors, hub, stores

    name = args.model or catalogue.DEMO
    if name in catalogue.CATALOGUE:
        print(_entry(name))
    elif (spec := catalogue.hub_spec(name)) is not None:
        with progress(name) as show:
            print(hub.fetch(spec, show))
    elif found := stores.find(name):
        raise errors.ArgumentError(f"{name} is already on this machine, and not one that pyllm fetches: {found.path}")
    else:
        raise catalogue.not_found(name)
    return 0


def _entry(name: str) -> Path:
    from .. import catalogue

    entry = catalogue.CATALOGUE[name]
    state = catalogue.state(entry)
    if state == "good":
        note(f"{name} is already here, and its SHA-256 is right")
        return entry.path
    if state == "damaged":
        note(f"{entry.path} is damaged (its SHA-256 is wrong): fetching it again")
    with progress(name) as show:
        return catalogue.fetch(entry, show)
