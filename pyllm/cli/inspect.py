"""pyllm inspect: what is in a GGUF file, also in one that this build cannot run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._options import MODEL_HELP, add_json, model_file
from ._output import clean, print_json, print_table, size, styled

if TYPE_CHECKING:
    from ..gguf import GGUF

SHOWN_ITEMS, SHOWN_CHARS = 6, 100


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=MODEL_HELP)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--metadata", action="store_true", help="only the metadata")
    what.add_argument("--tensors", action="store_true", help="only the tensors")
    what.add_argument("--tape", action="store_true", help="the steps that the engine runs, as text (docs/tape.md)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..gguf import GGUF

    with GGUF(model_file(args.file)) as gguf:
        if args.tape:
            _tape(gguf, args.json)
            return 0
        wanted: dict[str, Any] = {}
        if not args.tensors:
            wanted["metadata"] = {key: _value(gguf, key) for key in gguf.kv}
        if not args.metadata:
            wanted["tensors"] = [{"name": name, "type": t.type, "shape": list(t.shape), "bytes": t.n_bytes}
                                 for name, t in gguf.tensors.items()]
    if args.json:
        print_json({"path": gguf.path, **wanted})
        return 0
    if "metadata" in wanted:
        _print_metadata(wanted["metadata"])
    if len(wanted) == 2:
        print()
    if "tensors" in wanted:
        _print_tensors(wanted["tensors"])
    return 0


def _tape(gguf: GGUF, as_json: bool) -> None:
    from ..build import tape_text

    text = tape_text(gguf)
    if as_json:
        print_json({"path": gguf.path, "tape": text})
    else:
        print(text, end="")


def _value(gguf: GGUF, key: str) -> Any:
    """Plain Python, whole arrays included."""
    value = gguf.kv[key]
    return value.tolist() if hasattr(value, "tolist") else value


def _print_metadata(metadata: dict[str, Any]) -> None:
    print(styled(f"METADATA  {len(metadata)} keys", "bold"))
    width = min(max(map(len, metadata), default=0), 48)
    for key, value in metadata.items():
        print(f"{clean(key):<{width}}  {_short(value)}")


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(_short(v) for v in value[:SHOWN_ITEMS])
        return f"[{shown}, ...] ({len(value)} items)" if len(value) > SHOWN_ITEMS else f"[{shown}]"
    if isinstance(value, str):
        text = clean(value[:SHOWN_CHARS])
        return f'"{text}" ... ({len(value)} characters)' if len(value) > SHOWN_CHARS else f'"{text}"'
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    print(styled(f"TENSORS  {len(tensors)}, {size(sum(t['bytes'] for t in tensors))}", "bold"))
    if tensors:
        print_table(("NAME", "TYPE", "SHAPE", "BYTES"),
                    [(clean(t["name"]), t["type"], " x ".join(map(str, t["shape"])), str(t["bytes"])) for t in tensors], right=(3,))
