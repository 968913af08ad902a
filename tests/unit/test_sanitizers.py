"""The C core under ThreadSanitizer and under AddressSanitizer with UBSan, driven by Python: pool, pages, batches, states."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from test_bit_identity import golden_file
from variant import build

PRELOAD = {"thread": "libtsan.so", "address,undefined": "libasan.so"}


def runtime(name: str) -> str:
    """Path of the compiler's sanitizer library; Python itself is not instrumented, so it must be loaded first."""
    return subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def sanitized(sanitizers: str, folder: Path) -> dict[str, str]:
    """The environment of a build under these sanitizers."""
    env = build(folder / "build", f"-fsanitize={sanitizers} -fno-sanitize-recover=undefined -O1 -g", f"-fsanitize={sanitizers}")
    # minijinja is built without the sanitizer, so its own locks are invisible.
    (folder / "suppressions").write_text("called_from_lib:_lowlevel\nrace:_lowlevel\n")
    return env | {"LD_PRELOAD": runtime(PRELOAD[sanitizers]), "ASAN_OPTIONS": "detect_leaks=0",
                  "TSAN_OPTIONS": f"suppressions={folder}/suppressions", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("sanitizers", PRELOAD)
def test_many_clients(sanitizers: str, tmp_path: Path) -> None:
    env = sanitized(sanitizers, tmp_path)
    files = [str(golden_file(name, tmp_path)) for name in ("llama", "gemma3")]
    # Older sanitizer runtimes do not know addresses as random as newer kernels make them.
    command = ["setarch", platform.machine(), "-R", sys.executable, str(Path(__file__).with_name("sanitizer_driver.py")), *files]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    print(run.stderr[-8000:])
    assert (run.returncode, run.stdout, run.stderr) == (0, "ok\n", "")
