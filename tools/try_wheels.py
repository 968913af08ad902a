#!/usr/bin/env python3
"""Runs the wheels that tools/build_wheels.py made, each as far as that is possible on Linux for x86-64.

    tools/try_wheels.py [-d dist] [PLATFORM...]         default: all platforms that can be run here

    manylinux, x86-64      installed into an empty environment of every Python from 3.10 on that is here, 3.11 and 3.13 at least, with no
                           compiler in the PATH; `pyllm run` prints what README.md says
    manylinux, aarch64     README.md's second answer, and the checksums of tests/data/bit_identity.json, in an arm64 Python under
                           qemu-aarch64 (tools/arm64_test.sh)
    musllinux, both        examples/c-chat linked against the library and musl answers as the Python API does, aarch64 under qemu-aarch64
    macOS, both            the same, by the dylib through tests/macho's loader in a Python of Linux; arm64 under qemu-aarch64
    Windows, x64           examples/c-chat linked against the DLL answers as the Python API does, under Wine

Windows for arm64 is the one that never ran. What runs is kept in build/wheels. Needs pyllm, the packages of its build, ziglang, pytest;
and apt install qemu-user gcc-aarch64-linux-gnu musl wine wine64. Exit status: 0 all ran and passed, 1 not, 2 something is not
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/wheels"
ARM64 = ROOT / "build/arm64"            # of tools/arm64_test.sh
API = re.compile(r"\b(pyllm_\w+)\([^;{]*\);")
ANSWER = re.compile(r"<!-- answer -->\n```text\n(.*?)```", re.S)
SHORT = re.compile(r"^```text\n(The sea .*\n)```", re.M)
ASKED = ("--seed", "1", "Why is the sky blue?")        # as in README.md, its command and its Python
ASKED_SHORT = ("--temp", "0", "-n", "24", "Write one sentence about the sea.")
WANTED_PYTHONS = ("3.11", "3.13")
BITS = ("tests/unit/test_kernels.py", "tests/unit/test_bit_identity.py", "-k", "(tiny and not models) or what_the_cpu_has or own_kernels")
QUESTIONS = "Name three primary colors.\nSay yes.\n"
HOST = """
import json, sys
import pyllm
from pyllm.gguf import GGUF
from pyllm.saved_tape import saved_tape
with pyllm.LLM("smollm2", ctx=2048) as llm, GGUF(llm.path) as gguf:
    session = llm.session()
    answers = [str(session.chat(q, temperature=0, max_tokens=512)) for q in sys.argv[1].splitlines()]
    print(json.dumps([str(llm.path), saved_tape(gguf), "".join(a + "\\n" for a in answers)]))
"""


class Missing(Exception):
    """Something is not installed: the message says what, and how to get it."""


class Failed(Exception):
    """What went wrong."""


def api() -> list[str]:
    """The functions that csrc/pyllm.h declares."""
    return API.findall(re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/pyllm.h").read_text(), flags=re.S))


def zig() -> str:
    """The compiler itself: a child Python of pip's isolated builds would not find the package."""
    try:
        import ziglang
    except ImportError:
        raise Missing("ziglang is not installed\nhint: pip install ziglang") from None
    assert ziglang.__file__
    return str(Path(ziglang.__file__).parent / "zig")


def tool(name: str, package: str) -> str:
    if not (path := shutil.which(name)):
        raise Missing(f"{name} is not installed\nhint: apt install {package}")
    return path


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = WORK, stdin: str = "", limit: int = 1800) -> str:
    """What a command that succeeds prints. env: added; PYTHON* and PYLLM_* settings do not reach it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYLLM_CPU", "PYLLM_TEST", "VIRTUAL_ENV"))}
    done = subprocess.run([str(c) for c in command], env=clean | dict(env or {}), cwd=cwd, input=stdin, capture_output=True, text=True,
                          timeout=limit, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(str(c) for c in command[:8])}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def unpacked(wheel: Path) -> Path:
    folder = WORK / wheel.name.split("-")[-1].split(".")[0]
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as z:
        z.extractall(folder)
    return folder


def same(what: str, got: str, wanted: str) -> None:
    if got.strip() != wanted.strip():
        raise Failed(f"{what} says\n{got}\nand not\n{wanted}")


def readme_answer(which: re.Pattern[str] = ANSWER) -> str:
    found = which.search((ROOT / "README.md").read_text())
    assert found, "README.md has no answer"
    return found[1]


# ---- Linux with glibc ----

def pythons() -> dict[str, str]:
    """Version -> interpreter, of those that can make environments."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in (f"3.{minor}" for minor in range(10, 20)):
        for path in (*sorted(pyenv.glob(f"{version}.*/bin/python{version}")), shutil.which(f"python{version}")):
            if path and not subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode:
                found.setdefault(version, str(path))
    return found


def manylinux_x86_64(wheel: Path) -> str:
    here = pythons()
    if missing := [v for v in WANTED_PYTHONS if v not in here]:
        raise Missing(f"there is no Python {', '.join(missing)}\nhint: apt install python3-venv, or pip install uv && uv python install "
                      f"{' '.join(missing)}")
    for version, python in here.items():
        env = WORK / f"env-{version}"
        shutil.rmtree(env, ignore_errors=True)
        run(python, "-m", "venv", env)
        bare = {"PATH": str(env / "bin")}
        run(env / "bin/python", "-m", "pip", "install", "-q", "--only-binary", ":all:", wheel, env=bare)
        same(f"Python {version}", run(env / "bin/pyllm", "run", *ASKED, env=bare), readme_answer())
        shutil.rmtree(env)
    return f"answers in empty environments of Python {', '.join(here)}"


def arm64(folder: Path, *arguments: str, cpu: str = "max,sve=off", env: Mapping[str, str] | None = None) -> str:
    tool("qemu-aarch64", "qemu-user")
    return run("sh", ROOT / "tools/arm64_test.sh", "--cpu", cpu, "--unpacked", folder, *arguments,
               env={"PYTHON": sys.executable, **(env or {})}, cwd=ROOT)


def passed(out: str) -> str:
    """How many tests, of pytest's last lines."""
    found = re.findall(r"\b(\d+) passed", out)
    if not found:
        raise Failed(f"no test passed\n{out[-2000:]}")
    return f"{found[-1]} tests pass"


def manylinux_aarch64(wheel: Path) -> str:
    folder = unpacked(wheel)
    said = []
    for cpu in ("cortex-a53", "neoverse-n1", "max,sve=off"):
        same(cpu, arm64(folder, "--python", "-m", "pyllm", "run", *ASKED_SHORT, cpu=cpu), readme_answer(SHORT))
        said.append(cpu)
    return f"answers as {', '.join(said)}; {passed(arm64(folder, *BITS, '-v'))}"


# ---- the chat in C: Linux with musl, Windows ----

def python_answers() -> tuple[str, str, str]:
    """The model's path, its tape, and what the Python API answers to QUESTIONS; the library is that of this Python's pyllm."""
    model, tape, answers = json.loads(run(sys.executable, "-c", HOST, QUESTIONS))
    return model, tape, answers


def chat(wheel: Path, target: str, library: str, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
    """Links examples/c-chat against a wheel's library and asks it; `command` runs it."""
    folder = unpacked(wheel)
    model, tape, wanted = python_answers()
    (folder / "model.tape").write_text(tape)
    program = folder / f"pyllm/chat{'.exe' if 'windows' in target else ''}"      # where Windows looks for the library, too
    kind = [] if "windows" in target else ["-dynamic", f"-Wl,-rpath,{folder}/pyllm"]
    sources = ("-I", ROOT / "csrc", ROOT / "examples/c-chat/chat.c", folder / "pyllm" / library)
    run(zig(), "cc", "-target", target, "-O2", *sources, *kind, "-o", program)
    said = run(*command, program, model, folder / "model.tape", stdin=QUESTIONS, env={"GREEDY": "1", **(env or {})})
    same(target, said.replace("\r\n", "\n"), wanted)


def static_chat() -> None:
    """examples/c-chat as one static program for aarch64, made by the commands of docs/arm.md, on CPUs with and without dot products."""
    found = re.search(r"```sh\n(CC=.*?)```", (ROOT / "docs/arm.md").read_text(), re.S)
    assert found, "docs/arm.md has no commands"
    folder = WORK / "static"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    commands = found[1].replace("build/static", str(folder)).replace("-o chat", f"-o {folder}/chat")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run("sh", "-euc", commands, env={"CC": f"{zig()} cc -target aarch64-linux-musl", "PATH": path}, cwd=ROOT)
    model, tape, wanted = python_answers()
    (folder / "model.tape").write_text(tape)
    for cpu in ("cortex-a53", "max,sve=off"):
        said = run(tool("qemu-aarch64", "qemu-user"), "-cpu", cpu, folder / "chat", model, folder / "model.tape", stdin=QUESTIONS,
                   env={"GREEDY": "1"})
        same(f"the static program as {cpu}", said, wanted)


def musllinux_x86_64(wheel: Path) -> str:
    if not Path("/lib/ld-musl-x86_64.so.1").exists():
        raise Missing("musl is not installed\nhint: apt install musl")
    chat(wheel, "x86_64-linux-musl", "libpyllm.so")
    return "examples/c-chat answers; Python on musl is untested"


def musllinux_aarch64(wheel: Path) -> str:
    if not (ARM64 / "root/lib/ld-musl-aarch64.so.1").exists():
        shutil.rmtree(ARM64 / "root", ignore_errors=True)      # made before it had musl
        folder = unpacked(wheel)
        arm64(folder, "--python", "-c", "")
    chat(wheel, "aarch64-linux-musl", "libpyllm.so", tool("qemu-aarch64", "qemu-user"), "-L", ARM64 / "root", "-cpu", "max,sve=off")
    static_chat()
    return "examples/c-chat answers under qemu-aarch64, also as a static program; Python on musl is untested"


def win_amd64(wheel: Path) -> str:
    wine = shutil.which("wine64") or tool("wine", "wine wine64")
    chat(wheel, "x86_64-windows-gnu", "pyllm.dll", wine, env={"WINEPREFIX": str(WORK / "wine"), "WINEDEBUG": "-all"})
    return "examples/c-chat answers under Wine; Python on Windows is untested"


# ---- macOS ----

def with_loader(wheel: Path, *cc: str) -> Path:
    """The wheel unpacked, with a library for Linux in it that loads its dylib."""
    folder = unpacked(wheel)
    made = WORK / "loader"
    made.mkdir(exist_ok=True)
    (made / "api.inc").write_text("".join(f"FUNCTION({name})\n" for name in api()))
    sources = [ROOT / "tests/macho" / name for name in ("loader.c", "darwin.c")]
    flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I", made)
    run(*cc, *flags, *sources, "-pthread", "-ldl", "-o", folder / "pyllm/libpyllm.so")
    return folder


def macosx_x86_64(wheel: Path) -> str:
    folder = with_loader(wheel, tool("gcc", "gcc"))
    env = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    same("the dylib", run(sys.executable, "-m", "pyllm", "run", *ASKED, env=env), readme_answer())
    levels = run(sys.executable, "-c", "from pyllm._core import ffi, lib; print(ffi.string(lib.pyllm_cpu_levels()).decode())", env=env)
    if levels.split() == ["ref"]:
        raise Failed("the dylib finds no level of this CPU but the reference")
    tests = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *BITS, env=env | {"PYLLM_TEST_LEVELS": levels}, cwd=ROOT)
    return f"answers, and {passed(tests)}, through tests/macho's loader; macOS itself is untested"


def macosx_arm64(wheel: Path) -> str:
    folder = with_loader(wheel, tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"))
    same("the dylib", arm64(folder, "--python", "-m", "pyllm", "run", *ASKED_SHORT), readme_answer(SHORT))
    return f"answers, and {passed(arm64(folder, *BITS, '-v'))}, through tests/macho's loader under qemu-aarch64; macOS itself is untested"


RUNS: dict[str, Callable[[Path], str]] = {
    "manylinux_2_17_x86_64": manylinux_x86_64,
    "manylinux_2_17_aarch64": manylinux_aarch64,
    "musllinux_1_2_x86_64": musllinux_x86_64,
    "musllinux_1_2_aarch64": musllinux_aarch64,
    "macosx_11_0_arm64": macosx_arm64,
    "macosx_10_13_x86_64": macosx_x86_64,
    "win_amd64": win_amd64,
}


def try_all(dist: Path, names: list[str]) -> int:
    """Runs the wheels of these platforms in a folder; the exit status."""
    WORK.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in names:
        wheels = sorted(dist.absolute().glob(f"*-{name}.*whl"))
        try:
            if name not in RUNS:
                print(f"      {name}: untested, it cannot be run here", flush=True)
                continue
            if not wheels:
                raise Failed(f"there is no wheel in {dist}\nhint: tools/build_wheels.py {name}")
            print(f"ran   {name}: {RUNS[name](wheels[-1])}", flush=True)
        except Missing as e:
            print(f"      {name}: untested, {e}", flush=True)
            status = status or 2
        except (Failed, subprocess.TimeoutExpired) as e:
            print(f"FAIL  {name}: {e}", flush=True)
            status = 1
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the wheels that can be run here.")
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=", ".join(RUNS))
    parser.add_argument("-d", "--dist", type=Path, default=ROOT / "dist", help="folder of the wheels")
    args = parser.parse_args()
    if unknown := [name for name in args.platforms if name not in RUNS]:
        parser.error(f"{unknown[0]!r} is no platform that can be run here\nhint: choose from {', '.join(RUNS)}")
    return try_all(args.dist, args.platforms or list(RUNS))


if __name__ == "__main__":
    sys.exit(main())
