"""The shared library as a guest in its host's process, and the package around it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

import pyllm
from pyllm._core import _NAME, ffi, lib

LIBRARY = Path(pyllm.__file__).with_name(_NAME)
HEADER = ROOT / "csrc/pyllm.h"
# What would end, print into, or split the host process.
FORBIDDEN = {"abort", "exit", "_exit", "_Exit", "quick_exit", "raise", "kill", "longjmp", "__assert_fail", "printf", "vprintf", "puts",
             "putchar", "perror", "stdout", "stderr", "system", "popen", "fork"}


def symbols(*flags: str) -> set[str]:
    out = subprocess.run(["nm", "-D", *flags, str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in out.splitlines()}


def cdef() -> str:
    return HEADER.read_text().split("/* cdef begin */")[1].split("/* cdef end */")[0]


def test_package_is_the_installed_one() -> None:
    """A checkout in the current folder must not shadow what was installed."""
    folder = Path(pyllm.__file__).parent
    editable = folder == ROOT / "pyllm" and "__editable__" in " ".join(p.name for p in Path(sysconfig.get_path("purelib")).iterdir())
    assert editable or folder.is_relative_to(sys.prefix), folder


def test_library_cannot_take_the_host_down() -> None:
    undefined = symbols("--undefined-only")
    assert "pread" in undefined or "pread64" in undefined       # the list is not empty by mistake
    assert not undefined & FORBIDDEN


def test_only_the_public_interface_is_exported() -> None:
    exported = symbols("--defined-only", "--extern-only")
    declared = set(re.findall(r"\b(pyllm_\w+)\(", re.sub(r"/\*.*?\*/", "", cdef(), flags=re.S)))
    assert len(declared) > 30
    assert exported == declared


def test_header_compiles_alone_and_python_agrees(tmp_path: Path) -> None:
    """The compiler's idea of every structure's size and of every constant is cffi's."""
    text = re.sub(r"/\*.*?\*/", "", cdef(), flags=re.S)
    structs = re.findall(r"\}\s*(pyllm_\w+)\s*;", text)
    constants = re.findall(r"\b(PYLLM_\w+)\s*=", text)
    assert {"pyllm_error", "pyllm_engine_params"} <= set(structs) and "PYLLM_ERR_STATE" in constants
    program = tmp_path / "probe.c"
    lines = [f'printf("{s} %zu\\n", sizeof({s}));' for s in structs] + [f'printf("{c} %d\\n", (int){c});' for c in constants]
    program.write_text(f'#include "{HEADER}"\n#include <stdio.h>\nint main(void) {{ {" ".join(lines)} }}\n')
    cc = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    subprocess.run([cc, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", str(tmp_path / "probe"), str(program)], check=True)
    out = subprocess.run([str(tmp_path / "probe")], capture_output=True, text=True, check=True).stdout
    said = dict(line.split() for line in out.splitlines())
    assert said == {**{s: str(ffi.sizeof(s)) for s in structs}, **{c: str(getattr(lib, c)) for c in constants}}


def test_library_is_small() -> None:
    assert LIBRARY.stat().st_size < 3 << 20


def test_import_is_quick_and_silent(tmp_path: Path) -> None:
    code = ("import sys, time; start = time.perf_counter(); import pyllm; taken = time.perf_counter() - start; "
            "assert 'numpy' not in sys.modules and 'minijinja' not in sys.modules; print(taken)")
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True) for _ in range(5)]
    assert {run.stderr for run in runs} == {""}
    assert min(float(run.stdout) for run in runs) < 0.1


def test_missing_library_is_explained(tmp_path: Path) -> None:
    """A package without its library: an ImportError for those who import it, a message without traceback for users of the command."""
    shutil.copytree(Path(pyllm.__file__).parent, tmp_path / "pyllm", ignore=shutil.ignore_patterns(_NAME))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import pyllm\ntry: pyllm.LLM\nexcept ImportError as e: assert isinstance(e, pyllm.Error) and e.hint, e; print('explained')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "explained\n"
    done = subprocess.run([sys.executable, "-m", "pyllm", "bench", "x.gguf"], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith("error: pyllm's native library") and "hint:" in done.stderr


def test_sources_keep_to_their_layers() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/lint.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", [n for n in dir(pyllm) if not n.startswith("_")] + ["LLM", "Tokenizer", "Error", "ContextOverflow"])
def test_public_names_have_docstrings(name: str) -> None:
    assert (getattr(pyllm, name).__doc__ or "").strip()
