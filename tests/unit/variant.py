"""Builds of the package with other compiler flags, beside the installed one, for tests in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(folder: Path, cflags: str, ldflags: str = "") -> dict[str, str]:
    """Builds into folder; returns the environment in which `import pyllm` finds that build."""
    env = {**os.environ, "PYLLM_CFLAGS": cflags, "PYLLM_LDFLAGS": ldflags}
    done = subprocess.run([sys.executable, "setup.py", "-q", "build", "--build-base", str(folder), "--build-lib", str(folder / "lib")],
                          cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {**os.environ, "PYTHONPATH": str(folder / "lib")}
