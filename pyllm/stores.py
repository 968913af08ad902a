"""Models that are already on this machine: pyllm's own cache, the Hugging Face hub's cache, LM Studio's and Ollama's folders.

Everything is read in place and nothing is ever written; no other program or package is needed. A model's name here is what every
command accepts for it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OWN, HUB, LM_STUDIO, OLLAMA = "pyllm", "hub cache", "LM Studio", "Ollama"

_SPLIT = re.compile(r"-(\d{5})-of-(?!00000)(\d{5})(\.gguf)$", re.IGNORECASE)
_QUANT = re.compile(r"(?<![a-z0-9])(?:ud-)?(?:i?q[1-8]_\w+?|tq[12]_0|q[1-8]|bf16|fp?16|fp?32|mxfp4(?:_moe)?|nvfp4)(?![a-z0-9_])",
                    re.IGNORECASE)
_NOT_A_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)     # beside many models: image encoders, statistics for quantizers
_REPO = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<quant>[\w.-]+)|/(?P<file>.+\.gguf))?")


@dataclass(frozen=True)
class Found:
    """A model on this machine. path: its GGUF file, of a split set the first one."""

    name: str
    path: Path
    where: str


@dataclass(frozen=True)
class RepoSpec:
    """user/repo, user/repo:QUANT or user/repo/file.gguf. Raises ValueError for anything else."""

    repo: str
    quant: str | None
    file: str | None

    @staticmethod
    def parse(spec: str) -> RepoSpec:
        match = _REPO.fullmatch(spec)
        if match is None:
            raise ValueError(f"{spec!r} is not of the form user/repo[:QUANT]")
        return RepoSpec(match["repo"], match["quant"], match["file"])


# ---- file names ----

def parts(name: str) -> list[str]:
    """All file names of a split set, given its first; otherwise just the name."""
    match = _SPLIT.search(name)
    if match is None:
        return [name]
    return [f"{name[:match.start()]}-{i:05}-of-{match[2]}{match[3]}" for i in range(1, int(match[2]) + 1)]


def part_paths(path: Path) -> list[Path]:
    return [path.with_name(name) for name in parts(path.name)]


def is_model(name: str) -> bool:
    """Whether a file name is a model's, or the first of a split set."""
    match = _SPLIT.search(name)
    return name.lower().endswith(".gguf") and not _NOT_A_MODEL.search(name) and (match is None or int(match[1]) == 1)


def quant_of(name: str) -> str:
    """The quantization that a file name (with folders) tells, in capitals: Q4_K_M; empty if it tells none."""
    found = _QUANT.findall(name)
    return found[-1].upper() if found else ""


def pick(sizes: dict[str, int], quant: str | None) -> str | None:
    """The file to take of a repository, or None. sizes: file name (of split sets the first) to bytes.

    With quant: the files that have this quant_of, else those that carry it in their name. Without: Q4_K_M, else the smallest that keeps
    at least 4 bits a weight, else the largest of the others. Of several files that fit, the smallest.
    """
    if quant is not None:
        word = re.compile(rf"(?<![a-z0-9]){re.escape(quant)}(?![a-z0-9_])", re.IGNORECASE)
        sizes = ({name: n for name, n in sizes.items() if quant_of(name) == quant.upper()}
                 or {name: n for name, n in sizes.items() if word.search(name)})
    else:
        sizes = {n: s for n, s in sizes.items() if quant_of(n) == "Q4_K_M"} or sizes
        fewer_bits = {n for n in sizes if re.match(r"(UD-)?I?T?Q[123]", quant_of(n))}
        if fewer_bits == set(sizes):
            return max(sizes, key=lambda n: (sizes[n], n), default=None)
        sizes = {n: s for n, s in sizes.items() if n not in fewer_bits}
    return min(sizes, key=lambda n: (sizes[n], n), default=None)


# ---- where programs keep their models ----

def cache_dir() -> Path:
    """Where fetched models live: $PYLLM_HOME, else the platform's cache folder."""
    if home := os.environ.get("PYLLM_HOME"):
        return Path(home)
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/pyllm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "pyllm"
    return _xdg_cache() / "pyllm"


def hub_dir() -> Path:
    """The hub's cache folder, as huggingface_hub chooses it."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else _xdg_cache() / "huggingface") / "hub"


def _lm_studio_dirs() -> list[Path]:
    return [Path.home() / ".lmstudio/models", Path.home() / ".cache/lm-studio/models"]


def _ollama_dirs() -> list[Path]:
    if folder := os.environ.get("OLLAMA_MODELS"):
        return [Path(folder)]
    return [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]       # the second: its Linux service


def _xdg_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


# ---- what is there ----

def find(spec: str) -> Found | None:
    """The model that a name means: own, hub cache, LM Studio, Ollama, in this order. `ollama:NAME[:TAG]` looks there only."""
    if spec.startswith("ollama:"):
        return _named(spec.removeprefix("ollama:"), ollama())
    if found := _named(spec, own_cache()):
        return found
    try:
        repo = RepoSpec.parse(spec)
    except ValueError:
        pass
    else:
        for files, where in ((hub_files(repo.repo), HUB), (lm_studio_files(repo.repo), LM_STUDIO)):
            if (name := _choose(repo, {n: _bytes(p) for n, p in files.items()})) is not None:
                return Found(spec, files[name], where)
    return _named(spec, ollama())


def everything() -> Iterator[Found]:
    """All models, own ones first."""
    yield from own_cache()
    for repo in _hub_repos():
        yield from _repo_models(repo, hub_files(repo), HUB)
    for folder in _lm_studio_dirs():
        for publisher in _list(folder):
            for repo_folder in _list(publisher):
                yield from _repo_models(f"{publisher.name}/{repo_folder.name}", _models_below(repo_folder), LM_STUDIO)
    yield from ollama()


def own_cache() -> Iterator[Found]:
    for path in _list(cache_dir()):
        if is_model(path.name) and path.is_file():
            yield Found(_SPLIT.sub("", path.name).removesuffix(".gguf"), path, OWN)


def hub_snapshots(repo: str) -> list[Path]:
    """Folders of a repository's revisions in the hub's cache, the main one last, before it the newest."""
    folder = hub_dir() / f"models--{repo.replace('/', '--')}"
    try:
        main = (folder / "refs/main").read_text("utf-8", "replace").strip()
    except OSError:
        main = ""
    return sorted((p for p in _list(folder / "snapshots") if p.is_dir()), key=lambda p: (p.name == main, p.stat().st_mtime))


def hub_files(repo: str) -> dict[str, Path]:
    """Models of a repository in the hub's cache by file name; of several revisions the main one counts, then the newest."""
    files: dict[str, Path] = {}
    for revision in hub_snapshots(repo):
        files.update(_models_below(revision))
    return files


def lm_studio_files(repo: str) -> dict[str, Path]:
    """Models of a publisher/repo in LM Studio's folders by file name."""
    return {name: path for folder in _lm_studio_dirs() for name, path in _models_below(folder / repo).items()}


def ollama() -> Iterator[Found]:
    """manifests/HOST/NAMESPACE/NAME/TAG is JSON whose layer of the model type names a blob by its digest."""
    for root in _ollama_dirs():
        for manifest in sorted(p for p in _tree(root / "manifests") if p.is_file()):
            where = manifest.relative_to(root / "manifests").parts
            blob = _ollama_blob(root, manifest) if len(where) == 4 else None
            if blob is not None:
                _, namespace, model, tag = where
                yield Found(f"{'' if namespace == 'library' else namespace + '/'}{model}:{tag}", blob, OLLAMA)


def _ollama_blob(root: Path, manifest: Path) -> Path | None:
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        digest = next(layer["digest"] for layer in layers if layer["mediaType"] == "application/vnd.ollama.image.model")
        blob = root / "blobs" / digest.replace(":", "-")
        return blob if re.fullmatch(r"sha256-[0-9a-f]{64}", blob.name) and blob.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None         # not a manifest, a model that is still being fetched, or one of another kind


def _named(name: str, models: Iterable[Found]) -> Found | None:
    wanted = (name, f"{name}:latest", name.removesuffix(".gguf"))
    return next((m for m in models if m.name in wanted), None)


def _choose(spec: RepoSpec, sizes: dict[str, int]) -> str | None:
    if spec.file is not None:
        return spec.file if spec.file in sizes else None
    return pick(sizes, spec.quant)


def _repo_models(repo: str, files: dict[str, Path], where: str) -> Iterator[Found]:
    """Named repo:QUANT where that says which file is meant, else repo/file."""
    quants = [quant_of(name) for name in files]
    for (name, path), quant in zip(files.items(), quants, strict=True):
        yield Found(f"{repo}:{quant}" if quant and quants.count(quant) == 1 else f"{repo}/{name}", path, where)


def _hub_repos() -> list[str]:
    return [p.name.removeprefix("models--").replace("--", "/", 1) for p in _list(hub_dir()) if p.name.startswith("models--")]


def _models_below(folder: Path) -> dict[str, Path]:
    """Whole models by name relative to the folder; split sets with a missing file are left out."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(_tree(folder))
            if is_model(p.name) and all(part.is_file() for part in part_paths(p))}


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in part_paths(path))


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []           # no such folder, or not ours to read


def _tree(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base) / name for name in names)
