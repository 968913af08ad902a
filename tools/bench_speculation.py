#!/usr/bin/env python3
"""What speculation is worth: the same requests with and without it, in turns, in one process.

    python tools/bench_speculation.py [--model FILE] [--draft FILE | --no-draft] [--task code ...] [--speculate HOW] [--rounds 5]
                                      [--tokens 128] [--threads N] [--json FILE] [--busy]

Tasks: `code`, questions about code, greedy, with the draft model; `code-sampled`, the same at temperature 1 without any filter; `edit`, a
file that is to be given back with a change, by lookup; `prose`, `prose-sampled`, essays and letters, by lookup, where there is little to
find. A round asks every question of a task without and with guesses, the first of the two alternating; every pair must have the same
tokens. A figure is the median of the pairs' ratios of decoding time (plain / guessed, above 1 = faster), with the quartiles.

Beside it stands what the machine's times predict: before and after the rounds the tool measures a step of m rows of the model, T(m), and
of the draft model, D(m), and counts the steps that a guessed reply took. Their sum against T(1) for every token is the prediction; what is
left over is the cost of everything else. Rounds wait for an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_peers import environment, wait_until_idle

import pyllm
from pyllm._core import lib
from pyllm.catalogue import cache_dir
from pyllm.engine import MAX_DRAFTS, MAX_ROWS, Engine

CODE = ["Write a Python function that parses a line of CSV with quotes, with a docstring and tests.",
        "Write a C function that reverses a linked list, and a main that shows it.",
        "Write a Python class for an LRU cache with get and put, using a dictionary and a doubly linked list.",
        "Write a JavaScript function that debounces another function, and explain it in comments."]
PROSE = ["Write an essay about the history of lighthouses.", "Describe a walk through a forest in autumn.",
         "Write a letter to a friend about moving to another city.", "Explain why bread rises, as to a curious child."]
FILE = '''\
import csv
import sys
from dataclasses import dataclass


@dataclass
class Reading:
    station: str
    day: str
    celsius: float


def read(path):
    readings = []
    with open(path, newline="") as f:
        for row in csv.DictReader(f):
            readings.append(Reading(row["station"], row["day"], float(row["celsius"])))
    return readings


def mean(readings):
    return sum(r.celsius for r in readings) / len(readings)


def by_station(readings):
    groups = {}
    for r in readings:
        groups.setdefault(r.station, []).append(r)
    return groups


def report(path):
    for station, group in sorted(by_station(read(path)).items()):
        print(station, len(group), round(mean(group), 1))


if __name__ == "__main__":
    report(sys.argv[1])
'''
EDITS = ["Rename the function `mean` to `average`.", "Add a field `humidity: float` to Reading and read it too.",
         "Let report also print the highest temperature of each station."]
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
SIZES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)


@dataclass
class Task:
    """questions: prompts; speculate: what is compared with plain decoding; draft: it needs the draft model."""

    questions: list[str]
    speculate: str
    draft: bool = False
    options: dict[str, Any] = field(default_factory=lambda: {"temperature": 0})


TASKS = {
    "code": Task(CODE, "auto", True),
    "code-sampled": Task(CODE, "auto", True, PLAIN),
    "edit": Task([f"{edit} Answer with the whole file and nothing else.\n\n```python\n{FILE}```" for edit in EDITS], "lookup"),
    "prose": Task(PROSE, "lookup"),
    "prose-sampled": Task(PROSE, "lookup", False, PLAIN),
}


class Steps:
    """Counts the rows of the steps that an engine runs."""

    def __init__(self, engine: Engine) -> None:
        self.rows: Counter[int] = Counter()
        run = engine.step

        def step(rows: Any) -> int:
            self.rows[sum(len(tokens) for _, tokens, _ in rows)] += 1
            return run(rows)

        engine.step = step      # type: ignore[method-assign]


def curve(engine: Engine, depth: int) -> dict[int, float]:
    """Seconds of a step of m rows behind `depth` tokens, with logits of all rows: the least of seven."""
    seq, taken = engine.open_seq(), {}
    if seq is None:
        raise SystemExit("all sequences are in use")
    try:
        tokens = [1 + i * 7919 % (engine.n_vocab - 2) for i in range(depth + max(SIZES))]
        for at in range(0, depth, MAX_ROWS):
            engine.step([(seq, tokens[at:min(at + MAX_ROWS, depth)], 0)])
        for m in SIZES:
            seconds = []
            for _ in range(7):
                begin = time.perf_counter()
                engine.step([(seq, tokens[depth:depth + m], m)])
                seconds.append(time.perf_counter() - begin)
                engine.truncate(seq, depth)
            taken[m] = min(seconds)
    finally:
        engine.close_seq(seq)
    return taken


def at(seconds: dict[int, float], rows: int) -> float:
    """A curve between its points; beyond the last one as steep as at its end."""
    if rows in seconds:
        return seconds[rows]
    low = max((m for m in seconds if m < rows), default=SIZES[0])
    high = min((m for m in seconds if m > rows), default=None)
    if high is None:
        low, high = SIZES[-2], SIZES[-1]
    return seconds[low] + (seconds[high] - seconds[low]) * (rows - low) / (high - low)


class Bench:
    def __init__(self, llm: pyllm.LLM, args: argparse.Namespace) -> None:
        self._llm, self._args = llm, args
        self._draft = llm._driver._draft
        self._steps = [Steps(engine) for engine in (llm._engine, self._draft) if engine is not None]

    def task(self, name: str) -> dict[str, Any]:
        task, args = TASKS[name], self._args
        how = args.speculate or task.speculate
        curves = [self._curves()]
        pairs, predicted = list[tuple[float, float]](), list[tuple[float, float]]()
        drafted = accepted = tokens = steps = 0
        for i in range(args.rounds + 1):                # the first warms up, and fills the prefix cache
            for q, question in enumerate(task.questions):
                replies = {}
                for speculate in ("off", how) if (i + q) % 2 else (how, "off"):
                    if not args.busy:
                        wait_until_idle()
                    before = [Counter(s.rows) for s in self._steps]
                    replies[speculate] = self._llm.chat(question, max_tokens=args.tokens, seed=1000 * i + q, speculate=speculate,
                                                        **task.options)
                    counts = [s.rows - b for s, b in zip(self._steps, before, strict=True)]
                    if speculate == how and i:
                        predicted.append((self._predicted(curves[0], counts), replies[how].timings.predicted_s))
                        steps += sum(counts[0].values())
                plain, guessed = replies["off"], replies[how]
                if plain.tokens != guessed.tokens:
                    raise SystemExit(f"{name}: another text with guesses: {question[:60]!r}, seed {1000 * i + q}")
                if i and len(plain.tokens) > 1:
                    pairs.append((plain.timings.predicted_s, guessed.timings.predicted_s))
                    drafted, accepted = drafted + guessed.usage.drafted_tokens, accepted + guessed.usage.accepted_tokens
                    tokens += len(guessed.tokens)
        curves.append(self._curves())
        low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        row = {"task": name, "speculate": how, "rounds": args.rounds, "ratio": middle, "ratio_q1": low, "ratio_q3": high,
               "total_ratio": sum(a for a, _ in pairs) / sum(b for _, b in pairs),
               "plain_tokens_per_s": (tokens - len(pairs)) / sum(a for a, _ in pairs), "drafted": drafted, "accepted": accepted,
               "tokens_per_step": tokens / max(steps, 1), "measured_over_predicted": statistics.median(b / a for a, b in predicted),
               "curves": curves}
        rate = f"{accepted / drafted:.0%} of {drafted} guesses right" if drafted else "no guesses"
        print(f"{name:<14} {how:<7} {middle:5.2f}x ({low:.2f} to {high:.2f}), {row['total_ratio']:.2f}x in all, {rate}, "
              f"{row['tokens_per_step']:.2f} tokens a step, {row['measured_over_predicted']:.2f} of the predicted time", flush=True)
        return row

    def _curves(self) -> list[dict[int, float]]:
        """T and, with a draft model, D."""
        def measure(engine: Engine) -> list[dict[int, float]]:
            return [curve(e, 256) for e in (engine, self._draft) if e is not None]

        if not self._args.busy:
            wait_until_idle()
        curves = self._llm.on_engine(measure)
        for name, seconds in zip("TD", curves, strict=False):
            points = "  ".join(f"{m}: {s / seconds[1]:.2f}" for m, s in seconds.items())
            print(f"  {name}(1) {seconds[1] * 1e3:.2f} ms, {name}(m)/{name}(1)  {points}", flush=True)
        return curves

    @staticmethod
    def _predicted(curves: list[dict[int, float]], counts: list[Counter[int]]) -> float:
        """Seconds of a reply's steps without the one that ends the prompt, as the curves have it."""
        total = sum(n * at(seconds, m) for seconds, rows in zip(curves, counts, strict=True) for m, n in rows.items())
        return total - at(curves[0], min(counts[0], default=1))

    def acceptance(self) -> dict[str, Any]:
        """How often the draft model's guesses are right, each of them checked alone: at temperature 0, 0.6, 0.8 and 1."""
        row: dict[str, Any] = {"task": "acceptance"}
        for temperature in (0.0, 0.6, 0.8, 1.0):
            usages = [self._llm.chat(q, max_tokens=self._args.tokens, seed=i, speculate=1, **{**PLAIN, "temperature": temperature}).usage
                      for i, q in enumerate(CODE + PROSE)]
            row[str(temperature)] = sum(u.accepted_tokens for u in usages) / max(sum(u.drafted_tokens for u in usages), 1)
        print("acceptance     " + ", ".join(f"{row[str(t)]:.3f} at temperature {t}" for t in (0.0, 0.6, 0.8, 1.0)), flush=True)
        return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=cache_dir() / "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf")
    draft = parser.add_mutually_exclusive_group()
    draft.add_argument("--draft", type=Path, default=cache_dir() / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    draft.add_argument("--no-draft", action="store_true", help="only tasks that need no draft model")
    parser.add_argument("--task", action="append", choices=(*TASKS, "acceptance"), help="default: all")
    parser.add_argument("--speculate", help=f"auto, lookup or a number up to {MAX_DRAFTS} in place of the task's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of a reply, at most (edit: 512)")
    parser.add_argument("--threads", type=int, default=lib.pyllm_threads_default())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--busy", action="store_true", help="do not wait for an idle machine: the figures mean nothing")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("there must be a round")
    if args.speculate and args.speculate.isdecimal():
        args.speculate = int(args.speculate)
    rows = []
    with pyllm.LLM(args.model, ctx=4096, threads=args.threads, draft=None if args.no_draft else args.draft, speculate="off") as llm:
        bench = Bench(llm, args)
        for name in args.task or (*TASKS, "acceptance"):
            if args.no_draft and (name == "acceptance" or TASKS[name].draft):
                continue
            tokens, args.tokens = args.tokens, 512 if name == "edit" and args.tokens == 128 else args.tokens
            rows.append(bench.acceptance() if name == "acceptance" else bench.task(name))
            args.tokens = tokens
    if args.json:
        facts = environment(argparse.Namespace(llama_bench=None, peer=""))
        del facts["peer"]
        args.json.write_text(json.dumps({**facts, "model": args.model.name, "draft": None if args.no_draft else args.draft.name,
                                         "threads": args.threads, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
