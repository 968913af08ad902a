"""Every way to install pyllm, from a copy of the sources, into environments that have nothing else; and every compiler that is promised.

The slow tests install with the real pip, build isolation and the package index: run them with -m slow.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from test_bit_identity import golden_file

import pyllm

GENERATE = """
import json, sys, pyllm
with pyllm.LLM(sys.argv[1], ctx=64, threads=1) as llm:
    print(json.dumps([pyllm.__file__, llm.level, llm.complete([1, 2, 3], max_tokens=8, temperature=0, stop=[]).tokens]))
"""
# Names of pyllm and of everything that it needs without extras.
NEEDS = """
import re
from importlib.metadata import PackageNotFoundError, requires
names, todo = set(), ["pyllm"]
while todo:
    name = re.match(r"[\\w.-]+", todo.pop())[0].lower().replace("_", "-")
    if name not in names:
        names.add(name)
        try:
            todo += [r for r in requires(name) or () if "extra ==" not in r]
        except PackageNotFoundError:        # needed by other Pythons or systems
            pass
print(*names)
"""
LOGITS = """
import hashlib, sys, pyllm
from pyllm._core import ffi, lib
for level in ffi.string(lib.pyllm_cpu_levels()).decode().split():
    with pyllm.LLM(sys.argv[1], ctx=64, level=level) as llm:
        print(level, hashlib.sha256(llm.logits(list(range(40))).tobytes()).hexdigest())
"""


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Output of a command that must succeed, in an environment without traces of the one that runs the tests."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV") and not k.startswith("PYLLM_")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean | (env or {}), capture_output=True, text=True, timeout=900,
                          check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def copy_sources(to: Path) -> Path:
    """What a checkout holds of the package, without anything that was built in it."""
    built = shutil.ignore_patterns("__pycache__", "_ffi.py", "*.so", "*.dylib", "*.dll")
    for name in ("csrc", "pyllm", "models", "quantize"):
        shutil.copytree(ROOT / name, to / name, ignore=built)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, to)
    return to


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
        return cls(folder)

    def install(self, *args: str | Path) -> None:
        run(self.folder / "bin/python", "-m", "pip", "install", "-q", *args, cwd=self.folder)

    def check(self, model: Path, home: str) -> None:
        """The command and the library work, and the library is the one under `home`."""
        assert run(self.folder / "bin/pyllm", "--version", cwd=self.folder) == f"pyllm {pyllm.__version__}\n"
        file, _, tokens = json.loads(run(self.folder / "bin/python", "-c", GENERATE, model, cwd=self.folder))
        assert file.startswith(home) and len(tokens) == 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    (sources / "pyllm/_ffi.py").write_text("left over from a build\n")
    run(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=sources)
    (sources / "pyllm/_ffi.py").unlink()
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_file("llama", tmp_path_factory.mktemp("tiny"))


def test_sdist_holds_all_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {m.name.partition("/")[2] for m in tar.getmembers() if m.isfile()}
    wanted = {p.relative_to(ROOT).as_posix() for folder in ("csrc", "pyllm", "models", "quantize") for p in (ROOT / folder).rglob("*")
              if p.suffix in (".c", ".h", ".def", ".metal", ".py", ".typed", ".html") and p.name != "_ffi.py"}
    assert {"csrc/kernels/kernels.h", "csrc/ops/ops.def", "csrc/formats/qtypes.def", "models/llama.py"} <= wanted
    made = {n for n in names if n.startswith("pyllm.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names == wanted | made | {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md"}


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built out of the sdist, in pip's isolated build environment."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist, cwd=folder)
    (file,) = folder.iterdir()
    return file


@pytest.mark.slow
def test_wheel_contents(wheel: Path) -> None:
    system, machine = platform.system().lower(), platform.machine()
    assert re.fullmatch(rf"pyllm-{re.escape(pyllm.__version__)}-py3-none-{system}\w*_{machine}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as z:
        sizes = {i.filename: i.file_size for i in z.infolist()}
        info = f"pyllm-{pyllm.__version__}.dist-info"
        metadata = z.read(f"{info}/METADATA").decode()
    modules = {f"pyllm/{p.relative_to(ROOT / 'pyllm').as_posix()}" for p in (ROOT / "pyllm").rglob("*.py")}
    modules |= {f"pyllm/{folder}/{p.name}" for folder in ("models", "quantize") for p in (ROOT / folder).glob("*.py")}
    native = {"pyllm/libpyllm.so", "pyllm/_ffi.py", "pyllm/py.typed", "pyllm/server/page.html"}
    assert {n for n in sizes if not n.startswith(info)} == modules | native
    assert wheel.stat().st_size < 2_500_000
    assert "Requires-Python: >=3.10\n" in metadata and re.search(r"^License(-Expression)?: MIT$", metadata, re.M)


@pytest.mark.slow
def test_bare_wheel(wheel: Path, tiny: Path, tmp_path: Path) -> None:
    """A wheel in an environment of its own pulls in the five packages it names, what those need, and no more."""
    env = Environment.make(tmp_path / "env")
    env.install(wheel)
    env.check(tiny, str(tmp_path))
    python = env.folder / "bin/python"
    run(python, "-m", "pip", "check", cwd=tmp_path)
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    installed = {p["name"].lower().replace("_", "-") for p in listed}
    assert {"pyllm", "cffi", "numpy", "gguf", "sentencepiece", "minijinja"} <= installed
    assert installed - {"pip", "setuptools"} <= set(run(python, "-c", NEEDS, cwd=tmp_path).split())


@pytest.mark.slow
def test_plain_and_editable_install(sources: Path, tiny: Path, tmp_path: Path) -> None:
    """`pip install .` and `pip install -e .`; the editable one runs the checkout's modules, models included."""
    env = Environment.make(tmp_path / "env")
    env.install(sources)
    env.check(tiny, str(tmp_path))
    env.install("-e", sources)
    env.check(tiny, str(sources))
    models = run(env.folder / "bin/python", "-c", "import pyllm.models; print(pyllm.models.__file__)", cwd=tmp_path)
    assert Path(models.strip()) == sources / "models/__init__.py"
    env.install("--no-build-isolation", "setuptools", "wheel", "cffi")
    env.install("--no-build-isolation", "--no-deps", "-e", sources)
    env.check(tiny, str(sources))


@pytest.mark.slow
def test_nothing_of_an_earlier_build_rides_along(tmp_path: Path) -> None:
    """Modules that were deleted and libraries for another platform do not reach the next wheel; a changed constant does."""
    sources = copy_sources(tmp_path / "sources")
    (sources / "pyllm/gone.py").write_text("")

    def members(number: int) -> set[str]:
        out = tmp_path / f"wheel{number}"
        run(sys.executable, "setup.py", "-q", "bdist_wheel", "-d", out, cwd=sources)
        with zipfile.ZipFile(next(out.iterdir())) as z:
            z.extractall(tmp_path / f"unpacked{number}")
            return set(z.namelist())

    assert "pyllm/gone.py" in members(1)
    (sources / "pyllm/gone.py").unlink()
    for lib in (sources / "build").glob("lib*"):
        (lib / "pyllm/libpyllm.dylib").write_bytes(b"of another platform")
    api = sources / "csrc/api.c"
    changed, n = re.subn(r"ABI_VERSION = \d+", "ABI_VERSION = 77", api.read_text())
    assert n == 1
    api.write_text(changed)
    names = members(2)
    assert "pyllm/gone.py" not in names and "pyllm/libpyllm.dylib" not in names
    with pytest.raises(AssertionError, match="has ABI version 77"):
        run(sys.executable, "-c", "import pyllm._core", cwd=tmp_path / "unpacked2", env={"PYTHONPATH": str(tmp_path / "unpacked2")})


def build_with(cc: str, folder: Path) -> tuple[dict[str, str], str]:
    """Builds with another compiler, warnings being errors: the environment in which `import pyllm` finds that build, and the messages."""
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder), "--build-lib", str(folder / "lib")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CC": cc, "PYLLM_CFLAGS": "-Werror"}, capture_output=True, text=True,
                          timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return os.environ | {"PYTHONPATH": str(folder / "lib")}, done.stderr


def checksums(env: dict[str, str], model: Path, cwd: Path) -> dict[str, str]:
    """CPU level -> SHA-256 of logits."""
    command = [sys.executable, "-c", LOGITS, str(model)]
    out = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=True).stdout
    return dict(line.split() for line in out.splitlines())


@pytest.fixture(scope="module")
def installed_checksums(tiny: Path) -> dict[str, str]:
    sums = checksums(dict(os.environ), tiny, tiny.parent)
    assert "ref" in sums and len(set(sums.values())) == 1
    return sums


def compilers() -> list[str]:
    """The system's gcc, the oldest of each kind that the project promises, and every other version that is installed."""
    return ["gcc", "gcc-11", *(c for v in range(12, 40) if shutil.which(c := f"gcc-{v}")),
            "clang-13", *(c for v in range(14, 40) if shutil.which(c := f"clang-{v}"))]


@pytest.mark.slow
@pytest.mark.parametrize("cc", compilers())
def test_compilers(cc: str, tiny: Path, tmp_path: Path, installed_checksums: dict[str, str]) -> None:
    """No warning (build_with makes them errors), all levels, and the same bits as the installed library."""
    assert shutil.which(cc), f"{cc} is not installed\nhint: apt install {cc}"
    env, messages = build_with(cc, tmp_path / "build")
    assert "left out" not in messages
    assert checksums(env, tiny, tmp_path) == installed_checksums


# A flag that not every compiler has, and the level that needs it.
OPTIONAL_FLAGS = {"x86_64": [("-mamx-int8", "amx"), ("-mavx512vnni", "avx512vnni"), ("-mavxvnni", "avxvnni"), ("-mfma", "avx2")]}


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "level"), OPTIONAL_FLAGS.get(platform.machine(), []))
def test_compiler_without_a_flag(flag: str, level: str, tiny: Path, tmp_path: Path, installed_checksums: dict[str, str]) -> None:
    """The level is left out, which is said; the others are there and compute the same. -mfma is needed by all, -mavx512vnni by two."""
    cc = tmp_path / "cc"
    cc.write_text(f"""#!/bin/sh
for option; do
    [ "$option" != {flag} ] || {{ echo "error: unrecognized option {flag}" >&2; exit 1; }}
done
exec gcc "$@"
""")
    cc.chmod(0o755)
    env, messages = build_with(str(cc), tmp_path / "build")
    assert f"does not take the flags of {level}; that level is left out" in messages
    needed_by = {"avx2": {name for _, name in OPTIONAL_FLAGS["x86_64"]}, "avx512vnni": {"avx512vnni", "amx"}}
    without = needed_by.get(level, {level})
    assert checksums(env, tiny, tmp_path) == {k: v for k, v in installed_checksums.items() if k not in without}
    forced = subprocess.run([sys.executable, "-c", GENERATE, str(tiny)], env=env | {"PYLLM_CPU": level}, cwd=tmp_path, capture_output=True,
                            text=True, timeout=60, check=False)
    assert forced.returncode == 1 and level in forced.stderr.splitlines()[-1] + forced.stderr.splitlines()[-2]
