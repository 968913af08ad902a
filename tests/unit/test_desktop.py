"""The model's side of examples/desktop on SmolLM2, and the hook with which PyInstaller freezes pyllm. The window: tools/try_desktop.py."""

from __future__ import annotations

import runpy
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import pyllm

Worker: Any = runpy.run_path(str(ROOT / "examples/desktop/worker.py"))["Worker"]
LAST = {"loaded", "done", "error"}


def heard(worker: Any) -> list[tuple[str, str]]:
    """What a worker tells until it has done what it was asked."""
    events = []
    while not events or events[-1][0] not in LAST:
        event = worker.events.get(timeout=60)
        events.append((event.kind, event.text))
    return events


@pytest.fixture
def worker() -> Iterator[Any]:
    worker = Worker({"temperature": 0})
    yield worker
    worker.close()
    assert not worker._thread.is_alive()


def test_a_conversation(worker: Any, smollm2: Path) -> None:
    worker.load(str(smollm2))
    gone, loaded = heard(worker)
    name, facts = loaded[1].split("\n")
    assert gone[0] == "gone" and loaded[0] == "loaded" and name == smollm2.stem and "135 million parameters" in facts
    with pyllm.LLM(smollm2) as llm:
        session = llm.session()
        replies = [session.chat(q, temperature=0) for q in ("Name three primary colors.", "And two more.")]
    for reply in replies:
        worker.ask(session.messages[2 * replies.index(reply)]["content"])
        *pieces, done = heard(worker)
        assert len(pieces) > 5 and {kind for kind, _ in pieces} == {"text"} and "".join(text for _, text in pieces) == reply.text
        assert done[0] == "done" and done[1].startswith(f"{len(reply.tokens)} tokens, ")
    worker.forget()
    worker.ask("Name three primary colors.")
    assert "".join(text for kind, text in heard(worker) if kind == "text") == replies[0].text


def test_an_answer_is_stopped(worker: Any, smollm2: Path) -> None:
    """Also before its first word; the next one is not."""
    worker.load(str(smollm2))
    heard(worker)
    worker.ask("What is a kernel?")
    assert worker.events.get(timeout=60).kind == "text"
    begin = time.monotonic()
    worker.cancel()
    assert heard(worker)[-1][1].startswith("stopped, ") and time.monotonic() - begin < 10
    worker.ask("Count to a thousand. " * 100)
    worker.cancel()
    assert heard(worker)[-1] == ("done", "stopped, 0 tokens, 0 a second")
    worker.ask("Name three primary colors.")
    assert "Red" in "".join(text for _, text in heard(worker))


def test_errors_are_told_and_the_model_stays(worker: Any, smollm2: Path, tmp_path: Path) -> None:
    worker.ask("Hi")
    assert heard(worker) == [("error", "no model is loaded\nchoose one at the top")]
    worker.load(str(smollm2))
    heard(worker)
    (tmp_path / "text.gguf").write_text("this is no model")
    wrong = {"no-such-model": "no model 'no-such-model'", str(tmp_path / "text.gguf"): "text.gguf", str(tmp_path): "is a folder"}
    for spec, said in wrong.items():
        worker.load(spec)
        ((kind, text),) = heard(worker)
        assert kind == "error" and said in text
    worker.ask("Name three primary colors.")
    assert "Red" in "".join(text for _, text in heard(worker))


def test_a_frozen_program_does_not_start_itself_as_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.frozen", True, raising=False)
    monkeypatch.setenv("PYLLM_HOME", str(tmp_path))
    with pytest.raises(pyllm.errors.DownloadError, match="not a part of this program\nhint: `pyllm pull smollm2` fetches it"):
        pyllm.LLM("smollm2")


def test_pyinstaller_finds_the_hook() -> None:
    (found,) = {e.value for e in entry_points(group="pyinstaller40") if e.name == "hook-dirs" and e.value.startswith("pyllm.")}
    assert found == "pyllm.__pyinstaller:hook_dirs"
    from pyllm import __pyinstaller

    (folder,) = __pyinstaller.hook_dirs()
    assert (Path(folder) / "hook-pyllm.py").is_file()
