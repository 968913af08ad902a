"""The C core under ThreadSanitizer and under AddressSanitizer with UBSan, driven by Python: pool, pages, batches, states."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_bit_identity import golden_file


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_many_clients(sanitizers: str, sanitized: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    env = sanitized(sanitizers)
    files = [str(golden_file(name, tmp_path)) for name in ("llama", "gemma3")]
    # Older sanitizer runtimes do not know addresses as random as newer kernels make them.
    command = ["setarch", platform.machine(), "-R", sys.executable, str(Path(__file__).with_name("sanitizer_driver.py")), *files]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    print(run.stderr[-8000:])
    assert (run.returncode, run.stdout, run.stderr) == (0, "ok\n", "")
