"""What was measured on a model, kept in the cache folder: a run that was killed goes on where it was, and one with another target begins
with what is known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from pyllm import stores

from .writer import writing

_VERSION = 1                    # of how things are measured: what an older one left is not used


class Measurements:
    """Values of JSON by name, a line each in a file that is named after `key`: what they depend on. A line that was cut off is dropped.
    Use it as a context manager or call close(). Raises FileError."""

    def __init__(self, key: Mapping[str, Any]) -> None:
        key = {"version": _VERSION, **key}
        folder = stores.cache_dir() / "sensitivity"
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.path, self.imatrix = folder / f"{name}.jsonl", folder / f"{name}.imatrix.gguf"
        self._found = self._read()
        with writing(self.path, 0):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            temporary.write_text("".join(json.dumps({k: v}) + "\n" for k, v in {"key": key, **self._found}.items()))
            os.replace(temporary, self.path)
            self._file = open(self.path, "a")       # noqa: SIM115  # closed by close()

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            for line in self.path.read_text().splitlines():
                found |= json.loads(line)
        except (OSError, ValueError, TypeError):
            pass                                    # up to a line that is damaged
        return found

    def get(self, name: str) -> Any:
        return self._found.get(name)

    def put(self, name: str, value: Any) -> None:
        self._found[name] = value
        with writing(self.path, 0):
            self._file.write(json.dumps({name: value}) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Measurements:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
