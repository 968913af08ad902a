"""pyllm bench: prefill (pp) and decode (tg) speed, in tokens a second.

Decoding reads all weights once for every token, so its share of the memory bandwidth, measured here with the same threads, says how
close it is to what the machine allows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._options import add_backend, add_json, add_kv, add_model, add_pack_cache, add_threads, model_file, whole, whole_list
from ._output import clean, note, print_json, print_table, size, styled, table_line

if TYPE_CHECKING:
    from ..cost import Limits
    from ..llm import LLM

HEAD = ("TEST", "TOKENS/S", "BANDWIDTH")
WIDTHS = (16, 18, 9)


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    numbers = whole_list(0, 1 << 24)
    parser.add_argument("-p", "--prompt", type=numbers, default=[512], metavar="N,...", help="prompt lengths; 0: none (default: 512)")
    parser.add_argument("-n", "--new", type=numbers, default=[128], metavar="N,...", help="numbers of new tokens; 0: none (default: 128)")
    parser.add_argument("-d", "--depth", type=numbers, default=[0], metavar="N,...", help="tokens in the cache before each (default: 0)")
    parser.add_argument("-r", "--reps", type=whole(1, 10_000), default=5, metavar="N", help="repetitions (default: 5)")
    parser.add_argument("--profile", action="store_true", help="also the time of every kind of step, measured and as the limits allow")
    add_threads(parser)
    add_kv(parser)
    add_backend(parser)
    add_pack_cache(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import LLM
    from ..cost import Limits
    from ..limits import dot_peak, read_bandwidth

    tests = [(f"{kind}{n}", depth) for depth in args.depth for kind, ns in (("pp", args.prompt), ("tg", args.new)) for n in ns if n]
    if not tests:
        from ..errors import ArgumentError
        raise ArgumentError("there is nothing to measure\nhint: -p 512, -n 128")
    path = model_file(args.model)
    ctx = max(args.depth) + max(*args.prompt, *args.new)
    with LLM(path, ctx=ctx, threads=args.threads, kv=args.kv, pack_cache=args.pack_cache, backend=args.backend) as llm:
        bandwidth = read_bandwidth(llm.threads)
        peak = dot_peak(llm.threads, llm.level) if args.profile else 0.0
        if not args.json:
            _print_head(llm, bandwidth)
        rows = []
        for row in _rows(llm, tests, args.reps, bandwidth):
            rows.append(row)
            if args.profile:
                row["profile"] = _profile(llm, row, args.reps, Limits(bandwidth, peak))
            if not args.json:
                _print_row(row)
    if args.json:
        print_json(rows)
    return 0


def _rows(llm: LLM, tests: list[tuple[str, int]], reps: int, bandwidth: float) -> Iterator[dict[str, Any]]:
    from ..build import tape_text
    from ..cost import bytes_per_token
    from ..gguf import GGUF

    with GGUF(llm.path) as gguf:
        weights = bytes_per_token(gguf, tape_text(gguf, llm.ctx))
    for test, depth in tests:
        if sys.stderr.isatty():
            sys.stderr.write(f"{_label(test, depth)} ...\r")
            sys.stderr.flush()
        llm.bench(test if test.startswith("pp") else f"tg{min(int(test[2:]), 4)}", depth=0, reps=1)      # warm caches, clocks, threads
        speeds = llm.bench(test, depth=depth, reps=reps)
        mean = statistics.fmean(speeds)
        yield {"test": test, "depth": depth, "tokens_per_s": mean, "stddev": statistics.stdev(speeds) if reps > 1 else 0.0, "reps": reps,
               "threads": llm.threads, "isa": llm.level, "kv": llm.kv, "model": llm.path, "bytes_per_token": weights,
               "read_bytes_per_s": bandwidth, "bandwidth_share": mean * weights / bandwidth if test.startswith("tg") else None}


def _profile(llm: LLM, row: dict[str, Any], reps: int, limits: Limits) -> list[dict[str, Any]]:
    """Per kind of step (the same step of all layers), most time first."""
    kinds: dict[str, dict[str, Any]] = {}
    for cost, seconds in llm.profile(row["test"], row["depth"], reps):
        one = {"steps": 1, "bytes": cost.bytes, "macs": cost.macs, "seconds": seconds, "least_s": cost.seconds(limits)}
        kind = kinds.setdefault(cost.name.rstrip("0123456789"), {"op": cost.op, **dict.fromkeys(one, 0)})
        for key, value in one.items():
            kind[key] += value
    return sorted(({"step": name, **kind} for name, kind in kinds.items()), key=lambda kind: -float(kind["seconds"]))


def _label(test: str, depth: int) -> str:
    return f"{test} @ d{depth}" if depth else test


def _print_head(llm: LLM, bandwidth: float) -> None:
    info = llm.info
    name = info["name"] if isinstance(info["name"], str) else ""
    note(f"{clean(name or info['path'])}, {size(info['file_bytes'])}\n"
         f"{llm.level}, {llm.threads} thread{'s' if llm.threads > 1 else ''}, {llm.kv} KV cache, memory reads {size(bandwidth)}/s")
    print(styled(table_line(HEAD, WIDTHS, right=(1, 2)), "bold"), flush=True)


def _print_row(row: dict[str, Any]) -> None:
    share = row["bandwidth_share"]
    speed = f"{row['tokens_per_s']:.2f} +- {row['stddev']:.2f}"
    print(table_line((_label(row["test"], row["depth"]), speed, "" if share is None else f"{share:.0%}"), WIDTHS, right=(1, 2)), flush=True)
    if "profile" in row:
        _print_profile(row["profile"])


def _print_profile(kinds: list[dict[str, Any]]) -> None:
    """Of a whole run: milliseconds, and the least that the limits allow."""
    keys = ("steps", "seconds", "least_s")
    everything = {"step": "all", "op": "", **{key: sum(k[key] for k in kinds) for key in keys}}
    rows = [(f"  {clean(k['step'])}", k["op"], str(k["steps"]), f"{k['seconds'] * 1e3:.2f}", f"{k['seconds'] / everything['seconds']:.0%}",
             f"{k['least_s'] * 1e3:.2f}", f"{k['least_s'] / k['seconds']:.0%}" if k["seconds"] else "") for k in [*kinds, everything]]
    print_table(("  STEP", "OP", "STEPS", "MS", "OF ALL", "LEAST MS", "REACHED"), rows, right=(2, 3, 4, 5, 6))
