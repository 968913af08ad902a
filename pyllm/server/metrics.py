"""Counts of what the server did, in the text format of Prometheus. They hold numbers only, nothing of what anybody wrote."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..replies import Reply

if TYPE_CHECKING:
    from .work import Work

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_RATES = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10000.0)


class Histogram:
    def __init__(self, about: str, bounds: tuple[float, ...]) -> None:
        self.about, self._bounds = about, bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def add(self, model: str, value: float) -> None:
        counts = self._counts.setdefault(model, [0] * (len(self._bounds) + 1))
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[model] += value      # type: ignore[assignment]

    def lines(self, name: str) -> Iterable[str]:
        yield from (f"# HELP {name} {self.about}", f"# TYPE {name} histogram")
        for model, counts in self._counts.items():
            total = 0
            for bound, n in zip((*self._bounds, "+Inf"), counts, strict=True):
                total += n
                yield f"{name}_bucket{_labels(model=model, le=str(bound))} {total}"
            yield f"{name}_sum{_labels(model=model)} {self._sums[model]:.6f}"
            yield f"{name}_count{_labels(model=model)} {total}"


class Metrics:
    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._tokens: dict[str, Counter[str]] = {name: Counter() for name in ("prompt", "cached", "generated", "drafted", "accepted")}
        self._histograms = {
            "queue_seconds": Histogram("Wait for a place in the batch.", _SECONDS),
            "first_token_seconds": Histogram("From the arrival of a prompt to its first token.", _SECONDS),
            "generation_seconds": Histogram("From the arrival of a prompt to its last token.", _SECONDS),
            "tokens_per_second": Histogram("Speed of one generation after its first token.", _RATES),
        }

    def answered(self, route: str, status: int) -> None:
        self._requests[route, status] += 1

    def generated(self, model: str, reply: Reply) -> None:
        """A generation that brought a reply."""
        t, usage = reply.timings, reply.usage
        self._tokens["prompt"][model] += usage.prompt_tokens
        self._tokens["cached"][model] += usage.cached_tokens
        self._tokens["generated"][model] += usage.completion_tokens
        self._tokens["drafted"][model] += usage.drafted_tokens
        self._tokens["accepted"][model] += usage.accepted_tokens
        self._histograms["queue_seconds"].add(model, t.queue_s)
        if usage.completion_tokens:
            self._histograms["first_token_seconds"].add(model, t.queue_s + t.prompt_s)
            self._histograms["generation_seconds"].add(model, t.queue_s + t.prompt_s + t.predicted_s)
        if usage.completion_tokens > 1:
            self._histograms["tokens_per_second"].add(model, t.predicted_per_s)

    def ended(self, model: str, outcome: str) -> None:
        """outcome: the finish reason, or error."""
        self._outcomes[model, outcome] += 1

    def text(self, work: Work) -> str:
        lines = ["# HELP pyllm_requests_total Answers by route and status.", "# TYPE pyllm_requests_total counter"]
        lines += [f"pyllm_requests_total{_labels(route=route, status=str(status))} {n}" for (route, status), n in self._requests.items()]
        lines += ["# HELP pyllm_generations_total Generations that ended, by how.", "# TYPE pyllm_generations_total counter"]
        lines += [f"pyllm_generations_total{_labels(model=model, outcome=how)} {n}" for (model, how), n in self._outcomes.items()]
        about = {"prompt": "Tokens of prompts.", "cached": "Tokens of prompts that were computed before.", "generated": "Tokens written.",
                 "drafted": "Tokens guessed ahead and checked.", "accepted": "Tokens of these that were right."}
        for name, counts in self._tokens.items():
            full = f"pyllm_{name}_tokens_total"
            lines += [f"# HELP {full} {about[name]}", f"# TYPE {full} counter"]
            lines += [f"{full}{_labels(model=model)} {n}" for model, n in counts.items()]
        for name, histogram in self._histograms.items():
            lines += histogram.lines(f"pyllm_{name}")
        lines += ["# HELP pyllm_generations Generations that run or wait.", "# TYPE pyllm_generations gauge",
                  f"pyllm_generations {work.admission.count}"]
        lines += self._engines(work)
        return "\n".join(lines) + "\n"

    @staticmethod
    def _engines(work: Work) -> Iterable[str]:
        loads = {s.name: s.llm.load if s.llm is not None else None for s in work.models.all.values()}
        yield from ("# HELP pyllm_model_loaded Whether a model is in memory.", "# TYPE pyllm_model_loaded gauge")
        yield from (f"pyllm_model_loaded{_labels(model=name)} {int(load is not None)}" for name, load in loads.items())
        about_loads = {"running": "Requests in the batch.", "waiting": "Requests that wait for a place in the batch.",
                       "turn_seconds": "Seconds since the engine finished a step; 0 while it is idle."}
        for i, (name, about) in enumerate(about_loads.items()):
            yield from (f"# HELP pyllm_engine_{name} {about}", f"# TYPE pyllm_engine_{name} gauge")
            yield from (f"pyllm_engine_{name}{_labels(model=model)} {load[i]:.6g}" for model, load in loads.items() if load is not None)


def _labels(**labels: str) -> str:
    escaped = (f'{k}="{v}"' for k, v in ((k, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for k, v in labels.items()))
    return "{" + ",".join(escaped) + "}"
