"""Builds of the package with other compiler flags, beside the installed one, for tests in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRELOAD = {"thread": "libtsan.so", "address,undefined": "libasan.so"}


def other_levels() -> str:
    """Flags that leave out what this CPU does not choose. Their kernels are most of what a build takes time for, and no child runs them."""
    from pyllm._core import ffi, lib

    best = ffi.string(lib.pyllm_cpu_level()).decode()
    used = {"amx": {"amx", "avx512vnni"}, "avxvnni": {"avxvnni", "avx2"}}.get(best, {best})       # a level with the one that it builds on
    return " ".join(f"-DPYLLM_NO_{level.upper()}" for level in ("avx2", "avxvnni", "avx512vnni", "amx") if level not in used)


def build(folder: Path, cflags: str, ldflags: str = "") -> dict[str, str]:
    """Builds into folder, of the CPU levels ref and this CPU's best; returns the environment in which `import pyllm` finds that build."""
    env = {**os.environ, "PYLLM_CFLAGS": f"{cflags} {other_levels()}", "PYLLM_LDFLAGS": ldflags}
    done = subprocess.run([sys.executable, "setup.py", "-q", "build", "--build-base", str(folder), "--build-lib", str(folder / "lib")],
                          cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {**os.environ, "PYTHONPATH": str(folder / "lib")}


def build_sanitized(folder: Path, sanitizers: str) -> dict[str, str]:
    """Builds under these sanitizers; returns the environment that runs it. The template files are large: line numbers alone, and checks by
    calls instead of code in place, halve the compiler's time."""
    flags = f"-fsanitize={sanitizers} -fno-sanitize-recover=undefined -O1 -g1 -fno-var-tracking"
    if "address" in sanitizers:
        flags += " --param asan-instrumentation-with-call-threshold=0"
    env = build(folder / "build", flags, f"-fsanitize={sanitizers}")
    # minijinja is built without the sanitizer, so its own locks are invisible.
    (folder / "suppressions").write_text("called_from_lib:_lowlevel\nrace:_lowlevel\n")
    return env | {"LD_PRELOAD": runtime(PRELOAD[sanitizers]), "ASAN_OPTIONS": "detect_leaks=0",
                  "TSAN_OPTIONS": f"suppressions={folder}/suppressions", "OPENBLAS_NUM_THREADS": "1"}


def runtime(name: str) -> str:
    """Path of the compiler's sanitizer library; Python itself is not instrumented, so it must be loaded first."""
    return subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
