"""pyllm inspect: what is in a GGUF file, also in one that this build cannot run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._options import MODEL_HELP, add_json, model_file
from ._output import clean, note, print_json, print_table, size, styled

if TYPE_CHECKING:
    from ..gguf import GGUF

SHOWN_ITEMS, SHOWN_CHARS = 6, 100


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=MODEL_HELP)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--metadata", action="store_true", help="only the metadata")
    what.add_argument("--tensors", action="store_true", help="only the tensors")
    what.add_argument("--tape", action="store_true", help="the steps that the engine runs, as text (docs/tape.md)")
    what.add_argument("--save", metavar="TAPE",
                      help="write the tape with what chats have around messages, for hosts without Python (docs/tape.md)")
    parser.add_argument("--cost", action="store_true", help="with --tape: what every step reads and computes, and the least time for it")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..errors import ArgumentError
    from ..gguf import GGUF

    with GGUF(model_file(args.file)) as gguf:
        if args.cost and not args.tape:
            raise ArgumentError("--cost tells about the steps of a tape\nhint: inspect --tape --cost")
        if args.save:
            _save(gguf, args.save)
            return 0
        if args.tape:
            (_costs if args.cost else _tape)(gguf, args.json)
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


def _save(gguf: GGUF, path: str) -> None:
    from ..errors import FileError
    from ..saved_tape import saved_tape

    text = saved_tape(gguf)
    try:
        with open(path, "x", encoding="ascii", newline="\n") as f:
            f.write(text)
    except OSError as e:
        raise FileError(f"{path} cannot be written: {e.strerror}\nhint: give the name of a new file") from e
    reason = next((line[2:] for line in text.splitlines() if line.startswith("# no chat: ")), None)
    if reason:
        note(reason)


def _costs(gguf: GGUF, as_json: bool) -> None:
    """For one token, and for a batch of as many as the engine takes at once."""
    from ..build import tape_text
    from ..cost import Limits, costs
    from ..engine import MAX_ROWS
    from ..limits import dot_peak, read_bandwidth

    tape, limits = tape_text(gguf), Limits(read_bandwidth(), dot_peak())
    steps = list(zip(costs(gguf, tape), costs(gguf, tape, MAX_ROWS), strict=True))
    if as_json:
        listed = [{"step": one.name, "op": one.op, "bytes": one.bytes, "macs": one.macs, "seconds": one.seconds(limits),
                   "batch_bytes": many.bytes, "batch_macs": many.macs, "batch_seconds": many.seconds(limits)} for one, many in steps]
        print_json({"path": gguf.path, **limits.__dict__, "rows": MAX_ROWS, "steps": listed})
        return
    rows = [(clean(one.name), one.op, str(one.bytes), f"{one.macs / 1e6:.3f}", f"{one.seconds(limits) * 1e6:.1f}", f"{many.macs / 1e6:.1f}",
             f"{many.seconds(limits) * 1e6:.1f}") for one, many in steps]
    print_table(("STEP", "OP", "BYTES", "MMAC", "US", f"MMAC x {MAX_ROWS}", f"US x {MAX_ROWS}"), rows, right=(2, 3, 4, 5, 6))
    one_s, many_s = (sum(c.seconds(limits) for c in column) for column in zip(*steps, strict=True))
    note(f"memory reads {size(limits.bytes_per_s)}/s, {limits.macs_per_s / 1e9:.0f} G multiply-adds/s of 8 bits: "
         f"at most {1 / one_s:.0f} tokens/s one by one, {MAX_ROWS / many_s:.0f} of a prompt")


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
