"""The folder of a Hugging Face checkpoint: its texts and tables, and its weights by name from however many files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllm import errors, hub, stores

from . import pickles, safetensors
from .stored import Stored, WeightFile

MAX_TEXT = 256 << 20        # bytes of a JSON or text file: the largest tokenizers have 35 MB


class Folder:
    """A checkpoint's folder; close() closes the weight files. files: all that was opened so far."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.files: list[Path] = []
        self.weight_files: list[WeightFile] = []

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def bytes(self, name: str) -> bytes | None:
        """A small file's content; None if there is none of this name."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            if path.stat().st_size > MAX_TEXT:
                raise errors.FormatError(f"{path} has more than {MAX_TEXT >> 20} MB\nhint: this is no file of a checkpoint")
            data = path.read_bytes()
        except OSError as e:
            if isinstance(e, errors.Error):
                raise
            raise errors.FileError(f"{path}: {e.strerror}\nhint: check the path and its permissions") from e
        self.files.append(path)
        return data

    def text(self, name: str) -> str | None:
        data = self.bytes(name)
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError:
            raise errors.FormatError(f"{self.path / name} is not UTF-8\nhint: the file is damaged; download it again") from None

    def json(self, name: str) -> dict[str, Any] | None:
        """A table; None if there is no file of this name."""
        table = self._parsed(name)
        if table is not None and not isinstance(table, dict):
            raise errors.FormatError(f"{self.path / name} holds no JSON object\nhint: the file is damaged; download it again")
        return table

    def array(self, name: str) -> list[Any]:
        """A list; empty if there is no file of this name."""
        found = self._parsed(name)
        if found is not None and not isinstance(found, list):
            raise errors.FormatError(f"{self.path / name} holds no JSON list\nhint: the file is damaged; download it again")
        return found or []

    def _parsed(self, name: str) -> Any:
        text = self.text(name)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as e:
            raise errors.FormatError(f"{self.path / name} is not JSON: {e}\nhint: the file is damaged; download it again") from None

    def weights(self) -> dict[str, Stored]:
        """All tensors by name, file by file in the order of their data. Raises FileError, FormatError or UnsupportedModel."""
        for one, read in (("model.safetensors", safetensors.read_header), ("pytorch_model.bin", pickles.read_header)):
            index = self.json(f"{one}.index.json")
            if index is not None:
                return self._sharded(f"{one}.index.json", index, read)
            if self.has(one):
                return read(self._open(one))
        raise errors.FileError(f"{self.path} has neither model.safetensors nor pytorch_model.bin, whole or in parts with an index\n"
                               "hint: give the folder of a complete Hugging Face checkpoint; for its tokenizer alone use --vocab-only")

    def weights_of(self, name: str) -> dict[str, Stored]:
        """The tensors of one safetensors file. Raises FileError, FormatError."""
        return safetensors.read_header(self._open(name))

    def _open(self, name: str) -> WeightFile:
        file = WeightFile(self.path / name)
        self.weight_files.append(file)
        self.files.append(file.path)
        return file

    def _sharded(self, where: str, index: dict[str, Any], read: Callable[[WeightFile], dict[str, Stored]]) -> dict[str, Stored]:
        places = index.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(f, str) and f == os.path.basename(f) and f not in ("", ".", "..")
                                                   for f in places.values()):
            raise errors.FormatError(f"{self.path / where} has no weight_map of file names\nhint: the file is damaged; download it again")
        found: dict[str, Stored] = {}
        for name in sorted(set(places.values())):
            inside = read(self._open(name))
            found.update({tensor: stored for tensor, stored in inside.items() if places.get(tensor) == name})
        missing = sorted(places.keys() - found.keys())
        if missing:
            raise errors.FormatError(f"{self.path / places[missing[0]]} has no tensor {missing[0]}, which {where} puts there\n"
                                     "hint: the parts belong to different checkpoints; download them again")
        return found

    def close(self) -> None:
        for file in self.weight_files:
            file.close()


def find(spec: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder that a user means: a path, or user/repo of the hub, whose files are fetched if they are not all in its cache. Raises
    FileError, ModelNotFound or DownloadError."""
    if os.path.exists(spec):
        return Path(spec)
    if not _is_repo(spec):
        raise errors.FileError(f"there is no folder {spec}\nhint: give the folder of a Hugging Face checkpoint, or user/repo of the hub")
    return next((s for s in reversed(stores.hub_snapshots(spec)) if is_complete(s)), None) or hub.fetch_checkpoint(spec, progress)


def local(spec: str) -> Path | None:
    """The folder with a config.json that a path or user/repo means, if it is on this machine."""
    places = [Path(spec), *(reversed(stores.hub_snapshots(spec)) if _is_repo(spec) else ())]
    return next((p for p in places if (p / "config.json").is_file()), None)


def _is_repo(spec: str) -> bool:
    try:
        return stores.RepoSpec.parse(spec).repo == spec
    except ValueError:
        return False


def is_complete(path: Path) -> bool:
    """Whether a folder holds a table of the model and all its weights."""
    folder = Folder(path)
    try:
        return (folder.has("config.json") and bool(folder.weights())) or folder.has("adapter_model.safetensors")
    except errors.Error:
        return False
    finally:
        folder.close()


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """The folder of a checkpoint. Raises FileError where there is none."""
    folder = Folder(path)
    if not folder.path.is_dir():
        raise errors.FileError(f"{folder.path} is no folder\nhint: give the folder that holds a checkpoint's config.json")
    return folder
